"""The stager in removals: what it stages and removes is as if the daemon had done it, and its end loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.capture import in_stager as captures
from fsrepl.capture import ingest
from fsrepl.model.version import Status
from fsrepl.region.stager import Pending
from fsrepl.replicate import deliver, group
from fsrepl.replicate import in_stager as replicas
from tests.doubles import PowerCut
from tests.forgetful import ForgetfulFs
from tests.stagers import StagerHere, beside_first, real
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World

FILES = 80
ORDERS = [captures.STAGE, replicas.STAGE, replicas.REMOVE, replicas.RECORD]


@pytest.fixture(autouse=True)
def as_on_a_fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has time for all files: a slow machine would divide them into batches that are not worth an order."""
    for module in (ingest, group, deliver):
        monkeypatch.setattr(module, "STEP_S", 60.0)


def fill(world: World, folder: str = "d") -> dict[str, bytes]:
    made = {f"{folder}/{i:03}": f"{folder} {i}".encode() * 50 for i in range(FILES)} | {
        f"{folder}/large": bytes(2 << 20)
    }
    for key, data in made.items():
        world.write(key, data)
    os.setxattr(world.path(f"{folder}/{FILES - 1:03}"), b"user.\xff", b"no text")
    world.path(f"{folder}/{FILES - 2:03}").chmod(0o400)
    world.settle()
    assert world.tree(DESTINATION) == made
    return made


def clear(world: World, folder: str = "d") -> None:
    shutil.rmtree(world.path(folder))
    world.settle()
    world.settle()  # what was not done is tried again


def check(world: World, made: dict[str, bytes]) -> None:
    """Each file is gone by one marker, the same on both sides; its version is private, and nothing is left over."""
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {}
    assert world.statuses() == {Status.COMPLETED}
    here, there = world.history(SOURCE), world.history(DESTINATION)
    assert {key.decode() for key in here} == made.keys()
    assert {tuple(version.marker for version in found) for found in here.values()} == {(False, True)}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    for found in there.values():
        assert [str(version.source) for version in found] == [SOURCE, SOURCE]
    for bucket in (SOURCE, DESTINATION):
        for folder in (".fsrepl/tmp", ".fsrepl/displaced", ".fsrepl/intents"):
            assert not [path.name for path in world.path(folder, bucket).iterdir() if path.is_file()], folder
        for path in world.path(".fsrepl/versions/d", bucket).iterdir():
            status = path.stat()
            assert (status.st_mode & 0o077, status.st_nlink) == (0, 1), path
    assert not world.path("d", DESTINATION).exists()
    world.stays_quiet()


def test_a_mass_removal_is_staged_and_shown_by_the_stager(tmp_path: Path) -> None:
    """G5: markers of many files are made by another process, which removes views too, and are like the daemon's."""
    with World(tmp_path) as world, real(world) as found:
        made = fill(world)
        answers, begin = set[str](), found.begin

        def noting(what: str, *rest: object) -> Pending | None:
            pending = begin(what, *rest)  # type: ignore[arg-type]
            if pending is not None and pending.result() is not None:
                answers.add(what)
            return pending

        found.begin = noting  # type: ignore[method-assign]
        clear(world)
        assert answers >= set(ORDERS)
        check(world, made)


@pytest.mark.parametrize("kind", ["plain", "trees", "private", "link"])
def test_the_stager_removes_what_the_daemon_removes(tmp_path: Path, kind: str) -> None:
    """G5: whatever the kind of bucket, and the way in which view and version share their content."""
    with World(tmp_path, trees=kind == "trees") as world:
        if kind in ("private", "link"):
            world.set_sharing(east=kind, west=kind)
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        here.done.clear()
        clear(world)
        kinds = {what for what, _ in here.done}
        if kind == "trees":  # its views may be one file with others
            assert kinds >= {captures.STAGE, replicas.STAGE, replicas.RECORD}
            assert replicas.REMOVE not in kinds
            assert world.tree(SOURCE) == world.tree(DESTINATION) == {}
            assert world.statuses() == {Status.COMPLETED}
        else:
            assert kinds >= set(ORDERS)
            check(world, made)


@pytest.mark.parametrize("what", ORDERS)
def test_what_the_stager_does_not_do_the_daemon_does(tmp_path: Path, what: str) -> None:
    """G7: a stager that is lost before it has begun, at each of its orders."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        here.refuses = {what}
        clear(world)
        check(world, made)


class Losing(StagerHere):
    """A stager that is lost once it has carried out an order of a kind, and before it answers."""

    what = ""

    def begin(self, what: str, *rest: object) -> Pending | None:
        pending = super().begin(what, *rest)  # type: ignore[arg-type]
        if what == self.what and pending is not None:
            pending = Pending(self, None)
            pending.settle(None)
        return pending


@pytest.mark.parametrize("what", ORDERS)
def test_what_the_stager_has_done_and_not_said_the_daemon_finds_done(tmp_path: Path, what: str) -> None:
    """G7: its death is not noticed by anybody: no marker is doubled, and no view comes back."""
    with World(tmp_path) as world:
        here = world.engine.stager = Losing(world.engine.fs)
        made = fill(world)
        here.what = what
        clear(world)
        for bucket in (SOURCE, DESTINATION):  # a real one has a name of its own for what it stages: see Stager.tidy
            for path in world.path(".fsrepl/tmp", bucket).iterdir():
                assert what in (captures.STAGE, replicas.STAGE)
                path.unlink()
        check(world, made)


@pytest.mark.parametrize("what", ORDERS)
def test_a_killed_stager_loses_and_doubles_no_removal(tmp_path: Path, what: str) -> None:
    """G7: kill -9 of the stager after it got an order."""
    with World(tmp_path) as world, real(world) as found:
        made = fill(world)
        begin, killed = found.begin, list[int]()

        def killing(kind: str, *rest: object) -> Pending | None:
            if kind != what or killed:
                return begin(kind, *rest)  # type: ignore[arg-type]
            killed.append(found.pid)
            os.kill(found.pid, signal.SIGSTOP)
            pending = begin(kind, *rest)  # type: ignore[arg-type]
            os.kill(found.pid, signal.SIGKILL)
            return pending

        found.begin = killing  # type: ignore[method-assign]
        clear(world)
        assert killed
        found._again_at_s = 0.0
        until(lambda: found.is_ready(1 << 20), lambda: "it is started again")
        check(world, made)


@pytest.mark.parametrize("what", [captures.STAGE, replicas.STAGE, replicas.REMOVE])
def test_a_crash_beside_the_stager_takes_no_removal_back(tmp_path: Path, what: str) -> None:
    """G7: the daemon is killed once the stager has carried out an order: what is half done is no act of a user."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        begin = here.begin

        def crashing(kind: str, *rest: object) -> Pending | None:
            pending = begin(kind, *rest)  # type: ignore[arg-type]
            if kind == what:
                raise PowerCut
            return pending

        here.begin = crashing  # type: ignore[method-assign]
        shutil.rmtree(world.path("d"))
        with pytest.raises(PowerCut):
            world.settle()
        world.restart()
        world.settle()
        world.settle()
        check(world, made)


@contextlib.contextmanager
def opened(disk: ForgetfulFs, path: Path) -> Iterator[int]:
    fd = disk.open_root(path)
    try:
        yield fd
    finally:
        disk.close(fd)


@pytest.mark.parametrize("is_lost", [False, True])
def test_views_that_the_stager_has_removed_stay_removed_after_a_power_cut(tmp_path: Path, *, is_lost: bool) -> None:
    """G3, G7: COMPLETED says that the removal is on the disk, also where the stager was lost after it."""
    with World(tmp_path) as world:
        disk = ForgetfulFs(world.home / "attic")
        world.restart(fs=disk)
        here = world.engine.stager = Losing(world.engine.fs)
        folders = {"a": range(FILES), "b": range(FILES, 2 * FILES)}  # one of them is left to the stager
        for folder, numbers in folders.items():
            for name in ("kept", *map("{:03}".format, numbers)):
                world.write(f"{folder}/{name}", b"data")
        world.settle()
        here.what = replicas.REMOVE if is_lost else ""
        for folder, numbers in folders.items():
            for number in numbers:
                world.unlink(f"{folder}/{number:03}")
        world.settle()
        assert replicas.REMOVE in {what for what, _ in here.done}
        assert world.statuses() == {Status.COMPLETED}
        with opened(disk, world.path(".fsrepl/intents", DESTINATION)) as intents:
            disk.sync_file(intents)  # that no view changes any more happens to be on the disk
        disk.forget()
        world.restart()
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"a/kept": b"data", "b/kept": b"data"}
        assert {len(found) for found in world.history(DESTINATION).values()} == {1, 2}


@pytest.mark.parametrize("is_late", [False, True])
def test_what_people_do_in_the_replica_beside_a_removal_is_kept(tmp_path: Path, *, is_late: bool) -> None:
    """G1: a save, a new file and an open file there, just before or just after the stager removes the views."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        names = [f"d/{i:03}" for i in range(FILES)]
        writer = world.path(names[40], DESTINATION).open("ab")

        def change() -> None:
            for number, name in enumerate(names):
                if number % 10 == 1:
                    world.path(name, DESTINATION).parent.mkdir(exist_ok=True)
                    world.path(name, DESTINATION).write_bytes(b"mine")

        changed = beside_first(here, replicas.REMOVE, change, is_late=is_late)
        clear(world)
        assert changed
        mine = {name: b"mine" for number, name in enumerate(names) if number % 10 == 1}
        assert world.tree(DESTINATION) == mine | {names[40]: made[names[40]]}
        writer.write(b" and more")
        writer.close()
        world.settle()
        world.settle()
        mine[names[40]] = made[names[40]] + b" and more"
        assert world.tree(DESTINATION) == mine
        assert world.tree(SOURCE) == {}
        histories = world.history(DESTINATION)
        assert {histories[name.encode()][-1].marker for name in mine} == {False}
        for folder in (".fsrepl/displaced", ".fsrepl/intents"):
            assert not list(world.path(folder, DESTINATION).iterdir())


def test_a_moved_directory_is_there_before_it_is_gone(tmp_path: Path) -> None:
    """G4: a rename is a new key and a marker, and the stager removes no view before the new ones are shown."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        begin, seen = here.begin, list[bool]()

        def looking(what: str, *rest: object) -> Pending | None:
            if what == replicas.REMOVE:
                there = world.tree(DESTINATION)
                seen.append(all(there.get("e" + key[1:], there.get(key)) == data for key, data in made.items()))
            return begin(what, *rest)  # type: ignore[arg-type]

        here.begin = looking  # type: ignore[method-assign]
        world.path("d").rename(world.path("e"))
        world.settle()
        world.settle()
        assert seen
        assert all(seen)
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"e" + key[1:]: data for key, data in made.items()}
        assert world.statuses() == {Status.COMPLETED}
