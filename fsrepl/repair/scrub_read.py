"""The scrub reads one stored version, past the page cache, and compares it with its hash.

A large version is read a part at a time, by its block map, and a restart goes on in the middle of it: at the usual
limit a version of some terabytes takes days. The map decides nothing: where one of its blocks does not match, the whole
version is read and compared with its own hash. So is one without a map, which is made on the way.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

from msgspec import Struct

from fsrepl.model import digests, scrub
from fsrepl.model.blockmap import HOLE, Block, BlockMap
from fsrepl.model.version import Version
from fsrepl.storage import blocks as maps
from fsrepl.storage import hashing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs
from fsrepl.storage.past_cache import PastCache

_RUN_BYTES = 8 << 20
"""Adjacent blocks are read together up to this size, which no block exceeds."""
_PAGE_BYTES = 4096

Progress = Callable[[int, int], bool]
"""Receives up to where a version was read, and how many bytes that took from the disk. It may wait; False: read no
more."""


class Stopped(Exception):
    """A version that is read as a whole was left in the middle."""


class Read(Struct, frozen=True):
    """The result of reading a version. upto: up to where it was read; its whole size where that is decided."""

    upto: int
    size: int
    matches: bool = True

    @property
    def is_complete(self) -> bool:
        return self.upto >= self.size or not self.matches


def read(bucket: OpenBucket, version: Version, fd: int, begin: int, most: int, progress: Progress) -> Read:
    """Read a version, in a file from open_stored, or a part of it from a place on, of about `most` bytes.

    Raises Stopped, OSError, StoreDamaged.
    """
    size = bucket.fs.stat_fd(fd).st_size
    is_in_parts = size > scrub.BATCH_BYTES and not (version.place is not None and version.place.is_archived)
    if is_in_parts and (blocks := maps.read(bucket, version.digest)) is not None and blocks.size == size:
        upto = _read_part(bucket.fs, fd, blocks, begin, begin + most, progress)
        if upto is not None:
            return Read(upto, size)
    before = 0

    def counted(done: int) -> None:
        nonlocal before
        before, count = done, done - before
        if not progress(done, count):
            raise Stopped

    if not is_in_parts:
        return Read(size, size, versions.stored_digest(bucket, version, fd, counted) == version.digest)
    found = hashing.content(bucket.fs, fd, blocks=True, progress=counted, read=PastCache(bucket.fs, fd))
    if found.digest == version.digest and found.blocks is not None:
        maps.write(bucket, found.blocks)
    return Read(size, size, found.digest == version.digest)


def _read_part(fs: Fs, fd: int, blocks: BlockMap, begin: int, end: int, progress: Progress) -> int | None:
    """Up to where a file has what its map says, from a place up to about another one; None where it has not."""
    reader, upto = _Reader(fs, fd), begin
    for run in _runs(blocks, begin):
        if upto >= end:
            break
        if any(block.size > _RUN_BYTES for block in run if block.digest != HOLE):
            return None  # no map of this build
        upto, place = run[-1].end, run[0].at
        if run[0].digest == HOLE:
            if not reader.is_zeros(place, upto):
                return None
            count = 0
        else:
            data = reader.bytes_at(place, upto - place)
            if any(digests.of(data[each.at - place : each.end - place]) != each.digest for each in run):
                return None
            count = upto - place
        if not progress(upto, count):
            break
    return upto


def _runs(blocks: BlockMap, begin: int) -> Iterator[list[Block]]:
    """Adjacent blocks that are read together, and each hole by itself, from the block at a place on."""
    run: list[Block] = []
    for block in blocks.after(begin):
        if run and (HOLE in (block.digest, run[-1].digest) or block.end - run[0].at > _RUN_BYTES):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


class _Reader:
    """Reads parts of an open file past the page cache."""

    def __init__(self, fs: Fs, fd: int) -> None:
        self._fs, self._fd = fs, fd
        self._read = PastCache(fs, fd)
        self._buffer = memoryview(mmap.mmap(-1, _RUN_BYTES + 2 * _PAGE_BYTES))  # aligned, as direct reads need

    def bytes_at(self, at: int, size: int) -> memoryview:
        """A part of the file; less where that ends before."""
        start = at // _PAGE_BYTES * _PAGE_BYTES
        wanted = at + size - start
        done, whole = 0, -(-wanted // _PAGE_BYTES) * _PAGE_BYTES
        while done < wanted and (count := self._read(self._fd, self._buffer[done:whole], start + done)):
            done += count
        return self._buffer[at - start : max(at - start, min(done, wanted))]

    def is_zeros(self, at: int, end: int) -> bool:
        """Whether a part has no data, or zeros."""
        while (at := self._fs.next_data(self._fd, at, end)[0]) < end:
            data = self.bytes_at(at, min(_RUN_BYTES, end - at))
            if not data or any(data):
                return False
            at += len(data)
        return True
