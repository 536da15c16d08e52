"""Copies of content within a bucket, into a hidden file, by reflink where the filesystem supports it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, blockmap, digests
from fsrepl.storage import blocks, hashing, record_homes, shared_blocks, staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import UNSUPPORTED
from fsrepl.storage.past_cache import PastCacheWriter

_ZEROS = bytes(1 << 20)
_COPY_BYTES = 64 << 20
_STARTED_BYTES = 8 << 20
"""The kernel is asked to write to the disk in parts of this size: a smaller part takes it as long."""
_RESERVED_MAX = 256
"""The most separate parts of a sparse file that are reserved in advance."""


def copy_aside(bucket: OpenBucket, fd: int, name: bytes, progress: Callable[[int], None] | None = None) -> bytes:
    """Copy an open file to a name in .fsrepl/tmp; the BLAKE3 of the copy. On failure nothing is left.

    progress: called with the number of bytes copied and hashed.
    """
    to = bucket.fs.create(bucket.tmp, name)
    try:
        try:
            if bucket.bucket.sharing == "private":
                raise OSError(errno.ENOTSUP, "a copy of its own was asked for")
            bucket.fs.clone(to, fd)
            return digests.of_chunks(digests.counted(bucket.fs.chunks(to), progress))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        read = digests.Passing(digests.counted(bucket.fs.chunks(fd), progress))
        bucket.fs.write_sparse(to, read)
        return read.digest()
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(bucket.tmp, name)
        raise
    finally:
        bucket.fs.close(to)


def copy_part(
    bucket: OpenBucket, from_fd: int, to_fd: int, from_at: int, to_at: int, size: int, *, share: bool
) -> None:
    """Copy a part of an open file within a bucket, without its holes, and not through this process.

    share: see Fs.copy_within. It ends early where the file does. ECANCELED when the process is about to end.
    """
    fs, done = bucket.fs, 0
    while done < size:
        if fs.interrupted:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        start, end = fs.next_data(from_fd, from_at + done, from_at + size)
        if (done := start - from_at) >= size:
            return
        copied = fs.copy_within(from_fd, to_fd, start, to_at + done, min(end - start, _COPY_BYTES), share=share)
        if not copied:
            return
        if copied >= _STARTED_BYTES:  # less is written with what is around it
            fs.start_writing(to_fd, to_at + done, copied)
        done += copied


Alike = Callable[[int], Sequence[tuple[bytes, str]]]
"""The stored versions of a bucket with a size: key and id of each."""


class Before(NamedTuple):
    """The version that a key has when its file is captured again, with its BLAKE3."""

    key: bytes
    id: str
    digest: bytes


def copy_large(
    bucket: OpenBucket, fd: int, lasting: bytes, name: bytes, progress: Callable[[int], None] | None = None,
    *, alike: Alike | None = None, before: Before | None = None,
) -> bytes:  # fmt: skip
    """Copy a large open file to a name in .fsrepl/tmp, durably, and map it; the BLAKE3 of the copy.

    Until it is complete it has a lasting name. What an earlier try left there is compared with the file, and not
    written again. It is kept for the next try where the process ends, and removed after any other failure. A clone that
    shares all of its blocks with a stored version is not read: it has that version's content. Of one that shares some
    with the version before, only the others are cut. progress: as in copy_aside. alike: the versions that may have the
    content.
    """
    to, again = staging.open_lasting(bucket, lasting)
    try:
        found = _cloned(bucket, to, fd, progress, alike, before)
        if found is None:
            found = (_compared if again else _copied)(bucket, to, fd, progress)
        bucket.fs.sync_file(to)
        bucket.fs.rename(bucket.tmp, lasting, bucket.tmp, name)
    except OSError as error:
        if error.errno != errno.ECANCELED:
            staging.unstage(bucket, lasting)
        raise
    finally:
        bucket.fs.close(to)
    if found.blocks is not None:
        blocks.write(bucket, found.blocks)
    return found.digest


def _cloned(
    bucket: OpenBucket, to: int, fd: int, progress: Callable[[int], None] | None, alike: Alike | None,
    before: Before | None,
) -> hashing.Hashed | None:  # fmt: skip
    if bucket.bucket.sharing == "private":
        return None
    try:
        bucket.fs.clone(to, fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    size = bucket.fs.stat_fd(fd).st_size
    if bucket.fs.stat_fd(to).st_size > size:  # left longer by an earlier try; else xfs would unshare the last block
        bucket.fs.truncate(to, size)
    for key, version_id in alike(size) if alike is not None else ():
        if digest := _shared_digest(bucket, to, key, version_id):
            return hashing.Hashed(digest, size)
    with contextlib.ExitStack() as opened:
        if shared_blocks.is_warmer(bucket.fs, fd, to) and shared_blocks.have_same(bucket.fs, fd, to):
            known = _unchanged_blocks(bucket, to, before, opened)
            found = hashing.content(bucket.fs, fd, blocks=True, progress=progress, known=known)
            if found.size == size and shared_blocks.have_same(bucket.fs, fd, to):
                return found
        known = _unchanged_blocks(bucket, to, before, opened)
        return hashing.content(bucket.fs, to, blocks=True, progress=progress, known=known)


def _shared_digest(bucket: OpenBucket, fd: int, key: bytes, version_id: str) -> bytes:
    """The recorded digest of a stored version whose blocks are all those of an open file, and no others; else empty."""
    with contextlib.suppress(OSError, StoreDamaged), contextlib.ExitStack() as opened:
        at, name = bucket.stored_file(key, version_id)
        if (other := _open_stored(bucket, at, name, opened)) is not None:
            fields = record_homes.look(bucket, other, at, name, bucket.fs.stat_fd(other)).fields
            if shared_blocks.have_same(bucket.fs, fd, other):
                with contextlib.suppress(KeyError, ValueError):
                    return bytes.fromhex(fields[attributes.BLAKE3].decode())
    return b""


def _unchanged_blocks(
    bucket: OpenBucket, fd: int, before: Before | None, opened: contextlib.ExitStack
) -> Iterable[blockmap.Block]:
    """The blocks of an open file, in order, that lie where the stored version before has them; none where that is not
    known. That version is closed with `opened`."""
    if before is None or (found := blocks.read(bucket, before.digest)) is None:
        return ()
    if found.average != blockmap.average_of(bucket.fs.stat_fd(fd).st_size):
        return ()
    with contextlib.suppress(OSError):
        other = _open_stored(bucket, *bucket.stored_file(before.key, before.id), opened)
        if other is not None:
            return blockmap.unchanged_blocks(found, shared_blocks.common_parts(bucket.fs, fd, other))
    return ()


def _open_stored(bucket: OpenBucket, at: int, name: bytes, opened: contextlib.ExitStack) -> int | None:
    """A stored file, to be closed with `opened`; None where it has another name, as of a view: users can write into
    that, so that it may not be as its record and its map say any more. Raises OSError."""
    fd = bucket.fs.open_read(at, name)
    opened.callback(bucket.fs.close, fd)
    return fd if bucket.fs.stat_fd(fd).st_nlink == 1 else None


def _copied(bucket: OpenBucket, to: int, fd: int, progress: Callable[[int], None] | None) -> hashing.Hashed:
    """Copy a file, which is hashed meanwhile: what is hashed is what is written, also where somebody writes to it."""
    fs, size = bucket.fs, bucket.fs.stat_fd(fd).st_size
    _reserve(bucket, to, fd)
    fs.truncate(to, size)  # else each write makes the file longer, which takes longer
    written = PastCacheWriter(fs, to)

    def write(piece: hashing.Piece) -> None:
        if piece.data is not None:
            written(piece.data, piece.at)

    found = hashing.content(fs, fd, blocks=True, copy=write, progress=progress)
    if (left := fs.stat_fd(fd).st_size) >= found.size == size:
        return found
    fs.truncate(to, min(left, found.size))  # it was cut short meanwhile
    fs.bypass_cache(to, on=False)
    return hashing.content(fs, to, blocks=True, progress=progress)


def _compared(bucket: OpenBucket, to: int, fd: int, progress: Callable[[int], None] | None) -> hashing.Hashed:
    """Continue a copy that an earlier try left: its data is compared with the file, and written where it differs."""
    fs, started = bucket.fs, 0
    _reserve(bucket, to, fd)

    def write(piece: hashing.Piece) -> None:
        nonlocal started
        if piece.data is None:
            _empty(bucket, to, piece)
            return
        if fs.read_at(to, piece.size, piece.at) == bytes(piece.data):
            return
        fs.write_at(to, piece.data, piece.at)
        if (size := piece.at + piece.size - started) >= _STARTED_BYTES:
            fs.start_writing(to, started, size)
            started += size

    found = hashing.content(fs, fd, blocks=True, copy=write, progress=progress)
    fs.truncate(to, found.size)
    return found


def _empty(bucket: OpenBucket, to: int, piece: hashing.Piece) -> None:
    """Make a part of the copy zeros, as a hole where the filesystem can."""
    if not bucket.fs.punch(to, piece.at, piece.size):
        for at in range(piece.at, piece.at + piece.size, len(_ZEROS)):
            bucket.fs.write_at(to, _ZEROS[: piece.at + piece.size - at], at)


def _reserve(bucket: OpenBucket, to: int, fd: int) -> None:
    """Find out now whether there is room for a file's data. Raises ENOSPC."""
    fs, at, size = bucket.fs, 0, bucket.fs.stat_fd(fd).st_size
    parts: list[tuple[int, int]] = []
    while len(parts) <= _RESERVED_MAX:
        start, end = fs.next_data(fd, at, size)
        if start >= end:
            break
        parts.append((start, end - start))
        at = end
    for start, count in parts if len(parts) <= _RESERVED_MAX else ():
        if not fs.reserve(to, start, count):
            return
