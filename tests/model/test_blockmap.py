"""Block maps and deltas: any edit of any content is put together again, and sends no more than a bound."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrepl.model import blockmap, delta, digests
from fsrepl.model.blockmap import Block, BlockMap, Cutter

AVERAGE = 1024
BLOCK_MAX = 4 * AVERAGE


def cut(
    data: bytes, steps: list[int] | None = None, holes: list[tuple[int, int]] | None = None, known: Iterable[Block] = ()
) -> BlockMap:
    """The map of a content, fed in steps of these sizes, with holes at these places. known: see Cutter."""
    cutter, at = Cutter(AVERAGE, known), 0
    sizes = iter(steps or [])
    holes = sorted(holes or [])
    while at < len(data):
        if holes and holes[0][0] == at:
            cutter.hole(holes[0][1])
            at += holes.pop(0)[1]
            continue
        end = min(len(data), at + next(sizes, 1 << 20), holes[0][0] if holes else len(data))
        cutter.data(data[at:end])
        at = end
    return cutter.map(digests.of(data))


def contents(most: int = 64 * AVERAGE) -> st.SearchStrategy[bytes]:
    """Random contents, some with long stretches of one byte or of one pattern."""
    noise = st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 99), st.integers(0, most))
    plain = st.builds(lambda unit, size: (unit * size)[:size], st.binary(min_size=1, max_size=8), st.integers(0, most))
    return st.lists(noise | plain, max_size=3).map(b"".join)


@given(contents(), st.lists(st.integers(1, 5 * AVERAGE), max_size=50))
def test_a_map_covers_its_content_however_it_is_fed(data: bytes, steps: list[int]) -> None:
    """Section 9: the same blocks, without gaps, each with its own BLAKE3, none of them too large."""
    found = cut(data, steps)
    assert found == cut(data)
    assert b"".join(data[block.at : block.end] for block in found) == data
    assert all(digests.of(data[block.at : block.end]) == block.digest for block in found)
    assert all(0 < block.size <= BLOCK_MAX for block in found)
    assert blockmap.decode(found.encode()) == found


def test_no_byte_is_lost_where_a_block_s_end_is_seen_late() -> None:
    """Section 9: the chunker takes two bytes at a time, and sees some ends with the second byte after them. A file of a
    piece and one byte lost the byte between: its map was that of another content."""
    data = random.Random(3).randbytes(400 * AVERAGE)
    late = 0
    for block in list(cut(data))[:-1]:
        for more in (1, 2, 3):
            content = data[: block.end + more + 1]
            found = cut(content, [block.end + more, 1])
            assert found == cut(content)
            assert sum(each.size for each in found) == len(content)
        late += len(cut(data[: block.end + 1])) != len(cut(data[: block.end + 2]))
    assert late > 20


@given(contents(), st.integers(0, 10_000))
def test_what_comes_after_a_place_is_found(data: bytes, place: int) -> None:
    """Section 9: also beyond the end; the block around the place is part of it."""
    found = cut(data)
    assert list(found.after(place)) == [block for block in found if block.end > place]


def test_cutting_takes_no_new_memory_for_each_piece() -> None:
    """Section 9: each page that a process gets anew costs as much processor time as to cut or to hash one."""
    cutter, piece = Cutter(64 << 10), random.Random(1).randbytes(2 << 20)
    cutter.data(piece)
    tracemalloc.start()
    try:
        for _ in range(3):
            cutter.data(piece)
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()


@given(contents(), st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_map_is_none(data: bytes, place: int, value: int) -> None:
    """Section 9: it can be lost, and is never believed."""
    whole = bytearray(cut(data).encode())
    before = bytes(whole)
    whole[place % len(whole)] = value
    assert (blockmap.decode(bytes(whole)) is None) == (bytes(whole) != before)
    assert blockmap.decode(before[: place % len(before)]) is None


Edit = tuple[str, int, bytes]


def edited(data: bytes, edits: list[Edit]) -> bytes:
    for what, place, piece in edits:
        at = place % (len(data) + 1)
        if what == "insert":
            data = data[:at] + piece + data[at:]
        elif what == "overwrite":
            data = data[:at] + piece + data[at + len(piece) :]
        else:
            data = data[:at] + data[at + len(piece) :]
    return data


def put_together(plan: delta.Plan, base: bytes, new: bytes) -> bytes:
    """The content as a destination makes it: from the base, and from what is sent."""
    made = bytearray(b"\xff" * len(new))
    for span in plan.kept:
        made[span.at : span.end] = base[span.at : span.end]
    for move in plan.moved:
        made[move.at : move.at + move.size] = base[move.base_at : move.base_at + move.size]
    for span in plan.holes:
        made[span.at : span.end] = bytes(span.size)
    for span in plan.missing:
        made[span.at : span.end] = new[span.at : span.end]
    return bytes(made)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "overwrite", "remove"]), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=300)
    ),
    max_size=6,
)


@given(contents(), EDITS)
def test_any_edit_is_put_together_again(base: bytes, edits: list[Edit]) -> None:
    """Section 9: from two maps alone; every byte once."""
    new = edited(base, edits)
    plan = delta.plan(cut(new), cut(base))
    assert put_together(plan, base, new) == new
    parts = sum(part.size for parts in (plan.kept, plan.moved, plan.holes, plan.missing) for part in parts)
    assert parts == len(new)


def unchanged(old: bytes, new: bytes, unit: int) -> list[tuple[int, int]]:
    """The parts of two contents that are equal, in whole units: each with its start and its end."""
    parts: list[tuple[int, int]] = []
    for at in range(0, min(len(old), len(new)), unit):
        end = min(len(old), len(new), at + unit)
        if old[at:end] == new[at:end]:
            if parts and parts[-1][1] == at:
                at = parts.pop()[0]
            parts.append((at, end))
    return parts


@given(contents(), EDITS, st.lists(st.integers(1, 5 * AVERAGE), max_size=50), st.sampled_from([1, 64, 4096]))
def test_what_is_known_to_be_unchanged_is_not_cut_again(
    base: bytes, edits: list[Edit], steps: list[int], unit: int
) -> None:
    """Section 9: the map is the same, whatever was changed, and however it is fed."""
    new = edited(base, edits)
    known = list(blockmap.unchanged_blocks(cut(base), unchanged(base, new, unit)))
    assert all(new[block.at : block.end] == base[block.at : block.end] for block in known)
    assert cut(new, steps, known=known) == cut(new)
    hole = min(len(new), 3 * AVERAGE)
    with_hole = cut(new, [hole], [(hole, AVERAGE)] if hole < len(new) - AVERAGE else None)
    again = list(blockmap.unchanged_blocks(with_hole, [(0, len(new))]))
    assert len(again) <= len(with_hole)
    assert cut(new, steps, known=again) == cut(new)


def test_of_a_changed_page_only_the_blocks_around_it_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: all others are as the earlier map says."""
    base = random.Random(1).randbytes(1000 * AVERAGE)
    new = base[: 500 * AVERAGE] + bytes(4096) + base[500 * AVERAGE + 4096 :]
    known = blockmap.unchanged_blocks(cut(base), unchanged(base, new, 4096))
    hashed: list[int] = []
    monkeypatch.setattr(digests, "of", lambda data, real=digests.of: (hashed.append(len(data)), real(data))[1])
    found = cut(new, known=known)
    assert sum(hashed) - len(new) <= 4096 + 8 * BLOCK_MAX  # beside the whole
    assert found == cut(new)


@given(st.integers(0, 1000), EDITS)
@settings(max_examples=50)
def test_an_edit_sends_little(seed: int, edits: list[Edit]) -> None:
    """Section 9: boundaries follow the content, so that each edit costs the blocks around it alone.

    A boundary is found again after a few blocks, with near certainty; 16 of the largest are allowed for.
    """
    base = random.Random(seed).randbytes(256 * AVERAGE)
    new = edited(base, edits)
    assert delta.plan(cut(new), cut(base)).missing_bytes <= len(edits) * (16 * BLOCK_MAX + 300)


def test_holes_are_blocks_of_their_own() -> None:
    """Section 7: they are not hashed, and neither kept content nor sent."""
    data = bytes(5000) + b"x" * 5000 + bytes(1 << 20) + b"y"
    found = cut(data, holes=[(0, 5000), (10_000, 1 << 20)])
    assert [(b.at, b.size) for b in found if b.digest == blockmap.HOLE] == [(0, 5000), (10_000, 1 << 20)]
    plan = delta.plan(found, None)
    assert [tuple(span) for span in plan.holes] == [(0, 5000), (10_000, 1 << 20)]
    assert plan.missing_bytes == 5001


@pytest.mark.parametrize("size", [8 << 20, 2 << 30, 64 << 30, 1 << 40])
def test_a_map_stays_small(size: int) -> None:
    """Section 9: the blocks grow with the content."""
    average = blockmap.average_of(size)
    assert 64 << 10 <= average <= 2 << 20
    assert 40 * size / average <= max(size / 1000, 1 << 20)


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.integers(0, 1 << 20))
def test_what_differs_is_found_in_whole_units(new: bytes, there: bytes, at: int) -> None:
    """Section 9: what is not named is equal; a unit begins at a multiple of its size in the whole content."""
    found = delta.differing(at, new, there, 256)
    made = bytearray(there[: len(new)].ljust(len(new), b"?"))
    for span in found:
        assert at <= span.at < span.end <= at + len(new)
        assert span.at == at or span.at % 256 == 0
        made[span.at - at : span.end - at] = new[span.at - at : span.end - at]
    assert bytes(made) == new


class Counted(bytes):
    """Counts the bytes of it that are compared, or copied to be compared."""

    looked_at = 0

    def __getitem__(self, part: Any) -> Any:
        found = bytes.__getitem__(self, part)
        Counted.looked_at += len(found)
        return found

    def __eq__(self, other: object) -> bool:
        Counted.looked_at += len(self)
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__


@pytest.mark.parametrize("changed", [[], [255], [0, 128], range(256)])
def test_what_differs_is_found_in_a_few_looks(changed: Sequence[int]) -> None:
    """Section 9: one page in a MiB at its end costs no more than pages everywhere."""
    Counted.looked_at = 0
    new = bytearray(1 << 20)
    for page in changed:
        new[page * 4096] = 1
    found = delta.differing(4096, Counted(new), bytes(1 << 20), 4096)
    assert sum(span.size for span in found) == len(changed) * 4096
    assert Counted.looked_at <= 3 << 20
