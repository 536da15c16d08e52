"""One region's state: its buckets, and what waits in them.

Only the region's own thread changes its state, so that nothing races within a region. The loop that runs it is
daemon/worker.py; its mailbox and its deliveries are those of every receiver (receiver.py).
"""

from __future__ import annotations

import abc
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

from fsrepl.errors import UNEXPECTED, FsreplError, reason
from fsrepl.model.version import Version
from fsrepl.region import change_queue, outcome_queue
from fsrepl.region.bucket_state import BucketState, Phase
from fsrepl.region.capture_state import Deferred
from fsrepl.region.change_queue import CHANGED, FOUND, Change, ChangeQueue
from fsrepl.region.receiver import Receiver, Sources
from fsrepl.region.runtime import Runtime
from fsrepl.region.scan_queue import Scans, Trouble
from fsrepl.storage import sharing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")


TimeAt = Callable[[str, bytes], int | None]
"""The modification time of a directory at a source, by the address of that and its path, in nanoseconds since the
epoch; None where it is not known here, or not yet. Raises OSError where the directory is gone."""


class Region(Receiver, Sources):
    """See the module. Other threads call only post, ask, receive, look_at and changes."""

    def __init__(
        self, engine: Runtime, name: str, regions: Mapping[str, Region], receivers: Mapping[str, Receiver]
    ) -> None:
        super().__init__(engine, name, regions)
        self.regions = regions
        """All regions of the site with trees, by name, to post messages to."""
        self.receivers = receivers
        """All regions that take deliveries, by name: these, and those that are S3 services."""
        self.outcomes = outcome_queue.OutcomeQueue()
        self.pages_held: dict[tuple[str, str], Delivery | None] = {}
        """Pages of pending deliveries that wait for outcomes to be recorded, by source and destination: the delivery
        that each follows. See deliveries.hand_over_more."""
        self.states: dict[str, BucketState] = {}
        self._probe_at_s = 0.0
        """The earliest time of the next look at the buckets."""
        self._is_changed = True
        """Whether something around the buckets has changed since the last look, as far as is known."""
        self.worked_for: set[str] = set()
        """Buckets with a capture or a settled delivery in this pass of the loop."""
        self.moves = 0
        """Number of times that keys began, or ended, to move from one queue to the next."""
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
        for state in self.states.values():
            state.lifecycle.placing.retry()

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

    @abc.abstractmethod
    def has_sources(self, address: str) -> bool:
        """Whether buckets are replicated to a bucket of this region."""

    @abc.abstractmethod
    def source_times(self, address: str) -> AbstractContextManager[TimeAt]:
        """Tells the times of directories at the sources of a bucket of this region."""

    # -- buckets

    def suspend(self, state: BucketState, phase: Phase, why: str) -> None:
        """Make a bucket AWAY or SUSPENDED and drop its queues. Nothing is lost: a scan follows when it is back."""
        state.attachment.forget(unsettled=self._is_unsettled(state))
        state.phase, state.why = phase, why
        state.scan_times.forget()
        state.scans, state.trouble = Scans(), Trouble()
        state.labels.clear()
        state.captures.forget()
        state.views.forget()
        state.replicas.forget(state.bucket.fs)
        self.changes.forget(state.bucket.address)
        if self.engine.watcher is not None:
            self.engine.watcher.forget(state.bucket.address)
        self.engine.notify()

    def _is_unsettled(self, state: BucketState) -> bool:
        """Whether a bucket holds a user's write that is not captured yet. Into the others only the daemon writes."""
        address, captures = state.bucket.address, state.captures
        if not sharing.receives_writes(state.bucket):
            return False
        waits = state.scans or captures.copying or any(not later.opened for later in captures.deferred.values())
        unread = captures.unreadable or state.trouble.unreadable
        arrived = any(event.address == address for event in list(self.changes.directories))
        return bool(waits or unread) or arrived or self.changes.has_news(address)

    def probe_now(self) -> None:
        self._probe_at_s, self._is_changed = 0.0, True

    def note_change(self) -> None:
        """Have the buckets looked at, since something around them has changed. Any thread may call it."""
        self._is_changed = True
        self.wake()

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
        deferred = state.captures.deferred
        if (known := deferred.get(change.key)) is not None:
            change = change._replace(epoch=min(change.epoch, known.change.epoch))
        deferred[change.key] = Deferred(time.monotonic() + after_s, change, why, opened, self.engine.epoch)

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
                why = UNEXPECTED
                log.exception("suspended bucket=%s: unexpected error", state.bucket.address)
                state.captures.singly = state.replicas.singly = True
            self.suspend(state, Phase.SUSPENDED, why)
            state.attachment.note_failure(time.monotonic())

    def receive(self, outcomes: Iterable[Outcome]) -> None:
        self.outcomes.add(outcomes)
        self.wake()
