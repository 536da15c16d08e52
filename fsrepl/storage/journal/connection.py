"""The journal's SQLite connection: its schema, transactions, and the numbers of buckets.

One process writes, each thread in transactions; any process may read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator

from fsrepl.storage.journal import checking, counters, object_counts
from fsrepl.storage.journal.counters import Changes
from fsrepl.storage.journal.shared_connection import SharedConnection

_SCHEMA_VERSION, _UNCOUNTED = 9, (6, 7, 8)
"""The version that this build writes, and those before: builds that write these leave some counters, or the newest
versions of buckets, as they are, so that all are made anew."""
_WAL_MAX_BYTES = 64 << 20
"""The write-ahead log is cut to this size when all of it is in the file."""
_FREE_MIN_BYTES, _FREE_SHARE = 16 << 20, 8
"""Free pages are given back where they are more than this, and more than this part of the file."""
CHECKED_FIRST_BYTES = 256 << 20
"""A journal up to this size, as of some hundred thousand objects, is checked before it is used. To check one more byte
takes 6 ns of processor time."""
_READ_MAX_S = 5.0
"""The time for which a command that reads the journal waits for another program's lock."""
_LOG_PAGES = 4000
"""The pages of 4 KiB that are logged before they are written to their places: a page that many batches change is then
written there once."""
_STRICT = checking.STRICT if sqlite3.sqlite_version_info >= (3, 37) else ""
"""With it SQLite's own check sees a value of another type than its column's, in a third of the time that comparing the
values takes besides. An older SQLite cannot read such a table: the journal is rebuilt there."""
_SCHEMA = f"""
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE bucket (id INTEGER PRIMARY KEY, address TEXT UNIQUE, uuid TEXT, scanned INTEGER DEFAULT 0,
    skipped INTEGER DEFAULT 0);
-- one row a version or marker. traits: its tags, storage class and tier (see rows.traits_of), NULL where not known;
-- replica: whether it is one, NULL in rows of earlier builds
CREATE TABLE version (
    bucket INTEGER, dir BLOB, name BLOB, created INTEGER, id TEXT, marker INTEGER NOT NULL, size INTEGER NOT NULL,
    traits TEXT, replica INTEGER, PRIMARY KEY (bucket, dir, name, created, id)) WITHOUT ROWID{_STRICT};
-- one row a key: its current version, and the view as last seen (ino NULL: nothing of it is shown). Of type ANY: see
-- rows.column. The check tells apart numbers, texts and bytes, which SQLite has in this order
CREATE TABLE object (
    bucket INTEGER, dir BLOB, name BLOB, id TEXT NOT NULL, created INTEGER NOT NULL, marker INTEGER NOT NULL,
    digest BLOB, ino ANY, size ANY, mtime ANY, ctime ANY, mode INTEGER CHECK (mode BETWEEN 0 AND 65535),
    racy INTEGER, shown TEXT,
    PRIMARY KEY (bucket, dir, name),
    CHECK ((ino IS NULL OR ((ino < '' OR ino >= x'') AND (size < '' OR size >= x'') AND (mtime < '' OR mtime >= x'')
        AND (ctime < '' OR ctime >= x'') AND mode < '' AND shown < x'')) IS TRUE)) WITHOUT ROWID{_STRICT};
-- since: when it was asked for, or FAILED. due: when it will be late, NULL where nobody asks, or was told already.
-- digest, operation: of those that are pending and tracked
CREATE TABLE delivery (
    bucket INTEGER, key BLOB, id TEXT, destination TEXT, rule TEXT, status TEXT NOT NULL, reason TEXT,
    created INTEGER NOT NULL, size INTEGER NOT NULL, marker INTEGER NOT NULL, batch TEXT,
    since INTEGER, tracking TEXT, due INTEGER, digest BLOB, operation TEXT,
    PRIMARY KEY (bucket, key, id, destination)) WITHOUT ROWID{_STRICT};
CREATE INDEX unshown ON object (bucket) WHERE NOT marker AND (ino IS NULL OR shown != id);
CREATE INDEX failed ON delivery (bucket, since) WHERE status = 'FAILED';
CREATE INDEX due ON delivery (due) WHERE due IS NOT NULL;
CREATE INDEX tracked ON delivery (bucket, rule) WHERE status = 'PENDING' AND tracking != '';
CREATE INDEX backfilled ON delivery (bucket, batch, status, size) WHERE batch != '';
"""
_ADDED = {
    "inode": "CREATE INDEX inode ON object (bucket, ino) WHERE ino IS NOT NULL",
    # not `size >= 1048576`: SQLite would search by that, and not by the size that is asked for
    "alike": "CREATE INDEX alike ON version (bucket, size, created) WHERE size / 1048576 > 0",
    "classed": "CREATE INDEX classed ON version (bucket, traits, dir, name, created, id) WHERE traits != ''",
    # with `unshown`: so that what is shown and is not current is found without a look at all keys
    "outlived": "CREATE INDEX outlived ON object (bucket) WHERE marker AND ino IS NOT NULL",
    # the last five: so that what is pending is counted, what is no marker found, and what is the oldest of a rule,
    # without a look at the rows
    "pending": "CREATE INDEX pending ON delivery "
    "(bucket, destination, batch, created, id, key, marker, status, rule, since) WHERE status = 'PENDING'",
    # the last three: so that they are counted without a look at the rows
    "held": "CREATE INDEX held ON delivery (bucket, created, id, key, marker, status, batch) "
    "WHERE status = 'PENDING' AND marker AND batch = ''",
    "unread": "CREATE INDEX unread ON version (bucket) WHERE traits IS NULL",
    "remote": "CREATE TABLE remote (bucket INTEGER, key BLOB, created INTEGER, id TEXT, marker INTEGER, "
    "size INTEGER, remote TEXT, upload TEXT, PRIMARY KEY (bucket, key, created, id)) WITHOUT ROWID",
    "remote_listed": "CREATE TABLE remote_listed (bucket INTEGER, key BLOB, PRIMARY KEY (bucket, key)) WITHOUT ROWID",
}
"""The parts that a journal of an earlier build may lack, or have otherwise, by name: made when it is opened."""
_COLUMNS = (
    ("version", "replica", "INTEGER"),
    # of the bucket's versions the greatest id and the latest creation time, NULL where they have to be looked for
    ("bucket", "newest", "TEXT"),
    ("bucket", "newest_ns", "INTEGER"),
)
"""Columns that a journal of an earlier build may lack."""
_DROPPED = frozenset({"large"})
"""Indexes of earlier builds that nothing uses."""


class Connection:
    """An open journal file. All methods raise sqlite3.Error where the file is damaged; delete it then, and rebuild."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self.path = path
        self.guard = threading.RLock()
        self.ids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.commits = 0
        """The number of transactions so far."""
        self._checked: checking.Check | None = None
        self._met: sqlite3.Error | None = None
        self.is_read_only = read_only
        if read_only:
            self._db = checking.for_reading(path, _READ_MAX_S)
        else:
            self._db = sqlite3.connect(
                path,
                isolation_level=None,
                timeout=checking.LOCKED_MAX_S,
                check_same_thread=False,
                factory=SharedConnection,
            )
        try:
            self.is_new = self._prepare(read_only)
            if not read_only:  # not before: an index of five million rows, sorted in memory, takes 600 MB
                self._db.execute("PRAGMA temp_store = MEMORY")
            self.ids = {a: i for i, a in self._db.execute("SELECT id, address FROM bucket")}
        except BaseException:
            self.close()
            raise
        self.names = {i: a for a, i in self.ids.items()}
        self.execute, self.executemany = self._db.execute, self._db.executemany

    def _prepare(self, read_only: bool) -> bool:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if read_only:
            if found != _SCHEMA_VERSION or not self._has_counters():
                raise sqlite3.DatabaseError("the journal is of another version")
            return False
        if not found:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before WAL: it belongs to the first page
        if self._db.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # to set what is set reads the schema anew
            self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA journal_size_limit = {_WAL_MAX_BYTES}")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        self._db.execute("PRAGMA cache_size = -16000")
        if found in (_SCHEMA_VERSION, *_UNCOUNTED):
            self._check()
            self._add()
            if found in _UNCOUNTED or not self._has_counters():
                self._count()
            return False
        if found:
            raise sqlite3.DatabaseError("the journal is of another version")
        with self.transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._add()
            self._count()
        return True

    def _check(self) -> None:
        """Raise DatabaseError where the journal is damaged; one so large that this takes long is used before that."""
        self._checked = checking.Check(self.path)
        if os.path.getsize(self.path) <= CHECKED_FIRST_BYTES:
            self._checked.begin()
            self._checked.wait()

    def begin_check(self) -> None:
        """Check a large journal beside the work, if that has not begun: after the start, which reads the same disk."""
        if self._checked is not None and not self._checked.has_begun:
            self._checked.begin()
            self._checked.give_way()

    @property
    def is_whole(self) -> bool:
        """Whether its check is over, and has found nothing."""
        return self._checked is None or (self._checked.is_over and self._checked.error is None)

    def note_damage(self, error: sqlite3.Error) -> None:
        """A step has met damage."""
        self._met = self._met or error

    @property
    def damage_found(self) -> sqlite3.Error | None:
        """The damage that a step has met, or its check has found by now, where that goes on beside the work."""
        return self._met or (self._checked.error if self._checked is not None else None)

    def _has_counters(self) -> bool:
        return all(checking.columns(self._db, name) for name in ("delivery_count", "object_count", "linked"))

    def _count(self) -> None:
        """Make the counters, of the rows that are there."""
        with self.transaction():
            self._db.execute("DROP TABLE IF EXISTS delivery_count")
            self._db.execute(counters.TABLE)
            self._db.execute(f"INSERT INTO delivery_count {counters.COUNT}")
            object_counts.make(self._db)
            self._db.execute("UPDATE bucket SET newest = NULL")
            self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _add(self) -> None:
        for table, name, kind in _COLUMNS:
            if all(found != name for found, _ in checking.columns(self._db, table)):
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
        there = {
            name: (kind, made) for name, kind, made in self._db.execute("SELECT name, type, sql FROM sqlite_master")
        }
        dropped = [name for name, (kind, made) in there.items() if kind == "index" and made != _ADDED.get(name, made)]
        for name in (*dropped, *(there.keys() & _DROPPED)):
            self._db.execute(f"DROP INDEX {name}")
        for name, statement in _ADDED.items():
            if name not in there or name in dropped:
                self._db.execute(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction, one thread at a time. A nested one is part of the outer one."""
        with self.guard:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")  # a transaction that begins by reading would not wait for the lock
            ids, names = dict(self.ids), dict(self.names)
            try:
                yield
                self._db.execute("COMMIT")
                self.commits += 1
            except BaseException:
                self.ids, self.names = ids, names
                if self._db.in_transaction:  # after some errors SQLite has already rolled back
                    self._db.execute("ROLLBACK")
                raise

    def delivery_changes(self, bucket: int) -> Changes:
        """To count what changes of a bucket's deliveries."""
        return Changes(self._db, bucket)

    def object_changes(self, bucket: int) -> object_counts.Changes:
        """To count what changes of a bucket's objects and versions."""
        return object_counts.Changes(self._db, bucket)

    def give_back_space(self, pages: int = 1024) -> bool:
        """Give up to so many free pages back to the filesystem, where many are free; whether any were.

        They are free after a million deliveries were pending, or many versions were removed. A journal that an earlier
        build made keeps them for new rows. Source: SQLite's documentation of auto_vacuum.
        """
        with self.guard:
            (size,), (all_,), (free,) = (
                self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "page_count", "freelist_count")
            )
            if free * size < _FREE_MIN_BYTES or free < all_ // _FREE_SHARE:
                return False
            self._db.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
            return bool(self._db.execute("PRAGMA freelist_count").fetchone()[0] < free)

    def close(self) -> None:
        if self._checked is not None:
            self._checked.stop()
        self._db.close()

    def copy_to(self, other: Connection) -> None:
        """Copy this journal's content into another."""
        self._db.backup(other._db)
        other.ids, other.names = dict(self.ids), dict(self.names)
