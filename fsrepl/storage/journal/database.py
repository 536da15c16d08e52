"""The index of the trees: SQLite, and disposable.

It answers what would take a walk to find out: the current version of a key, what its view looked
like when last seen, and what is pending. Nothing is only here: repair/reconcile.py rebuilds it from the trees
when it is missing or damaged. One process writes it, each thread in transactions; anybody may read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fsrepl.errors import Unavailable
from fsrepl.model import keys
from fsrepl.model.version import NULL, Status, Tracking, Version
from fsrepl.model.view import View
from fsrepl.storage.journal import deliveries, versions
from fsrepl.storage.journal.deliveries import AT, OF_BUCKET, OWED, PUT_DELIVERY, delivery_rows
from fsrepl.storage.journal.rows import Counts, Object, Owed, Stored
from fsrepl.storage.journal.versions import NAMES_MAX, OBJECT, OBJECT_ANYWHERE, PAGE, PUT_OBJECT, seen_columns

_SCHEMA_VERSION = 5
_LOCKED_MAX_S = 60.0
"""How long another program may keep the journal locked, as one that copies it does, before that is a fault."""
_SCHEMA = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE bucket (id INTEGER PRIMARY KEY, address TEXT UNIQUE, uuid TEXT, scanned INTEGER DEFAULT 0,
    skipped INTEGER DEFAULT 0);
-- one row a version or marker
CREATE TABLE version (
    bucket INTEGER, dir BLOB, name BLOB, created INTEGER, id TEXT, marker INTEGER, size INTEGER,
    PRIMARY KEY (bucket, dir, name, created, id)) WITHOUT ROWID;
-- one row a key: its current version, and the view as last seen (ino NULL: nothing of it is shown)
CREATE TABLE object (
    bucket INTEGER, dir BLOB, name BLOB, id TEXT, created INTEGER, marker INTEGER, digest BLOB,
    ino INTEGER, size INTEGER, mtime INTEGER, ctime INTEGER, mode INTEGER, racy INTEGER, shown TEXT,
    PRIMARY KEY (bucket, dir, name)) WITHOUT ROWID;
-- since: when it was asked for, or FAILED. due: when it will be late, NULL where nobody asks, or was told already.
-- digest, operation: of those that are pending and tracked
CREATE TABLE delivery (
    bucket INTEGER, key BLOB, id TEXT, destination TEXT, rule TEXT, status TEXT, reason TEXT,
    created INTEGER, size INTEGER, marker INTEGER, batch TEXT,
    since INTEGER, tracking TEXT, due INTEGER, digest BLOB, operation TEXT,
    PRIMARY KEY (bucket, key, id, destination)) WITHOUT ROWID;
CREATE INDEX unshown ON object (bucket) WHERE NOT marker AND (ino IS NULL OR shown != id);
CREATE INDEX pending ON delivery (bucket, destination, batch, created, id) WHERE status = 'PENDING';
CREATE INDEX failed ON delivery (bucket, since) WHERE status = 'FAILED';
CREATE INDEX due ON delivery (due) WHERE due IS NOT NULL;
CREATE INDEX tracked ON delivery (bucket, rule) WHERE status = 'PENDING' AND tracking != '';
CREATE INDEX backfilled ON delivery (bucket, batch, status, size) WHERE batch != '';
"""
_INODES = "CREATE INDEX IF NOT EXISTS inode ON object (bucket, ino) WHERE ino IS NOT NULL"
"""A journal of an earlier build is given it when it is opened."""


class Journal:
    """All methods raise sqlite3.Error where the file is damaged: remove it, and rebuild."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self.path = path
        self._guard = threading.RLock()
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        if read_only:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=5)
        else:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=_LOCKED_MAX_S, check_same_thread=False)
        try:
            self.is_new = self._prepare(read_only)
            self._ids = {a: i for i, a in self._db.execute("SELECT id, address FROM bucket")}
        except BaseException:
            self._db.close()
            raise
        self._names = {i: a for a, i in self._ids.items()}
        self.execute = self._db.execute

    def _prepare(self, read_only: bool) -> bool:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if read_only:
            if found != _SCHEMA_VERSION:
                raise sqlite3.DatabaseError("the journal is of another version")
            return False
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA cache_size = -16000")
        self._db.execute("PRAGMA temp_store = MEMORY")
        if found == _SCHEMA_VERSION:
            (intact,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if intact != "ok":
                raise sqlite3.DatabaseError(intact)
            self._db.execute(_INODES)
            return False
        if found:
            raise sqlite3.DatabaseError("the journal is of another version")
        with self.transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(_INODES)
            self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, one thread at a time. One inside another is part of the outer one."""
        with self._guard:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")  # what only reads first would not wait for who holds the lock
            ids, names = dict(self._ids), dict(self._names)
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._ids, self._names = ids, names
                if self._db.in_transaction:  # after some faults SQLite has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self._db.close()

    def copy_to(self, other: Journal) -> None:
        """Make another journal the same as this one."""
        self._db.backup(other._db)
        other._ids, other._names = dict(self._ids), dict(self._names)

    # -- facts about the journal itself

    def fact(self, name: str) -> str:
        row = self.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set_fact(self, name: str, value: str) -> None:
        self.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    # -- buckets

    def bucket_id(self, address: str, uuid: str = "") -> int:
        """The number of a bucket; rows of another bucket that had this address go."""
        number = self._ids.get(address)
        if number is None:
            cursor = self.execute("INSERT INTO bucket (address, uuid) VALUES (?, ?)", (address, uuid))
            number = self._ids[address] = cursor.lastrowid or 0
            self._names[number] = address
        elif uuid:
            row = self.execute("SELECT uuid FROM bucket WHERE id = ?", (number,)).fetchone()
            if row and row[0] != uuid:
                self.forget_bucket(address)
                return self.bucket_id(address, uuid)
        return number

    def knows(self, address: str) -> bool:
        return address in self._ids

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
        number = self._ids.get(address)
        if number is None:
            return
        with self.transaction():
            for table in tables:
                self.execute(f"DELETE FROM {table} WHERE bucket = ?", (number,))
            self.execute("DELETE FROM bucket WHERE id = ?", (number,))
        del self._ids[address], self._names[number]

    # -- versions and objects

    def object(self, address: str, key: bytes) -> Object | None:
        directory, name = keys.split(key)
        row = self.execute(f"{OBJECT} AND name = ?", (self._ids.get(address), directory, name)).fetchone()
        return versions.object_of(row) if row else None

    def look_up(self, address: str, keys_: Iterable[bytes]) -> dict[bytes, Object]:
        """Key to object, of many keys at once: a look at each directory."""
        number = self._ids.get(address)
        by_directory: dict[bytes, list[bytes]] = {}
        for key in keys_:
            directory, name = keys.split(key)
            by_directory.setdefault(directory, []).append(name)
        found: dict[bytes, Object] = {}
        for directory, names in by_directory.items():
            for start in range(0, len(names), NAMES_MAX):
                some = names[start : start + NAMES_MAX]
                rows = self.execute(f"{OBJECT} AND name IN ({','.join('?' * len(some))})", (number, directory, *some))
                for row in rows:
                    found[keys.join(directory, row[11])] = versions.object_of(row)
        return found

    def objects_in(self, address: str, directory: bytes) -> dict[bytes, Object]:
        """Name to object, of one directory."""
        rows = self.execute(OBJECT, (self._ids.get(address), directory))
        return {row[11]: versions.object_of(row) for row in rows}

    def objects(self, address: str) -> Iterator[tuple[bytes, Object]]:
        """Every key in order, with its current version; a page at a time, so that rows may be changed meanwhile."""
        after: tuple[bytes, bytes] | None = None
        while True:
            where = "AND (dir, name) > (?, ?)" if after else ""
            rows = self.execute(
                "SELECT id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown, dir, name FROM object "
                f"WHERE bucket = ? {where} ORDER BY dir, name LIMIT {PAGE}",
                (self._ids.get(address), *(after or ())),
            ).fetchall()
            if not rows:
                return
            for row in rows:
                yield keys.join(row[11], row[12]), versions.object_of(row)
            after = rows[-1][11], rows[-1][12]

    def all_versions(self, address: str) -> Iterator[tuple[bytes, str]]:
        """Key and version id of every version and marker of a bucket."""
        rows = self.execute("SELECT dir, name, id FROM version WHERE bucket = ?", (self._ids.get(address),))
        return ((keys.join(directory, name), version_id) for directory, name, version_id in rows)

    def directories(self, address: str, *, below: bytes = b"") -> list[bytes]:
        """The directories of all keys, or those of a directory and all below it."""
        number = self._ids.get(address)
        if not below:
            return [d for (d,) in self.execute("SELECT DISTINCT dir FROM object WHERE bucket = ?", (number,))]
        rows = self.execute(  # in two parts: for an OR of them SQLite goes through the whole bucket
            "SELECT DISTINCT dir FROM object WHERE bucket = ? AND dir = ? "
            "UNION ALL SELECT DISTINCT dir FROM object WHERE bucket = ? AND dir > ? AND dir < ?",
            (number, below, number, below + b"/", below + b"0"),
        )
        return [d for (d,) in rows]

    def add(self, address: str, version: Version) -> bool:
        """A version is in the store. Whether it is the current one of its key now."""
        number = self._ids[address]
        directory, name = keys.split(version.key)
        self._displace(number, version)
        self.execute(
            "INSERT OR REPLACE INTO version VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, directory, name, version.created_ns, version.id, version.marker, version.size),
        )
        if version.deliveries:
            self.put_deliveries(address, version)
        row = self.execute(
            "SELECT created, id FROM object WHERE bucket = ? AND dir = ? AND name = ?", (number, directory, name)
        ).fetchone()
        if row is None:
            self.execute(
                "INSERT INTO object (bucket, dir, name, id, created, marker, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, directory, name, version.id, version.created_ns, version.marker, version.digest),
            )
            return True
        if row > version.order and row[1] != version.id:
            return False
        self._set_current(number, directory, name, version)
        return True

    def add_shown(self, address: str, rows: Sequence[tuple[Version, View | None]]) -> None:
        """Versions that are the current ones of their keys, with how their views look: a batch at once."""
        number = self._ids[address]
        versions, objects, deliveries = [], [], []
        for version, view in rows:
            directory, name = keys.split(version.key)
            if version.id == NULL:
                self._displace(number, version)
            versions.append((number, directory, name, version.created_ns, version.id, version.marker, version.size))
            objects.append(
                (
                    number,
                    directory,
                    name,
                    version.id,
                    version.created_ns,
                    version.marker,
                    version.digest,
                    *seen_columns(view),
                )
            )
            deliveries += delivery_rows(number, version)
        self._db.executemany("INSERT OR REPLACE INTO version VALUES (?, ?, ?, ?, ?, ?, ?)", versions)
        self._db.executemany(PUT_OBJECT, objects)
        self._db.executemany(PUT_DELIVERY, deliveries)

    def _displace(self, number: int, version: Version) -> None:
        """What a version takes the place of goes, with what it owed: another null version, or its own former record."""
        directory, name = keys.split(version.key)
        other = (version.id, version.created_ns)
        gone = self.execute(
            "DELETE FROM version WHERE bucket = ? AND dir = ? AND name = ? AND id = ? AND created != ?",
            (number, directory, name, *other),
        ).rowcount
        if gone and version.id == NULL:  # a view that shows the one before does not show this one
            self.execute(
                "UPDATE object SET shown = '' WHERE bucket = ? AND dir = ? AND name = ? AND shown = ?",
                (number, directory, name, NULL),
            )
        self.execute(
            "DELETE FROM delivery WHERE bucket = ? AND key = ? AND id = ? AND created != ?",
            (number, version.key, *other),
        )

    def _set_current(self, number: int, directory: bytes, name: bytes, version: Version) -> None:
        self.execute(
            "UPDATE object SET id = ?, created = ?, marker = ?, digest = ? WHERE bucket = ? AND dir = ? AND name = ?",
            (version.id, version.created_ns, version.marker, version.digest, number, directory, name),
        )

    def see(self, address: str, key: bytes, view: View | None) -> None:
        """Record what a key's view looks like now; None: there is nothing of it."""
        self.see_all(address, [(key, view)])

    def see_all(self, address: str, rows: Iterable[tuple[bytes, View | None]]) -> None:
        number = self._ids[address]
        with self.transaction():
            self._db.executemany(
                "UPDATE object SET ino = ?, size = ?, mtime = ?, ctime = ?, mode = ?, racy = ?, shown = ? "
                "WHERE bucket = ? AND dir = ? AND name = ?",
                [(*versions.seen_columns(view), number, *keys.split(key)) for key, view in rows],
            )

    def names_of(self, address: str, ino: int) -> dict[bytes, Object]:
        """The keys whose views were last seen to have an inode number."""
        rows = self.execute(f"{OBJECT_ANYWHERE} AND ino = ?", (self._ids.get(address), versions.column(ino)))
        return {keys.join(row[12], row[11]): versions.object_of(row) for row in rows}

    def count_linked(self, address: str) -> int:
        """How many keys have a file that is another key's file, too."""
        (number,) = self.execute(
            "SELECT coalesce(sum(number), 0) FROM (SELECT count(*) AS number FROM object WHERE bucket = ? AND ino IN "
            "(SELECT ino FROM object WHERE bucket = ? AND ino IS NOT NULL GROUP BY ino HAVING count(*) > 1) "
            "GROUP BY ino, size, mtime HAVING count(*) > 1)",  # subvolumes have files of the same number
            (self._ids.get(address), self._ids.get(address)),
        ).fetchone()
        return int(number)

    def unshown(self, address: str, limit: int) -> list[bytes]:
        """Keys whose view was not seen to show their current version."""
        rows = self.execute(
            "SELECT dir, name FROM object INDEXED BY unshown "
            "WHERE bucket = ? AND NOT marker AND (ino IS NULL OR shown != id) LIMIT ?",
            (self._ids.get(address), limit),
        )
        return [keys.join(directory, name) for directory, name in rows]

    def behind(self, address: str) -> list[bytes]:
        """Keys whose view is on record as showing another version than the current one. Looks through all of them."""
        rows = self.execute(
            "SELECT dir, name FROM object WHERE bucket = ? AND ino IS NOT NULL AND shown != id",
            (self._ids.get(address),),
        )
        return [keys.join(directory, name) for directory, name in rows]

    def versions_of(self, address: str, key: bytes) -> list[tuple[str, int, bool]]:
        """(id, created_ns, marker) of each version and marker of a key, newest first."""
        directory, name = keys.split(key)
        rows = self.execute(
            "SELECT id, created, marker FROM version WHERE bucket = ? AND dir = ? AND name = ? "
            "ORDER BY created DESC, id DESC",
            (self._ids.get(address), directory, name),
        )
        return [(i, c, bool(m)) for i, c, m in rows]

    def size_of(self, address: str, key: bytes, version_id: str) -> int | None:
        """How large a version was when it was made; None where it is not known."""
        directory, name = keys.split(key)
        row = self.execute(
            "SELECT size FROM version WHERE bucket = ? AND dir = ? AND name = ? AND id = ?",
            (self._ids.get(address), directory, name, version_id),
        ).fetchone()
        return row[0] if row else None

    def versions_in(self, address: str, directory: bytes) -> set[tuple[bytes, str, bool]]:
        rows = self.execute(
            "SELECT name, id, marker FROM version WHERE bucket = ? AND dir = ?", (self._ids.get(address), directory)
        )
        return {(n, i, bool(m)) for n, i, m in rows}

    def version_directories(self, address: str) -> set[bytes]:
        rows = self.execute("SELECT DISTINCT dir FROM version WHERE bucket = ?", (self._ids.get(address),))
        return {d for (d,) in rows}

    def remove(self, address: str, key: bytes, version_id: str, current: Version | None) -> None:
        """A version is gone from the store; current is the newest that is left."""
        number = self._ids[address]
        directory, name = keys.split(key)
        at = (number, directory, name)
        with self.transaction():
            self.execute("DELETE FROM version WHERE bucket = ? AND dir = ? AND name = ? AND id = ?", (*at, version_id))
            # What is still owed of it stays, until it was said that it failed: settling.settle drops it then.
            self.execute(
                "DELETE FROM delivery WHERE bucket = ? AND key = ? AND id = ? AND status != 'PENDING'",
                (number, key, version_id),
            )
            if current is None:
                self.execute("DELETE FROM object WHERE bucket = ? AND dir = ? AND name = ?", at)
            else:
                self._set_current(number, directory, name, current)

    def versions_after(self, address: str, after: Stored | None, limit: int) -> list[Stored]:
        """The next versions and markers of a bucket, by directory and name, each key's from the oldest on."""
        last = after.order if after else (b"", b"", 0, "")
        rows = self.execute(
            "SELECT dir, name, created, id, marker FROM version "
            "WHERE bucket = ? AND (dir, name, created, id) > (?, ?, ?, ?) ORDER BY dir, name, created, id LIMIT ?",
            (self._ids.get(address), *last, limit),
        )
        return [Stored(d, n, c, i, bool(m)) for d, n, c, i, m in rows]

    def count_versions(self, address: str) -> int:
        """How many versions and markers a bucket has."""
        rows = self.execute("SELECT count(*) FROM version WHERE bucket = ?", (self._ids.get(address),))
        return int(rows.fetchone()[0])

    def has_version(self, address: str, version: Version) -> bool:
        """Whether a bucket, as far as the index knows, has this very version or marker."""
        directory, name = keys.split(version.key)
        row = self.execute(
            "SELECT 1 FROM version WHERE bucket = ? AND dir = ? AND name = ? AND created = ? AND id = ?",
            (self._ids.get(address), directory, name, version.created_ns, version.id),
        ).fetchone()
        return row is not None

    def newest(self, address: str) -> tuple[str, int]:
        """The greatest version id of a bucket, and the creation time of its newest version."""
        row = self.execute(
            "SELECT max(CASE WHEN id = 'null' THEN '' ELSE id END), max(created) FROM version WHERE bucket = ?",
            (self._ids.get(address),),
        ).fetchone()
        return row[0] or "", row[1] or 0

    def current_bytes(self, address: str) -> int:
        """The size of all objects: their current versions, without markers."""
        (size,) = self.execute(
            "SELECT CAST(total(version.size) AS INTEGER) "
            "FROM object JOIN version USING (bucket, dir, name, created, id) "
            "WHERE object.bucket = ? AND NOT object.marker",
            (self._ids.get(address),),
        ).fetchone()
        return int(size)

    def count_unshown(self, address: str) -> int:
        """How many keys have a view that does not show their current version, or one where a marker wants none."""
        (number,) = self.execute(
            "SELECT count(*) FROM object WHERE bucket = ? AND (ino IS NULL) != marker "
            "OR bucket = ? AND NOT marker AND shown != id",
            (self._ids.get(address), self._ids.get(address)),
        ).fetchone()
        return int(number)

    # -- deliveries

    def put_deliveries(self, address: str, version: Version) -> None:
        self.put_all_deliveries(address, [version])

    def put_all_deliveries(self, address: str, versions: Iterable[Version]) -> None:
        number = self._ids[address]
        self._db.executemany(
            PUT_DELIVERY, [row for version in versions for row in deliveries.delivery_rows(number, version)]
        )

    def drop_delivery(self, owed: Owed) -> None:
        """The version that was owed is gone: nothing is left to show a status on."""
        self.execute(f"DELETE FROM delivery {AT}", self._at(owed))

    def note(self, owed: Owed, status: Status, reason: str, now_ns: int) -> None:
        """What became of a delivery, where its own version cannot say so."""
        self.execute(
            f"UPDATE delivery SET status = ?, reason = ?, since = ?, due = NULL {AT}",
            (str(status), reason, now_ns, *self._at(owed)),
        )

    def is_owed(self, owed: Owed) -> bool:
        return self.execute(f"SELECT 1 FROM delivery {AT}", self._at(owed)).fetchone() is not None

    def _at(self, owed: Owed) -> tuple[Any, ...]:
        return self._ids.get(owed.source), owed.key, owed.id, owed.destination

    def late(self, now_ns: int, limit: int) -> list[Owed]:
        """Pending deliveries that have missed their threshold, and of which that was not told yet."""
        with self._guard:  # asked by a thread that must not hold up the others while one of them commits
            rows = self.execute(
                f"{OWED} WHERE due IS NOT NULL AND due <= ? AND status = 'PENDING' ORDER BY due LIMIT ?",
                (now_ns, limit),
            ).fetchall()
        return [self._owed(row) for row in rows]

    def is_untold(self, owed: Owed) -> bool:
        """Whether a delivery has a threshold, and it was not told yet that this was missed."""
        return self.execute(f"SELECT 1 FROM delivery {AT} AND due IS NOT NULL", self._at(owed)).fetchone() is not None

    def told(self, late: Iterable[Owed]) -> None:
        """It was told that these are late."""
        self._db.executemany(f"UPDATE delivery SET due = NULL {AT}", [self._at(owed) for owed in late])

    def tracked(self, source: str, rule: str) -> list[Owed]:
        """The pending live deliveries of a rule that are followed by its metrics."""
        rows = self.execute(
            f"{OWED} INDEXED BY tracked "  # SQLite would rather look through all that the bucket ever delivered
            "WHERE bucket = ? AND rule = ? AND status = 'PENDING' AND tracking != '' AND batch = ''",
            (self._ids.get(source), rule),
        )
        return [self._owed(row) for row in rows]

    def untrack(self, owed: Iterable[Owed]) -> None:
        self._db.executemany(f"UPDATE delivery SET tracking = '', due = NULL {AT}", [self._at(each) for each in owed])

    # -- what backfills owe

    def backlog_ways(self, source: str) -> list[tuple[str, str]]:
        """(destination, rule) wherever backfills of a source owe something."""
        rows = self.execute(
            "SELECT DISTINCT destination, rule FROM delivery INDEXED BY pending "
            "WHERE status = 'PENDING' AND bucket = ? AND batch > ''",
            (self._ids.get(source),),
        )
        return rows.fetchall()

    def backlog_of(self, source: str, destination: str, rule: str, limit: int) -> list[Owed]:
        """Some of what backfills owe one destination by one rule."""
        rows = self.execute(
            f"{OWED} INDEXED BY pending "
            "WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > '' AND rule = ? LIMIT ?",
            (self._ids.get(source), destination, rule, limit),
        )
        return [self._owed(row) for row in rows]

    def is_backlogged(self, destination: str) -> bool:
        """Whether any backfill owes a destination anything."""
        query = (
            "SELECT 1 FROM delivery WHERE status = 'PENDING' AND bucket = ? AND destination = ? AND batch > '' LIMIT 1"
        )
        return any(self.execute(query, (number, destination)).fetchone() for number in list(self._names))

    def backlog(self, source: str, destination: str, after: Owed | None, limit: int) -> list[Owed]:
        """What backfills owe along one way: job by job, each from its oldest version on."""
        last = (after.batch, after.created_ns, after.id, after.key) if after else ("", 0, "", b"")
        rows = self.execute(
            f"{OWED} INDEXED BY pending WHERE status = 'PENDING' AND bucket = ? AND destination = ? "
            "AND (batch, created, id, key) > (?, ?, ?, ?) AND batch > '' ORDER BY batch, created, id, key LIMIT ?",
            (self._ids.get(source), destination, *last, limit),
        )
        return [self._owed(row) for row in rows]

    def job_counts(self, source: str, job: str) -> dict[str, Counts]:
        """Status to what there is of it, of the deliveries that a backfill asked for."""
        rows = self.execute(
            "SELECT status, count(*), CAST(total(size) AS INTEGER) FROM delivery "
            "WHERE bucket = ? AND batch = ? AND batch != '' GROUP BY status",
            (self._ids.get(source), job),
        )
        return {status: Counts(number, size) for status, number, size in rows}

    def job_pending(self, source: str, job: str, limit: int) -> list[Owed]:
        rows = self.execute(
            f"{OWED} INDEXED BY backfilled "
            "WHERE bucket = ? AND batch = ? AND batch != '' AND status = 'PENDING' LIMIT ?",
            (self._ids.get(source), job, limit),
        )
        return [self._owed(row) for row in rows]

    def job_deliveries(self, source: str, job: str, after: Owed | None, limit: int) -> list[Owed]:
        """The deliveries that a backfill asked for, by key and version."""
        last = (after.key, after.id, after.destination) if after else (b"", "", "")
        # the plus sign keeps SQLite from finding them all first, by their job, and sorting them
        rows = self.execute(
            f"{OWED} WHERE bucket = ? AND (key, id, destination) > (?, ?, ?) AND +batch = ? "
            "ORDER BY key, id, destination LIMIT ?",
            (self._ids.get(source), *last, job, limit),
        )
        return [self._owed(row) for row in rows]

    def count_pending(self, source: str, newest_ns: int, key: bytes | None = None) -> int:
        """How many deliveries of a bucket, or a key, are pending of versions that are no newer than that."""
        by, and_key = (OF_BUCKET["PENDING"], "") if key is None else ("", " AND key = ?")
        rows = self.execute(
            f"SELECT count(*) FROM delivery {by} WHERE status = 'PENDING' AND bucket = ? AND created <= ?{and_key}",
            (self._ids.get(source), newest_ns, *([key] if key is not None else [])),
        )
        return int(rows.fetchone()[0])

    def deliveries(
        self, source: str = "", *, status: Status | None = None, key: bytes | None = None, prefix: bytes = b"",
        live: bool = False,
    ) -> Iterator[Owed]:  # fmt: skip
        """Deliveries by key and version; with live those that no backfill asked for."""
        where, values = ["batch = ''" if live else "1"], list[Any]()
        for column, value in (
            ("bucket", self._ids.get(source, -1) if source else None),
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
        rows = self.execute(f"{OWED} {by} WHERE {' AND '.join(where)} {order}", values).fetchall()
        return (self._owed(row) for row in rows if row[1].startswith(prefix))

    def _owed(self, row: Sequence[Any]) -> Owed:
        number, key, version_id, destination, rule, status, reason, created, size, marker, batch, *more = row
        since, tracking, digest, brings = more
        return Owed(
            self._names[number], key, version_id, destination, rule, status, reason, created, size, bool(marker), batch,
            since, Tracking(tracking), digest or b"", brings or "",
        )  # fmt: skip

    # -- numbers

    def object_counts(self, address: str) -> tuple[int, int, int]:
        """Objects (keys whose current version is no marker), versions without markers, and their bytes."""
        number = self._ids.get(address)
        (objects,) = self.execute("SELECT count(*) FROM object WHERE bucket = ? AND NOT marker", (number,)).fetchone()
        versions, size = self.execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM version WHERE bucket = ? AND NOT marker", (number,)
        ).fetchone()
        return objects, versions, size

    def delivery_counts(self, address: str) -> dict[tuple[str, str, str], Counts]:
        """(destination, rule, status) to what there is of it."""
        rows = self.execute(
            "SELECT destination, rule, status, count(*), CAST(total(size) AS INTEGER), min(since) FROM delivery "
            "WHERE bucket = ? GROUP BY destination, rule, status",
            (self._ids.get(address),),
        )
        return {(d, r, s): Counts(n, b, o) for d, r, s, n, b, o in rows}

    def live_pending_counts(self, address: str) -> dict[tuple[str, str], Counts]:
        """(destination, rule) to what is pending of live replication, backfills left out."""
        rows = self.execute(
            "SELECT destination, rule, count(*), CAST(total(size) AS INTEGER), min(since) FROM delivery "
            "WHERE bucket = ? AND status = 'PENDING' AND batch = '' GROUP BY destination, rule",
            (self._ids.get(address),),
        )
        return {(d, r): Counts(n, b, o) for d, r, n, b, o in rows}

    def failed_counts(self, address: str, after_ns: int = 0) -> dict[tuple[str, str], int]:
        """(destination, rule) to the number of FAILED deliveries, or of those that failed after a moment."""
        rows = self.execute(
            "SELECT destination, rule, count(*) FROM delivery WHERE bucket = ? AND status = 'FAILED' AND since > ? "
            "GROUP BY destination, rule",
            (self._ids.get(address), after_ns),
        )
        return {(d, r): n for d, r, n in rows}


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
