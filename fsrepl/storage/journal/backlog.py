"""Queries for pending deliveries requested by backfills."""

from __future__ import annotations

from fsrepl.storage.journal import deliveries
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.deliveries import DELIVERY
from fsrepl.storage.journal.rows import Counts, Delivery


class Backlog:
    """Pending deliveries of backfills, read one page at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rules(self, source: str, destination: str) -> list[str]:
        """The rules by which a source has pending backfill deliveries to a destination."""
        rows = self._connection.execute(
            "SELECT DISTINCT rule FROM delivery INDEXED BY pending "
            "WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > ''",
            (self._connection.ids.get(source), destination),
        )
        return [rule for (rule,) in rows]

    def of_rule(self, source: str, destination: str, rule: str, limit: int) -> list[Delivery]:
        """Up to `limit` pending backfill deliveries to one destination by one rule."""
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY pending "
            "WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > '' AND rule = ? LIMIT ?",
            (self._connection.ids.get(source), destination, rule, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]

    def is_backlogged(self, destination: str) -> bool:
        """Whether any backfill delivery is pending for a destination."""
        query = (
            "SELECT 1 FROM delivery WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > '' LIMIT 1"
        )
        return any(
            self._connection.execute(query, (number, destination)).fetchone() for number in list(self._connection.names)
        )

    def read(self, source: str, destination: str, after: Delivery | None, limit: int) -> list[Delivery]:
        """Pending backfill deliveries from a source to a destination: job by job, oldest version first."""
        # not one condition for both: SQLite would begin at the deliveries that no backfill requested, and pass all
        behind, last = "batch > ''", tuple[object, ...]()
        if after is not None:
            behind = "(batch, created, id, key) > (?, ?, ?, ?)"
            last = after.job, after.created_ns, after.id, after.key
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY pending WHERE status = 'PENDING' AND bucket = ? AND destination = ? "
            f"AND {behind} ORDER BY batch, created, id, key LIMIT ?",
            (self._connection.ids.get(source), destination, *last, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]

    def job_counts(self, source: str, job: str) -> dict[str, Counts]:
        """Counts by status of the deliveries that a backfill requested."""
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
        """The deliveries that a backfill requested, by key and version."""
        last = (after.key, after.id, after.destination) if after else (b"", "", "")
        # the plus sign keeps SQLite from selecting all of a job first and sorting them
        rows = self._connection.execute(
            f"{DELIVERY} WHERE bucket = ? AND (key, id, destination) > (?, ?, ?) AND +batch = ? "
            "ORDER BY key, id, destination LIMIT ?",
            (self._connection.ids.get(source), *last, job, limit),
        )
        return [deliveries.delivery_in(self._connection, row) for row in rows]
