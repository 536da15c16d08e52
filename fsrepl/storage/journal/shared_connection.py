"""A SQLite connection that several threads use: one call at a time, and the others wait without the interpreter's lock.

SQLite has a lock of its own for that. But Python binds values and reads columns with the interpreter's lock held, and
would wait there for a call of another thread: where the filesystem gives no answer to that one, no thread of the
process would go on. Source: sqlite3_mutex_enter in SQLite's vdbeapi.c; Modules/_sqlite of CPython.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Self

_ROWS_AT_ONCE = 256
# not by super(): a statement takes little longer than that
_execute, _executemany = sqlite3.Cursor.execute, sqlite3.Cursor.executemany
_fetchone, _fetchall = sqlite3.Cursor.fetchone, sqlite3.Cursor.fetchall


class SharedCursor(sqlite3.Cursor):
    """The rows of one statement, for one thread."""

    connection: SharedConnection

    def execute(self, *given: Any) -> Self:
        with self.connection.in_use:
            return _execute(self, *given)

    def executemany(self, *given: Any) -> Self:
        with self.connection.in_use:
            return _executemany(self, *given)

    def fetchone(self) -> Any:
        with self.connection.in_use:
            return _fetchone(self)

    def fetchall(self) -> list[Any]:
        with self.connection.in_use:
            return _fetchall(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Some rows are read ahead: to take and to release the lock for each takes longer than to read it."""
        while True:
            with self.connection.in_use:
                rows = self.fetchmany(_ROWS_AT_ONCE)
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return


class SharedConnection(sqlite3.Connection):
    """See above; the `factory` of sqlite3.connect."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.in_use = threading.Lock()

    def cursor(self, *_: Any) -> SharedCursor:  # type: ignore[override]
        return SharedCursor(self)

    def execute(self, *given: Any) -> SharedCursor:
        with self.in_use:
            return _execute(SharedCursor(self), *given)

    def executemany(self, *given: Any) -> SharedCursor:
        with self.in_use:
            return _executemany(SharedCursor(self), *given)
