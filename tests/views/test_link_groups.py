"""Hard links in tree buckets: names of one file are names of one file in the replica."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.capture import copy
from fsrepl.model.metadata import of_one_file
from fsrepl.model.version import Posix, Status, Version
from fsrepl.model.view import view_of
from fsrepl.region.change_queue import ARRIVED
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, v1, worlds


def groups(world: World, bucket: str) -> list[list[str]]:
    """The keys of each file that has several."""
    top = world.path(bucket=bucket)
    found: dict[int, list[str]] = {}
    for name in world.tree(bucket):
        found.setdefault((top / name).stat().st_ino, []).append(name)
    return sorted(names for names in found.values() if len(names) > 1)


@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_names_of_one_file_are_so_in_the_replica(tmp_path: Path, sharing: str) -> None:
    """Linked before the first is captured, and after; each name is an object with its own version."""
    with World(tmp_path, trees=True) as world:
        if sharing != "auto":
            world.set_sharing(west=sharing)
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        world.path("below").mkdir()
        os.link(world.path("a"), world.path("below/c"))
        world.settle()
        assert groups(world, DESTINATION) == groups(world, SOURCE) == [["a", "b", "below/c"]]
        assert [len(world.of(key, DESTINATION)) for key in ("a", "b", "below/c")] == [1, 1, 1]
        assert world.statuses(SOURCE) == {Status.COMPLETED}
        assert verify(world) == []
        world.stays_quiet()
        world.restart(without_journal=True)
        world.settle()
        world.stays_quiet()
        assert [len(world.of(key)) for key in ("a", "b", "below/c")] == [1, 1, 1]
        assert [len(world.of(key, DESTINATION)) for key in ("a", "b", "below/c")] == [1, 1, 1]


def test_hard_links_are_separate_objects_elsewhere(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        assert groups(world, DESTINATION) == []
        assert {v[0].link for v in world.history(SOURCE).values()} == {None}


def test_a_write_and_an_edit_through_one_name_are_seen_at_all(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        with world.path("b").open("ab") as file:
            file.write(b", and more")
        world.settle()
        assert world.tree(DESTINATION) == {"a": b"content, and more", "b": b"content, and more"}
        assert groups(world, DESTINATION) == [["a", "b"]]
        world.path("a").chmod(0o600)
        os.setxattr(world.path("a"), "user.note", b"value")
        world.settle()
        assert world.look_of("b", DESTINATION) == world.look_of("b")
        assert world.look_of("a", DESTINATION) == world.look_of("a")
        assert groups(world, DESTINATION) == [["a", "b"]]
        assert [len(world.of(key, DESTINATION)) for key in ("a", "b")] == [2, 2]
        assert verify(world) == []
        world.stays_quiet()


def test_a_removed_name_leaves_the_others(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        world.write("a", b"content")
        for name in ("b", "c"):
            os.link(world.path("a"), world.path(name))
        world.settle()
        world.unlink("a")
        world.settle()
        assert groups(world, DESTINATION) == [["b", "c"]]
        os.link(world.path("c"), world.path("d"))
        world.settle()
        assert groups(world, DESTINATION) == [["b", "c", "d"]]
        assert [len(world.of(key, DESTINATION)) for key in ("a", "b", "c", "d")] == [2, 1, 1, 1]
        world.stays_quiet()


def test_a_directory_has_the_time_of_its_source_also_after_a_view_in_it_was_linked(tmp_path: Path) -> None:
    """Linked to a file in another directory, as by `cp -al`, the first name's view is replaced: a stored file before,
    it is not one any more."""
    with World(tmp_path, trees=True) as world:
        world.write("d/a", b"content")
        world.path("e").mkdir()
        os.utime(world.path("d"), ns=(0, 1_000_000_000))
        world.settle()
        world.settle()
        assert not world.state(DESTINATION).views.resting
        os.link(world.path("d/a"), world.path("e/a"))
        world.capture(SOURCE)
        assert world.engine.run_until_idle()  # no scan of the replica
        world.flush_settling()
        assert world.engine.run_until_idle()
        assert groups(world, DESTINATION) == [["d/a", "e/a"]]
        assert world.path("d", DESTINATION).stat().st_mtime_ns == 1_000_000_000
        assert not world.state(DESTINATION).views.resting


def test_a_file_of_the_same_content_joins_and_leaves_a_group(tmp_path: Path) -> None:
    """`ln -f`, and a copy that replaces a name: a new version, though the content is the same."""
    with World(tmp_path, trees=True) as world:
        world.write("a", b"content")
        world.write("b", b"content")
        world.settle()
        assert groups(world, DESTINATION) == []
        world.unlink("b")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        assert groups(world, DESTINATION) == [["a", "b"]]
        world.drop("b", b"content")
        world.settle()
        assert groups(world, DESTINATION) == []
        world.path("b").chmod(0o600)
        world.settle()
        assert world.look_of("a", DESTINATION) == world.look_of("a")
        world.stays_quiet()


def test_a_replica_whose_first_name_is_not_replicated_is_a_separate_file(tmp_path: Path) -> None:
    """A rule that chooses only one of the names: its replica is whole all the same."""
    with World(tmp_path, trees=True, replicate=False) as world:
        world.run("replication.enable", source=SOURCE, destination=DESTINATION, prefixes=["wanted/"])
        world.write("a", b"content")
        world.path("wanted").mkdir()
        os.link(world.path("a"), world.path("wanted/b"))
        world.settle()
        assert world.tree(DESTINATION) == {"wanted/b": b"content"}
        assert world.statuses(SOURCE) == {Status.COMPLETED, None}


def test_adopted_hard_links_are_kept(tmp_path: Path) -> None:
    with World(tmp_path, trees=True, buckets=(DESTINATION, "east/other"), replicate=False) as world:
        folder = world.path(bucket="east/other").parent / "src"
        folder.mkdir()
        (folder / "a").write_bytes(b"content")
        os.link(folder / "a", folder / "b")
        world.run("bucket.adopt", bucket=SOURCE, trees=True)
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        world.run("replication.backfill", source=SOURCE)
        world.settle()
        world.settle()  # delivered one by one, as on a busy machine, they are linked after the next scan
        assert groups(world, DESTINATION) == [["a", "b"]]
        world.stays_quiet()


@pytest.mark.slow
def test_power_cut_while_hard_links_are_made_and_written(memory: Path) -> None:
    """G4, G7: after a cut at every third change the content is whole, and nothing is doubled."""
    for calls, world in worlds(memory, trees=True):
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        fs = DyingFs(3 * calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            os.link(world.path("a"), world.path("c"))
            world.settle()
            world.path("a").write_bytes(b"other content")
            world.settle()
        world.path("a").write_bytes(b"other content")
        if not world.path("c").exists():
            os.link(world.path("a"), world.path("c"))
        world.restart()
        for _ in range(3):
            world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE), f"cut at {3 * calls}, in {fs.died_in}"
        assert groups(world, DESTINATION) == [["a", "b", "c"]], f"cut at {3 * calls}, in {fs.died_in}"
        assert world.leftovers(DESTINATION) == world.leftovers(SOURCE) == []
        if not fs.died:
            return


def test_an_edit_that_arrived_at_one_name_is_not_undone_by_another_name(tmp_path: Path) -> None:
    """The metadata of a file is that of the latest edit, through whichever name it was made."""
    first = Version(b"a", "1", 100, posix=Posix(0o600, 7, 7, 1), edited={"posix": "300 east/src"})
    second = Version(b"b", "2", 200, posix=Posix(0o644, 7, 7, 1), attrs={"user.note": b"x"})
    assert of_one_file(second, first, "east/src").posix == first.posix
    assert of_one_file(second, first, "east/src").attrs == second.attrs
    assert of_one_file(replace(second, created_ns=400), first, "east/src").posix == second.posix
    assert of_one_file(replace(second, edited={"posix": "301 east/src"}), first, "east/src").posix == second.posix


@pytest.mark.slow
def test_power_cut_while_a_version_of_the_same_content_is_shown(memory: Path) -> None:
    """G7: after a cut the former file, of the same content and other metadata, is not taken for a user's edit."""
    for calls, world in worlds(memory, trees=True):
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        fs = DyingFs(calls)
        world.restart(fs=fs)
        world.drop("b", b"content")
        world.path("b").chmod(0o600)
        os.setxattr(world.path("b"), "user.note", b"value")
        with contextlib.suppress(PowerCut):
            world.settle()
        world.restart()
        for _ in range(3):
            world.settle()
        assert world.look_of("b", DESTINATION) == world.look_of("b"), f"cut at {calls}, in {fs.died_in}"
        assert world.look_of("a", DESTINATION) == world.look_of("a"), f"cut at {calls}, in {fs.died_in}"
        edits = "".join(stamp for v in world.of("b", DESTINATION) for stamp in v.edited.values())
        assert DESTINATION not in edits, f"cut at {calls}, in {fs.died_in}"
        if not fs.died:
            return


@pytest.mark.parametrize("late", ["a", "b", "c"])
def test_a_name_that_is_shown_late_is_linked_then(tmp_path: Path, late: str) -> None:
    """Another thing was in its place when the other names were shown. Also the first one, which is linked to none."""
    with World(tmp_path, trees=True) as world:
        world.path(late, DESTINATION).mkdir()
        world.write("a", b"content")
        for key in ("b", "c"):
            world.capture(SOURCE)
            os.link(world.path("a"), world.path(key))
        world.settle()
        assert groups(world, DESTINATION) == [sorted({"a", "b", "c"} - {late})]
        world.path(late, DESTINATION).rmdir()
        world.flush_settling()  # without a scan, which finds all that is not linked
        world.engine.run_until_idle()
        assert groups(world, DESTINATION) == [["a", "b", "c"]]
        assert world.leftovers(DESTINATION) == []
        world.settle()
        world.stays_quiet()


def test_a_first_name_that_is_delivered_after_the_others_is_linked_then(tmp_path: Path) -> None:
    """No rule chose it, until the rule was replaced and a backfill sent what was there."""
    with World(tmp_path, trees=True) as world:
        world.configure(v1("wanted/"))
        world.write("a", b"content")
        world.capture(SOURCE)
        world.path("wanted").mkdir()
        for key in ("wanted/b", "wanted/c"):
            os.link(world.path("a"), world.path(key))
            world.capture(SOURCE)
        world.settle()
        assert groups(world, DESTINATION) == [["wanted/b", "wanted/c"]]
        world.configure(v1())
        world.run("replication.backfill", source=SOURCE)
        world.flush_settling()  # without a scan, which finds all that is not linked
        world.engine.run_until_idle()
        assert groups(world, DESTINATION) == [["a", "wanted/b", "wanted/c"]]
        world.settle()
        world.stays_quiet()


def test_directories_of_equal_files_that_change_places_make_no_version(tmp_path: Path) -> None:
    """G6: each key has another file with the same content. None of them was one with another, so nothing is new."""
    with World(tmp_path, trees=True) as world:
        for directory in ("a", "b"):
            world.write(f"{directory}/f", b"the same")
        world.settle()
        world.path("a").rename(world.path("c"))
        world.path("b").rename(world.path("a"))
        world.path("c").rename(world.path("b"))
        world.settle()
        world.settle()
        assert [len(world.of(key)) for key in ("a/f", "b/f")] == [1, 1]
        world.stays_quiet()


@pytest.mark.parametrize("edited", [False, True])
def test_a_new_name_has_no_other_name_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: bool) -> None:
    """`cp -al` once more of a tree with many copies; an edit that came with it is seen at every name all the same."""
    with World(tmp_path, trees=True) as world:
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        taken = []
        take = copy.take_copy
        monkeypatch.setattr(copy, "take_copy", lambda *args, **more: taken.append(args[2]) or take(*args, **more))
        os.link(world.path("a"), world.path("c"))
        if edited:
            os.setxattr(world.path("c"), "user.note", b"value")
        world.region().changes.add(SOURCE, [b"c"], world.engine.epoch, ARRIVED)
        world.engine.run_until_idle()
        assert sorted(taken) == ([b"a", b"b", b"c"] if edited else [b"c"])
        assert all(world.look_of(key, DESTINATION) == world.look_of("c") for key in ("a", "b", "c"))
        assert groups(world, DESTINATION) == [["a", "b", "c"]]
        taken.clear()
        world.settle()
        assert taken == []
        world.stays_quiet()


# -- symlinks, of which `cp -al` makes hard links too


def linked(world: World, bucket: str) -> list[list[str]]:
    """The keys of each symlink that has several."""
    found: dict[int, list[str]] = {}
    for name in world.links(bucket):
        found.setdefault(world.path(name, bucket).lstat().st_ino, []).append(name)
    return sorted(names for names in found.values() if len(names) > 1)


def make_link(world: World, *keys: str, target: str = "target") -> None:
    """A symlink with several names, each captured before the next is made."""
    world.link(keys[0], target)
    world.capture(SOURCE)
    for key in keys[1:]:
        world.path(key).parent.mkdir(parents=True, exist_ok=True)
        os.link(world.path(keys[0]), world.path(key), follow_symlinks=False)
        world.capture(SOURCE)


def test_names_of_one_symlink_are_so_in_the_replica(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        make_link(world, "a", "b", "below/c")
        world.link("other", "target")
        world.settle()
        assert linked(world, DESTINATION) == linked(world, SOURCE) == [["a", "b", "below/c"]]
        assert verify(world) == []
        world.path("a").unlink()
        world.settle()
        assert linked(world, DESTINATION) == [["b", "below/c"]]
        world.stays_quiet()
        world.restart(without_journal=True)
        world.settle()
        world.stays_quiet()
        assert [len(world.of(key, DESTINATION)) for key in ("a", "b", "below/c")] == [2, 1, 1]


def test_owner_and_time_of_a_symlink_are_changed_at_all_its_names(tmp_path: Path) -> None:
    """And they stay names of one: the replica's symlink is changed, and not replaced."""
    with World(tmp_path, trees=True) as world:
        make_link(world, "a", "b", "c")
        world.settle()
        os.utime(world.path("b"), ns=(0, 7_000_000_000), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(world.path("c"), 1001, 1002, follow_symlinks=False)
        world.settle()
        for key in ("a", "b", "c"):
            there, here = world.path(key, DESTINATION).lstat(), world.path(key).lstat()
            assert (there.st_uid, there.st_gid, there.st_mtime_ns) == (here.st_uid, here.st_gid, 7_000_000_000)
        assert linked(world, DESTINATION) == [["a", "b", "c"]]
        assert [len(world.of(key, DESTINATION)) for key in ("a", "b", "c")] == [1, 1, 1]
        assert verify(world) == []
        world.stays_quiet()


def test_a_symlink_of_the_same_target_joins_and_leaves_a_group(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        make_link(world, "a", "b")
        world.link("c", "target")
        world.settle()
        world.link("b", "target")
        world.settle()
        assert linked(world, DESTINATION) == []
        world.path("c").unlink()
        os.link(world.path("a"), world.path("c"), follow_symlinks=False)
        world.settle()
        assert linked(world, DESTINATION) == linked(world, SOURCE) == [["a", "c"]]
        world.stays_quiet()


def test_a_file_and_a_symlink_of_one_content_are_never_one(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        make_link(world, "a", "b")
        world.path("b").unlink()
        world.write("b", b"target")
        world.settle()
        assert world.links(DESTINATION) == {"a": "target"}
        assert world.tree(DESTINATION) == {"b": b"target"}
        assert linked(world, DESTINATION) == groups(world, DESTINATION) == []
        world.stays_quiet()


def test_adopted_symlinks_with_several_names_are_kept(tmp_path: Path) -> None:
    with World(tmp_path, trees=True, buckets=(DESTINATION, "east/other"), replicate=False) as world:
        folder = world.path(bucket="east/other").parent / "src"
        folder.mkdir()
        (folder / "a").symlink_to("target")
        os.link(folder / "a", folder / "b", follow_symlinks=False)
        world.run("bucket.adopt", bucket=SOURCE, trees=True)
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        world.run("replication.backfill", source=SOURCE)
        world.settle()
        assert linked(world, DESTINATION) == [["a", "b"]]
        world.stays_quiet()


def test_a_restored_name_of_a_symlink_is_a_name_of_it_again(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        make_link(world, "a", "b")
        world.run("tag.set", bucket=SOURCE, key=b"a", tags={"class": "blue"})
        world.path("a").unlink()
        os.utime(world.path("b"), ns=(0, 7_000_000_000), follow_symlinks=False)
        world.settle()
        world.run("object.restore", bucket=SOURCE, key=b"a")
        world.settle()
        assert linked(world, DESTINATION) == linked(world, SOURCE) == [["a", "b"]]
        assert world.path("b").lstat().st_mtime_ns == 7_000_000_000
        assert (dict(world.current("a").tags), dict(world.current("b").tags)) == ({"class": "blue"}, {})
        world.stays_quiet()


def test_verify_links_names_of_a_symlink_that_are_several(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        make_link(world, "a", "b")
        world.settle()
        names = (world.path("aside", DESTINATION), world.path("b", DESTINATION))
        names[0].symlink_to("target")
        os.utime(names[0], ns=(0, names[1].lstat().st_mtime_ns), follow_symlinks=False)
        names[0].rename(names[1])
        world.engine.journal.views.see(
            DESTINATION, b"b", view_of(names[1].lstat(), world.current("b", DESTINATION).id, racy=True)
        )
        assert [(key, problem) for _, key, problem, _ in verify(world)] == [("b", "ViewDiffers")]
        verify(world, repair=True)
        world.engine.run_until_idle()
        assert linked(world, DESTINATION) == [["a", "b"]]
