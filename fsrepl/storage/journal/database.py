"""The journal: a disposable SQLite index of the trees.

Queries that would otherwise need a walk of the trees: the current version of a key, how its view looked when last seen,
and pending deliveries. The journal has no data of its own: repair/reconcile.py rebuilds it from the trees when it is
missing or damaged. One process writes, each thread in transactions; any process may read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from fsrepl.errors import Unavailable
from fsrepl.storage.journal import shared_memory
from fsrepl.storage.journal.backlog import Backlog
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.deliveries import Deliveries
from fsrepl.storage.journal.folders import Folders
from fsrepl.storage.journal.listed import Listed
from fsrepl.storage.journal.remote import Remote
from fsrepl.storage.journal.totals import Totals
from fsrepl.storage.journal.versions import Versions
from fsrepl.storage.journal.views import Views

_OF_BUCKET = ("linked", "object_count", "version", "object", "delivery", "delivery_count", "remote", "remote_listed")


class Journal(Connection):
    """The open journal. All methods raise sqlite3.Error where the file is damaged; delete it then, and rebuild."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self.versions, self.deliveries, self.backlog = Versions(self), Deliveries(self), Backlog(self)
        self.views, self.totals = Views(self), Totals(self)
        self.folders = Folders(self)
        self.remote = Remote(self)

    # -- facts about the journal itself

    def fact(self, name: str) -> str:
        row = self.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set_fact(self, name: str, value: str) -> None:
        self.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def listed(self, address: str) -> Listed:
        """The rows of a bucket's versions, for one list."""
        return Listed(self, address)

    def crossed(self, address: str) -> dict[tuple[str, str], tuple[int, int]]:
        """Of a source's large objects, by destination and rule: the bytes delivered, and those that crossed for it."""
        found = {}
        for (text,) in self.execute("SELECT value FROM fact WHERE name GLOB ?", (f"crossed {address} *",)):
            destination, rule, size, crossed = json.loads(text)
            found[destination, rule] = (size, crossed)
        return found

    def add_crossed(self, address: str, destination: str, rule: str, size: int, crossed: int) -> None:
        name = f"crossed {address} {destination} {rule}"
        before = json.loads(self.fact(name) or "[0, 0, 0, 0]")
        self.set_fact(name, json.dumps([destination, rule, before[2] + size, before[3] + crossed]))

    def damage(self, address: str) -> tuple[int, int]:
        """How often content was found damaged in a bucket, and how often it was repaired."""
        found, repaired = json.loads(self.fact(f"damage {address}") or "[0, 0]")
        return found, repaired

    def add_damage(self, address: str, *, repaired: bool) -> None:
        before = self.damage(address)
        self.set_fact(f"damage {address}", json.dumps([before[0] + 1, before[1] + repaired]))

    def rewrites(self, address: str) -> int:
        """How often many files of a bucket were rewritten at once with content that looks encrypted."""
        return int(self.fact(f"rewrites {address}") or 0)

    def add_rewrites(self, address: str) -> None:
        self.set_fact(f"rewrites {address}", str(self.rewrites(address) + 1))

    # -- buckets

    def bucket_id(self, address: str, uuid: str = "") -> int:
        """The number of a bucket; rows of another bucket with the same address are deleted."""
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
        """The start of a bucket's last completely recorded scan; 0 without one."""
        row = self.execute("SELECT scanned FROM bucket WHERE address = ?", (address,)).fetchone()
        return row[0] if row else 0

    def set_scanned(self, address: str, began_ns: int) -> None:
        self.execute("UPDATE bucket SET scanned = ? WHERE address = ?", (began_ns, address))

    def skipped(self, address: str) -> int:
        """The number of entries in a bucket that are no objects, when last seen."""
        row = self.execute("SELECT skipped FROM bucket WHERE address = ?", (address,)).fetchone()
        return row[0] if row else 0

    def set_skipped(self, address: str, number: int) -> None:
        self.execute("UPDATE bucket SET skipped = ? WHERE address = ?", (number, address))

    def tree(self, address: str) -> str:
        """The identity of the tree from which a bucket's rows were last completely built; empty where unknown."""
        return self.fact(f"tree {address}")

    def set_tree(self, address: str, tree: str) -> None:
        self.set_fact(f"tree {address}", tree)

    def settled(self, address: str) -> str:
        """The note of the last moment at which all of a bucket's store was in its rows: see repair/settled.py."""
        return self.fact(f"settled {address}")

    def set_settled(self, address: str, noted: str) -> None:
        self.set_fact(f"settled {address}", noted)

    def ask_to_reread(self) -> None:
        """Have the records of all versions read again: see repair/reread.py."""
        for address in self.ids:
            self.set_fact(f"reread {address}", "1")

    def is_to_reread(self, address: str) -> bool:
        return bool(self.fact(f"reread {address}"))

    def end_reread(self, address: str) -> None:
        """All of a bucket's records were read again."""
        self.execute("DELETE FROM fact WHERE name = ?", (f"reread {address}",))

    def forget_bucket(self, address: str, *, tables: Sequence[str] = _OF_BUCKET) -> None:
        number = self.ids.get(address)
        if number is None:
            return
        with self.transaction():
            for table in tables:
                self.execute(f"DELETE FROM {table} WHERE bucket = ?", (number,))
            self.execute("DELETE FROM bucket WHERE id = ?", (number,))
            facts = [f"{fact} {address}" for fact in ("scrub", "damage", "rewrites", "settled", "reread")]
            self.execute(f"DELETE FROM fact WHERE name IN ({','.join('?' * len(facts))})", facts)
            self.execute("DELETE FROM fact WHERE name GLOB ?", (f"crossed {address} *",))
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


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


def is_passing(error: sqlite3.Error) -> bool:
    """Whether an error comes from the disk or another program, so that it is tried again and the journal is not
    rebuilt."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _PASSING


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the journal is damaged. Of text that is not UTF-8 Python's module gives no code."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF in _DAMAGE if code is not None else isinstance(error, sqlite3.OperationalError)


def said_of_damage(error: sqlite3.Error) -> str:
    return f"the journal is damaged ({error}); start the daemon again, which makes it anew from the trees"


@contextlib.contextmanager
def faults_as_unavailable(path: str) -> Iterator[None]:
    """A context in which damage of the journal, or a fault of its disk, is raised as Unavailable, with a readable
    message."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise Unavailable(said_of_damage(error)) from error
        if not is_passing(error):
            raise
        raise Unavailable(f"the journal {path} cannot be used: {error}; make that possible, and try again") from error


def open_or_replace(path: str) -> Journal:
    """The journal, readable only by its owner; new and empty where it was missing, damaged or of another format
    version.

    Raises Unavailable where another program holds its lock.
    """
    with contextlib.suppress(OSError):  # SQLite reports any error; its other files take this file's mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    shared_memory.write_in_place(path)
    try:
        return Journal(path)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise Unavailable(f"{path} is locked by another program than fsrepl; it is needed here") from error
        if is_passing(error):
            raise
        discard(path)
        return Journal(path)


def discard(path: str) -> None:
    """Remove a damaged journal: the next start makes it anew from the trees."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def in_memory(addresses: Iterable[tuple[str, str]], like: Journal | None = None) -> Journal:
    """A journal in memory for a reader to add to: empty, or a copy of another one."""
    journal = Journal(":memory:")
    if like is not None:
        like.copy_to(journal)
    for address, uuid in addresses:
        journal.bucket_id(address, uuid)
    return journal
