"""The journal's counts of deliveries, beside a count of its rows."""

from __future__ import annotations

from fsrepl.storage.journal import counters
from fsrepl.storage.journal.database import Journal


def counted(journal: Journal) -> set[tuple[object, ...]]:
    return set(journal.execute("SELECT * FROM delivery_count WHERE number != 0 OR bytes != 0"))


def recounted(journal: Journal) -> set[tuple[object, ...]]:
    return set(journal.execute(counters.COUNT))
