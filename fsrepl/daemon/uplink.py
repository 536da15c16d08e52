"""The loop of a region that is an S3 service: it takes deliveries, and has many requests under way at once.

The thread itself never waits for the service. Workers make the deliveries (replicate/remote.py), one at a time for a
key, and this thread records their outcomes, a batch at a time. A worker takes a single delivery, or some small
ones while more wait than may be under way at once. A bucket is looked at at the start, and where it is new before its
first delivery: whether it is there, keeps versions, and whether the service compares checksums.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from fsrepl.daemon.service_bucket import Look, ServiceBucket, ServicePhase, describe_refusal
from fsrepl.errors import FsreplError, reason
from fsrepl.model.address import region_of
from fsrepl.model.version import Status, Versioning
from fsrepl.region import limits
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region
from fsrepl.region.rotation import Rotation
from fsrepl.region.runtime import PUTS, Runtime
from fsrepl.region.window import Window
from fsrepl.remote.failures import Absent, ServiceBusy
from fsrepl.remote.form import name_of
from fsrepl.remote.service import versioning_there
from fsrepl.replicate import decide, remote
from fsrepl.replicate.deliver import settle_all
from fsrepl.replicate.remote import Done, Task
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")

_SHARE_MAX = 8
"""The most small deliveries that a worker carries one after the other, so that thread and source change less often."""
_SHARE_BYTES = 1 << 20
"""The most content of these."""
_LOOK_AGAIN_S = 60.0
"""The age at which a bucket is looked at again: its versioning may have been suspended, and it may have been
removed."""
_LOOK_MIN_S = 1.0
_BEGIN_S = 0.5
"""How soon it is looked again whether the sources are read."""
_REFUSED_MAX = 4096
"""How many deliveries fail after one look."""
_JOURNAL_S = 1.0
"""The wait for a journal that cannot be used."""

T = TypeVar("T")


class Uplink(Receiver):
    """See the module. Other threads use its mailbox only."""

    def __init__(self, engine: Runtime, name: str, regions: Mapping[str, Region]) -> None:
        super().__init__(engine, name, regions)
        self.regions = regions
        self.states: dict[str, ServiceBucket] = {}
        self._routes: Rotation[tuple[str, str]] = Rotation()
        self._service = engine.site.services[name]
        self._under_way = self._bytes_under_way = 0
        self._done: list[Done] = []
        self._window = Window()
        self._has_begun = False
        """Whether the buckets that rules name were looked at."""
        self._faulty_until_s = 0.0

    # -- the loop

    def take_turn(self) -> bool:
        busy = self.read_inbox() | self.finish_background() | self.refill_queues()
        if time.monotonic() < self._faulty_until_s:
            return busy
        self._look_at_all()
        return self._record() | self._deliver() | busy

    def begin_again(self, error: sqlite3.Error) -> None:
        """Wait after the journal could not be written: outcomes to be recorded, and deliveries to begin, are kept until
        then."""
        log.warning("waiting region=%s: the journal %s cannot be used: %s", self.name, self.engine.journal.path, error)
        self._faulty_until_s = time.monotonic() + _JOURNAL_S

    def next_s(self) -> float | None:
        if self.inbox or self.background_done:
            return 0.0
        if self._done:
            return self._faulty_until_s
        if self._is_full:
            return None  # a result wakes the thread
        due = [
            max(at, self._ready_at_s(queue.destination))
            for queue in self.queues.values()
            if (at := queue.next_s()) is not None
        ]
        looks = [state.looked_at_s + _LOOK_AGAIN_S for state in self.states.values() if state.is_away]
        due += looks if self._has_begun else [time.monotonic() + _BEGIN_S]
        return max(min(due), self._faulty_until_s) if due else None

    def _look_at_all(self) -> None:
        """Look at the buckets that rules name once their sources are read, and again now and then where one is away:
        what `status` says of them holds without a delivery, and the first one need not wait."""
        if not self._has_begun and all(region.has_looked() for region in self.regions.values()):
            self._has_begun = True
            for address in self.engine.site.destinations_in(self.name):
                self._is_ready(address)
        for state in list(self.states.values()):
            if state.is_away and time.monotonic() - state.looked_at_s > _LOOK_AGAIN_S:
                self._look_again(state)

    def _look_again(self, state: ServiceBucket) -> None:
        if state.bucket.address in self.engine.site.destinations_in(self.name):
            self._look(state)
        else:
            state.phase, state.why = ServicePhase.UNKNOWN, ""  # of no concern any more

    def _ready_at_s(self, address: str) -> float:
        """The monotonic time from which deliveries to a bucket may begin, or it is looked at again."""
        state = self._state(address)
        if state.looks:
            return time.monotonic() + _LOOK_MIN_S  # the result wakes the thread
        return 0.0 if state.phase is ServicePhase.ONLINE else state.looked_at_s + _LOOK_MIN_S

    def last_turn(self) -> None:
        with contextlib.suppress(FsreplError, OSError, sqlite3.Error):
            self.finish_background()
            self._record()

    def has_looked(self) -> bool:
        return True  # nothing is scanned

    @property
    def _puts(self) -> int:
        return self._service.settings.puts

    @property
    def _free(self) -> int:
        """How many more workers may be given deliveries now. Each has one request under way."""
        return self._window.most(self._puts) - self._under_way

    def throttled(self) -> str:
        """See ServiceBucket. Read by other threads."""
        return self._window.describe(self._puts, time.monotonic())

    @property
    def _is_full(self) -> bool:
        """Whether as much is under way as may be: of requests, and under a limit of bytes."""
        return self._free <= 0 or self._bytes_under_way >= self.engine.limiter.batch_bytes

    # -- buckets

    def _state(self, address: str) -> ServiceBucket:
        # a service that has left the site is used until this thread ends
        service = self._service = self.engine.site.services.get(self.name, self._service)
        state = self.states.get(address)
        if state is None:
            state = self.states[address] = ServiceBucket(service.bucket(address), throttled=self.throttled)
        elif state.bucket.client is not service.client:  # its settings have changed
            state.bucket, state.phase, state.is_believed = service.bucket(address), ServicePhase.UNKNOWN, None
        return state

    def _is_ready(self, address: str) -> bool:
        """Whether a bucket can take deliveries; it is looked at where that is not known, or was long ago."""
        state, now_s = self._state(address), time.monotonic()
        age_s = now_s - state.looked_at_s
        if not state.looks and (
            age_s > _LOOK_AGAIN_S or (state.phase is not ServicePhase.ONLINE and age_s > _LOOK_MIN_S)
        ):
            self._look(state)
        return state.phase is ServicePhase.ONLINE and not state.looks

    def _look(self, state: ServiceBucket) -> None:
        state.looks = True
        address, known = state.bucket.address, state.is_believed
        journal = self.engine.journal
        if state.trusted_ns is None and journal.knows(address) and (text := journal.tree(address)):
            state.trusted_ns = int(text)
        is_new = state.trusted_ns is None

        def look() -> Look:
            bucket = state.bucket
            versioning = versioning_there(bucket)
            if versioning is not Versioning.ENABLED:
                return Look(versioning, False, False)
            believed = known
            if believed is None:
                read_back = bucket.client.settings.checksums == "read-back"
                believed = not read_back and bucket.refuses_wrong_sums()
            return Look(versioning, believed, is_new and bucket.is_empty())

        self._in_background(look, functools.partial(self._looked, state), address)

    def _looked(self, state: ServiceBucket, found: Look | Exception) -> None:
        state.looks, state.looked_at_s = False, time.monotonic()
        address, before = state.bucket.address, state.phase
        if isinstance(found, ServiceBusy) and before is ServicePhase.ONLINE:
            pass  # what was known of it holds; deliveries find out how busy the service is
        elif isinstance(found, Exception):
            state.phase, state.why = ServicePhase.AWAY, reason(found)
            if before is not ServicePhase.AWAY:
                log.warning("offline bucket=%s: %s", address, state.why)
            self._wait_for_service(address, state.why)
        elif found.versioning is not Versioning.ENABLED or state.gives_no_ids:
            state.phase, state.why = ServicePhase.REFUSED, describe_refusal(address, found.versioning)
            if before is not ServicePhase.REFUSED:
                log.warning("refused bucket=%s: %s", address, state.why)
            self._refuse(address, found.versioning if found.versioning is not Versioning.ENABLED else Versioning.OFF)
            state.without_id = min(state.without_id, 1)  # the next look has one version sent
        else:
            state.phase, state.why, state.is_believed = ServicePhase.ONLINE, "", found.is_believed
            if state.trusted_ns is None:
                self._trust(state, 0 if found.is_empty else self.engine.site.now())
            self._abort_left_over(state)
            if before is not ServicePhase.ONLINE:
                log.info("online bucket=%s reads_back=%s", address, "no" if found.is_believed else "yes")
                self.retry_now(address)
        self.engine.notify()

    def _trust(self, state: ServiceBucket, from_ns: int) -> None:
        """Believe the journal about all versions that are created from now on."""
        journal, address = self.engine.journal, state.bucket.address
        with journal.transaction():
            journal.bucket_id(address)
            journal.remote.forget_listed(address)
            journal.set_tree(address, str(from_ns))
        state.trusted_ns = from_ns

    def _abort_left_over(self, state: ServiceBucket) -> None:
        """Abort the uploads in parts of versions that are not to be sent any more: their parts are charged for."""
        journal, bucket = self.engine.journal, state.bucket
        rows = [r for r in journal.remote.uploads(bucket.address) if r.key not in state.under_way]
        left = [row for row in rows if not journal.deliveries.is_wanted(bucket.address, row.key, row.id)]

        def abort() -> None:
            for row in left:
                with contextlib.suppress(Absent):
                    bucket.abort_upload(name_of(row.key, bucket.prefix), row.upload)

        def finish(result: Exception | None) -> None:
            if isinstance(result, Exception):
                log.warning("not aborted bucket=%s uploads=%d: %s", bucket.address, len(left), reason(result))
                return
            with journal.transaction():
                journal.remote.remove(bucket.address, left)
            log.info("aborted bucket=%s uploads=%d: their versions are not to be sent", bucket.address, len(left))

        if left:
            self._in_background(abort, finish, bucket.address)

    def _wait_for_service(self, address: str, why: str) -> None:
        for queue in self.queues.values():
            if queue.destination == address:
                self._put_back(queue, [], why)

    def _put_back(self, queue: Queue, deliveries: Sequence[Delivery], why: str) -> None:
        """Wait before the next try of all deliveries to a bucket. Those that failed together count once."""
        now_s = time.monotonic()
        if now_s < queue.blocked_until_s:
            queue.put_back(deliveries, queue.blocked_until_s, why)
        elif deliveries:
            self.try_later(deliveries, why, whole=True)
        elif taken := self._next_of(queue, now_s):
            self.try_later(taken, why, whole=True)

    def _next_of(self, queue: Queue, now_s: float) -> list[Delivery]:
        return queue.take(1, now_s) or queue.take_backlog(self._reader(queue), self.engine.background_bytes, now_s)

    def _refuse(self, address: str, versioning: Versioning | None) -> None:
        """Fail the deliveries that are ready for a bucket that is missing or keeps no versions."""
        facts = decide.Facts(
            destination_missing=versioning is None, destination_versioning=versioning or Versioning.OFF
        )
        now_s, number = time.monotonic(), 0
        for queue in self.queues.values():
            while queue.destination == address and number < _REFUSED_MAX and (taken := self._next_of(queue, now_s)):
                settle_all(self, taken, decide.decide(facts))
                number += len(taken)

    # -- deliveries

    def _deliver(self) -> bool:
        """Begin deliveries that are ready, as many as may be under way; whether there were any."""
        now_s, limiter = time.monotonic(), self.engine.limiter
        self.pace_queues(now_s)
        due = {at: queue for at, queue in self.queues.items() if (at_s := queue.next_s()) is not None and at_s <= now_s}
        ready = {at: queue for at, queue in due.items() if self._is_ready(queue.destination)}
        free, busy = self._free, False
        if self._is_full:
            return False
        waiting = {at: queue.count_ready(now_s) for at, queue in ready.items()}
        for at, share in self._routes.shares(waiting, free * _SHARE_MAX, now_s).items():
            if free > 0 and (taken := ready[at].take(share, now_s, limiter.batch_bytes)):
                free -= self._begin(ready[at], taken, free)
                busy = True
        for at, queue in ready.items():
            if free > 0 and not waiting[at]:
                taken = queue.take_backlog(
                    self._reader(queue), self.engine.background_bytes, now_s, limiter.batch_bytes
                )
                if taken:
                    free -= self._begin(queue, taken, free)
                    busy = True
        return busy

    def _reader(self, queue: Queue) -> functools.partial[list[Delivery]]:
        return functools.partial(self.engine.journal.backlog.read, queue.source, queue.destination)

    def _begin(self, queue: Queue, deliveries: Sequence[Delivery], free: int = 1) -> int:
        """Begin deliveries of one queue, the intents of all of them in one transaction; how many workers have them.

        free: how many may.
        """
        if self.is_stuck(queue.source):
            why = f"region {region_of(queue.source)} hangs; it is not touched from here until it moves"
            self.try_later(deliveries, why, whole=True)
            return 0
        state = self._state(queue.destination)
        begun: list[Delivery] = []
        for each in sorted(deliveries, key=lambda d: (d.created_ns, d.id)):
            if each.key in state.under_way:
                state.under_way[each.key].append(each)
            else:
                state.under_way[each.key] = []
                begun.append(each)
        if not begun:
            return 0
        try:
            tasks = self._intend(state, begun)
        except sqlite3.Error:
            queue.give_back([*begun, *(each for at in begun for each in state.under_way.pop(at.key))])
            raise
        groups = _grouped(tasks, free, self.engine.background_bytes)
        for group in groups:
            self._start(state, group)
        queue.paid_at = self.engine.limiter.position
        return len(groups)

    def _intend(self, state: ServiceBucket, begun: Sequence[Delivery]) -> list[Task]:
        """The tasks of some deliveries, whose intents are in the journal then."""
        journal, address = self.engine.journal, state.bucket.address
        names = [each.key for each in begun]
        trusted_ns = state.trusted_ns or 0
        doubtful = any(each.created_ns < trusted_ns for each in begun)
        listed = journal.remote.listed(address, names) if doubtful else set()
        known, tasks = journal.remote.of_keys(address, names), []
        for each in begun:
            rows, is_left = remote.with_intent(known.get(each.key, []), each)
            is_old = each.created_ns < trusted_ns and not any(row.remote for row in rows if row.order == order_of(each))
            in_doubt = is_left or (is_old and (each.marker or each.key not in listed))
            tasks.append(Task(each, rows, in_doubt, bool(state.is_believed)))
        with journal.transaction():
            journal.remote.put(address, [r for task in tasks for r in task.rows if not r.remote and not r.upload])
        return tasks

    def _start(self, state: ServiceBucket, tasks: Sequence[Task]) -> None:
        """Have a worker carry some deliveries of one source."""
        engine, begun_s = self.engine, time.monotonic()
        first = tasks[0].delivery
        size = sum(_size(task.delivery) for task in tasks)
        self._under_way += 1
        self._bytes_under_way += size
        large = size >= engine.background_bytes and len(tasks) == 1

        def carry() -> list[Done]:
            if state.phase is not ServicePhase.ONLINE:
                return [remote.left_alone(task) for task in tasks]
            if not large:
                found = remote.carry(engine, state.bucket, tasks)
            else:
                progress = limits.Progress(first.key, first.id, first.source, first.destination, first.size)
                with engine.progress(progress):
                    found = remote.carry(engine, state.bucket, tasks, progress)
            state.note(found)  # here: the next worker begins before the region's thread reads this
            return found

        def finish(found: list[Done] | Exception) -> None:
            self._under_way -= 1
            self._bytes_under_way -= size
            if isinstance(found, Exception):  # the journal's, or an unexpected one
                found = [Done(task, later=reason(found), rows=list(task.rows)) for task in tasks]
            for done in found:
                if not done.is_busy:
                    self._window.answered()
                elif self._window.refused(self._puts, begun_s, time.monotonic(), done.later):
                    done.is_whole = False  # the others go on, fewer at once
            self._done += found

        whose = first.source, first.destination
        if large:
            way = region_of(first.source), self.name
            self.in_background(carry, finish, pool=("deliver", *way), whose=whose, size_bytes=first.size)
        else:
            self._in_background(carry, finish, first.source)

    def _in_background(self, work: Callable[[], T], finish: Callable[[T | Exception], None], whose: str) -> None:
        """Run one of many short pieces of work, each of which waits for the service most of its time."""
        self.engine.workers(PUTS, self.name, number=self._puts).number = self._puts
        self.in_background(work, finish, pool=(PUTS, self.name), whose=whose)

    def _record(self) -> bool:
        """Record and report the outcomes of deliveries; then begin those that waited for the same keys."""
        done = list(self._done)
        by_bucket: dict[str, list[Done]] = {}
        for each in done:
            by_bucket.setdefault(each.task.delivery.destination, []).append(each)
        journal = self.engine.journal
        for address, group in by_bucket.items():
            with journal.transaction():
                journal.remote.remove(address, [r for each in group for r in (*each.gone, *each.task.rows)])
                journal.remote.put(address, [r for each in group for r in remote.without_intent(each)])
                journal.remote.note_listed(address, [each.task.delivery.key for each in group if each.is_listed])
        self._done.clear()
        self.report_outcomes([each.outcome for each in done if each.outcome is not None])
        for each in done:
            if each.outcome is None:
                self._again(each)
        for each in done:
            self._begin_next(each.task.delivery)
        return bool(done)

    def _again(self, done: Done) -> None:
        delivery = done.task.delivery
        queue = self.queue(delivery.source, delivery.destination)
        if done.is_bucket_changed:  # nothing is begun before the bucket was looked at
            queue.give_back([delivery])
            return
        if done.is_damaged and not self.have_record_rebuilt(delivery):
            self.report_outcomes([Outcome(delivery, Status.FAILED, "SrcObjectNotEligible", None)])
            return
        if done.is_whole:
            self._put_back(queue, [delivery], done.later)
        else:
            self.try_later([delivery], done.later)

    def _begin_next(self, delivery: Delivery) -> None:
        """Begin the next delivery of a key, oldest version first."""
        state = self._state(delivery.destination)
        waiting = state.under_way.pop(delivery.key, [])
        if waiting:
            waiting.sort(key=lambda each: (each.created_ns, each.id))
            by_queue: dict[str, list[Delivery]] = {}
            for each in waiting:
                by_queue.setdefault(each.source, []).append(each)
            for source, group in by_queue.items():
                queue = self.queue(source, delivery.destination)
                if time.monotonic() < queue.blocked_until_s:
                    queue.give_back(group)
                else:
                    self._begin(queue, group)


def _grouped(tasks: Sequence[Task], free: int, large_bytes: float) -> list[list[Task]]:
    """Tasks as workers carry them: as many groups as workers are free, of a few small ones where there are more."""
    share = min(_SHARE_MAX, max(1, -(-len(tasks) // max(1, free))))
    groups: list[list[Task]] = [[]]
    size = 0
    for task in tasks:
        size += _size(task.delivery)
        if groups[-1] and (len(groups[-1]) >= share or size >= min(_SHARE_BYTES, large_bytes)):
            groups.append([])
            size = _size(task.delivery)
        groups[-1].append(task)
    return groups


def _size(delivery: Delivery) -> int:
    return 0 if delivery.marker else delivery.size


def order_of(delivery: Delivery) -> tuple[int, str]:
    return delivery.created_ns, delivery.id
