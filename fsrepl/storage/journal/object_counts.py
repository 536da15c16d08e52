"""Counts of objects and versions, kept in the transaction that changes their rows, as those of deliveries are (see
counters.py): `fsrepl status` reads one row a bucket, and finds what a count of all rows would find (G11). Also which
files are the views of several keys.

What is written is counted by what is known of it; only what was there before is looked up, for a batch at once.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fsrepl.model.version import NULL, Version

TABLES = (
    """CREATE TABLE object_count (
    bucket INTEGER PRIMARY KEY, objects INTEGER, versions INTEGER, bytes INTEGER, current_bytes INTEGER)""",
    "CREATE TABLE linked (bucket INTEGER, ino INTEGER, PRIMARY KEY (bucket, ino)) WITHOUT ROWID",
)
"""object_count: markers are neither objects nor versions. linked: the inode numbers that several keys have."""
COUNT = """SELECT id,
    (SELECT count(*) FROM object WHERE bucket = bucket.id AND NOT marker),
    (SELECT count(*) FROM version WHERE bucket = bucket.id AND NOT marker),
    (SELECT CAST(total(size) AS INTEGER) FROM version WHERE bucket = bucket.id AND NOT marker),
    (SELECT CAST(total(v.size) AS INTEGER) FROM object o JOIN version v USING (bucket, dir, name, created, id)
        WHERE o.bucket = bucket.id AND NOT o.marker)
    FROM bucket"""
LINKED = "SELECT bucket, ino FROM object WHERE ino IS NOT NULL GROUP BY bucket, ino HAVING count(*) > 1"
_ADD = """INSERT INTO object_count VALUES (?, ?, ?, ?, ?) ON CONFLICT (bucket) DO UPDATE SET
    objects = objects + excluded.objects, versions = versions + excluded.versions, bytes = bytes + excluded.bytes,
    current_bytes = current_bytes + excluded.current_bytes"""
_ROWS_MAX = 240
"""Of a query: SQLite admits 32,766 values, and 999 before its version 3.32."""
_INTEGER_END = 1 << 63

Place = tuple[bytes, bytes]
"""Directory and name of a key."""
Inode = int | bytes
"""An inode number as its column has it: see rows.column."""


def make(db: sqlite3.Connection) -> None:
    """Count all rows that are there."""
    for name, statement in zip(("object_count", "linked"), TABLES, strict=True):
        db.execute(f"DROP TABLE IF EXISTS {name}")
        db.execute(statement)
    db.execute(f"INSERT INTO object_count {COUNT}")
    db.execute(f"INSERT INTO linked {LINKED}")


def _places(number: int, *columns: str) -> str:
    """A table of places for a query, whose values come first."""
    row = f"({', '.join('?' * len(columns))})"
    return f"WITH place ({', '.join(columns)}) AS (VALUES {', '.join([row] * number)})"


@functools.lru_cache(maxsize=64)
def _of_keys(number: int) -> str:
    # CROSS JOIN: SQLite might read all rows of the bucket first
    return (
        f"{_places(number, 'dir_', 'name_')} "
        "SELECT dir_, name_, o.marker, coalesce(v.size, 0), o.ino FROM place CROSS JOIN object o "
        "ON o.bucket = ? AND o.dir = dir_ AND o.name = name_ LEFT JOIN version v ON v.bucket = o.bucket "
        "AND v.dir = dir_ AND v.name = name_ AND v.created = o.created AND v.id = o.id"
    )


@functools.lru_cache(maxsize=64)
def _of_views(number: int) -> str:
    return (
        f"{_places(number, 'dir_', 'name_')} "
        "SELECT dir, name, ino FROM place CROSS JOIN object WHERE bucket = ? AND dir = dir_ AND name = name_"
    )


@functools.lru_cache(maxsize=64)
def _note_linked(number: int) -> str:
    return (
        "INSERT OR IGNORE INTO linked SELECT bucket, ino FROM object INDEXED BY inode "
        f"WHERE ino IN ({', '.join('?' * number)}) AND bucket = ? GROUP BY ino HAVING count(*) > 1"
    )


@functools.lru_cache(maxsize=64)
def _forget_linked(number: int) -> str:
    return (
        f"DELETE FROM linked WHERE ino IN ({', '.join('?' * number)}) AND bucket = ? AND (SELECT count(*) "
        "FROM object INDEXED BY inode WHERE bucket = linked.bucket AND ino = linked.ino) < 2"
    )


@functools.lru_cache(maxsize=64)
def _of_versions(number: int, width: int) -> str:
    """The query for versions, given by the directory, name, and id, or creation time and id."""
    names = ("dir", "name", "id") if width == 3 else ("dir", "name", "created", "id")
    return (
        f"{_places(number, *(f'{name}_' for name in names))} "
        "SELECT count(*), CAST(total(size) AS INTEGER) FROM place CROSS JOIN version "
        f"WHERE bucket = ? AND NOT marker {''.join(f' AND {name} = {name}_' for name in names)}"
    )


class Changes:
    """Changes of the objects and versions of one bucket. Rows are counted as gone before they are overwritten or
    removed, in one transaction with that and with `write`."""

    def __init__(self, db: sqlite3.Connection, bucket: int) -> None:
        self._db, self._bucket = db, bucket
        self._objects, self._versions, self._bytes, self._current_bytes = 0, 0, 0, 0
        self._inodes: defaultdict[Inode | None, int] = defaultdict(int)
        """How many rows there are more with an inode number."""

    def take_out_keys(self, places: Sequence[Place]) -> None:
        """Count the current versions of keys, and their views, as gone. places: each once."""
        self._count_keys(places, -1)

    def put_back_keys(self, places: Sequence[Place]) -> None:
        """Count the current versions of keys, and their views, as their rows are now. places: each once."""
        self._count_keys(places, 1)

    def _count_keys(self, places: Sequence[Place], sign: int) -> set[Place]:
        """Count keys as there or gone; those of them that have objects."""
        found = set()
        for directory, name, marker, size, ino in self._found(places, _of_keys):
            found.add((directory, name))
            if not marker:
                self._objects += sign
                self._current_bytes += sign * size
            if ino is not None:
                self._inodes[ino] += sign
        return found

    def take_out_versions(self, places: Sequence[tuple[bytes, bytes, str] | tuple[bytes, bytes, int, str]]) -> None:
        """Count versions as gone. places: directory, name and id, or creation time and id, each once."""
        if places:
            width = len(places[0])
            for number, size in self._found(places, lambda rows: _of_versions(rows, width)):
                self._versions -= number
                self._bytes -= size

    def replace(self, shown: Sequence[tuple[Place, Version, Inode | None]]) -> None:
        """Count a batch of current versions that is to be written, each with the inode number of its view, and what it
        replaces as gone. A key without an object has no versions."""
        by_key = {place: (version, ino) for place, version, ino in shown}
        known = self._count_keys(list(by_key), -1)
        by_place = {(*place, version.created_ns, version.id): version for place, version, _ in shown}
        if known:
            again = [at for at in by_place if at[:2] in known]
            self.take_out_versions([at for at in again if at[3] != NULL])
            self.take_out_versions(list({(at[0], at[1], NULL): 1 for at in again if at[3] == NULL}))
        # a list: a burst comes by here, and a generator is a call a version
        self.put_in(by_place.values(), [version for version, _ in by_key.values()])
        for _, ino in by_key.values():
            if ino is not None:
                self._inodes[ino] += 1

    def put_in(self, versions: Iterable[Version], current: Sequence[Version]) -> None:
        """Count versions whose rows are new or counted as gone, and those that are current now, of keys of which the
        same holds."""
        for version in versions:
            if not version.marker:
                self._versions += 1
                self._bytes += version.size
        for version in current:
            if not version.marker:
                self._objects += 1
                self._current_bytes += version.size

    def show(self, views: Mapping[Place, Inode | None]) -> None:
        """Count that the views of keys are to have these inode numbers. A key without an object has none."""
        for directory, name, was in self._found(list(views), _of_views):
            if was != (ino := views[directory, name]):
                self._inodes[was] -= 1
                self._inodes[ino] += 1

    def _found(self, places: Sequence[tuple[object, ...]], query: Callable[[int], str]) -> Iterator[tuple[Any, ...]]:
        """The rows at places, some of them at a time."""
        for start in range(0, len(places), _ROWS_MAX):
            some = places[start : start + _ROWS_MAX]
            values = (*itertools.chain.from_iterable(some), self._bucket)
            yield from self._db.execute(query(len(some)), values).fetchall()

    def write(self) -> None:
        """Record the changes, once the rows are written. None is counted after that. More bytes than 64 bits can count
        are a float, as SQLite's own sums are."""
        for sign, statement in ((1, _note_linked), (-1, _forget_linked)):
            changed = [(ino,) for ino, number in self._inodes.items() if number * sign > 0 and ino is not None]
            if changed:
                list(self._found(changed, statement))
        numbers = self._objects, self._versions, self._bytes, self._current_bytes
        if any(numbers):
            kept = [each if -_INTEGER_END <= each < _INTEGER_END else float(each) for each in numbers]
            self._db.execute(_ADD, (self._bucket, *kept))
