"""The journal's table of deliveries."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fsrepl.model.version import THRESHOLD_NS, Status, Tracking, Version, operation
from fsrepl.storage.journal import counters
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.rows import Counts, Delivery

_KEYS_MAX, _PAGE = 500, 1000
AT = "WHERE bucket = ? AND key = ? AND id = ? AND destination = ?"
# The announcement that a delivery is late is kept, however often its row is written meanwhile.
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
        rows += [(
            number, version.key, version.id, destination, d.rule, str(d.status), d.reason,
            version.created_ns, version.size, version.marker, d.job,
            since_ns, str(d.tracking), since_ns + THRESHOLD_NS if timed else None,
            version.digest if told else None, operation(version, d) if told else None,
        )]  # fmt: skip
    return rows


OF_BUCKET = {"PENDING": "INDEXED BY pending", "FAILED": "INDEXED BY failed"}
"""The index for one bucket's deliveries, by status: otherwise SQLite scans all deliveries the bucket ever had."""
_HELD = "INDEXED BY held WHERE status = 'PENDING' AND marker AND batch = '' AND bucket = ?"
_COLUMNS = (
    "bucket, key, id, destination, rule, status, reason, created, size, marker, batch, since, tracking, digest, "
    "operation"
)
DELIVERY = f"SELECT {_COLUMNS} FROM delivery"


def put_all(connection: Connection, address: str, versions: Iterable[Version]) -> None:
    """Record the deliveries of versions of one bucket."""
    number = connection.ids[address]
    put_rows(connection, number, [row for version in versions for row in delivery_rows(number, version)])


def put_rows(connection: Connection, number: int, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows of one bucket; the last of those for one delivery."""
    by_place = {row[1:4]: row for row in rows}
    if not by_place:
        return
    with connection.transaction():
        changes = connection.delivery_changes(number)
        changes.take_out(list(by_place))
        connection.executemany(PUT_DELIVERY, by_place.values())
        for _, _, _, destination, rule, status, _, _, size, _, job, *_ in by_place.values():
            group = destination, rule, status, 0 if job else 1
            changes.numbers[group] += 1  # no call: a burst comes by here
            changes.sizes[group] += size
        changes.write()


def remove_of(
    connection: Connection, number: int, gone: Sequence[tuple[bytes, str]], condition: str, *values: object
) -> None:
    """Delete deliveries of versions, given by key and id, that meet a condition."""
    gone = list(dict.fromkeys(gone))
    with connection.transaction():
        changes = connection.delivery_changes(number)
        if changes.take_out(gone, condition, *values):
            connection.executemany(
                f"DELETE FROM delivery WHERE bucket = ? AND key = ? AND id = ? {condition}",
                [(number, *place, *values) for place in gone],
            )
            changes.write()


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
    """Pending, failed and completed deliveries of versions to destinations."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, address: str, version: Version) -> None:
        put_all(self._connection, address, [version])

    def put_all(self, address: str, versions: Iterable[Version]) -> None:
        put_all(self._connection, address, versions)

    def drop(self, delivery: Delivery) -> None:
        """Delete a delivery whose version was removed, so that no version can show its status."""
        number, *place = _at(self._connection, delivery)
        remove_of(self._connection, number, [(place[0], place[1])], "AND destination = ?", place[2])

    def note(self, delivery: Delivery, status: Status, reason: str, now_ns: int) -> None:
        """Record the outcome of a delivery whose version cannot be updated."""
        number, *place = _at(self._connection, delivery)
        with self._connection.transaction():
            changes = self._connection.delivery_changes(number)
            for (destination, rule, _, live), rows, size in changes.take_out([(place[0], place[1], place[2])]):
                changes.numbers[destination, rule, str(status), live] += rows
                changes.sizes[destination, rule, str(status), live] += size
            self._connection.execute(
                f"UPDATE delivery SET status = ?, reason = ?, since = ?, due = NULL {AT}",
                (str(status), reason, now_ns, number, *place),
            )
            changes.write()

    def has(self, delivery: Delivery) -> bool:
        return (
            self._connection.execute(f"SELECT 1 FROM delivery {AT}", _at(self._connection, delivery)).fetchone()
            is not None
        )

    def is_pending(self, delivery: Delivery) -> bool:
        row = self._connection.execute(f"SELECT status FROM delivery {AT}", _at(self._connection, delivery)).fetchone()
        return row is not None and row[0] == Status.PENDING

    def is_wanted(self, destination: str, key: bytes, version_id: str) -> bool:
        """Whether a version is to be delivered to a destination, from any source."""
        row = self._connection.execute(
            f"SELECT 1 FROM delivery WHERE bucket IN ({','.join('?' * len(self._connection.names))}) "
            "AND key = ? AND id = ? AND destination = ? AND status = 'PENDING'",
            (*self._connection.names, key, version_id, destination),
        ).fetchone()
        return row is not None

    def unfinished(self, source: str, key: bytes) -> dict[str, Status]:
        """PENDING or FAILED by version id, for the versions of a key; FAILED where both apply."""
        return self.unfinished_of(source, [key]).get(key, {})

    def unfinished_of(self, source: str, keys_: Iterable[bytes]) -> dict[bytes, dict[str, Status]]:
        """The unfinished deliveries of many keys, by key; keys without any are left out."""
        found: dict[bytes, dict[str, Status]] = {}
        wanted = iter(keys_)
        while some := list(itertools.islice(wanted, _KEYS_MAX)):
            rows = self._connection.execute(
                "SELECT key, id, status FROM delivery WHERE bucket = ? AND status != 'COMPLETED' "
                f"AND key IN ({','.join('?' * len(some))})",
                (self._connection.ids.get(source), *some),
            )
            for key, version_id, status in rows:
                of_key = found.setdefault(key, {})
                if of_key.get(version_id) is not Status.FAILED:
                    of_key[version_id] = Status(status)
        return found

    def of_keys(self, source: str, keys_: Iterable[bytes]) -> dict[bytes, list[Delivery]]:
        """All deliveries of many keys, by key; keys without any are left out."""
        found: dict[bytes, list[Delivery]] = {}
        wanted = iter(keys_)
        while some := list(itertools.islice(wanted, _KEYS_MAX)):
            rows = self._connection.execute(
                f"{DELIVERY} WHERE bucket = ? AND key IN ({','.join('?' * len(some))})",
                (self._connection.ids.get(source, -1), *some),
            )
            for row in rows:
                found.setdefault(row[1], []).append(delivery_in(self._connection, row))
        return found

    def late(self, now_ns: int, limit: int) -> list[Delivery]:
        """Pending deliveries that missed their threshold and are not yet reported."""
        with self._connection.guard:  # called by a thread that must not block the others during a commit
            rows = self._connection.execute(
                f"{DELIVERY} WHERE due IS NOT NULL AND due <= ? AND status = 'PENDING' ORDER BY due LIMIT ?",
                (now_ns, limit),
            ).fetchall()
        return [delivery_in(self._connection, row) for row in rows]

    def next_late_ns(self) -> int | None:
        """When the next pending delivery misses its threshold, in nanoseconds since the epoch."""
        with self._connection.guard:
            row = self._connection.execute(
                "SELECT due FROM delivery WHERE due IS NOT NULL AND status = 'PENDING' ORDER BY due LIMIT 1"
            ).fetchone()
        return row[0] if row is not None else None

    def is_unannounced(self, delivery: Delivery) -> bool:
        """Whether a delivery has a threshold whose miss is not yet reported."""
        return (
            self._connection.execute(
                f"SELECT 1 FROM delivery {AT} AND due IS NOT NULL", _at(self._connection, delivery)
            ).fetchone()
            is not None
        )

    def announced(self, late: Iterable[Delivery]) -> None:
        """Record these late deliveries as reported."""
        self._connection.executemany(
            f"UPDATE delivery SET due = NULL {AT}", [_at(self._connection, delivery) for delivery in late]
        )

    def tracked(self, source: str, rule: str) -> list[Delivery]:
        """The pending live deliveries that a rule's metrics track."""
        rows = self._connection.execute(
            f"{DELIVERY} INDEXED BY tracked "  # otherwise SQLite scans all deliveries the bucket ever had
            "WHERE bucket = ? AND rule = ? AND status = 'PENDING' AND tracking != '' AND batch = ''",
            (self._connection.ids.get(source), rule),
        )
        return [delivery_in(self._connection, row) for row in rows]

    def untrack(self, deliveries: Iterable[Delivery]) -> None:
        self._connection.executemany(
            f"UPDATE delivery SET tracking = '', due = NULL {AT}", [_at(self._connection, each) for each in deliveries]
        )

    def count_pending(self, source: str, newest_ns: int, key: bytes | None = None) -> int:
        """The number of pending deliveries of a bucket, or a key, of versions no newer than newest_ns."""
        by, and_key = (OF_BUCKET["PENDING"], "") if key is None else ("", " AND key = ?")
        rows = self._connection.execute(
            f"SELECT count(*) FROM delivery {by} WHERE status = 'PENDING' AND bucket = ? AND created <= ?{and_key}",
            (self._connection.ids.get(source), newest_ns, *([key] if key is not None else [])),
        )
        return int(rows.fetchone()[0])

    def count_all_pending(self) -> int:
        """The number of pending deliveries of all buckets, backfills included."""
        (number,) = self._connection.execute(
            "SELECT coalesce(sum(number), 0) FROM delivery_count WHERE status = 'PENDING'"
        ).fetchone()
        return int(number)

    def newest_markers(self, source: str, within_ns: int, since_ns: int = 0) -> Iterator[Delivery]:
        """The pending deliveries of a source's markers that no backfill asked for, oldest first and those of one marker
        together: the markers made within this time before the newest, and those since a moment, if one is given. Read
        in pages."""
        number = self._connection.ids.get(source)
        (newest_ns,) = self._connection.execute(f"SELECT max(created) FROM delivery {_HELD}", (number,)).fetchone()
        first_ns = (newest_ns or 0) - within_ns + 1
        last: tuple[object, ...] = (min(first_ns, since_ns or first_ns), "", b"", "")
        while True:
            rows = self._connection.execute(
                f"{DELIVERY} {_HELD} AND (created, id, key, destination) > (?, ?, ?, ?) "
                f"ORDER BY created, id, key, destination LIMIT {_PAGE}",
                (number, *last),
            ).fetchall()
            found = [delivery_in(self._connection, row) for row in rows]
            yield from found
            if len(found) < _PAGE:
                return
            last = found[-1].created_ns, found[-1].id, found[-1].key, found[-1].destination

    def markers_in_a_row_since(self, source: str, gap_ns: int) -> int:
        """The creation time of the first of a source's pending markers that were made in a row, up to the newest: none
        later than this after the one before. 0 where there is none. Backfills' markers do not count."""
        rows = self._connection.execute(
            f"SELECT created FROM delivery {_HELD} ORDER BY created DESC", (self._connection.ids.get(source),)
        )
        first_ns = 0
        for (created_ns,) in rows:
            if first_ns and first_ns - created_ns > gap_ns:
                break
            first_ns = created_ns
        return first_ns

    def keys_of_markers(self, source: str) -> list[bytes]:
        """The keys of a source's pending markers that no backfill sends."""
        rows = self._connection.execute(
            f"SELECT DISTINCT key FROM delivery {_HELD}", (self._connection.ids.get(source),)
        )
        return [key for (key,) in rows]

    def pending_destinations(self, source: str) -> list[str]:
        """The destinations for which a source has pending deliveries. By one step in the index for each of them."""
        least = f"SELECT min(destination) FROM delivery {OF_BUCKET['PENDING']} WHERE status = 'PENDING' AND bucket = ?1"
        rows = self._connection.execute(
            f"WITH RECURSIVE found (name) AS ({least} UNION ALL SELECT ({least} AND destination > name) FROM found "
            "WHERE name IS NOT NULL) SELECT name FROM found WHERE name IS NOT NULL",
            (self._connection.ids.get(source),),
        )
        return [name for (name,) in rows]

    def pending_rules(self, source: str, destination: str) -> list[str]:
        """The rules by which deliveries to a destination are pending that no backfill asked for."""
        return [
            rule
            for to, rule, status, is_live in self._counted(source)
            if to == destination and is_live and status == Status.PENDING
        ]

    def pending_after(self, source: str, destination: str, after: Delivery | None, limit: int) -> list[Delivery]:
        """Up to `limit` pending deliveries to one destination that no backfill asked for, oldest version first."""
        last = (after.created_ns, after.id, after.key) if after else (-1, "", b"")
        rows = self._connection.execute(
            f"{DELIVERY} {OF_BUCKET['PENDING']} WHERE status = 'PENDING' AND bucket = ? AND destination = ? "
            "AND batch = '' AND (created, id, key) > (?, ?, ?) ORDER BY created, id, key LIMIT ?",
            (self._connection.ids.get(source), destination, *last, limit),
        )
        return [delivery_in(self._connection, row) for row in rows]

    def unheld_after(self, source: str, destination: str, after: Delivery | None, limit: int) -> list[Delivery]:
        """Deliveries as by pending_after, without markers, which a halted bucket holds: no row is read of a million."""
        last = (after.created_ns, after.id, after.key) if after else (-1, "", b"")
        chosen = (
            f"SELECT bucket, key, id, destination FROM delivery {OF_BUCKET['PENDING']} WHERE status = 'PENDING' "
            "AND bucket = ? AND destination = ? AND batch = '' AND NOT marker AND (created, id, key) > (?, ?, ?) "
            "ORDER BY created, id, key LIMIT ?"
        )
        rows = self._connection.execute(
            # CROSS JOIN: SQLite might read all rows of the bucket first
            f"SELECT {_COLUMNS} FROM ({chosen}) CROSS JOIN delivery USING (bucket, key, id, destination) "
            "ORDER BY created, id, key",
            (self._connection.ids.get(source), destination, *last, limit),
        )
        return [delivery_in(self._connection, row) for row in rows]

    def count_held(self, source: str, newest_ns: int = (1 << 63) - 1, key: bytes | None = None) -> int:
        """How many deliveries of markers are pending that no backfill asked for: those that a halted bucket holds."""
        and_key = "" if key is None else " AND key = ?"
        rows = self._connection.execute(
            f"SELECT count(*) FROM delivery {_HELD} AND created <= ?{and_key}",
            (self._connection.ids.get(source), newest_ns, *([key] if key is not None else [])),
        )
        return int(rows.fetchone()[0])

    def select(
        self, source: str = "", *, status: Status | None = None, key: bytes | None = None, prefix: bytes = b"",
    ) -> Iterator[Delivery]:  # fmt: skip
        """Deliveries by key and version."""
        where, values = ["1"], list[Any]()
        for column, value in (
            ("bucket", self._connection.ids.get(source, -1) if source else None),
            ("status", status),
            ("key", key),
        ):
            if value is None:
                continue
            if isinstance(value, Status):  # written as a literal, so that SQLite uses a partial index
                where.append(f"{column} = '{value}'")
            else:
                where.append(f"{column} = ?")
                values.append(value)
        by = OF_BUCKET.get(status or "", "") if source and key is None else ""
        order = "ORDER BY bucket, key, created, id"
        rows = self._connection.execute(f"{DELIVERY} {by} WHERE {' AND '.join(where)} {order}", values).fetchall()
        return (delivery_in(self._connection, row) for row in rows if row[1].startswith(prefix))

    def failures(self, source: str) -> list[tuple[str, str, str, int, int]]:
        """The kinds of FAILED deliveries of a bucket: (destination, rule, reason, number, time of the last one)."""
        return self._connection.execute(
            f"SELECT destination, rule, reason, count(*), max(since) FROM delivery {OF_BUCKET['FAILED']} "
            "WHERE bucket = ? AND status = 'FAILED' GROUP BY destination, rule, reason",
            (self._connection.ids.get(source),),
        ).fetchall()

    def page(self, source: str, status: Status, only: Mapping[str, str], skip: int, most: int) -> list[Delivery]:
        """Some deliveries of a bucket with a status, after skipping so many. only: values of destination, rule and
        reason. Failures come in the order of their time, what is pending in that in which it is sent."""
        where = "".join(f" AND {name} = ?" for name in ("destination", "rule", "reason") if name in only)
        order = {Status.PENDING: "ORDER BY destination, batch, created, id", Status.FAILED: "ORDER BY since"}
        rows = self._connection.execute(
            f"{DELIVERY} {OF_BUCKET.get(status, '')} WHERE bucket = ? AND status = '{status}'{where} "
            f"{order.get(status, 'ORDER BY key, id')} LIMIT ? OFFSET ?",
            (
                self._connection.ids.get(source),
                *(only[name] for name in ("destination", "rule", "reason") if name in only),
                most,
                skip,
            ),
        ).fetchall()
        return [delivery_in(self._connection, row) for row in rows]

    def counts(self, address: str) -> dict[tuple[str, str, str], Counts]:
        """Counts of deliveries by (destination, rule, status); since when only of those that are pending."""
        found: dict[tuple[str, str, str], Counts] = {}
        for (destination, rule, status, is_live), (number, size) in self._counted(address).items():
            at = destination, rule, status
            since_ns = self._since_ns(address, destination, rule, is_live) if status == Status.PENDING else 0
            each = Counts(number, size, since_ns)
            found[at] = found[at].plus(each) if at in found else each
        return found

    def live_pending_counts(self, address: str) -> dict[tuple[str, str], Counts]:
        """Counts of pending live deliveries, without backfills, by (destination, rule)."""
        return {
            (destination, rule): Counts(number, size, self._since_ns(address, destination, rule, is_live))
            for (destination, rule, status, is_live), (number, size) in self._counted(address).items()
            if is_live and status == Status.PENDING
        }

    def _counted(self, address: str) -> Mapping[counters.Group, tuple[int, int]]:
        return counters.counts_of(self._connection._db, self._connection.ids.get(address))

    def _since_ns(self, address: str, destination: str, rule: str, is_live: int) -> int:
        """Since when the oldest pending delivery of a rule has been so; 0 without one. Reads the index alone.

        No delivery is asked for before its version was made. So of the live ones, which come in the order of their
        versions, the first is mostly the oldest, and else only those of versions made before it was asked for are
        read. A job asks for its versions in any order: all that are pending are read.
        """
        of_rule = f"FROM delivery {OF_BUCKET['PENDING']} WHERE status = 'PENDING' AND bucket = ? AND destination = ? "
        values = self._connection.ids.get(address), destination, rule
        if not is_live:
            query = f"SELECT coalesce(min(since), 0) {of_rule} AND rule = ? AND batch > ''"
            return int(self._connection.execute(query, values).fetchone()[0])
        of_rule += "AND rule = ? AND batch = ''"
        first = self._connection.execute(f"SELECT created, since {of_rule} ORDER BY created LIMIT 1", values).fetchone()
        if first is None or first[1] <= first[0]:
            return int(first[1]) if first else 0
        query = f"SELECT min(since) {of_rule} AND created <= ?"
        return int(self._connection.execute(query, (*values, first[1])).fetchone()[0])

    def failed_counts(self, address: str, after_ns: int = 0) -> dict[tuple[str, str], int]:
        """The number of FAILED deliveries, or of those that failed after a time, by (destination, rule)."""
        rows = self._connection.execute(
            "SELECT destination, rule, count(*) FROM delivery WHERE bucket = ? AND status = 'FAILED' AND since > ? "
            "GROUP BY destination, rule",
            (self._connection.ids.get(address), after_ns),
        )
        return {(d, r): n for d, r, n in rows}
