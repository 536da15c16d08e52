"""Block maps as a bucket keeps them."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from fsrepl.model import blockmap, digests
from fsrepl.model.version import Status
from fsrepl.storage import blocks as maps
from fsrepl.storage import hashing
from tests.replicate.test_large import capture, content, set_up
from tests.world import DESTINATION, World


def cut(data: bytes) -> blockmap.BlockMap:
    cutter = blockmap.Cutter(blockmap.average_of(len(data)))
    cutter.data(data)
    return cutter.map(digests.of(data))


def ending_late(size: int) -> bytes:
    """Content whose last block has two bytes; the chunker sees that with the last one only."""
    rest = content(size // 2)
    ends = [block.end for block in list(cut(rest))[:-1]]
    end = next(end for end in reversed(ends) if _is_seen_late(rest, end))
    return content(size - end - 2, seed=2) + rest[: end + 2]


def _is_seen_late(data: bytes, end: int) -> bool:
    return len(cut(data[: end + 1])) != len(cut(data[: end + 2]))


def _shortened(blocks: blockmap.BlockMap) -> bytes:
    """The records of a map whose last block lacks a byte."""
    (last,) = blocks.after(blocks.size - 1)
    at = blockmap._RECORD.size
    return blocks.packed[:-at] + blockmap._RECORD.pack(last.size - 1, last.digest)


def test_a_file_of_a_piece_and_a_byte_arrives(memory: Path) -> None:
    """G2, G5: its map has all of its bytes, wherever its last block ends; a map of an earlier build, which lost one, is
    made again."""
    data = ending_late(hashing.BUFFER_BYTES + 1)
    blocks = cut(data)
    assert [block.at for block in blocks][-1] == len(data) - 2
    with World(memory) as world:
        set_up(world)
        world.write("k", data)
        capture(world)
        with world.state().bucket.open() as bucket:
            assert maps.read(bucket, blocks.digest) == blocks
            maps.write(bucket, replace(blocks, size=blocks.size - 1, packed=_shortened(blocks)))
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert world.path("k", DESTINATION).read_bytes() == data
