"""Content and metadata of one version -> a hidden, verified copy in the destination.

Nothing becomes visible here. A staged copy is read back and must match the recorded BLAKE3. A
mismatch is either damage at the source, which is reported and never delivered, or a faulty copy,
which is made again. No reflinks between regions: a replica shares no storage (G10).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from msgspec import Struct

from fsrepl.errors import Failed, Unavailable
from fsrepl.model import metadata
from fsrepl.model.version import Version
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.replicate.destination import Destination
from fsrepl.replicate.draft import Draft, StagedReplica
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.storage.journal.rows import Delivery, Object

_CHUNK = 8 << 20


def stage(
    source: OpenBucket,
    destination: Destination,
    version: Version,
    replica: Version,
    *,
    data: bytes | None = None,
    progress: Progress | None = None,
    limiter: Limiter | None = None,
) -> StagedReplica:
    """Write a replica, hidden and verified. data: the content, already hashed, where it is in memory.

    Raises Failed (the stored version is damaged or gone), Unavailable (the copy does not match), OSError.
    """
    if replica.marker:
        return destination.stage_marker(replica)
    with destination.draft(replica) as draft:
        if data is not None:
            draft.write(data)
            if limiter:
                limiter.sent(len(data))
            _verify(source, version, draft)
        else:
            with source.fs.released() if version.size >= SMALL_BYTES else contextlib.nullcontext():
                _copy(source, version, draft, progress, limiter)
                _verify(source, version, draft, progress.verified_to if progress else None)
        return draft.stage()


def _copy(
    source: OpenBucket, version: Version, draft: Draft, progress: Progress | None, limiter: Limiter | None
) -> None:
    try:
        fd = versions.open_content(source, version)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        at = written = 0
        while True:
            at, until = source.fs.next_data(fd, at, version.size)
            count = _copy_some(fd, draft, at, until - at, progress, limiter) if at < until else 0
            if not count:
                break
            at = written = at + count
            if progress:
                progress.came_to(at)
        if progress:
            progress.came_to(at)
        if written < at:  # the content ends in a hole
            draft.end_at(at)
    finally:
        source.fs.close(fd)


def _copy_some(
    fd: int, draft: Draft, at: int, most: int, progress: Progress | None, limiter: Limiter | None
) -> int:  # fmt: skip
    """Copy the next bytes; their number. A background worker, which has a progress, waits until the limit allows it."""
    most = min(most, limiter.chunk_bytes(_CHUNK) if limiter and progress else _CHUNK)
    if progress and not (progress.claim(limiter, most) if limiter else not progress.stop):
        raise Unavailable("its copy was stopped")
    claimed, count = most if progress else 0, 0
    try:
        count = draft.copy(fd, at, most)
    finally:
        if limiter:
            limiter.sent(count - claimed)
    return count


def _verify(source: OpenBucket, version: Version, draft: Draft, on_read: Callable[[int], None] | None = None) -> None:
    if draft.is_whole(on_read):
        return
    try:
        original = versions.open_content(source, version)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        digest = content_digest(source, original, on_read)
    finally:
        source.fs.close(original)
    if digest != version.digest:
        raise Failed(
            "SrcObjectNotEligible",
            "the stored version no longer matches its BLAKE3; `fsrepl verify --repair` looks for a good copy",
        )
    raise Unavailable("the copy does not match the source; it is made again")


class Item(Struct):
    """One delivery in progress."""

    delivery: Delivery
    version: Version | None = None
    replica: Version | None = None
    staged: StagedReplica | None = None
    crossed_bytes: int | None = None
    """The part of a large content that was sent; None where all of it was, or nothing yet."""
    groups: frozenset[str] = metadata.GROUPS
    """The groups of its metadata that may travel."""
    known: Object | None = None
    """The key in the destination, as the journal knows it."""
