"""Content and metadata of one version -> a hidden, verified copy in the destination.

Nothing becomes visible here. What is staged is read back and must match the recorded BLAKE3; a
mismatch is either damage at the source, which is reported and never delivered, or a copy gone
wrong, which is made again. No reflinks between regions: a replica shares no storage (G10).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from fsrepl.errors import Failed, Unavailable
from fsrepl.model import attributes, digests, metadata
from fsrepl.model.version import Version
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.storage import bucket, records, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object, Owed
from fsrepl.storage.posix import apply_posix
from fsrepl.views.stage import SMALL_BYTES, stage_view

_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class StagedReplica:
    """A replica lying hidden in the destination's .fsrepl/tmp.

    view names a second file, for the view, where view and store are to be independent; empty where
    the view will be a hard link to the stored version.
    """

    stored: versions.Staged
    view: bytes = b""


def stage(
    source: OpenBucket,
    destination: OpenBucket,
    version: Version,
    replica: Version,
    *,
    linked: bool,
    data: bytes | None = None,
    progress: Progress | None = None,
    limiter: Limiter | None = None,
) -> StagedReplica:
    """Write a replica, hidden and verified. data: the content, where it is at hand, hashed already.

    Raises Failed (the stored version is damaged or gone), Unavailable (the copy does not match), OSError.
    """
    if replica.marker:
        return StagedReplica(versions.stage_marker(destination, replica))
    name = staging.token()
    fs = destination.fs
    fd = fs.create(destination.tmp, name)
    try:
        sidecar = not linked and records.put(destination, fd, name, attributes.encode(replica))
        if data is not None:
            fs.write(fd, data)
            if limiter:
                limiter.sent(len(data))
            _verify(source, destination, version, fd)
        else:
            with fs.aside() if version.size >= SMALL_BYTES else contextlib.nullcontext():
                _copy(source, version, destination, fd, progress, limiter)
                _verify(source, destination, version, fd, progress.verified_to if progress else None)
        if linked:
            posix = apply_posix(destination, fd, replica.posix)
            replica, sidecar = records.put_shared(destination, fd, name, replica, new=posix)
            return StagedReplica(versions.Staged(replica, name, sidecar))
        view, shortfall = stage_view(destination, replica, fd)
        if shortfall != replica.shortfall:
            replica = replace(replica, shortfall=shortfall)
            sidecar = records.put_again(destination, fd, name, attributes.encode(replica))
        return StagedReplica(versions.Staged(replica, name, sidecar), view)
    except BaseException:
        staging.unstage(destination, name)
        raise
    finally:
        fs.close(fd)


def _copy(
    source: OpenBucket,
    version: Version,
    destination: OpenBucket,
    to: int,
    progress: Progress | None,
    limiter: Limiter | None,
) -> None:
    try:
        fd = versions.open_version(source, version.key, version.id)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        at = written = 0
        while True:
            at, until = source.fs.next_data(fd, at, version.size)
            most = limiter.chunk_bytes(_CHUNK) if limiter and progress else _CHUNK
            count = destination.fs.copy(fd, to, at, min(most, until - at)) if at < until else 0
            if not count:
                break
            at = written = at + count
            if limiter:
                limiter.sent(count)
            if progress:  # in a lane
                progress.came_to(at)
                if limiter:
                    progress.pause(limiter)
                if progress.stop:
                    raise Unavailable("its copy was stopped")
        if progress:
            progress.came_to(at)
        if written < at:  # it ends in a hole
            destination.fs.truncate(to, at)
    finally:
        source.fs.close(fd)


def _verify(
    source: OpenBucket, destination: OpenBucket, version: Version, fd: int, told: Callable[[int], None] | None = None
) -> None:
    if version.size < SMALL_BYTES and digests.of(destination.fs.read_at(fd, version.size + 1, 0)) == version.digest:
        return
    if bucket.content_digest(destination, fd, told) == version.digest:
        return
    try:
        original = versions.open_version(source, version.key, version.id)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        digest = bucket.content_digest(source, original, told)
    finally:
        source.fs.close(original)
    if digest != version.digest:
        raise Failed(
            "SrcObjectNotEligible",
            "the stored version no longer matches its BLAKE3; `fsrepl verify --repair` looks for a good copy",
        )
    raise Unavailable("the copy does not match the source; it is made again")


@dataclass(slots=True)
class Item:
    """One delivery under way."""

    owed: Owed
    version: Version | None = None
    replica: Version | None = None
    staged: StagedReplica | None = None
    groups: frozenset[str] = metadata.GROUPS
    """Of its metadata, what may travel."""
    known: Object | None = None
    """The key in the destination, as the journal has it."""
