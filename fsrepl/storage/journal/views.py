"""How the views of a bucket looked when they were last seen."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

from fsrepl.model import keys
from fsrepl.model.view import View
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.rows import OBJECT_ANYWHERE, Object, column, number_of, object_of, seen_columns


class Views:
    """The part of the journal's table of objects that tells of files and symlinks at the paths of keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def see(self, address: str, key: bytes, view: View | None) -> None:
        """Record how a key's view looks now; None: there is no view."""
        self.see_all(address, [(key, view)])

    def see_all(self, address: str, rows: Iterable[tuple[bytes, View | None]]) -> None:
        number = self._connection.ids[address]
        seen = {keys.split(key): seen_columns(view) for key, view in rows}
        with self._connection.transaction():
            changes = self._connection.object_changes(number)
            changes.show({place: columns[0] for place, columns in seen.items()})
            self._connection.executemany(
                "UPDATE object SET ino = ?, size = ?, mtime = ?, ctime = ?, mode = ?, racy = ?, shown = ? "
                "WHERE bucket = ? AND dir = ? AND name = ?",
                [(*columns, number, *place) for place, columns in seen.items()],
            )
            changes.write()

    def see_labelled(self, address: str, rows: Iterable[tuple[bytes, View, View]]) -> None:
        """Record views that were labelled, each by its key, as it looked before and after that; one that is recorded
        otherwise by now is left so. A label changes the ctime alone, and no index has that."""
        number = self._connection.ids[address]
        with self._connection.transaction():
            self._connection.executemany(
                "UPDATE object SET ctime = ?, racy = ? "
                "WHERE bucket = ? AND dir = ? AND name = ? AND ino = ? AND ctime = ? AND shown = ?",
                [
                    (
                        column(now.ctime_ns), now.racy,
                        number, *keys.split(key), column(was.ino), column(was.ctime_ns), was.shown,
                    )
                    for key, was, now in rows
                ],
            )  # fmt: skip

    def unshown(self, address: str, limit: int) -> list[bytes]:
        """Keys whose view was not seen to show their current version."""
        rows = self._connection.execute(
            "SELECT dir, name FROM object INDEXED BY unshown "
            "WHERE bucket = ? AND NOT marker AND (ino IS NULL OR shown != id) LIMIT ?",
            (self._connection.ids.get(address), limit),
        )
        return [keys.join(directory, name) for directory, name in rows]

    def behind(self, address: str) -> list[bytes]:
        """Keys whose view is recorded as showing another version than the current one."""
        number = self._connection.ids.get(address)
        rows = self._connection.execute(
            "SELECT dir, name FROM object INDEXED BY unshown "
            "WHERE bucket = ? AND NOT marker AND (ino IS NULL OR shown != id) AND ino IS NOT NULL "
            "UNION ALL SELECT dir, name FROM object INDEXED BY outlived "
            "WHERE bucket = ? AND marker AND ino IS NOT NULL AND shown != id",
            (number, number),
        )
        return [keys.join(directory, name) for directory, name in rows]

    def shown_with(self, address: str, digests: Collection[bytes]) -> Iterator[tuple[bytes, int, bytes, str]]:
        """(BLAKE3, mtime_ns of the view, key, version id) of views that show a current version of some contents. At
        most some thousand contents; the query scans all keys."""
        rows = self._connection.execute(
            "SELECT digest, mtime, dir, name, id FROM object WHERE bucket = ? AND NOT marker AND ino IS NOT NULL "
            f"AND shown = id AND digest IN ({','.join('?' * len(digests))})",
            (self._connection.ids.get(address), *digests),
        )
        return ((digest, number_of(mtime), keys.join(directory, name), i) for digest, mtime, directory, name, i in rows)

    def names_of(self, address: str, ino: int) -> dict[bytes, Object]:
        """The keys whose views last had an inode number."""
        rows = self._connection.execute(
            f"{OBJECT_ANYWHERE} INDEXED BY inode "  # otherwise SQLite scans the bucket
            "WHERE bucket = ? AND ino = ?",
            (self._connection.ids.get(address), column(ino)),
        )
        return {keys.join(row[12], row[11]): object_of(row) for row in rows}

    def apart(self, address: str) -> list[list[bytes]]:
        """The keys of equal content and time whose views are several files, and no directories. The query scans all
        keys."""
        number = self._connection.ids.get(address)
        shown = "bucket = ? AND NOT marker AND ino IS NOT NULL AND shown = id AND name != x''"
        rows = self._connection.execute(
            f"SELECT digest, size, mtime, dir, name FROM object WHERE {shown} AND (digest, size, mtime) IN "
            f"(SELECT digest, size, mtime FROM object WHERE {shown} GROUP BY digest, size, mtime "
            "HAVING count(DISTINCT ino) > 1) ORDER BY digest, size, mtime",
            (number, number),
        ).fetchall()
        groups = itertools.groupby(rows, lambda row: row[:3])
        return [[keys.join(*row[3:]) for row in group] for _, group in groups]

    def linked(self, address: str, *, limit: int = -1) -> list[list[bytes]]:
        """The keys of each file of a bucket that is several keys' view. limit: how many keys at most, -1 all."""
        number = self._connection.ids.get(address)
        rows = self._connection.execute(
            "SELECT ino, size, mtime, dir, name FROM object WHERE bucket = ? AND NOT marker AND ino IN "
            "(SELECT ino FROM linked WHERE bucket = ?) "
            "ORDER BY ino, size, mtime LIMIT ?",  # inode numbers repeat across subvolumes
            (number, number, limit),
        ).fetchall()
        groups = ([keys.join(*row[3:]) for row in group] for _, group in itertools.groupby(rows, lambda row: row[:3]))
        return [group for group in groups if len(group) > 1]
