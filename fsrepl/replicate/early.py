"""A bucket copies the version that it has of a large file, while an update of that file is captured at its source.

No content crosses before the update is a version. The delivery of that version then finds a part of its staging done;
it decides, sends and verifies like any other. A copy that no delivery uses is removed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

from fsrepl.errors import FsreplError
from fsrepl.model.address import region_of
from fsrepl.model.version import Versioning
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.expected import Expected
from fsrepl.region.region import Region
from fsrepl.storage import early_copy, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.journal.rows import Delivery

_KEPT_S = 30.0
"""How long a delivery has to take an early copy, once the update is a version."""


def expect(state: BucketState, update: Expected) -> None:
    """Note an update that is being captured. Its copy begins once all messages that wait are read, since the end of the
    capture may be among them."""
    state.replicas.expected[update.source, update.key] = update


def begin_due(region: Region) -> None:
    """Begin the copies for updates that were noted, whose capture has not ended."""
    for state in region.states.values():
        while state.replicas.expected:
            _begin(region, state, state.replicas.expected.popitem()[1])


def _begin(region: Region, state: BucketState, update: Expected) -> None:
    """Copy the version that the update is made from, where the bucket has it and the copy would take long.

    There is one early copy at a time for a source: where the copy before still waits for its delivery, this destination
    is behind.
    """
    at, address = (update.source, update.key), state.bucket.address
    if not state.is_up or state.bucket.versioning is not Versioning.ENABLED:
        return
    if any(source == update.source for source, _ in list(state.replicas.early)):
        return
    if region.queue(update.source, address).blocked_why or region.is_stuck(update.source):
        return
    known = region.engine.journal.versions.object(address, update.key)
    if known is None or known.marker or known.digest != update.digest:
        return
    early = state.replicas.early[at] = EarlyCopy(update.key, known.id)
    way = region_of(update.source), region.name

    def copy() -> None:
        with state.bucket.open() as bucket:
            version = versions.read(bucket, early.key, early.id, marker=False)
            if version is None or not _has_room(region, bucket, version.size) or not early_copy.is_worthwhile(bucket):
                early.stop()
                return
            progress = limits.Progress(early.key, "", update.source, address, version.size, what="preparing")

            def note(done: int) -> None:
                progress.came_to(done)
                if progress.stop:
                    early.stop()

            with region.engine.progress(progress):
                early.make(bucket, version, note)

    def finish(result: Exception | None) -> None:
        if isinstance(result, Exception) and state.replicas.early.get(at) is early:
            early.until_s = 0.0

    region.in_background(copy, finish, pool=("early", *way), whose=(update.source, address))


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
