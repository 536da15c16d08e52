"""A disk fails, or the daemon is killed, during a delivery: the version arrives, once, and nothing else changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.model.version import Status
from tests.doubles import FailingFs, UnsyncedFs
from tests.world import DESTINATION, SOURCE, World, worlds


@pytest.mark.slow
@pytest.mark.parametrize(("number", "for_ever"), [(errno.EIO, False), (errno.EROFS, True)], ids=["once", "read-only"])
def test_a_disk_that_fails_at_any_change(memory: Path, number: int, for_ever: bool) -> None:
    """G3, G6, G7: once the disk works again, both sides agree, and the destination has no version or marker of its
    own."""
    for calls, world in worlds(memory):
        world.write("k", b"1")
        world.write("gone", b"1")
        world.settle()
        world.away("west")
        for data in (b"2", b"3"):
            world.write("k", data)
            world.settle()
        world.unlink("gone")
        world.write("new", b"1")
        world.settle()
        world.back("west")
        fs = FailingFs(1 << 60, number)
        world.restart(fs=fs)
        world.look()
        fs.calls_left, fs.for_ever = calls, for_ever
        world.engine.run_until_idle()
        failed = fs.failed
        fs.mend()
        for _ in range(3):
            world.settle()
            world.flush_settling()
            world.engine.run_until_idle()
        assert world.ids(DESTINATION) == world.ids(SOURCE), calls
        assert world.tree(DESTINATION) == world.tree(SOURCE) == {"k": b"3", "new": b"1"}, calls
        assert world.statuses() == {"COMPLETED"}, calls
        assert world.statuses(DESTINATION) == {"REPLICA"}, calls
        if not failed:
            return


@pytest.mark.parametrize("batch", ["", "01K0000000000000000000000A"])
def test_a_delivery_that_only_the_journal_calls_pending_is_not_sent_again(tmp_path: Path, batch: str) -> None:
    """G7, G11: the process was killed after the record was written and before the journal was: nothing is sent or
    reported again."""
    with World(tmp_path) as world:
        world.write("k", b"1")
        world.settle()
        with world.engine.journal.transaction():
            version = world.current("k")
            pending = replace(version.deliveries[DESTINATION], status=Status.PENDING, job=batch)
            world.engine.journal.deliveries.put(SOURCE, replace(version, deliveries={DESTINATION: pending}))
        world.restart()
        world.settle()
        (delivery,) = world.engine.journal.deliveries.select(SOURCE)
        assert (delivery.status, delivery.job) == ("COMPLETED", "")
        assert world.statuses() == {"COMPLETED"}


@pytest.mark.parametrize("act", ["update", "remove", "edit"])
@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_a_replica_that_arrives_before_the_first_scan_is_no_users_write(tmp_path: Path, act: str, sharing: str) -> None:
    """G6, G7: without a journal no view is known yet, and the new view is not taken for a user's file."""
    with World(tmp_path) as world:
        if sharing != "auto":
            world.set_sharing(west=sharing)
        world.write("k", b"1")
        world.settle()
        world.away("west")
        if act == "update":
            world.write("k", b"2")
        elif act == "remove":
            world.unlink("k")
        else:
            world.path("k").chmod(0o600)
        world.settle()
        world.back("west")
        world.restart(without_journal=True)
        source, destination = world.region(SOURCE), world.region(DESTINATION)
        source.probe_buckets()
        destination.probe_buckets()
        destination.read_inbox()
        assert destination._deliver()
        for _ in range(2):
            world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert world.ids(DESTINATION) == world.ids(SOURCE)
        if act == "edit":
            assert world.path("k", DESTINATION).stat().st_mode & 0o777 == 0o600
        assert world.leftovers(DESTINATION) == []


class FullFs(UnsyncedFs):
    """No file can be made while there is no room. tries: how often that was tried."""

    def __init__(self) -> None:
        self.is_full, self.free, self.tries = False, (1 << 30, 1 << 20), 0

    def create(self, at: int, name: bytes) -> int:
        if self.is_full:
            self.tries += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(at, name)

    def room(self, fd: int) -> tuple[int, int]:
        return self.free


def _after_many_tries(world: World, fs: FullFs) -> None:
    """A delivery that has met a full disk so often that it is tried again after a quarter of a minute at the least."""
    world.restart(fs=fs)
    world.settle()
    world.write("k", b"data")
    world.capture(SOURCE)
    fs.is_full = True
    for _ in range(5):
        world.flush_settling()
        world.engine.run_until_idle()
    assert fs.tries >= 5
    fs.tries = 0


def _probe(world: World) -> None:
    """What the daemon does each second."""
    world.region(DESTINATION).probe_buckets()
    world.engine.run_until_idle()


@pytest.mark.parametrize("full", [(0, 1 << 20), (1 << 30, 0)], ids=["bytes", "inodes"])
def test_a_delivery_goes_on_as_soon_as_there_is_room(memory: Path, full: tuple[int, int]) -> None:
    """G7: not once its delay is over, which grows to minutes while the disk is full."""
    fs = FullFs()
    with World(memory) as world:
        _after_many_tries(world, fs)
        fs.free = full
        _probe(world)
        assert fs.tries == 0
        fs.is_full, fs.free = False, (1 << 20, 1 << 20)
        _probe(world)
        assert world.tree(DESTINATION) == {"k": b"data"}
        assert world.statuses() == {Status.COMPLETED}


def test_what_does_not_fit_although_there_is_room_waits_for_its_time(memory: Path) -> None:
    """A quota is full, or the object is larger than what is free: it is tried once more, and then when there is twice
    as much room."""
    fs = FullFs()
    with World(memory) as world:
        _after_many_tries(world, fs)
        for _ in range(3):
            _probe(world)
        assert fs.tries == 1
        fs.is_full, fs.free = False, (3 << 30, 1 << 20)
        _probe(world)
        assert world.tree(DESTINATION) == {"k": b"data"}
