"""One bucket of a verification, open for reading."""

from __future__ import annotations

from msgspec import Struct

from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import Version
from fsrepl.repair.compare import Difference, Problem
from fsrepl.storage import listing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object


class Side(Struct, frozen=True):
    """One bucket of the comparison, open for reading. since_ns: the creation time of the bucket."""

    address: str
    bucket: OpenBucket
    since_ns: int = 0

    def is_removed(self, key: bytes, version_id: str) -> bool:
        return (key, version_id) in self.bucket.bucket.documents.removed

    def wrong(self, version: Version, problem: Problem, why: str) -> Difference:
        path = keys.stored_path(version.key)
        return Difference(self.address, version.key, version.id, problem, why, version.marker, path=path)

    def newest(self, key: bytes) -> Version | None:
        """The record of a key's newest version or marker; None where there is none, or none that can be read."""
        try:
            return next(iter(listing.versions_of(self.bucket, key)), None)
        except (OSError, StoreDamaged):
            return None

    def current(self, key: bytes) -> Object | None:
        """The current version of a key, from the store as it is now."""
        newest = self.newest(key)
        if newest is None or versions.has_lost_record(newest):
            return None
        return Object(newest.id, newest.created_ns, newest.marker, newest.digest, None)
