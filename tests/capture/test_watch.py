"""Events become changes in the queue: of the right key, and of no other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.capture.watch import InotifyWatcher
from fsrepl.region.change_queue import (
    ARRIVED,
    CHANGED,
    CLOSED,
    FOUND,
    GONE,
    MOVED,
    WRITING,
    Change,
    ChangeQueue,
    DirectoryEvent,
)
from fsrepl.settings import Capture
from fsrepl.storage.fs import Fs
from tests.waiting import until

ADDRESS = "east/src"


class Watched:
    """A directory with its watches, and the changes that they queued."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.changes = ChangeQueue(lambda: None, Capture(settle_ms=0, temporary_settle_s=3600))
        self.watcher = InotifyWatcher()
        self.watcher.listen("east", self.changes)
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
        """The changes queued so far: keys with their flags, and directories."""
        self._number += 1
        name = b"%d" % self._number
        (self._barrier / name.decode()).touch()
        until(lambda: name in self.watcher.sentinels, "the sentinel is read", pause_s=0.001)
        directories = list(self.changes.directories)
        self.changes.directories.clear()
        return {change.key: change.flags for change in self.take()}, directories

    def take(self) -> list[Change]:
        time.sleep(0.002)
        return self.changes.take(1000)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    found = Watched(tmp_path)
    found.watch()
    yield found
    found.watcher.stop()
    found.watcher.join()


def test_each_kind_of_event_queues_its_key(watched: Watched) -> None:
    """Section 7, watch: a close, a rename into place, a removal and a change of attributes each queue their key."""
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
    """G6: rsync sets the time of each directory it has filled; later changes in the directory still belong to its own
    keys."""
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
    """P2: a directory that is made or moved in is scanned; one that is moved out or removed is gone."""
    (watched.top / "made").mkdir()
    (watched.top / "made").rename(watched.top / "moved")
    (watched.top / "moved").rmdir()
    _, directories = watched.seen()
    assert [(event.path, event.flags) for event in directories] == [
        (b"made", ARRIVED), (b"made", GONE | MOVED), (b"moved", ARRIVED), (b"moved", GONE),
    ]  # fmt: skip


def test_a_temporary_name_waits_unless_nothing_is_left_of_it(watched: Watched) -> None:
    """Settings, temporary: such a file is left alone for a while; once it is renamed, its old name delays nothing."""
    (watched.top / "a.tmp").write_bytes(b"")
    keys, _ = watched.seen()
    assert keys == {}
    assert watched.changes.is_queued(ADDRESS, b"a.tmp")
    (watched.top / "a.tmp").rename(watched.top / "a")
    keys, _ = watched.seen()
    assert set(keys) == {b"a", b"a.tmp"}


def test_a_key_with_constant_events_is_ready_after_open_max_s() -> None:
    """Settings, open_max_s: repeated events delay a key no longer than that, open or not."""
    changes = ChangeQueue(lambda: None, Capture(settle_ms=1000, open_max_s=10))
    start_s = time.monotonic()
    for tenths in range(0, 100, 5):
        changes.event(ADDRESS, b"k", b"k", CLOSED, start_s + tenths / 10, 0)
        assert changes.take(1) == []
    changes.event(ADDRESS, b"k", b"k", CLOSED, start_s + 10, 0)
    (change,) = changes.take(1)
    assert change.since_s == start_s


def test_a_scan_does_not_hide_that_a_key_was_marked_before(watched: Watched) -> None:
    """Section 5, wait: a key counts from the earliest barrier before which a change of it was noticed."""
    changes = watched.changes
    changes.event(ADDRESS, b"k", b"k", CLOSED, time.monotonic(), 7)
    changes.add(ADDRESS, [b"k"], 3)
    assert changes.is_waiting(ADDRESS, 4)


def test_a_file_that_is_written_without_end_is_ready_during_a_wait() -> None:
    """Section 5, wait: such a file is inspected and named, not waited for."""
    changes = ChangeQueue(lambda: None, Capture(settle_ms=50, temporary_settle_s=2))
    now_s = time.monotonic()
    for key, since_s in ((b"log", now_s - 1), (b"log.tmp", now_s - 3), (b"new.tmp", now_s - 1)):
        changes.event(ADDRESS, key, key, WRITING, since_s, 0)
        changes.event(ADDRESS, key, key, WRITING, now_s, 0)
    assert changes.take(10) == []
    changes.flush_settling(ADDRESS)
    changes.event(ADDRESS, b"log", b"log", WRITING, now_s, 0)
    assert {change.key for change in changes.take(10)} == {b"log", b"log.tmp"}


def test_waiting_for_one_bucket_hurries_no_other() -> None:
    """Section 5, wait: files that settle in other buckets of the region keep their delay."""
    changes = ChangeQueue(lambda: None, Capture(settle_ms=50_000))
    for address in (ADDRESS, "east/other"):
        changes.event(address, b"k", b"k", CLOSED, time.monotonic(), 0)
    changes.flush_settling(ADDRESS)
    assert [change.address for change in changes.take(10)] == [ADDRESS]
    assert changes.is_queued("east/other", b"k")


def test_what_was_taken_and_not_looked_at_is_first_again() -> None:
    """G6, section 5: a key that is put back keeps its flags and its epoch, and may change meanwhile."""
    changes = ChangeQueue(lambda: None, Capture(settle_ms=50_000))
    changes.add(ADDRESS, [b"a", b"b", b"c"], 3)
    taken = changes.take(2)
    changes.event(ADDRESS, b"b", b"b", CLOSED, time.monotonic(), 5)
    changes.put_back(taken)
    assert changes.has_found(ADDRESS)
    assert changes.is_waiting(ADDRESS, 4, b"b")
    assert changes.take(10) == [taken[0], Change(ADDRESS, b"c", FOUND, 3, taken[0].since_s)]
    changes.flush_settling(ADDRESS)
    assert changes.take(10) == [taken[1]._replace(flags=FOUND | CLOSED)]
    assert not changes.has_found(ADDRESS)
