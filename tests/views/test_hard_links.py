"""Several names of one file: a write through one of them has changed them all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.commands import status, why
from fsrepl.commands import wait as barrier
from fsrepl.commands.notes import notes_of
from fsrepl.region.change_queue import ARRIVED, CHANGED, CLOSED, MOVED, Change
from fsrepl.storage import listing
from tests.world import DESTINATION, SOURCE, World, at

SHARINGS = {"auto": {}, "link": {"east": "link"}}
NAMES = ("a", "b", "d/c")


@pytest.fixture(params=SHARINGS)
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with World(tmp_path) as made:
        made.set_sharing(**SHARINGS[request.param])
        yield made


def linked(world: World, data: bytes = b"one") -> None:
    """One file under three names, all captured."""
    world.write("other", b"other")
    world.write("a", data)
    world.path("d").mkdir()
    for name in NAMES[1:]:
        os.link(world.path("a"), world.path(name))
    world.settle()


def event(world: World, key: str, flags: int) -> None:
    """An event of the watcher, for one name only. No scan helps."""
    world.region().changes.add(SOURCE, [key.encode()], 0, flags)
    world.flush_settling()
    world.engine.run_until_idle()


@pytest.mark.parametrize("size", [3, 5 << 20])
def test_a_write_through_one_name_is_captured_at_all_names(tmp_path: Path, size: int) -> None:
    """G6: the kernel reports one of them only; for small files and those that workers copy alike."""
    with World(tmp_path) as world:
        linked(world)
        world.path("b").write_bytes(b"x" * size)
        event(world, "b", CLOSED)
        assert [world.tree(DESTINATION)[name] == b"x" * size for name in NAMES] == [True] * 3
        assert [len(world.of(name)) for name in NAMES] == [2, 2, 2]
        world.stays_quiet()
        assert [len(world.of(name)) for name in NAMES] == [2, 2, 2]


def test_an_edit_through_one_name_is_recorded_at_all_names(world: World) -> None:
    """G5: they have one mode; no content is read for that, and no version made."""
    linked(world)
    world.path("d/c").chmod(0o600)
    event(world, "d/c", CHANGED)
    assert [world.look_of(name, DESTINATION)[0].mode for name in NAMES] == [0o600] * 3
    assert [len(world.of(name)) for name in NAMES] == [1, 1, 1]
    world.stays_quiet()


def test_waiting_for_one_name_covers_the_others(tmp_path: Path) -> None:
    """Section 5, wait: the others have the same epoch as the event of the one."""
    with World(tmp_path) as world:
        linked(world)
        world.path("a").write_bytes(b"two")
        region = world.region()
        region.changes.add(SOURCE, [b"a"], 3, CLOSED)
        marked: list[Change] = []
        take = region.changes.take

        def taking(limit: int) -> list[Change]:
            marked.extend(found := take(limit))
            return found

        region.changes.take = taking  # type: ignore[method-assign]
        world.engine.run_until_idle()
        assert {(change.key, change.epoch) for change in marked} == {(name.encode(), 3) for name in NAMES}
        assert len(marked) == 3, "none marks the others once more"


@pytest.mark.parametrize("scope", ["b", "d/c"])
def test_waiting_for_a_name_covers_a_write_through_another(world: World, scope: str) -> None:
    """Section 5, wait: the kernel reported the other one only, also where that is no object yet."""
    linked(world)
    os.link(world.path("a"), world.path("new"))
    region, state = world.region(), world.state()

    def is_waited_for(key: str) -> bool:
        asked = barrier._with_names(world.engine, barrier.Scope((SOURCE,), key.encode()), None)
        return barrier._in_hand(region, state, asked, 4)[0]

    for written in ("a", "new"):
        region.changes.add(SOURCE, [written.encode()], 3, CLOSED)
        assert is_waited_for(scope)
        assert not is_waited_for("other")
        world.engine.run_until_idle()
        assert not is_waited_for(scope)
    with world.path("a").open("wb") as file:  # then it is deferred, and not queued any more
        file.write(b"two")
        file.flush()
        region.changes.add(SOURCE, [b"a"], 3, CLOSED)
        region.turn()
        assert b"a" in state.captures.deferred
        assert is_waited_for(scope)


def test_the_other_names_are_shown(world: World) -> None:
    """Section 5, why and status: they explain why three objects changed at once."""
    linked(world)
    os.link(world.path("a"), world.home / "outside")
    note = why.why(world.engine.site, at(SOURCE, b"a"), None, {}).document["Notes"][-1]
    assert "its file has other names (hard links): b, d/c, 1 more;" in note
    assert "Notes" not in why.why(world.engine.site, at(SOURCE, b"other"), None, {}).document
    (source, replica) = status.status(world.engine.site, {})["buckets"]
    assert (source["linked"], "linked" in replica) == (3, False)
    assert any("3 files are a hard link of another" in note.text for note in notes_of(source, None))
    for name in NAMES[1:]:
        world.unlink(name)
    world.settle()
    note = why.why(world.engine.site, at(SOURCE, b"a"), None, {}).document["Notes"][-1]
    assert "(hard links): 1 that are no objects of this bucket;" in note
    assert "linked" not in status.status(world.engine.site, {})["buckets"][0]


def test_a_rename_under_way_is_no_hard_link(tmp_path: Path) -> None:
    """status: files are under their new names in the journal already, and under their old ones still."""
    with World(tmp_path) as world:
        world.write("d/one", b"1")
        world.write("d/two", b"2")
        world.settle()
        world.path("d").rename(world.path("e"))
        region = world.engine.regions["east"]
        region.changes.add(SOURCE, [b"e/one", b"e/two"], 0, ARRIVED)
        region.turn()
        assert world.engine.journal.totals.linked(SOURCE) == 4
        assert "linked" not in status.status(world.engine.site, {})["buckets"][0]
        os.link(world.path("e/one"), world.path("three"))
        region.changes.add(SOURCE, [b"three"], 0, ARRIVED)
        region.turn()
        assert status.status(world.engine.site, {})["buckets"][0]["linked"] == 2


def test_a_journal_of_an_earlier_build_finds_them_too(tmp_path: Path) -> None:
    """G11: the index that finds the names of a file is made when the journal is opened."""
    with World(tmp_path) as world:
        linked(world)
        world.engine.journal.execute("DROP INDEX inode")
        world.restart()
        world.settle()
        plan = world.engine.journal.execute(
            "EXPLAIN QUERY PLAN SELECT name FROM object WHERE bucket = 1 AND ino = 5"
        ).fetchall()
        assert "INDEX inode" in str(plan)
        assert set(world.engine.journal.views.names_of(SOURCE, world.path("a").stat().st_ino)) == {
            b"a",
            b"b",
            b"d/c",
        }


def _same_everywhere(world: World, expected: dict[str, bytes]) -> None:
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"other": b"other"} | expected
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert world.statuses() == {"COMPLETED"}
    assert world.leftovers(SOURCE) == world.leftovers(DESTINATION) == []
    world.stays_quiet()


def test_a_name_whose_directory_has_another_name_now(world: World) -> None:
    """G6: the old key is deleted, the new one is an object, and the others follow; the event has the new name."""
    linked(world)
    world.path("d").rename(world.path("e"))
    world.path("e/c").write_bytes(b"two")
    event(world, "e/c", CLOSED)
    assert [world.tree(DESTINATION)[name] for name in ("a", "b", "e/c")] == [b"two"] * 3
    world.settle()
    _same_everywhere(world, {"a": b"two", "b": b"two", "e/c": b"two"})


@pytest.mark.parametrize("left", ["a", "d/c"])
def test_a_write_after_the_other_names_are_removed(world: World, left: str) -> None:
    """G1, G6: it changes none of their versions."""
    linked(world)
    for name in NAMES:
        if name != left:
            world.unlink(name)
    world.path(left).write_bytes(b"two")
    event(world, left, CLOSED)
    world.settle()
    _same_everywhere(world, {left: b"two"})
    for name in NAMES:
        assert world.of(name)[-1].digest == world.of(left)[-1].digest
    with world.engine.site.bucket(SOURCE).open() as bucket:
        for name in NAMES:
            assert b"".join(listing.content(bucket, world.of(name)[-1])) == b"one"


def test_a_name_that_another_file_took(world: World) -> None:
    """G1: as an editor saves: it is no name of that file any more, and a write into the new file changes no other."""
    linked(world)
    world.drop("b", b"own")
    event(world, "b", MOVED)
    world.path("a").write_bytes(b"two")
    event(world, "a", CLOSED)
    world.settle()
    _same_everywhere(world, {"a": b"two", "b": b"own", "d/c": b"two"})


def test_a_name_that_is_linked_over_another_object(world: World) -> None:
    """G6: as `ln -f`: the replaced object was a version, and gets that file's content as the next one."""
    linked(world)
    os.link(world.path("a"), world.home / "aside")
    (world.home / "aside").rename(world.path("other"))
    event(world, "other", MOVED)
    world.path("other").write_bytes(b"two")
    event(world, "other", CLOSED)
    world.settle()
    assert len(world.of("other")) == 3
    _same_everywhere(world, dict.fromkeys((*NAMES, "other"), b"two"))


@pytest.mark.parametrize("sharing", ["auto", "private", "link"])
def test_replicas_that_a_person_links_and_writes_into(tmp_path: Path, sharing: str) -> None:
    """G1, G2: each becomes a version there, the former replicas stay, and later ones are shown again."""
    with World(tmp_path) as world:
        world.set_sharing(west=sharing)
        for name in NAMES[:2]:
            world.write(name, name.encode())
        world.settle()
        old = {name: world.current(name, DESTINATION) for name in NAMES[:2]}
        world.unlink("b", DESTINATION)
        os.link(world.path("a", DESTINATION), world.path("b", DESTINATION))
        world.path("b", DESTINATION).write_bytes(b"theirs")
        for _ in range(3):
            world.settle()
        assert world.tree(DESTINATION) == {"a": b"theirs", "b": b"theirs"}
        with world.engine.site.bucket(DESTINATION).open() as bucket:
            for name, version in old.items():
                assert b"".join(listing.content(bucket, version)) == name.encode()
        for name in NAMES[:2]:
            world.drop(name, b"newer " + name.encode())
        for _ in range(3):
            world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE) == {"a": b"newer a", "b": b"newer b"}
        assert world.statuses() == {"COMPLETED"}
        assert world.leftovers(DESTINATION) == []


def test_an_attribute_set_through_one_name_is_recorded_at_all_names(world: World) -> None:
    """G5: tags and attributes are the file's; each object has its own edit."""
    linked(world)
    os.setxattr(world.path("b"), "user.colour", b"blue")
    os.setxattr(world.path("b"), "user.fsrepl.tag.class", b"blue")
    event(world, "b", CHANGED)
    for name in NAMES:
        replica = world.current(name, DESTINATION)
        assert (replica.attrs, replica.tags) == ({"user.colour": b"blue"}, {"class": "blue"})
    world.settle()
    _same_everywhere(world, dict.fromkeys(NAMES, b"one"))
