"""Directories of tree buckets: objects with rights and attributes, made, changed, renamed and removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.commands import status, why
from fsrepl.daemon import live
from fsrepl.model.address import Address
from fsrepl.model.version import Kind, Status
from fsrepl.model.view import view_of
from fsrepl.region.change_queue import CHANGED, DirectoryEvent
from fsrepl.replicate.group import DeliveryGroup
from fsrepl.storage.fs import Fs
from fsrepl.storage.intents import Intent, write_intents
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import directories, obstacles, resting, stale
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify, whys
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World, worlds

Seen = dict[str, tuple[int, int, int, dict[str, bytes]]]


def folders(world: World, bucket: str) -> Seen:
    """The directories of a bucket: mode, owner, and their attributes that are not fsrepl's, ACLs among them."""
    top = world.path(bucket=bucket)
    out = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_dir() and not path.is_symlink() and not name.startswith(".fsrepl"):
            raw = {n: os.getxattr(path, n) for n in os.listxattr(path) if not n.startswith("user.fsrepl.")}
            found = path.stat()
            out[name] = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, raw)
    return out


def test_a_directory_is_an_object(tmp_path: Path) -> None:
    """With files and without, it has a version under its name and a slash, and the replica has it with its rights."""
    with World(tmp_path, trees=True) as world:
        world.path("empty/deep").mkdir(parents=True)
        world.path("empty").chmod(0o750)
        world.write("full/file", b"content")
        world.path("full").chmod(0o711)
        os.setxattr(world.path("full"), "user.note", b"value")
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert list(folders(world, DESTINATION)) == ["empty", "empty/deep", "full"]
        for bucket in (SOURCE, DESTINATION):
            version = world.current("empty/", bucket)
            assert (version.kind, version.size) == (Kind.DIRECTORY, 0)
            assert version.posix is not None
            assert (version.posix.mode, version.posix.mtime_ns) == (stat.S_IFDIR | 0o750, 0)
        assert world.statuses(SOURCE) == {Status.COMPLETED}
        assert list(world.history(SOURCE)) == [b"empty/", b"empty/deep/", b"full/", b"full/file"]
        assert verify(world) == []
        world.stays_quiet()
        world.restart(without_journal=True)
        world.settle()
        world.stays_quiet()
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert {len(v) for v in world.history(SOURCE).values()} == {1}


def test_directories_are_no_objects_elsewhere(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.path("empty").mkdir()
        world.write("full/file", b"content")
        world.settle()
        assert list(world.history(SOURCE)) == [b"full/file"]
        assert list(folders(world, DESTINATION)) == ["full"]


def test_changed_rights_and_attributes_are_a_new_version_and_entries_are_none(tmp_path: Path) -> None:
    """The time of a directory, which changes with each entry, is no part of its object."""
    with World(tmp_path, trees=True) as world:
        world.path("folder").mkdir()
        world.settle()
        world.write("folder/file", b"content")
        os.utime(world.path("folder"), ns=(7, 7))
        world.settle()
        assert len(world.of("folder/")) == 1
        world.path("folder").chmod(0o700)
        os.setxattr(world.path("folder"), "user.note", b"value")
        world.settle()
        assert len(world.of("folder/")) == len(world.of("folder/", DESTINATION)) == 2
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        os.removexattr(world.path("folder"), "user.note")
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert verify(world) == []
        world.stays_quiet()


@pytest.mark.skipif(not shutil.which("setfacl"), reason="needs setfacl")
def test_acls_of_a_directory_are_replicated(tmp_path: Path) -> None:
    """Its access ACL, and the default ACL for what is made in it."""
    with World(tmp_path, trees=True) as world:
        world.path("folder").mkdir()
        world.settle()
        os.system(f"setfacl -m u:1234:rx,d:u:1234:rwx {world.path('folder')}")
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert len(folders(world, SOURCE)["folder"][3]) == 2
        world.stays_quiet()
        os.system(f"setfacl -b {world.path('folder')}")
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert folders(world, SOURCE)["folder"][3] == {}
        world.stays_quiet()
        assert verify(world) == []


def test_rmdir_makes_a_marker_and_restore_the_directory(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        world.write("a/b/file", b"content")
        world.path("a/b").chmod(0o700)
        world.settle()
        shutil.rmtree(world.path("a"))
        world.settle()
        world.settle()
        assert folders(world, DESTINATION) == {}
        assert all(v[-1].marker for v in world.history(DESTINATION).values())
        assert not world.state(DESTINATION).views.stale
        for key in (b"a/", b"a/b/", b"a/b/file"):
            world.run("object.restore", bucket=SOURCE, key=key)
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert folders(world, SOURCE)["a/b"][0] == 0o700
        assert world.tree(DESTINATION) == {"a/b/file": b"content"}
        assert verify(world) == []
        world.stays_quiet()


def test_a_directory_stays_when_its_last_file_is_gone(tmp_path: Path) -> None:
    """A directory with files and one without are alike; only rmdir removes it."""
    with World(tmp_path, trees=True) as world:
        world.write("folder/file", b"content")
        world.settle()
        world.unlink("folder/file")
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE) != {}
        world.stays_quiet()


def test_a_renamed_directory_is_renamed_in_the_replica(tmp_path: Path) -> None:
    """A renamed directory is new keys and markers, with all that is below it."""
    with World(tmp_path, trees=True) as world:
        world.write("old/deep/file", b"content")
        world.path("old/empty").mkdir()
        world.link("old/link", "deep/file")
        world.path("old").chmod(0o750)
        world.settle()
        world.path("old").rename(world.path("new"))
        world.settle()
        world.settle()
        assert list(folders(world, DESTINATION)) == ["new", "new/deep", "new/empty"]
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert world.tree(DESTINATION) == {"new/deep/file": b"content"}
        assert world.links(DESTINATION) == {"new/link": "deep/file"}
        assert not world.state(DESTINATION).views.stale
        world.stays_quiet()


@pytest.mark.parametrize("directory_first", [False, True])
def test_a_file_and_a_directory_replace_each_other(tmp_path: Path, directory_first: bool) -> None:
    """The replica follows, whichever came first; nothing is lost of either."""
    with World(tmp_path, trees=True) as world:
        acts = [lambda: world.write("key", b"content"), lambda: world.write("key/file", b"below")]
        acts = acts[::-1] if directory_first else acts
        acts[0]()
        world.settle()
        shutil.rmtree(world.path("key")) if directory_first else world.unlink("key")
        acts[1]()
        for _ in range(3):
            world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert not world.state(DESTINATION).views.stale
        assert verify(world) == []


def test_a_file_in_the_place_of_a_directory_is_a_conflict(tmp_path: Path) -> None:
    """A ViewConflict in either direction, to status, why, doctor and verify; nothing is lost, and the object is shown
    when the way is free."""
    with World(tmp_path, trees=True) as world:
        world.write("one", b"theirs", DESTINATION)
        world.write("two/file", b"theirs", DESTINATION)
        world.settle()
        world.path("one").mkdir()
        world.write("two", b"ours")
        world.settle()
        assert world.state(DESTINATION).views.stale[b"one/"].conflict
        assert world.state(DESTINATION).views.stale[b"two"].conflict
        assert world.tree(DESTINATION) == {"one": b"theirs", "two/file": b"theirs"}
        site, said = world.engine.site, {"running": True, **live.status(world.engine)}
        found = {each["bucket"]: each for each in status.status(site, said)["buckets"]}
        conflicts = {each["Key"]: each["Reason"] for each in found[DESTINATION]["view_conflicts"]}
        assert conflicts == {"one/": "ViewConflict", "two": "ViewConflict"}
        assert said["buckets"][DESTINATION]["conflicts"].keys() == {"one/", "two"}  # what doctor says
        for key, what in ((b"one/", "one, another key's file"), (b"two", "two, a directory")):
            sentences = why.why(site, replace(Address.parse_bucket(SOURCE), key=key), None, said).sentences
            assert f"ViewConflict in {DESTINATION}: {what}, is in the way" in sentences
        assert verify(world) == [
            (DESTINATION, "two", "ViewConflict", False), (DESTINATION, "one/", "ViewConflict", False),
        ]  # fmt: skip
        where = "something else is where its {} must be shown"
        assert whys(world) == [where.format("file"), where.format("directory")]
        world.unlink("one", DESTINATION)
        shutil.rmtree(world.path("two", DESTINATION))
        for _ in range(3):
            world.settle()
        assert world.tree(DESTINATION) == {"two": b"ours"}
        assert list(folders(world, DESTINATION)) == ["one"]


class ShortLinks(Fs):
    """Symlinks as on xfs: their targets have 1,023 bytes at most."""

    def symlink(self, target: bytes, at: int, name: bytes) -> None:
        if len(target) > 1023:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        super().symlink(target, at, name)


def test_a_symlink_whose_target_is_too_long_there_is_stored_and_not_shown(tmp_path: Path) -> None:
    """Section 5, ViewConflict: the replica is COMPLETED; the symlink before it stays, and a shorter one replaces it."""
    with World(tmp_path, trees=True, fs=ShortLinks()) as world:
        world.link("old", "here")
        world.settle()
        for key in ("new", "old"):
            world.link(key, "t" * 1024)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert world.links(DESTINATION) == {"old": "here"}
        site, said = world.engine.site, {"running": True, **live.status(world.engine)}
        found = {each["bucket"]: each for each in status.status(site, said)["buckets"]}
        too_long = "the target of the symlink is too long for this filesystem"
        assert [(each["Key"], each["Why"]) for each in found[DESTINATION]["view_conflicts"]] == [
            ("new", too_long), ("old", too_long),
        ]  # fmt: skip
        for address in (SOURCE, DESTINATION):
            sentences = why.why(site, replace(Address.parse_bucket(address), key=b"new"), None, said).sentences
            assert f"ViewConflict in {DESTINATION}: {too_long}" in sentences
        world.link("new", "there")
        world.unlink("old")
        world.settle()
        assert world.links(DESTINATION) == {"new": "there"}
        assert not world.state(DESTINATION).views.stale
        world.restart(without_journal=True)
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        world.stays_quiet()


def test_verify_names_a_difference_after_the_kind_of_object(tmp_path: Path) -> None:
    """A directory whose mode, and a symlink whose target, is not that of its version, although nobody changed it."""
    with World(tmp_path, trees=True) as world:
        world.path("sub").mkdir()
        world.link("way", "here")
        world.settle()
        world.path("sub", DESTINATION).chmod(0o700)
        world.unlink("way", DESTINATION)
        world.link("way", "there", DESTINATION)
        for key in ("sub/", "way"):
            found = world.path(key, DESTINATION).lstat()
            view = view_of(found, world.current(key, DESTINATION).id)
            world.engine.journal.views.see(DESTINATION, key.encode(), view)
        assert sorted(whys(world)) == [
            "the directory has other metadata than its version, and nobody changed it",
            "the symlink leads to another target than that of its version, and nobody replaced it",
        ]


@pytest.mark.parametrize("lasts", [False, True])
def test_the_log_names_a_conflict_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lasts: bool
) -> None:
    """Once; and none where only the marker of what is in the way is still to come, as in a git checkout."""
    monkeypatch.setattr(stale, "_PASSING_S", 0.0 if lasts else 3600.0)
    with World(tmp_path, trees=True) as world:
        world.write("k", b"theirs", DESTINATION)
        world.path("k").mkdir()
        for _ in range(4):
            world.settle()
        named = [line for line in caplog.messages if line.startswith("view conflict")]
        assert named == (
            ['view conflict bucket=west/dst key="k/": k, another key\'s file, is in the way'] if lasts else []
        )


def test_a_directory_that_holds_other_files_waits_to_be_removed(tmp_path: Path) -> None:
    """A marker removes no directory that a user put a file into; it goes when that file does."""
    with World(tmp_path, trees=True) as world:
        world.path("folder").mkdir()
        world.settle()
        world.write("folder/theirs", b"theirs", DESTINATION)
        world.settle()
        world.path("folder").rmdir()
        world.settle()
        assert world.tree(DESTINATION) == {"folder/theirs": b"theirs"}
        world.unlink("folder/theirs", DESTINATION)
        world.settle()
        world.settle()
        assert folders(world, DESTINATION) == {}
        world.stays_quiet()


def test_directories_go_both_ways(tmp_path: Path) -> None:
    """Made, changed and removed on either side; the later change wins."""
    with World(tmp_path, trees=True) as world:
        world.run("replication.enable", source=DESTINATION, destination=SOURCE)
        world.path("here").mkdir()
        world.path("there", DESTINATION).mkdir()
        world.path("both").mkdir(mode=0o700)
        world.path("both", DESTINATION).mkdir(mode=0o755)
        for _ in range(3):
            world.settle()
        assert folders(world, SOURCE) == folders(world, DESTINATION)
        assert list(folders(world, SOURCE)) == ["both", "here", "there"]
        world.path("here", DESTINATION).chmod(0o770)
        world.path("there").rmdir()
        for _ in range(3):
            world.settle()
        assert folders(world, SOURCE) == folders(world, DESTINATION)
        assert folders(world, SOURCE)["here"][0] == 0o770
        assert list(folders(world, SOURCE)) == ["both", "here"]
        world.stays_quiet()
        assert verify(world) == []


def test_no_content_is_shown_in_a_directory_that_its_source_has_narrowed(tmp_path: Path) -> None:
    """A file arrives before the version of its directory that closes it: the replica's is closed first."""
    with World(tmp_path, trees=True) as world:
        world.path("folder").mkdir()
        world.path("folder").chmod(0o755)
        world.settle()
        world.write("folder/secret", b"secret")
        world.capture(SOURCE)
        world.path("folder").chmod(0o700)
        world.flush_settling()
        assert world.engine.run_until_idle()
        assert world.tree(DESTINATION) == {"folder/secret": b"secret"}
        assert folders(world, DESTINATION)["folder"][0] == 0o700
        assert len(world.of("folder/", DESTINATION)) == 1
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert [v.origin for v in world.of("folder/", DESTINATION)] == ["replica"] * 2
        world.stays_quiet()


def test_a_directory_that_is_being_narrowed_is_no_users_after_any_crash(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G5, G7: it is closed before the version that closes it arrives. Cut there, it was captured as a user's directory,
    and outlived the marker that came from its source."""
    real = DeliveryGroup.prepare

    def prepare(self: DeliveryGroup, delivery: Delivery) -> None:
        if delivery.key == b"folder/":
            self.region.try_later([delivery], "it comes later")
        else:
            real(self, delivery)

    for calls, world in worlds(memory, trees=True):
        world.path("folder").mkdir()
        world.path("folder").chmod(0o1777)
        world.settle()
        world.write("folder/secret", b"secret")
        world.path("folder").chmod(0o700)
        world.capture(SOURCE)
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with monkeypatch.context() as patch, contextlib.suppress(PowerCut):
            patch.setattr(DeliveryGroup, "prepare", prepare)
            world.settle()
        world.restart()
        world.settle()
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE), f"cut at {calls}, in {fs.died_in}"
        assert world.ids(DESTINATION) == world.ids(SOURCE), f"cut at {calls}, in {fs.died_in}"
        if not fs.died:
            return


def test_adopt_with_trees_takes_directories(tmp_path: Path) -> None:
    """Each directory of an adopted folder becomes its key's null version, and a backfill sends it."""
    with World(tmp_path, trees=True, buckets=(DESTINATION, "east/other"), replicate=False) as world:
        folder = world.path(bucket="east/other").parent / "src"
        (folder / "empty").mkdir(parents=True)
        (folder / "full").mkdir(mode=0o700)
        (folder / "full/file").write_bytes(b"content")
        world.run("bucket.adopt", bucket=SOURCE, trees=True)
        assert [v[0].id for v in world.history(SOURCE).values()] == ["null"] * 3
        world.settle()
        world.stays_quiet()
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        world.run("replication.backfill", source=SOURCE)
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)


def test_turning_trees_on_and_off_leaves_directories_alone(tmp_path: Path) -> None:
    """On: existing directories become objects, and those that replication made become theirs. Off: nothing changes."""
    with World(tmp_path) as world:
        world.path("empty").mkdir()
        world.write("full/file", b"content")
        world.settle()
        for bucket in (SOURCE, DESTINATION):
            world.run("bucket.trees", bucket=bucket, on=True)
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert list(folders(world, DESTINATION)) == ["empty", "full"]
        for bucket in (SOURCE, DESTINATION):
            world.run("bucket.trees", bucket=bucket, on=False)
        world.path("later").mkdir()
        world.settle()
        world.restart(without_journal=True)
        world.settle()
        assert list(folders(world, DESTINATION)) == ["empty", "full"]
        assert not any(v[-1].marker for v in world.history(SOURCE).values())


def test_a_directory_swapped_for_a_symlink_gains_nothing(tmp_path: Path) -> None:
    """G9: neither rights nor attributes nor removal reach what a symlink in a directory's place points to."""
    with World(tmp_path / "site", trees=True) as world:
        outside = tmp_path / "outside"
        outside.mkdir(mode=0o755)
        before = outside.stat()
        world.path("folder").mkdir()
        world.settle()
        world.path("folder", DESTINATION).rmdir()
        world.path("folder", DESTINATION).symlink_to(outside)
        world.path("folder").chmod(0o700)
        world.settle()
        world.path("folder").rmdir()
        world.settle()
        assert outside.is_dir()
        assert (outside.stat().st_mode, outside.stat().st_ctime_ns) == (before.st_mode, before.st_ctime_ns)


@pytest.mark.slow
def test_power_cut_while_directories_are_made_changed_and_removed(memory: Path) -> None:
    """G4, G7: after a cut at every third change both sides have the same directories, and nothing is doubled."""
    for calls, world in worlds(memory, trees=True):
        world.path("changed").mkdir(mode=0o755)
        world.write("removed/file", b"content")
        world.path("renamed/below").mkdir(parents=True)
        world.settle()
        fs = DyingFs(3 * calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.path("changed").chmod(0o700)
            os.setxattr(world.path("changed"), "user.note", b"value")
            shutil.rmtree(world.path("removed"))
            world.path("renamed").rename(world.path("renamed-now"))
            world.path("made/below").mkdir(parents=True, mode=0o750)
            world.settle()
        world.restart()
        for _ in range(3):
            world.settle()
        assert list(folders(world, SOURCE)) == ["changed", "made", "made/below", "renamed-now", "renamed-now/below"]
        assert folders(world, DESTINATION) == folders(world, SOURCE), f"cut at {3 * calls}, in {fs.died_in}"
        numbers = {key: len(v) for key, v in world.history(DESTINATION).items()}
        assert set(numbers.values()) <= {1, 2}, f"cut at {3 * calls}, in {fs.died_in}"
        assert world.leftovers(DESTINATION) == world.leftovers(SOURCE) == []
        if not fs.died:
            return


def test_a_directory_at_rest_has_the_time_of_its_source(tmp_path: Path) -> None:
    """It makes no version, follows what is put into the directory, and is set again after a restart."""
    with World(tmp_path, trees=True) as world:
        world.write("a/b/file", b"content")
        os.utime(world.path("a/b"), ns=(0, 1_000_000_000))
        os.utime(world.path("a"), ns=(0, 2_000_000_000))
        world.settle()
        world.settle()
        assert world.path("a/b", DESTINATION).stat().st_mtime_ns == 1_000_000_000
        assert world.path("a", DESTINATION).stat().st_mtime_ns == 2_000_000_000
        world.unlink("a/b/file")
        world.settle()
        world.settle()
        times = [world.path("a/b", bucket).stat().st_mtime_ns for bucket in (SOURCE, DESTINATION)]
        assert times[0] == times[1]
        assert [len(world.of(key, DESTINATION)) for key in ("a/", "a/b/")] == [1, 1]
        os.utime(world.path("a"), ns=(0, 3_000_000_000))
        world.restart()
        world.settle()
        world.settle()
        assert world.path("a", DESTINATION).stat().st_mtime_ns == 3_000_000_000
        world.stays_quiet()


def test_a_directory_at_rest_is_looked_at_once(tmp_path: Path) -> None:
    """What its files and its time have changed of it is recorded with its time, and no event of that leads to a further
    look, or to a further visit."""
    with World(tmp_path, trees=True) as world:
        world.write("a/file", b"content")
        world.settle()
        world.flush_settling()
        assert world.engine.run_until_idle()
        found, state = world.path("a", DESTINATION).stat(), world.state(DESTINATION)
        known = world.engine.journal.versions.object(DESTINATION, b"a/")
        assert known is not None
        assert known.view is not None
        assert known.view.is_same(found)
        assert found.st_mtime_ns == world.path("a").stat().st_mtime_ns
        changes = world.region(DESTINATION).changes
        changes.directories.append(DirectoryEvent(DESTINATION, b"a", CHANGED, 0))
        assert world.engine.run_until_idle()
        assert not state.views.resting


def test_a_change_of_a_directory_before_it_is_at_rest_is_its_users(tmp_path: Path) -> None:
    """G1: its mode becomes a version of its own, though files and time have changed the directory as well."""
    with World(tmp_path, trees=True) as world:
        world.write("a/file", b"content")
        world.look()
        assert world.engine.run_until_idle()
        assert world.state(DESTINATION).views.resting
        world.path("a", DESTINATION).chmod(0o700)
        world.flush_settling()
        assert resting.rest_due(world.region(DESTINATION))
        world.settle()
        modes = [version.posix and version.posix.mode & 0o777 for version in world.of("a/", DESTINATION)]
        assert modes == [0o700, 0o755]
        world.stays_quiet()


def two_sides(home: Path) -> World:
    world = World(home, trees=True)
    world.run("replication.enable", source=DESTINATION, destination=SOURCE)
    return world


def test_a_directory_removed_while_the_other_side_saves_into_it(tmp_path: Path) -> None:
    """Both sides come to rest: the file is everywhere, its directory belongs to it from then on, keeps its rights, and
    goes with it. Nothing waits for a directory that will never be empty."""
    with two_sides(tmp_path) as world:
        world.write("d/deep/old", b"old")
        world.path("d").chmod(0o750)
        world.path("d/deep").chmod(0o705)
        world.settle()
        shutil.rmtree(world.path("d"))
        world.write("d/deep/new", b"new", DESTINATION)
        world.settle()
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/deep/new": b"new"}
        assert world.state(SOURCE).views.stale == world.state(DESTINATION).views.stale == {}
        assert world.leftovers(SOURCE) == world.leftovers(DESTINATION) == []
        assert folders(world, SOURCE) == folders(world, DESTINATION)
        assert {name: each[0] for name, each in folders(world, DESTINATION).items()} == {"d": 0o750, "d/deep": 0o705}
        assert verify(world) == []
        world.stays_quiet()
        world.restart(without_journal=True)
        world.settle()
        world.stays_quiet()
        world.path("d/deep").chmod(0o700)
        world.settle()
        assert folders(world, SOURCE) == folders(world, DESTINATION)
        world.unlink("d/deep/new")
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert folders(world, DESTINATION) == {}


@pytest.mark.parametrize("without_journal", [False, True])
def test_a_deleted_directory_remains_while_it_holds_objects(tmp_path: Path, without_journal: bool) -> None:
    """S3: the objects below a deleted folder object stay. Nobody waits for that, it is no conflict, and a change of the
    directory is a new version; it goes when it is empty, and nobody has changed it."""
    with World(tmp_path, trees=True) as world:
        for name in ("folder", "other"):
            world.write(f"{name}/file", b"data")
        world.settle()
        world.remove("folder/")
        world.remove("other/")
        world.settle()
        world.settle()
        if without_journal:
            world.restart(without_journal=True)
            world.settle()
        for bucket in (SOURCE, DESTINATION):
            assert world.tree(bucket) == {"folder/file": b"data", "other/file": b"data"}
            assert not world.state(bucket).views.stale
        assert world.current("folder/").marker
        assert verify(world) == []
        world.write("folder/another", b"data")  # makes no new version of the directory
        world.settle()
        assert world.current("folder/").marker
        world.path("folder").chmod(0o711)
        for _ in range(3):
            world.settle()
        assert [v.marker for v in world.of("folder/", DESTINATION)] == [False, True, False]
        assert [folders(world, bucket)["folder"][0] for bucket in (SOURCE, DESTINATION)] == [0o711] * 2
        for key in ("folder/file", "folder/another", "other/file"):
            world.unlink(key)
        for _ in range(3):
            world.settle()
        assert [*folders(world, SOURCE)] == [*folders(world, DESTINATION)] == ["folder"]
        assert not world.state(SOURCE).views.stale
        assert not world.state(DESTINATION).views.stale
        assert verify(world) == []


def test_a_directory_put_in_the_place_of_one_that_the_other_side_removed(tmp_path: Path) -> None:
    """The marker meets another directory, which nobody has recorded: that becomes a version, and is not waited for."""
    with two_sides(tmp_path) as world:
        world.write("d/old", b"old")
        world.write("other/new", b"new")
        world.settle()
        shutil.rmtree(world.path("d"))
        world.path("d", DESTINATION).rename(world.path("gone", DESTINATION))
        world.path("other", DESTINATION).rename(world.path("d", DESTINATION))
        world.capture(SOURCE)
        assert world.engine.run_until_idle()

        def is_at_rest() -> bool:
            world.settle()
            return not world.state(DESTINATION).views.stale

        until(is_at_rest, "the directory is captured, for which it settles first")
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/new": b"new", "gone/old": b"old"}
        assert world.state(SOURCE).views.stale == world.state(DESTINATION).views.stale == {}
        assert folders(world, SOURCE) == folders(world, DESTINATION)
        assert world.leftovers(SOURCE) == world.leftovers(DESTINATION) == []
        world.stays_quiet()


def test_a_deleted_directory_that_was_emptied_goes_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: the last object in it was captured as deleted, and the power failed before the directory was removed."""
    with World(tmp_path, trees=True) as world:
        world.write("folder/below/file", b"data")
        world.settle()
        world.remove("folder/below/")
        world.remove("folder/")
        world.settle()
        with monkeypatch.context() as patch:
            patch.setattr(obstacles, "remove_made_directories", lambda *_: None)
            world.unlink("folder/below/file")
            world.look()
            world.engine.regions["east"].turn()
        assert world.path("folder/below").exists()
        world.restart()
        world.settle()
        world.settle()
        assert folders(world, SOURCE) == folders(world, DESTINATION) == {}
        world.stays_quiet()


def test_a_made_directory_that_becomes_an_object_is_no_users_after_any_crash(memory: Path) -> None:
    """G5, G7: replication made a directory for a file below it, as narrow as it can be while nothing is known of its
    source; then its own version is shown. A start that is cut there at any change leaves half of that to the next."""
    for calls, world in worlds(memory, trees=True):
        world.path("d").mkdir(mode=0o751)
        world.write("d/f", b"data")
        os.setxattr(world.path("d"), "user.note", b"value")
        world.settle()
        version = world.current("d/", DESTINATION)
        with world.engine.site.bucket(DESTINATION).open() as bucket:
            world.path("d", DESTINATION).chmod(0o700)
            os.removexattr(world.path("d", DESTINATION), "user.note")
            directories.adopt(bucket, b"d")
            write_intents(bucket, [Intent(b"d/", version.id, None)])
        fs = DyingFs(calls)
        with contextlib.suppress(PowerCut):
            world.restart(fs=fs, without_journal=True)
            world.settle()
        world.restart(without_journal=True)
        world.settle()
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE), f"cut at {calls}, in {fs.died_in}"
        assert world.ids(DESTINATION) == world.ids(SOURCE), f"cut at {calls}, in {fs.died_in}"
        if not fs.died:
            return


@pytest.mark.parametrize("is_away", [False, True])
def test_a_directory_that_recovery_makes_for_a_replica_is_no_users(memory: Path, is_away: bool) -> None:
    """G5, G7: a crash came before the first view of a delivery was shown. The file is shown first, and its directory is
    made for it; then comes the directory's own version."""
    with World(memory / "w", trees=True) as world:
        world.write("d/f", b"data")
        world.path("d").chmod(0o751)
        world.settle()
        ids = [world.current(key, DESTINATION).id for key in ("d/f", "d/")]
        shutil.rmtree(world.path("d", DESTINATION))
        store = world.path(".fsrepl/versions/d", DESTINATION)
        os.removexattr(store, "user.fsrepl.replicated")
        with world.engine.site.bucket(DESTINATION).open() as bucket:
            for key, version_id in zip((b"d/f", b"d/"), ids, strict=True):
                write_intents(bucket, [Intent(key, version_id, None)])
        if is_away:
            world.away("east")
        world.restart(without_journal=True)
        world.settle()
        if is_away:
            world.back("east")
        world.settle()
        assert folders(world, DESTINATION) == folders(world, SOURCE)
        assert world.ids(DESTINATION) == world.ids(SOURCE)
        assert world.tree(DESTINATION) == {"d/f": b"data"}
