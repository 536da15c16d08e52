"""A destination that is away for long: its queue keeps some deliveries in memory, and the journal has the others."""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fsrepl.model.version import Status
from fsrepl.region import brake, deliveries, delivery_queue, overflow
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.outcome_queue import OutcomeQueue
from fsrepl.region.region import Region
from fsrepl.replicate import settle
from fsrepl.storage.journal import deliveries as journal_deliveries
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.deliveries import Deliveries
from fsrepl.storage.journal.rows import Delivery, Outcome
from tests.doubles import FaultyFs
from tests.world import DESTINATION, SOURCE, World, v2

LIVE_MAX, AGAIN_MAX, PAGE, FEW, UNRECORDED_MAX = 20, 6, 8, 3, 10
FILES = 75


@pytest.fixture
def world(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in which a handful of deliveries are many."""
    few = {"LIVE_MAX": LIVE_MAX, "PAGE": PAGE, "AGAIN_MAX": AGAIN_MAX, "FEW": FEW, "UNRECORDED_MAX": UNRECORDED_MAX}
    for name, number in few.items():
        monkeypatch.setattr(overflow, name, number)
        for module in (delivery_queue, deliveries):
            monkeypatch.setattr(module, name, number, raising=False)
    with World(memory / "world") as found:
        yield found


def replicated(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """How often a version of each key was replicated, as the log has it."""
    lines = (line for record in caplog.records for line in record.getMessage().splitlines())
    found = (re.match(r'replicated bucket=\S+ key="(.*?)"', line) for line in lines)
    return Counter(each[1] for each in found if each)


def write_while_away(world: World) -> None:
    world.away("west")
    for number in range(FILES):
        world.write(f"d{number % 7}/f{number}", b"%d" % number)
    world.settle()


def most(world: World) -> int:
    return max(len(queue.known) for region in world.engine.receivers.values() for queue in region.queues.values())


@pytest.mark.parametrize("restarted", [False, True])
def test_what_waits_for_a_region_that_is_away_is_in_the_journal(
    world: World, caplog: pytest.LogCaptureFixture, restarted: bool
) -> None:
    """G7, G11: memory has a limited part of it, before a restart and after one; all of it is delivered once."""
    write_while_away(world)
    assert most(world) == LIVE_MAX
    if restarted:
        world.restart()
        world.settle()
        assert most(world) == LIVE_MAX
    assert world.engine.journal.deliveries.count_pending(SOURCE, 1 << 62) == FILES
    caplog.set_level(logging.INFO, "fsrepl")
    world.back("west")
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert len(world.tree(DESTINATION)) == FILES
    assert world.statuses() == {"COMPLETED"}
    assert replicated(caplog) == dict.fromkeys(world.tree(SOURCE), 1)
    assert most(world) == 0


def test_new_files_do_not_wait_for_all_that_were_left_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """G5, G6: files come while the rest is handed over, and each is delivered, also one that was pending already."""
    write_while_away(world)
    world.back("west")
    caplog.set_level(logging.INFO, "fsrepl")
    for number in range(FILES):
        world.write(f"new/f{number}", b"new %d" % number)
        if number == FILES // 2:
            world.write("d0/f0", b"changed")
        world.look()
        for region in world.engine.regions.values():
            region.turn()
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert len(world.tree(DESTINATION)) == 2 * FILES
    assert world.statuses() == {"COMPLETED"}
    assert replicated(caplog) == dict.fromkeys(world.tree(SOURCE), 1) | {"d0/f0": 2}


def test_many_deliveries_that_fail_hold_up_no_other(world: World) -> None:
    """G6: more than may wait in memory fail, and those after them are delivered; once mended, all are."""
    fs = FaultyFs(b"bad", errno.EIO, "open_dir")
    world.restart(fs=fs)
    fs.mend()
    for number in range(30):
        world.write(f"bad/f{number:02}", b"bad")
    world.look()
    world.capture(SOURCE)
    for number in range(30):
        world.write(f"good/f{number:02}", b"good")
    world.capture(SOURCE)
    fs.number = errno.EIO
    for _ in range(4):
        world.flush_settling()
        world.engine.run_until_idle()
    good = {key for key in world.tree(DESTINATION) if key.startswith("good/")}
    assert len(good) == 30
    assert most(world) <= 2 * AGAIN_MAX
    fs.mend()
    for _ in range(3):
        world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert world.statuses() == {"COMPLETED"}


def test_deletions_that_are_held_are_not_handed_over_with_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The brake holds, although the journal has the markers among all that is pending; `ack` lets them cross."""
    monkeypatch.setattr(brake, "KEYS_MIN", 2)
    monkeypatch.setattr(brake, "BURST_KEYS", 0)
    monkeypatch.setattr(brake, "BURST_QUIET_S", 0.0)
    write_while_away(world)
    world.back("west")
    world.settle()
    world.away("west")
    for number in range(FILES - 5):
        world.unlink(f"d{number % 7}/f{number}")
    world.settle()
    assert world.path(".fsrepl/halt.json").exists()
    for number in range(FILES):
        world.write(f"later/f{number}", b"later")
    world.settle()
    world.restart()
    world.settle()
    world.back("west")
    world.settle()
    assert len(world.tree(DESTINATION)) == 2 * FILES
    world.run("bucket.ack", bucket=SOURCE)
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)


def test_a_start_reads_no_deletion_that_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded: a HALTED bucket may hold a million markers; what else is pending is found without them, and crosses."""
    monkeypatch.setattr(brake, "KEYS_MIN", 2)
    monkeypatch.setattr(brake, "BURST_KEYS", 0)
    monkeypatch.setattr(brake, "BURST_QUIET_S", 0.0)
    write_while_away(world)
    world.back("west")
    world.settle()
    for number in range(FILES - 5):
        world.unlink(f"d{number % 7}/f{number}")
    world.settle()
    assert world.path(".fsrepl/halt.json").exists()
    world.away("west")
    for number in range(FEW):
        world.write(f"later/f{number}", b"later")
    world.settle()
    read = []
    whole = journal_deliveries.delivery_in

    def delivery_in(connection: Connection, row: Sequence[Any]) -> Delivery:
        read.append(whole(connection, row))
        return read[-1]

    monkeypatch.setattr(journal_deliveries, "delivery_in", delivery_in)
    world.restart()
    world.back("west")
    world.settle()
    assert len(world.tree(DESTINATION)) == FILES + FEW
    assert not [each.key for each in read if each.marker]
    assert {each.key for each in read} == {b"later/f%d" % number for number in range(FEW)}


def test_what_no_rule_sends_any_more_fails_at_once_also_where_it_was_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """S3: a pending delivery of a rule that was removed is FAILED, while its destination is still away."""
    write_while_away(world)
    caplog.set_level(logging.WARNING, "fsrepl")
    world.run("replication.rm", source=SOURCE)
    world.settle()
    assert world.statuses() == {"FAILED"}
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert sum(line.startswith("failed bucket=") for line in lines) == FILES
    world.configure(v2(to=DESTINATION))
    world.run("retry", scope=SOURCE)
    world.settle()
    assert world.statuses() == {"PENDING"}
    assert most(world) <= LIVE_MAX + AGAIN_MAX
    world.back("west")
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert world.statuses() == {"COMPLETED"}


def test_a_region_that_hangs_is_sent_no_messages_that_pile_up(world: World) -> None:
    """Section 7: what it is to take over stays in the journal, and comes once it answers."""
    region = world.region(DESTINATION)
    region.pulse.is_stuck = True
    for number in range(FILES):
        world.write(f"f{number}", b"x")
    world.capture(SOURCE)
    assert not any(getattr(message, "deliveries", ()) for message in region.inbox)
    region.pulse.is_stuck = False
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)


def test_a_page_that_could_not_be_read_is_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: the journal's disk fails for a moment, just as the rest is to be handed over."""
    write_while_away(world)
    whole, faults = Deliveries.pending_after, [2]

    def pending_after(table: Deliveries, source: str, destination: str, after: Delivery | None, limit: int) -> Any:
        if limit == PAGE and faults[0]:
            faults[0] -= 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return whole(table, source, destination, after, limit)

    monkeypatch.setattr(Deliveries, "pending_after", pending_after)
    world.back("west")
    for _ in range(4):
        world.settle()
    assert not faults[0]
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert world.statuses() == {"COMPLETED"}


def test_a_destination_is_handed_no_more_than_its_source_can_record(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: outcomes wait in memory while their source's records cannot be written, and are limited in number; all of
    it is delivered and recorded once they can."""
    write_while_away(world)
    whole, is_broken = settle.settle, True

    def fails(region: Region, state: BucketState, outcomes: Sequence[Outcome]) -> None:
        if is_broken:
            raise OSError(errno.EROFS, "Read-only file system")
        whole(region, state, outcomes)

    monkeypatch.setattr(settle, "settle", fails)
    world.back("west")
    world.settle()
    outcomes = world.region(SOURCE).outcomes
    assert UNRECORDED_MAX < outcomes.count(SOURCE) <= UNRECORDED_MAX + LIVE_MAX + PAGE
    assert len(world.tree(DESTINATION)) < FILES
    is_broken = False
    outcomes.retry_late()
    for _ in range(3):
        world.settle()
    assert outcomes.count(SOURCE) == 0
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert world.statuses() == {"COMPLETED"}


@pytest.mark.parametrize(("waiting", "taken"), [(3, 3), (600, 512), (4_000, 1_000), (40_000, 4_096)])
def test_the_more_outcomes_wait_the_more_are_recorded_at_once(waiting: int, taken: int) -> None:
    """G11: five destinations report more than a fixed number a turn, and the queue would grow as long as they do."""
    queue = OutcomeQueue()
    delivery = Delivery(SOURCE, b"k", "01", DESTINATION, "r", "PENDING", "", 0, 0, False, "", 0)
    queue.add([Outcome(delivery, Status.COMPLETED, "", None)] * waiting)
    assert len(queue.take(0.0)) == taken
    assert queue.count(SOURCE) == waiting - taken
