"""The damaged blocks of a stored version, replaced alone, each by any copy that has it whole.

The new file is a clone of the damaged one, or a copy within its filesystem, so that only the damaged blocks cross from
another region. Even copies that are all damaged help, as long as not all have the same block damaged. The result is
read back and must match the version's BLAKE3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from msgspec import Struct

from fsrepl.model import delta, digests
from fsrepl.model.blockmap import HOLE, Block, BlockMap
from fsrepl.model.delta import Span
from fsrepl.model.version import Version
from fsrepl.region.limiter import Limiter
from fsrepl.storage import blocks as maps
from fsrepl.storage import hashing, staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_SPACE, UNSUPPORTED

_COPY_BYTES = 64 << 20


class Copy(Struct, frozen=True):
    """An open file that may have the content, where it is, and its bucket."""

    where: str
    bucket: OpenBucket
    fd: int


class Mended(Struct, frozen=True):
    """A whole copy in .fsrepl/tmp, and the spans that were damaged."""

    staged: bytes
    damaged: list[Span]


def mend(
    limiter: Limiter, bucket: OpenBucket, version: Version, fd: int, copies: Sequence[Copy]
) -> Mended | None:  # fmt: skip
    """Stage a copy of a damaged open file with its damaged blocks replaced; None where that is impossible.

    Raises OSError where the bucket's disk is full.
    """
    blocks = _map(bucket, version, copies)
    if blocks is None:
        return None
    bucket.fs.drop_cache(fd)  # the damage may be on the disk alone
    name = staging.token()
    to = bucket.fs.create(bucket.tmp, name)
    try:
        _copy(bucket, fd, to, blocks)
        bad = [block for block in blocks if not _matches(bucket, to, block)]
        if all(_replace(limiter, bucket, to, block, copies) for block in bad):
            found = hashing.content(bucket.fs, to)
            if (found.digest, found.size) == (version.digest, version.size):
                bucket.fs.sync_file(to)
                return Mended(name, delta.spans_of(bad))
    except OSError as error:
        if error.errno in NO_SPACE:
            staging.unstage(bucket, name)
            raise
    except BaseException:
        staging.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(to)
    staging.unstage(bucket, name)
    return None


def _map(bucket: OpenBucket, version: Version, copies: Sequence[Copy]) -> BlockMap | None:
    """The map of a version's content, from any bucket that has it or a whole copy."""
    for each in (bucket, *(copy.bucket for copy in copies)):
        if (found := maps.read(each, version.digest)) is not None:
            return found
    for copy in copies:
        with contextlib.suppress(OSError):
            if (found := maps.of_file(copy.bucket, version.digest, copy.fd)) is not None:
                return found
    return None


def _copy(bucket: OpenBucket, fd: int, to: int, blocks: BlockMap) -> None:
    """Copy the damaged file, without what cannot be read."""
    fs = bucket.fs
    try:
        fs.clone(to, fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        for span in delta.spans_of(block for block in blocks if block.digest != HOLE):
            _copy_span(bucket, fd, to, span)
    fs.truncate(to, blocks.size)


def _copy_span(bucket: OpenBucket, fd: int, to: int, span: Span) -> None:
    at = span.at
    while at < span.end:
        try:
            copied = bucket.fs.copy_within(fd, to, at, at, min(_COPY_BYTES, span.end - at))
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            copied = hashing.BUFFER_BYTES  # a sector that cannot be read: its block is found to be missing
        if not copied:
            return
        at += copied


def _matches(bucket: OpenBucket, fd: int, block: Block) -> bool:
    try:
        return maps.matches(bucket, fd, block)
    except OSError:
        return False  # a sector that cannot be read


def _replace(limiter: Limiter, bucket: OpenBucket, to: int, block: Block, copies: Sequence[Copy]) -> bool:
    """Write a block as one of the copies has it; whether one has it."""
    if block.digest == HOLE:
        return bucket.fs.punch(to, block.at, block.size)
    for copy in copies:
        data = b""
        with contextlib.suppress(OSError):
            data = copy.bucket.fs.read_at(copy.fd, block.size, block.at)
        if digests.of(data) == block.digest:
            if copy.bucket.bucket.region != bucket.bucket.region:
                limiter.sent(len(data))
                limiter.pause(lambda: bucket.fs.interrupted)
            bucket.fs.write_at(to, data, block.at)
            return True
    return False
