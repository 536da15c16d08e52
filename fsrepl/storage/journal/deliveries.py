"""The journal's tables of deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fsrepl.model.version import THRESHOLD_NS, Status, Tracking, Version, operation
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.rows import Counts, Delivery

AT = "WHERE bucket = ? AND key = ? AND id = ? AND destination = ?"
# That a delivery is late is said once, however often its row is written meanwhile.
PUT_DELIVERY = """
INSERT INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (bucket, key, id, destination) DO UPDATE SET
    due = CASE WHEN status = 'PENDING' AND since = excluded.since AND due IS NULL THEN NULL ELSE excluded.due END,
    rule = excluded.rule, status = excluded.status, reason = excluded.reason, created = excluded.created,
    size = excluded.size, marker = excluded.marker, batch = excluded.batch, since = excluded.since,
    tracking = excluded.tracking, digest = excluded.digest, operation = excluded.operation
"""


def delivery_rows(number: int, version: Version) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for destination, d in version.deliveries.items():
        since_ns = d.since_ns or version.created_ns
        told = d.tracking and not d.settled
        timed = told and d.tracking is Tracking.TIME and not (d.job or version.marker)
        rows.append((
            number, version.key, version.id, destination, d.rule, str(d.status), d.reason,
            version.created_ns, version.size, version.marker, d.job,
            since_ns, str(d.tracking), since_ns + THRESHOLD_NS if timed else None,
            version.digest if told else None, operation(version, d) if told else None,
        ))  # fmt: skip
    return rows


OF_BUCKET = {"PENDING": "INDEXED BY pending", "FAILED": "INDEXED BY failed"}
"""By status, how those of one bucket are found: SQLite would rather go through all that it ever delivered."""
DELIVERY = (
    "SELECT bucket, key, id, destination, rule, status, reason, created, size, marker, batch, since, tracking, digest, "
    "operation FROM delivery"
)


def put_all(connection: Connection, address: str, versions: Iterable[Version]) -> None:
    """Write the deliveries of versions of one bucket."""
    number = connection.ids[address]
    connection.executemany(PUT_DELIVERY, [row for version in versions for row in delivery_rows(number, version)])


def delivery_in(connection: Connection, row: Sequence[Any]) -> Delivery:
    number, key, version_id, destination, rule, status, reason, created, size, marker, batch, *more = row
    since, tracking, digest, brings = more
    return Delivery(
        connection.names[number], key, version_id, destination, rule, status, reason, created, size, bool(marker),
        batch, since, Tracking(tracking), digest or b"", brings or "",
    )  # fmt: skip


def _at(connection: Connection, delivery: Delivery) -> tuple[Any, ...]:
    return connection.ids.get(delivery.source), delivery.key, delivery.id, delivery.destination


class Deliveries:
    """What versions owe to destinations, and what became of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, address: str, version: Version) -> None:
        put_all(self._connection, address, [version])

    def put_all(self, address: str, versions: Iterable[Version]) -> None:
        put_all(self._connection, address, versions)

    def drop(self, delivery: Delivery) -> None:
        """The version that was owed is gone: nothing is left to show a status on."""
        self._connection.execute(f"DELETE FROM delivery {AT}", _at(self._connection, delivery))

    def note(self, delivery: Delivery, status: Status, reason: str, now_ns: int) -> None:
        """What became of a delivery, where its own version cannot say so."""
        self._connection.execute(
            f"UPDATE delivery SET status = ?, reason = ?, since = ?, due = NULL {AT}",
            (str(status), reason, now_ns, *_at(self._connection, delivery)),
        )

    def has(self, delivery: Delivery) -> bool:
        return (
            self._connection.execute(f"SELECT 1 FROM delivery {AT}", _at(self._connection, delivery)).fetchone()
            is not None
        )

    def unfinished(self, source: str, key: bytes) -> dict[str, Status]:
        """By version id, what is PENDING or FAILED of a key; FAILED where it is both."""
        rows = self._connection.execute(
            "SELECT id, status FROM delivery WHERE bucket = ? AND key = ? AND status != 'COMPLETED'",
            (self._connection.ids.get(source), key),
        )
        found: dict[str, Status] = {}
        for version_id, status in rows:
            if found.get(version_id) is not Status.FAILED:
                found[version_id] = Status(status)
        return found

    def late(self, now_ns: int, limit: int) -> list[Delivery]:
        """Pending deliveries that have missed their threshold, and of which that was not told yet."""
        with self._connection.guard:  # asked by a thread that must not hold up the others while one of them commits
            rows = self._connection.execute(
                f"{DELIVERY} WHERE due IS NOT NULL AND due <= ? AND status = 'PENDING' ORDER BY due LIMIT ?",
                (now_ns, limit),
            ).fetchall()
        return [delivery_in(self._connection, row) for row in rows]

    def is_unannounced(self, delivery: Delivery) -> bool:
        """Whether a delivery has a threshold, and it was not told yet that this was missed."""
        return (
            self._connection.execute(
                f"SELECT 1 FROM delivery {AT} AND due IS NOT NULL", _at(self._connection, delivery)
            ).fetchone()
            is not None
        )

    def announced(self, late: Iterable[Delivery]) -> None:
        """It was told that these are late."""
        self._connection.executemany(
            f"UPDATE delivery SET due = NULL {AT}", [_at(self._connection, delivery) for delivery in late]
        )

    def tracked(self, source: str, rule: str) -> list[Delivery]:
        """The pending live deliveries of a rule that are followed by its metrics."""
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY tracked "  # SQLite would rather look through all that the bucket ever delivered
            "WHERE bucket = ? AND rule = ? AND status = 'PENDING' AND tracking != '' AND batch = ''",
            (self._connection.ids.get(source), rule),
        )
        return [delivery_in(self._connection, row) for row in rows]

    def untrack(self, deliveries: Iterable[Delivery]) -> None:
        self._connection.executemany(
            f"UPDATE delivery SET tracking = '', due = NULL {AT}", [_at(self._connection, each) for each in deliveries]
        )

    def count_pending(self, source: str, newest_ns: int, key: bytes | None = None) -> int:
        """How many deliveries of a bucket, or a key, are pending of versions that are no newer than that."""
        by, and_key = (OF_BUCKET["PENDING"], "") if key is None else ("", " AND key = ?")
        rows = self._connection.execute(
            f"SELECT count(*) FROM delivery {by} WHERE status = 'PENDING' AND bucket = ? AND created <= ?{and_key}",
            (self._connection.ids.get(source), newest_ns, *([key] if key is not None else [])),
        )
        return int(rows.fetchone()[0])

    def select(
        self, source: str = "", *, status: Status | None = None, key: bytes | None = None, prefix: bytes = b"",
        live: bool = False,
    ) -> Iterator[Delivery]:  # fmt: skip
        """Deliveries by key and version; with live those that no backfill asked for."""
        where, values = ["batch = ''" if live else "1"], list[Any]()
        for column, value in (
            ("bucket", self._connection.ids.get(source, -1) if source else None),
            ("status", status),
            ("key", key),
        ):
            if value is None:
                continue
            if isinstance(value, Status):  # spelled out, or SQLite does not see that a partial index has it
                where.append(f"{column} = '{value}'")
            else:
                where.append(f"{column} = ?")
                values.append(value)
        by = OF_BUCKET.get(status or "", "") if source and key is None else ""
        order = "ORDER BY bucket, key, created, id"
        rows = self._connection.execute(f"{DELIVERY} {by} WHERE {' AND '.join(where)} {order}", values).fetchall()
        return (delivery_in(self._connection, row) for row in rows if row[1].startswith(prefix))

    def counts(self, address: str) -> dict[tuple[str, str, str], Counts]:
        """(destination, rule, status) to what there is of it."""
        rows = self._connection.execute(
            "SELECT destination, rule, status, count(*), CAST(total(size) AS INTEGER), min(since) FROM delivery "
            "WHERE bucket = ? GROUP BY destination, rule, status",
            (self._connection.ids.get(address),),
        )
        return {(d, r, s): Counts(n, b, o) for d, r, s, n, b, o in rows}

    def live_pending_counts(self, address: str) -> dict[tuple[str, str], Counts]:
        """(destination, rule) to what is pending of live replication, backfills left out."""
        rows = self._connection.execute(
            "SELECT destination, rule, count(*), CAST(total(size) AS INTEGER), min(since) FROM delivery "
            "WHERE bucket = ? AND status = 'PENDING' AND batch = '' GROUP BY destination, rule",
            (self._connection.ids.get(address),),
        )
        return {(d, r): Counts(n, b, o) for d, r, n, b, o in rows}

    def failed_counts(self, address: str, after_ns: int = 0) -> dict[tuple[str, str], int]:
        """(destination, rule) to the number of FAILED deliveries, or of those that failed after a moment."""
        rows = self._connection.execute(
            "SELECT destination, rule, count(*) FROM delivery WHERE bucket = ? AND status = 'FAILED' AND since > ? "
            "GROUP BY destination, rule",
            (self._connection.ids.get(address), after_ns),
        )
        return {(d, r): n for d, r, n in rows}
