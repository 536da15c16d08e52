"""The journal's tables of versions, and of objects: each key's current version. journal/views.py has their views."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from fsrepl.model import keys
from fsrepl.model.version import NULL, Origin, Version
from fsrepl.model.view import View
from fsrepl.storage.journal import deliveries, directories, newest
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.deliveries import delivery_rows, put_rows, remove_of
from fsrepl.storage.journal.rows import OBJECT_ANYWHERE, Classed, Object, Stored, object_of, seen_columns, traits_of

PAGE = 1000
NAMES_MAX = 500
OBJECT = (
    "SELECT id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown, name FROM object "
    "WHERE bucket = ? AND dir = ?"
)
PUT_OBJECT = """
INSERT INTO object (bucket, dir, name, id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (bucket, dir, name) DO UPDATE SET
    id = excluded.id, created = excluded.created, marker = excluded.marker, digest = excluded.digest,
    ino = excluded.ino, size = excluded.size, mtime = excluded.mtime, ctime = excluded.ctime,
    mode = excluded.mode, racy = excluded.racy, shown = excluded.shown
"""

_CLASSED = (
    "v.traits, v.dir, v.name, v.created, v.id, v.size, "
    "CASE WHEN v.id = o.id AND v.created = o.created AND o.shown = v.id THEN o.mode ELSE 0 END"
)

_LAST = b"\xff" * 5000
"""Appended to a prefix, this sorts after all keys with that prefix: no path is as long."""


_PUT_VERSION = (
    "INSERT OR REPLACE INTO version (bucket, dir, name, created, id, marker, size, traits, replica) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _version_columns(number: int, directory: bytes, name: bytes, version: Version) -> tuple[object, ...]:
    return (
        number, directory, name, version.created_ns, version.id, version.marker, version.size, traits_of(version),
        version.origin is Origin.REPLICA,
    )  # fmt: skip


class Versions:
    """Versions and markers, and each key's current version with its view as last seen."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def object(self, address: str, key: bytes) -> Object | None:
        directory, name = keys.split(key)
        row = self._connection.execute(
            f"{OBJECT} AND name = ?", (self._connection.ids.get(address), directory, name)
        ).fetchone()
        return object_of(row) if row else None

    def look_up(self, address: str, keys_: Iterable[bytes]) -> dict[bytes, Object]:
        """Objects by key, for many keys at once: one query per directory, and one for keys of directories."""
        number = self._connection.ids.get(address)
        by_directory: dict[bytes, list[bytes]] = {}
        themselves: list[bytes] = []
        for key in keys_:
            directory, name = keys.split(key)
            if name:
                by_directory.setdefault(directory, []).append(name)
            else:
                themselves.append(directory)
        found: dict[bytes, Object] = {}
        for start in range(0, len(themselves), NAMES_MAX):
            some = themselves[start : start + NAMES_MAX]
            where = f"AND name = x'' AND dir IN ({','.join('?' * len(some))})"
            for row in self._connection.execute(f"{OBJECT_ANYWHERE} WHERE bucket = ? {where}", (number, *some)):
                found[keys.join(row[12], b"")] = object_of(row)
        for directory, names in by_directory.items():
            for start in range(0, len(names), NAMES_MAX):
                some = names[start : start + NAMES_MAX]
                rows = self._connection.execute(
                    f"{OBJECT} AND name IN ({','.join('?' * len(some))})", (number, directory, *some)
                )
                for row in rows:
                    found[keys.join(directory, row[11])] = object_of(row)
        return found

    def objects_in(self, address: str, directory: bytes) -> Iterator[tuple[bytes, Object]]:
        """The objects of one directory by name, in order; read in pages, as `objects` are."""
        last: bytes | None = None
        while found := self.objects_between(address, directory, last, None, PAGE):
            yield from found.items()
            last = next(reversed(found))

    def objects_between(
        self, address: str, directory: bytes, after: bytes | None, last: bytes | None, limit: int
    ) -> dict[bytes, Object]:
        """The first objects of a directory by name, in order: those after a name, and no later than another."""
        where, names = "", [name for name in (after, last) if name is not None]
        where += " AND name > ?" if after is not None else ""
        where += " AND name <= ?" if last is not None else ""
        rows = self._connection.execute(
            f"{OBJECT}{where} ORDER BY name LIMIT ?", (self._connection.ids.get(address), directory, *names, limit)
        )
        return {row[11]: object_of(row) for row in rows}

    def objects(self, address: str) -> Iterator[tuple[bytes, Object]]:
        """Every key in order, with its current version; read in pages, so that rows may change meanwhile."""
        after: tuple[bytes, bytes] | None = None
        while True:
            where = "AND (dir, name) > (?, ?)" if after else ""
            rows = self._connection.execute(
                "SELECT id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown, dir, name FROM object "
                f"WHERE bucket = ? {where} ORDER BY dir, name LIMIT {PAGE}",
                (self._connection.ids.get(address), *(after or ())),
            ).fetchall()
            if not rows:
                return
            for row in rows:
                yield keys.join(row[11], row[12]), object_of(row)
            after = rows[-1][11], rows[-1][12]

    def has_object(self, address: str, prefix: bytes) -> bool:
        """Whether any object's key has this prefix."""
        if prefix.startswith(b"/"):
            return False  # no key begins with a slash
        directory, name = keys.split(prefix)
        number, where = self._connection.ids.get(address), "bucket = ? AND NOT marker AND"
        (found,) = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM object WHERE {where} dir = ? AND name >= ? AND name < ?) "
            f"OR EXISTS (SELECT 1 FROM object WHERE {where} dir >= ? AND dir < ?)",
            (number, directory, name, name + _LAST, number, prefix, prefix + _LAST),
        ).fetchone()
        return bool(found)

    def holds_objects(self, address: str, directory: bytes) -> bool:
        """Whether any object is below a directory, its own object not counted."""
        number, where = self._connection.ids.get(address), "bucket = ? AND NOT marker AND"
        (found,) = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM object WHERE {where} dir = ? AND name > ?) "
            f"OR EXISTS (SELECT 1 FROM object WHERE {where} dir > ? AND dir < ?)",
            (number, directory, b"", number, directory + b"/", directory + b"0"),
        ).fetchone()
        return bool(found)

    def directories(self, address: str, *, below: bytes = b"") -> list[bytes]:
        """The directories of all keys, or a directory and those below it."""
        number = self._connection.ids.get(address)
        if not below:
            return [d for (d,) in self._connection.execute(directories.OF_OBJECTS, (number,))]
        rows = self._connection.execute(  # two queries, since SQLite scans the whole bucket for one with OR
            "SELECT DISTINCT dir FROM object WHERE bucket = ? AND dir = ? "
            "UNION ALL SELECT DISTINCT dir FROM object WHERE bucket = ? AND dir > ? AND dir < ?",
            (number, below, number, below + b"/", below + b"0"),
        )
        return [d for (d,) in rows]

    def add(self, address: str, version: Version) -> bool:
        """Record a version in the store; whether it is now its key's current version."""
        number = self._connection.ids[address]
        directory, name = keys.split(version.key)
        with self._connection.transaction():
            row = self._connection.execute(
                "SELECT created, id FROM object WHERE bucket = ? AND dir = ? AND name = ?", (number, directory, name)
            ).fetchone()
            changes, known = self._connection.object_changes(number), [(directory, name)] if row else []
            changes.take_out_keys(known)
            changes.take_out_versions([(directory, name, version.id)])
            self._displace(number, version)
            self._connection.execute(_PUT_VERSION, _version_columns(number, directory, name, version))
            newest.note(self._connection, number, [version.id], [version.created_ns])
            if version.deliveries:
                deliveries.put_all(self._connection, address, [version])
            is_current = row is None or tuple(row) <= version.order or row[1] == version.id
            if row is None:
                self._connection.execute(
                    "INSERT INTO object (bucket, dir, name, id, created, marker, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (number, directory, name, version.id, version.created_ns, version.marker, version.digest),
                )
            elif is_current:
                self._set_current(number, directory, name, version)
            changes.put_in([version], [] if row else [version])
            changes.put_back_keys(known)
            changes.write()
        return is_current

    def add_shown(self, address: str, rows: Sequence[tuple[Version, View | None]]) -> None:
        """Record a batch of current versions, and how their views look."""
        number = self._connection.ids[address]
        versions, objects, deliveries = [], [], []
        seen = [(keys.split(version.key), version, seen_columns(view)) for version, view in rows]
        changes = self._connection.object_changes(number)
        changes.replace([(place, version, columns[0]) for place, version, columns in seen])
        for (directory, name), version, columns in seen:
            if version.id == NULL:
                self._displace(number, version)
            versions.append(_version_columns(number, directory, name, version))
            objects.append(
                (number, directory, name, version.id, version.created_ns, version.marker, version.digest, *columns)
            )
            if version.deliveries:
                deliveries += delivery_rows(number, version)
        self._connection.executemany(_PUT_VERSION, versions)
        if rows:
            ids, times_ns = [version.id for version, _ in rows], [version.created_ns for version, _ in rows]
            newest.note(self._connection, number, ids, times_ns)
        self._connection.executemany(PUT_OBJECT, objects)
        put_rows(self._connection, number, deliveries)
        changes.write()

    def _displace(self, number: int, version: Version) -> None:
        """Delete what a version replaces, with its deliveries: another null version, or its own former row."""
        directory, name = keys.split(version.key)
        other = (version.id, version.created_ns)
        gone = self._connection.execute(
            "DELETE FROM version WHERE bucket = ? AND dir = ? AND name = ? AND id = ? AND created != ?",
            (number, directory, name, *other),
        ).rowcount
        if gone:
            newest.forget(self._connection, number)
        if gone and version.id == NULL:  # a view of the former version does not show this one
            self._connection.execute(
                "UPDATE object SET shown = '' WHERE bucket = ? AND dir = ? AND name = ? AND shown = ?",
                (number, directory, name, NULL),
            )
        remove_of(self._connection, number, [(version.key, version.id)], "AND created != ?", version.created_ns)

    def _set_current(self, number: int, directory: bytes, name: bytes, version: Version) -> None:
        self._connection.execute(
            "UPDATE object SET id = ?, created = ?, marker = ?, digest = ? WHERE bucket = ? AND dir = ? AND name = ?",
            (version.id, version.created_ns, version.marker, version.digest, number, directory, name),
        )

    def versions_of(self, address: str, key: bytes) -> list[tuple[str, int, bool]]:
        """(id, created_ns, marker) of each version and marker of a key, newest first."""
        directory, name = keys.split(key)
        rows = self._connection.execute(
            "SELECT id, created, marker FROM version WHERE bucket = ? AND dir = ? AND name = ? "
            "ORDER BY created DESC, id DESC",
            (self._connection.ids.get(address), directory, name),
        )
        return [(i, c, bool(m)) for i, c, m in rows]

    def stack_of(self, address: str, key: bytes) -> list[tuple[str, int, int, int, str | None]]:
        """The versions of one key, in the form of `stacks`."""
        return self._connection.execute(
            "SELECT id, created, marker, size, traits FROM version WHERE bucket = ? AND dir = ? AND name = ? "
            "ORDER BY created DESC, id DESC",
            (self._connection.ids.get(address), *keys.split(key)),
        ).fetchall()

    def size_of(self, address: str, key: bytes, version_id: str) -> int | None:
        """The size of a version when it was made; None where unknown."""
        directory, name = keys.split(key)
        row = self._connection.execute(
            "SELECT size FROM version WHERE bucket = ? AND dir = ? AND name = ? AND id = ?",
            (self._connection.ids.get(address), directory, name, version_id),
        ).fetchone()
        return row[0] if row else None

    def of_size(self, address: str, size: int, limit: int) -> list[tuple[bytes, str]]:
        """Key and id of versions of one size, the newest first: candidates for equal content. None below one MiB."""
        rows = self._connection.execute(
            "SELECT dir, name, id FROM version WHERE bucket = ? AND size = ? AND size / 1048576 > 0 AND NOT marker "
            "ORDER BY created DESC LIMIT ?",
            (self._connection.ids.get(address), size, limit),
        )
        return [(keys.join(directory, name), version_id) for directory, name, version_id in rows]

    def versions_in(self, address: str, directory: bytes, limit: int = PAGE) -> Iterator[tuple[bytes, str, bool]]:
        """Name, id and whether it is a marker of each version in one directory; read in pages, as objects are."""
        last: tuple[object, ...] = ()
        while True:
            where = "AND (name, created, id) > (?, ?, ?)" if last else ""
            rows = self._connection.execute(
                "SELECT name, created, id, marker FROM version "
                f"WHERE bucket = ? AND dir = ? {where} ORDER BY name, created, id LIMIT {limit}",
                (self._connection.ids.get(address), directory, *last),
            ).fetchall()
            yield from ((name, version_id, bool(marker)) for name, _, version_id, marker in rows)
            if len(rows) < limit:
                return
            last = rows[-1][:3]

    def file_names_in(self, address: str, directory: bytes) -> Iterator[list[bytes]]:
        """The names that the versions of one directory have in the store, where these spell their keys; in pages."""
        last: tuple[object, ...] = ()
        while True:
            where = "AND (name, created, id) > (?, ?, ?)" if last else ""
            rows = self._connection.execute(
                "SELECT CAST(name || ';' || id || CASE WHEN marker THEN ';deleted' ELSE '' END AS BLOB), "
                f"name, created, id FROM version WHERE bucket = ? AND dir = ? {where} "
                f"ORDER BY name, created, id LIMIT {PAGE}",
                (self._connection.ids.get(address), directory, *last),
            ).fetchall()
            yield [row[0] for row in rows]
            if len(rows) < PAGE:
                return
            last = rows[-1][1:]

    def version_directories(self, address: str) -> set[bytes]:
        rows = self._connection.execute(directories.OF_VERSIONS, (self._connection.ids.get(address),))
        return {d for (d,) in rows}

    def remove(self, address: str, key: bytes, version_id: str, current: Version | None) -> None:
        """Delete a version removed from the store. current: the newest version that remains."""
        number = self._connection.ids[address]
        directory, name = keys.split(key)
        at = (number, directory, name)
        with self._connection.transaction():
            self.remove_noncurrent(address, [(key, version_id)])
            changes = self._connection.object_changes(number)
            changes.take_out_keys([(directory, name)])
            if current is None:
                self._connection.execute("DELETE FROM object WHERE bucket = ? AND dir = ? AND name = ?", at)
            else:
                self._set_current(number, directory, name, current)
                changes.put_back_keys([(directory, name)])
            changes.write()

    def remove_noncurrent(self, address: str, gone: Sequence[tuple[bytes, str]]) -> None:
        """Delete versions removed from the store, by key and id, that were not their keys' current ones."""
        number = self._connection.ids[address]
        places = list(dict.fromkeys((*keys.split(key), version_id) for key, version_id in gone))
        of_keys = list(dict.fromkeys(place[:2] for place in places))
        with self._connection.transaction():
            changes = self._connection.object_changes(number)
            changes.take_out_keys(of_keys)  # one of them may be current after all
            changes.take_out_versions(places)
            self._connection.executemany(
                "DELETE FROM version WHERE bucket = ? AND dir = ? AND name = ? AND id = ?",
                [(number, *place) for place in places],
            )
            newest.forget(self._connection, number)
            changes.put_back_keys(of_keys)
            changes.write()
            # Pending deliveries stay until their failure is reported; then settling.settle deletes them.
            remove_of(self._connection, number, gone, "AND status != 'PENDING'")

    def remove_last(self, address: str, gone: Sequence[tuple[bytes, str]]) -> None:
        """Delete versions removed from the store, by key and id, that were the last of their keys."""
        number = self._connection.ids[address]
        places = list(dict.fromkeys(keys.split(key) for key, _ in gone))
        with self._connection.transaction():
            self.remove_noncurrent(address, gone)
            changes = self._connection.object_changes(number)
            changes.take_out_keys(places)
            self._connection.executemany(
                "DELETE FROM object WHERE bucket = ? AND dir = ? AND name = ?", [(number, *place) for place in places]
            )
            changes.write()

    def set_traits(self, address: str, rows: Iterable[tuple[bytes, str, str | None]]) -> None:
        """Record the traits (see rows.traits_of) of versions, given by key and version id; None: unknown again."""
        number = self._connection.ids[address]
        with self._connection.transaction():
            self._connection.executemany(
                "UPDATE version SET traits = ? WHERE bucket = ? AND dir = ? AND name = ? AND id = ?",
                [(traits, number, *keys.split(key), version_id) for key, version_id, traits in rows],
            )

    def stacks(
        self, address: str, after: tuple[bytes, bytes] | None, limit: int
    ) -> list[tuple[tuple[bytes, bytes], list[tuple[str, int, int, int, str | None]]]]:
        """All versions of the next keys of a bucket, by directory and name, newest version first: (id, created_ns,
        marker, size, traits). The number of rows is about the limit; none where there are no more keys."""
        where = "AND (dir, name) > (?, ?)" if after else ""
        rows = self._connection.execute(
            "SELECT dir, name, id, created, marker, size, traits FROM version "
            f"WHERE bucket = ? {where} ORDER BY dir, name, created, id LIMIT ?",
            (self._connection.ids.get(address), *(after or ()), limit),
        ).fetchall()
        found = [(at, [row[2:] for row in group][::-1]) for at, group in itertools.groupby(rows, lambda row: row[:2])]
        if len(rows) < limit:
            return found
        # the last key may be incomplete
        return found[:-1] or self.stacks(address, after, 4 * limit)

    def versions_after(self, address: str, after: Stored | None, limit: int) -> list[Stored]:
        """The next versions and markers of a bucket, by directory and name, oldest version first."""
        last = after.order if after else (b"", b"", 0, "")
        rows = self._connection.execute(
            "SELECT dir, name, created, id, marker FROM version "
            "WHERE bucket = ? AND (dir, name, created, id) > (?, ?, ?, ?) ORDER BY dir, name, created, id LIMIT ?",
            (self._connection.ids.get(address), *last, limit),
        )
        return [Stored(d, n, c, i, bool(m)) for d, n, c, i, m in rows]

    def unread(self, address: str, limit: int) -> list[tuple[bytes, str]]:
        """Key and id of versions and markers with unknown traits."""
        rows = self._connection.execute(
            "SELECT dir, name, id FROM version INDEXED BY unread WHERE bucket = ? AND traits IS NULL LIMIT ?",
            (self._connection.ids.get(address), limit),
        )
        return [(keys.join(directory, name), version_id) for directory, name, version_id in rows]

    def classed(self, address: str, after: Classed | None, limit: int) -> list[Classed]:
        """The next versions of a bucket that have a storage class, tags or a tier, by their traits."""
        last = after.order if after else ("", b"", b"", 0, "")
        rows = self._connection.execute(
            f"SELECT {_CLASSED} FROM version v INDEXED BY classed LEFT JOIN object o USING (bucket, dir, name) "
            "WHERE v.bucket = ? AND v.traits != '' AND NOT v.marker "
            "AND (v.traits, v.dir, v.name, v.created, v.id) > (?, ?, ?, ?, ?) "
            "ORDER BY v.traits, v.dir, v.name, v.created, v.id LIMIT ?",
            (self._connection.ids.get(address), *last, limit),
        )
        return [Classed(*row) for row in rows]

    def classed_of(self, address: str, key: bytes) -> list[Classed]:
        """The versions of one key that have a storage class, tags or a tier."""
        rows = self._connection.execute(
            f"SELECT {_CLASSED} FROM version v LEFT JOIN object o USING (bucket, dir, name) "
            "WHERE v.bucket = ? AND v.dir = ? AND v.name = ? AND v.traits != '' AND NOT v.marker",
            (self._connection.ids.get(address), *keys.split(key)),
        )
        return [Classed(*row) for row in rows]

    def sizes_after(
        self, address: str, last: tuple[bytes, bytes, int, str] | None, limit: int
    ) -> list[tuple[Stored, int]]:
        """The next versions and markers, as by versions_after, from a position on, each with its size in bytes."""
        rows = self._connection.execute(
            "SELECT dir, name, created, id, marker, size FROM version "
            "WHERE bucket = ? AND (dir, name, created, id) > (?, ?, ?, ?) ORDER BY dir, name, created, id LIMIT ?",
            (self._connection.ids.get(address), *(last or (b"", b"", 0, "")), limit),
        )
        return [(Stored(d, n, c, i, bool(m)), size or 0) for d, n, c, i, m, size in rows]

    def present(self, address: str, wanted: Iterable[Version]) -> set[tuple[bytes, int, str]]:
        """(key, created_ns, id) of each version and marker that the journal has of the keys of these versions."""
        number = self._connection.ids.get(address)
        by_directory: dict[bytes, list[bytes]] = {}
        for version in wanted:
            directory, name = keys.split(version.key)
            by_directory.setdefault(directory, []).append(name)
        found: set[tuple[bytes, int, str]] = set()
        for directory, names in by_directory.items():
            for start in range(0, len(names), NAMES_MAX):
                some = names[start : start + NAMES_MAX]
                rows = self._connection.execute(
                    "SELECT name, created, id FROM version WHERE bucket = ? AND dir = ? "
                    f"AND name IN ({','.join('?' * len(some))})",
                    (number, directory, *some),
                )
                found.update((keys.join(directory, name), created, version_id) for name, created, version_id in rows)
        return found

    def has_version(self, address: str, version: Version) -> bool:
        """Whether the journal has this exact version or marker of a bucket."""
        directory, name = keys.split(version.key)
        number, order = self._connection.ids.get(address), version.order
        row = self._connection.execute(
            "SELECT 1 FROM version WHERE bucket = ? AND dir = ? AND name = ? AND created = ? AND id = ? UNION ALL "
            "SELECT 1 FROM remote WHERE bucket = ? AND key = ? AND created = ? AND id = ? AND remote != ''",
            (number, directory, name, *order, number, version.key, *order),
        ).fetchone()
        return row is not None

    def newest(self, address: str) -> tuple[str, int]:
        """The greatest version id of a bucket, and the creation time of its newest version."""
        return newest.read(self._connection, self._connection.ids.get(address))

    def arrived(self, address: str, since_ns: int) -> Iterator[bytes]:
        """The BLAKE3 of each key's current version that was made since a moment; read in pages. Scans all keys."""
        last: tuple[bytes, bytes] = (b"", b"")
        while True:
            rows = self._connection.execute(
                "SELECT digest, dir, name FROM object WHERE bucket = ? AND NOT marker AND created >= ? "
                f"AND (dir, name) > (?, ?) ORDER BY dir, name LIMIT {PAGE}",
                (self._connection.ids.get(address), since_ns, *last),
            ).fetchall()
            yield from (digest for digest, _, _ in rows)
            if len(rows) < PAGE:
                return
            last = rows[-1][1:]

    def deleted_since(
        self, address: str, since_ns: int, after: tuple[bytes, bytes] | None, limit: int
    ) -> list[tuple[bytes, bytes, str]]:
        """(directory, name, version id) of the next keys whose current version is a marker made since a moment."""
        rows = self._connection.execute(
            "SELECT dir, name, id FROM object WHERE bucket = ? AND marker AND created >= ? AND (dir, name) > (?, ?) "
            "ORDER BY dir, name LIMIT ?",
            (self._connection.ids.get(address), since_ns, *(after or (b"", b"")), limit),
        )
        return rows.fetchall()

    def all_versions(self, address: str) -> Iterator[tuple[bytes, str]]:
        """Key and version id of every version and marker of a bucket."""
        rows = self._connection.execute(
            "SELECT dir, name, id FROM version WHERE bucket = ?", (self._connection.ids.get(address),)
        )
        return ((keys.join(directory, name), version_id) for directory, name, version_id in rows)
