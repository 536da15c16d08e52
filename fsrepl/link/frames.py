"""The frames that a site and an agent exchange, as values, and their form on the wire.

Each side begins with a line of text that every version of fsrepl can read: its protocol and its version. Frames follow:
four bytes of length, most significant first, and a value in msgpack. Both sides must speak the same PROTOCOL, which
changes with any of these values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from fsrepl.model import keys
from fsrepl.model.version import DeliveryRecord, Origin, Posix, Rights, Status, Tracking, Version
from fsrepl.settings import Capture, ReplicationSettings, Safety, Scrub

PROTOCOL = 2
_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}|null")
_DIGEST_BYTES = 32
FRAME_MAX_BYTES = 1 << 30
"""The longest frame that is accepted: the map of the largest file of ext4 fits. Other frames are much shorter."""
INLINE_MAX_BYTES = 8 << 20
"""Smaller content is sent with its version. The agent asks for the parts of larger content that it lacks."""
CHUNK_BYTES = 256 << 10

At = tuple[str, str, bytes, str]
"""A delivery: the addresses of its source and its destination, its key, its version id."""


class Frame(Struct, frozen=True, array_like=True, tag=True):
    """A value that crosses."""


# -- from both sides


class Alive(Frame, frozen=True):
    """Sent while there is nothing else to send."""


# -- from the site


class Hello(Frame, frozen=True):
    """The introduction of a site: its identity, and the region that it wants to be served.

    site: the site's identity; where: its settings file, for people. uuid: the region's identity as the site knows it,
    "" where the site has not attached it. takes: attach the region, and make it if there is none. replaces: any region
    of that name will do. evicts: end an agent that an earlier connection of this site left behind.
    """

    site: str
    where: str
    name: str
    path: str
    uuid: str
    takes: bool
    replaces: bool
    evicts: bool
    silence_s: float
    sharing: str
    capture: Capture
    replication: ReplicationSettings
    scrub: Scrub
    safety: Safety


PackedRights = tuple[int, int, int, bytes | None, bytes | None]
"""Rights, field by field."""


class Item(Struct, frozen=True, array_like=True):
    """One version to be delivered, field by field, and with its content where that is small. See Version."""

    key: bytes
    id: str
    created_ns: int
    marker: bool
    size: int
    digest: bytes
    origin: Origin
    source: str
    storage_class: str
    posix: tuple[int, int, int, int, bytes | None, bytes | None] | None
    attrs: dict[bytes, bytes]
    tags: dict[bytes, bytes]
    edited: dict[str, str]
    taken: str
    link: tuple[bytes, str] | None
    rule: str
    rule_class: str
    owner: str
    job: str
    since_ns: int
    edit: bool
    checks: bool
    """A backfill checks again a delivery that was COMPLETED."""
    waits_for_link: bool
    """In a tree bucket: the version of which it is to be another name is still to be delivered."""
    with_tags: bool
    data: bytes | None


class Deliver(Frame, frozen=True):
    """Versions of one source for one destination, and the permissions of the directories that they lie in.

    orders: of a tree bucket, by the key of a directory: that of its current version.
    """

    source: str
    destination: str
    items: list[Item]
    directories: dict[bytes, PackedRights]
    orders: dict[bytes, tuple[int, str]]


class Directories(Frame, frozen=True):
    """Permissions of directories of a source that have changed."""

    source: str
    destination: str
    rights: dict[bytes, PackedRights]
    orders: dict[bytes, tuple[int, str]]


class Times(Frame, frozen=True):
    """The answer to WantTimes: the modification times of directories at a source, in nanoseconds since the epoch.

    Directories that are not there are left out.
    """

    source: str
    destination: str
    mtimes_ns: dict[bytes, int]


class Blocks(Frame, frozen=True):
    """The answer to WantBlocks: an encoded block map."""

    ticket: int
    data: bytes


class Chunk(Frame, frozen=True):
    """A part of the answer to WantSpan. data: None where it is zeros."""

    ticket: int
    at: int
    size: int
    data: bytes | None


class End(Frame, frozen=True):
    """The end of the answer to WantSpan."""

    ticket: int


class Broken(Frame, frozen=True):
    """Content cannot be sent. failed: S3's reason, where it never can. unwanted: it is no longer wanted at all."""

    ticket: int
    why: str
    failed: str = ""
    unwanted: bool = False


class Ask(Frame, frozen=True):
    """A request of a command, as on the control socket."""

    ticket: int
    request: bytes


# -- from the agent


class Welcome(Frame, frozen=True):
    """The region is served. buckets: their addresses, and the state of their versioning."""

    uuid: str
    buckets: dict[str, str]


class Denied(Frame, frozen=True):
    """The region is not served. away: that passes by itself."""

    why: str
    away: bool


class Told(Struct, frozen=True, array_like=True):
    """The outcome of a delivery. crossed_bytes: see Outcome."""

    at: At
    status: Status
    reason: str
    crossed_bytes: int | None


class Outcomes(Frame, frozen=True):
    outcomes: list[Told]


class Later(Frame, frozen=True):
    """Deliveries that cannot be made now. whole: nothing can be delivered to that bucket."""

    deliveries: list[At]
    why: str
    whole: bool
    lacks_content: bool = False
    """Their content was not sent with them, and is needed."""


class WantBlocks(Frame, frozen=True):
    """Asks for the block map of a version under way. afresh: the source reads the content, and compares it first."""

    ticket: int
    at: At
    afresh: bool = False


class WantSpan(Frame, frozen=True):
    """Asks for a part of its content. done_bytes: how much of it the agent has."""

    ticket: int
    at: At
    start: int
    size: int
    done_bytes: int


class Buckets(Frame, frozen=True):
    """The region's buckets and the state of their versioning have changed."""

    buckets: dict[str, str]


class Followed(Frame, frozen=True):
    """Directories have the permissions that they were said to have at a source."""

    source: str
    destination: str
    paths: list[bytes]


class WantTimes(Frame, frozen=True):
    """Asks for the times of directories of a tree bucket that are at rest there, by their paths at a source."""

    source: str
    destination: str
    paths: list[bytes]


class Lost(Frame, frozen=True):
    """Versions of a bucket, by key and id, whose content or record is destroyed there: they are to be sent again."""

    destination: str
    versions: list[tuple[bytes, str]]


class Answer(Frame, frozen=True):
    """The answer to Ask, as on the control socket."""

    ticket: int
    answer: bytes


FromSite = Alive | Hello | Deliver | Directories | Times | Blocks | Chunk | End | Broken | Ask
FromAgent = (
    Alive | Welcome | Denied | Outcomes | Later | WantBlocks | WantSpan | WantTimes | Buckets | Followed | Lost | Answer
)
encode = msgspec.msgpack.Encoder().encode
of_site = msgspec.msgpack.Decoder(FromSite)
of_agent = msgspec.msgpack.Decoder(FromAgent)


SITE, AGENT = "fsrepl-site", "fsrepl-agent"
"""The sender of the greeting. A program that only repeats its input is no agent."""


def greeting(side: str, version: str) -> bytes:
    """The first line of a side."""
    return f"{side} {PROTOCOL} {version}\n".encode()


def read_greeting(side: str, line: bytes) -> tuple[int, str] | None:
    """The protocol and version in the first line of a side; None where it is another program's."""
    words = line.decode("ascii", "replace").split()
    if len(words) == 3 and words[0] == side and words[1].isdigit():
        return int(words[1]), words[2]
    return None


# -- versions


def pack(
    version: Version, destination: str, *, with_tags: bool, data: bytes | None, waits_for_link: bool = False
) -> Item:
    """A version as it is sent to a destination."""
    recorded, posix = version.deliveries[destination], version.posix
    return Item(
        version.key, version.id, version.created_ns, version.marker, version.size, version.digest,
        version.origin, version.source, version.storage_class,
        (posix.mode, posix.uid, posix.gid, posix.mtime_ns, posix.acl, posix.default_acl) if posix else None,
        {os.fsencode(name): value for name, value in version.attrs.items()} if version.attrs else {},
        {os.fsencode(name): os.fsencode(value) for name, value in version.tags.items()} if version.tags else {},
        dict(version.edited), version.taken, version.link,
        recorded.rule, recorded.storage_class, recorded.owner, recorded.job, recorded.since_ns, recorded.edit,
        recorded.before is not None and recorded.before.status is Status.COMPLETED,
        waits_for_link, with_tags, data,
    )  # fmt: skip


def unpack(item: Item, destination: str) -> Version:
    """The version of an item, with its one delivery. Raises ValueError for a name that no file here may have."""
    if not _is_sound(item):
        raise ValueError(f"version {item.id!r} of key {item.key!r} cannot be stored")
    before = DeliveryRecord(item.rule, Status.COMPLETED) if item.checks else None
    recorded = DeliveryRecord(
        item.rule, Status.PENDING, "", item.rule_class, item.owner, item.job, Tracking.NONE, item.since_ns, item.edit,
        before=before,
    )  # fmt: skip
    return Version(
        item.key, item.id, item.created_ns, item.marker, item.size, item.digest, item.origin, item.source,
        item.storage_class, Posix(*item.posix) if item.posix else None,
        {os.fsdecode(name): value for name, value in item.attrs.items()} if item.attrs else {},
        {os.fsdecode(name): os.fsdecode(value) for name, value in item.tags.items()} if item.tags else {},
        {destination: recorded}, item.edited, taken=item.taken, link=item.link,
    )  # fmt: skip


def pack_rights(rights: Mapping[bytes, Rights]) -> dict[bytes, PackedRights]:
    return {path: (r.mode, r.uid, r.gid, r.acl, r.default_acl) for path, r in rights.items()}


def _is_sound(item: Item) -> bool:
    """Whether a key and a version id make names of files in their bucket, and nowhere else."""
    is_id = _ID.fullmatch(item.id) is not None
    return is_id and keys.is_key(item.key) and (item.marker or len(item.digest) == _DIGEST_BYTES)


def unpack_rights(packed: Mapping[bytes, PackedRights]) -> dict[bytes, Rights]:
    return {path: Rights(*each) for path, each in packed.items()}
