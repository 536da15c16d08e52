"""Changes in the last moment before a file expires, and files that are not touched at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from fsrepl.capture import schedule
from tests.doubles import UnsyncedFs
from tests.lifecycle.test_lifecycle import GLACIER, days, old_versions, put, rule, run
from tests.world import SOURCE, World

LATER = "2026-06-01T00:00:01Z"


class ActingFs(UnsyncedFs):
    """A user changes a file in the very moment in which its view is taken out."""

    def __init__(self) -> None:
        self.meddle: Callable[[], object] | None = None

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        if name == b"k" and self.meddle is not None:
            meddle, self.meddle = self.meddle, None
            meddle()
        super().rename_new(from_at, name, to_at, new_name)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b", and more")


def _replace(path: Path) -> None:
    aside = path.parent.parent / "aside"
    aside.write_bytes(b"another file")
    aside.rename(path)


@pytest.mark.parametrize(
    ("meddle", "there"), [(_append, b"data, and more"), (_replace, b"another file")], ids=["written", "replaced"]
)
def test_a_change_in_the_last_moment_is_kept(
    world: World, clock: Callable[[str], object], meddle: Callable[[Path], None], there: bytes
) -> None:
    """G1, G4: it stays where it is, and becomes a version that is newer than the marker."""
    world.write("k", b"data")
    world.settle()
    put(world, days(2))
    clock(LATER)
    fs = ActingFs()
    world.restart(fs=fs)
    fs.meddle = lambda: meddle(world.path("k"))
    world.settle()
    assert fs.meddle is None
    for _ in range(2):
        world.settle()
    assert world.tree(SOURCE) == {"k": there}
    assert [version.marker for version in world.of("k")] == [False, True, False]
    assert world.leftovers(SOURCE) == []


def test_a_run_begins_as_soon_as_the_first_scan_is_over(
    world: World, clock: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.3: a scan that takes longer than a turn, as on a busy machine, does not put the run off until a later look."""
    world.write("k", b"data")
    world.settle()
    put(world, days(2))
    clock(LATER)
    world.restart()
    whole, turns = schedule.advance, iter([False])

    def advance(*given: Any, **more: Any) -> bool:
        return next(turns, True) and whole(*given, **more)

    monkeypatch.setattr(schedule, "advance", advance)
    world.settle()
    assert world.tree(SOURCE) == {}


class WriterFs(UnsyncedFs):
    """A program opens a file in the moment in which its view is taken out, and writes and closes it just before it is
    asked who has it open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        if name == b"k" and self._file is None and self._path.exists():
            self._file = self._path.open("ab")
        super().rename_new(from_at, name, to_at, new_name)

    def is_written(self, fd: int, *, closed_next: bool = False) -> bool | None:
        if self._file is not None and not self._file.closed:
            self._file.write(b", and more")
            self._file.close()
        return super().is_written(fd, closed_next=closed_next)


def test_a_writer_that_came_and_went_in_the_last_moment_is_noticed(
    world: World, clock: Callable[[str], object]
) -> None:
    """G1: its file is looked at after the question for writers."""
    world.write("k", b"data")
    world.settle()
    put(world, days(2))
    clock(LATER)
    world.restart(fs=WriterFs(world.path("k")))
    for _ in range(3):
        world.settle()
    assert world.tree(SOURCE) == {"k": b"data, and more"}
    assert [version.marker for version in world.of("k")] == [False, True, False]


class CountingFs(UnsyncedFs):
    """Records the names of the store's files that are opened."""

    def __init__(self) -> None:
        self.opened: list[bytes] = []

    def open_read(self, at: int, name: bytes) -> int:
        if b";" in name:
            self.opened.append(name)
        return super().open_read(at, name)


def test_files_that_stay_are_not_touched(world: World, clock: Callable[[str], object]) -> None:
    """The journal alone shows that nothing is due, whatever the rules are, also once a class is written."""
    for number in range(20):
        world.drop(f"k{number}", b"data", tags={"keep": "yes"} if number % 2 else {})
    world.settle()
    tagged = rule(Filter={"And": {"Prefix": "k", "Tags": [{"Key": "keep", "Value": "no"}]}}, Expiration={"Days": 1})
    put(world, tagged, GLACIER, old_versions(), rule(Filter={"Prefix": "none"}, Expiration={"Days": 1}))
    clock(LATER)
    assert run(world) == {"Transition": 20}
    fs = CountingFs()
    world.restart(fs=fs)
    world.capture(SOURCE)
    fs.opened.clear()
    assert run(world) == {}
    assert fs.opened == []
