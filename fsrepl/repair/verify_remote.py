"""A bucket of an S3 service in a verification: every version that was delivered to it, compared with the source's.

Content is read from the service and hashed, many objects side by side. What the service has besides is not looked at: a
version that was removed for good at the source stays there, as at every destination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct, field

from fsrepl.errors import FsreplError
from fsrepl.model import digests, keys, metadata
from fsrepl.model.rule import Role
from fsrepl.model.version import Version
from fsrepl.remote.bucket import Head, RemoteBucket
from fsrepl.remote.failures import Absent
from fsrepl.remote.form import form_of
from fsrepl.repair.compare import Difference, Problem, carries_tags
from fsrepl.s3 import rules
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.remote import RemoteVersion
from fsrepl.storage.remote_key import RemoteKey

_AT_ONCE = 16
BATCH = 128
"""How many versions are compared together."""


class Compared(Struct, frozen=True):
    """The comparison of one version. difference: None where there is none. away: why it could not be compared."""

    version: Version
    difference: Difference | None = None
    read_bytes: int = 0
    away: str = ""


class RemoteSide(Struct):
    """See the module. source: the address of the source; role: the role of its rules."""

    bucket: RemoteBucket
    source: str
    role: Role | None
    journal: Journal | None
    waiting: list[Version] = field(default_factory=list)
    """Versions that are to be compared."""

    @property
    def address(self) -> str:
        return self.bucket.address

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= BATCH

    def compare_waiting(self) -> Iterator[Compared]:
        """Compare the waiting versions, side by side."""
        versions, self.waiting = self.waiting, []
        rows = self._rows([version.key for version in versions])
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(lambda version: self._compare(version, rows.get(version.key, [])), versions)

    def compare(self, version: Version) -> Compared:
        return self._compare(version, self._rows([version.key]).get(version.key, []))

    def _rows(self, names: Sequence[bytes]) -> dict[bytes, list[RemoteVersion]]:
        return self.journal.remote.of_keys(self.address, names) if self.journal is not None else {}

    def _compare(self, version: Version, rows: Sequence[RemoteVersion]) -> Compared:
        try:
            return self._look(version, RemoteKey(self.bucket, version.key, rows))
        except FsreplError as error:
            return Compared(version, away=str(error))

    def _look(self, version: Version, key: RemoteKey) -> Compared:
        head = None
        if version.marker or (row := key.get(version)) is None or (head := self._head(key, row)) is None:
            key.look(repairs=False)
            if version.marker and (key.get(version) is not None or key.adopt_marker(version)):
                return Compared(version)
            found = key.get(version)
            head = self._head(key, found) if found is not None and not version.marker else None
        if head is None:
            return Compared(version, self._wrong(version, Problem.MISSING, "it was delivered, and is not there"))
        remote = key.rows[version.order].remote
        size = 0
        hashed = digests.Passing(self.bucket.content(key.name, remote))
        for chunk in hashed:
            size += len(chunk)
        if hashed.digest() != version.digest:
            why = "its content there does not match its BLAKE3"
            return Compared(version, self._wrong(version, Problem.DIGEST, why), size)
        why = self._differs(version, key.name, remote, head)
        return Compared(version, self._wrong(version, Problem.METADATA, why) if why else None, size)

    def _head(self, key: RemoteKey, row: RemoteVersion) -> Head | None:
        head = self.bucket.head(key.name, row.remote)
        return head if head is not None and head.identity is not None else None

    def _differs(self, version: Version, name: str, remote: str, head: Head) -> str:
        """The difference of an object's metadata from the metadata to be sent, in words; empty where there is none."""
        recorded = version.deliveries[self.address]
        replica = rules.replica_of(version, recorded, self.source)
        if recorded.owner and replica.posix:
            replica = rules.given_to(replica, -1, -1)
        with_tags = carries_tags(version, self.role, self.source, self.address)
        if not with_tags:
            replica = metadata.without(replica, metadata.TAGS)
        form = form_of(replica)
        names = {n for n in {*form.metadata, *head.metadata} if form.metadata.get(n) != head.metadata.get(n)}
        if names - {"fsrepl-origin"}:  # a version that came from elsewhere, and that a backfill sent on, keeps its own
            return f"its metadata differs from that of the source: {', '.join(sorted(names))}"
        if form.sidecar:
            try:
                there = b"".join(self.bucket.content(self.bucket.prefix + form.sidecar_name))
            except Absent:
                return "the object with its attributes, below .fsrepl/meta/, is gone"
            if there != form.sidecar:
                return "the object with its attributes, below .fsrepl/meta/, is not as it was sent"
        tags = self.bucket.tags(name, remote)
        if with_tags and tags != dict(replica.tags):
            return "its tags differ from those of the source"
        return ""

    def _wrong(self, version: Version, problem: Problem, why: str) -> Difference:
        path = keys.stored_path(version.key)
        return Difference(self.address, version.key, version.id, problem, why, version.marker, path=path)
