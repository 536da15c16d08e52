"""Hashing of large files: read into two buffers in turn, while other threads hash what was read before.

A file is read once, from its start to its end, without its holes; memory does not grow with it. The BLAKE3 of the whole
content and, where a block map is wanted, the blocks are computed side by side.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from msgspec import Struct

from fsrepl.model import blockmap, digests
from fsrepl.model.blockmap import BlockMap, Cutter
from fsrepl.storage.fs import Fs

BUFFER_BYTES = 4 << 20
SMALL_BYTES = 1 << 20
"""The size limit below which content is read, hashed and copied as a whole."""
_BLOCK_BYTES = 4096
"""Whole blocks are read, as reading directly needs."""
HOLE_BYTES = 16 << 20
"""A longer hole is more than one piece, so that progress is seen while its zeros are hashed."""


class Piece(Struct, frozen=True):
    """The next part of a file: its place, its size, and its bytes; None for a hole.

    The bytes are valid until the piece after the next one is asked for.
    """

    at: int
    size: int
    data: memoryview | None


Read = Callable[[int, memoryview, int], int]
"""Reads into a buffer: descriptor, buffer, offset; the number of bytes."""


def pieces(fs: Fs, fd: int, read: Read | None = None) -> Iterator[Piece]:
    """A file's content from its start to its end. ECANCELED when the process is about to end.

    The next piece is read while the caller works on one, by another thread.
    """
    read = read or fs.read_into
    buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(3)]  # aligned to pages, as direct reads need
    with ThreadPoolExecutor(1, thread_name_prefix="read") as ahead:
        coming: Future[Piece | None] | None = None
        for number, (at, size, is_hole) in enumerate(_steps(fs, fd)):
            buffer = buffers[number % len(buffers)] if not is_hole else None
            following = ahead.submit(_piece, read, fd, buffer, at, size)
            if coming is not None:
                if (piece := coming.result()) is None:
                    return
                yield piece
            if fs.interrupted:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            coming = following
        if coming is not None and (piece := coming.result()) is not None:
            yield piece


def _steps(fs: Fs, fd: int) -> Iterator[tuple[int, int, bool]]:
    """The parts of a file to read: place, size, and whether it is a hole. The file may grow or shrink meanwhile."""
    found = fs.stat_fd(fd)
    size, at = found.st_size, 0
    has_holes = found.st_blocks * 512 < size
    while at < size:
        start, end = fs.next_data(fd, at, size) if has_holes else (at, size)
        while at < start:
            count = min(HOLE_BYTES, start - at)
            yield at, count, True
            at += count
        while at < end:
            count = min(BUFFER_BYTES, end - at)
            yield at, count, False
            at += count


def _piece(read: Read, fd: int, buffer: memoryview | None, at: int, size: int) -> Piece | None:
    """Read one part, without a buffer a hole; None where the file ends before it."""
    if buffer is None:
        return Piece(at, size, None)
    done, whole = 0, -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
    while done < size and (count := read(fd, buffer[done:whole], at + done)):
        done += count
    done = min(done, size)
    return Piece(at, done, buffer[:done]) if done else None


class PastCache:
    """Reads an open file without leaving it in the page cache, and without removing what others have there.

    It reads directly where the filesystem can: what the cache has says nothing of the disk.
    """

    def __init__(self, fs: Fs, fd: int) -> None:
        self._fs = fs
        self._directly = fs.read_directly(fd)

    def __call__(self, fd: int, buffer: memoryview, at: int) -> int:
        if self._directly:
            try:
                return self._fs.read_into(fd, buffer, at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            self._directly = self._fs.read_directly(fd, on=False)  # a part of a block is left, or blocks are larger
        was_cached = self._fs.is_cached(fd, at, len(buffer))
        count = self._fs.read_into(fd, buffer, at)
        if not was_cached:
            self._fs.drop_cache(fd, at, len(buffer))
        return count


class Hashed(Struct, frozen=True):
    """The BLAKE3 of a content, its size in bytes, and its block map where one was wanted."""

    digest: bytes
    size: int
    blocks: BlockMap | None = None


Seen = Callable[[Piece], None]


def content(
    fs: Fs, fd: int, *, blocks: bool = False, seen: Seen | None = None,
    told: Callable[[int], None] | None = None, read: Read | None = None,
) -> Hashed:  # fmt: skip
    """Hash a file. seen: called with each piece, in order; told: with the number of bytes hashed so far.

    Raises OSError.
    """
    hasher = digests.Hasher()
    cutter = Cutter(blockmap.average_of(fs.stat_fd(fd).st_size)) if blocks else None
    size = 0
    with ThreadPoolExecutor(1, thread_name_prefix="blocks") as other:
        cut: Future[None] | None = None
        try:
            for piece in pieces(fs, fd, read):
                if cut is not None:
                    cut.result()
                cut = other.submit(_cut, cutter, piece) if cutter is not None else None
                if seen is not None:
                    seen(piece)
                # BLAKE3 counts positions, so that the zeros of a hole have to be hashed too
                for data in fs.zeros(piece.size) if piece.data is None else (piece.data,):
                    hasher.update(data)
                size = piece.at + piece.size
                if told is not None:
                    told(size)
        finally:
            if cut is not None:
                cut.result()  # before the buffer is gone
    digest = hasher.digest()
    return Hashed(digest, size, cutter.map(digest) if cutter is not None else None)


def _cut(cutter: Cutter, piece: Piece) -> None:
    if piece.data is not None:
        cutter.data(piece.data)
    else:
        cutter.hole(piece.size)


def digest_past_cache(fs: Fs, fd: int, size: int, told: Callable[[int], None] | None = None) -> bytes:
    """The BLAKE3 of an open file of about a size, read past the page cache. told: as in content. Raises OSError."""
    if size >= SMALL_BYTES:
        return content(fs, fd, told=told, read=PastCache(fs, fd)).digest
    was_cached = fs.is_cached(fd, 0, size)
    digest = digests.of_chunks(digests.counted(fs.chunks(fd), told))
    if not was_cached:
        fs.drop_cache(fd)
    return digest
