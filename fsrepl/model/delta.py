"""The parts of a new content that are already there, by two block maps. Pure, for replication and repair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct

from fsrepl.model.blockmap import HOLE, Block, BlockMap

_COMPARED_UNITS = 16


class Span(NamedTuple):
    """A part of a content: its place and its size in bytes."""

    at: int
    size: int

    @property
    def end(self) -> int:
        return self.at + self.size


class Move(NamedTuple):
    """A part that the base has elsewhere: its place there, its place in the new content, its size in bytes."""

    base_at: int
    at: int
    size: int


class Plan(Struct, frozen=True):
    """How a new content is put together: the parts are in order, and each byte is in one of them.

    kept: in the same place in the base. moved: elsewhere in the base. holes: zeros. missing: to be sent.
    """

    kept: list[Span]
    moved: list[Move]
    holes: list[Span]
    missing: list[Span]

    @property
    def missing_bytes(self) -> int:
        return sum(span.size for span in self.missing)


def plan(new: Iterable[Block], base: BlockMap | None) -> Plan:
    """Compare blocks of a content with a map. Those of the base are believed to be as their map says: the caller
    verifies the result."""
    if isinstance(new, BlockMap) and base is not None and new.digest == base.digest:
        return Plan([Span(0, new.size)], [], [], [])
    places: dict[bytes, Block] = {}
    in_place: dict[int, Block] = {}
    for block in base or ():
        if block.digest != HOLE:
            places.setdefault(block.digest, block)
        in_place[block.at] = block
    made = Plan([], [], [], [])
    for block in new:
        if in_place.get(block.at) == block:
            _append(made.kept, block.at, block.size)
        elif block.digest == HOLE:
            _append(made.holes, block.at, block.size)
        elif (there := places.get(block.digest)) is not None and there.size == block.size:
            _move(made.moved, there.at, block)
        else:
            _append(made.missing, block.at, block.size)
    return made


def _append(spans: list[Span], at: int, size: int) -> None:
    if spans and spans[-1].end == at:
        spans[-1] = Span(spans[-1].at, spans[-1].size + size)
    else:
        spans.append(Span(at, size))


def _move(moves: list[Move], base_at: int, block: Block) -> None:
    if moves:
        last = moves[-1]
        if last.base_at + last.size == base_at and last.at + last.size == block.at:
            moves[-1] = Move(last.base_at, last.at, last.size + block.size)
            return
    moves.append(Move(base_at, block.at, block.size))


def rest(blocks: BlockMap, at: int) -> Plan:
    """How a content is put together after a place, without a base."""
    made = plan(blocks.after(at), None)
    return Plan([], [], [_after(span, at) for span in made.holes], [_after(span, at) for span in made.missing])


def _after(span: Span, at: int) -> Span:
    return Span(max(span.at, at), span.end - max(span.at, at))


def spans_of(blocks: Iterable[Block]) -> list[Span]:
    """Blocks as spans, adjacent ones joined."""
    spans: list[Span] = []
    for block in blocks:
        _append(spans, block.at, block.size)
    return spans


def differing(at: int, new: bytes, there: bytes, unit: int) -> list[Span]:
    """The parts of a content that differ from what is there, in whole units of the content, adjacent ones joined.

    at: the place of both, of which a part of a unit may be the first and the last. Many units are compared together at
    first, so that what is equal takes little time, and what differs little more.
    """
    spans: list[Span] = []
    if new == there:
        return spans
    for first, last in _units(at, 0, len(new), unit * _COMPARED_UNITS):
        if new[first:last] == there[first:last]:
            continue
        for start, end in _units(at, first, last, unit):
            if new[start:end] != there[start:end]:
                _append(spans, at + start, end - start)
    return spans


def _units(at: int, start: int, end: int, unit: int) -> Iterator[tuple[int, int]]:
    """The units of a part of a content that begins at a place, relative to that place."""
    while start < end:
        until = min(end, start + unit - (at + start) % unit)
        yield start, until
        start = until
