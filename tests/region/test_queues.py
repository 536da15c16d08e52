"""The order of deliveries: live ones at once, those of backfills in portions and rounds. No disk, and no clock."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from fsrepl.region import delivery_queue
from fsrepl.region.delivery_queue import Queue
from fsrepl.storage.journal.rows import Delivery

LARGE = 1 << 30


def delivery(number: int, *, job: str = "J", size: int = 1) -> Delivery:
    return Delivery(
        "east/src", b"%d" % number, f"V{number}", "west/dst", "r", "PENDING", "", number, size, False, job, 0
    )


class Table:
    """A backlog as the journal has it: pending rows, in order."""

    def __init__(self, *rows: Delivery) -> None:
        self.rows = list(rows)
        self.read_from: list[int] = []

    def read(self, after: Delivery | None, limit: int) -> list[Delivery]:
        self.read_from.append(after.created_ns if after else 0)
        return [row for row in self.rows if after is None or row.created_ns > after.created_ns][:limit]


@pytest.fixture
def copying() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(2)


@pytest.fixture
def queue(copying: threading.BoundedSemaphore) -> Queue:
    found = Queue("east/src", "west/dst", copying)
    found.backlog.wake()
    return found


def numbers(rows: Sequence[Delivery]) -> list[int]:
    return [row.created_ns for row in rows]


def settle(queue: Queue, table: Table, rows: Sequence[Delivery]) -> None:
    """The destination reports these outcomes, and their source records them."""
    for row in rows:
        queue.done(row)
        table.rows.remove(row)
    queue.backlog.settled(rows)


def test_a_portion_at_a_time_in_order(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a portion is in memory, by number and by bytes; a delivery larger than that is sent alone."""
    monkeypatch.setattr(delivery_queue, "PORTION", 3)
    monkeypatch.setattr(delivery_queue, "PORTION_BYTES", 10)
    table = Table(*(delivery(n, size={5: 9, 6: 2, 7: 50}.get(n, 1)) for n in range(1, 9)))
    taken = []
    while rows := queue.take_backlog(table.read, LARGE, 0.0):
        taken.append(numbers(rows))
        settle(queue, table, rows)
    assert taken == [[1, 2, 3], [4, 5], [6], [7], [8]]
    assert queue.next_s() is None


def test_a_delivery_whose_outcome_is_not_recorded_yet_is_not_taken_twice(queue: Queue) -> None:
    """A round begins again while outcomes are still to be recorded: the journal still calls those deliveries
    pending."""
    table = Table(delivery(1), delivery(2))
    first = queue.take_backlog(table.read, LARGE, 0.0)
    for row in first:
        queue.done(row)
    table.rows.append(delivery(3))
    queue.backlog.wake()
    assert numbers(queue.take_backlog(table.read, LARGE, 0.0)) == [3]
    queue.backlog.settled(first)
    assert numbers(queue.take_backlog(table.read, LARGE, 0.0)) == [1, 2], "it is owed again, and was only passed over"


def test_rows_added_before_the_reader_are_read_in_the_next_round(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rows that were there before."""
    monkeypatch.setattr(delivery_queue, "PORTION", 2)
    table = Table(*map(delivery, (10, 20, 30, 40)))
    rows = queue.take_backlog(table.read, LARGE, 0.0)
    settle(queue, table, rows)
    table.rows.insert(0, delivery(5))
    queue.backlog.wake()
    taken = []
    while rows := queue.take_backlog(table.read, LARGE, 0.0):
        taken += numbers(rows)
        settle(queue, table, rows)
    assert taken == [30, 40, 5]


def test_a_delivery_that_failed_for_now_is_skipped_until_it_is_due(queue: Queue) -> None:
    """It delays no other, and is tried again by itself, or at once after a request."""
    table = Table(*map(delivery, (1, 2, 3)))
    rows = queue.take_backlog(table.read, LARGE, 0.0)
    queue.put_off(rows[0], 60.0, "no space")
    settle(queue, table, rows[1:])
    assert queue.notes == {(b"1", "V1"): (60.0, "no space", 1)}
    assert queue.take_backlog(table.read, LARGE, 1.0) == []
    assert queue.next_s() == 60.0
    (again,) = queue.take_backlog(table.read, LARGE, 60.0)
    queue.put_off(again, 120.0, "no space")
    assert queue.attempts_of(again) == 2
    queue.retry_now()
    assert numbers(queue.take_backlog(table.read, LARGE, 61.0)) == [1]


def test_new_deliveries_do_not_wait_for_retries(queue: Queue) -> None:
    """Four thousand deliveries are retried or due again; meanwhile a new one is sent."""
    for n in range(4_000):
        queue.add(replace(delivery(n, job=""), since_ns=10**18))
    taken = queue.take(64, 0.0)
    new = delivery(10_001, job="")
    queue.add(new)
    while new not in taken:
        assert len(taken) < 100
        taken += queue.take(64, 0.0)
    for each in taken:
        queue.put_off(each, 5.0, "no space")
    queue.retry_now()
    queue.give_back(queue.take(512, 0.0))
    newer = delivery(10_002, job="")
    queue.add(newer)
    assert newer in queue.take(8, 0.0)
    assert len(queue.take(20_000, 0.0)) == 3_994


def test_a_destination_that_is_away_gets_no_deliveries(queue: Queue) -> None:
    """Live deliveries stay in memory, in order; the backlog stays in the journal."""
    table = Table(*map(delivery, (1, 2)))
    live = [delivery(n, job="") for n in (7, 8)]
    for each in live:
        queue.add(each)
    assert queue.take(10, 0.0) == live
    rows = queue.take_backlog(table.read, LARGE, 0.0)
    queue.put_back(live, 30.0, "away")
    queue.put_back(rows, 30.0, "away")
    assert queue.take(10, 29.0) == queue.take_backlog(table.read, LARGE, 29.0) == []
    assert (queue.next_s(), list(queue.ready)) == (30.0, live)
    assert queue.take(10, 30.0) == live
    assert queue.take_backlog(table.read, LARGE, 30.0) == rows


def test_large_backfills_leave_workers_to_live_traffic(queue: Queue, copying: threading.BoundedSemaphore) -> None:
    """Only some at a time; the next follows as soon as one is done, and none is lost when the destination goes away."""
    table = Table(*(delivery(n, size=100) for n in (1, 2, 3, 4)))
    rows = queue.take_backlog(table.read, 100, 0.0)
    assert numbers(rows) == [1, 2]
    assert queue.take_backlog(table.read, 100, 0.0) == []
    assert (queue.next_s() or 0) > 0, "it waits for a worker, and does not spin"
    settle(queue, table, rows[:1])
    assert numbers(queue.take_backlog(table.read, 100, 0.0)) == [3]
    queue.backlog.close()
    assert all(copying.acquire(blocking=False) for _ in range(2))


def test_after_an_outage_of_the_source_it_starts_over(queue: Queue) -> None:
    """The outcomes of these were not recorded: the queue of outcomes was lost with the outage."""
    table = Table(delivery(1))
    (row,) = queue.take_backlog(table.read, LARGE, 0.0)
    queue.done(row)
    queue.backlog.wake()
    assert queue.take_backlog(table.read, LARGE, 0.0) == []
    queue.backlog.start_over()
    assert queue.take_backlog(table.read, LARGE, 0.0) == [row]


def test_a_million_faults_take_no_memory(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are remembered; the others are tried again with the next of those."""
    monkeypatch.setattr(delivery_queue, "_NOTES_MAX", 2)
    table = Table(*map(delivery, range(1, 6)))
    for row in queue.take_backlog(table.read, LARGE, 0.0):
        queue.put_off(row, 10.0, "no")
    assert len(queue.notes) == 2
    assert queue.next_s() == 10.0
    assert numbers(queue.take_backlog(table.read, LARGE, 10.0)) == [1, 2, 3, 4, 5]
