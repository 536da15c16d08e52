"""The journal's tables of versions in buckets of S3 services: the service's id of each version, and intents.

An intent is a row without the service's id, written before the request that makes the version. After a crash it says
that the version may be there already. A row that is lost is remade from the bucket's own list (storage/remote_key.py).

Of the versions that were created before `trusted_ns` it is not known whether they were sent, since the journal is newer
or lost its last rows in a power cut. A key with such a version is listed once before it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from fsrepl.storage.journal.connection import Connection

_KEYS_MAX = 500


COPYING = "copying"


class RemoteVersion(Struct, frozen=True, order=True):
    """A version or marker in a bucket of a service. remote: the service's id, empty for an intent.

    upload: the id of an upload in parts that is under way; for a version that is there, COPYING where it may be there
    once more, under another id.
    """

    created_ns: int
    id: str
    key: bytes
    marker: bool
    size: int
    remote: str = ""
    upload: str = ""

    @property
    def is_in_doubt(self) -> bool:
        """Whether only the bucket's list can say if the version is there."""
        return not self.remote or bool(self.upload)

    @property
    def order(self) -> tuple[int, str]:
        return self.created_ns, self.id


class RemoteCounts(Struct, frozen=True):
    """Objects (keys whose newest version is no marker), versions without markers, their bytes, and those of objects."""

    objects: int
    versions: int
    bytes: int
    current_bytes: int


class Remote:
    """Versions in buckets that are no trees here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of_keys(self, address: str, keys: Sequence[bytes]) -> dict[bytes, list[RemoteVersion]]:
        """The rows of some keys, oldest version first."""
        found: dict[bytes, list[RemoteVersion]] = {}
        number = self._connection.ids.get(address)
        for start in range(0, len(keys), _KEYS_MAX):
            some = keys[start : start + _KEYS_MAX]
            rows = self._connection.execute(
                "SELECT created, id, key, marker, size, remote, upload FROM remote "
                f"WHERE bucket = ? AND key IN ({','.join('?' * len(some))}) ORDER BY key, created, id",
                (number, *some),
            )
            for created, version_id, key, marker, size, remote, upload in rows:
                row = RemoteVersion(created, version_id, key, bool(marker), size, remote, upload)
                found.setdefault(key, []).append(row)
        return found

    def listed(self, address: str, keys: Sequence[bytes]) -> set[bytes]:
        """The keys, of some, that were listed since the journal is trusted."""
        number, found = self._connection.ids.get(address), set[bytes]()
        for start in range(0, len(keys), _KEYS_MAX):
            some = keys[start : start + _KEYS_MAX]
            rows = self._connection.execute(
                f"SELECT key FROM remote_listed WHERE bucket = ? AND key IN ({','.join('?' * len(some))})",
                (number, *some),
            )
            found.update(key for (key,) in rows)
        return found

    def uploads(self, address: str) -> list[RemoteVersion]:
        """Versions whose upload in parts was begun and not ended."""
        rows = self._connection.execute(
            "SELECT created, id, key, marker, size, remote, upload FROM remote "
            "WHERE bucket = ? AND remote = '' AND upload != ''",
            (self._connection.ids.get(address),),
        )
        return [RemoteVersion(c, i, k, bool(m), s, r, u) for c, i, k, m, s, r, u in rows]

    def put(self, address: str, rows: Iterable[RemoteVersion]) -> None:
        number = self._connection.ids[address]
        self._connection.executemany(
            "INSERT OR REPLACE INTO remote VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(number, r.key, r.created_ns, r.id, r.marker, r.size, r.remote, r.upload) for r in rows],
        )

    def remove(self, address: str, rows: Iterable[RemoteVersion]) -> None:
        number = self._connection.ids[address]
        self._connection.executemany(
            "DELETE FROM remote WHERE bucket = ? AND key = ? AND created = ? AND id = ?",
            [(number, r.key, r.created_ns, r.id) for r in rows],
        )

    def note_listed(self, address: str, keys: Iterable[bytes]) -> None:
        number = self._connection.ids[address]
        self._connection.executemany(
            "INSERT OR IGNORE INTO remote_listed VALUES (?, ?)", [(number, key) for key in keys]
        )

    def forget_listed(self, address: str) -> None:
        """Have every key listed again."""
        self._connection.execute("DELETE FROM remote_listed WHERE bucket = ?", (self._connection.ids.get(address),))

    def counts(self, address: str) -> RemoteCounts:
        number = self._connection.ids.get(address)
        objects, current = self._connection.execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM "
            "(SELECT marker, size, max(created) FROM remote WHERE bucket = ? AND remote != '' "
            "GROUP BY key) WHERE NOT marker",  # with max(), the other columns are of its row: sqlite.org/lang_select
            (number,),
        ).fetchone()
        versions, size = self._connection.execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM remote "
            "WHERE bucket = ? AND remote != '' AND NOT marker",
            (number,),
        ).fetchone()
        return RemoteCounts(objects, versions, size, current)

    def delivered_counts(self, address: str) -> RemoteCounts:
        """Counts of the versions delivered to a bucket: of a region on another machine nothing else is known here."""
        objects, current = self._connection.execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM (SELECT marker, size, max(created) FROM delivery "
            "WHERE destination = ? AND status = 'COMPLETED' GROUP BY bucket, key) WHERE NOT marker",
            (address,),
        ).fetchone()
        versions, size = self._connection.execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM delivery "
            "WHERE destination = ? AND status = 'COMPLETED' AND NOT marker",
            (address,),
        ).fetchone()
        return RemoteCounts(objects, versions, size, current)
