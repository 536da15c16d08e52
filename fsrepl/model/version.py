"""The nouns: what a key, a version, a rule and a delivery are.

Everything here is frozen and nothing here does I/O. A bucket is named by its address,
"REGION/BUCKET"; a key is the path of a file below its bucket, as bytes; times are
nanoseconds since the epoch, UTC; a digest is the BLAKE3 of the content, 32 bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NULL = "null"
"""The version id of an object from before versioning, as in S3."""

STORAGE_CLASSES = (
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
)
ARCHIVED_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

EMPTY: Mapping[str, str] = MappingProxyType({})


class Status(enum.StrEnum):
    """What S3 says of a version's replication. Absent where no rule chose it."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    REPLICA = "REPLICA"

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        """S3's SDKs also know COMPLETE: it is read, and never written."""
        return cls.COMPLETED if value == "COMPLETE" else None


class Versioning(enum.StrEnum):
    """The three states of a bucket; a bucket never goes back to OFF."""

    OFF = ""
    ENABLED = "Enabled"
    SUSPENDED = "Suspended"


class Origin(enum.StrEnum):
    """Who made a version."""

    USER = "user"
    REPLICA = "replica"
    LIFECYCLE = "lifecycle"
    ADOPTED = "adopted"


THRESHOLD_NS = 15 * 60 * 1_000_000_000
"""Replication Time Control: an operation that took longer is late. Source: s3-semantics, 3.6."""


class Tracking(enum.StrEnum):
    """How closely a rule has its operations followed. Source: s3-semantics, 3.4."""

    NONE = ""
    METRICS = "metrics"
    """Failures are events."""
    TIME = "time"
    """Replication Time Control: being late is one too."""


@dataclass(frozen=True, slots=True)
class Posix:
    """The part of an object's metadata that an inode holds itself. acl is the raw system.posix_acl_access."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    acl: bytes | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """Who may enter, list and change a directory, and what it gives to what is made in it. Both ACLs are raw."""

    mode: int
    uid: int
    gid: int
    acl: bytes | None = None
    default_acl: bytes | None = None


@dataclass(frozen=True, slots=True)
class Shortfall:
    """In what a view differs from its version since it could not be made like it, so that this is no edit of anybody's.

    posix: what the file has instead, where its owner, ACL or time could not be set; None: the version's own.
    lacks: names of the attributes that it goes without, for want of room or of the right to set them.
    """

    posix: Posix | None = None
    lacks: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.posix is not None or bool(self.lacks)


NO_SHORTFALL = Shortfall()


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One version owed to one destination, with what the winning rule said when the version was made."""

    rule: str
    status: Status
    reason: str = ""
    storage_class: str = ""
    owner: str = ""
    """`Destination`: the replica belongs to the owner of the destination bucket."""
    job: str = ""
    """The backfill job that asked for it; empty for live replication."""
    tracking: Tracking = Tracking.NONE
    since_ns: int = 0
    """When it was asked for (again), or FAILED; 0: when the version was made."""
    edit: bool = False
    """The destination has had the version: what is owed is metadata that was edited since."""
    before: DeliveryRecord | None = None
    """What it was when a backfill asked for it again, until that is settled: a job that is cancelled undoes itself."""

    @property
    def settled(self) -> bool:
        return self.status is not Status.PENDING


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a key, or one marker. Content never changes; metadata and deliveries may.

    A replica has the values of its source, except storage_class and owner where a rule overrides
    them, and origin, source, deliveries. edited says when each group of metadata ("posix", "acl",
    "attrs", "tags") was last edited, and where: {group: "created_ns REGION/BUCKET"}.
    """

    key: bytes
    id: str
    created_ns: int
    marker: bool = False
    size: int = 0
    digest: bytes = b""
    origin: Origin = Origin.USER
    source: str = ""
    storage_class: str = ""
    posix: Posix | None = None
    attrs: Mapping[str, bytes] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    deliveries: Mapping[str, DeliveryRecord] = field(default_factory=dict)
    edited: Mapping[str, str] = field(default_factory=dict)
    shortfall: Shortfall = NO_SHORTFALL
    """Of the view in this bucket; it does not travel."""

    @property
    def order(self) -> tuple[int, str]:
        """Sorts versions of one key from oldest to newest, the same in every region."""
        return self.created_ns, self.id

    @property
    def status(self) -> Status | None:
        """The status S3 would show: FAILED before PENDING before COMPLETED; replicas say REPLICA."""
        return shown_status(self.origin, self.deliveries)


def operation(version: Version, recorded: DeliveryRecord) -> str:
    """What a delivery brings, in a word as S3's events have it: the version, or what was edited of it since.

    S3's texts show OBJECT_PUT alone; the other words are made after it.
    """
    if version.marker:
        return "OBJECT_DELETE"
    if not recorded.since_ns:
        return "OBJECT_PUT"
    edited = {group for group, stamp in version.edited.items() if int(stamp.partition(" ")[0]) >= recorded.since_ns}
    return {frozenset({"tags"}): "OBJECT_PUT_TAGGING", frozenset({"acl"}): "OBJECT_PUT_ACL"}.get(
        frozenset(edited), "OBJECT_PUT"
    )


def shown_status(origin: Origin, deliveries: Mapping[str, DeliveryRecord]) -> Status | None:
    """Source: s3-semantics, 3.1. A replica that owes something itself shows that until it is done."""
    statuses = [d.status for d in deliveries.values()]
    for status in (Status.FAILED, Status.PENDING):
        if status in statuses:
            return status
    if origin is Origin.REPLICA:
        return Status.REPLICA
    return Status.COMPLETED if statuses else None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one delivery, for now: from it come the log line, the events and the numbers.

    asked_ns: when the version was made, or this was asked for again by an edit, a retry or a backfill.
    operation is S3's word for what was to be replicated.
    """

    source: str
    key: bytes
    version: str
    destination: str
    rule: str
    status: Status
    reason: str
    marker: bool
    size_bytes: int
    created_ns: int
    asked_ns: int
    digest: bytes = b""
    operation: str = ""
    tracking: Tracking = Tracking.NONE
    job: bool = False
