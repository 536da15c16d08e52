"""Differences that verification can find, and how each is decided: pure, for verify.py and repair.py.

Source: design.md, section 5.
"""

from __future__ import annotations

import enum

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model import clock, metadata
from fsrepl.model.rule import Role
from fsrepl.model.version import DeliveryRecord, Version
from fsrepl.s3 import permissions, rules
from fsrepl.storage.journal.rows import Object


class Problem(enum.StrEnum):
    """A kind of difference. The list is closed, for scripts."""

    DIGEST = "DigestMismatch"
    """The stored content does not match its BLAKE3, or the replica's BLAKE3 differs from its source's."""
    MISSING = "Missing"
    """A delivered version is not in the store."""
    METADATA = "MetadataDiffers"
    DELETED = "ReplicaDeleted"
    """A replica's newest version is a delete marker that its source does not have."""
    LOST = "AttributesLost"
    """A stored file has no record, or its record lacks a required field."""
    DAMAGED = "RecordDamaged"
    """A record contradicts itself or cannot be read."""
    UNREADABLE = "Unreadable"
    VIEW = "ViewDiffers"
    """The content of a view changed without a write; or in a tree bucket a view is a file of its own, and is to be
    another name of a file."""
    CONFLICT = "ViewConflict"
    """Something other than the key's file is at the path of its view."""


class Difference(Struct, frozen=True):
    """One difference: its bucket, its version, and the reason for people."""

    bucket: str
    key: bytes
    version: str
    problem: Problem
    why: str
    marker: bool = False
    repaired: bool = False
    path: bytes = b""
    """The key as stored: the only known form of the key where the record is gone."""


# -- the state of a view: pure


class Seen(enum.Enum):
    """The kind of entry at the path of a view."""

    NOTHING = "nothing"
    FILE = "a file"
    OTHER = "something that is no file"


class Verdict(enum.Enum):
    FINE = "fine"
    PENDING = "a change that is not captured, or not shown yet"
    DIFFERS = "differs"
    CONFLICT = "conflict"


def judge_view(current: Object, known: Object | None, seen: Seen, *, same: bool, as_recorded: bool) -> Verdict:
    """The verdict on a view, from the key's current version and the journal's knowledge of the view.

    same: the view has the version's content. as_recorded: its inode and times are those last recorded.
    A write changes the times, so every other difference is a user's act and will be captured.
    """
    if seen is Seen.FILE and same and not current.marker:
        return Verdict.FINE
    if current.marker:
        return Verdict.PENDING if seen is Seen.FILE else Verdict.FINE
    shows_it = known is not None and known.id == current.id and known.view is not None and known.view.shown == known.id
    if seen is Seen.FILE and shows_it and as_recorded:
        return Verdict.DIFFERS
    if seen is Seen.OTHER and known is not None and not shows_it:
        return Verdict.CONFLICT
    return Verdict.PENDING


def lacks_date(version: Version) -> bool:
    """Whether the filesystem of a view cannot hold the version's modification time, and shows the nearest possible one.

    Inodes of 128 bytes end in 2038. Inodes that hold whole seconds only are not counted.
    """
    shown = version.shortfall.posix
    return bool(shown and version.posix and abs(shown.mtime_ns - version.posix.mtime_ns) >= 1_000_000_000)


def is_alike(sent: Version, there: Version) -> bool:
    """Whether two records are equal in what travels. Records that are not may still be right: see as_sent."""
    return (
        sent.digest == there.digest
        and sent.created_ns == there.created_ns
        and sent.posix == there.posix
        and sent.attrs == there.attrs
        and sent.tags == there.tags
    )


def as_sent(
    sent: Version, there: Version, recorded: DeliveryRecord, role: Role | None, source: str, at: str
) -> Version:
    """A replica as it should be: its source's version, except for later edits at the destination.

    role: the sending role, which may permit a version and not its tags. The replica keeps its own owner and ACL
    where the rule says so. source, at: the addresses of the two buckets.
    """
    replica = replace(rules.replica_of(sent, recorded, source), shortfall=there.shortfall)
    groups = metadata.GROUPS
    if recorded.owner:
        groups -= {metadata.ACL}
        if replica.posix and there.posix:
            posix = replace(replica.posix, uid=there.posix.uid, gid=there.posix.gid, mode=there.posix.mode)
            replica = replace(replica, posix=posix)
    if not there.tags and not carries_tags(sent, role, source, at):
        groups -= {metadata.TAGS}
    merged = metadata.merged(there, replica, groups)
    return replace(merged, created_ns=sent.created_ns, digest=sent.digest, size=sent.size)


def carries_tags(sent: Version, role: Role | None, source: str, at: str) -> bool:
    """Whether a role permits a version's tags, and not the version alone."""
    permission = permissions.permission_to_send(
        role, source=source, destination=at, key=sent.key.decode("utf-8", "surrogateescape"), marker=sent.marker,
        tags=True, acl=False, owner_override=False, batch=False,
    )  # fmt: skip
    return permission.with_tags and not permission.reason


def metadata_difference(there: Version, expected: Version) -> str:
    """The difference between a replica's metadata and the expected, in words; empty where there is none."""
    if there.created_ns != expected.created_ns:
        return f"it was created {clock.stamp(expected.created_ns)}, and its record says {clock.stamp(there.created_ns)}"
    groups = metadata.changed(there, expected)
    return f"its {' and '.join(sorted(groups))} differ from those of the source" if groups else ""
