"""The loop of one region: a thread that takes one step of each kind, in an order that is a guarantee.

turn() takes one step of each kind and says whether there was anything to do. The daemon runs it in
a thread; a single command or a test calls it. Within a region there are no races; work for another
region is sent there as a message. Work that cannot be done now waits in a queue with the time of its next try.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager

from fsrepl.capture import barrier, ingest, schedule
from fsrepl.daemon.attach import Attaching
from fsrepl.errors import BucketMissing, FsreplError
from fsrepl.lifecycle import run, tiers
from fsrepl.model.version import Versioning
from fsrepl.region import deliveries, halting
from fsrepl.region.bucket_state import BucketState, Damaged, Phase
from fsrepl.region.change_queue import FOUND, Change
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.mailbox import (
    DeliverAgain,
    Expect,
    ExpectNoMore,
    HandOverMore,
    LookAtDirectories,
    Message,
    Probe,
    RebuildRecord,
    Reconfigure,
    Requeue,
)
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region, TimeAt
from fsrepl.region.rotation import Rotation
from fsrepl.region.runtime import Runtime
from fsrepl.repair import refetch, scrub
from fsrepl.replicate import backfill, decide, deliver, early, sending, settle
from fsrepl.replicate.source import Source
from fsrepl.storage import tree_identity
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import following, labels, relinking, resting, stale

BATCH, _BATCH_MIN = 512, 64
_REQUEUED_S = 1.0
_JOURNAL_MAX_S, _JOURNAL_WELL_S = 15.0, 60.0
"""The longest wait for a journal that cannot be used; the time without a fault after which waits are short again."""
_FLUSH_S = 2.0
_FLUSH_TURNS_MAX = 2000
_FEW = 64
_WITHHELD_S = 0.1
"""How often deletions are looked at while the decision about them waits."""


log = logging.getLogger("fsrepl")


class Worker(Attaching):
    """The loop of one region. Other threads use its mailbox and its change queue only."""

    def __init__(
        self, engine: Runtime, name: str, regions: Mapping[str, Region], receivers: Mapping[str, Receiver]
    ) -> None:
        super().__init__(engine, name, regions, receivers)
        self._routes: Rotation[tuple[str, str]] = Rotation()
        self._journal_faults, self._journal_fault_at_s = 0, 0.0
        self._take_max = BATCH

    # -- the thread

    def begin_again(self, error: sqlite3.Error) -> None:
        """Start over after the journal could not be written, as on a full disk: current work may be recorded in part.

        So none of it is trusted. The buckets come up again, after a growing delay, from what trees and records
        say, and their pending deliveries are enqueued again.
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
        for state in self.states.values():
            self.suspend(state, Phase.SUSPENDED, why)
            state.attachment.wait(now_s + delay_s)
        for queue in self.queues.values():
            queue.backlog.close()
        self.queues.clear()
        self.outcomes.clear()
        self.pages_held.clear()
        for region in self.regions.values():
            region.post(Requeue())

    def last_turn(self) -> None:
        with contextlib.suppress(FsreplError, OSError, sqlite3.Error):
            refetch.repair_damaged(self)
            self.finish_background()
            settle.settle_due(self)
            for state in self.states.values():
                if state.is_up:
                    labels.label_views(self, state, time.monotonic(), everything=True)
                    self._record_skipped(state)
                    if not state.attachment.lacks_records:  # else all are read again at the next start
                        with state.bucket.open() as bucket:
                            tree_identity.sign(bucket, self.engine.journal)
            self.note_settled(at_once=True)

    def take_turn(self) -> bool:
        self.worked_for.clear()
        self.forget_notes()
        busy = self.read_inbox() | self.finish_background() | self.refill_queues()
        early.begin_due(self)
        now_s = time.monotonic()
        if now_s >= self.look_s():
            self.probe_buckets()
            self.note_settled()
        busy |= schedule.follow_events(self) | schedule.step(self)
        for step in (
            self._take,
            functools.partial(settle.settle_due, self),
            self._deliver,
            functools.partial(early.remove_due, self),
            functools.partial(stale.show_due, self),
            functools.partial(following.look_due, self),
            functools.partial(relinking.relink_due, self),
            functools.partial(resting.rest_due, self),
            functools.partial(refetch.fetch_due, self),
            self._backfill,
            functools.partial(run.step, self),
            functools.partial(tiers.step, self),
            functools.partial(scrub.step, self),
        ):
            busy |= step()
        busy |= self.compare_later(is_idle=not busy)
        self._label_views(busy=busy)
        return busy

    def carry_out(self, message: Message) -> None:
        match message:
            case LookAtDirectories(address, paths):
                following.note_all(self, address, paths)
            case Expect(destination, update):
                if (there := self.states.get(destination)) is not None:
                    early.expect(there, update)
            case ExpectNoMore(destination, update, is_published):
                if (there := self.states.get(destination)) is not None:
                    early.end(there, update, is_published=is_published)
            case HandOverMore(source, destination, after):
                deliveries.hand_over_more(self, source, destination, after)
            case DeliverAgain(source, destination, lost):
                deliveries.deliver_again(self, source, destination, lost)
            case RebuildRecord(address, key, version_id, marker):
                if (found := self.states.get(address)) is not None:
                    found.damaged.append(Damaged(address, key, version_id, marker))
            case Requeue():
                for state in self.states.values():
                    if state.is_up:
                        deliveries.enqueue_all(self, state)
            case Reconfigure():
                self.configure()
            case Probe():
                self.probe_now()
            case _:
                super().carry_out(message)

    def next_s(self) -> float | None:
        due = [self.look_s()]
        scans = any(
            (state.scans and not self.changes.is_full(address))
            or state.views.directories
            or (state.is_scanned and (state.attachment.uncompared or state.attachment.is_rereading))
            for address, state in self.states.items()
            if state.is_up
        )
        if self.inbox or self.background_done or scans:
            return 0.0
        if any(state.is_up for state in self.states.values()):
            change_s = self.changes.next_s()
            due += [] if change_s is None else [change_s]
        for state in self.states.values():
            if state.is_up and state.views.retries_blocked:
                return 0.0
            if state.is_up:  # else nothing is done for them, however long they are due
                due += [each.due_s for each in state.captures.deferred.values()]
                due += [each.due_s for each in state.views.stale.values()]
            if (labels := state.labels.next_s()) is not None:
                due.append(labels)
            if state.is_up and (rest_s := resting.next_s(state)) is not None:
                due.append(rest_s)
            if (early_s := early.next_s(state)) is not None:
                due.append(early_s)
            if state.withheld and state.is_up:
                due.append(time.monotonic() + _WITHHELD_S)
            if state.is_scanned and (fetch_s := refetch.next_s(state)) is not None:
                due.append(fetch_s)
            if (run_s := run.next_s(state)) is not None:
                due.append(run_s)
            if (move_s := tiers.next_s(state)) is not None:
                due.append(move_s)
            if state.is_up and (step_s := backfill.next_s(state)) is not None:
                due.append(step_s)
        due += [at] if (at := self.outcomes.next_s()) is not None else []
        due += [at for queue in self.queues.values() if (at := queue.next_s()) is not None]
        return min(due)

    def flush(self, address: str, named: Collection[bytes] = ()) -> BucketState:
        state = self.ready(address)
        if self.engine.watcher is None or not state.is_up:
            if state.is_up:
                schedule.begin(self, state)
                while state.scans:
                    if not schedule.step(self):
                        self._take()  # the queue is full
                self._take_all(state)
            return state
        barrier.pass_barrier(self, state, _FLUSH_S)
        self.look_at(address, named)
        self._take_all(state)
        return state

    def _take_all(self, state: BucketState) -> None:
        """Process directories, scans and changes, until none of the ready ones is left."""
        for _ in range(_FLUSH_TURNS_MAX):
            if not (schedule.follow_events(self) or schedule.step(self) or self._take()):
                return

    # -- captures

    def _take(self) -> bool:
        if not any(state.is_up for state in self.states.values()):
            return False
        with self.moving():
            busy = self._take_now(time.monotonic())
            self.changes.taken = []
        if busy:
            self.engine.notify()
        return busy

    def _take_now(self, now_s: float) -> bool:
        changes = self.changes.take(self._take_max)
        left_number = 0
        in_hand = {(change.address, change.key) for change in changes}  # a batch has a key once
        for address, state in self.states.items():
            for each in state.captures.deferred.values() if state.is_up else ():
                if each.due_s > now_s or (address, each.change.key) in in_hand:
                    continue
                if self.changes.is_queued(address, each.change.key):
                    each.due_s = now_s + _REQUEUED_S  # it changed again: its new change says when it is ready
                elif len(changes) < 2 * BATCH:
                    changes.append(each.change)
        by_bucket: dict[str, list[Change]] = {}
        for change in changes:
            by_bucket.setdefault(change.address, []).append(change)
        for address, group in by_bucket.items():
            state_ = self.states.get(address)
            if state_ is None or not state_.is_up:
                continue
            self.worked_for.add(address)
            with self.at_work(state_):
                with state_.bucket.open() as bucket:
                    self.follow_documents(state_, bucket)
                    left = ingest.take(self, state_, bucket, group)
                left = [change for change in left if (address, change.key) in in_hand]  # the others are still deferred
                self.changes.put_back(left)
                left_number += len(left)
                state_.attachment.note_success()
                halting.settle(self, state_)
        # Taking a key and putting it back costs a tenth of its capture: the next batch is what this one had time for,
        # or a little more.
        done = len(in_hand) - left_number
        most = BATCH if self.engine.stager is None else 2 * BATCH  # it reads a part of them while another one is judged
        self._take_max = min(most, max(_BATCH_MIN, done if left_number else self._take_max * 5 // 4))
        for state in self.states.values():
            if state.withheld and state.is_up:
                with self.at_work(state):
                    halting.settle(self, state)
            if state.scan_times.began_ns:
                self._note_scanned(state)
        return bool(changes)

    def _note_scanned(self, state: BucketState) -> None:
        """Record a scan once all that it found is recorded: later finds appeared after that scan began."""
        address = state.bucket.address
        in_hand = state.captures.copying or any(each.change.flags & FOUND for each in state.captures.deferred.values())
        if not in_hand and not self.changes.has_found(address):
            with self.engine.journal.transaction():
                self.engine.journal.set_scanned(address, state.scan_times.began_ns)
            state.scan_times.note_recorded()
            for queue in self.queues.values():
                if queue.destination == address:
                    queue.retry_now()  # deliveries that waited for the capture of a view

    def _label_views(self, *, busy: bool) -> None:
        """Label views last: while there is other work they wait, but not for long. A few labels in a bucket without
        other work do not wait for the work of others.
        """
        now_s = time.monotonic()
        for address, state in self.states.items():
            due_s = state.labels.next_s()
            if not state.is_up or due_s is None or now_s < due_s:
                continue
            is_quiet = address not in self.worked_for and len(state.labels) <= _FEW
            if not busy or is_quiet or state.labels.is_overdue(now_s):
                with self.at_work(state), contextlib.suppress(FsreplError):
                    labels.label_views(self, state, now_s)

    # -- deliveries

    def _deliver(self) -> bool:
        """Carry a batch of ready deliveries, shared between routes; backfill deliveries only to destinations with
        nothing live.
        """
        now_s = time.monotonic()
        limiter = self.engine.limiter
        self.pace_queues(now_s)
        ready = {at: queue.count_ready(now_s) for at, queue in self.queues.items()}
        for at, share in self._routes.shares(ready, BATCH, now_s).items():
            if (queue_ := self.queues.get(at)) and (deliveries := queue_.take(share, now_s, limiter.batch_bytes)):
                self._carry(queue_, deliveries)
        served = {destination for (_, destination), number in ready.items() if number}
        busy = bool(served)
        for queue in list(self.queues.values()):
            if queue.destination not in served and (deliveries := self._backlog(queue, now_s)):
                self._carry(queue, deliveries)
                busy = True
        return busy

    def _backfill(self) -> bool:
        busy = False
        for state in self.states.values():
            if state.is_up and (state.backfills.jobs or state.backfills.orphaned):
                with self.at_work(state):
                    busy |= backfill.step(self, state)
        return busy

    def _backlog(self, queue: Queue, now_s: float) -> list[Delivery]:
        read = functools.partial(self.engine.journal.backlog.read, queue.source, queue.destination)
        return queue.take_backlog(read, self.engine.background_bytes, now_s, self.engine.limiter.batch_bytes)

    def _carry(self, queue: Queue, deliveries: Sequence[Delivery]) -> None:
        state = self.states.get(queue.destination)
        if state is None and queue.destination in self.engine.site.buckets:
            self.try_later(deliveries, "the destination is not up yet", whole=True)
        elif state is None:
            deliver.settle_all(self, deliveries, decide.decide(decide.Facts(destination_known=False)))
        elif not state.is_up and state.bucket.versioning is not Versioning.OFF:
            self._bucket_trouble(state, deliveries)
        else:
            with self.at_work(state):
                deliver.carry(self, state, deliveries, self.open_source)
                queue.paid_at = self.engine.limiter.position
                return
            self.try_later(deliveries, state.why, whole=True)

    def open_source(self, address: str, destination: OpenBucket) -> AbstractContextManager[Source]:
        """See source.Opener: here a bucket of the site."""
        return sending.opened(self.engine, address, destination)

    def has_sources(self, address: str) -> bool:
        return bool(self.engine.site.sources_of(address))

    def source_times(self, address: str) -> AbstractContextManager[TimeAt]:
        return resting.times_here(self.engine.site, address)

    def _bucket_trouble(self, state: BucketState, deliveries: Sequence[Delivery]) -> None:
        try:
            with state.bucket.open():
                self._probe_at_s, self._is_changed = 0.0, True
            self.try_later(deliveries, "the destination is coming up", whole=True)
        except BucketMissing:
            deliver.settle_all(self, deliveries, decide.decide(decide.Facts(destination_missing=True)))
        except FsreplError as error:
            self.try_later(deliveries, str(error), whole=True)
