"""A good copy of a version's content: found in any bucket, and staged.

The content comes from any copy that matches the recorded BLAKE3: another region's stored version, the view here, the
view in another region. It is copied (never a reflink: G10), and read back. The caller's thread does it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from fsrepl.errors import StoreDamaged, Unavailable
from fsrepl.model import attributes, digests, keys
from fsrepl.model.delta import Span
from fsrepl.model.version import Place, Version
from fsrepl.region.limiter import Limiter
from fsrepl.region.runtime import Runtime
from fsrepl.repair import mend, rebuild
from fsrepl.repair.target import Target
from fsrepl.storage import damaged, staging, tiers, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import NO_SPACE

log = logging.getLogger("fsrepl")


def is_whole(bucket: OpenBucket, target: Target, version: Version) -> bool:
    """Whether the content of a version is whole, wherever it lies. Raises Unavailable where its tier is away."""
    try:
        fd = _open(bucket, target, version)
    except OSError:
        return False
    try:
        # from the disk: a damage there may not be in the page cache yet
        return version.marker or versions.stored_digest(bucket, version, fd) == version.digest
    except (OSError, StoreDamaged):
        return False  # a sector that cannot be read
    finally:
        bucket.fs.close(fd)


def _open(bucket: OpenBucket, target: Target, version: Version) -> int:
    if version.place is None:
        return bucket.fs.open_read(bucket.store.get(target.directory), target.name)
    return versions.open_stored(bucket, version)


def stage_whole(
    engine: Runtime,
    bucket: OpenBucket,
    elsewhere: rebuild.Elsewhere,
    target: Target,
    version: Version,
    records: dict[str, Version],
) -> bytes:
    """Stage a whole copy: of a large version with its damaged blocks replaced, else from a good copy.

    What is damaged is kept aside, and the finding reported; the result is empty where no copy is whole.
    """
    if version.marker or (fd := _open_damaged(bucket, target, version)) is None:
        return stage_good_copy(engine.limiter, bucket, elsewhere, target, version, records)
    try:
        mended = None
        if version.size >= engine.settings.replication.large_file_bytes:
            with contextlib.ExitStack() as stack:
                copies = []
                for where, other, copy_fd, place in _copies(bucket, elsewhere, target, version, records):
                    stack.callback(other.fs.close, copy_fd)
                    if place is None or not place.is_archived:  # else no block lies in its place
                        copies.append(mend.Copy(where, other, copy_fd))
                mended = mend.mend(engine.limiter, bucket, version, fd, copies)
        if mended is not None:
            staged, spans = mended.staged, mended.damaged
        else:
            staged = stage_good_copy(engine.limiter, bucket, elsewhere, target, version, records)
            spans = [Span(0, version.size)]
        now_ns = engine.site.now()
        aside = damaged.keep(bucket, version, fd, spans, now_ns) if staged else ""
    finally:
        bucket.fs.close(fd)
    _report(engine, bucket, version, spans, aside, is_repaired=bool(staged))
    return staged


def _open_damaged(bucket: OpenBucket, target: Target, version: Version) -> int | None:
    """The stored file of a version, open; None where it is missing, or is only a hole in place of lost content."""
    try:
        fd = _open(bucket, target, version)
    except OSError:
        return None
    size = bucket.fs.stat_fd(fd).st_size
    if size and bucket.fs.next_data(fd, 0, size)[0] == size:  # blocks may be those of its attributes
        bucket.fs.close(fd)
        return None
    return fd


def _report(
    engine: Runtime, bucket: OpenBucket, version: Version, spans: list[Span], aside: str, *, is_repaired: bool
) -> None:
    """Report damaged content: in the log, as an event, and in the counts that metrics and status show."""
    size = sum(span.size for span in spans)
    log.error(
        'damaged content bucket=%s key="%s" version=%s parts=%d damaged_bytes=%d kept="%s": %s',
        bucket.address, keys.shown(version.key), version.id, len(spans), size, aside,
        "it is repaired from a good copy" if is_repaired else "no copy is whole",
    )  # fmt: skip
    with engine.journal.transaction():
        engine.journal.add_damage(bucket.address, repaired=is_repaired)
    engine.reporter.announce_damage(bucket.address, version, size, repaired=is_repaired)


def stage_good_copy(
    limiter: Limiter,
    bucket: OpenBucket,
    elsewhere: rebuild.Elsewhere,
    target: Target,
    version: Version,
    records: dict[str, Version],
    *,
    is_whole: bool = False,
) -> bytes:
    """Copy the content from a good copy; the name of the new copy in tmp, empty where there is no good one.

    is_whole: the version's own file has it, and lacks its record alone.
    """
    if version.marker:
        name = staging.token()
        bucket.fs.close(bucket.fs.create(bucket.tmp, name))
        return name
    about = bucket.address, keys.shown(version.key), version.id
    for where, other, fd, place in _copies(bucket, elsewhere, target, version, records, is_whole=is_whole):
        name = staging.token()
        try:
            if _copy(limiter, bucket, other, tiers.decoded(other.fs, fd, place), name) == version.digest:
                log.info('found good copy bucket=%s key="%s" version=%s in=%s', *about, where)
                return name
        except StoreDamaged:  # it cannot be decompressed
            staging.unstage(bucket, name)
            continue
        except OSError as error:
            staging.unstage(bucket, name)
            if error.errno in NO_SPACE:
                raise
            log.warning('cannot copy bucket=%s key="%s" version=%s: %s', *about, error.strerror)
            continue
        except BaseException:
            staging.unstage(bucket, name)
            raise
        finally:
            other.fs.close(fd)
        staging.unstage(bucket, name)
    return b""


def _copies(
    bucket: OpenBucket,
    elsewhere: rebuild.Elsewhere,
    target: Target,
    version: Version,
    records: dict[str, Version],
    *,
    is_whole: bool = False,
) -> Iterator[tuple[str, OpenBucket, int, Place | None]]:
    """Open files that may have a version's content: their description, and a descriptor that the caller closes; and
    their place in a tier, see tiers.decoded."""
    if is_whole:
        with contextlib.suppress(OSError, Unavailable):
            yield bucket.address, bucket, _open(bucket, target, version), version.place
    for address in records:
        other = elsewhere.buckets[address]
        with contextlib.suppress(OSError, Unavailable):  # its tier may be away
            yield address, other, _open(other, target, records[address]), records[address].place
    for other in (bucket, *(elsewhere.buckets[address] for address in records)):
        with contextlib.suppress(OSError):
            fd = other.open_view(version.key)
            found = other.fs.stat_fd(fd)
            if other.fs.is_regular(found) and (found.st_size == version.size or _is_labelled(other, fd, version)):
                yield f"the file in {other.address}", other, fd, None
            else:
                other.fs.close(fd)


def _is_labelled(bucket: OpenBucket, view: int, version: Version) -> bool:
    """Whether a view says that it shows a version: the size is that of the stored file, which may be damaged too."""
    with contextlib.suppress(OSError):
        return bucket.fs.attribute(view, attributes.VERSION_ID) == version.id.encode()
    return False


def _copy(
    limiter: Limiter, bucket: OpenBucket, other: OpenBucket, chunks: Iterable[bytes], name: bytes
) -> bytes:  # fmt: skip
    """Write content from a bucket into tmp, durably; the BLAKE3 of the copy as read back."""
    fd = bucket.fs.create(bucket.tmp, name)
    try:
        crosses = other.bucket.region != bucket.bucket.region
        sent = digests.Passing(limiter.paced(chunks, lambda: other.fs.interrupted) if crosses else chunks)
        bucket.fs.write_sparse(fd, sent)
        bucket.fs.sync_file(fd)
        found = content_digest(bucket, fd)
        return found if found == sent.digest() else b""
    finally:
        bucket.fs.close(fd)
