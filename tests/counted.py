"""The journal's counts of deliveries, objects and versions, beside a count of its rows; and what its answers cost."""

from __future__ import annotations

from collections.abc import Callable

from fsrepl.storage.journal import counters, object_counts
from fsrepl.storage.journal.database import Journal

STEP = 10
"""The instructions of a step."""


def counted(journal: Journal) -> set[tuple[object, ...]]:
    return {
        *journal.execute("SELECT * FROM delivery_count WHERE number != 0 OR bytes != 0"),
        *journal.execute("SELECT * FROM object_count WHERE objects != 0 OR versions != 0"),
        *journal.execute("SELECT * FROM linked"),
    }


def recounted(journal: Journal) -> set[tuple[object, ...]]:
    return {
        *journal.execute(counters.COUNT),
        *(row for row in journal.execute(object_counts.COUNT) if any(row[1:])),
        *journal.execute(object_counts.LINKED),
    }


def steps_of(journal: Journal, question: Callable[[Journal], object]) -> int:
    """The number of SQLite's virtual machine instructions for an answer, in steps of so many: STEP."""
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    journal._db.set_progress_handler(step, STEP)
    try:
        answer = question(journal)
        assert answer is not None
        return taken
    finally:
        journal._db.set_progress_handler(None, 0)
