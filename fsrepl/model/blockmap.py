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

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

from msgspec import Struct
from pyfastcdc import FastCDC

from fsrepl.model import digests, json_text

HOLE = bytes(32)
"""In place of a digest: the block is a hole, or zeros."""

_MAGIC = b"fsrepl blocks 1\n"
_RECORD = struct.Struct("<Q32s")
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
        at = 0
        for size, digest in _RECORD.iter_unpack(self.packed):
            yield Block(at, size, digest)
            at += size

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
    if len(packed) % _RECORD.size or sum(block.size for block in found) != found.size:
        return None
    return found


def average_of(size: int) -> int:
    """The average size of the blocks of a content, by its size."""
    average = _AVERAGE_MIN
    while average < _AVERAGE_MAX and size > average * _BLOCKS_MAX:
        average *= 2
    return average


class Cutter:
    """Cuts a content into blocks while it is read from its start to its end."""

    def __init__(self, average: int) -> None:
        self.average = average
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
            with view[at:] as left:
                if left:
                    self._hold(left[self._cut(left) :])

    def _finish_rest(self, view: memoryview) -> int:
        """Cut the blocks that begin in the rest; where the first block after them begins in the new bytes."""
        if not (before := self._held):
            return 0
        end = before + min(self._most, len(view))
        self._rest[before:end] = view[: end - before]
        with self._rest[:end] as joined:
            done = self._cut(joined, until=before)
            if done < before:  # its last block may go on after these bytes, which are then too few
                self._hold(joined[done:])
                return len(view)
        self._held = 0
        return done - before

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
        """Cut what is left: the data ends here."""
        with self._rest[: self._held] as rest:
            self._cut(rest, is_last=True)
        self._held = 0

    def _cut(self, data: memoryview, *, until: int | None = None, is_last: bool = False) -> int:
        """Cut blocks that begin before `until`, while their ends are known; where the next block begins.

        A block that ends with the data may go on after it, unless that is_last, or the block is as large as any.
        """
        done, size = 0, len(data)
        if not size:
            return done
        with data.toreadonly() as readable:
            for chunk in self._fastcdc.cut_buf(readable):
                with chunk.data as block:
                    end = chunk.offset + chunk.length
                    if end == size and not is_last and chunk.length < self._most:
                        break
                    if until is not None and chunk.offset >= until:
                        break
                    self._add(chunk.length, digests.of(block))
                done = end
        return done

    def _add(self, size: int, digest: bytes) -> None:
        self._packed += _RECORD.pack(size, digest)
        self._size += size

    def map(self, digest: bytes) -> BlockMap:
        """The map of all that was cut. digest: the BLAKE3 of the whole content."""
        self._end()
        return BlockMap(digest, self._size, self.average, bytes(self._packed))
