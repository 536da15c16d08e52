"""Block maps: the blocks of a large content, each with its BLAKE3, cut where the content says so. Pure: no I/O.

Boundaries depend on the bytes near them alone (FastCDC, 2020), so that an insertion moves blocks and changes few. The
block size grows with the content, so that a map stays below two MB up to 64 GiB. Holes are blocks of their own, which
are neither read nor hashed. A map describes a content and no version: it can be lost, and is then made again.

    fsrepl blocks 1\\n
    {"blake3": 64 hex digits, "size": bytes, "average": bytes}\\n
    a record a block: its length, 8 bytes, least significant first, and its BLAKE3, 32 bytes (all zeros: a hole)
    the BLAKE3 of all that, 32 bytes
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct
from pyfastcdc import FastCDC

from fsrepl.model import digests, json_text

HOLE = bytes(32)
"""In place of a digest: the block is a hole, or zeros."""

_MAGIC = b"fsrepl blocks 1\n"
_RECORD = struct.Struct("<Q32s")
_SIZE = struct.Struct("<Q32x")
_SHORTENED = struct.Struct("<QQ24x")
_DIGEST_BYTES = 32
_AVERAGE_MIN, _AVERAGE_MAX = 64 << 10, 2 << 20
_BLOCKS_MAX = 32 << 10


class Block(NamedTuple):
    """A part of a content: its place, its size in bytes, and its BLAKE3, or HOLE."""

    at: int
    size: int
    digest: bytes

    @property
    def end(self) -> int:
        return self.at + self.size


class BlockMap(Struct, frozen=True):
    """The blocks of a content, in order and without gaps. digest and size: of the whole content."""

    digest: bytes
    size: int
    average: int
    packed: bytes
    """The records of the blocks, as in a file."""

    def __iter__(self) -> Iterator[Block]:
        return self.after(0)

    def after(self, place: int) -> Iterator[Block]:
        """The blocks that end after a place, in order."""
        at = number = 0
        for size in self._sizes() if place else ():
            if at + size > place:
                break
            at, number = at + size, number + 1
        for size, digest in _RECORD.iter_unpack(memoryview(self.packed)[number * _RECORD.size :]):
            yield Block(at, size, digest)
            at += size

    def _sizes(self) -> Iterator[int]:
        return (size for (size,) in _SIZE.iter_unpack(self.packed))

    def __len__(self) -> int:
        return len(self.packed) // _RECORD.size

    def short_digests(self) -> set[int]:
        """The first eight bytes of the digest of each block that is no hole."""
        return {short for _, short in _SHORTENED.iter_unpack(self.packed)} - {0}

    def encode(self) -> bytes:
        about = {"blake3": self.digest.hex(), "size": self.size, "average": self.average}
        content = _MAGIC + json.dumps(about, separators=(",", ":")).encode() + b"\n" + self.packed
        return content + digests.of(content)


def decode(data: bytes) -> BlockMap | None:
    """The map in a file; None where it is damaged, of another form, or inconsistent."""
    content, checksum = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not content.startswith(_MAGIC) or digests.of(content) != checksum:
        return None
    head, _, packed = content[len(_MAGIC) :].partition(b"\n")
    try:
        about = json_text.loads(head)
        found = BlockMap(bytes.fromhex(about["blake3"]), int(about["size"]), int(about["average"]), packed)
    except (ValueError, KeyError, TypeError):
        return None
    if len(packed) % _RECORD.size or sum(found._sizes()) != found.size:
        return None
    return found


def unchanged_blocks(blocks: BlockMap, parts: Iterable[tuple[int, int]]) -> Iterator[Block]:
    """The blocks that a content has in the same place as an earlier one, if these parts of it are unchanged: each with
    its start and its end.

    Where a block ends depends on its own bytes and the two after it, unless the content ends there, or a hole begins.
    """
    remaining = iter(parts)
    start, end = next(remaining, (blocks.size, blocks.size))
    for block, following in itertools.pairwise(blocks):
        while end < block.end + 2:
            if (part := next(remaining, None)) is None:
                return
            start, end = part
        if start <= block.at and HOLE not in (block.digest, following.digest):
            yield block


def average_of(size: int) -> int:
    """The average size of the blocks of a content, by its size."""
    average = _AVERAGE_MIN
    while average < _AVERAGE_MAX and size > average * _BLOCKS_MAX:
        average *= 2
    return average


class Cutter:
    """Cuts a content into blocks while it is read from its start to its end.

    known: blocks of the content in order, as unchanged_blocks gives them. One that begins where the one before ends is
    neither cut nor hashed.
    """

    def __init__(self, average: int, known: Iterable[Block] = ()) -> None:
        self.average = average
        self._known = iter(known)
        self._next_known = next(self._known, None)
        self._passed_over = 0
        """The number of next bytes that belong to a known block."""
        self._most = 4 * average
        self._fastcdc = FastCDC(average, min_size=average // 2, max_size=self._most, normalized_chunking=1)
        self._rest = memoryview(bytearray(2 * self._most))
        """The start of a block whose end is not known yet, and room for its end: allocated once, since new memory costs
        as much as the cutting."""
        self._held = 0
        """The size of that start, less than the largest block's."""
        self._packed = bytearray()
        self._size = 0

    def data(self, data: memoryview | bytes) -> None:
        """The next bytes. They may change afterwards."""
        with memoryview(data) as view:
            at = self._finish_rest(view)
            while at < len(view):
                if not self._passed_over and self._begins_known():
                    self._add_known()
                if passed := min(self._passed_over, len(view) - at):
                    self._passed_over -= passed
                    at += passed
                    continue
                with view[at:] as left:
                    at += (done := self._cut(left))
                    if not self._begins_known():
                        self._hold(left[done:])
                        return

    def _begins_known(self) -> bool:
        """Whether a known block begins at the end of the latest one."""
        while self._next_known is not None and self._next_known.at < self._size:
            self._next_known = next(self._known, None)
        return self._next_known is not None and self._next_known.at == self._size

    def _add_known(self) -> None:
        assert self._next_known is not None
        self._passed_over = self._next_known.size
        self._add(self._next_known.size, self._next_known.digest)

    def _finish_rest(self, view: memoryview) -> int:
        """Cut the block that begins in the rest, once its end is there; where the next one begins in the new bytes.

        FastCDC takes two bytes at a time, so that an end may be seen with the second byte after it: then the next block
        begins in the rest, too.
        """
        while before := self._held:
            end = before + min(self._most, len(view))
            self._rest[before:end] = view[: end - before]
            with self._rest[:end] as joined:
                done = self._cut(joined, most=1)
            if not done:
                self._held = end
                return len(view)
            if done >= before:
                self._held = 0
                return done - before
            self._rest[: before - done] = bytes(self._rest[done:before])
            self._held = before - done
        return 0

    def _hold(self, data: memoryview) -> None:
        with data:
            self._rest[: len(data)] = data
            self._held = len(data)

    def hole(self, size: int) -> None:
        """The next bytes are a hole, or the rest of one. Blocks end at holes."""
        self._end()
        if self._packed[-_DIGEST_BYTES:] == HOLE:
            before, _ = _RECORD.unpack(self._packed[-_RECORD.size :])
            del self._packed[-_RECORD.size :]
            self._packed += _RECORD.pack(before + size, HOLE)
            self._size += size
        else:
            self._add(size, HOLE)

    def _end(self) -> None:
        """Cut the remaining data, since the content ends here."""
        with self._rest[: self._held] as rest:
            self._cut(rest, is_last=True)
        self._held = 0

    def _cut(self, data: memoryview, *, most: int | None = None, is_last: bool = False) -> int:
        """Cut blocks, while their ends are known and up to a known block; where the next block begins.

        A block that ends with the data may go on after it, unless that is_last, or the block is as large as any. most:
        so many blocks.
        """
        done, size = 0, len(data)
        if not size:
            return done
        with data.toreadonly() as readable:
            for number, chunk in enumerate(self._fastcdc.cut_buf(readable), start=1):
                with chunk.data as block:
                    end = chunk.offset + chunk.length
                    if end == size and not is_last and chunk.length < self._most:
                        break
                    self._add(chunk.length, digests.of(block))
                done = end
                if number == most or self._begins_known():
                    break
        return done

    def _add(self, size: int, digest: bytes) -> None:
        self._packed += _RECORD.pack(size, digest)
        self._size += size

    def map(self, digest: bytes) -> BlockMap:
        """The map of all that was cut. digest: the BLAKE3 of the whole content."""
        self._end()
        return BlockMap(digest, self._size, self.average, bytes(self._packed))
