"""The doubles of tests/doubles.py: which power cuts they leave out, and that nothing is lost by it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

import pytest

from fsrepl.capture import ingest
from fsrepl.replicate import deliver
from tests.doubles import EACH_CHANGE, DyingFs, FailingFs, Place, PowerCut, Tried
from tests.world import SOURCE, World, worlds

_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_TOKEN = re.compile(r"\d+[-.]\d+(\.\d+)?")

Disk = tuple[tuple[object, ...], ...]


def disk(world: World) -> Disk:
    """What a start finds: each name, the mode, the size and the number of links, and the attributes of stored files;
    without the files in .fsrepl/tmp, of which it only removes the names. And what the journal says."""
    found: list[tuple[object, ...]] = []
    for path in sorted(world.home.rglob("*")):
        name = _TOKEN.sub("TOKEN", _ID.sub("ID", str(path.relative_to(world.home)))).partition(";=")[0]
        if path.is_relative_to(world.home / ".fsrepl-site") or "/.fsrepl/tmp/" in name:
            continue
        status = path.lstat()
        size = status.st_size if path.is_file() and ".json" not in path.name else 0
        attributes = sorted(os.listxattr(path)) if "/versions/" in name else ()  # those of views are labels
        found.append((name, status.st_mode, size, status.st_nlink, tuple(attributes)))
    for rows in (
        "SELECT bucket, dir, name, marker, size FROM version",
        "SELECT bucket, dir, name, marker, size, ino IS NULL, shown = id FROM object",
        "SELECT bucket, key, destination, status FROM delivery",
    ):
        found += sorted(world.engine.journal.execute(rows))
    return tuple(found)


def disks(home: Path, *, each: bool) -> list[Disk]:
    """The disk after a cut at each change that counts, while a changed file becomes a version and a replica."""
    found: list[Disk] = []
    while True:
        with World(home / f"{each}{len(found)}") as world:
            world.write("d/k", b"one")
            world.settle()
            world.write("d/k", b"two, longer")
            world.restart(fs=(fs := DyingFs(len(found), each=each)))
            with contextlib.suppress(PowerCut):
                world.settle()
            found.append(disk(world))
            if not fs.died:
                return found


def test_the_cuts_that_are_left_out_leave_no_disk_that_another_does_not_leave(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: what is left out are changes of staged files, of which a start reads nothing, and those before which nothing
    has changed, neither the disk nor the journal."""
    for step in (ingest, deliver):
        monkeypatch.setattr(step, "STEP_S", 60.0)  # however slow the machine is, it takes the same steps
    every, some = disks(memory, each=True), disks(memory, each=False)
    assert set(every) == set(some)
    assert len(some) < 0.6 * len(every)


@pytest.mark.parametrize("is_cut", [False, True])
def test_changes_at_known_places_do_not_count(memory: Path, *, is_cut: bool) -> None:
    """A case of a test leaves out the places at which another case has been stopped, and no other."""
    known: list[Place] = []
    for number in range(5):
        with World(memory / str(number)) as world:
            world.write("k", b"one")
            fs = DyingFs(0, each=True, but=known) if is_cut else FailingFs(0, but=known)
            world.restart(fs=fs)
            with contextlib.suppress(PowerCut):
                world.settle()
        assert len(fs.place) == 4
        assert fs.place[0] == (fs.died_in if isinstance(fs, DyingFs) else fs.failed_in)
        assert fs.place not in known
        known.append(fs.place)


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_later_case_is_stopped_at_its_own_places_alone(memory: Path, *, is_cut: bool) -> None:
    """G7: the first case at all of its changes; the second at those which the first did not make; a case that is not
    alike at all of its changes again."""
    cases = (("update", "a"), ("update and removal", "a"), ("update", "b"))
    stopped: list[list[Place]] = []
    for what, alike in cases:
        stopped.append([])
        others = Tried(memory / alike)
        (home := memory / str(len(stopped))).mkdir()
        for calls, world in worlds(home, replicate=False, buckets=(SOURCE,)):
            world.write("k", b"one")
            world.write("gone", b"one")
            world.settle()
            world.write("k", b"two")
            if "removal" in what:
                world.unlink("gone")
            fs = DyingFs(calls, but=others) if is_cut else FailingFs(calls, but=others)
            world.restart(fs=fs)
            with contextlib.suppress(PowerCut):
                world.settle()
            if not fs.place:
                break
            stopped[-1].append(fs.place)
    first, second, third = stopped
    assert len(first) > 4
    assert first == third
    assert second
    assert EACH_CHANGE or not {*second} & {*first}


def test_a_fault_that_lasts_spares_no_place(memory: Path) -> None:
    """A disk that has become read-only takes no change, at no place."""
    fs = FailingFs(0, errno.EROFS, for_ever=True, but={("chmod",)})
    with (memory / "file").open("wb") as file:
        fs.chmod(file.fileno(), 0o600)
        for change in (lambda: fs.truncate(file.fileno(), 1), lambda: fs.chmod(file.fileno(), 0o644)):
            with pytest.raises(OSError, match="Read-only"):
                change()
