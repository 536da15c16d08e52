"""A receiver of deliveries: one thread with a mailbox, and a queue for each pair of a source and a destination.

A region of this machine takes deliveries into its trees (region.py), and does all other work in them besides. A region
that is an S3 service only takes deliveries (daemon/uplink.py): it has no trees, views or scans. Only the thread itself
changes its state. Work for another region is posted to it, and work that cannot be done now waits in a queue with the
time of its next try.
"""

from __future__ import annotations

import abc
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from fsrepl.errors import UNEXPECTED, FsreplError, Refused, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.region import delivery_queue
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.mailbox import (
    Acknowledged,
    Call,
    DropQueues,
    HandOverMore,
    Message,
    RebuildRecord,
    RetryNow,
    RetryNowFrom,
    StartOver,
    TakeMore,
    TakeOver,
    WakeBacklog,
    WithdrawMarkers,
)
from fsrepl.region.pulse import Pulse
from fsrepl.region.runtime import Runtime
from fsrepl.storage.fs import NO_SPACE
from fsrepl.storage.journal import database
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")

_PAUSE_MAX_S, _AWAKE_S = 1.0, 5.0
"""The longest pause of a thread that has worked lately, and how long ago that may be; later, see Runtime.rest_s."""
_ALIVE_S = 0.5
_ANSWER_S = 5.0
"""How long a caller waits for a region that hangs and has not begun the work."""
_BEGUN_S = 30.0
"""How long it waits once the work has begun: that may be one slow disk, and the work cannot be cancelled."""

_REBUILDS_MAX = 3
"""How often a version whose record cannot be read is tried, while the record is rebuilt."""

T = TypeVar("T")


class Sources(abc.ABC):
    """Where deliveries come from, and their outcomes go: a region that has sources."""

    pulse: Pulse

    @abc.abstractmethod
    def post(self, message: Message) -> None:
        """Queue a message for this region's thread. Called by other threads."""

    @abc.abstractmethod
    def receive(self, outcomes: Iterable[Outcome]) -> None:
        """Queue outcomes of deliveries from buckets here. Called by other threads."""


class Receiver(abc.ABC):
    """See the module. Other threads call only post and ask."""

    def __init__(self, engine: Runtime, name: str, sources: Mapping[str, Sources]) -> None:
        self.engine, self.name = engine, name
        self._sources = sources
        self.inbox: deque[Message] = deque()
        self.background_done: deque[Callable[[], None]] = deque()
        """Last steps of background work, to be run in this thread."""
        self.queues: dict[tuple[str, str], Queue] = {}
        self._wake = threading.Event()
        self.pulse = Pulse()
        """Whether the thread hangs, as observed by the daemon."""
        self.thread: threading.Thread | None = None
        self.stopping = False
        self.busy_since_s = self._busy_at_s = 0.0
        self.has_failed = False
        """Work that a caller asked for has failed once, perhaps between the store and the journal."""

    # -- the thread

    def turn(self) -> bool:
        """Run one step of each kind; whether there was anything to do. A journal that cannot be written now is waited
        for."""
        try:
            return self.take_turn()
        except sqlite3.Error as error:
            if not database.is_passing(error):
                raise
            self.begin_again(error)
            return False

    @abc.abstractmethod
    def take_turn(self) -> bool:
        """Run one step of each kind. Raises sqlite3.Error, also for a fault of the journal's disk that may pass."""

    @abc.abstractmethod
    def begin_again(self, error: sqlite3.Error) -> None:
        """Start over after the journal could not be written, later and later while that lasts."""

    @abc.abstractmethod
    def next_s(self) -> float | None:
        """The monotonic time of the next thing to do."""

    @abc.abstractmethod
    def last_turn(self) -> None:
        """Record finished work before stopping."""

    @abc.abstractmethod
    def has_looked(self) -> bool:
        """Whether every bucket is served, or away: see Attaching."""

    def start(self) -> None:
        self.thread = threading.Thread(target=self.run, name=f"region {self.name}", daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            self._wake.clear()
            self.busy_since_s = time.monotonic()
            self.engine.stir()
            try:
                with self.engine.run_lock.held():
                    busy = self.turn()
            except sqlite3.Error as error:
                if not database.is_damage(error):
                    raise
                self.engine.journal.note_damage(error)  # the daemon ends, and its next start makes the journal anew
                return
            except Exception:
                log.exception("set aside region=%s: an unexpected error in a step", self.name)
                busy = False
                self._wake.wait(1.0)
            self.busy_since_s = 0.0
            if busy:
                self._busy_at_s = time.monotonic()
            else:
                self._rest(self.next_s())
        self.last_turn()

    def _rest(self, due_s: float | None) -> None:
        """Wait for new work, until a moment at the latest."""
        now_s = time.monotonic()
        most_s = _PAUSE_MAX_S if now_s - self._busy_at_s < _AWAKE_S else self.engine.rest_s
        self._wake.wait(None if due_s is None else max(0.0, min(most_s, due_s - now_s)))

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
        answer: list[Future[T]] = [Future()]

        def run() -> None:
            if not answer[0].set_running_or_notify_cancel():
                return  # the caller has given up
            try:
                answer[0].set_result(what())
            except BaseException as error:
                answer[0].set_exception(error)
                self.has_failed |= not isinstance(error, Refused)
                if isinstance(error, sqlite3.Error) and database.is_passing(error):
                    raise  # the caller receives it, and the region starts again

        self.post(Call(run))
        since_s = time.monotonic()
        while not answer[0].done():
            waited_s = time.monotonic() - since_s
            if self.thread is not None and not self.thread.is_alive():
                raise Unavailable(f"region {self.name} has stopped")
            if timeout_s is not None and waited_s >= timeout_s:
                raise TimeoutError
            if timeout_s is None and self.pulse.is_stuck:
                _give_up(answer[0], self.name, waited_s)
            wait(answer, _ALIVE_S if timeout_s is None else min(timeout_s - waited_s, _ALIVE_S))
        try:
            return answer[0].result()
        finally:
            # An exception leads here by its traceback. It would be in a cycle, and what its frames hold open would stay
            # open until garbage is looked for.
            answer.clear()

    def read_inbox(self) -> bool:
        """Carry out posted messages; whether there were any."""
        busy = False
        while self.inbox:
            self.carry_out(self.inbox.popleft())
            busy = True
        return busy

    def carry_out(self, message: Message) -> None:
        """Carry out one message; here those about deliveries. Others are not for a thread without trees."""
        match message:
            case TakeOver(batch):
                queue = None
                for each in batch:
                    if queue is None or each.destination != queue.destination or each.source != queue.source:
                        queue = self.queue(each.source, each.destination)
                    queue.add(each)
            case TakeMore(source, destination, batch, last):
                self.queue(source, destination).add_page(batch, last, time.monotonic())
            case StartOver(source, destination):
                self.queue(source, destination).overflow.start_over()
            case Acknowledged(source, destination, batch):
                self.queue(source, destination).backlog.settled(batch)
            case WakeBacklog(source, destination, start_over):
                backlog = self.queue(source, destination).backlog
                backlog.start_over() if start_over else backlog.wake()
            case RetryNow(address):
                self.retry_now(address)
            case RetryNowFrom(region):
                self.retry_now_from(region)
            case DropQueues(source):
                for at in [at for at in self.queues if at[0] == source]:
                    self.queues.pop(at).backlog.close()
            case WithdrawMarkers(source):
                for queue in self.queues.values():
                    if queue.source == source:
                        queue.withdraw_markers()
            case Call(run):
                run()
            case _:
                pass

    def refill_queues(self) -> bool:
        """Ask for the deliveries that only the journal has, where a queue has room for them; whether any were."""
        now_s, busy = time.monotonic(), False
        for queue in self.queues.values():
            source = self._sources.get(region_of(queue.source))
            if source is not None and queue.wants_more_s() <= now_s:
                source.post(HandOverMore(queue.source, queue.destination, queue.overflow.ask()))
                busy = True
        return busy

    def is_stuck(self, address: str) -> bool:
        """Whether the region of a bucket hangs: a thread that accessed it would hang as well."""
        region = self._sources.get(region_of(address))
        return region is not None and region.pulse.is_stuck

    # -- background work

    def finish_background(self) -> bool:
        """Finish the results of background workers; whether there were any."""
        busy = False
        while self.background_done:
            self.background_done.popleft()()
            busy = True
        return busy

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

    def pace_queues(self, now_s: float) -> None:
        """Have each queue wait until the limit of bytes per second allows its next delivery."""
        limiter = self.engine.limiter
        for queue in self.queues.values():
            queue.paced_until_s = now_s + limiter.wait_s(queue.paid_at) if limiter.rate else 0.0

    def try_later(self, deliveries: Sequence[Delivery], why: str | Exception, *, whole: bool = False) -> None:
        """Put deliveries back with a growing, capped delay. whole: the destination cannot be reached at all."""
        queue = self.queue(deliveries[0].source, deliveries[0].destination)
        queue.lacks_room |= isinstance(why, OSError) and why.errno in NO_SPACE
        why = why if isinstance(why, str) else self.why_not(why)
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

    def set_aside(self, delivery: Delivery) -> None:
        """Try a delivery later that met an unexpected error, which the log then has. Called where it is caught."""
        log.exception('set aside bucket=%s key="%s": an unexpected error', delivery.source, keys.shown(delivery.key))
        self.try_later([delivery], UNEXPECTED)

    def why_not(self, error: Exception) -> str:
        """Reason why a write into this region failed, and what to do about it where that is known."""
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return f"region {self.name} has no room left ({reason(error)}): make room there; it goes on by itself"
        return reason(error)

    def report_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes of deliveries to the regions of their sources."""
        by_way: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in outcomes:
            by_way.setdefault((outcome.delivery.source, outcome.delivery.destination), []).append(outcome)
        for (source, destination), group in by_way.items():
            queue = self.queue(source, destination)
            queue.attempts, queue.blocked_why = 0, ""
            for outcome in group:
                queue.done(outcome.delivery)
            if (region := self._sources.get(region_of(source))) is not None:
                region.receive(group)

    def have_record_rebuilt(self, delivery: Delivery) -> bool:
        """Have the source's region rebuild the record of a delivery's version, which is lost or wrong; False where that
        was asked for often enough, and the delivery fails."""
        if self.queue(delivery.source, delivery.destination).attempts_of(delivery) >= _REBUILDS_MAX:
            return False
        if (region := self._sources.get(region_of(delivery.source))) is not None:
            region.post(RebuildRecord(delivery.source, delivery.key, delivery.id, delivery.marker))
        return True

    def retry_now(self, address: str) -> None:
        """Retry deliveries from or to a bucket, since it came back or its settings changed."""
        for queue in self.queues.values():
            if address in (queue.source, queue.destination):
                queue.retry_now()

    def retry_now_from(self, region: str) -> None:
        """Retry deliveries from a region that hung and moves again."""
        for queue in self.queues.values():
            if region_of(queue.source) == region:
                queue.retry_now()


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
