"""Folders in the journal, a page at a time: the same as a look at all keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis
from hypothesis import strategies

from fsrepl.model.version import Version
from fsrepl.storage.journal import database
from fsrepl.storage.journal.database import Journal
from tests.counted import steps_of

BUCKET = "east/src"
COMPONENT = strategies.sampled_from([b"a", b"a-b", b"a0", b"b", b"ab", b"\xff", b"\xff\xff", b"~", b"a b"])
KEYS = strategies.dictionaries(
    strategies.lists(COMPONENT, min_size=1, max_size=4).map(b"/".join), strategies.booleans(), max_size=14
)


@contextmanager
def journal_with(keys: dict[bytes, bool]) -> Iterator[Journal]:
    """A journal with these keys; each is a delete marker where its value is True."""
    journal = database.in_memory([(BUCKET, "uuid")], None)
    try:
        with journal.transaction():
            for number, (key, marker) in enumerate(keys.items()):
                journal.versions.add(BUCKET, Version(key, f"{number:026}", number, marker))
        yield journal
    finally:
        journal.close()


@hypothesis.given(KEYS, strategies.sampled_from([b"", b"a", b"a/a", b"b"]), COMPONENT | strategies.just(b""),
                  strategies.integers(1, 3), strategies.booleans())  # fmt: skip
def test_pages_together_are_the_folder(
    keys: dict[bytes, bool], folder: bytes, starts: bytes, most: int, deleted: bool
) -> None:
    """No name is missing and none comes twice, whatever sorts between a folder and what is below it."""
    top = folder + b"/" if folder else b""
    below = [key[len(top) :] for key, marker in keys.items() if key.startswith(top) and (deleted or not marker)]
    expected_names = {rest for rest in below if b"/" not in rest and rest.startswith(starts)}
    expected_folders = {name for rest in below if b"/" in rest and (name := rest.split(b"/")[0]).startswith(starts)}
    with journal_with(keys) as journal:
        names: list[bytes] = []
        while page := journal.folders.names(
            BUCKET, folder, starts=starts, after=names[-1] if names else None, most=most, deleted=deleted
        ):
            names += page
        folders: list[bytes] = []
        while page := journal.folders.subfolders(
            BUCKET, folder, starts=starts, after=folders[-1] if folders else None, most=most, deleted=deleted
        ):
            folders += page
    assert names == sorted(expected_names)
    assert sorted(folders) == sorted(expected_folders)


def test_a_page_costs_the_same_in_a_large_folder() -> None:
    """100,000 names in a folder, and 1,000 folders with many keys: SQLite looks at a page of them, and not at all."""
    steps = {}
    for size in (1_000, 30_000):
        keys = {b"big/%06d" % n: False for n in range(size)} | {b"f%02d/%06d" % (n % 10, n): False for n in range(size)}
        with journal_with(keys) as journal:
            steps[size] = steps_of(journal, _pages)
    assert steps[30_000] < 3 * steps[1_000] + 100, steps


def _pages(journal: Journal) -> bool:
    found = journal.folders.names(BUCKET, b"big", starts=b"", after=b"000500", most=200, deleted=False)
    folders = journal.folders.subfolders(BUCKET, b"", starts=b"", after=None, most=200, deleted=False)
    assert (len(found), len(folders)) == (200, 11)
    return True
