"""When a bucket is scanned, and what a barrier waits for."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.capture import schedule
from fsrepl.capture.barrier import pass_barrier, watch_barrier
from fsrepl.capture.watch import NoWatches
from fsrepl.region.change_queue import ARRIVED, GONE, DirectoryEvent
from fsrepl.region.scan_queue import Scan, Scans
from tests.doubles import DeafWatcher, FailingFs
from tests.world import DESTINATION, SOURCE, World

# -- which scan is next


def test_live_changes_do_not_wait_for_a_whole_bucket() -> None:
    """G6: a new directory is scanned before the rest of a scan of the whole bucket, which is then finished."""
    scans = Scans()
    whole, part = Scan(SOURCE), Scan(SOURCE, b"d", True)
    scans.add(whole)
    assert scans.next() is whole
    scans.add(part)
    assert scans.next() is part
    scans.done(part)
    assert scans.next() is whole
    scans.done(whole)
    assert scans.next() is None
    assert not scans


def test_one_scan_serves_all_that_asked_before_it_began() -> None:
    """P1, P29: several losses and events of one directory lead to one scan, of the earliest of their epochs."""
    scans = Scans()
    for epoch in (5, 3, 4):
        scans.add(Scan(SOURCE, b"d", True, epoch))
    scans.add(Scan(SOURCE, b"e", True, 2))
    scans.add(Scan(SOURCE, epoch=6))
    scans.add(Scan(SOURCE, b"f", True, 1))
    first = scans.next()
    assert first is not None
    assert (first.top, first.epoch) == (b"", 1)
    scans.done(first)
    assert not scans


def test_what_is_added_during_a_scan_is_another_pass() -> None:
    """P1: losses during a scan lead to one more scan, and never stop the running one."""
    scans = Scans()
    first, again = Scan(SOURCE, epoch=1), Scan(SOURCE, epoch=2)
    scans.add(first)
    assert scans.next() is first
    scans.add(again)
    assert scans.next() is first
    assert scans.is_pending(2)
    scans.done(first)
    assert not scans.is_pending(2)
    assert scans.next() is again
    assert scans.is_pending(3)


def test_the_highest_of_some_directories() -> None:
    """P3: where many directories have no watch, none is scanned twice a round."""
    assert schedule.highest([b"a/b", b"a", b"a-b", b"a/b/c", b"x/y", b"a-b/c"]) == [b"a", b"a-b", b"x/y"]
    assert schedule.highest([b"z", b""]) == [b""]
    assert schedule.highest([]) == []


class _Recording(DeafWatcher):
    """Notes what is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.watching: set[tuple[str, bytes]] = set()

    def watch(self, address: str, path: bytes, fd: int) -> None:
        self.watching.add((address, path))


def test_known_directories_are_watched_before_the_first_scan(memory: Path) -> None:
    """Section 7: after a start a new file waits for no comparison of all others. One that is gone is left out."""
    with World(memory) as world:
        for key in ("k", "d/e/k", "gone/k"):
            world.write(key, b"one")
        world.settle()
        world.restart()
        shutil.rmtree(world.path("gone"))
        watcher = world.engine.watcher = _Recording()
        world.region().probe_buckets()
        assert world.state().scans, "no scan has begun"
        assert {path for address, path in watcher.watching if address == SOURCE} == {b"", b"d/e"}
        assert world.region().has_looked(), "the daemon is not ready while it compares"
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"one", "d/e/k": b"one"}


def test_a_bucket_that_was_never_scanned_is_ready_once_it_is(memory: Path) -> None:
    """Without a journal no directory is known, so that nothing is watched yet."""
    with World(memory) as world:
        world.write("d/k", b"one")
        world.settle()
        world.restart(without_journal=True)
        world.engine.watcher = _Recording()
        world.region().probe_buckets()
        assert not world.region().has_looked()
        world.settle()
        assert world.region().has_looked()


# -- a world without watches


@pytest.fixture
def blind(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        world.engine.watcher = NoWatches()
        world.settle()
        yield world


def barrier(world: World) -> int:
    epoch = pass_barrier(world.region(), world.state(), 1.0)
    assert epoch > 0
    return epoch


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_barrier_needs_no_room_on_the_disk(tmp_path: Path, number: int) -> None:
    """G7: where not even the sentinel can be created, `wait` waits for a scan, and needs no room to tell the truth."""
    fs = FailingFs(1 << 60, number)
    with World(tmp_path, fs=fs) as world:
        world.engine.watcher = DeafWatcher()
        world.write("k", b"one")
        world.settle()
        with world.state().bucket.open() as bucket:
            watch_barrier(world.region(), world.state(), bucket)
        assert not world.state().scans
        fs.calls_left, fs.for_ever = 0, True
        epoch = barrier(world)
        assert fs.failed
        assert [path for path in held_open() if path.endswith("/barrier")] == []  # nor does it keep the disk mounted
        assert world.state().scans.is_pending(epoch)
        settle_scans(world)
        assert not world.state().scans.is_pending(epoch)


def held_open() -> list[str]:
    """The paths of this process's descriptors."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def settle_scans(world: World) -> None:
    while schedule.step(world.region()):
        pass


def test_a_directory_that_comes_after_the_last_watch_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """G11: at once, and not at the next scan of the whole bucket; once, however many follow."""
    with World(tmp_path) as world:
        world.settle()
        assert "not watched" not in caplog.text
        world.engine.watcher = NoWatches()
        for name in ("d", "e"):
            world.write(f"{name}/k", b"one")
            schedule.begin(world.region(), world.state(), name.encode())
            settle_scans(world)
            assert caplog.text.count(f"not watched bucket={SOURCE} directories=1: ") == 1


def test_without_watches_every_directory_is_polled(blind: World) -> None:
    """P3, section 2: status names the polled directories, and a round finds all changes of files and directories."""
    blind.write("d/e/k", b"one")
    blind.settle()
    assert blind.state().trouble.polled == {b"", b"d", b"d/e"}
    blind.write("d/e/k", b"two")
    blind.write("n/m", b"m")
    schedule.poll(blind.region(), blind.state())
    blind.engine.run_until_idle()
    blind.flush_settling()
    blind.engine.run_until_idle()
    assert blind.tree(DESTINATION) == {"d/e/k": b"two", "n/m": b"m"}
    shutil.rmtree(blind.path("d"))
    schedule.poll(blind.region(), blind.state())
    blind.engine.run_until_idle()
    assert blind.tree(DESTINATION) == {"n/m": b"m"}
    assert blind.state().trouble.polled == {b"", b"n"}


def test_without_a_watch_for_the_sentinel_a_barrier_looks_instead(blind: World) -> None:
    """Section 5, wait: the barrier still holds: the scan that it waits for finds everything from before it."""
    blind.write("k", b"k")
    epoch = barrier(blind)
    state, changes = blind.state(), blind.region().changes
    assert state.scans.is_pending(epoch)
    blind.write("later", b"after the barrier")
    settle_scans(blind)
    assert not state.scans.is_pending(epoch)
    assert changes.is_waiting(SOURCE, epoch, b"k")


def test_what_was_lost_before_a_barrier_is_waited_for(blind: World) -> None:
    """Section 5, wait: events lost before the sentinel was read belong to its epoch, however late their scan begins."""
    region, state = blind.region(), blind.state()
    assert blind.engine.watcher is not None
    region.changes.lose(blind.engine.epoch)
    epoch = blind.engine.watcher.begin_epoch()
    assert region.changes.is_lost(SOURCE, epoch)
    schedule.follow_events(region)
    assert not region.changes.is_lost(SOURCE, epoch)
    assert state.scans.is_pending(epoch)


def test_a_directory_that_came_before_a_barrier_is_waited_for(blind: World) -> None:
    """Section 5, wait: also where its scan is part of a scan of the whole bucket that was queued after the barrier."""
    region, state = blind.region(), blind.state()
    assert blind.engine.watcher is not None
    region.changes.directories.append(DirectoryEvent(SOURCE, b"d", ARRIVED, blind.engine.epoch))
    region.changes.directories.append(DirectoryEvent(SOURCE, b"e", GONE, blind.engine.epoch))
    epoch = blind.engine.watcher.begin_epoch()
    schedule.begin(region, state)
    assert not state.scans.is_pending(epoch)
    schedule.follow_events(region)
    assert not region.changes.directories
    assert state.scans.is_pending(epoch)


# -- directories that cannot be looked into


def test_trouble_is_known_until_a_scan_knows_better(blind: World) -> None:
    """G11: an unreadable directory is reported until a scan reaches it again; one that is gone is not."""
    for directory in ("a", "b", "b/c"):
        blind.path(directory).mkdir()
        blind.path(f"{directory}/link").symlink_to("x")
    blind.settle()
    trouble = blind.state().trouble
    assert trouble.skipped_number == 3
    shutil.rmtree(blind.path("b"))
    schedule.begin(blind.region(), blind.state())
    assert trouble.skipped_number == 3
    blind.settle()
    assert trouble.skipped_number == 1
    assert trouble.polled == {b"", b"a"}


# -- files that a program has open


def test_a_barrier_looks_again_at_what_was_open(blind: World) -> None:
    """Section 5, wait: a file closed through another name makes no event; `wait` does not report it as open."""
    with blind.path("k").open("wb") as file:
        file.write(b"k")
        file.flush()
        blind.settle()
        later = blind.state().captures.deferred[b"k"]
        assert later.opened
        epoch = barrier(blind)
        assert (later.looked, later.due_s) == (epoch - 1, 0.0)
    blind.engine.run_until_idle()
    assert blind.tree(DESTINATION) == {"k": b"k"}
