"""The journal's view of what waits for each destination."""

from __future__ import annotations

from fsrepl.storage.journal import deliveries
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.deliveries import DELIVERY
from fsrepl.storage.journal.rows import Counts, Delivery


class Backlog:
    """What backfills owe, read a portion at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ways(self, source: str) -> list[tuple[str, str]]:
        """(destination, rule) wherever backfills of a source owe something."""
        rows = self._connection.execute(
            "SELECT DISTINCT destination, rule FROM delivery INDEXED BY pending "
            "WHERE status = 'PENDING' AND bucket = ? AND batch > ''",
            (self._connection.ids.get(source),),
        )
        return rows.fetchall()

    def of_rule(self, source: str, destination: str, rule: str, limit: int) -> list[Delivery]:
        """Some of what backfills owe one destination by one rule."""
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY pending "
            "WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > '' AND rule = ? LIMIT ?",
            (self._connection.ids.get(source), destination, rule, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]

    def is_backlogged(self, destination: str) -> bool:
        """Whether any backfill owes a destination anything."""
        query = (
            "SELECT 1 FROM delivery WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > '' LIMIT 1"
        )
        return any(
            self._connection.execute(query, (number, destination)).fetchone() for number in list(self._connection.names)
        )

    def read(self, source: str, destination: str, after: Delivery | None, limit: int) -> list[Delivery]:
        """What backfills owe along one way: job by job, each from its oldest version on."""
        last = (after.job, after.created_ns, after.id, after.key) if after else ("", 0, "", b"")
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY pending WHERE status = 'PENDING' AND bucket = ? AND destination = ? "
            "AND (batch, created, id, key) > (?, ?, ?, ?) AND batch > '' ORDER BY batch, created, id, key LIMIT ?",
            (self._connection.ids.get(source), destination, *last, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]

    def job_counts(self, source: str, job: str) -> dict[str, Counts]:
        """Status to what there is of it, of the deliveries that a backfill asked for."""
        rows = self._connection.execute(
            "SELECT status, count(*), CAST(total(size) AS INTEGER) FROM delivery "
            "WHERE bucket = ? AND batch = ? AND batch != '' GROUP BY status",
            (self._connection.ids.get(source), job),
        )
        return {status: Counts(number, size) for status, number, size in rows}

    def job_pending(self, source: str, job: str, limit: int) -> list[Delivery]:
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY backfilled "
            "WHERE bucket = ? AND batch = ? AND batch != '' AND status = 'PENDING' LIMIT ?",
            (self._connection.ids.get(source), job, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]

    def job_deliveries(self, source: str, job: str, after: Delivery | None, limit: int) -> list[Delivery]:
        """The deliveries that a backfill asked for, by key and version."""
        last = (after.key, after.id, after.destination) if after else (b"", "", "")
        # the plus sign keeps SQLite from finding them all first, by their job, and sorting them
        rows = self._connection.execute(
            f"{DELIVERY} WHERE bucket = ? AND (key, id, destination) > (?, ?, ?) AND +batch = ? "
            "ORDER BY key, id, destination LIMIT ?",
            (self._connection.ids.get(source), *last, job, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]
