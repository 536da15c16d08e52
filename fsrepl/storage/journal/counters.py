"""Counts of deliveries, kept in the transaction that changes their rows: so that `fsrepl status` reads a few rows where
there are millions, and finds what a count of all of them would find (G11).

A batch of rows is counted by one query before it is written, so that a delivery costs no statement of its own. A
journal that lacks the table is counted once, when it is opened.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence

TABLE = """CREATE TABLE delivery_count (
    bucket INTEGER, destination TEXT, rule TEXT, status TEXT, live INTEGER, number INTEGER, bytes INTEGER,
    PRIMARY KEY (bucket, destination, rule, status, live)) WITHOUT ROWID"""
"""live: 1 of deliveries that no backfill asked for."""
COUNT = """SELECT bucket, destination, rule, status, batch = '', count(*), CAST(total(size) AS INTEGER)
    FROM delivery GROUP BY 1, 2, 3, 4, 5"""
_ADD = """INSERT INTO delivery_count VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (bucket, destination, rule, status, live) DO UPDATE SET
    number = number + excluded.number, bytes = bytes + excluded.bytes"""
_ROWS_MAX = 250
"""Of a query: SQLite admits 32,766 values, and 999 before its version 3.32."""
_INTEGER_END = 1 << 63

Group = tuple[str, str, str, int]
"""Destination, rule, status, and whether a delivery is live."""


@functools.lru_cache(maxsize=64)
def _query(number: int, width: int, condition: str) -> str:
    """The query for the rows of so many places, each of so many columns of the primary key."""
    names = ("key", "id", "destination")[:width]
    row = f"({', '.join('?' * width)})"
    return (
        f"WITH place ({', '.join(f'{name}_' for name in names)}) AS (VALUES {', '.join([row] * number)}) "
        "SELECT destination, rule, status, batch = '', count(*), CAST(total(size) AS INTEGER) "
        # CROSS JOIN: SQLite might read all rows of the bucket first
        f"FROM place CROSS JOIN delivery WHERE bucket = ? {''.join(f' AND {name} = {name}_' for name in names)} "
        f"{condition} GROUP BY 1, 2, 3, 4"
    )


class Changes:
    """Changes of the deliveries of one bucket. Rows are counted as gone before they are overwritten or removed, in one
    transaction with that and with `write`."""

    def __init__(self, db: sqlite3.Connection, bucket: int) -> None:
        self._db, self._bucket = db, bucket
        self.numbers: defaultdict[Group, int] = defaultdict(int)
        self.sizes: defaultdict[Group, int] = defaultdict(int)
        """How many rows there are more, and their bytes. Who writes rows adds them."""

    def take_out(
        self, places: Sequence[tuple[bytes, str] | tuple[bytes, str, str]], condition: str = "", *values: object
    ) -> list[tuple[Group, int, int]]:
        """Count rows as gone; the number of rows of each group, and their bytes. places: key and version id, or
        destination too, each once. condition: which of these rows, if not all."""
        out: list[tuple[Group, int, int]] = []
        for start in range(0, len(places), _ROWS_MAX):
            some = places[start : start + _ROWS_MAX]
            rows = self._db.execute(
                _query(len(some), len(some[0]), condition),
                (*itertools.chain.from_iterable(some), self._bucket, *values),
            )
            out += [((destination, rule, status, live), n, size) for destination, rule, status, live, n, size in rows]
        for group, number, size in out:
            self.numbers[group] -= number
            self.sizes[group] -= size
        return out

    def write(self) -> None:
        """Record the changes. None is counted after that. More bytes than 64 bits can count, as of sparse files of a
        few EiB, are a float, as SQLite's own sums are."""
        rows = []
        for group, number in self.numbers.items():
            size = self.sizes[group]
            rows += [(self._bucket, *group, number, size if -_INTEGER_END <= size < _INTEGER_END else float(size))]
        self._db.executemany(_ADD, rows)


def counts_of(db: sqlite3.Connection, bucket: int | None) -> Mapping[Group, tuple[int, int]]:
    """Number and bytes of a bucket's deliveries by destination, rule, status, and whether they are live."""
    rows = db.execute(
        "SELECT destination, rule, status, live, number, CAST(bytes AS INTEGER) FROM delivery_count "
        "WHERE bucket = ? AND number > 0",
        (bucket,),
    )
    return {(destination, rule, status, live): (n, size) for destination, rule, status, live, n, size in rows}
