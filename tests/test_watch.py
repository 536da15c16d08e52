"""Events become marks: of the right key, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.fs import Fs
from fsrepl.watch import ARRIVED, CHANGED, CLOSED, GONE, MOVED, DirectoryEvent, Mark, Marks, Watcher

ADDRESS = "east/src"


class Watched:
    """A directory with its watches, and what they have marked."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.marks = Marks(lambda: None, settle_s=0.0, temporary=["*.tmp"], temporary_s=3600.0)
        self.watcher = Watcher()
        self.watcher.listen("east", self.marks)
        self._barrier = top / ".fsrepl"
        self._barrier.mkdir()
        self._number = 0
        fd = os.open(self._barrier, os.O_RDONLY)
        self.watcher.watch_barrier(ADDRESS, fd)
        os.close(fd)
        self.watcher.start()

    def watch(self, path: str = "") -> Path:
        fd = Fs().open_root(self.top / path)
        self.watcher.watch(ADDRESS, path.encode(), fd)
        os.close(fd)
        return self.top / path

    def seen(self) -> tuple[dict[bytes, int], list[DirectoryEvent]]:
        """What was marked by all that was done so far: keys with their flags, and directories."""
        self._number += 1
        name = b"%d" % self._number
        (self._barrier / name.decode()).touch()
        until_s = time.monotonic() + 30
        while name not in self.watcher.sentinels:
            assert time.monotonic() < until_s, "the sentinel was not read"
            time.sleep(0.001)
        directories = list(self.marks.directories)
        self.marks.directories.clear()
        return {mark.key: mark.flags for mark in self.take()}, directories

    def take(self) -> list[Mark]:
        time.sleep(0.002)
        return self.marks.take(1000)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    found = Watched(tmp_path)
    found.watch()
    yield found
    found.watcher.stop()
    found.watcher.join()


def test_what_was_done_to_a_file_is_marked(watched: Watched) -> None:
    """Section 7, watch: a close, a rename into place, a removal and a change of attributes each mark their key."""
    for name in ("closed", "from", "gone", "changed"):
        (watched.top / name).write_bytes(b"")
    watched.seen()
    (watched.top / "closed").write_bytes(b"more")
    (watched.top / "from").rename(watched.top / "to")
    (watched.top / "gone").unlink()
    (watched.top / "changed").chmod(0o600)
    keys, directories = watched.seen()
    wanted = {b"closed": CLOSED, b"from": GONE, b"to": MOVED, b"gone": GONE, b"changed": CHANGED}
    assert {key: flags & wanted[key] for key, flags in keys.items()} == wanted
    assert directories == []


def test_a_directory_s_own_times_do_not_move_its_keys(watched: Watched) -> None:
    """G6: rsync sets the time of each directory it has filled; later changes in it are still its own keys'."""
    directory = watched.top / "d"
    directory.mkdir()
    watched.watch("d")
    watched.seen()
    os.utime(directory)
    os.utime(watched.top)
    keys, directories = watched.seen()
    assert keys == {}
    assert directories == [DirectoryEvent(ADDRESS, b"d", CHANGED, 1)]
    (directory / "k").write_bytes(b"k")
    keys, _ = watched.seen()
    assert list(keys) == [b"d/k"]


def test_directories_come_and_go(watched: Watched) -> None:
    """P2: one that is made or moved in is looked into; one that is moved out or removed is gone."""
    (watched.top / "made").mkdir()
    (watched.top / "made").rename(watched.top / "moved")
    (watched.top / "moved").rmdir()
    _, directories = watched.seen()
    assert [(event.path, event.flags) for event in directories] == [
        (b"made", ARRIVED), (b"made", GONE), (b"moved", ARRIVED), (b"moved", GONE),
    ]  # fmt: skip
