"""What a start asks of the journal, without a look at every row: the newest version, directories, stale views."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrepl.model import clock
from fsrepl.model.version import NULL, Posix, Version
from fsrepl.model.view import View
from fsrepl.storage.journal import connection
from fsrepl.storage.journal.database import Journal
from tests.counted import steps_of

ADDRESS = "east/src"
POSIX = Posix(0o644, 0, 0, 0)
KEYS = [b"a", b"b", b"d/a", b"d/b", b"d/e/f", b"g/h"]
TIMES = st.integers(1, 5)


def version(key: bytes, at_ns: int, *, marker: bool = False, is_null: bool = False) -> Version:
    version_id = NULL if is_null else clock.VersionIds().next(at_ns * 1_000_000)[0]
    return Version(key, version_id, at_ns * 1_000_000, marker=marker, posix=POSIX)


def view(of: Version) -> View:
    return View(1, 2, 3, 4, 0o644, shown=of.id)


def read(journal: Journal) -> tuple[str, int, set[bytes], set[bytes], set[bytes]]:
    """The answers by a look at every row."""
    rows = journal.execute("SELECT id, created FROM version").fetchall()
    return (
        max((i for i, _ in rows if i != NULL), default=""), max((created for _, created in rows), default=0),
        {d for (d,) in journal.execute("SELECT DISTINCT dir FROM object")},
        {d for (d,) in journal.execute("SELECT DISTINCT dir FROM version")},
        {
            directory + b"/" + name if directory else name
            for directory, name in journal.execute("SELECT dir, name FROM object WHERE ino IS NOT NULL AND shown != id")
        },
    )  # fmt: skip


def asked(journal: Journal) -> tuple[str, int, set[bytes], set[bytes], set[bytes]]:
    directories = journal.versions.directories(ADDRESS)
    assert directories == sorted(set(directories))
    return (
        *journal.versions.newest(ADDRESS), set(directories), journal.versions.version_directories(ADDRESS),
        set(journal.views.behind(ADDRESS)),
    )  # fmt: skip


@pytest.fixture
def journal(memory: Path) -> Iterator[Journal]:
    journal = Journal(str(memory / "journal.db"))
    journal.bucket_id(ADDRESS, "uuid")
    yield journal
    journal.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "shown", "remove", "last", "ask"]), st.sampled_from(KEYS), TIMES, st.booleans(),
        st.booleans(),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_the_answers_are_those_of_all_rows(steps: list[tuple[str, bytes, int, bool, bool]]) -> None:
    """Section 2: ids increase and no version is earlier than the newest, also across starts."""
    journal = Journal(":memory:")
    journal.bucket_id(ADDRESS, "uuid")
    for step, key, at_ns, marker, is_null in steps:
        new = version(key, at_ns, marker=marker, is_null=is_null)
        there = journal.versions.versions_of(ADDRESS, key)
        match step:
            case "add":
                journal.versions.add(ADDRESS, new)
            case "shown" if not there:
                with journal.transaction():
                    journal.versions.add_shown(ADDRESS, [(new, view(new))])
            case "shown":
                journal.views.see(ADDRESS, key, view(new))
            case "remove" if len(there) > 1:
                journal.versions.remove_noncurrent(ADDRESS, [(key, there[-1][0])])
            case "last" if len(there) == 1:
                journal.versions.remove_last(ADDRESS, [(key, there[0][0])])
            case "ask":
                assert asked(journal) == read(journal)
    assert asked(journal) == read(journal)
    journal.close()


def test_what_is_asked_reads_few_rows(journal: Journal) -> None:
    """Section 8: a start with a million objects is ready before all of the journal could be read from a disk."""
    for start in range(0, 20_000, 1000):
        rows = [version(b"d%d/%d" % (start, i), i + 1) for i in range(1000)]
        with journal.transaction():
            journal.versions.add_shown(ADDRESS, [(each, view(each)) for each in rows])
    journal.versions.newest(ADDRESS)  # once
    assert asked(journal)[1] == 1000 * 1_000_000
    assert steps_of(journal, asked) < 500  # no rows but those of the 20 directories


def test_an_earlier_build_that_added_versions_makes_the_newest_be_looked_for(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know the column, and its journal is of another version."""
    path = str(memory / "journal.db")
    journal = Journal(path)
    journal.bucket_id(ADDRESS, "uuid")
    journal.versions.add(ADDRESS, version(b"a", 1))
    assert journal.versions.newest(ADDRESS)[1] == 1_000_000
    journal.close()
    db = sqlite3.connect(path)
    db.execute("UPDATE version SET created = 7000000, id = '7ZZZZZZZZZZZZZZZZZZZZZZZZZ'")
    db.execute(f"PRAGMA user_version = {connection._SCHEMA_VERSION - 1}")
    db.commit()
    db.close()
    journal = Journal(path)
    assert journal.versions.newest(ADDRESS) == ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", 7_000_000)
    journal.close()
    reader = Journal(path, read_only=True)
    assert reader.versions.newest(ADDRESS) == ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", 7_000_000)
    reader.close()
