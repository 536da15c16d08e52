"""Whether a journal is damaged: all of it is read, by SQLite's own check, and for values of wrong types.

SQLite's check sees those by itself in strict tables. Other tables, as an earlier build made them, are read a second
time for that, at the same time: each in a thread and on a connection of its own, beside whatever uses the journal. For
a million objects with three million pending deliveries that takes ten seconds of processor time, and half of it where
the tables are strict.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
from collections.abc import Callable
from urllib.parse import quote

from fsrepl.storage.journal.shared_connection import SharedConnection

LOCKED_MAX_S = 60.0
"""The time for which another program, such as a backup, may keep the journal locked before that is an error."""
_NICE, _INTERRUPT_S = 10, 0.02
STRICT = ", STRICT"
"""The end of the statement that makes a strict table."""
_TABLES = ("bucket", "version", "object", "delivery", "delivery_count", "object_count")
_ALWAYS = (
    "id", "created", "marker", "shown", "size", "mtime", "ctime", "mode", "status", "destination", "scanned",
    "number", "bytes", "objects", "versions", "current_bytes",
)  # fmt: skip
"""Columns that have a value in each row; of an object the view's, where it has one."""
_OF_VIEW = ("ino", "size", "mtime", "ctime", "mode", "shown")


def _of_another_kind(name: str, kind: str, *, may_be_bytes: bool) -> str:
    """The condition that a column's value is not of its declared type.

    SQLite orders all numbers before all texts, and these before all bytes, so that one comparison tells, in a quarter
    of the time of typeof. may_be_bytes: see rows.column.
    """
    if kind == "BLOB":
        return f"{name} < x''"
    if kind == "TEXT":
        return f"{name} >= x''"
    if name == "mode":
        return "mode >= '' OR mode < 0 OR mode > 65535"
    return f"({name} >= '' AND {name} < x'')" if may_be_bytes else f"{name} >= ''"


@functools.cache
def _is_wrong(table: str, *columns: tuple[str, str]) -> str:
    """The condition that a row has a value of another type than one of its columns, given by name and type."""
    wrong = []
    for name, kind in columns:
        is_of_view = table == "object" and name in _OF_VIEW
        if name in _ALWAYS:
            wrong.append(f"{name} IS NULL" + (" AND ino IS NOT NULL" if is_of_view else ""))
        wrong.append(_of_another_kind(name, kind, may_be_bytes=is_of_view and name != "mode"))
    return " OR ".join(wrong)


def for_reading(path: str, timeout_s: float) -> sqlite3.Connection:
    """A connection that changes nothing. timeout_s: how long it waits for another program's lock."""
    return _connect(path, "ro", timeout_s)


def _for_checking(path: str) -> sqlite3.Connection:
    """A connection that changes nothing either: one that could not is not told of CHECK constraints, by SQLite."""
    db = _connect(path, "rw", LOCKED_MAX_S)
    db.execute("PRAGMA query_only = ON")
    return db


def _connect(path: str, mode: str, timeout_s: float) -> sqlite3.Connection:
    uri = f"file:{quote(path)}?mode={mode}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=timeout_s, check_same_thread=False, factory=SharedConnection
    )


def columns(db: sqlite3.Connection, table: str) -> list[tuple[str, str]]:
    """Name and declared type of each column of a table; none where there is no such table."""
    return [(row[1], row[2]) for row in db.execute(f"PRAGMA table_info({table})")]


class Check:
    """A check of a journal file."""

    def __init__(self, path: str) -> None:
        self.error: sqlite3.Error | None = None
        """The first damage found, or why the file could not be read."""
        self._path = path
        self._connections: list[sqlite3.Connection] = []
        self._threads: list[threading.Thread] = []

    @property
    def has_begun(self) -> bool:
        return bool(self._threads)

    def begin(self) -> None:
        for check in (_check_structure, _check_kinds):
            connection = _for_checking(self._path)
            self._connections.append(connection)
            self._threads.append(
                threading.Thread(target=self._run, args=(check, connection), name="journal check", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def _run(self, check: Callable[[sqlite3.Connection], None], connection: sqlite3.Connection) -> None:
        with contextlib.closing(connection):
            try:
                check(connection)
            except sqlite3.Error as error:
                self.error = self.error or error

    def wait(self) -> None:
        """Wait for the end. Raises sqlite3.Error where there is damage, or the file could not be read."""
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    @property
    def is_over(self) -> bool:
        return self.has_begun and not any(thread.is_alive() for thread in self._threads)

    def give_way(self) -> None:
        """From now on it takes the processor only where nothing else wants it."""
        for thread in self._threads:
            with contextlib.suppress(OSError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread.native_id or 0, _NICE)

    def stop(self) -> None:
        """End it, whatever it has found."""
        for thread, connection in zip(self._threads, self._connections, strict=True):
            while thread.is_alive():
                with contextlib.suppress(sqlite3.ProgrammingError):  # it has just been closed
                    connection.interrupt()  # the query under way, if there is one
                thread.join(_INTERRUPT_S)


def _check_structure(db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _check_kinds(db: sqlite3.Connection) -> None:
    """Raise DatabaseError where a row has a value of another type than its column is declared to have: SQLite's own
    check sees no damage in that where the table is not strict, and all that reads the row would fail."""
    made = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
    for table in _TABLES:
        if (found := columns(db, table)) and not made[table].endswith(STRICT):
            wrong = _is_wrong(table, *found)
            if db.execute(f"SELECT 1 FROM {table} WHERE {wrong} LIMIT 1").fetchone():
                raise sqlite3.DatabaseError(f"a row of the table {table} has a value of another type than its column")
