"""The journal's tables of deliveries."""

from __future__ import annotations

from fsrepl.model.version import THRESHOLD_NS, Tracking, Version, operation

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
        timed = told and d.tracking is Tracking.TIME and not (d.batch or version.marker)
        rows.append((
            number, version.key, version.id, destination, d.rule, str(d.status), d.reason,
            version.created_ns, version.size, version.marker, d.batch,
            since_ns, str(d.tracking), since_ns + THRESHOLD_NS if timed else None,
            version.digest if told else None, operation(version, d) if told else None,
        ))  # fmt: skip
    return rows


OF_BUCKET = {"PENDING": "INDEXED BY pending", "FAILED": "INDEXED BY failed"}
"""By status, how those of one bucket are found: SQLite would rather go through all that it ever delivered."""
OWED = (
    "SELECT bucket, key, id, destination, rule, status, reason, created, size, marker, batch, since, tracking, digest, "
    "operation FROM delivery"
)
