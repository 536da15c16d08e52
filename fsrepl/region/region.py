"""One region's state: queues, buckets, messages.

Only the region's own thread changes its state, so that nothing races within a region. Work for another region is
posted to it. Work that cannot be done now waits in a queue with the time of its next try. The loop that runs it is
daemon/worker.py.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from fsrepl.errors import UNFORESEEN, FsreplError, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Version
from fsrepl.region import change_queue, delivery_queue, outcome_queue
from fsrepl.region.bucket_state import BucketState, Deferred, Phase
from fsrepl.region.change_queue import CHANGED, FOUND, Change, ChangeQueue
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.mailbox import Call, Message
from fsrepl.region.pulse import Pulse
from fsrepl.region.runtime import Runtime
from fsrepl.region.scan_queue import Scans, Trouble
from fsrepl.storage import sharing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_SPACE
from fsrepl.storage.journal import database
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")

_ALIVE_S = 0.5
_ANSWER_S = 5.0
"""How long a caller waits for a region that hangs and has not begun the work."""
_BEGUN_S = 30.0
"""And once it has begun: that may be one slow disk, and the work cannot be cancelled."""
_FAILED_MAX_S = 60.0

T = TypeVar("T")


class Region(abc.ABC):
    """See the module. Other threads call only post, ask, receive, look_at and changes."""

    def __init__(self, engine: Runtime, name: str, regions: Mapping[str, Region]) -> None:
        self.engine, self.name = engine, name
        self.regions = regions
        """All regions of the site, by name, to post messages to."""
        self.inbox: deque[Message] = deque()
        self.background_done: deque[Callable[[], None]] = deque()
        """Last steps of background work, to be run in this thread."""
        self.outcomes = outcome_queue.OutcomeQueue()
        self.states: dict[str, BucketState] = {}
        self.queues: dict[tuple[str, str], Queue] = {}
        self._wake = threading.Event()
        self._probe_at_s = 0.0
        self.worked_for: set[str] = set()
        """Buckets with a capture or a settled delivery in this pass of the loop."""
        self.moves = 0
        """Number of times that keys began, or ended, to move from one queue to the next."""
        self.pulse = Pulse()
        """Whether the region's thread hangs, as observed by the daemon."""
        self.thread: threading.Thread | None = None
        self.changes = ChangeQueue(self.wake, engine.settings.capture)
        if engine.watcher is not None:
            engine.watcher.listen(name, self.changes)
        self.configure()

    def configure(self) -> None:
        """Apply the current settings."""
        capture_settings = self.engine.settings.capture
        self.writer_wait = change_queue.WriterWait(
            capture_settings.open_quiet_s,
            capture_settings.open_max_s,
            self.engine.settings.replication.large_file_bytes,
            self.changes.is_temporary,
        )

    # -- the loop's services for a step (daemon/worker.py)

    @abc.abstractmethod
    def ready(self, address: str) -> BucketState:
        """A bucket of this region, ready for work. Raises FsreplError where it is away."""

    @abc.abstractmethod
    def flush(self, address: str, named: Collection[bytes] = ()) -> BucketState:
        """Capture every file that was finished in a bucket before now. Runs in this region's thread.

        named: keys that are captured in any case: a write through another name of their files makes no event.
        """

    @abc.abstractmethod
    def recall(self, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
        """The recoverable part of a version here whose record cannot be read; None where too little is known."""

    # -- messages

    def wake(self) -> None:
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Let other regions' threads run for a moment; any new work ends the pause."""
        with self.engine.run_lock.released():
            self._wake.wait(seconds)
        self._wake.clear()

    def post(self, message: Message) -> None:
        """Queue a message for this region's thread."""
        self.inbox.append(message)
        self.wake()

    def ask(self, what: Callable[[], T], timeout_s: float | None = None) -> T:
        """Run a function in this region's thread, between its batches; its result, or its exception.

        Raises Unavailable where the region stopped first, or hangs; TimeoutError. A busy region is waited for without a
        limit. Work that had not begun when the region hung is not done later either.
        """
        if not self.engine.threaded:
            return what()
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # the caller has given up
            try:
                future.set_result(what())
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, sqlite3.Error) and database.is_passing(error):
                    raise  # the caller receives it, and the region starts again

        self.post(Call(run))
        since_s = time.monotonic()
        while not future.done():
            waited_s = time.monotonic() - since_s
            if self.thread is not None and not self.thread.is_alive():
                raise Unavailable(f"region {self.name} has stopped")
            if timeout_s is not None and waited_s >= timeout_s:
                raise TimeoutError
            if timeout_s is None and self.pulse.is_stuck:
                _give_up(future, self.name, waited_s)
            wait([future], _ALIVE_S if timeout_s is None else min(timeout_s - waited_s, _ALIVE_S))
        return future.result()

    def is_stuck(self, address: str) -> bool:
        """Whether the region of a bucket hangs: a thread that accessed it would hang as well."""
        region = self.regions.get(region_of(address))
        return region is not None and region.pulse.is_stuck

    # -- buckets

    def suspend(self, state: BucketState, phase: Phase, why: str) -> None:
        """Make a bucket AWAY or SUSPENDED and drop its queues. Nothing is lost: a scan follows when it is back."""
        state.unsettled |= self._is_unsettled(state)
        state.phase, state.why = phase, why
        state.scan_began_ns = 0
        state.scans = Scans()
        state.deferred.clear()
        state.labels.clear()
        state.unreadable.clear()
        state.unapplied.clear()  # an intent has the same views
        state.set_aside.clear()
        state.undelivered.clear()
        state.directories.clear()
        state.faults.clear()
        state.trouble = Trouble()
        self.changes.forget(state.bucket.address)
        if self.engine.watcher is not None:
            self.engine.watcher.forget(state.bucket.address)
        self.engine.notify()

    def _is_unsettled(self, state: BucketState) -> bool:
        """Whether a bucket holds a user's write that is not captured yet. Into the others only the daemon writes."""
        address = state.bucket.address
        if not sharing.receives_writes(state.bucket):
            return False
        waits = state.scans or state.copying or any(not later.opened for later in state.deferred.values())
        unread = state.unreadable or state.trouble.unreadable
        arrived = any(event.address == address for event in list(self.changes.directories))
        return bool(waits or unread) or arrived or self.changes.has_news(address)

    def probe_now(self) -> None:
        self._probe_at_s = 0.0

    def look_at(self, address: str, found: Collection[bytes]) -> None:
        """Have keys captured whose files may differ from their record without an event. Any thread may call it."""
        self.changes.add(address, found, self.engine.epoch, FOUND | CHANGED)  # no scan finds other names of their files
        self.wake()

    # -- captures

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Around every move of keys between queues, so that a barrier knows whether it has seen all of them."""
        self.moves += 1
        try:
            yield
        finally:
            self.moves += 1

    def defer(self, state: BucketState, change: Change, after_s: float, why: str, *, opened: bool = False) -> None:
        if (known := state.deferred.get(change.key)) is not None:
            change = change._replace(epoch=min(change.epoch, known.change.epoch))
        state.deferred[change.key] = Deferred(time.monotonic() + after_s, change, why, opened, self.engine.epoch)

    @contextlib.contextmanager
    def at_work(self, state: BucketState) -> Iterator[None]:
        """Suspend this bucket, and no other, after an error that concerns all of it, or in the midst of a batch.

        The bucket comes up again after a growing delay, and is scanned, which finds the part of the batch that is done.
        """
        try:
            yield
        except sqlite3.Error:
            raise
        except Exception as error:
            if isinstance(error, (FsreplError, OSError)):
                why = reason(error)
                log.warning("suspended bucket=%s: %s", state.bucket.address, why)
            else:
                why = UNFORESEEN
                log.exception("suspended bucket=%s: unexpected error", state.bucket.address)
                state.captures_singly = state.delivers_singly = True
            self.suspend(state, Phase.SUSPENDED, why)
            state.failures = min(state.failures + 1, 10)
            state.up_again_at_s = time.monotonic() + min(_FAILED_MAX_S, 2.0**state.failures / 4)

    def in_background(
        self, work: Callable[[], object], finish: Callable[..., None], *, pool: Sequence[str], whose: Hashable,
        size_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Run work in a background worker; its result, or its exception, is passed to finish in this thread.

        pool: the workers, see Runtime.workers. whose: the owners that take turns. size_bytes: see Workers.
        """

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                if not isinstance(error, (FsreplError, OSError, sqlite3.Error)):
                    log.exception("set aside: unexpected error in a background worker")
                result = error
            self.background_done.append(lambda: finish(result))
            self.wake()

        if self.engine.threaded:
            self.engine.workers(*pool).submit(whose, run, size_bytes)
        else:
            run()

    # -- deliveries

    def queue(self, source: str, destination: str) -> Queue:
        at = (source, destination)
        if at not in self.queues:
            regions = region_of(source), self.name
            self.queues[at] = Queue(*at, self.engine.backfill_slots(*regions))
        return self.queues[at]

    def try_later(self, deliveries: Sequence[Delivery], why: str | Exception, *, whole: bool = False) -> None:
        """Put deliveries back with a growing, capped delay. whole: the destination cannot be reached at all."""
        why = why if isinstance(why, str) else self.why_not(why)
        queue = self.queue(deliveries[0].source, deliveries[0].destination)
        now_s, cap_s = time.monotonic(), self.engine.settings.replication.retry_max_s
        if whole:
            self.engine.recent.forget_data()
            queue.attempts += 1
            queue.put_back(deliveries, now_s + delivery_queue.retry_delay_s(queue.attempts, cap_s), why)
            return
        for each in deliveries:
            attempts = queue.attempts_of(each)
            queue.put_off(each, now_s + delivery_queue.retry_delay_s(attempts + 1, cap_s), why)
            level = logging.WARNING if attempts == 4 else logging.DEBUG
            log.log(
                level, 'not yet bucket=%s key="%s" to=%s attempts=%d: %s',
                each.source, keys.shown(each.key), each.destination, attempts + 1, why,
            )  # fmt: skip

    def why_not(self, error: Exception) -> str:
        """Reason why a write into this region failed, and what to do about it where that is known."""
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return f"region {self.name} has no room left ({reason(error)}): make room there; it goes on by itself"
        return reason(error)

    def report_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes of deliveries to the regions of their sources."""
        by_region: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            queue = self.queue(outcome.delivery.source, outcome.delivery.destination)
            queue.done(outcome.delivery)
            queue.attempts, queue.blocked_why = 0, ""
            by_region.setdefault(region_of(outcome.delivery.source), []).append(outcome)
        for name, group in by_region.items():
            region = self.regions.get(name)
            if region is not None:
                region.receive(group)

    def receive(self, outcomes: Iterable[Outcome]) -> None:
        """Queue outcomes of deliveries from buckets here. Called by other threads."""
        self.outcomes.add(outcomes)
        self.wake()


def _give_up(future: Future[T], region: str, waited_s: float) -> None:
    """Raises Unavailable after the longest wait for a region that hangs; the message says whether work had begun."""
    if waited_s >= _ANSWER_S and future.cancel():
        raise Unavailable(
            f"region {region} does not answer (no answer in {_ANSWER_S:g} s); nothing was done; try again once it does"
        )
    if waited_s >= _BEGUN_S and not future.done():
        raise Unavailable(
            f"region {region} does not answer (no answer in {_BEGUN_S:g} s); "
            "the work had begun: its outcome will be known once it does"
        )
