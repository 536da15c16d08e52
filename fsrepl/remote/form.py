"""A version <-> the metadata of an S3 object. Pure.

An object's metadata tells what it is without fsrepl. `mtime`, `mode`, `uid` and `gid` are written as rclone writes
them, so that `rclone copy --metadata` restores files. fsrepl's own begin with `fsrepl-`:

    fsrepl-version-id, fsrepl-last-modified, fsrepl-blake3, fsrepl-origin     the version's identity
    fsrepl-attributes      base64 of a JSON object: user attributes, the ACL, and the times of edits
    fsrepl-key             base64 of the whole key, where the name is a digest
    fsrepl-sidecar         the object that has attributes and key, where the metadata would pass S3's 2 KB

In a tree bucket `mode` has the file type. A directory is an empty object whose name ends in a slash, a symlink has its
target as content; their Content-Type says so. Names of one file are objects of their own, and the attributes of each
later one name the first.

A service gives each version an id of its own. Ours stays in the metadata.
Source: AWS, "Working with object metadata"; rclone, docs/content/s3.md and backend/local/metadata.go.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import stat
from collections.abc import Mapping

from msgspec import Struct

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, clock, digests, keys
from fsrepl.model.attributes import decode_sidecar, encode_sidecar
from fsrepl.model.metadata import TAGS
from fsrepl.model.version import Kind, Version, recorded_mode

_OURS = "fsrepl-"
_ID, _MADE, _DIGEST, _ORIGIN = "fsrepl-version-id", "fsrepl-last-modified", "fsrepl-blake3", "fsrepl-origin"
_ATTRIBUTES, _KEY, SIDECAR = "fsrepl-attributes", "fsrepl-key", "fsrepl-sidecar"
_KEY_MAX = 1024
_METADATA_MAX = 2000
"""S3's limit is 2 KB for names and values together; some services count a little differently."""
_FOLDER = ".fsrepl/"
_CONTENT_TYPES = {stat.S_IFLNK: Kind.LINK.content_type, stat.S_IFDIR: Kind.DIRECTORY.content_type}
_UNLISTABLE = re.compile("[\x00-\x08\x0a-\x1f\ufffe\uffff]")
"""Characters that XML has no form for, and ends of lines, which its readers make alike. S3 encodes them in lists on
request; where a service does not, one such name makes the list of the whole bucket unreadable, or is listed as another
one: it would be sent again after each crash, and restored under the other name. Some services do not find a name with
a line feed at all. Source: XML 1.0, sections 2.2 and 2.11."""
_TOLD = frozenset(
    {
        attributes.VERSION_ID, attributes.LAST_MODIFIED, attributes.BLAKE3, attributes.ORIGIN, attributes.KEY,
        attributes.STORAGE_CLASS, attributes.DELIVERIES, attributes.PLACE, attributes.SHORTFALL,
    }
)  # fmt: skip
"""The fields of a record that other metadata tells, or that no replica has."""


# -- keys


def name_of(key: bytes, prefix: str = "") -> str:
    """The name of a key in a bucket: the key itself, or a digest where S3 cannot hold it or services cannot list it."""
    if keys.is_exact(key) and len(prefix.encode()) + len(key) <= _KEY_MAX:
        text = key.decode()
        if not _UNLISTABLE.search(text):
            return prefix + text
    return f"{prefix}{_FOLDER}keys/{digests.of(key).hex()}"


def is_ours(name: str, prefix: str = "") -> bool:
    """Whether a name is of a sidecar or another object of fsrepl's own, and so no object of a user."""
    return name.startswith(f"{prefix}{_FOLDER}") and not name.startswith(f"{prefix}{_FOLDER}keys/")


# -- one object


class Form(Struct, frozen=True):
    """A version as an object: its metadata, and the content of its sidecar, empty where it needs none."""

    metadata: Mapping[str, str]
    sidecar: bytes = b""

    @property
    def sidecar_name(self) -> str:
        """The name of the sidecar, without the prefix of all keys."""
        return self.metadata.get(SIDECAR, "")


def form_of(replica: Version) -> Form:
    """The form of a replica. A marker has none: S3 keeps nothing with a marker."""
    metadata = {
        _ID: replica.id,
        _MADE: clock.stamp(replica.created_ns),
        _DIGEST: replica.digest.hex(),
        _ORIGIN: f"replica:{replica.source}" if replica.source else str(replica.origin),
    }
    posix = replica.posix
    if posix is not None:
        mode = posix.mode if stat.S_IFMT(posix.mode) else stat.S_IFREG | posix.mode
        metadata |= {"mtime": _seconds(posix.mtime_ns), "mode": f"{mode:o}"}
        if posix.uid >= 0 and posix.gid >= 0:
            metadata |= {"uid": str(posix.uid), "gid": str(posix.gid)}
    fields = _other_fields(replica)
    more: dict[str, str] = {}
    if fields:
        more[_ATTRIBUTES] = base64.b64encode(encode_sidecar(fields, compact=True)).decode()
    if name_of(replica.key) != replica.key.decode("utf-8", "replace"):
        more[_KEY] = base64.b64encode(replica.key).decode()
    if _size(metadata) + _size(more) <= _METADATA_MAX:
        return Form(metadata | more)
    sidecar = encode_sidecar({**fields, attributes.KEY: replica.key}, compact=True)
    name = f"{_FOLDER}meta/{digests.short(replica.key)};{replica.id};{digests.short(sidecar)}"
    return Form(metadata | {SIDECAR: name}, sidecar)


def _other_fields(replica: Version) -> dict[str, bytes]:
    """The fields of a record that no other metadata tells: attributes, times of edits, an ACL. Tags are S3's own."""
    fields = {name: value for name, value in attributes.encode(replica).items() if name not in _TOLD}
    if replica.posix is None or not (replica.posix.acl or replica.posix.default_acl):
        fields.pop(attributes.POSIX, None)
    if edited := {group: stamp for group, stamp in replica.edited.items() if group != TAGS}:
        fields[attributes.EDITED] = json.dumps(edited, separators=(",", ":"), sort_keys=True).encode()
    else:  # tags can be changed in place, and have no time of their own there
        fields.pop(attributes.EDITED, None)
    return {name: value for name, value in fields.items() if not name.startswith(attributes.TAG)}


def content_type_of(metadata: Mapping[str, str]) -> str:
    """The Content-Type of an object with this metadata; empty for a file, and where another program made the object."""
    try:
        return _CONTENT_TYPES.get(stat.S_IFMT(int(metadata.get("mode", ""), 8)), "")
    except (ValueError, OverflowError):
        return ""


def _mode(text: str) -> int:
    """Raises ValueError, also for a number that no mode is."""
    return attributes.posix_of(int(text, 8), 0, 0, 0).mode


def _size(metadata: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in metadata.items())


def _seconds(ns: int) -> str:
    """Seconds since the epoch with up to nine decimals, as rclone writes times. Source: swift.TimeToFloatString."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    whole, rest = divmod(ns, 1_000_000_000)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def _nanoseconds(text: str) -> int:
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    whole, _, rest = text.partition(".")
    return sign * (int(whole) * 1_000_000_000 + int(rest[:9].ljust(9, "0")))


# -- read back


class Identity(Struct, frozen=True, order=True):
    """The identity of a version: its creation time and its id. A null version's id does not identify it alone."""

    created_ns: int
    id: str


def identity_of(metadata: Mapping[str, str]) -> Identity | None:
    """The identity of an object's version; None for an object that fsrepl did not make."""
    try:
        return Identity(clock.parse(metadata[_MADE]), metadata[_ID])
    except (KeyError, ValueError):
        return None


def version_of(
    name: str, metadata: Mapping[str, str], size: int, sidecar: bytes = b"", *,
    tags: Mapping[str, str], storage_class: str = "", prefix: str = "",
) -> Version:  # fmt: skip
    """The version that an object is. sidecar: the content of the object that `fsrepl-sidecar` names.

    Raises StoreDamaged where the metadata is not that of a version.
    """
    try:
        identity = Identity(clock.parse(metadata[_MADE]), metadata[_ID])
        fields = decode_sidecar(sidecar) if sidecar else {}
        if _ATTRIBUTES in metadata:
            fields = decode_sidecar(base64.b64decode(metadata[_ATTRIBUTES], validate=True))
        if _KEY in metadata:
            key = base64.b64decode(metadata[_KEY], validate=True)
        else:
            key = fields.pop(attributes.KEY, name.removeprefix(prefix).encode())
        fields |= {
            attributes.VERSION_ID: identity.id.encode(),
            attributes.LAST_MODIFIED: metadata[_MADE].encode(),
            attributes.BLAKE3: metadata[_DIGEST].encode(),
            attributes.ORIGIN: metadata.get(_ORIGIN, "user").encode(),
            **{attributes.TAG + name: text.encode() for name, text in tags.items()},
        }
        if storage_class and storage_class != "STANDARD":
            fields[attributes.STORAGE_CLASS] = storage_class.encode()
        posix = attributes.posix_of(
            recorded_mode(_mode(metadata.get("mode", "100644"))),
            int(metadata.get("uid", "-1")),
            int(metadata.get("gid", "-1")),
            _nanoseconds(metadata["mtime"]) if "mtime" in metadata else identity.created_ns,
        )
        return attributes.decode(key, keys.StoredName(b"", identity.id, False, False), fields, posix, size)
    except (KeyError, ValueError, binascii.Error) as error:
        raise StoreDamaged(f"the metadata of {name} cannot be read: {error}") from error
