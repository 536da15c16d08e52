"""Names of one file in a tree bucket that were deleted, and come back: as names of one file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.commands import undelete as commands
from fsrepl.commands.file_names import FileNames
from fsrepl.storage.journal.views import Views
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, worlds

LONG_AGO = "2000-01-01T00:00:00Z"


def groups(world: World, bucket: str = SOURCE) -> list[list[str]]:
    """The keys of each file that has several."""
    found: dict[int, list[str]] = {}
    for name in world.tree(bucket):
        found.setdefault(world.path(name, bucket).stat().st_ino, []).append(name)
    return sorted(names for names in found.values() if len(names) > 1)


def make(world: World, *keys: str) -> None:
    """One file with several names, each captured before the next is made."""
    world.write(keys[0], b"content")
    world.settle()
    for key in keys[1:]:
        world.path(key).parent.mkdir(parents=True, exist_ok=True)
        os.link(world.path(keys[0]), world.path(key))
        world.settle()


def delete(world: World, *keys: str) -> None:
    for key in keys:
        world.unlink(key)
    world.settle()


def restore(world: World, key: str, version: str | None = None) -> None:
    assert world.run("object.restore", bucket=SOURCE, key=key.encode(), version_id=version)["Changed"]
    world.settle()


def undelete(world: World) -> int:
    after, restored = b"", 0
    while True:
        answer = world.run("bucket.undelete", address=f"{SOURCE}/", since=LONG_AGO, after=after)
        assert answer["Left"] == []
        restored += int(str(answer["Restored"]))
        if answer["After"] is None:
            return restored
        after = os.fsencode(str(answer["After"]))


def is_well(world: World) -> None:
    """Check that both sides have the same groups, that no name differs from its record, and that nothing is left."""
    world.settle()
    assert groups(world, DESTINATION) == groups(world)
    assert verify(world) == []
    assert world.leftovers(SOURCE) == world.leftovers(DESTINATION) == []
    world.stays_quiet()


@pytest.mark.parametrize("key", ["a", "b", "c/d"])
def test_a_restored_name_is_a_name_of_its_file_again(tmp_path: Path, key: str) -> None:
    """The first one, of which the others are recorded as names, like any other one."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b", "c/d")
        delete(world, key)
        assert groups(world) == [sorted({"a", "b", "c/d"} - {key})]
        restore(world, key)
        assert groups(world) == [["a", "b", "c/d"]]
        assert [len(world.of(each)) for each in ("a", "b", "c/d")] == [
            3 if each == key else 1 for each in ("a", "b", "c/d")
        ]
        is_well(world)


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_name_whose_marker_is_removed_is_a_name_of_its_file_again(tmp_path: Path, key: str) -> None:
    """S3's way to undelete, which is not replicated; with the metadata that the file has by now."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b", "c")
        delete(world, key)
        world.path("c").chmod(0o600)
        world.settle()
        world.remove(key, version=world.current(key).id)
        assert groups(world) == [["a", "b", "c"]]
        assert {world.path(name).stat().st_mode & 0o777 for name in "abc"} == {0o600}
        world.settle()
        assert {posix.mode for name in "abc" if (posix := world.current(name).posix)} == {0o600}
        assert world.leftovers(SOURCE) == []
        world.stays_quiet()


@pytest.mark.parametrize("order", ["abc", "cba"])
def test_names_that_come_back_one_by_one_are_one_file(tmp_path: Path, order: str) -> None:
    """None of them is there any more when the first is restored; also after a restart without the journal."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b", "c", "other")
        delete(world, "a", "b", "c", "other")
        restore(world, order[0])
        assert groups(world) == []
        world.restart(without_journal=True)
        world.settle()
        for key in order[1:]:
            restore(world, key)
        assert groups(world) == [["a", "b", "c"]]
        is_well(world)


def test_a_version_of_other_content_is_a_file_of_its_own(tmp_path: Path) -> None:
    """The others keep theirs, and are joined when their version of that content is restored too."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b", "c")
        former = {key: world.current(key).id for key in "abc"}
        world.path("a").write_bytes(b"other content")
        world.settle()
        restore(world, "b", former["b"])
        assert groups(world) == [["a", "c"]]
        assert world.tree(SOURCE) == {"a": b"other content", "b": b"content", "c": b"other content"}
        restore(world, "a", former["a"])
        assert groups(world) == [["a", "b"]]
        assert world.tree(SOURCE) == {"a": b"content", "b": b"content", "c": b"other content"}
        is_well(world)


def test_a_copy_in_the_place_of_another_name_is_not_joined(tmp_path: Path) -> None:
    """Equal content does not make one file of two; a write into one of them would change the other."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b", "c")
        world.drop("b", b"content")
        world.settle()
        world.write("unrelated", b"content")
        delete(world, "a", "c")
        restore(world, "a")
        assert groups(world) == []
        restore(world, "c")
        assert groups(world) == [["a", "c"]]
        is_well(world)


def test_a_restored_name_has_the_metadata_of_its_file(tmp_path: Path) -> None:
    """What was changed meanwhile through the names that stayed: nothing of it is changed back."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b")
        delete(world, "a")
        world.path("b").chmod(0o600)
        os.setxattr(world.path("b"), "user.note", b"new")
        os.utime(world.path("b"), ns=(5, 7_000_000_000))
        world.run("tag.set", bucket=SOURCE, key=b"b", tags={"class": "blue"})
        world.settle()
        before = world.look_of("b")
        restore(world, "a")
        assert groups(world) == [["a", "b"]]
        assert world.look_of("a") == world.look_of("b") == before == world.look_of("a", DESTINATION)
        assert dict(world.current("a").tags) == dict(world.current("b").tags) == {"class": "blue"}
        is_well(world)


def test_an_edit_that_is_not_recorded_yet_is_recorded_first(tmp_path: Path) -> None:
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b")
        world.unlink("a")
        world.path("b").chmod(0o600)
        world.run("object.restore", bucket=SOURCE, key=b"a")
        world.settle()
        assert groups(world) == [["a", "b"]]
        assert {world.path(key).stat().st_mode & 0o777 for key in "ab"} == {0o600}
        is_well(world)


def test_a_name_that_is_open_for_writing_is_not_joined(tmp_path: Path) -> None:
    """What is written next belongs to the name that stayed; the restored one is whole, and a file of its own."""
    with World(tmp_path, trees=True) as world:
        make(world, "a", "b")
        delete(world, "a")
        with world.path("b").open("ab") as file:
            file.write(b", more")
            file.flush()
            restore(world, "a")
            assert world.tree(SOURCE) == {"a": b"content", "b": b"content, more"}
        world.settle()
        assert groups(world) == []
        is_well(world)


@pytest.mark.parametrize("batch", [1, 512])
@pytest.mark.parametrize("stays", ["", "a", "z"])
def test_undelete_joins_names_of_several_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, stays: str
) -> None:
    """Whichever came first when they were captured, and whichever was not deleted."""
    monkeypatch.setattr(commands, "_BATCH", batch)
    with World(tmp_path, trees=True) as world:
        make(world, "z", "a", "m/b", "c")
        world.write("single", b"single")
        world.settle()
        gone = sorted({"z", "a", "m/b", "c", "single"} - {stays})
        delete(world, *gone)
        assert undelete(world) == len(gone)
        assert groups(world) == [["a", "c", "m/b", "z"]]
        is_well(world)


def test_undelete_joins_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_BATCH", 2)
    with World(tmp_path, trees=True) as world:
        for key in ("a", "b", "c", "d"):
            world.write(key, b"content")
        make(world, "e", "f")
        delete(world, "a", "b", "c", "d", "e", "f")
        undelete(world)
        assert groups(world) == [["e", "f"]]
        is_well(world)


@pytest.mark.parametrize("sharing", ["private", "link"])
def test_names_come_back_however_views_share_with_the_store(tmp_path: Path, sharing: str) -> None:
    """With `link` no names are linked, before and after."""
    with World(tmp_path, trees=True) as world:
        world.set_sharing(east=sharing, west=sharing)
        make(world, "a", "b")
        delete(world, "a")
        restore(world, "a")
        assert groups(world) == ([] if sharing == "link" else [["a", "b"]])
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"a": b"content", "b": b"content"}
        world.stays_quiet()


def test_outside_tree_buckets_nothing_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no key is searched for."""
    monkeypatch.delattr(Views, "shown_with")
    with World(tmp_path) as world:
        make(world, "a", "b")
        delete(world, "a")
        restore(world, "a")
        delete(world, "a", "b")
        assert undelete(world) == 2
        assert groups(world) == []
        assert world.current("a").link is None


def _restore_all(world: World) -> None:
    for key in (b"a", b"b"):
        world.run("object.restore", bucket=SOURCE, key=key)


@pytest.mark.slow
@pytest.mark.parametrize("bring_back", [_restore_all, undelete], ids=["restore", "undelete"])
def test_power_cut_while_names_come_back(
    memory: Path, monkeypatch: pytest.MonkeyPatch, bring_back: Callable[[World], object]
) -> None:
    """G4, G7: after a cut at every third change, and the command once more, they are one file on both sides."""
    monkeypatch.setattr(commands, "_BATCH", 1)
    for calls, world in worlds(memory, trees=True):
        make(world, "a", "b", "c")
        delete(world, "a", "b")
        fs = DyingFs(3 * calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            bring_back(world)
        world.restart()
        world.settle()
        bring_back(world)
        for _ in range(2):
            world.settle()
        for bucket in (SOURCE, DESTINATION):
            assert groups(world, bucket) == [["a", "b", "c"]], f"cut at {3 * calls}, in {fs.died_in}"
            assert world.leftovers(bucket) == [], f"cut at {3 * calls}, in {fs.died_in}"
        assert [len(world.of(key)) for key in "abc"] == [3, 3, 1], f"cut at {3 * calls}, in {fs.died_in}"
        if not fs.died:
            return


def test_of_much_equal_content_names_are_found_by_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of one file have one time: with it the right one is looked at first, however many files are empty."""
    with World(tmp_path, trees=True) as world:
        for number in range(20):
            world.write(f"n{number:02}", b"")
        world.write("zz", b"")
        os.link(world.path("zz"), world.path("z"))
        world.settle()
        delete(world, "zz")
        monkeypatch.setattr(FileNames, "CANDIDATES_MAX", 3)
        restore(world, "zz")
        assert groups(world) == [["z", "zz"]]
