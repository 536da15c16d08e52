"""Hashing of large files: a thread reads ahead, the caller's hashes what was read, and others cut and copy it.

A file is read once, from its start to its end, without its holes; memory does not grow with its size. A few pieces are
under way at once, so that no thread waits for another one on a busy machine. Each hand-over of a piece costs processor
time: only work that takes as long as the hash itself has a separate thread. The thread that hashes reads a file itself
where the file is in memory, as while it is written. It hashes on one processor where the others copy or cut, which
takes longer.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from msgspec import Struct

from fsrepl.model import blockmap, digests
from fsrepl.model.blockmap import Block, BlockMap, Cutter
from fsrepl.storage.fs import Fs
from fsrepl.storage.past_cache import BLOCK_BYTES, PastCache

BUFFER_BYTES = 2 << 20
_AHEAD, _BEHIND = 3, 3
"""The pieces read ahead of the latest one, and those before it that may still be in use."""
_READS, _READS_AHEAD = 4, 6
"""Past the page cache, so many reads are under way at once, and so many pieces are read ahead: a disk of today needs
some MiB of requests at any time for its full rate, as the kernel's own read-ahead makes them."""
_SHARE_AWAY = 16
"""A file is in memory where the page cache has all but this part of it."""
SMALL_BYTES = 1 << 20
"""The size limit below which content is read, hashed and copied as a whole."""
HOLE_BYTES = 16 << 20
"""The zeros of a longer hole take a while: progress is seen while they are hashed."""
PARALLEL_BYTES = 8 << 20
"""From here on more than one thread is worth its start."""


class Piece(Struct, frozen=True):
    """The next part of a file: its place, its size, and its bytes; None for a hole.

    The bytes are valid until so many further pieces were asked for: _BEHIND.
    """

    at: int
    size: int
    data: memoryview | None


Read = Callable[[int, memoryview, int], int]
"""Reads into a buffer: descriptor, buffer, offset; the number of bytes."""
Final = Callable[[int], int]
"""Up to where a file is as it stays, beyond a place: waits until there is more. The place itself: the file ends."""


def pieces(fs: Fs, fd: int, read: Read | None = None, final: Final | None = None) -> Generator[Piece, None, None]:
    """A file's content from its start to its end. ECANCELED when the process is about to end."""
    if read is None and (final is not None or _is_at_hand(fs, fd)):
        yield from _pieces_at_hand(fs, fd, final)
        return
    buffers: list[memoryview] = []
    coming: deque[Future[Piece | None]] = deque()
    reads, most_ahead = (1, _AHEAD) if read is None else (_READS, _READS_AHEAD)
    read = read or fs.read_into
    with ThreadPoolExecutor(reads, thread_name_prefix=f"{threading.current_thread().name}-read") as ahead:
        for number, (at, size, is_hole) in enumerate(_steps(fs, fd, final)):
            if len(buffers) <= most_ahead + _BEHIND:
                buffers.append(_buffer())
            buffer = None if is_hole else buffers[number % (most_ahead + _BEHIND + 1)]
            coming.append(ahead.submit(_piece, read, fd, buffer, at, size))
            if len(coming) > most_ahead:
                if (piece := coming.popleft().result()) is None:
                    return
                yield piece
            if fs.interrupted:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        while coming and (piece := coming.popleft().result()) is not None:
            yield piece


def _is_at_hand(fs: Fs, fd: int) -> bool:
    """Whether nearly all of a file is in the page cache."""
    found = fs.stat_fd(fd)
    size = min(found.st_size, found.st_blocks * 512)
    return fs.cached_bytes(fd, 0, found.st_size) >= size - size // _SHARE_AWAY


def _pieces_at_hand(fs: Fs, fd: int, final: Final | None) -> Iterator[Piece]:
    """The pieces of a file that is in memory: each is read when it is asked for."""
    buffers: list[memoryview] = []
    for number, (at, size, is_hole) in enumerate(_steps(fs, fd, final)):
        if len(buffers) <= _BEHIND:
            buffers.append(_buffer())
        buffer = None if is_hole else buffers[number % (_BEHIND + 1)]
        if (piece := _piece(fs.read_into, fd, buffer, at, size)) is None:
            return
        yield piece
        if fs.interrupted:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


def _buffer() -> memoryview:
    """Room for a piece, aligned to pages, as direct reads need."""
    return memoryview(mmap.mmap(-1, BUFFER_BYTES))


def _steps(fs: Fs, fd: int, final: Final | None) -> Iterator[tuple[int, int, bool]]:
    """The parts of a file to read: place, size, and whether it is a hole. The file may grow or shrink meanwhile."""
    at, whole = 0, fs.stat_fd(fd).st_size
    while (until := final(at) if final is not None else whole) > at:
        found = fs.stat_fd(fd)
        has_holes = found.st_blocks * 512 < found.st_size
        while at < until:
            start, end = fs.next_data(fd, at, until) if has_holes else (at, until)
            if at < start:
                yield at, start - at, True
            for place in range(start, end, BUFFER_BYTES):
                yield place, min(BUFFER_BYTES, end - place), False
            at = end


def _piece(read: Read, fd: int, buffer: memoryview | None, at: int, size: int) -> Piece | None:
    """Read one part, without a buffer a hole; None where the file ends before it."""
    if buffer is None:
        return Piece(at, size, None)
    done, whole = 0, -(-size // BLOCK_BYTES) * BLOCK_BYTES  # as direct reads need
    while done < size and (count := read(fd, buffer[done:whole], at + done)):
        done += count
    done = min(done, size)
    return Piece(at, done, buffer[:done]) if done else None


class Hashed(Struct, frozen=True):
    """The BLAKE3 of a content, its size in bytes, and its block map where one was wanted."""

    digest: bytes
    size: int
    blocks: BlockMap | None = None


Copy = Callable[[Piece], None]


def content(
    fs: Fs, fd: int, *, blocks: bool = False, average: int = 0, copy: Copy | None = None,
    progress: Callable[[int], None] | None = None, read: Read | None = None, final: Final | None = None,
    known: Iterable[Block] = (),
) -> Hashed:  # fmt: skip
    """Hash a file. blocks: cut it into blocks, too, of an average size or, with 0, of that which its size suggests.

    known: blocks that it is known to have: see Cutter. copy: called with each piece, in order, in a thread of its own;
    progress: with the number of bytes done so far. final: where the file is being written meanwhile, in order. Raises
    OSError.
    """
    hasher = digests.Hasher(parallel=final is None and not blocks)
    cutter = Cutter(average or blockmap.average_of(fs.stat_fd(fd).st_size), known) if blocks else None
    size, name = 0, threading.current_thread().name
    working: deque[tuple[int, list[Future[None]]]] = deque()

    def wait(most: int) -> None:
        """Until so many pieces are in use at most."""
        while len(working) > most:
            end, jobs = working.popleft()
            for job in jobs:
                job.result()
            if progress is not None:
                progress(end)

    with (
        contextlib.closing(pieces(fs, fd, read, final)) as found,
        ThreadPoolExecutor(1, thread_name_prefix=f"{name}-blocks") as cutting,
        ThreadPoolExecutor(1, thread_name_prefix=f"{name}-copy") as copying,
    ):
        for piece in found:
            jobs = [cutting.submit(_cut, cutter, piece)] if cutter is not None else []
            if copy is not None:
                jobs.append(copying.submit(copy, piece))
            if piece.data is not None:
                hasher.update(piece.data)
            else:
                wait(0)
                _hash_hole(fs, hasher, piece, progress)
            size = piece.at + piece.size
            working.append((size, jobs))
            wait(_BEHIND)
        wait(0)
    digest = hasher.digest()
    return Hashed(digest, size, cutter.map(digest) if cutter is not None else None)


def _hash_hole(fs: Fs, hasher: digests.Hasher, hole: Piece, progress: Callable[[int], None] | None) -> None:
    if hole.size < HOLE_BYTES:
        for zeros in fs.zeros(hole.size):
            hasher.update(zeros)
        return
    note = (lambda done: progress(hole.at + done)) if progress is not None else None
    hasher.zeros(hole.size, digests.counted(fs.zeros(hole.size), note))


def _cut(cutter: Cutter, piece: Piece) -> None:
    if piece.data is not None:
        cutter.data(piece.data)
    else:
        cutter.hole(piece.size)


def digest_past_cache(fs: Fs, fd: int, size: int, progress: Callable[[int], None] | None = None) -> bytes:
    """The BLAKE3 of an open file of about a size, read past the page cache. progress: as in content. Raises OSError."""
    if size >= SMALL_BYTES:
        return content(fs, fd, progress=progress, read=PastCache(fs, fd)).digest
    was_cached = fs.is_cached(fd, 0, size)
    digest = digests.of_chunks(digests.counted(fs.chunks(fd), progress))
    if not was_cached:
        fs.drop_cache(fd)
    return digest
