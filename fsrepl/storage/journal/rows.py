"""Rows of the journal as values: a key's current version, its view as last seen, deliveries and their outcomes.

All types are frozen, like those of model/version.py from which they are made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from fsrepl.model import keys
from fsrepl.model.version import EMPTY, NULL, DeliveryRecord, Status, Tracking, Version, operation
from fsrepl.model.view import View

_INTEGER_END = 1 << 63
OBJECT_ANYWHERE = (
    "SELECT id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown, name, dir FROM object"
)
"""The columns that object_of reads, then the name and the directory."""


class Object(Struct, frozen=True):
    """A key's current version according to the journal, and its view."""

    id: str
    created_ns: int
    marker: bool
    digest: bytes
    view: View | None

    @property
    def order(self) -> tuple[int, str]:
        return self.created_ns, self.id

    @property
    def null_ns(self) -> int:
        """The creation time of a null version, for VersionIds.next; -1 of another."""
        return self.created_ns if self.id == NULL else -1


class Stored(Struct, frozen=True):
    """A version or marker in the journal, with its position in the order of versions_after."""

    directory: bytes
    name: bytes
    created_ns: int
    id: str
    marker: bool = False

    @property
    def key(self) -> bytes:
        return keys.join(self.directory, self.name)

    @property
    def order(self) -> tuple[bytes, bytes, int, str]:
        return self.directory, self.name, self.created_ns, self.id


class Classed(Struct, frozen=True):
    """A version in the journal that has a storage class, tags or a tier. size in bytes. view_mode: that of its view, 0
    where no view shows it."""

    traits: str
    directory: bytes
    name: bytes
    created_ns: int
    id: str
    size: int
    view_mode: int

    @property
    def key(self) -> bytes:
        return keys.join(self.directory, self.name)

    @property
    def order(self) -> tuple[str, bytes, bytes, int, str]:
        return self.traits, self.directory, self.name, self.created_ns, self.id


def traits_of(version: Version) -> str:
    """The storage class and tags of a version, which rules filter by, and its tier, as text; empty where it has none of
    them."""
    if version.place is not None:
        return json.dumps([version.storage_class, dict(version.tags), version.place.tier])
    if not version.tags and not version.storage_class:
        return ""
    return json.dumps([version.storage_class, dict(version.tags)])


def read_traits(text: str | None) -> tuple[str | None, Mapping[str, str] | None]:
    """A version's storage class and tags; None where unknown."""
    if text is None:
        return None, None
    if not text:
        return "", EMPTY
    storage_class, tags, *_ = json.loads(text)
    return storage_class, tags


def read_tier(text: str | None) -> str:
    """The tier in which a version's content lies; empty where that is its bucket's store, or unknown."""
    found = json.loads(text) if text else []
    return found[2] if len(found) > 2 else ""


class Delivery(Struct, frozen=True):
    """A delivery in the journal."""

    source: str
    key: bytes
    id: str
    destination: str
    rule: str
    status: str
    reason: str
    created_ns: int
    size: int
    marker: bool
    job: str
    since_ns: int
    tracking: Tracking = Tracking.NONE
    digest: bytes = b""
    operation: str = ""
    """S3's name for the operation. The journal has this and the digest only for tracked deliveries."""


def delivery_of(source: str, version: Version, destination: str, recorded: DeliveryRecord) -> Delivery:
    """A delivery of a version, as the journal returns it while it is pending."""
    told = (version.digest, operation(version, recorded)) if recorded.tracking else (b"", "")
    return Delivery(
        source, version.key, version.id, destination, recorded.rule, str(recorded.status), recorded.reason,
        version.created_ns, version.size, version.marker, recorded.job,
        recorded.since_ns or version.created_ns, recorded.tracking, *told,
    )  # fmt: skip


class Outcome(Struct, frozen=True):
    """The outcome of one delivery at the destination, to be recorded at the source. sent: the delivery when it was
    sent.

    PENDING: nothing was done, because the source's record differs from the journal. crossed_bytes: the part of a large
    content that was sent, since the destination lacked it; None where all of it was.
    """

    delivery: Delivery
    status: Status
    reason: str
    sent: Version | None
    crossed_bytes: int | None = None


class Counts(Struct, frozen=True):
    """A count of items, their bytes, and the time since the oldest of them has been so."""

    number: int = 0
    bytes: int = 0
    oldest_ns: int = 0

    def plus(self, other: Counts) -> Counts:
        """The count of the items of both, of which neither is empty."""
        return Counts(self.number + other.number, self.bytes + other.bytes, min(self.oldest_ns, other.oldest_ns))


def seen_columns(view: View | None) -> tuple[Any, ...]:
    if view is None:
        return (None,) * 7
    ino, size, mtime, ctime = view.ino, view.size, view.mtime_ns, view.ctime_ns
    is_small = ino < _INTEGER_END and size < _INTEGER_END
    if is_small and -_INTEGER_END <= mtime < _INTEGER_END and -_INTEGER_END <= ctime < _INTEGER_END:
        return ino, size, mtime, ctime, view.mode, view.racy, view.shown
    return (*map(column, (ino, size, mtime, ctime)), view.mode, view.racy, view.shown)


def column(number: int) -> int | bytes:
    """A number from a filesystem, in a form that SQLite can hold: its integers are signed and have 64 bits.

    FUSE and NFS return inode numbers from 2^63 on, and times in nanoseconds exceed that range in 2262. Bytes keep any
    number exactly, also in a column declared INTEGER. Source: sqlite.org/datatype3, 3.
    """
    return number if -_INTEGER_END <= number < _INTEGER_END else number.to_bytes(16, "big", signed=True)


def number_of(column: int | bytes) -> int:
    """The number in a column's value."""
    return column if isinstance(column, int) else int.from_bytes(column, "big", signed=True)


def object_of(row: Sequence[Any]) -> Object:
    version_id, created, marker, digest, ino, size, mtime, ctime, mode, racy, shown = row[:11]
    view = None
    if ino is not None:
        if not type(ino) is type(size) is type(mtime) is type(ctime) is int:
            ino, size, mtime, ctime = map(number_of, (ino, size, mtime, ctime))
        view = View(ino, size, mtime, ctime, mode, bool(racy), shown)
    return Object(version_id, created, bool(marker), digest or b"", view)
