"""What can be wrong with a version, and what tells: pure, for verify.py, which looks, and repair.py.

Source: design.md, section 5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from fsrepl.model import clock, metadata
from fsrepl.model.rule import Role
from fsrepl.model.version import DeliveryRecord, Version
from fsrepl.s3 import permissions, rules
from fsrepl.storage.journal.rows import Object


class Problem(enum.StrEnum):
    """What can be wrong. A closed list, for scripts."""

    DIGEST = "DigestMismatch"
    """The stored content is not what its BLAKE3 says, or the replica's BLAKE3 is not its source's."""
    MISSING = "Missing"
    """A version was delivered, and is not in the store."""
    METADATA = "MetadataDiffers"
    DELETED = "ReplicaDeleted"
    """A replica's newest version is a delete marker that its source does not have."""
    LOST = "AttributesLost"
    """A stored file has no record, or the record lacks what it must have."""
    DAMAGED = "RecordDamaged"
    """A record contradicts itself or cannot be read."""
    UNREADABLE = "Unreadable"
    VIEW = "ViewDiffers"
    """The file people see changed its content without having been written."""
    CONFLICT = "ViewConflict"
    """Something that is not this key's file is where its file must go."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: in which bucket, of which version, and why for people."""

    bucket: str
    key: bytes
    version: str
    problem: Problem
    why: str
    marker: bool = False
    repaired: bool = False
    path: bytes = b""
    """The key as the store spells it: all that is known of it where the record is gone."""


# -- what a view may look like: pure


class Seen(enum.Enum):
    """What stands where a key's file is shown."""

    NOTHING = "nothing"
    FILE = "a file"
    OTHER = "something that is no file"


class Verdict(enum.Enum):
    FINE = "fine"
    PENDING = "a change that is not captured, or not shown yet"
    DIFFERS = "differs"
    CONFLICT = "conflict"


def judge_view(current: Object, known: Object | None, seen: Seen, *, same: bool, as_recorded: bool) -> Verdict:
    """What a view is worth, given the key's current version and what the journal knows of the view.

    same: it has the version's content. as_recorded: it looks as it did when it was last recorded, inode and times.
    Whoever writes into a file changes those, so that everything else is a user's act and will be captured.
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
    """Whether the filesystem of a version's view cannot hold its modification time, and shows the nearest that it can.

    Inodes of 128 bytes end in 2038. That they have whole seconds only is not counted.
    """
    shown = version.shortfall.posix
    return bool(shown and version.posix and abs(shown.mtime_ns - version.posix.mtime_ns) >= 1_000_000_000)


def is_alike(sent: Version, there: Version) -> bool:
    """Whether two records are simply equal in what travels. Where not, that may still be right: see as_sent."""
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
    """A replica as it should be: what its source has of it, but for what was edited later there.

    role: the one that sends it, which may let a version pass and not its tags. Owner and ACL are the
    replica's own affair where the rule says so. source, at: where the two are.
    """
    replica = replace(rules.replica_of(sent, recorded, source), shortfall=there.shortfall)
    groups = metadata.GROUPS
    if recorded.owner:
        groups -= {metadata.ACL}
        if replica.posix and there.posix:
            posix = replace(replica.posix, uid=there.posix.uid, gid=there.posix.gid, mode=there.posix.mode)
            replica = replace(replica, posix=posix)
    if not there.tags and not _carries_tags(sent, role, source, at):
        groups -= {metadata.TAGS}
    merged = metadata.merged(there, replica, groups)
    return replace(merged, created_ns=sent.created_ns, digest=sent.digest, size=sent.size)


def _carries_tags(sent: Version, role: Role | None, source: str, at: str) -> bool:
    permission = permissions.permission_to_send(
        role, source=source, destination=at, key=sent.key.decode("utf-8", "surrogateescape"), marker=sent.marker,
        tags=True, acl=False, owner_override=False, batch=False,
    )  # fmt: skip
    return permission.with_tags and not permission.reason


def metadata_difference(there: Version, expected: Version) -> str:
    """What is not as it should be, in words; empty where nothing is."""
    if there.created_ns != expected.created_ns:
        return f"it was created {clock.stamp(expected.created_ns)}, and its record says {clock.stamp(there.created_ns)}"
    groups = metadata.changed(there, expected)
    return f"its {' and '.join(sorted(groups))} differ from those of the source" if groups else ""
