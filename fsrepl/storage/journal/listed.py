"""The journal's rows of a bucket's versions, for lists: read some names at a time, in the order of a list."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from msgspec import Struct

from fsrepl.model.version import EMPTY, DeliveryRecord, Origin, Status, Version
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.rows import read_traits

_ROWS = 2000
_FIELD, _RECORD = "\x1f", "\x1e"
_SELECT = f"""
SELECT v.name, v.id, v.created, v.marker, v.size, v.traits, v.replica,
    (SELECT o.digest FROM object o WHERE o.bucket = v.bucket AND o.dir = v.dir AND o.name = v.name
        AND o.id = v.id AND o.created = v.created),
    (SELECT group_concat(d.destination || '{_FIELD}' || d.rule || '{_FIELD}' || d.status, '{_RECORD}') FROM delivery d
        WHERE d.bucket = v.bucket AND d.key = CAST(? || v.name AS BLOB) AND d.id = v.id)
FROM version v WHERE v.bucket = ? AND v.dir = ? AND v.name >= ? ORDER BY v.name LIMIT ?
"""

Known = Mapping[tuple[str, bool], Version]
"""Versions by id, and whether each is a marker."""


class _Part(Struct):
    """Consecutive names of a directory. end: the first name that is not covered; None: all from the first on are."""

    first: bytes
    end: bytes | None
    found: dict[bytes, dict[tuple[str, bool], Version]]

    def covers(self, name: bytes) -> bool:
        return self.first <= name and (self.end is None or name < self.end)


class Listed:
    """The versions of one bucket as far as lists show them: without metadata, and deliveries without their reasons.

    A version has no digest where the journal lacks that: it keeps the digests of current versions only. Rows of an
    earlier build, and versions whose traits are unknown, are left out. Names should be asked for in the order of keys.
    """

    def __init__(self, connection: Connection, address: str) -> None:
        self._connection, self._number = connection, connection.ids.get(address)
        self._parts: dict[bytes, _Part] = {}
        self._is_usable = self._number is not None and _tells_replicas(connection)

    def of(self, directory: bytes, name: bytes) -> Known:
        """The versions of one key; empty where the journal has none, or cannot be read."""
        part = self._parts.get(directory)
        if part is None or not part.covers(name):
            if not self._is_usable:
                return EMPTY_KNOWN
            try:
                part = self._read(directory, name, _ROWS)
            except sqlite3.Error:  # damaged, or locked for long: the trees have all that is asked for
                self._is_usable = False
                return EMPTY_KNOWN
            # of the directories that a list has left, none is asked for again
            self._parts = {path: each for path, each in self._parts.items() if _is_above(path, directory)}
            self._parts[directory] = part
        return part.found.get(name, EMPTY_KNOWN)

    def _read(self, directory: bytes, first: bytes, limit: int) -> _Part:
        top = directory + b"/" if directory else b""
        rows = self._connection.execute(_SELECT, (top, self._number, directory, first, limit)).fetchall()
        found: dict[bytes, dict[tuple[str, bool], Version]] = {}
        for name, version_id, created, marker, size, traits, replica, digest, deliveries in rows:
            versions = found.setdefault(name, {})
            if traits is not None and replica is not None:
                storage_class, tags = read_traits(traits)
                versions[version_id, bool(marker)] = Version(
                    top + name, version_id, created, bool(marker), size, digest or b"",
                    Origin.REPLICA if replica else Origin.USER, storage_class=storage_class or "", tags=tags or EMPTY,
                    deliveries=_deliveries(deliveries or ""),
                )  # fmt: skip
        if len(rows) < limit:
            return _Part(first, None, found)
        last = rows[-1][0]
        if last == first:  # more versions of one key than that
            return self._read(directory, first, 4 * limit)
        del found[last]  # some of its versions may be missing
        return _Part(first, last, found)


EMPTY_KNOWN: Known = MappingProxyType({})


def _is_above(path: bytes, directory: bytes) -> bool:
    return not path or directory.startswith(path + b"/")


@lru_cache(maxsize=256)
def _deliveries(text: str) -> Mapping[str, DeliveryRecord]:
    """Cached, because most versions of a bucket have the same deliveries."""
    found = {}
    for each in text.split(_RECORD) if text else ():
        destination, rule, status = each.split(_FIELD)
        found[destination] = DeliveryRecord(rule, Status(status))
    return MappingProxyType(found)


def _tells_replicas(connection: Connection) -> bool:
    """Whether the journal is of a build that records which versions are replicas; a reader adds no column."""
    row = connection.execute("SELECT 1 FROM pragma_table_info('version') WHERE name = 'replica'").fetchone()
    return row is not None
