"""The journal's counts of deliveries, objects and versions, beside a count of its rows."""

from __future__ import annotations

from fsrepl.storage.journal import counters, object_counts
from fsrepl.storage.journal.database import Journal


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
