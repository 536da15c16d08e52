"""Files in .fsrepl/displaced after a crash or a fault: no content is removed before it is a version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from fsrepl.model import keys
from fsrepl.model.view import View
from fsrepl.storage import intents
from tests.doubles import DyingFs, PowerCut, UnsyncedFs
from tests.verifying import verify
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World, worlds

REPLICA, WRITTEN, LATER = b"replica", b"written in the last moment", b"and another, later"


@pytest.fixture
def world(tmp_path: Path):  # type: ignore[no-untyped-def]
    with World(tmp_path) as made:
        made.write("d/k", REPLICA)
        made.settle()
        yield made


def _displace(world: World, data: bytes, key: str = "d/k") -> Path:
    """The state after an exchange that was cut short before the displaced file was inspected."""
    aside = world.path(".fsrepl/displaced", DESTINATION) / f"1.1;{blake3(key.encode()).hexdigest()[:32]}"
    aside.write_bytes(data)
    return aside


def _contents(world: World, key: str = "d/k") -> list[bytes]:
    """The contents of a key's versions in the destination, oldest first."""
    directory = world.path(f".fsrepl/versions/{key}", DESTINATION).parent
    found = world.history(DESTINATION)[key.encode()]
    return [(directory / f"{Path(key).name};{v.id}").read_bytes() for v in found if not v.marker]


def _pass(world: World, *, restarted: bool, without_journal: bool = False) -> None:
    if restarted:
        world.restart(without_journal=without_journal)
    world.settle()
    world.settle()


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_recorded_displaced_file_is_removed(world: World, restarted: bool) -> None:
    """Section 2: it is compared, then removed; no intent is needed to know its key."""
    _displace(world, REPLICA)
    _pass(world, restarted=restarted)
    assert world.leftovers(DESTINATION) == []
    assert _contents(world) == [REPLICA]


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_an_unrecorded_displaced_file_becomes_a_version(world: World, restarted: bool, without_journal: bool) -> None:
    """G1: it goes back into the tree, and the file that replaced it is in the store."""
    _displace(world, WRITTEN)
    _pass(world, restarted=restarted, without_journal=without_journal)
    assert world.leftovers(DESTINATION) == []
    assert _contents(world) == [REPLICA, WRITTEN]
    assert world.tree(DESTINATION) == {"d/k": WRITTEN}
    assert world.tree(SOURCE) == {"d/k": REPLICA}


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_later_save_stays_in_its_place(world: World, restarted: bool, without_journal: bool) -> None:
    """G1: the displaced file was saved before the file that is there now, so it becomes a version before that one, and
    no reader meets it again."""
    _displace(world, WRITTEN)
    world.drop("d/k", LATER, DESTINATION)
    if restarted:
        world.restart(without_journal=without_journal)
    world.look()
    assert world.tree(DESTINATION) == {"d/k": LATER}
    _pass(world, restarted=False)
    assert world.leftovers(DESTINATION) == []
    assert _contents(world) == [REPLICA, WRITTEN, LATER]
    assert world.tree(DESTINATION) == {"d/k": LATER}
    world.stays_quiet()


def test_a_later_deletion_stays(world: World) -> None:
    """G1: after a crash the file that was exchanged for it is gone: its user removed it, and it is not back."""
    _displace(world, WRITTEN)
    current = world.current("d/k", DESTINATION)
    was = View(1, 7, 1, 1, 0, shown="01K0000000000000000000000A")
    with world.engine.site.bucket(DESTINATION).open() as bucket:
        intents.write_intents(bucket, [intents.Intent(b"d/k", current.id, was)])
    world.unlink("d/k", DESTINATION)
    _pass(world, restarted=True)
    assert world.leftovers(DESTINATION) == []
    assert [v.marker for v in world.history(DESTINATION)[b"d/k"]] == [False, False, True]
    assert _contents(world) == [REPLICA, WRITTEN]
    assert world.tree(DESTINATION) == {}


def test_a_later_save_that_is_a_version_already(world: World) -> None:
    """G1: a writer held the displaced file open until then. Its content is kept, and the later save is current."""
    aside = _displace(world, WRITTEN)
    with aside.open("ab"):
        world.drop("d/k", LATER, DESTINATION)
        _pass(world, restarted=True)
        assert _contents(world) == [REPLICA, LATER]
    _pass(world, restarted=False)
    assert world.leftovers(DESTINATION) == []
    assert _contents(world) == [REPLICA, LATER, WRITTEN, LATER]
    assert world.tree(DESTINATION) == {"d/k": LATER}
    world.stays_quiet()


@pytest.mark.slow
def test_a_crash_at_every_step_of_that(memory: Path) -> None:
    """G1, G7: three saves are three versions in their order, and the last one is in its place."""
    for calls, world in worlds(memory):
        world.write("d/k", REPLICA)
        world.settle()
        _displace(world, WRITTEN)
        world.drop("d/k", LATER, DESTINATION)
        fs = DyingFs(calls)
        with contextlib.suppress(PowerCut):
            world.restart(fs=fs)
            world.settle()
        _pass(world, restarted=True)
        assert _contents(world) == [REPLICA, WRITTEN, LATER], f"cut at {calls}, in {fs.died_in}"
        assert world.tree(DESTINATION) == {"d/k": LATER}, f"cut at {calls}, in {fs.died_in}"
        assert world.leftovers(DESTINATION) == [], f"cut at {calls}, in {fs.died_in}"
        if not fs.died:
            return


def test_a_writer_that_holds_it_delays_it(world: World) -> None:
    """Section 2: later writes through its descriptor are not lost."""
    aside = _displace(world, WRITTEN)
    with aside.open("ab") as held:
        _pass(world, restarted=True)
        assert world.leftovers(DESTINATION) == [f"displaced/{aside.name}"]
        held.write(b", and the rest")
    _pass(world, restarted=False)
    assert world.leftovers(DESTINATION) == []
    assert _contents(world) == [REPLICA, WRITTEN + b", and the rest"]


@pytest.mark.parametrize("obstacle", ["directory", "link"])
def test_its_place_may_be_taken(world: World, obstacle: str) -> None:
    """G1: no user's file is removed; the bucket comes up all the same, and the displaced file goes back once it can."""
    aside = _displace(world, WRITTEN)
    view = world.path("d/k", DESTINATION)
    view.unlink()
    if obstacle == "directory":
        view.mkdir()
        (view / "theirs").write_bytes(b"theirs")
    else:
        view.symlink_to("/etc/passwd")
    _pass(world, restarted=True)
    assert world.leftovers(DESTINATION) == [f"displaced/{aside.name}"]
    if obstacle == "directory":
        assert (view / "theirs").read_bytes() == b"theirs"
        (view / "theirs").unlink()
        view.rmdir()
    else:
        assert view.is_symlink()
        view.unlink()
    _pass(world, restarted=False)
    assert world.leftovers(DESTINATION) == []
    assert WRITTEN in _contents(world)


def test_an_unknown_displaced_file_stays(world: World) -> None:
    """Section 2: it is never swept, and the bucket works all the same."""
    aside = _displace(world, WRITTEN, key="never heard of")
    world.write("more", b"more")
    _pass(world, restarted=True)
    assert aside.read_bytes() == WRITTEN
    assert world.tree(DESTINATION) == {"d/k": REPLICA, "more": b"more"}


class LeaselessFs(UnsyncedFs):
    """A filesystem, or a file of another user, where it is unknown which program has it open."""

    def is_written(self, fd: int, *, closed_next: bool = False) -> bool | None:
        return None


@pytest.mark.parametrize("sharing", ["auto", "private"])
@pytest.mark.parametrize("writes", [True, False], ids=["writes", "does-not"])
@pytest.mark.parametrize("then", ["newer", "deleted"])
def test_writes_of_an_undetectable_writer_are_kept(tmp_path: Path, sharing: str, writes: bool, then: str) -> None:
    """Section 7: the view changes at once, and later writes into the old file are not lost."""
    with World(tmp_path, fs=LeaselessFs()) as world:
        with world.settings.path.open("a") as file:
            file.write("\n[capture]\nopen_quiet_s = 0.2\n")
        world.set_sharing(**({"west": sharing} if sharing != "auto" else {}))
        world.restart(fs=LeaselessFs())
        world.write("d/k", REPLICA)
        _until(world, lambda: world.tree(DESTINATION) == {"d/k": REPLICA})
        with world.path("d/k", DESTINATION).open("r+b") as held:
            world.write("d/k", b"newer") if then == "newer" else world.unlink("d/k")
            _until(world, lambda: world.tree(DESTINATION) == world.tree(SOURCE))
            if writes:
                held.write(WRITTEN)
        _until(world, lambda: world.leftovers(DESTINATION) == [])
        expected = {REPLICA} | ({b"newer"} if then == "newer" else set()) | ({WRITTEN} if writes else set())
        _until(world, lambda: set(_contents(world)) == expected)
        if not writes:
            assert world.ids(DESTINATION) == world.ids(SOURCE)


def _until(world: World, condition: Callable[[], bool]) -> None:
    """Settle until a condition holds: some steps wait until a file was left alone for a while."""

    def settled() -> bool:
        return condition() or (world.settle(), condition())[1]

    until(settled, lambda: f"{world.tree(DESTINATION)} {world.leftovers(DESTINATION)}", pause_s=0.0)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_version_that_was_written_into_is_restored_also_if_the_file_is_removed_at_once(
    world: World, restarted: bool
) -> None:
    """Section 7, View and store: a view of a replica is its stored version's own file, which a program had open. What
    it wrote is put back; its user removes it before it is captured."""
    world.write("d/k", b"second")
    world.settle()
    version, view = world.current("d/k", DESTINATION), world.path("d/k", DESTINATION)
    stored = world.path(f".fsrepl/versions/d/k;{version.id}", DESTINATION)
    assert stored.samefile(view)
    world.write("d/k", b"third")
    world.settle()
    aside = world.path(".fsrepl/displaced", DESTINATION) / os.fsdecode(keys.displaced_name(b"1.1", b"d/k"))
    os.link(stored, aside)
    with aside.open("r+b") as file:
        file.write(WRITTEN)
    if restarted:
        world.restart()
    else:
        world.flush_settling()
    world.look()
    assert view.read_bytes() == WRITTEN
    view.unlink()
    for _ in range(3):
        world.settle()
    assert stored.read_bytes() == b"second"
    assert verify(world)[1:] == []  # but that the replica was deleted
    assert world.leftovers(DESTINATION) == []
