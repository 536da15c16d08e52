"""What may be done to a view: everything that may be found in its place, with everything that was expected."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.model.version import Version
from fsrepl.model.view import view_of
from fsrepl.views.decide import Answer, Found, Leaving, Left, Occupant, decide_left, decide_view

CONTENT, MARKER = Version(b"k", "1", 1), Version(b"k", "2", 2, marker=True)
EXPECTED = {  # by the found and the expected file: for content, and for a marker
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


LEFT = {  # by the recorded view, the stored file, and the file in the view's place; `!`: that has other names
    ("unknown", "none", "gone"): "NOTHING",
    ("unknown", "none", "another"): "NOTHING",
    ("unknown", "none", "another!"): "OTHER",
    ("unknown", "stored", "gone"): "COMPARE",
    ("unknown", "stored", "another"): "COMPARE",
    ("unknown", "stored", "another!"): "COMPARE",
    ("unknown", "stored", "stored!"): "IS_VIEW",
    ("stored", "none", "gone"): "NOTHING",
    ("stored", "none", "another"): "NOTHING",
    ("stored", "none", "another!"): "OTHER",
    ("stored", "stored", "gone"): "MAKE_PRIVATE",
    ("stored", "stored", "another"): "MAKE_PRIVATE",
    ("stored", "stored", "another!"): "MAKE_PRIVATE",
    ("stored", "stored", "stored!"): "IS_VIEW",
    ("stored", "written", "gone"): "SEPARATE",
    ("stored", "written", "another"): "SEPARATE",
    ("stored", "named", "gone"): "SEPARATE",
    ("stored", "named", "another!"): "SEPARATE",
    ("another", "stored", "gone"): "NOTHING",
    ("another", "stored", "another"): "NOTHING",
    ("another", "stored", "another!"): "OTHER",
    ("another", "stored", "third"): "NOTHING",
    ("another", "stored", "third!"): "OTHER",
    ("another", "stored", "stored!"): "IS_VIEW",
}


@pytest.mark.parametrize(("recorded", "stored", "now"), LEFT)
def test_a_stored_file_is_private_only_where_its_view_has_left_it(
    tmp_path: Path, recorded: str, stored: str, now: str
) -> None:
    """G1, design 7: a file that people can still reach, or have written into, is not taken for the version's own."""
    for name in ("stored", "another", "third"):
        (tmp_path / name).write_bytes(b"")
    view = None if recorded == "unknown" else view_of(os.stat(tmp_path / recorded), "1")
    if stored == "named":
        os.link(tmp_path / "stored", tmp_path / "name")
    elif stored == "written":
        (tmp_path / "stored").write_bytes(b"written")
    leaving = Leaving(
        view,
        None if stored == "none" else os.stat(tmp_path / "stored"),
        None if now == "gone" else os.stat(tmp_path / now.rstrip("!")),
        now.endswith("!"),
    )
    assert decide_left(leaving, unasked).name == LEFT[recorded, stored, now]
    for may_link in (True, False):
        answer = decide_left(replace(leaving, is_same=True), lambda may=may_link: may)
        if now == "stored!":  # a program linked it, or replication did
            assert answer is (Left.IS_VIEW if may_link else Left.SEPARATE)
        else:
            assert answer.name == LEFT[recorded, stored, now]


def unasked() -> bool:
    raise AssertionError("it costs a trial, and matters for equal content alone")
