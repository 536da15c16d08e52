"""The loop of one region: a thread that takes one step of each kind, in an order that is a guarantee.

turn() takes one step of each kind and says whether there was anything to do; the daemon runs it in
a thread, a single command or a test calls it. Within a region nothing races; what concerns another
region is sent there. What cannot be done now waits in a queue with the time of its next try.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Mapping, Sequence

from fsrepl.capture import barrier, ingest, schedule
from fsrepl.daemon.attach import PROBE_S, Attaching
from fsrepl.errors import BucketMissing, FsreplError
from fsrepl.lifecycle import run
from fsrepl.model.version import Versioning
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import Place
from fsrepl.region.change_queue import FOUND, Mark
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.mailbox import (
    Acknowledged,
    Call,
    DropQueues,
    Kick,
    KickFrom,
    LookAtDirectories,
    Message,
    Probe,
    Reconfigure,
    Requeue,
    TakeOver,
    WakeBacklog,
)
from fsrepl.region.region import Region
from fsrepl.region.rotation import Rotation
from fsrepl.region.runtime import Runtime
from fsrepl.repair import reconcile, refetch
from fsrepl.replicate import backfill, decide, deliver, settle
from fsrepl.storage.journal import database
from fsrepl.storage.journal.rows import Owed
from fsrepl.views import following, labels, stale

BATCH = 512
_MARKED_S = 1.0
_JOURNAL_MAX_S, _JOURNAL_WELL_S = 15.0, 60.0
"""The longest wait for a journal that cannot be used; after how long without a fault waits are short again."""
_FLUSH_S = 2.0
_FLUSH_TURNS_MAX = 2000
_FEW = 64


log = logging.getLogger("fsrepl")


class Worker(Attaching):
    """See the module. Other threads use its mailbox and its change queue only."""

    def __init__(self, engine: Runtime, name: str, regions: Mapping[str, Region]) -> None:
        super().__init__(engine, name, regions)
        self.stopping = False
        self.busy_since_s = 0.0
        self._ways: Rotation[tuple[str, str]] = Rotation()
        self._journal_faults, self._journal_fault_at_s = 0, 0.0

    # -- the thread

    def start(self) -> None:
        self.thread = threading.Thread(target=self.run, name=f"region {self.name}", daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            self._wake.clear()
            self.busy_since_s = time.monotonic()
            try:
                with self.engine.turns.take():
                    busy = self.turn()
            except sqlite3.Error:
                raise
            except Exception:
                log.exception("set aside region=%s: a step that nobody foresaw to fail", self.name)
                busy = False
                self._wake.wait(1.0)
            self.busy_since_s = 0.0
            if not busy:
                due = self.next_s()
                self._wake.wait(None if due is None else max(0.0, min(PROBE_S, due - time.monotonic())))
        self.last_turn()

    def _begin_again(self, error: sqlite3.Error) -> None:
        """The journal could not be written, its disk being full perhaps: what was in hand may be recorded in part.

        So nothing of it is believed. The buckets come up again, after a growing delay, with what trees and records
        say, and what was owed is asked for again.
        """
        now_s = time.monotonic()
        if now_s - self._journal_fault_at_s > _JOURNAL_WELL_S:
            self._journal_faults = 0
        delay_s = min(_JOURNAL_MAX_S, 2.0**self._journal_faults / 4)
        self._journal_fault_at_s = now_s
        self._journal_faults += 1
        why = f"the journal {self.engine.journal.path} cannot be used: {error}"
        level = logging.WARNING if self._journal_faults == 1 else logging.DEBUG
        log.log(level, "waiting region=%s seconds=%.1f: %s", self.name, delay_s, why)
        for place in self.places.values():
            self.suspend(place)
            place.put_down = why
            place.up_again_at_s = now_s + delay_s
        for queue in self.queues.values():
            queue.backlog.close()
        self.queues.clear()
        self.words.clear()
        for region in self.regions.values():
            region.post(Requeue())

    def last_turn(self) -> None:
        """Before stopping: write down what is already true."""
        with contextlib.suppress(FsreplError, OSError, sqlite3.Error):
            refetch.repair_damaged(self)
            self._finish_lanes()
            settle.settle_due(self)
            for place in self.places.values():
                if place.up:
                    labels.mark_views(self, place, time.monotonic(), everything=True)
                    self._record_skipped(place)
                    with place.bucket.open() as bucket:
                        reconcile.sign(bucket, self.engine.journal)

    def turn(self) -> bool:
        """A step of each kind; whether there was anything to do."""
        try:
            return self._turn()
        except sqlite3.Error as error:
            if not database.is_passing(error):
                raise
            self._begin_again(error)
            return False

    def _turn(self) -> bool:
        self.worked_for.clear()
        busy = self.read_inbox() | self._finish_lanes()
        now_s = time.monotonic()
        if now_s >= self._probe_at_s:
            self.look_around()
        busy |= schedule.follow_events(self) | schedule.step(self)
        for step in (
            self._take,
            functools.partial(settle.settle_due, self),
            self._deliver,
            functools.partial(stale.show_due, self),
            functools.partial(following.look_due, self),
            functools.partial(refetch.fetch_due, self),
            self._backfill,
            functools.partial(run.step, self),
        ):
            busy |= step()
        self._mark_views(busy=busy)
        return busy

    def read_inbox(self) -> bool:
        """Carry out what was posted; whether there was anything."""
        busy = False
        while self.inbox:
            self._carry_out(self.inbox.popleft())
            busy = True
        return busy

    def _carry_out(self, message: Message) -> None:
        match message:
            case TakeOver(owed):
                for each in owed:
                    self.queue(each.source, each.destination).add(each)
            case Acknowledged(source, destination, owed):
                self.queue(source, destination).backlog.settled(owed)
            case WakeBacklog(source, destination, start_over):
                backlog = self.queue(source, destination).backlog
                backlog.start_over() if start_over else backlog.wake()
            case LookAtDirectories(address, paths):
                following.note_all(self, address, paths)
            case Kick(address):
                self.kick(address)
            case KickFrom(region):
                self.kick_from(region)
            case DropQueues(source):
                for at in [at for at in self.queues if at[0] == source]:
                    self.queues.pop(at).backlog.close()
            case Requeue():
                for place in self.places.values():
                    if place.up:
                        deliveries.owe_all(self, place)
            case Reconfigure():
                self.configure()
            case Probe():
                self.probe_now()
            case Call(run):
                run()

    def _finish_lanes(self) -> bool:
        """Go on with what lanes have done; whether there was anything."""
        busy = False
        while self.done_in_lanes:
            self.done_in_lanes.popleft()()
            busy = True
        return busy

    def next_s(self) -> float | None:
        """The monotonic time of the next thing to do."""
        due = [self._probe_at_s]
        scans = any(place.scans or place.directories for place in self.places.values() if place.up)
        if self.inbox or self.done_in_lanes or scans:
            return 0.0
        if any(place.up for place in self.places.values()):
            marked = self.marks.next_s()
            due += [] if marked is None else [marked]
        for place in self.places.values():
            if place.up and place.way_is_free:
                return 0.0
            due += [each.due_s for each in place.later.values()] + [each.due_s for each in place.held.values()]
            if (unmarked := place.unmarked.next_s()) is not None:
                due.append(unmarked)
            if place.scanned and (fetch_s := refetch.next_s(place)) is not None:
                due.append(fetch_s)
            if place.up and (step_s := backfill.next_s(place)) is not None:
                due.append(step_s)
        due += [at] if (at := self.words.next_s()) is not None else []
        due += [at for queue in self.queues.values() if (at := queue.next_s()) is not None]
        return min(due)

    def flush(self, address: str, named: Collection[bytes] = ()) -> Place:
        place = self.ready(address)
        if self.engine.watcher is None or not place.up:
            if place.up:
                schedule.begin(self, place)
                while place.scans:
                    schedule.step(self)
                self._take_all(place)
            return place
        barrier.pass_barrier(self, place, _FLUSH_S)
        self.look_at(address, named)
        self._take_all(place)
        return place

    def _take_all(self, place: Place) -> None:
        """Directories, scans and marks, until none of what is ready is left."""
        for _ in range(_FLUSH_TURNS_MAX):
            if not (schedule.follow_events(self) or schedule.step(self) or self._take()):
                return

    # -- captures

    def _take(self) -> bool:
        if not any(place.up for place in self.places.values()):
            return False
        with self.moving():
            busy = self._take_now(time.monotonic())
            self.marks.taken = []
        if busy:
            self.engine.notify()
        return busy

    def _take_now(self, now_s: float) -> bool:
        marks = self.marks.take(BATCH)
        in_hand = {(mark.address, mark.key) for mark in marks}  # a key is in a batch once
        for address, place in self.places.items():
            for each in place.later.values() if place.up else ():
                if each.due_s > now_s or (address, each.mark.key) in in_hand:
                    continue
                if self.marks.is_marked(address, each.mark.key):
                    each.due_s = now_s + _MARKED_S  # it changed again: its mark will say when it is ready
                elif len(marks) < 2 * BATCH:
                    marks.append(each.mark)
        by_bucket: dict[str, list[Mark]] = {}
        for mark in marks:
            by_bucket.setdefault(mark.address, []).append(mark)
        for address, group in by_bucket.items():
            place_ = self.places.get(address)
            if place_ is None or not place_.up:
                continue
            self.worked_for.add(address)
            with self.at_work(place_):
                with place_.bucket.open() as bucket:
                    self.follow_documents(place_, bucket)
                    left = ingest.take(self, place_, bucket, group)
                self.marks.put_back(mark for mark in left if (address, mark.key) in in_hand)  # the others wait still
                place_.stumbles = 0
        for place in self.places.values():
            if place.looked_ns:
                self._note_scanned(place)
        return bool(marks)

    def _note_scanned(self, place: Place) -> None:
        """Once all that a scan found is recorded: what is found from now on appeared after that scan began."""
        address = place.bucket.address
        in_hand = place.lanes or any(each.mark.flags & FOUND for each in place.later.values())
        if not in_hand and not self.marks.has_found(address):
            with self.engine.journal.transaction():
                self.engine.journal.set_scanned(address, place.looked_ns)
            place.looked_ns = 0
            for queue in self.queues.values():
                if queue.destination == address:
                    queue.kick()  # what waited for a look at its view

    def _mark_views(self, *, busy: bool) -> None:
        """Views are told last: while there is other work they wait, but not for long. The few of a bucket in which
        nothing else was done do not wait for the work of others.
        """
        now_s = time.monotonic()
        for address, place in self.places.items():
            due_s = place.unmarked.next_s()
            if not place.up or due_s is None or now_s < due_s:
                continue
            is_quiet = address not in self.worked_for and len(place.unmarked) <= _FEW
            if not busy or is_quiet or place.unmarked.is_overdue(now_s):
                with self.at_work(place), contextlib.suppress(FsreplError):
                    labels.mark_views(self, place, now_s)

    # -- deliveries

    def _deliver(self) -> bool:
        """A batch of what is ready, in turns between ways; a portion of what backfills owe, to destinations with
        nothing live.
        """
        now_s = time.monotonic()
        limiter = self.engine.limiter
        for queue in self.queues.values():
            queue.paced_until_s = now_s + limiter.wait_s(queue.paid_at) if limiter.rate else 0.0
        ready = {at: queue.count_ready(now_s) for at, queue in self.queues.items()}
        for at, share in self._ways.shares(ready, BATCH, now_s).items():
            if (queue_ := self.queues.get(at)) and (owed := queue_.take(share, now_s, limiter.batch_bytes)):
                self._carry(queue_, owed)
        served = {destination for (_, destination), number in ready.items() if number}
        busy = bool(served)
        for queue in list(self.queues.values()):
            if queue.destination not in served and (owed := self._backlog(queue, now_s)):
                self._carry(queue, owed)
                busy = True
        return busy

    def _backfill(self) -> bool:
        busy = False
        for place in self.places.values():
            if place.up and (place.jobs or place.lapsed):
                with self.at_work(place):
                    busy |= backfill.step(self, place)
        return busy

    def _backlog(self, queue: Queue, now_s: float) -> list[Owed]:
        read = functools.partial(self.engine.journal.backlog.read, queue.source, queue.destination)
        return queue.take_backlog(read, self.engine.lane_bytes, now_s, self.engine.limiter.batch_bytes)

    def _carry(self, queue: Queue, owed: Sequence[Owed]) -> None:
        place = self.places.get(queue.destination)
        if place is None and queue.destination in self.engine.site.buckets:
            self.try_later(owed, "the destination is not up yet", whole=True)
        elif place is None:
            deliver.settle_all(self, owed, decide.decide(decide.Facts(destination_known=False)))
        elif not place.up and place.bucket.versioning is not Versioning.OFF:
            self._bucket_trouble(place, owed)
        else:
            with self.at_work(place):
                deliver.carry(self, place, owed)
                queue.paid_at = self.engine.limiter.mark
                return
            self.try_later(owed, place.put_down, whole=True)

    def _bucket_trouble(self, place: Place, owed: Sequence[Owed]) -> None:
        try:
            with place.bucket.open():
                self._probe_at_s = 0.0
            self.try_later(owed, "the destination is coming up", whole=True)
        except BucketMissing:
            deliver.settle_all(self, owed, decide.decide(decide.Facts(destination_missing=True)))
        except FsreplError as error:
            self.try_later(owed, str(error), whole=True)
