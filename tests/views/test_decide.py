"""What may be done to a visible file: everything that can be found in its place, and everything that was expected."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from fsrepl.model.version import Version
from fsrepl.model.view import view_of
from fsrepl.views.decide import Answer, Found, Occupant, decide_view

CONTENT, MARKER = Version(b"k", "1", 1), Version(b"k", "2", 2, marker=True)
EXPECTED = {  # by what is found and what was expected: for content, and for a marker
    ("NOTHING", "none"): "MAKE DONE",
    ("NOTHING", "a view"): "USER_CHANGED DONE",
    ("NO_WAY", "none"): "BLOCKED DONE",
    ("NO_WAY", "a view"): "USER_CHANGED DONE",
    ("MOUNT", "none"): "BLOCKED DONE",
    ("MOUNT", "a view"): "BLOCKED BLOCKED",
    ("TOO_LONG", "none"): "BLOCKED DONE",
    ("TOO_LONG", "a view"): "BLOCKED DONE",
    ("OTHER", "none"): "CLEAR DONE",
    ("OTHER", "a view"): "USER_CHANGED DONE",
    ("FILE", "none"): "USER_CHANGED USER_CHANGED",
    ("FILE", "a view"): "USER_CHANGED USER_CHANGED",
    ("FILE", "that view"): "REPLACE REPLACE",
}


def test_the_table_is_whole() -> None:
    """Only a file can be the view that was expected."""
    places = itertools.product(Occupant.__members__, ["none", "a view"])
    assert EXPECTED.keys() == {*places, ("FILE", "that view")}


@pytest.mark.parametrize(("found", "expected"), EXPECTED)
def test_every_answer(tmp_path: Path, found: str, expected: str) -> None:
    """G1: only a file that is as it was recorded is ever taken out of its place."""
    (tmp_path / "k").write_bytes(b"found")
    (tmp_path / "other").write_bytes(b"other")
    stood, other = os.stat(tmp_path / "k"), os.stat(tmp_path / "other")
    occupant = Occupant[found]
    there = Found(occupant, stood if occupant in (Occupant.FILE, Occupant.OTHER) else None)
    view = {"none": None, "a view": view_of(other, "0"), "that view": view_of(stood, "0")}[expected]
    answers = [decide_view(there, view, version) for version in (CONTENT, MARKER)]
    assert " ".join(answer.name for answer in answers) == EXPECTED[found, expected]
    if occupant is Occupant.FILE:
        assert decide_view(there, view, CONTENT, is_shown=True) is Answer.DONE
