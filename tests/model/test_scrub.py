"""The pace of a scrub: evenly over its time, at once where a person asks, and the same after a restart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrepl.model import scrub
from fsrepl.model.scrub import BATCH_BYTES, Pass, Result, Scrub

DAY_S = 86_400
EVERY_S = 30 * DAY_S
NOW_NS = 1_700_000_000 * 10**9


def ns(days: float) -> int:
    return NOW_NS + int(days * DAY_S * 10**9)


def test_a_bucket_is_read_evenly_over_the_time() -> None:
    """Settings, scrub: a part at a time, each in the middle of its share; never much more than was due."""
    size, found = 100 * BATCH_BYTES, Scrub().begun(NOW_NS, 100 * BATCH_BYTES)
    reads = []
    for hour in range(30 * 24 + 1):
        while found.may_read(EVERY_S, ns(hour / 24)) and found.current and found.current.bytes < size:
            reads.append(hour)
            found = Scrub(Pass(NOW_NS, size, bytes=found.current.bytes + BATCH_BYTES))
    gaps = {b - a for a, b in itertools.pairwise(reads)}
    assert len(reads) == 100
    assert gaps <= {7, 8}
    assert (reads[0], reads[-1]) == (4, 717)


@pytest.mark.parametrize(
    ("found", "every_s", "days", "due"),
    [
        (Scrub(), EVERY_S, 0, True),
        (Scrub(), 0, 0, False),
        (Scrub(paused=True), EVERY_S, 0, False),
        (Scrub(current=Pass(NOW_NS, 1)), EVERY_S, 99, False),
        (Scrub(result=Result(NOW_NS, NOW_NS, 1, 1, 0)), EVERY_S, 29, False),
        (Scrub(result=Result(NOW_NS, NOW_NS, 1, 1, 0)), EVERY_S, 30, True),
    ],
)
def test_a_pass_begins_when_the_last_one_is_old(found: Scrub, every_s: int, days: float, due: bool) -> None:
    """Settings, scrub: "0" is never; a pause holds."""
    assert found.is_due(every_s, ns(days)) is due


def test_what_a_person_asks_for_is_read_at_once() -> None:
    """Section 5: also where the settings say never; it ends a pause, and goes on where the scrub was."""
    found = Scrub(current=Pass(NOW_NS, 10, (b"d", b"k", 1, "v"), 5, 9), paused=True).asked(ns(1), 99)
    assert found.current == Pass(NOW_NS, 99, (b"d", b"k", 1, "v"), 5, 9, asked=True)
    for every_s in (0, EVERY_S):
        assert found.may_read(every_s, ns(1))
        assert found.may_end(every_s, ns(1))
    assert not Scrub().begun(NOW_NS, 10).may_end(EVERY_S, ns(29))
    assert Scrub().begun(NOW_NS, 10).may_end(EVERY_S, ns(30))
    assert not Scrub().begun(NOW_NS, 10).may_end(0, ns(30))


POSITIONS = st.tuples(st.binary(), st.binary(), st.integers(0, 1 << 62), st.text())
PASSES = st.builds(
    Pass,
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 62),
    st.none() | POSITIONS,
    asked=st.booleans(),
    inside=st.none() | st.tuples(POSITIONS, st.integers(0, 1 << 62)),
)
RESULTS = st.builds(Result, *[st.integers(0, 1 << 62)] * 5)


@given(st.builds(Scrub, st.none() | PASSES, st.none() | RESULTS, st.booleans()))
def test_it_is_the_same_after_a_restart(found: Scrub) -> None:
    """G11: what is remembered is in the journal."""
    assert scrub.decode(scrub.encode(found)) == found


@pytest.mark.parametrize("text", ["", "[]", "{", '{"paused": true, "current": []}', '{"paused": 1, "result": [1]}'])
def test_what_cannot_be_read_costs_another_pass(text: str) -> None:
    """G7: nothing else."""
    assert scrub.decode(text) == Scrub()
