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


class Held:
    """The blocks of a base, by digest and by place."""

    def __init__(self, base: BlockMap | None) -> None:
        self._places: dict[bytes, Block] = {}
        self._in_place: dict[int, Block] = {}
        for block in base or ():
            if block.digest != HOLE:
                self._places.setdefault(block.digest, block)
            self._in_place[block.at] = block

    def plan(self, new: Iterable[Block], start: int = 0) -> Plan:
        """How blocks of a content are put together, from a place on; the first of them may begin before that. Those of
        the base are believed to be as their map says: the caller verifies the result."""
        made = Plan([], [], [], [])
        for block in new:
            at = max(start, block.at)
            if self._in_place.get(block.at) == block:
                _append(made.kept, at, block.end - at)
            elif block.digest == HOLE:
                _append(made.holes, at, block.end - at)
            elif (there := self._places.get(block.digest)) is not None and there.size == block.size:
                _move(made.moved, Move(there.at + at - block.at, at, block.end - at))
            else:
                _append(made.missing, at, block.end - at)
        return made


def plan(new: Iterable[Block], base: BlockMap | None) -> Plan:
    """Compare blocks of a content with a map: see Held.plan."""
    if isinstance(new, BlockMap) and base is not None and new.digest == base.digest:
        return Plan([Span(0, new.size)], [], [], [])
    return Held(base).plan(new)


def _append(spans: list[Span], at: int, size: int) -> None:
    if spans and spans[-1].end == at:
        spans[-1] = Span(spans[-1].at, spans[-1].size + size)
    else:
        spans.append(Span(at, size))


def _move(moves: list[Move], new: Move) -> None:
    if moves:
        last = moves[-1]
        if last.base_at + last.size == new.base_at and last.at + last.size == new.at:
            moves[-1] = Move(last.base_at, last.at, last.size + new.size)
            return
    moves.append(new)


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
