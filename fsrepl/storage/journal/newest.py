"""The newest version of each bucket, which a start needs before it makes another one.

It is kept beside the bucket, since a look for it reads a row for each version. What is added moves it on; where
something was removed it is looked for again, once it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from fsrepl.model.version import NULL
from fsrepl.storage.journal.connection import Connection

_KNOWN = "SELECT newest, newest_ns FROM bucket WHERE id = ? AND newest IS NOT NULL"
_LOOK = (
    "SELECT coalesce(max(CASE WHEN id = 'null' THEN '' ELSE id END), ''), coalesce(max(created), 0) "
    "FROM version WHERE bucket = ?"
)


def read(db: Connection, number: int | None) -> tuple[str, int]:
    """The greatest version id of a bucket, and the latest creation time."""
    if (known := db.execute(_KNOWN, (number,)).fetchone()) is not None:
        return known[0], known[1]
    if number is None or db.is_read_only:
        version_id, created_ns = db.execute(_LOOK, (number,)).fetchone()
        return version_id, created_ns
    with db.transaction():
        version_id, created_ns = db.execute(_LOOK, (number,)).fetchone()
        db.execute("UPDATE bucket SET newest = ?, newest_ns = ? WHERE id = ?", (version_id, created_ns, number))
    return version_id, created_ns


def note(db: Connection, number: int, ids: Sequence[str], times_ns: Sequence[int]) -> None:
    """Note versions that are added."""
    if NULL in ids:  # it sorts after all others
        ids = ["", *(each for each in ids if each != NULL)]
    db.execute(
        "UPDATE bucket SET newest = max(newest, ?), newest_ns = max(newest_ns, ?) WHERE id = ? AND newest IS NOT NULL",
        (max(ids), max(times_ns), number),
    )


def forget(db: Connection, number: int) -> None:
    """Look for it again, since versions are removed."""
    db.execute("UPDATE bucket SET newest = NULL WHERE id = ?", (number,))
