"""The content of one version is copied to another place, hidden, at a bounded rate, and read back.

A large copy has a name that follows from its version. It survives a crash and the daemon's end, and the next try
continues it: an attribute of the copy says how much of it is durable. At the end the whole copy is read back and
compared with the BLAKE3 of its version; where it differs it is made from its start.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged, Unavailable
from fsrepl.model import attributes, digests, record_form
from fsrepl.model.version import Form, Place, Version
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.storage import compression, record_homes, staging, tiers
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import DOES_NOT_FIT, NO_SPACE, UNSUPPORTED

_PART_BYTES = 64 << 20
_MARK = attributes.OURS + "copied"
"""An attribute of an unfinished copy: the bytes of content that it has, and its size with these."""


class Pace(Struct):
    """How fast a batch of content is copied, and how far it is. large_bytes: the size from which a copy is resumed."""

    limiter: Limiter
    progress: Progress
    large_bytes: int

    def paced(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, no faster than the limit. Raises ECANCELED when the daemon ends."""
        for chunk in chunks:
            yield chunk
            self.limiter.sent(len(chunk))
            self.progress.came_to(self.progress.bytes_done + len(chunk))
            self.progress.pause(self.limiter)
            self._go_on()

    def verified(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks of a copy that is read back."""
        for chunk in chunks:
            yield chunk
            self.progress.verified_to(self.progress.bytes_verified + len(chunk))
            self._go_on()

    def _go_on(self) -> None:
        if self.progress.stop:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


class Target(Struct, frozen=True):
    """Where a copy is made: the open directory for staging, the name there, and the place that the version will have;
    None for the bucket's store."""

    at: int
    name: bytes
    place: Place | None


def target(bucket: OpenBucket, version: Version, to: str, *, large: bool) -> Target:
    """The target of a version's copy. to: a tier, empty for the bucket's store. Raises Unavailable, OSError."""
    name = tiers.move_name(version.key, version.id, version.digest, to) if large else b""
    if not to:
        return Target(bucket.tmp, name or staging.token(), None)
    tier, token = bucket.tier(to), tiers.new_token()
    return Target(tier.tmp, name or token.encode(), Place(to, token, tier.tier.form))


def is_whole_copy(bucket: OpenBucket, version: Version, fd: int, to: Target, pace: Pace) -> bool:
    """Copy a version's content, from an open file; False where that does not match its BLAKE3.

    Raises OSError, Unavailable: nothing is left then, except of a large copy what the next try goes on with.
    """
    large = version.size >= pace.large_bytes
    new, was = _opened(bucket, to, large=large)
    keeps = False
    try:
        source = digests.Passing(pace.paced(_from(bucket, fd, version.place, was[0])))
        pace.progress.came_to(pace.progress.bytes_done + was[0])
        try:
            _put_record(bucket, new, version, to.place)
            with bucket.fs.released():
                _write(bucket, new, source, to.place, was, marks=large)
                bucket.fs.sync_file(new)
                bucket.fs.drop_cache(new)
                found = digests.of_chunks(pace.verified(tiers.decoded(bucket.fs, new, to.place)))
        except StoreDamaged:
            found = b""
        if found == version.digest:
            keeps = True
            return True
        if was[0] or source.digest() == version.digest:
            raise Unavailable("the copy does not match its version; it is made again")
        return False
    except OSError as error:
        keeps = large and error.errno not in NO_SPACE
        raise
    finally:
        bucket.fs.close(new)
        if not keeps:
            with contextlib.suppress(OSError):  # a file that stays is swept
                bucket.fs.unlink(to.at, to.name)


def _opened(bucket: OpenBucket, to: Target, *, large: bool) -> tuple[int, tuple[int, int]]:
    """The file of a copy, opened to write; and the bytes of content that an earlier try left there, with its size."""
    fs = bucket.fs
    if large:
        with contextlib.suppress(FileNotFoundError):
            fd = fs.open_staged(to.at, to.name)
            if not fs.lock(fd):
                fs.close(fd)
                raise Unavailable("an earlier copy of it is still under way")
            found = fs.stat_fd(fd)
            read, _, size = (fs.attribute(fd, _MARK) or b"").partition(b" ")
            if read.isdigit() and size.isdigit() and fs.is_regular(found) and int(size) <= found.st_size:
                fs.truncate(fd, int(size))
                return fd, (int(read), int(size))
            fs.close(fd)
            fs.unlink(to.at, to.name)
    fd = fs.create(to.at, to.name)
    if large:
        fs.lock(fd)
    return fd, (0, 0)


def _from(bucket: OpenBucket, fd: int, place: Place | None, start: int) -> Iterator[bytes]:
    """The content in an open file from an offset on."""
    if place is None or place.form is not Form.ZSTD:
        yield from bucket.fs.chunks(fd, start)
        return
    left = start
    for chunk in tiers.decoded(bucket.fs, fd, place):
        if left < len(chunk):
            yield chunk[left:]
        left = max(0, left - len(chunk))


def _put_record(bucket: OpenBucket, fd: int, version: Version, place: Place | None) -> None:
    """Write the copy of the record that content in a tier has."""
    if place is not None:
        record = {**attributes.encode(replace(version, place=place)), attributes.KEY: version.key}
        values = {tiers.BUCKET: bucket.bucket.uuid.encode(), **record_form.on_file(record)}
        record_homes.put_values(bucket, fd, values)


def _write(
    bucket: OpenBucket, fd: int, chunks: Iterable[bytes], place: Place | None, was: tuple[int, int], *, marks: bool
) -> None:
    """Append content, a part at a time. Archived content gets a zstd frame a part."""
    fs, (read, size) = bucket.fs, was
    for part in _parts(iter(chunks)):
        counted = _Counted(part)
        if place is not None and place.form is Form.ZSTD:
            for data in compression.compressed(counted):
                fs.write_at(fd, data, size)
                size += len(data)
        else:
            size = fs.write_sparse(fd, counted, size)
        read += counted.size
        if marks and counted.size >= _PART_BYTES:
            fs.sync_file(fd)
            _mark(bucket, fd, b"%d %d" % (read, size))
    if marks:
        _mark(bucket, fd, b"")


def _mark(bucket: OpenBucket, fd: int, value: bytes) -> None:
    """Write on a copy how much of it is durable, or remove that mark. Without a mark the copy is repeated, and no
    more."""
    try:
        if value:
            bucket.fs.set_attribute(fd, _MARK, value)
        else:
            bucket.fs.remove_attribute(fd, _MARK)
    except OSError as error:
        if error.errno not in DOES_NOT_FIT | UNSUPPORTED | {errno.ENODATA}:
            raise


class _Counted:
    """Chunks, and how many bytes they had."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self.size = chunks, 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            yield chunk


def _parts(chunks: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Content in parts of about _PART_BYTES; each is to be consumed before the next."""
    for first in chunks:
        yield _part(first, chunks)


def _part(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    size, chunk = len(first), first
    yield chunk
    while size < _PART_BYTES and (chunk := next(rest, b"")):
        size += len(chunk)
        yield chunk
