"""Symlinks of tree buckets: captured, replicated, shown, marked and repaired like any object, and never followed."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from fsrepl.model.version import Kind, Status
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, worlds

TARGETS = {
    "beside": "file",
    "below/up": "../file",
    "dangling": "nothing/here",
    "absolute": "/etc/hostname",
    "outside": "../../../../etc",
    "itself": "itself",
    "long": "x/" * 2000 + "x",
}


def test_a_symlink_is_an_object_whose_content_is_its_target(tmp_path: Path) -> None:
    """A replica has the same symlinks, whatever they point to; the record has S_IFLNK, the store the target."""
    with World(tmp_path, trees=True) as world:
        world.write("file", b"content")
        for name, target in TARGETS.items():
            world.link(name, target)
        os.symlink(b"\xff\xfe", os.fsencode(world.path("not-utf-8")))
        world.settle()
        assert world.links(DESTINATION) == world.links(SOURCE) == {**TARGETS, "not-utf-8": os.fsdecode(b"\xff\xfe")}
        for name, target in TARGETS.items():
            for bucket in (SOURCE, DESTINATION):
                version = world.current(name, bucket)
                assert version.kind is Kind.LINK
                assert version.posix is not None
                assert stat.S_ISLNK(version.posix.mode)
                assert version.size == len(target)
            assert world.current(name).status is Status.COMPLETED
        a, b = (os.lstat(world.path("absolute", bucket)) for bucket in (SOURCE, DESTINATION))
        assert (a.st_mtime_ns, a.st_uid, a.st_mode) == (b.st_mtime_ns, b.st_uid, b.st_mode)
        assert verify(world) == []
        world.stays_quiet()
        assert [len(v) for v in world.history(SOURCE).values()] == [1] * (len(TARGETS) + 3)  # with the folder
        world.restart(without_journal=True)
        world.settle()
        world.stays_quiet()
        assert world.ids(SOURCE) == world.ids(DESTINATION)


def test_a_symlink_is_no_object_elsewhere(tmp_path: Path) -> None:
    """In a bucket that is no tree bucket symlinks are counted as skipped, as ever."""
    with World(tmp_path) as world:
        world.link("link", "target")
        world.settle()
        assert world.history(SOURCE) == {}
        assert world.state().trouble.skipped_number == 1


def test_a_changed_symlink_is_a_new_version_and_a_removed_one_a_marker(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        world.link("link", "one")
        world.settle()
        world.link("link", "two")
        world.settle()
        assert world.links(DESTINATION) == {"link": "two"}
        assert len(world.of("link")) == 2
        world.run("object.restore", bucket=SOURCE, key=b"link", version_id=world.of("link")[1].id)
        assert world.links(SOURCE) == {"link": "one"}
        world.settle()
        assert world.links(DESTINATION) == {"link": "one"}
        world.unlink("link")
        world.settle()
        assert world.links(DESTINATION) == {}
        assert world.current("link", DESTINATION).marker
        world.stays_quiet()
        assert world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("link_first", [False, True])
def test_a_file_and_a_symlink_of_the_same_content_are_two_objects(tmp_path: Path, link_first: bool) -> None:
    """A symlink that replaces a file whose content is its target is a new version, and so is the reverse."""
    with World(tmp_path, trees=True) as world:
        acts = [lambda: world.drop("key", b"target"), lambda: world.link("key", "target")]
        for act in acts[::-1] if link_first else acts:
            act()
            world.settle()
            assert world.links(DESTINATION) == world.links(SOURCE)
            assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert [v.kind for v in world.of("key", DESTINATION)][::-1] == (
            [Kind.LINK, Kind.FILE] if link_first else [Kind.FILE, Kind.LINK]
        )
        world.stays_quiet()
        assert verify(world) == []


def test_owner_and_time_of_a_symlink_are_edits(tmp_path: Path) -> None:
    """`touch -h` and `chown -h` change the replica, and make no version; what the symlink points to stays."""
    with World(tmp_path, trees=True) as world:
        world.write("file", b"content")
        world.link("link", "file")
        world.settle()
        before = os.stat(world.path("file", DESTINATION))
        os.utime(world.path("link"), ns=(5_000_000_000, 5_000_000_000), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(world.path("link"), 1234, 1234, follow_symlinks=False)
        world.settle()
        found = os.lstat(world.path("link", DESTINATION))
        assert found.st_mtime_ns == 5_000_000_000
        assert found.st_uid == os.lstat(world.path("link")).st_uid
        assert os.stat(world.path("file", DESTINATION)) == before
        assert len(world.of("link")) == 1
        world.stays_quiet()
        assert verify(world) == []


def test_tags_of_a_symlink_are_on_record(tmp_path: Path) -> None:
    """A symlink takes no attributes: its tags are in the store, on both sides."""
    with World(tmp_path, trees=True) as world:
        world.link("link", "file")
        world.settle()
        world.run("tag.set", bucket=SOURCE, key=b"link", tags={"class": "blue"})
        world.settle()
        assert world.current("link", DESTINATION).tags == {"class": "blue"}
        world.stays_quiet()
        assert verify(world) == []


def test_nothing_is_written_through_a_symlink_of_a_tree_bucket(tmp_path: Path) -> None:
    """G9: an object below a path that leads through a symlink is a conflict, on whichever side the symlink is made."""
    with World(tmp_path / "site", trees=True) as world:
        outside = tmp_path / "outside"
        outside.mkdir()
        world.path("folder", DESTINATION).symlink_to(outside)
        world.settle()
        world.write("folder/file", b"content")
        world.settle()
        assert list(outside.iterdir()) == []
        assert world.current("folder/file").status is Status.COMPLETED
        assert world.state(DESTINATION).views.stale[b"folder/file"].conflict
        world.path("folder", DESTINATION).unlink()
        world.settle()
        world.settle()
        assert world.tree(DESTINATION) == {"folder/file": b"content"}
        assert list(outside.iterdir()) == []


def test_a_symlink_waits_in_the_store_of_a_bucket_that_is_no_tree_bucket(tmp_path: Path) -> None:
    """COMPLETED, not shown, and named as a conflict, until `bucket trees on` lets it be shown."""
    with World(tmp_path) as world:
        assert world.run("bucket.trees", bucket=SOURCE, on=True)["NotTrees"] == [DESTINATION]
        world.link("link", "target")
        world.settle()
        assert world.current("link").status is Status.COMPLETED
        assert world.links(DESTINATION) == {}
        assert "no tree bucket" in world.state(DESTINATION).views.stale[b"link"].why
        world.run("bucket.trees", bucket=DESTINATION, on=True)
        world.settle()
        assert world.links(DESTINATION) == {"link": "target"}
        world.stays_quiet()


def test_turning_trees_off_at_a_destination_leaves_nothing_pending(tmp_path: Path) -> None:
    """What it shows stays; newer versions and markers are COMPLETED in its store, until `trees on` shows them."""
    with World(tmp_path, trees=True) as world:
        for name in ("gone", "other"):
            world.link(name, "target")
        world.path("dir").mkdir()
        world.path("narrow").mkdir()
        world.settle()
        world.run("bucket.trees", bucket=DESTINATION, on=False)
        world.unlink("gone")
        world.unlink("other")
        world.link("other", "elsewhere")
        world.path("dir").rmdir()
        world.path("narrow").chmod(0o700)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert world.links(DESTINATION) == {"gone": "target", "other": "target"}
        world.run("bucket.trees", bucket=DESTINATION, on=True)
        world.settle()
        assert world.links(DESTINATION) == {"other": "elsewhere"}
        assert [p.name for p in world.path("", DESTINATION).iterdir() if p.is_dir() and p.name != ".fsrepl"] == [
            "narrow"
        ]
        assert world.path("narrow", DESTINATION).stat().st_mode & 0o777 == 0o700
        world.stays_quiet()


def test_turning_trees_off_deletes_nothing(tmp_path: Path) -> None:
    """What is recorded stays; a symlink made meanwhile becomes an object when they are on again."""
    with World(tmp_path, trees=True) as world:
        world.link("link", "target")
        world.settle()
        world.run("bucket.trees", bucket=SOURCE, on=False)
        world.link("later", "target")
        world.settle()
        world.restart()
        world.settle()
        assert not world.current("link").marker
        assert world.links(DESTINATION) == {"link": "target"}
        world.run("bucket.trees", bucket=SOURCE, on=True)
        world.settle()
        assert world.links(DESTINATION) == {"link": "target", "later": "target"}


def test_adopt_with_trees_takes_symlinks(tmp_path: Path) -> None:
    """Each symlink of an adopted folder becomes its key's null version, and a backfill sends it."""
    with World(tmp_path, trees=True, buckets=(DESTINATION, "east/other"), replicate=False) as world:
        folder = world.path(bucket="east/other").parent / "src"
        folder.mkdir()
        (folder / "link").symlink_to("target")
        answer = world.run("bucket.adopt", bucket=SOURCE, trees=True)
        assert (answer["Adopted"], answer["Directories"], answer["Symlinks"]) == (1, 0, 1)
        assert world.current("link").id == "null"
        world.settle()
        world.stays_quiet()
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        world.run("replication.backfill", source=SOURCE)
        world.settle()
        assert world.links(DESTINATION) == {"link": "target"}


def test_symlinks_go_both_ways(tmp_path: Path) -> None:
    """Two buckets that replicate to each other have the same symlinks, and the newer target wins."""
    with World(tmp_path, trees=True) as world:
        world.run("replication.enable", source=DESTINATION, destination=SOURCE)
        world.link("here", "one")
        world.link("there", "two", DESTINATION)
        world.settle()
        world.link("here", "three", DESTINATION)
        world.unlink("there")
        world.settle()
        world.settle()
        assert world.links(SOURCE) == world.links(DESTINATION) == {"here": "three"}
        world.stays_quiet()


def test_lost_records_of_symlinks_are_rebuilt(tmp_path: Path) -> None:
    """A copy of the tree without its attributes: the symlink itself says that it is one."""
    with World(tmp_path, trees=True, replicate=False, buckets=(SOURCE,)) as world:
        world.link("link", "target")
        world.settle()
        stored = next(world.path(".fsrepl/versions").glob("link;*"))
        for name in os.listxattr(stored):
            os.removexattr(stored, name)
        world.restart(without_journal=True)
        world.settle()
        assert [v.kind for v in world.of("link")] == [Kind.LINK]
        assert world.links(SOURCE) == {"link": "target"}


def test_verify_finds_a_lost_symlink(tmp_path: Path) -> None:
    """A view that was replaced while nobody looked is a change, and is captured; a damaged store is repaired."""
    with World(tmp_path, trees=True) as world:
        world.link("link", "target")
        world.settle()
        stored = next(world.path(".fsrepl/versions", DESTINATION).glob("link;*"))
        stored.write_bytes(b"tarpit")
        assert [(b, k, p) for b, k, p, _ in verify(world)] == [(DESTINATION, "link", "DigestMismatch")]
        assert verify(world, repair=True)[0][3]
        assert verify(world) == []
        assert world.links(DESTINATION) == {"link": "target"}


@pytest.mark.slow
def test_power_cut_while_symlinks_are_made_changed_and_removed(memory: Path) -> None:
    """G4, G7: after a cut at any change both sides have the same symlinks, and nothing is doubled."""
    for calls, world in worlds(memory, trees=True):
        world.link("changed", "one")
        world.link("removed", "one")
        world.drop("file", b"target")
        world.settle()
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.link("changed", "two")
            world.link("file", "target")
            world.link("made", "/absolute")
            world.unlink("removed")
            world.settle()
        world.restart()
        world.settle()
        world.settle()
        assert world.links(SOURCE) == {"changed": "two", "file": "target", "made": "/absolute"}
        assert world.links(DESTINATION) == world.links(SOURCE), f"cut at {calls}, in {fs.died_in}"
        assert [len(world.of(k, DESTINATION)) for k in ("changed", "removed", "file", "made")] == [2, 2, 2, 1]
        assert world.leftovers(DESTINATION) == world.leftovers(SOURCE) == []
        if not fs.died:
            return
