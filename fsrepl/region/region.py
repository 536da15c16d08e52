"""All that happens in one region, in one thread: captures, deliveries that arrive, scans.

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
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fsrepl.capture import barrier, ingest, schedule
from fsrepl.errors import UNFORESEEN, BucketMissing, FsreplError, Unavailable
from fsrepl.model import keys
from fsrepl.model.version import Status, Versioning
from fsrepl.region import change_queue, deliveries, delivery_queue, outcome_queue
from fsrepl.region.bucket_state import LookLater, Place
from fsrepl.region.change_queue import CHANGED, FOUND, Mark, Marks
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.pulse import Pulse
from fsrepl.region.rotation import Rotation
from fsrepl.region.scan_queue import Scans, Trouble
from fsrepl.repair import rebuild, reconcile, recover, refetch
from fsrepl.replicate import backfill, decide, deliver, large, settle, thresholds, transfer
from fsrepl.storage import privacy, sharing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import reason
from fsrepl.storage.intents import Intent, read_intents
from fsrepl.storage.journal import database
from fsrepl.storage.journal.rows import Owed, Word
from fsrepl.storage.rule_times import note_rules
from fsrepl.storage.site import ignore_in_git
from fsrepl.views import displaced, following, labels, show, stale

if TYPE_CHECKING:
    from fsrepl.region.runtime import Engine


log = logging.getLogger("fsrepl")

BATCH = 512
_PROBE_S, _DISPLACED_S = 1.0, 10.0
_MARKED_S = 1.0
_JOURNAL_MAX_S, _JOURNAL_WELL_S = 15.0, 60.0
"""The longest wait for a journal that cannot be used; after how long without a fault waits are short again."""
_FLUSH_S = 2.0
_FLUSH_TURNS_MAX = 2000

_FEW = 64
_STUMBLED_MAX_S = 60.0


class Region:
    """See the module. Other threads call post, hear and marks only."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.inbox: deque[Callable[[], None]] = deque()
        self.done_in_lanes: deque[Callable[[], None]] = deque()
        """What is to be finished here of what lanes have done."""
        self.words = outcome_queue.Words()
        self.places: dict[str, Place] = {}
        self.queues: dict[tuple[str, str], Queue] = {}
        self._wake = threading.Event()
        self._probe_at_s = 0.0
        self.probed = False
        """Its buckets have been looked at once."""
        self.worked_for: set[str] = set()
        """The buckets that something was captured or settled in during this turn."""
        self._ways: Rotation[tuple[str, str]] = Rotation()
        self.moves = 0
        """How often keys have begun, or ended, to move from where they wait to where they wait next."""
        self.stopping = False
        self._journal_faults, self._journal_fault_at_s = 0, 0.0
        self.busy_since_s = 0.0
        self.pulse = Pulse()
        """Whether its thread hangs, as the daemon sees it."""
        self.thread: threading.Thread | None = None
        self.marks = Marks(self.wake, engine.settings.capture)
        if engine.watcher is not None:
            engine.watcher.listen(name, self.marks)
        self.configure()

    def configure(self) -> None:
        """Take over what the settings say now."""
        capture_settings = self.engine.settings.capture
        self.patience = change_queue.Patience(
            capture_settings.open_quiet_s,
            capture_settings.open_max_s,
            self.engine.settings.replication.large_file_bytes,
            self.marks.is_temporary,
        )

    # -- the thread

    def start(self) -> None:
        self.thread = threading.Thread(target=self.run, name=f"region {self.name}", daemon=True)
        self.thread.start()

    def is_alive(self) -> bool:
        """Whether what is posted will be done."""
        return self.thread is None or self.thread.is_alive()

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
                self._wake.wait(None if due is None else max(0.0, min(_PROBE_S, due - time.monotonic())))
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
        for region in self.engine.regions.values():
            region.post(region.owe_all_again)

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

    def wake(self) -> None:
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Let others work for a moment; woken when there is something to do."""
        with self.engine.turns.aside():
            self._wake.wait(seconds)
        self._wake.clear()

    def post(self, what: Callable[[], None]) -> None:
        """Have something done in this region's thread."""
        self.inbox.append(what)
        self.wake()

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
        busy = False
        self.worked_for.clear()
        while self.inbox:
            self.inbox.popleft()()
            busy = True
        busy |= self._finish_lanes()
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
        ):
            busy |= step()
        self._mark_views(busy=busy)
        return busy

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

    # -- buckets come and go

    def look_around(self) -> None:
        """Take up the buckets that are there, put down those that are not."""
        self._probe_at_s = time.monotonic() + _PROBE_S
        self._keep_state_private()
        mine = {a: b for a, b in self.engine.site.buckets.items() if b.region == self.name}
        for address in [a for a in self.places if mine.get(a) is not self.places[a].bucket]:
            self.suspend(self.places.pop(address))
        for address, bucket in mine.items():
            place = self.places.setdefault(address, Place(bucket))
            if place.up or not place.stumbles or time.monotonic() >= place.up_again_at_s:
                with self.at_work(place):
                    self._look_after(place)
        self.probed = True

    def _keep_state_private(self) -> None:
        """The state names every file of the site: nobody else looks into it."""
        with contextlib.suppress(FsreplError, OSError), self.engine.site.open_state() as at:
            if privacy.close(self.engine.fs, at):
                log.warning("opened state: others could look into %s; it is closed again", self.engine.site.state)

    def look_again(self) -> None:
        """Somebody waits: what was put down is tried now."""
        for place in self.places.values():
            place.up_again_at_s = 0.0
        self.look_around()

    def _look_after(self, place: Place) -> None:
        try:
            with place.bucket.open() as bucket:
                self.follow_documents(place, bucket)
                with contextlib.suppress(FsreplError, OSError):  # they are copies; the next look tries again
                    place.keeper.keep(self.engine.site, bucket)
                is_due = not place.up and time.monotonic() >= place.up_again_at_s
                if is_due and place.bucket.versioning is not Versioning.OFF:
                    self._bring_up(place, bucket)
                elif place.scanned and time.monotonic() >= place.displaced_at_s:
                    place.displaced_at_s = time.monotonic() + _DISPLACED_S
                    displaced.clear(bucket, self.engine.journal)
                    bucket.sync()
        except (FsreplError, OSError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            if place.up or place.offline != why:
                log.warning("offline bucket=%s: %s", place.bucket.address, why)
                self.suspend(place)
            place.offline = place.bucket.trouble = why
            self._tell_exposed(place)
            return
        place.offline = ""
        self._tell_exposed(place)
        if place.up:
            self._record_skipped(place)
            schedule.go_round(self, place)

    def _tell_exposed(self, place: Place) -> None:
        """Others could look into what is ours: that is said, and what is below closed as well."""
        if place.bucket.exposed == place.said_exposed:
            return
        place.said_exposed = place.bucket.exposed
        log.warning("opened bucket=%s: %s", place.bucket.address, place.bucket.exposed)

        def close() -> int:
            with place.bucket.open() as bucket:
                return privacy.close_below(bucket.fs, bucket.meta)

        def finish(closed: object) -> None:
            log.info("closed bucket=%s files=%s", place.bucket.address, closed)

        self.in_lane(close, finish, lane=("repair", self.name), whose=place.bucket.address)

    def _record_skipped(self, place: Place) -> None:
        """How many entries are no objects is shown without the daemon, too."""
        number = place.trouble.skipped_number
        if place.scanned and number != place.skipped_recorded:
            with self.engine.journal.transaction():
                self.engine.journal.set_skipped(place.bucket.address, number)
            place.skipped_recorded = number

    def _bring_up(self, place: Place, bucket: OpenBucket) -> None:
        """A bucket is there, at start or again: index, what a crash left, watch, scan. In this order."""
        engine, address = self.engine, bucket.address
        self._index(place, bucket)
        place.bucket.ids = type(place.bucket.ids)(*engine.journal.versions.newest(address))
        place.held.clear()

        def hold(intent: Intent, outcome: show.Held) -> bool:
            stale.hold_view(
                self, place, intent.key, outcome.why, conflict=outcome.conflict, bucket=bucket, was=intent.was
            )
            return bool(place.held[intent.key].intent)

        intents = [intent.key for _, group in read_intents(bucket) for intent in group]
        following.look_before_showing(self, place, bucket, intents)
        lost = recover.finish(bucket, engine.journal, hold)
        refetch.resume(place, lost)
        thresholds.untrack(engine, address)
        ignore_in_git(bucket.fs, bucket.meta)
        barrier.watch_barrier(self, place, bucket)
        backfill.resume(self, place, bucket)
        place.up, place.scanned, place.unsettled, place.put_down = True, False, False, ""
        engine.recent.forget_data()
        self.owe_all(place)
        for queue in self.queues.values():
            if queue.destination == address:
                queue.kick()
        for region in self.engine.regions.values():
            if region is not self:
                region.post(lambda region=region: region.kick(address))  # type: ignore[misc]
        schedule.begin(self, place)
        log.info("online bucket=%s", address)

    def _index(self, place: Place, bucket: OpenBucket) -> None:
        journal = self.engine.journal
        with rebuild.Rebuilder(bucket, journal) as rebuilder:
            reconcile.reconcile(bucket, journal, afresh=journal.scanned_ns(bucket.address) == 0, rebuilder=rebuilder)
        place.stripped = rebuilder.waiting > 0
        if place.stripped:
            log.warning(
                "not rebuilt bucket=%s versions=%d: their attributes are gone, and a region is away that may know more",
                bucket.address, rebuilder.waiting,
            )  # fmt: skip

    def suspend(self, place: Place) -> None:
        """A bucket is away: forget what was in hand. Nothing is lost; a scan follows when it is back."""
        place.unsettled |= self._is_unsettled(place)
        place.up = place.scanned = False
        place.looked_ns = 0
        place.scans = Scans()
        place.later.clear()
        place.unmarked.clear()
        place.unreadable.clear()
        place.set_aside.clear()
        place.undelivered.clear()
        place.directories.clear()
        place.faults.clear()
        place.trouble = Trouble()
        self.marks.forget(place.bucket.address)
        if self.engine.watcher is not None:
            self.engine.watcher.forget(place.bucket.address)
        self.engine.notify()

    def _is_unsettled(self, place: Place) -> bool:
        """Whether something that its user wrote in a bucket is not captured yet. Into others only we write."""
        address = place.bucket.address
        if not sharing.receives_writes(place.bucket):
            return False
        waits = place.scans or place.lanes or any(not later.opened for later in place.later.values())
        unread = place.unreadable or place.trouble.unreadable
        arrived = any(event.address == address for event in list(self.marks.directories))
        return bool(waits or unread) or arrived or self.marks.has_news(address)

    def kick(self, address: str) -> None:
        """A bucket came back, or its settings changed: try again what waits for it."""
        for queue in self.queues.values():
            if address in (queue.source, queue.destination):
                queue.kick()
        refetch.kick(self)
        for place in self.places.values():
            if place.up and place.stripped:
                with self.at_work(place), contextlib.suppress(FsreplError, OSError), place.bucket.open() as bucket:
                    self._index(place, bucket)
                    self.owe_all(place)

    def kick_from(self, region: str) -> None:
        """A region that hung moves again: go on with what is to come from there."""
        for queue in self.queues.values():
            if queue.source.partition("/")[0] == region:
                queue.kick()

    def place_of(self, address: str) -> Place:
        """A bucket of this region, ready to be worked in. Raises FsreplError where it is away."""
        place = self.places.get(address)
        if place is None or not place.up or place.bucket is not self.engine.site.buckets.get(address):
            self.look_again()
            place = self.places.get(address)
        bucket = self.engine.site.bucket(address)
        if place is None or not place.up:
            with bucket.open():
                pass  # raises with the reason
            if place is None or bucket.versioning is not Versioning.OFF:
                why = (place.put_down or place.offline) if place else ""
                raise Unavailable(f"bucket {address} is not up yet: {why or 'it is being taken up; try again'}")
        return place

    def follow(self, address: str) -> None:
        """The settings of a bucket were changed by command: take them over before the command returns."""
        self.look_around()
        for region in self.engine.regions.values():
            if region is not self:
                region.post(region.probe_now)

    def probe_now(self) -> None:
        self._probe_at_s = 0.0

    def put_down(self, address: str) -> None:
        """A bucket is about to be removed."""
        if (place := self.places.pop(address, None)) is not None:
            self.suspend(place)
        for region in self.engine.regions.values():
            region.post(lambda region=region: region.drop_queues(address))  # type: ignore[misc]

    def drop_queues(self, address: str) -> None:
        for at in [at for at in self.queues if at[0] == address]:
            self.queues.pop(at).backlog.close()

    def look_at(self, address: str, found: Collection[bytes]) -> None:
        """Have capture look at keys whose files may differ from their record without an event. Any thread may ask."""
        self.marks.mark(address, found, self.engine.epoch, FOUND | CHANGED)  # no scan finds other names of their files
        self.wake()

    def flush(self, address: str, named: Collection[bytes] = ()) -> Place:
        """Capture everything that was finished in a bucket before now. Runs in this region's thread.

        named: keys that are looked at in any case: a write through another name of their files makes no event.
        """
        place = self.place_of(address)
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

    def owe_all(self, place: Place) -> None:
        """Queue everything a source owes, as the journal has it."""
        deliveries.hand_over(
            self, self.engine.journal.deliveries.select(place.bucket.address, status=Status.PENDING, live=True)
        )
        deliveries.owe_all(self, place)

    def owe_all_again(self) -> None:
        """A region left the site: what was owed to it has to be settled here."""
        for place in self.places.values():
            if place.up:
                self.owe_all(place)

    def follow_documents(self, place: Place, bucket: OpenBucket) -> None:
        """After each look at a bucket's documents: write down since when its rules are in effect; wake what waits."""
        documents = place.bucket.documents
        if documents is place.documents:
            return
        if note_rules(bucket, self.engine.site.now()):
            place.bucket.refresh(bucket)
            documents = place.bucket.documents
        first, place.documents = place.documents is None, documents
        self.engine.remember_replication(bucket.address, documents.replication)
        if not first:
            for region in self.engine.regions.values():
                region.post(lambda region=region: region.kick(bucket.address))  # type: ignore[misc]
            if place.up:
                self.owe_all(place)
            thresholds.untrack(self.engine, bucket.address)

    # -- captures

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Around whatever takes keys from where they wait: so a barrier knows that what it saw was all there was."""
        self.moves += 1
        try:
            yield
        finally:
            self.moves += 1

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
                left = ingest.take(self, place_, group)
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

    def look_later(self, place: Place, mark: Mark, after_s: float, why: str, *, opened: bool = False) -> None:
        if (known := place.later.get(mark.key)) is not None:
            mark = mark._replace(epoch=min(mark.epoch, known.mark.epoch))
        place.later[mark.key] = LookLater(time.monotonic() + after_s, mark, why, opened, self.engine.epoch)

    @contextlib.contextmanager
    def at_work(self, place: Place) -> Iterator[None]:
        """What goes wrong with a bucket as a whole, and in the midst of a batch, puts it down, and no other.

        It comes up again, after a growing delay, with a look at store and tree, which tells what of the batch is done.
        """
        try:
            yield
        except sqlite3.Error:
            raise
        except Exception as error:
            if isinstance(error, (FsreplError, OSError)):
                why = reason(error) if isinstance(error, OSError) else str(error)
                log.warning("put down bucket=%s: %s", place.bucket.address, why)
            else:
                why = UNFORESEEN
                log.exception("put down bucket=%s: what nobody foresaw", place.bucket.address)
                place.takes_singly = place.carries_singly = True
            self.suspend(place)
            place.put_down = why
            place.stumbles = min(place.stumbles + 1, 10)
            place.up_again_at_s = time.monotonic() + min(_STUMBLED_MAX_S, 2.0**place.stumbles / 4)

    def in_lane(
        self, work: Callable[[], object], finish: Callable[..., None], *, lane: Sequence[str], whose: Hashable,
        size_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Do something beside everything else; what came of it, or what it raised, is finished in this thread.

        lane: which workers do it, see Engine.workers. whose: between these they take turns. size_bytes: see Workers.
        """

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                if not isinstance(error, (FsreplError, OSError, sqlite3.Error)):
                    log.exception("set aside: a lane met what nobody foresaw")
                result = error
            self.done_in_lanes.append(lambda: finish(result))
            self.wake()

        if self.engine.threaded:
            self.engine.workers(*lane).submit(whose, run, size_bytes)
        else:
            run()

    def look_in_lane(self, place: Place, mark: Mark, size_bytes: int) -> None:
        """Capture a large file beside everything else."""
        ingest.look_in_lane(self, place, mark, size_bytes)

    def send_in_lane(self, place: Place, item: transfer.Item) -> None:
        """Deliver a large object beside everything else."""
        large.send_in_lane(self, place, item)

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

    def take_over(self, owed: Iterable[Owed]) -> None:
        """Queue what is to be delivered to buckets here."""
        for each in owed:
            self.queue(each.source, each.destination).add(each)

    def wake_backlog(self, source: str, destination: str, *, start_over: bool = False) -> None:
        """Backfills of a source here owe something to a destination."""
        region = self.engine.regions.get(destination.partition("/")[0])
        if region is None:
            deliveries.owe_all(self, self.places[source])
            return

        def wake() -> None:
            backlog = region.queue(source, destination).backlog
            backlog.start_over() if start_over else backlog.wake()

        region.post(wake)

    def queue(self, source: str, destination: str) -> Queue:
        at = (source, destination)
        if at not in self.queues:
            regions = source.partition("/")[0], self.name
            self.queues[at] = Queue(*at, self.engine.backfill_lanes(*regions))
        return self.queues[at]

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

    def try_later(self, owed: Sequence[Owed], why: str, *, whole: bool = False) -> None:
        """Not now: back into the queue, with a growing, capped delay. whole: there is no getting at the destination."""
        queue = self.queue(owed[0].source, owed[0].destination)
        now_s, cap_s = time.monotonic(), self.engine.settings.replication.retry_max_s
        if whole:
            self.engine.recent.forget_data()
            queue.attempts += 1
            queue.put_back(owed, now_s + delivery_queue.retry_delay_s(queue.attempts, cap_s), why)
            return
        for each in owed:
            attempts = queue.attempts_of(each)
            queue.put_off(each, now_s + delivery_queue.retry_delay_s(attempts + 1, cap_s), why)
            level = logging.WARNING if attempts == 4 else logging.DEBUG
            log.log(
                level, 'not yet bucket=%s key="%s" to=%s attempts=%d: %s',
                each.source, keys.shown(each.key), each.destination, attempts + 1, why,
            )  # fmt: skip

    def send_words(self, words: Sequence[Word]) -> None:
        """Tell the sources what became of their deliveries."""
        by_region: dict[str, list[Word]] = {}
        for word in words:
            queue = self.queue(word.owed.source, word.owed.destination)
            queue.done(word.owed)
            queue.attempts, queue.blocked_why = 0, ""
            by_region.setdefault(word.owed.source.partition("/")[0], []).append(word)
        for name, group in by_region.items():
            region = self.engine.regions.get(name)
            if region is not None:
                region.hear(group)

    def hear(self, words: Iterable[Word]) -> None:
        """What became of deliveries of buckets here. Other threads say it."""
        self.words.add(words)
        self.wake()

    def settled(self, source: str, destination: str, owed: Sequence[Owed]) -> None:
        self.queue(source, destination).backlog.settled(owed)
