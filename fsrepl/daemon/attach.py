"""Attaching buckets: a bucket that is there is indexed, watched and scanned; one that is not is suspended."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Mapping

from fsrepl.capture import barrier, overtaken, schedule
from fsrepl.errors import FsreplError, Unavailable
from fsrepl.lifecycle import act
from fsrepl.model.version import Version, Versioning
from fsrepl.region import deliveries, halting
from fsrepl.region.bucket_state import BucketState, Damaged, Phase
from fsrepl.region.mailbox import DropQueues, Probe, RetryNow
from fsrepl.region.places import Place, way_to
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region
from fsrepl.region.runtime import Runtime
from fsrepl.repair import rebuild, reconcile, recover, refetch, reread, settled
from fsrepl.replicate import backfill, thresholds
from fsrepl.storage import boot, bucket_documents, privacy
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Intent, read_intents
from fsrepl.storage.rule_times import note_rules
from fsrepl.storage.site import ignore_in_git
from fsrepl.views import displaced, following, overwritten, show, stale

PROBE_S, UNTOLD_S = 1.0, 5.0
"""Between two looks at a bucket: at least; and where the kernel does not tell of all changes."""
_AWAY_SHARE = 0.1
_DISPLACED_S = 10.0
_COMPARE_S, _COMPARE_EVERY_S = 0.005, 0.1
"""How long what a start left out is compared before other work goes on, and how often that is done beside other work:
each step of a new change waits for one such part in each region."""


log = logging.getLogger("fsrepl")


class Attaching(Region):
    """A region that attaches its buckets when they are there, and suspends them when they are not."""

    def __init__(
        self, engine: Runtime, name: str, regions: Mapping[str, Region], receivers: Mapping[str, Receiver]
    ) -> None:
        super().__init__(engine, name, regions, receivers)
        self.probed = False
        """Whether its buckets have been probed once."""
        self._apart_ns = boot.apart_ns()
        self._compare_s = 0.0
        """The monotonic time from which something is compared though there is other work."""

    def probe_buckets(self) -> None:
        """Attach the buckets that are there, suspend those that are not."""
        self._probe_at_s, self._is_changed = time.monotonic() + PROBE_S, False
        if not self.engine.threaded:  # else the daemon's own thread does it: a state that hangs is to delay no region
            self.engine.keep_state_private()
        mine = {a: b for a, b in self.engine.site.buckets.items() if b.region == self.name}
        for address in [a for a in self.states if mine.get(a) is not self.states[a].bucket]:
            self.suspend(self.states.pop(address), Phase.AWAY, "it left the site")
            self._tell_no_more(address)
        for address, bucket in mine.items():
            state = self.states.setdefault(address, BucketState(bucket))
            if state.is_up or not state.attachment.failures or time.monotonic() >= state.attachment.up_again_at_s:
                with self.at_work(state):
                    self._look_after(state)
        self.probed = True

    def probe_now(self) -> None:
        """Probe all buckets now, without the delay after a failure: a command waits for one."""
        for state in self.states.values():
            state.attachment.up_again_at_s = 0.0
        self.probe_buckets()

    def look_s(self) -> float:
        """The monotonic time of the next look at the buckets: soon after a change, or when something is due that only
        a look finds."""
        if self._is_changed or self.engine.places is None:
            return self._probe_at_s
        rest_s = self._probe_at_s - PROBE_S + self.engine.rest_s
        return max(self._probe_at_s, min([rest_s, *map(self._due_s, self.states.values())]))

    def _due_s(self, state: BucketState) -> float:
        """The monotonic time of the next look at one bucket; 0 as soon as may be."""
        attachment, looked_s = state.attachment, self._probe_at_s - PROBE_S
        if state.phase is Phase.SUSPENDED:
            return attachment.up_again_at_s
        if state.bucket.trouble:  # the longer it is away, the less often it is looked for
            away_s = looked_s - attachment.there_at_s
            return max(attachment.up_again_at_s, looked_s + min(UNTOLD_S, away_s * _AWAY_SHARE))
        lacks_room = any(queue.lacks_room and at[1] == state.bucket.address for at, queue in self.queues.items())
        if lacks_room or not attachment.keeper.is_done(state.bucket):
            return 0.0
        due = math.inf if attachment.is_told else looked_s + UNTOLD_S
        if not state.is_up:
            return due if state.bucket.versioning is Versioning.OFF else 0.0
        if state.bucket.exposed != attachment.reported_exposed or not self._has_recorded_skipped(state):
            return 0.0
        if self._has_news_to_note(state):
            due = min(due, attachment.noted_s + settled.NOTE_S)
        if self._has_note_to_sync(state):
            due = min(due, attachment.synced_s + settled.SYNC_S)
        if state.bucket.has_displaced:
            due = min(due, attachment.displaced_at_s)
        return min(due, schedule.next_s(self, state))

    def _tell_of_changes(self, state: BucketState, bucket: OpenBucket) -> None:
        """Have the kernel tell of changes of a bucket's documents, and of its place."""
        if self.engine.places is not None:
            is_remote = bucket.fs.is_remote(bucket.fd)
            there = [
                Place(b"/proc/self/fd/%d" % bucket.meta, bucket_documents.NAMES | {b"versions"}),
                Place(b"/proc/self/fd/%d/.." % bucket.fd),
                *way_to(str(state.bucket.path)),
            ]
            is_watched = self.engine.places.watch(bucket.address, there, self.note_change)
            state.attachment.is_told = is_watched and not is_remote

    def _tell_no_more(self, address: str) -> None:
        if self.engine.places is not None:
            self.engine.places.forget(address)

    def _look_after(self, state: BucketState) -> None:
        try:
            with state.bucket.open() as bucket:
                state.attachment.there_at_s = time.monotonic()
                self._tell_of_changes(state, bucket)
                self.follow_documents(state, bucket)
                with contextlib.suppress(FsreplError, OSError):  # they are copies; the next probe tries again
                    state.attachment.keeper.keep(self.engine.site, bucket)
                for queue in self.queues.values():
                    if queue.lacks_room and queue.destination == bucket.address:
                        queue.look_for_room(*bucket.fs.room(bucket.fd))
                is_due = not state.is_up and time.monotonic() >= state.attachment.up_again_at_s
                if is_due and state.bucket.versioning is not Versioning.OFF:
                    self._bring_up(state, bucket)
                elif state.is_scanned and time.monotonic() >= state.attachment.displaced_at_s:
                    state.attachment.displaced_at_s = time.monotonic() + _DISPLACED_S
                    quiet_s = self.engine.settings.capture.open_quiet_s
                    note = functools.partial(self._note_written, state, bucket)
                    state.bucket.has_displaced = False
                    left = displaced.clear(bucket, self.engine.journal, quiet_s, note)
                    overtaken.record_all(self, state, bucket, left)
                    bucket.sync()
                    state.bucket.has_displaced |= bool(bucket.fs.names(bucket.displaced))
        except (FsreplError, OSError) as error:
            why = self.why_not(error)
            if (state.phase, state.why) != (Phase.AWAY, why):
                log.warning("offline bucket=%s: %s", state.bucket.address, why)
                self.suspend(state, Phase.AWAY, why)
            state.bucket.trouble = why
            self._report_exposed(state)
            return
        if state.phase is Phase.AWAY:
            state.why = ""
        self._report_exposed(state)
        if state.is_up:
            self._record_skipped(state)
            schedule.start_due(self, state)

    def _note_written(self, state: BucketState, bucket: OpenBucket, key: bytes, version_id: str) -> None:
        overwritten.note(self.engine.syncer, state, bucket, [(key, version_id)])

    def note_settled(self, *, at_once: bool = False) -> None:
        """Note now and then, between two batches, that the journal has all that is in the stores."""
        now_s = time.monotonic()
        for state in self.states.values():
            attachment = state.attachment
            is_news = self._has_news_to_note(state) and (at_once or now_s - attachment.noted_s >= settled.NOTE_S)
            is_sync = self._has_note_to_sync(state) and now_s - attachment.synced_s >= settled.SYNC_S and not at_once
            if is_news or is_sync:
                attachment.noted_s, attachment.noted_commits = now_s, self.engine.journal.commits
                attachment.is_unsynced = not is_sync
                attachment.synced_s = now_s if is_sync else attachment.synced_s
                with contextlib.suppress(FsreplError, OSError), state.bucket.open() as bucket:
                    noted_ns = settled.note(bucket, self.engine.journal)
                    if is_sync and noted_ns:
                        self._sync_for_note(state, noted_ns)

    def _has_news_to_note(self, state: BucketState) -> bool:
        return self._may_note(state) and state.attachment.noted_commits != self.engine.journal.commits

    def _has_note_to_sync(self, state: BucketState) -> bool:
        return self._may_note(state) and state.attachment.is_unsynced

    def _may_note(self, state: BucketState) -> bool:
        return state.is_up and state.attachment.is_indexed and not self.has_failed

    def _sync_for_note(self, state: BucketState, noted_ns: int) -> None:
        """Make all that was there at a note durable, so that it counts after a power cut too."""
        attachment, address, apart_ns = state.attachment, state.bucket.address, boot.apart_ns()

        def sync() -> None:
            with state.bucket.open() as bucket:
                bucket.fs.sync_all(bucket.fd)

        def finish(failed: Exception | None) -> None:
            attachment.is_unsynced |= failed is not None
            if failed is None and attachment.is_indexed and not boot.is_clock_set(apart_ns):
                settled.note_synced(address, self.engine.journal, noted_ns)

        self.in_background(sync, finish, pool=("sync", self.name), whose=address)

    def forget_notes(self) -> None:
        """Forget what was noted before the clock was set: times of before and of after do not compare."""
        if not boot.is_clock_set(self._apart_ns):
            return
        self._apart_ns = boot.apart_ns()
        for state in self.states.values():
            if state.is_up:
                state.attachment.noted_commits = -1
                try:
                    with state.bucket.open() as bucket:
                        settled.forget(bucket)
                except (FsreplError, OSError) as error:  # it is forgotten when it comes up again
                    self.suspend(state, Phase.AWAY, self.why_not(error))

    def _report_exposed(self, state: BucketState) -> None:
        """Report that other users could read the daemon's own files, and close the files below as well."""
        if state.bucket.exposed == state.attachment.reported_exposed:
            return
        state.attachment.reported_exposed = state.bucket.exposed
        log.warning("opened bucket=%s: %s", state.bucket.address, state.bucket.exposed)

        def close() -> int:
            with state.bucket.open() as bucket:
                return privacy.close_below(bucket.fs, bucket.meta)

        def finish(closed: object) -> None:
            log.info("closed bucket=%s files=%s", state.bucket.address, closed)

        self.in_background(close, finish, pool=("repair", self.name), whose=state.bucket.address)

    def _record_skipped(self, state: BucketState) -> None:
        """Record the number of entries that are no objects, which is shown without the daemon too."""
        number = state.trouble.skipped_number
        if not self._has_recorded_skipped(state):
            with self.engine.journal.transaction():
                self.engine.journal.set_skipped(state.bucket.address, number)
            state.attachment.skipped_recorded = number

    def _has_recorded_skipped(self, state: BucketState) -> bool:
        return not state.is_scanned or state.trouble.skipped_number == state.attachment.skipped_recorded

    def _bring_up(self, state: BucketState, bucket: OpenBucket) -> None:
        """Bring a bucket online, at start or again: index, finish after a crash, watch, scan. In this order."""
        engine, address = self.engine, bucket.address
        self._index(state, bucket)
        state.bucket.ids = type(state.bucket.ids)(*engine.journal.versions.newest(address))
        state.views.come_up()

        def mark_stale(intent: Intent, outcome: show.NotShown) -> bool:
            stale.mark_stale(
                self, state, intent.key, outcome.why, conflict=outcome.conflict, bucket=bucket, was=intent.was
            )
            return bool(state.views.stale[intent.key].intent)

        intents = [intent.key for _, group in read_intents(bucket) for intent in group]
        following.look_before_recovery(self, state, bucket, intents)
        act.tell_again(self, bucket)
        left = recover.finish(bucket, engine.journal, engine.settings.capture.open_quiet_s, mark_stale)
        engine.recent.forget(address)  # recovery may have written other records
        overwritten.resume(state, left.fetched)
        thresholds.untrack(engine, address)
        ignore_in_git(bucket.fs, bucket.meta)
        barrier.watch_barrier(self, state, bucket)
        backfill.resume(self, state, bucket)
        state.attachment.was_scanned = self.engine.watcher is not None and engine.journal.scanned_ns(address) > 0
        state.scan_times.come_up()
        state.phase, state.why = Phase.SCANNING, ""
        state.attachment.unsettled = False  # in this order: a `wait` in another thread follows a bucket with either
        state.attachment.is_indexed = True
        state.attachment.noted_s = state.attachment.synced_s = time.monotonic()
        state.lifecycle.placing.come_up()
        engine.recent.forget_data()
        halting.resume(self, state, bucket)
        overtaken.record_all(self, state, bucket, left.overtaken)
        deliveries.enqueue_all(self, state)
        for queue in self.queues.values():
            if queue.destination == address:
                queue.retry_now()
        for region in self.receivers.values():
            if region is not self:
                region.post(RetryNow(address))
        schedule.watch_known(self, bucket)
        schedule.begin(self, state)
        log.info("online bucket=%s", address)

    def _index(self, state: BucketState, bucket: OpenBucket) -> None:
        journal, attachment = self.engine.journal, state.attachment
        is_to_reread = journal.is_to_reread(bucket.address)
        settled.forget_outdated(bucket, journal)
        later = attachment.uncompared = []
        with rebuild.Rebuilder(self.engine.site, bucket, journal) as rebuilder:
            afresh = journal.scanned_ns(bucket.address) == 0 or (is_to_reread and not self._leaves_out)
            has_read_all = reconcile.reconcile(
                bucket, journal, afresh=afresh, rebuilder=rebuilder, later=later if self._leaves_out else None,
                may_be_older=is_to_reread,
            )  # fmt: skip
        if is_to_reread and has_read_all:
            journal.end_reread(bucket.address)
        attachment.is_rereading, attachment.reread_to = is_to_reread and not has_read_all, None
        self._note_damaged(state, bucket, rebuilder)
        attachment.lacks_records = False
        self._note_lacking(state, rebuilder)

    @property
    def _leaves_out(self) -> bool:
        """Whether a start leaves out what can be compared beside other work; a single command compares all."""
        return self.engine.threaded

    def _note_lacking(self, state: BucketState, rebuilder: rebuild.Rebuilder) -> None:
        if rebuilder.waiting:
            self.engine.journal.set_tree(state.bucket.address, "")  # all are read again when that region is back
            state.attachment.lacks_records = True
            log.warning(
                "not rebuilt bucket=%s versions=%d: their attributes are gone, and a region is away that may know more",
                state.bucket.address, rebuilder.waiting,
            )  # fmt: skip

    def _note_damaged(self, state: BucketState, bucket: OpenBucket, rebuilder: rebuild.Rebuilder) -> None:
        found = rebuilder.damaged
        overwritten.note(self.engine.syncer, state, bucket, [(key, i) for key, i, marker in found if not marker])
        state.damaged += [Damaged(bucket.address, *each) for each in found if each[2]]

    def compare_later(self, *, is_idle: bool = True) -> bool:
        """Compare some of what starts have left out, once their buckets are scanned; whether there was any. is_idle:
        there is no other work."""
        busy = False
        if not is_idle and time.monotonic() < self._compare_s:
            return busy
        self._compare_s = time.monotonic() + _COMPARE_EVERY_S
        for state in self.states.values():
            if state.is_scanned and (state.attachment.uncompared or state.attachment.is_rereading):
                busy = True
                with self.at_work(state), state.bucket.open() as bucket:
                    self._compare_some(state, bucket)
        return busy

    def _compare_some(self, state: BucketState, bucket: OpenBucket) -> None:
        attachment, until_s, is_known = state.attachment, time.monotonic() + _COMPARE_S, True
        was_rereading = attachment.is_rereading
        with rebuild.Rebuilder(self.engine.site, bucket, self.engine.journal) as rebuilder:
            while attachment.uncompared or attachment.is_rereading:
                step = self._compare_next if attachment.uncompared else self._reread_next
                is_known &= step(state, bucket, rebuilder)
                if time.monotonic() >= until_s:
                    break
            if rebuilder.rebuilt:
                bucket.sync()
                rebuilder.show(rebuilder.rebuilt)
            self._note_damaged(state, bucket, rebuilder)
            self._note_lacking(state, rebuilder)
        if was_rereading and not attachment.is_rereading:  # not before what was found is recorded
            self.engine.journal.end_reread(bucket.address)
        if not is_known:
            deliveries.enqueue_all(self, state)

    def _compare_next(self, state: BucketState, bucket: OpenBucket, rebuilder: rebuild.Rebuilder) -> bool:
        """Compare a directory; whether it was as the journal knew it."""
        each = state.attachment.uncompared.pop()
        if reconcile.compare_later(bucket, self.engine.journal, each, rebuilder):
            return True
        schedule.begin(self, state, each.directory)
        return False

    def _reread_next(self, state: BucketState, bucket: OpenBucket, rebuilder: rebuild.Rebuilder) -> bool:
        """Read some records again; False after the last ones, any of which may have been a delivery to be made."""
        attachment, journal = state.attachment, self.engine.journal
        attachment.reread_to = reread.step(bucket, journal, attachment.reread_to, rebuilder)
        attachment.is_rereading = attachment.reread_to is not None
        return attachment.is_rereading

    def recall(self, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
        """The version whose record cannot be read, from the evidence here; None where that is too little."""
        with rebuild.Rebuilder(self.engine.site, bucket, self.engine.journal) as rebuilder:
            return rebuilder.recall(key, version_id)

    def ready(self, address: str) -> BucketState:
        """A bucket of this region, ready for work. Raises FsreplError where it is away."""
        state = self.states.get(address)
        if state is None or not state.is_up or state.bucket is not self.engine.site.buckets.get(address):
            self.probe_now()
            state = self.states.get(address)
        bucket = self.engine.site.bucket(address)
        if state is None or not state.is_up:
            with bucket.open():
                pass  # raises with the reason
            if state is None or bucket.versioning is not Versioning.OFF:
                why = state.why if state else ""
                raise Unavailable(f"bucket {address} is not up yet: {why or 'it is coming online; try again'}")
        return state

    def follow(self, address: str) -> None:
        """Follow settings of a bucket that a command changed, before the command returns."""
        self.probe_buckets()
        for region in self.regions.values():
            if region is not self:
                region.post(Probe())

    def follow_documents(self, state: BucketState, bucket: OpenBucket) -> None:
        """Follow changed documents of a bucket: record since when its rules are in effect, and retry its deliveries."""
        documents = state.bucket.documents
        if documents is state.attachment.documents:
            return
        state.lifecycle.look_now()
        if note_rules(bucket, self.engine.site.now()):
            state.bucket.refresh(bucket)
            documents = state.bucket.documents
        first, state.attachment.documents = state.attachment.documents is None, documents
        self.engine.remember_replication(bucket.address, documents.replication)
        if not first:
            for region in self.receivers.values():
                region.post(RetryNow(bucket.address))
            if state.is_up:
                deliveries.enqueue_all(self, state, new_rules=True)
            thresholds.untrack(self.engine, bucket.address)

    def retry_now(self, address: str) -> None:
        """Retry all that waits for a bucket, since it came back or its settings changed."""
        super().retry_now(address)
        refetch.retry_now(self)
        for state in self.states.values():
            if state.is_up and state.attachment.lacks_records:
                with self.at_work(state), contextlib.suppress(FsreplError, OSError), state.bucket.open() as bucket:
                    self._index(state, bucket)
                    deliveries.enqueue_all(self, state)

    def has_looked(self) -> bool:
        """Whether every bucket is watched, or away. A bucket that was never scanned is watched once it is scanned."""
        states = list(self.states.values())
        known = (state.is_scanned or state.attachment.was_scanned or not state.is_up for state in states)
        return self.probed and all(known)

    def drop_bucket(self, address: str) -> None:
        """Suspend a bucket that is about to be removed."""
        if (state := self.states.pop(address, None)) is not None:
            self.suspend(state, Phase.AWAY, "it is removed")
            self._tell_no_more(address)
        for region in self.receivers.values():
            region.post(DropQueues(address))
