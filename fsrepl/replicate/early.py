"""A bucket copies a large file while that is captured at its source: the version that it has, of an update; the file
itself, where its key is new.

The delivery of the version that is made then finds a part of its staging done; it decides, sends and verifies like any
other. A copy that no delivery uses is removed.

A new file crosses early where its delivery, as far as is known, will be allowed to send it, and will have to: where a
limit counts each byte, or the bucket has content like it, what must cross is known only when its blocks are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

from fsrepl.errors import FsreplError, Unavailable
from fsrepl.model.address import region_of
from fsrepl.model.version import Version, Versioning
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.expected import Expected
from fsrepl.region.region import Region
from fsrepl.replicate import decide, large_draft, sending
from fsrepl.replicate.sending import Sending, StoredContent
from fsrepl.storage import alike, early_copy, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.journal.rows import Delivery, delivery_of

_KEPT_S = 30.0
"""How long a delivery has to take an early copy, once the update is a version."""


def expect(state: BucketState, update: Expected) -> None:
    """Note a file that is being captured. Its copy begins once all messages that wait are read, since the end of the
    capture may be among them."""
    state.replicas.expected[update.source, update.key] = update


def begin_due(region: Region) -> None:
    """Begin the copies for files that were noted, whose capture has not ended."""
    for state in region.states.values():
        while state.replicas.expected:
            _begin(region, state, state.replicas.expected.popitem()[1])


def _begin(region: Region, state: BucketState, file: Expected) -> None:
    """Begin the copy for a file that is being captured.

    There is one early copy at a time for a source: where the copy before still waits for its delivery, this destination
    is behind.
    """
    if not state.is_up or state.bucket.versioning is not Versioning.ENABLED:
        return
    if any(source == file.source for source, _ in list(state.replicas.early)):
        return
    if region.queue(file.source, state.bucket.address).blocked_why or region.is_stuck(file.source):
        return
    known = region.engine.journal.versions.object(state.bucket.address, file.key)
    if file.version is None:
        if known is not None and not known.marker and known.digest == file.digest:
            _copy(region, state, file, known.id)
    elif known is None and not region.engine.limiter.rate:
        _receive(region, state, file, file.version)


def _copy(region: Region, state: BucketState, update: Expected, version_id: str) -> None:
    """Copy the version that an update is made from, where the copy would take long."""
    early = EarlyCopy(update.key, version_id)

    def copy() -> None:
        with state.bucket.open() as bucket:
            version = versions.read(bucket, early.key, early.id, marker=False)
            if version is None or not _has_room(region, bucket, version.size) or not early_copy.is_worthwhile(bucket):
                early.stop()
                return
            address = bucket.address
            progress = limits.Progress(early.key, "", update.source, address, version.size, what="preparing")

            def note(done: int) -> None:
                progress.came_to(done)
                if progress.stop:
                    early.stop()

            with region.engine.progress(progress):
                early.make(bucket, version, note)

    _in_background(region, state, update, early, copy)


def _receive(region: Region, state: BucketState, file: Expected, version: Version) -> None:
    """Copy a file that is being captured."""
    early = EarlyCopy(file.key)

    def copy() -> None:
        with (
            state.bucket.open() as bucket,
            sending.opened(region.engine, file.source, bucket) as source,
            source.coming(version) as content,
        ):
            if not _may_cross(region, state, bucket, source, content, version):
                early.stop()
                return
            leaves_cache = large_draft.leaves_cache(bucket, version, has_base=False)
            progress = limits.Progress(early.key, "", file.source, bucket.address, version.size)
            with region.engine.progress(progress), early.receiving(bucket, version.size, leaves_cache) as is_wanted:
                if is_wanted:
                    content.fill(early, progress)

    _in_background(region, state, file, early, copy)


def _may_cross(
    region: Region, state: BucketState, bucket: OpenBucket, source: Sending, content: StoredContent, version: Version
) -> bool:
    """Whether a version that is being captured will be sent to a bucket, and in whole, as far as is known."""
    recorded = version.deliveries[bucket.address]
    facts = source.facts(
        delivery_of(source.address, version, bucket.address, recorded),
        version,
        lambda _: {"destination_versioning": bucket.bucket.versioning, "replica_there": False},
    )
    if not isinstance(decide.decide(facts), decide.Send):
        return False
    copies = 2 if source.here.device == bucket.device else 1  # the capture comes first
    if not _has_room(region, bucket, version.size * copies):
        return False
    sample = alike.sample_within(content.read, version.size)
    number = len(region.engine.journal.versions.of_size(bucket.address, version.size, alike.NEAR_MAX + 1))
    if number > alike.NEAR_MAX or (number and not sample):
        return False  # it may be a copy of one of them, all of which the sample is not compared with
    return not state.replicas.alike.are_there(bucket, sample, version.size)


def _in_background(
    region: Region, state: BucketState, file: Expected, early: EarlyCopy, copy: Callable[[], None]
) -> None:  # fmt: skip
    at = file.source, file.key
    state.replicas.early[at] = early

    def finish(result: Exception | None) -> None:
        has_failed = isinstance(result, Exception) and not isinstance(result, Unavailable)  # which may be the end
        if has_failed and state.replicas.early.get(at) is early:
            early.until_s = 0.0

    way, whose = (region_of(file.source), region.name), (file.source, state.bucket.address)
    region.in_background(copy, finish, pool=("early", *way), whose=whose)


def _has_room(region: Region, bucket: OpenBucket, size_bytes: int) -> bool:
    """Whether a copy leaves to the user what keep_free says."""
    free, total = bucket.fs.space(bucket.fd)
    return free - size_bytes >= region.engine.settings.capture.keep_free.needed(total)


def end(state: BucketState, update: Expected, *, is_published: bool) -> None:
    """The capture has ended. Where it led to no version, its early copy is removed."""
    if state.replicas.expected.pop((update.source, update.key), None) is not None:
        return  # nothing was begun
    if (early := state.replicas.early.get((update.source, update.key))) is not None:
        early.until_s = time.monotonic() + _KEPT_S if is_published else 0.0
        if not is_published:
            early.stop()


@contextlib.contextmanager
def taken(state: BucketState, delivery: Delivery) -> Iterator[EarlyCopy | None]:
    """The early copy for a delivery of a large version, where there is one; removed at the end, unless it was taken
    over. Used by a background worker: until one is at it, no other copy is begun."""
    early = state.replicas.early.pop((delivery.source, delivery.key), None)
    try:
        yield early
    finally:
        if early is not None:
            _remove(state, early)


def remove_due(region: Region) -> bool:
    """Remove the early copies that nothing takes any more; whether there were any."""
    now_s, busy = time.monotonic(), False
    for state in region.states.values():
        for at, early in list(state.replicas.early.items()):
            is_due = early.until_s is not None and early.until_s <= now_s
            hangs = region.is_stuck(at[0])  # and shall not keep a file open here
            if (is_due or hangs) and state.replicas.early.pop(at, None) is not None:
                early.stop()
                way, whose = (region_of(at[0]), region.name), (at[0], state.bucket.address)
                region.in_background(
                    partial(_remove, state, early), lambda _: None, pool=("early", *way), whose=whose
                )  # fmt: skip
                busy = True
    return busy


def _remove(state: BucketState, early: EarlyCopy) -> None:
    """Remove an early copy. What cannot be removed, as on a disk that is away, is swept when the bucket comes up."""
    try:
        with state.bucket.open() as bucket:
            early.remove(bucket)
    except (OSError, FsreplError):
        early.abandon(state.bucket.fs)


def next_s(state: BucketState) -> float | None:
    """The monotonic time when an early copy is to be removed."""
    return min((each.until_s for each in list(state.replicas.early.values()) if each.until_s is not None), default=None)
