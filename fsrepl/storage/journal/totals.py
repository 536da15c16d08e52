"""How many objects and versions a bucket has, and how many bytes. Other queries than counts and linked read all rows of
the bucket."""

from __future__ import annotations

from msgspec import Struct

from fsrepl.storage.journal.connection import Connection


class ObjectCounts(Struct, frozen=True):
    """Objects (keys whose current version is no marker), versions without markers, their bytes, and those of the
    current ones."""

    objects: int = 0
    versions: int = 0
    bytes: int = 0
    current_bytes: int = 0


class Totals:
    """Sums over the journal's tables of objects and versions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def classed(self, address: str, small_bytes: int = 0) -> list[tuple[str, bool, int, int]]:
        """Of the versions that have a storage class, tags or a tier: (traits, whether they are
        smaller than small_bytes, number, bytes)."""
        return self._connection.execute(
            "SELECT traits, size < ?, count(*), CAST(total(size) AS INTEGER) FROM version INDEXED BY classed "
            "WHERE bucket = ? AND traits != '' AND NOT marker GROUP BY 1, 2",
            (small_bytes, self._connection.ids.get(address)),
        ).fetchall()

    def by_traits(self, address: str) -> list[tuple[str, bool, int, int]]:
        """Of the versions with known traits: (traits, whether they are current, number, bytes)."""
        return self._connection.execute(
            "SELECT v.traits, v.id = o.id AND v.created = o.created, count(*), CAST(total(v.size) AS INTEGER) "
            "FROM version v LEFT JOIN object o USING (bucket, dir, name) "
            "WHERE v.bucket = ? AND NOT v.marker AND v.traits IS NOT NULL GROUP BY 1, 2",
            (self._connection.ids.get(address),),
        ).fetchall()

    def unread(self, address: str) -> list[tuple[bytes, bytes, str, bool, int]]:
        """Versions with unknown traits: (directory, name, id, whether it is current, bytes) each."""
        return self._connection.execute(
            "SELECT dir, name, v.id, v.id = o.id AND v.created = o.created, v.size "
            "FROM version v LEFT JOIN object o USING (bucket, dir, name) "
            "WHERE v.bucket = ? AND NOT v.marker AND v.traits IS NULL",
            (self._connection.ids.get(address),),
        ).fetchall()

    def keys(self, address: str) -> int:
        """The number of keys that have versions or markers in a bucket."""
        (number,) = self._connection.execute(
            "SELECT count(*) FROM object WHERE bucket = ?", (self._connection.ids.get(address),)
        ).fetchone()
        return int(number)

    def has_more_keys(self, address: str, number: int) -> bool:
        """Whether a bucket has more keys than a number, deleted ones among them. Reads no more rows than that."""
        (found,) = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM object WHERE bucket = ? LIMIT ?)",
            (self._connection.ids.get(address), number + 1),
        ).fetchone()
        return int(found) > number

    def versions(self, address: str) -> int:
        """The number of versions and markers in a bucket."""
        rows = self._connection.execute(
            "SELECT count(*) FROM version WHERE bucket = ?", (self._connection.ids.get(address),)
        )
        return int(rows.fetchone()[0])

    def held_bytes(self, address: str) -> tuple[int, int]:
        """The size of all current versions, and of all others."""
        counts = self.counts(address)
        return counts.current_bytes, counts.bytes - counts.current_bytes

    def deleted_since(self, address: str, since_ns: int, prefix: bytes) -> int:
        """The number of keys with a prefix whose current version is a marker made since a moment. Scans all keys."""
        (number,) = self._connection.execute(
            "SELECT count(*) FROM object WHERE bucket = ? AND marker AND created >= ? AND "
            "substr(CASE WHEN dir = x'' THEN name ELSE CAST(dir || '/' || name AS BLOB) END, 1, ?) = ?",
            (self._connection.ids.get(address), since_ns, len(prefix), prefix),
        ).fetchone()
        return int(number)

    def unshown(self, address: str) -> int:
        """The number of keys whose view does not show their current version, or exists although that is a marker."""
        (number,) = self._connection.execute(
            "SELECT count(*) FROM object WHERE bucket = ? AND (ino IS NULL) != marker "
            "OR bucket = ? AND NOT marker AND shown != id",
            (self._connection.ids.get(address), self._connection.ids.get(address)),
        ).fetchone()
        return int(number)

    def counts(self, address: str) -> ObjectCounts:
        """Objects, versions and bytes of a bucket, as counted while it changes: no other row is read."""
        row = self._connection.execute(
            "SELECT objects, versions, CAST(bytes AS INTEGER), CAST(current_bytes AS INTEGER) FROM object_count "
            "WHERE bucket = ?",
            (self._connection.ids.get(address),),
        ).fetchone()
        return ObjectCounts(*(row or ()))

    def linked(self, address: str) -> int:
        """The number of keys whose file is also another key's file."""
        (number,) = self._connection.execute(
            "SELECT coalesce(sum(number), 0) FROM (SELECT count(*) AS number FROM object WHERE bucket = ? AND ino IN "
            "(SELECT ino FROM linked WHERE bucket = ?) "
            "GROUP BY ino, size, mtime HAVING count(*) > 1)",  # inode numbers repeat across subvolumes
            (self._connection.ids.get(address), self._connection.ids.get(address)),
        ).fetchone()
        return int(number)
