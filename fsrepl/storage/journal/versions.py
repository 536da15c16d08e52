"""The journal's tables of objects and versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsrepl.model.view import View
from fsrepl.storage.journal.rows import Object

PAGE = 1000
_INTEGER_END = 1 << 63
NAMES_MAX = 500
OBJECT = (
    "SELECT id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown, name FROM object "
    "WHERE bucket = ? AND dir = ?"
)
OBJECT_ANYWHERE = (
    "SELECT id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown, name, dir FROM object "
    "WHERE bucket = ?"
)
PUT_OBJECT = """
INSERT INTO object (bucket, dir, name, id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (bucket, dir, name) DO UPDATE SET
    id = excluded.id, created = excluded.created, marker = excluded.marker, digest = excluded.digest,
    ino = excluded.ino, size = excluded.size, mtime = excluded.mtime, ctime = excluded.ctime,
    mode = excluded.mode, racy = excluded.racy, shown = excluded.shown
"""


def seen_columns(view: View | None) -> tuple[object, ...]:
    if view is None:
        return (None,) * 7
    ino, size, mtime, ctime = map(column, (view.ino, view.size, view.mtime_ns, view.ctime_ns))
    return ino, size, mtime, ctime, view.mode, view.racy, view.shown


def column(number: int) -> int | bytes:
    """A number that a filesystem gave, as SQLite can hold it: its integers have 64 bits, with a sign.

    FUSE and NFS make inode numbers from 2^63 on, and times in nanoseconds leave that range in 2262. Bytes keep
    any number exactly, also in a column that is declared INTEGER. Source: sqlite.org/datatype3, 3.
    """
    return number if -_INTEGER_END <= number < _INTEGER_END else number.to_bytes(16, "big", signed=True)


def _number(column: int | bytes) -> int:
    """The same, read."""
    return column if isinstance(column, int) else int.from_bytes(column, "big", signed=True)


def object_of(row: Sequence[Any]) -> Object:
    version_id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown = row[:11]
    view = None
    if ino is not None:
        view = View(_number(ino), _number(size), _number(mtime), _number(ctime), mode, bool(racy), shown)
    return Object(version_id, created, bool(marker), digest or b"", view)
