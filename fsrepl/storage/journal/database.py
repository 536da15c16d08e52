"""The index of the trees: SQLite, and disposable.

It answers what would take a walk to find out: the current version of a key, what its view looked
like when last seen, and what is pending. Nothing is only here: repair/reconcile.py rebuilds it from the trees
when it is missing or damaged. One process writes it, each thread in transactions; anybody may read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from fsrepl.errors import Unavailable
from fsrepl.storage.journal.backlog import Backlog
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.deliveries import Deliveries
from fsrepl.storage.journal.versions import Versions


class Journal(Connection):
    """All methods raise sqlite3.Error where the file is damaged: remove it, and rebuild."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self.versions, self.deliveries, self.backlog = Versions(self), Deliveries(self), Backlog(self)

    # -- facts about the journal itself

    def fact(self, name: str) -> str:
        row = self.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set_fact(self, name: str, value: str) -> None:
        self.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    # -- buckets

    def bucket_id(self, address: str, uuid: str = "") -> int:
        """The number of a bucket; rows of another bucket that had this address go."""
        number = self.ids.get(address)
        if number is None:
            cursor = self.execute("INSERT INTO bucket (address, uuid) VALUES (?, ?)", (address, uuid))
            number = self.ids[address] = cursor.lastrowid or 0
            self.names[number] = address
        elif uuid:
            row = self.execute("SELECT uuid FROM bucket WHERE id = ?", (number,)).fetchone()
            if row and row[0] != uuid:
                self.forget_bucket(address)
                return self.bucket_id(address, uuid)
        return number

    def knows(self, address: str) -> bool:
        return address in self.ids

    def scanned_ns(self, address: str) -> int:
        """When the last scan of a bucket began of which all finds are recorded; 0 where there was none."""
        row = self.execute("SELECT scanned FROM bucket WHERE address = ?", (address,)).fetchone()
        return row[0] if row else 0

    def set_scanned(self, address: str, began_ns: int) -> None:
        self.execute("UPDATE bucket SET scanned = ? WHERE address = ?", (began_ns, address))

    def skipped(self, address: str) -> int:
        """How many entries of a bucket are no objects, as it was last seen."""
        row = self.execute("SELECT skipped FROM bucket WHERE address = ?", (address,)).fetchone()
        return row[0] if row else 0

    def set_skipped(self, address: str, number: int) -> None:
        self.execute("UPDATE bucket SET skipped = ? WHERE address = ?", (number, address))

    def tree(self, address: str) -> str:
        """Which tree of a bucket the journal was last made from, whole; empty where that is not known."""
        return self.fact(f"tree {address}")

    def set_tree(self, address: str, tree: str) -> None:
        self.set_fact(f"tree {address}", tree)

    def forget_trees(self) -> None:
        """From now on nothing is believed before it was read again."""
        self.execute("DELETE FROM fact WHERE name LIKE 'tree %'")

    def forget_bucket(self, address: str, *, tables: Sequence[str] = ("version", "object", "delivery")) -> None:
        number = self.ids.get(address)
        if number is None:
            return
        with self.transaction():
            for table in tables:
                self.execute(f"DELETE FROM {table} WHERE bucket = ?", (number,))
            self.execute("DELETE FROM bucket WHERE id = ?", (number,))
        del self.ids[address], self.names[number]


_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


def is_passing(error: sqlite3.Error) -> bool:
    """Whether it is the disk, or another program, and not the journal: it is tried again, and nothing is rebuilt."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _PASSING


@contextlib.contextmanager
def faults_told(path: str) -> Iterator[None]:
    """A fault of the disk that the journal is on, as Unavailable and in words."""
    try:
        yield
    except sqlite3.Error as error:
        if not is_passing(error):
            raise
        raise Unavailable(f"the journal {path} cannot be used: {error}; make that possible, and try again") from error


def open_or_replace(path: str) -> Journal:
    """The journal, new and empty where it is missing, damaged or of another version; nobody else's to read.

    Raises Unavailable where another program holds its lock.
    """
    with contextlib.suppress(OSError):  # what is wrong with it, SQLite says; its other files take the mode of this one
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        return Journal(path)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise Unavailable(f"{path} is locked by another program than fsrepl; it is needed here") from error
        if is_passing(error):
            raise
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + suffix)
        return Journal(path)


def in_memory(addresses: Iterable[tuple[str, str]], like: Journal | None = None) -> Journal:
    """A journal for a reader to add to: empty, or a copy of another one."""
    journal = Journal(":memory:")
    if like is not None:
        like.copy_to(journal)
    for address, uuid in addresses:
        journal.bucket_id(address, uuid)
    return journal
