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
        self._rest = bytearray()
        """The start of a block whose end is not known yet."""
        self._packed = bytearray()
        self._size = 0

    def data(self, data: memoryview | bytes) -> None:
        """The next bytes. They may change afterwards."""
        with memoryview(data) as view:
            at = self._finish_rest(view)
            if at < len(view):
                with view[at:] as left:
                    self._rest += left[self._cut(left, self._most) :]

    def _finish_rest(self, view: memoryview) -> int:
        """Cut the blocks that begin in the rest; where the first block after them begins in the new bytes."""
        if not (before := len(self._rest)):
            return 0
        self._rest += view[: self._most]
        with memoryview(self._rest) as joined:
            done = self._cut(joined, self._most, before)
        if done < before:  # its last block may go on after these bytes, which are then too few
            self._rest += view[self._most :]
            del self._rest[:done]
            return len(view)
        self._rest.clear()
        return done - before

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
        with memoryview(self._rest) as rest:
            self._cut(rest, 0)
        self._rest.clear()

    def _cut(self, data: memoryview, keep: int, until: int | None = None) -> int:
        """Cut blocks that begin before `until`, while their ends are known; where the next block begins.

        keep: so many bytes decide where a block ends; 0 at the end of the data.
        """
        done = 0
        if not data:
            return done
        with data.toreadonly() as readable:
            for chunk in self._fastcdc.cut_buf(readable):
                with chunk.data:
                    if len(data) - chunk.offset < keep or (until is not None and chunk.offset >= until):
                        break
                    self._add(chunk.length, digests.of(chunk.data))
                done = chunk.offset + chunk.length
        return done

    def _add(self, size: int, digest: bytes) -> None:
        self._packed += _RECORD.pack(size, digest)
        self._size += size

    def map(self, digest: bytes) -> BlockMap:
        """The map of all that was cut. digest: the BLAKE3 of the whole content."""
        self._end()
        return BlockMap(digest, self._size, self.average, bytes(self._packed))
