"""A bucket of a region on another machine in a verification: every version that was delivered to it is read there.

Its agent reads records and content and hashes the content, a batch at a time; the records cross, and are compared here.
What the bucket has besides is not looked at, and neither are its views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import FsreplError, RecordLost, StoreDamaged, reason
from fsrepl.link import frames
from fsrepl.model import keys
from fsrepl.model.rule import Role
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.repair import compare
from fsrepl.repair.compare import Difference, Problem
from fsrepl.repair.verify_remote import BATCH, Compared
from fsrepl.storage import versions
from fsrepl.storage.bucket import Bucket, OpenBucket

_BATCH_BYTES = 256 << 20
"""Versions of so much content are examined together: there is no progress before the end of that."""

At = tuple[bytes, str, bool]
"""A key, a version id, and whether it is a marker."""
Examiner = Callable[[str, bytes], bytes]
"""Has the agent of a bucket examine versions: the address, and what `examine` takes and gives. Raises FsreplError."""


class _Found(Struct, frozen=True, array_like=True):
    """A version as it is at the agent's side. problem and why: what is wrong with it by itself."""

    item: frames.Item | None
    problem: str
    why: str
    read_bytes: int


_encode = msgspec.msgpack.Encoder().encode
_read_wanted = msgspec.msgpack.Decoder(list[At]).decode
_read_found = msgspec.msgpack.Decoder(list[_Found]).decode


# -- at the agent's side


def examine(bucket: Bucket, wanted: bytes) -> bytes:
    """Read versions of a bucket, and compare their content with their BLAKE3. Raises FsreplError where it is away."""
    with bucket.open() as opened:
        return _encode([_examine(opened, *at) for at in _read_wanted(wanted)])


def _examine(bucket: OpenBucket, key: bytes, version_id: str, marker: bool) -> _Found:
    try:
        found = versions.read_whole(bucket, key, version_id, marker=marker)
        if found is None:
            return _Found(None, Problem.MISSING, "it was delivered, and is not there", 0)
        size = 0
        if not marker:
            fd = versions.open_stored(bucket, found)
            try:
                size = bucket.fs.stat_fd(fd).st_size
                if versions.stored_digest(bucket, found, fd) != found.digest:
                    return _Found(None, Problem.DIGEST, "its stored content no longer matches its BLAKE3", size)
            finally:
                bucket.fs.close(fd)
        sent = replace(found, deliveries={"": DeliveryRecord("", Status.PENDING)})
        return _Found(frames.pack(sent, "", with_tags=True, data=None), "", "", size)
    except RecordLost as error:
        return _Found(None, Problem.LOST, str(error), 0)
    except StoreDamaged as error:
        return _Found(None, Problem.DAMAGED, str(error), 0)
    except OSError as error:
        return _Found(None, Problem.UNREADABLE, reason(error), 0)


# -- at the site's


class HostSide(Struct):
    """See the module. source: the address of the source; role: the role of its rules."""

    address: str
    source: str
    role: Role | None
    ask: Examiner
    waiting: list[Version] = field(default_factory=list)
    """Versions that are to be compared."""

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= BATCH or sum(version.size for version in self.waiting) >= _BATCH_BYTES

    def compare_waiting(self) -> Iterator[Compared]:
        """Compare the waiting versions."""
        wanted, self.waiting = self.waiting, []
        if not wanted:
            return
        try:
            answer = self.ask(self.address, _encode([(each.key, each.id, each.marker) for each in wanted]))
        except FsreplError as error:
            yield from (Compared(version, away=str(error)) for version in wanted)
            return
        for version, found in zip(wanted, _read_found(answer), strict=True):
            yield Compared(version, self._difference(version, found), found.read_bytes)

    def compare(self, version: Version) -> Compared:
        self.waiting.append(version)
        (found,) = self.compare_waiting()
        return found

    def _difference(self, version: Version, found: _Found) -> Difference | None:
        if found.item is None:
            return self._wrong(version, Problem(found.problem), found.why)
        there = frames.unpack(found.item, "")
        if there.digest != version.digest:
            return self._wrong(version, Problem.DIGEST, f"its recorded BLAKE3 is not that of {self.source}")
        if compare.is_alike(version, there):
            return None
        recorded = version.deliveries[self.address]
        expected = compare.as_sent(version, there, recorded, self.role, self.source, self.address)
        why = compare.metadata_difference(there, expected)
        return self._wrong(version, Problem.METADATA, why) if why else None

    def _wrong(self, version: Version, problem: Problem, why: str) -> Difference:
        path = keys.stored_path(version.key)
        return Difference(self.address, version.key, version.id, problem, why, version.marker, path=path)
