"""What an inspection of a key means: every kind of inspection, with every state of the key that it can meet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.capture import look
from fsrepl.capture.copy import Taken
from fsrepl.capture.judge import (
    AGAIN_AT_LEAST_S,
    AGAIN_S,
    AddMarker,
    AddVersion,
    CopyInBackground,
    Decision,
    Defer,
    Detach,
    Edit,
    LeaveToContents,
    Left,
    MakeLeftPrivate,
    Nothing,
    ShowCurrent,
    judge,
)
from fsrepl.model.version import Kind, Posix, Version
from fsrepl.model.view import View, view_of
from fsrepl.storage.journal.rows import Object

OTHER = Version(b"k", "0", 1)
POSIX = Posix(0o644, 0, 0, 0)
CURRENT = Object("2", 2, False, b"digest", None)
MARKER = Object("2", 2, True, b"", None)


@dataclass
class Answers:
    """Evidence with prepared answers; records which questions were asked."""

    is_shown: str = ""
    made: bool = False
    made_and_edited: bool = False
    made_since: bool = False
    of_directory: str = ""
    is_overwritten: Version | None = None
    is_full: str = ""
    asked: list[str] = field(default_factory=list)

    def shown(self) -> str:
        self.asked.append("shown")
        return self.is_shown

    def overwritten(self) -> Version | None:
        self.asked.append("overwritten")
        return self.is_overwritten

    def is_made(self) -> bool:
        self.asked.append("is_made")
        return self.made

    def is_made_and_edited(self) -> bool:
        self.asked.append("is_made_and_edited")
        return self.made_and_edited

    def is_made_since(self) -> bool:
        self.asked.append("is_made_since")
        return self.made_since

    def same_directory(self) -> str:
        self.asked.append("same_directory")
        return self.of_directory

    def no_room(self, size_bytes: int) -> str:
        self.asked.append("no_room")
        return self.is_full


@pytest.fixture
def found(tmp_path: Path) -> os.stat_result:
    (tmp_path / "k").write_bytes(b"content")
    return os.stat(tmp_path / "k")


def taken(found: os.stat_result, data: bytes | None = b"content") -> Taken:
    return Taken(found, 7, b"digest", POSIX, {}, {}, {}, False, data)


def view(found: os.stat_result, shown: str) -> View:
    return view_of(found, shown)


@pytest.mark.parametrize(
    ("shown", "expected"), [("2", Nothing()), ("1", ShowCurrent()), ("", ShowCurrent()), (None, Nothing())]
)
def test_a_view_as_it_was_recorded(found: os.stat_result, shown: str | None, expected: Decision) -> None:
    """G6: nothing is doubled; a view that shows an older version is updated to the current one."""
    known = None if shown is None else replace(CURRENT, view=view(found, shown))
    assert judge(look.Same(found), known, Answers(), is_stale=False) == expected


@pytest.mark.parametrize("why", ["", "not a regular file"])
@pytest.mark.parametrize("is_stale", [False, True])
@pytest.mark.parametrize(
    ("known", "has_view", "gone"),
    [(None, False, False), (MARKER, False, False), (CURRENT, True, True), (CURRENT, False, True)],
)
def test_a_view_that_is_gone(
    found: os.stat_result, why: str, is_stale: bool, known: Object | None, has_view: bool, gone: bool
) -> None:
    """A crash between store and view never looks like a user's action: a replica that is not shown yet is not
    deleted."""
    if known and has_view:
        known = replace(known, view=view(found, "2"))
    answers = Answers()
    expected = AddMarker() if gone and not (is_stale and not has_view) else Nothing()
    first = judge(look.Missing(why), known, answers, is_stale=is_stale)
    assert first == (MakeLeftPrivate() if isinstance(expected, AddMarker) else Nothing())
    assert answers.asked == (["overwritten"] if isinstance(expected, AddMarker) else [])
    assert judge(look.Missing(why), known, answers, is_stale=is_stale, left=Left()) == expected


@pytest.mark.parametrize(
    ("answers", "left", "expected"),
    [
        (Answers(), None, MakeLeftPrivate()),
        (Answers(), Left(), AddMarker()),
        (Answers(), Left(OTHER), AddMarker(OTHER)),
        (Answers(is_overwritten=OTHER), None, AddMarker(OTHER)),
    ],
)
def test_a_view_that_is_gone_leaves_its_version_private(
    answers: Answers, left: Left | None, expected: Decision
) -> None:
    """G2: a stored version that users could reach through its view gets a file of its own."""
    assert judge(look.Missing(), CURRENT, answers, is_stale=False, left=left) == expected


def test_what_cannot_be_read_is_not_deleted() -> None:
    for known in (None, CURRENT, MARKER):
        assert judge(look.Skipped("permission denied"), known, Answers(), is_stale=False) == Nothing()


@pytest.mark.parametrize("after_s", [0.0, 30.0])
@pytest.mark.parametrize("opened", [False, True])
def test_a_file_that_is_being_written_waits(after_s: float, opened: bool) -> None:
    expected = Defer(max(after_s, AGAIN_AT_LEAST_S), "why", opened)
    assert judge(look.Later(after_s, "why", opened), None, Answers(), is_stale=False) == expected


@pytest.mark.parametrize(
    ("again_in_s", "full", "expected"),
    [
        (-1.0, "", CopyInBackground(10)),
        (0.0, "full", Defer(AGAIN_S, "full", is_warned=True)),
        (7.0, "", Defer(7.0, "the file keeps changing, and a copy takes a while")),
        (7.0, "full", Defer(7.0, "the file keeps changing, and a copy takes a while")),
    ],
)
def test_a_large_file(again_in_s: float, full: str, expected: Decision) -> None:
    answers = Answers(is_full=full)
    assert judge(look.Large(10, 4), None, answers, is_stale=False, copy_again_in_s=again_in_s) == expected


def test_a_file_that_may_not_be_read_any_more_shows_its_mode_at_least(found: os.stat_result) -> None:
    closed = look.Closed(found, POSIX, "permission denied")
    assert judge(closed, replace(CURRENT, view=view(found, "1")), Answers(), is_stale=False) == Edit("1")
    assert judge(closed, CURRENT, Answers(), is_stale=False) == Nothing()


@pytest.mark.parametrize(
    ("answers", "left", "has_content", "expected", "asked"),
    [
        (Answers(is_shown="2"), None, True, MakeLeftPrivate(), []),
        (Answers(), Left(), True, AddVersion(), ["shown", "overwritten"]),
        (Answers(is_shown="2"), Left(), True, Edit("2"), ["shown"]),
        (Answers(is_shown="1"), Left(), False, Edit("1"), ["shown"]),
        (Answers(), Left(), False, "another version was published during the look", ["shown"]),
        (
            Answers(is_shown="2"), Left(OTHER), True, "its file was also that of another version, and is separate now",
            [],
        ),
        (
            Answers(is_overwritten=OTHER), Left(), True,
            "its file was also that of a stored version, and is separate now", ["shown", "overwritten"],
        ),
    ],
)  # fmt: skip
def test_a_copy_of_a_file(
    found: os.stat_result, answers: Answers, left: Left | None, has_content: bool, expected: Decision | str,
    asked: list[str],
) -> None:  # fmt: skip
    """G2: a version is published from a file only if the file neither leads to a stored version nor was one that was
    written into."""
    copy = taken(found, b"content" if has_content else None)
    decision = judge(copy, CURRENT, answers, is_stale=False, left=left)
    match decision:
        case Detach(version, why):
            assert (version, why) == (OTHER, expected)
        case Defer(after_s, why):
            assert (after_s, why) == (AGAIN_AT_LEAST_S, expected)
        case _:
            assert decision == expected
    assert answers.asked == asked


def test_the_file_of_an_older_version_is_no_new_one(found: os.stat_result) -> None:
    """An unchanged view that replication has not updated yet is no write of a user."""
    answers = Answers()
    late = replace(CURRENT, view=view(found, ""))
    assert judge(taken(found), late, answers, is_stale=True) == ShowCurrent()
    assert answers.asked == []


def test_a_key_without_a_record_is_new(found: os.stat_result) -> None:
    answers = Answers()
    assert judge(taken(found), None, answers, is_stale=False, left=Left()) == AddVersion()
    assert answers.asked == ["overwritten"]


HERE, ELSEWHERE = "the recorded directory", "another directory"


@pytest.mark.parametrize("is_stale", [False, True])
@pytest.mark.parametrize("view_of_it", [None, HERE, ELSEWHERE])
@pytest.mark.parametrize("known", [None, CURRENT, MARKER])
@pytest.mark.parametrize("made", ["", "made", "made and edited"])
@pytest.mark.parametrize("same", [False, True])
def test_a_directory(
    tmp_path: Path, known: Object | None, view_of_it: str | None, made: str, same: bool, is_stale: bool
) -> None:
    """S3: the directory of a deleted key stays for what is in it, and is not waited for. What its users made, changed
    or removed becomes a version or a marker; what replication made is no change of a user."""
    if known is None and view_of_it is not None:
        return
    recorded = tmp_path / "other"
    recorded.mkdir()
    if known is not None and view_of_it is not None:
        known = replace(known, view=view((tmp_path if view_of_it == HERE else recorded).stat(), "1"))
    answers = Answers(
        made=bool(made), made_and_edited=made == "made and edited", made_since=bool(made) and view_of_it == ELSEWHERE,
        of_directory="1" if same else "",
    )  # fmt: skip
    seen = Taken(tmp_path.stat(), 0, b"", POSIX, {}, {}, {}, False, b"", kind=Kind.DIRECTORY)
    expected: Decision
    if known is None:
        expected = Nothing() if is_stale or made else AddVersion()
    elif known.marker and made:
        expected = AddVersion() if answers.made_and_edited else LeaveToContents()
    elif known.marker and is_stale and view_of_it is None:
        expected = Nothing()
    elif known.marker:
        expected = Edit("1") if is_stale and view_of_it == HERE and same else AddVersion()
    elif made and view_of_it == ELSEWHERE:
        expected = AddMarker()
    elif same:
        expected = Edit("1")
    else:
        expected = ShowCurrent() if made and view_of_it is None else AddVersion()
    assert judge(seen, known, answers, is_stale=is_stale) == expected
