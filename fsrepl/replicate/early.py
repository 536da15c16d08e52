"""The content of a large file crosses while it is captured at its source: of an update of which little has changed, the
blocks that are other ones, as they are cut; of another file all of it.

The delivery of the version that is made then finds its staging done, or a part of it; it decides, sends the rest and
verifies like any other. Content that no delivery uses is removed.

It crosses early where its delivery, as far as is known, will be allowed to send it, and will have to: where a limit
counts each byte, or the bucket has content like it, what must cross of a file without blocks is known only when there
are some.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from fsrepl.errors import FsreplError, Unavailable
from fsrepl.model.address import region_of
from fsrepl.model.blockmap import Block
from fsrepl.model.version import Version, Versioning
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.expected import Expected
from fsrepl.region.region import Region
from fsrepl.replicate import blockwise, decide, large_draft, sending
from fsrepl.replicate.sending import Sending, StoredContent
from fsrepl.storage import alike, large_file
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.coming_blocks import ComingBlocks
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.journal.rows import Delivery, delivery_of
from fsrepl.storage.large_file import Base

_KEPT_S = 30.0
"""How long a delivery has to take an early copy, once the file is a version."""
_COPIED_BYTES, _CLONED_BYTES = 4 << 20, 32 << 20
"""The blocks that are followed at once have so many bytes, where the version before is copied and where it is cloned. A
clone is not read back while blocks of it are written: see LargeFile."""


def expect(state: BucketState, file: Expected) -> None:
    """Note a file that is being captured. Its copy begins once all messages that wait are read, since the end of the
    capture may be among them."""
    state.replicas.expected[file.source, file.key] = file


def begin_due(region: Region) -> None:
    """Begin the copies for files that were noted, whose capture has not ended."""
    for state in region.states.values():
        while state.replicas.expected:
            _begin(region, state, state.replicas.expected.popitem()[1])


def _begin(region: Region, state: BucketState, file: Expected) -> None:
    """Begin the copy of a file that is being captured.

    There is one early copy at a time for a source: where the copy before still waits for its delivery, this destination
    is behind.
    """
    if not state.is_up or state.bucket.versioning is not Versioning.ENABLED:
        return
    if any(source == file.source for source, _ in list(state.replicas.early)):
        return
    if region.queue(file.source, state.bucket.address).blocked_why or region.is_stuck(file.source):
        return
    known, early = region.engine.journal.versions.object(state.bucket.address, file.key), EarlyCopy(file.key)
    if not file.digest:
        if not region.engine.limiter.rate:
            _in_background(region, state, file, early, partial(_receive, region, state, file, early))
    elif known is not None and not known.marker and known.digest == file.digest:
        early = EarlyCopy(file.key, file.blocks.wake)
        _in_background(region, state, file, early, partial(_follow, region, state, file, early, known.id))


def _receive(region: Region, state: BucketState, file: Expected, early: EarlyCopy) -> None:
    """Copy all of a file that is being captured."""
    version = file.version
    with (
        state.bucket.open() as bucket,
        sending.opened(region.engine, file.source, bucket) as source,
        source.coming(version) as content,
    ):
        may_cross = _may_cross(region, bucket, source, version, version.size)
        if not may_cross or _is_like_others(region, state, bucket, content, version):
            early.stop()
            return
        leaves_cache = large_draft.leaves_cache(bucket, version, has_base=False)
        progress = limits.Progress(early.key, "", file.source, bucket.address, version.size)
        with region.engine.progress(progress), early.making(bucket, leaves_cache=leaves_cache) as is_wanted:
            if is_wanted:
                early.file.receive(version.size)
                content.fill(early, progress)


def _follow(region: Region, state: BucketState, file: Expected, early: EarlyCopy, version_id: str) -> None:
    """Put a file that is being captured together from a version here, and the blocks that differ from it."""
    version, base = file.version, None
    with (
        contextlib.ExitStack() as opened,
        state.bucket.open() as bucket,
        sending.opened(region.engine, file.source, bucket) as source,
        source.coming(version) as content,
    ):
        is_cloned = large_file.may_clone(bucket)
        if _may_cross(region, bucket, source, version, 0 if is_cloned else version.size):
            base = blockwise.open_base(source, bucket, early.key, version_id)
        if base is None:
            early.stop()
            return
        opened.callback(bucket.fs.close, base.fd)
        leaves_cache = large_draft.leaves_cache(bucket, version, has_base=True)
        progress = limits.Progress(early.key, "", file.source, bucket.address, version.size)
        with region.engine.progress(progress), early.making(bucket, leaves_cache=leaves_cache) as is_wanted:
            if is_wanted:
                least = _CLONED_BYTES if is_cloned else _COPIED_BYTES
                parts = _comparable(file.blocks, least, early, base, progress)
                content.send(early, early.follow(parts, base, version.size), progress)


def _comparable(
    blocks: ComingBlocks, least: int, early: EarlyCopy, base: Base, progress: limits.Progress
) -> Iterator[Sequence[Block]]:
    """The blocks that come, in parts; none where they have another average size than those of the base."""
    for part in blocks.parts(least, early.is_wanted):
        if blocks.average != base.blocks.average:
            return
        yield part
        progress.came_to(part[-1].end)


def _may_cross(region: Region, bucket: OpenBucket, source: Sending, version: Version, size_bytes: int) -> bool:
    """Whether a version that is being captured will be sent to a bucket, as far as is known, and there is room for a
    copy of that size."""
    recorded = version.deliveries[bucket.address]
    facts = source.facts(
        delivery_of(source.address, version, bucket.address, recorded),
        version,
        lambda _: {"destination_versioning": bucket.bucket.versioning, "replica_there": False},
    )
    copies = 2 if source.here.device == bucket.device else 1  # the capture comes first
    return isinstance(decide.decide(facts), decide.Send) and _has_room(region, bucket, size_bytes * copies)


def _is_like_others(
    region: Region, state: BucketState, bucket: OpenBucket, content: StoredContent, version: Version
) -> bool:  # fmt: skip
    """Whether a bucket may have some of the content of a version that is being captured."""
    sample = alike.sample_within(content.read, version.size)
    number = len(region.engine.journal.versions.of_size(bucket.address, version.size, alike.NEAR_MAX + 1))
    if number > alike.NEAR_MAX or (number and not sample):
        return True  # it may be a copy of one of them, all of which the sample is not compared with
    return state.replicas.alike.are_there(bucket, sample, version.size)


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


def end(state: BucketState, file: Expected, *, is_published: bool) -> None:
    """The capture has ended. Where it led to no version, its early copy is removed."""
    if state.replicas.expected.pop((file.source, file.key), None) is not None:
        return  # nothing was begun
    if (early := state.replicas.early.get((file.source, file.key))) is not None:
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
