"""The scrub of a bucket: how far it is, what the last one found, and what may be read now. Pure: no I/O, no clock.

A pass takes as long as `every` says: its bytes are read evenly over that time, so that a disk is never busy with it for
long. One that a person asks for goes on at once, as fast as the limit allows.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model import clock, json_text
from fsrepl.model.keys import Document

BATCH_BYTES = 64 << 20
"""About so much is read at a time. A larger version is read in parts of this size."""
_ASKED_PARTS = 16
"""The parts are so many times as large where a person asked for the pass: no pause is between them."""

Position = tuple[bytes, bytes, int, str]
"""A version in the order of the journal: directory, name, creation time in nanoseconds, id."""


class Pass(Struct, frozen=True):
    """One pass through the stored versions of a bucket, under way.

    size: the bytes that are stored, as last counted. last: the version that was read last. asked: a person wants it
    done now. inside: the large version that is being read, and up to where.
    """

    began_ns: int
    size: int
    last: Position | None = None
    checked: int = 0
    bytes: int = 0
    damaged: int = 0
    asked: bool = False
    inside: tuple[Position, int] | None = None

    def read_of(self, at: Position) -> int:
        """Up to where a version was read already, in bytes."""
        return self.inside[1] if self.inside is not None and self.inside[0] == at else 0

    @property
    def part_bytes(self) -> int:
        """The size of the part of a large version that is read at a time."""
        return BATCH_BYTES * (_ASKED_PARTS if self.asked else 1)


class Result(Struct, frozen=True):
    """A pass that is complete."""

    began_ns: int
    ended_ns: int
    checked: int
    bytes: int
    damaged: int

    def document(self) -> Document:
        return {
            "began": clock.stamp(self.began_ns), "ended": clock.stamp(self.ended_ns), "checked": self.checked,
            "bytes": self.bytes, "damaged": self.damaged,
        }  # fmt: skip


class Scrub(Struct, frozen=True):
    """The state of a bucket's scrub, as remembered."""

    current: Pass | None = None
    result: Result | None = None
    paused: bool = False

    @property
    def is_asked(self) -> bool:
        """Whether a person wants the pass under way done now, once it is not paused."""
        return self.current is not None and self.current.asked

    def is_due(self, every_s: int, now_ns: int) -> bool:
        """Whether a new pass begins now. every_s: 0 for never."""
        if self.paused or self.current is not None or not every_s:
            return False
        return self.result is None or now_ns >= self.result.began_ns + every_s * 1_000_000_000

    def may_read(self, every_s: int, now_ns: int) -> bool:
        """Whether the next part of the pass may be read: each has its place in the middle of its share of the time."""
        found = self.current
        if found is None or self.paused:
            return False
        if found.asked or not every_s:
            return found.asked
        share = (now_ns - found.began_ns) / (every_s * 1_000_000_000)
        coming = max(0, min(BATCH_BYTES, found.size - found.bytes))
        return share >= 0.5 if not found.size else found.bytes + coming / 2 <= found.size * share

    def may_end(self, every_s: int, now_ns: int) -> bool:
        """Whether the pass is over once nothing is left to read: what is added until then is read too."""
        found = self.current
        if found is None or self.paused:
            return False
        return found.asked or (every_s > 0 and now_ns >= found.began_ns + every_s * 1_000_000_000)

    def begun(self, now_ns: int, size: int) -> Scrub:
        return replace(self, current=Pass(now_ns, size))

    def asked(self, now_ns: int, size: int) -> Scrub:
        """The state of a scrub that a person asked for: it goes on at once, from where it is."""
        current = replace(self.current or Pass(now_ns, size), asked=True, size=size)
        return replace(self, current=current, paused=False)

    def unasked(self) -> Scrub:
        """The state of a scrub that nobody asks for any more: what is left is read at the usual pace."""
        return self if self.current is None else replace(self, current=replace(self.current, asked=False))

    def ended(self, now_ns: int) -> Scrub:
        found = self.current
        assert found is not None
        return replace(
            self, current=None, result=Result(found.began_ns, now_ns, found.checked, found.bytes, found.damaged)
        )

    def document(self) -> Document:
        """For `status` and `scrub status`."""
        found: Document = {"paused": self.paused}
        if (now := self.current) is not None:
            found["current"] = {
                "began": clock.stamp(now.began_ns), "checked": now.checked, "bytes_done": now.bytes,
                "bytes_total": max(now.size, now.bytes), "damaged": now.damaged, "asked": now.asked,
            }  # fmt: skip
        return found | ({"last": self.result.document()} if self.result is not None else {})


def encode(scrub: Scrub) -> str:
    now, result = scrub.current, scrub.result
    said: dict[str, object] = {"paused": scrub.paused}
    if now is not None:
        last = _encoded(now.last) if now.last is not None else None
        said["current"] = [now.began_ns, now.size, last, now.checked, now.bytes, now.damaged, now.asked]
        if now.inside is not None:  # apart, so that earlier builds can read the rest
            said["inside"] = [_encoded(now.inside[0]), now.inside[1]]
    if result is not None:
        said["result"] = [result.began_ns, result.ended_ns, result.checked, result.bytes, result.damaged]
    return json.dumps(said)


def decode(text: str) -> Scrub:
    """The remembered state; a new one where the text cannot be read, since that can only cost another pass."""
    try:
        said = json_text.loads(text)
        current = None
        if "current" in said:
            began_ns, size, last, *counts = said["current"]
            began_ns, size, checked, read, damaged, *asked = _numbers([began_ns, size, *counts])
            inside = (_decoded(said["inside"][0]), int(said["inside"][1])) if "inside" in said else None
            last = _decoded(last) if last is not None else None
            current = Pass(began_ns, size, last, checked, read, damaged, any(asked), inside)
        return Scrub(current, Result(*_numbers(said["result"])) if "result" in said else None, bool(said["paused"]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return Scrub()


def _numbers(said: list[object]) -> list[int]:
    """Times and counts. Raises ValueError for anything else."""
    found = [each for each in said if isinstance(each, int) and 0 <= each < 1 << 63]
    if len(found) < len(list(said)):
        raise ValueError(f"{said!r} are not times and counts")
    return found


def _encoded(at: Position) -> list[object]:
    return [base64.b64encode(at[0]).decode(), base64.b64encode(at[1]).decode(), *at[2:]]


def _decoded(said: list[Any]) -> Position:
    return base64.b64decode(said[0]), base64.b64decode(said[1]), int(said[2]), str(said[3])
