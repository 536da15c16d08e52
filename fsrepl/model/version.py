"""Values for keys, versions, markers and deliveries.

All types are frozen, and nothing here does I/O. A bucket is named by its address, "REGION/BUCKET"; a key is the path of
a file below its bucket, as bytes; times are nanoseconds since the epoch, UTC; a digest is the BLAKE3 of the content, 32
bytes.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct, field

from fsrepl.settings import TIERS

NULL = "null"
"""The version id of an object from before versioning, as in S3."""

STORAGE_CLASSES = ("STANDARD", *TIERS)

EMPTY: Mapping[str, str] = MappingProxyType({})


class Status(enum.StrEnum):
    """S3's replication status of a version; a version that no rule chose has none."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    REPLICA = "REPLICA"

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        """S3's SDKs also use COMPLETE: it is accepted but never written."""
        return cls.COMPLETED if value == "COMPLETE" else None


class Versioning(enum.StrEnum):
    """The three states of a bucket; a bucket never goes back to OFF."""

    OFF = ""
    ENABLED = "Enabled"
    SUSPENDED = "Suspended"


class Origin(enum.StrEnum):
    """The creator of a version."""

    USER = "user"
    REPLICA = "replica"
    LIFECYCLE = "lifecycle"
    ADOPTED = "adopted"


THRESHOLD_NS = 15 * 60 * 1_000_000_000
"""Replication Time Control: an operation that takes longer is late. Source: s3-semantics, 3.6."""


class Tracking(enum.StrEnum):
    """Levels of tracking for a rule's operations. Source: s3-semantics, 3.4."""

    NONE = ""
    METRICS = "metrics"
    """Failures cause events."""
    TIME = "time"
    """Replication Time Control: failures and delays cause events."""


class Kind(enum.Enum):
    """The kinds of object. In a bucket that is no tree bucket every object is a file."""

    FILE = "a file"
    LINK = "a symlink"
    """The content of a symlink is its target."""
    DIRECTORY = "a directory"
    """The key of a directory ends in a slash, and it has no content."""

    @property
    def content_type(self) -> str:
        """The Content-Type of such an object, empty for a file.

        Source: s3fs, lookupMimeType (application/x-directory); freedesktop.org, shared-mime-info (inode/symlink).
        """
        return {Kind.LINK: "inode/symlink", Kind.DIRECTORY: "application/x-directory"}.get(self, "")


PERMISSIONS = 0o7777
"""The bits of a mode beside the file type; a mode on record that has no others is that of a regular file."""


def recorded_mode(st_mode: int) -> int:
    """The mode on record of an inode: the permissions, and for all but a regular file the file type as well."""
    mode = st_mode & PERMISSIONS
    return mode if st_mode - mode == stat.S_IFREG else st_mode


def is_file(posix: Posix) -> bool:
    """Whether metadata is that of a regular file."""
    return posix.mode <= PERMISSIONS


def kind_of(posix: Posix) -> Kind:
    """The kind of an object that is no directory, by its metadata."""
    return Kind.LINK if stat.S_ISLNK(posix.mode) else Kind.FILE


class Posix(Struct, frozen=True, array_like=True):
    """Metadata of an object that its inode holds. The ACLs are raw attributes; only a directory has a default ACL.

    mode: see recorded_mode. mtime_ns is 0 for a directory, since it changes with each entry.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    acl: bytes | None = None
    default_acl: bytes | None = None

    @property
    def rights(self) -> Rights:
        """The access rights to a directory."""
        return Rights(stat.S_IMODE(self.mode), self.uid, self.gid, self.acl, self.default_acl)


class Rights(Struct, frozen=True):
    """Access rights to a directory, and the default ACL for files created in it. Both ACLs are raw."""

    mode: int
    uid: int
    gid: int
    acl: bytes | None = None
    default_acl: bytes | None = None


class Shortfall(Struct, frozen=True, array_like=True):
    """Metadata of a version that its view could not take, so that the difference is no edit.

    posix: the file's values where its owner, ACL or time could not be set; None: the version's own. lacks: names of the
    attributes that could not be set for lack of space or permission.
    """

    posix: Posix | None = None
    lacks: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.posix is not None or bool(self.lacks)


NO_SHORTFALL = Shortfall()


class Form(enum.StrEnum):
    """How content lies in a tier."""

    PLAIN = ""
    """A file that anybody may read who has the right to."""
    ARCHIVED = "archived"
    """The plain content, which must be restored before it can be read."""
    ZSTD = "zstd"
    """Compressed, and to be restored before it is read."""


class Place(Struct, frozen=True, array_like=True):
    """Where a version's content lies that is not in its bucket's store: in a tier of its region, under a token.

    tier: the storage class whose directory holds the content; that of the version, or of the move before.
    until_ns: of archived content, the time until which a copy can be read that was restored last; 0 where none was.
    """

    tier: str
    token: str
    form: Form = Form.PLAIN
    until_ns: int = 0

    def __eq__(self, other: object) -> bool:
        """Whether it is the same content: a restored copy does not change where that lies."""
        return isinstance(other, Place) and (self.tier, self.token, self.form) == (other.tier, other.token, other.form)

    def __hash__(self) -> int:
        return hash((self.tier, self.token, self.form))

    @property
    def is_archived(self) -> bool:
        """Whether the content has to be restored before it can be read."""
        return self.form is not Form.PLAIN


class DeliveryRecord(Struct, frozen=True, array_like=True):
    """The state of a version's delivery to one destination, with the winning rule's settings at its creation."""

    rule: str
    status: Status
    reason: str = ""
    storage_class: str = ""
    owner: str = ""
    """`Destination`: the replica belongs to the owner of the destination bucket."""
    job: str = ""
    """The backfill job that requested the delivery; empty for live replication."""
    tracking: Tracking = Tracking.NONE
    since_ns: int = 0
    """The time when the delivery was requested (again), or FAILED; 0: when the version was made."""
    edit: bool = False
    """The destination already has the version: the delivery brings metadata edited since."""
    crossed_bytes: int | None = None
    """The part of a large content that crossed in the try that completed the delivery: the destination had the rest,
    from other versions or an interrupted try. None: unknown, or all of it."""
    before: DeliveryRecord | None = None
    """The delivery before a backfill requested it again, kept until it is settled: a cancelled job restores it."""

    @property
    def settled(self) -> bool:
        return self.status is not Status.PENDING


TAKEN_OPEN, TAKEN_CHANGING = "open", "changing"
"""A program had the file open for writing; or it changed while it was captured, since it never stopped to."""


class Version(Struct, frozen=True, gc=False, array_like=True):
    """One version of a key, or one marker. Content never changes; metadata and deliveries may.

    A replica has the values of its source, except origin, source, place and deliveries, and except storage_class and
    owner where a rule overrides them. edited maps each edited group of metadata ("posix", "acl", "attrs", "tags") to
    the time and bucket of its last edit: {group: "created_ns REGION/BUCKET"}.
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
    """The shortfall of this bucket's view; it is not replicated."""
    place: Place | None = None
    """None: the content is that of the stored file. Else the stored file is empty and has only the record."""
    link: tuple[bytes, str] | None = None
    """In a tree bucket: another key, and the version of it, whose file this one was too when it was captured. Of a
    version that was restored to a file of its own: where the links of the version led from which it was restored."""
    taken: str = ""
    """How the file was when it was captured, where it was not closed: TAKEN_OPEN or TAKEN_CHANGING."""

    @property
    def kind(self) -> Kind:
        """The kind of object; a marker of a file and of a symlink are alike."""
        if self.key[-1:] == b"/":
            return Kind.DIRECTORY
        if self.posix is None or self.posix.mode <= PERMISSIONS:
            return Kind.FILE
        return kind_of(self.posix)

    @property
    def order(self) -> tuple[int, str]:
        """Sort key of a key's versions from oldest to newest, the same in every region."""
        return self.created_ns, self.id

    @property
    def status(self) -> Status | None:
        """The status S3 would show: FAILED before PENDING before COMPLETED; a replica shows REPLICA."""
        return shown_status(self.origin, self.deliveries)


def operation(version: Version, recorded: DeliveryRecord) -> str:
    """The operation of a delivery, named as in S3's events: the version, or its metadata edited since.

    S3's documentation shows only OBJECT_PUT; the other names are modelled on it.
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
    """The status S3 shows for a version. A replica with pending or failed deliveries shows these first.

    Source: s3-semantics, 3.1.
    """
    is_pending = False
    for each in deliveries.values():
        if each.status is Status.FAILED:
            return Status.FAILED
        is_pending |= each.status is Status.PENDING
    if is_pending:
        return Status.PENDING
    if origin is Origin.REPLICA:
        return Status.REPLICA
    return Status.COMPLETED if deliveries else None


class Result(Struct, frozen=True):
    """The outcome of one delivery, from which the log line, the events and the metrics are made.

    asked_ns: when the version was made, or when an edit, a retry or a backfill requested the delivery again. operation
    is S3's name for the replicated operation.
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
    crossed_bytes: int | None = None
    """See DeliveryRecord."""
