"""A version <-> the named fields of its record, which are also names of extended attributes.

user.fsrepl.* attributes belong to fsrepl; every other user.* attribute is the object's. model/record_form.py writes
these fields to a file. Fields that do not fit there go to the sidecar, a JSON object of attribute name to value.
Source: design.md, section 2.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import clock, json_text, keys
from fsrepl.model.version import (
    NO_SHORTFALL,
    NULL,
    DeliveryRecord,
    Form,
    Origin,
    Place,
    Posix,
    Shortfall,
    Status,
    Tracking,
    Version,
)

OURS = "user.fsrepl."
VERSION_ID = OURS + "version-id"
BLAKE3 = OURS + "blake3"
LAST_MODIFIED = OURS + "last-modified"
STATUS = OURS + "replication-status"
STORAGE_CLASS = OURS + "storage-class"
ORIGIN = OURS + "origin"
DELIVERIES = OURS + "deliveries"
POSIX = OURS + "posix"
KEY = OURS + "key"
EDITED = OURS + "edited"
SHORTFALL = OURS + "shortfall"
LINK = OURS + "link"
TAKEN = OURS + "taken"
PLACE = OURS + "place"
TAG = OURS + "tag."
MADE = OURS + "made"
"""Attribute of a directory that replication created in a view: the directory is removed when it is empty."""
DIRECTORY, REPLICATED = OURS + "directory", OURS + "replicated"
"""Attributes of directories in the version store. Source: views/directories.py."""

RECORD = OURS + "record"
"""All fields of a version's record except its deliveries."""
TRUSTED_RECORD, OWN_RECORD = "trusted.fsrepl.record", RECORD
"""The whole record of a stored file that is also a view, so that users may write to it. A daemon running as root keeps
it where only root can write; any other daemon trusts its own user."""
FORMER = frozenset({BLAKE3, LAST_MODIFIED, STORAGE_CLASS, ORIGIN, POSIX, KEY, EDITED, SHORTFALL})
"""Fields of a record that earlier builds wrote as separate attributes."""
RECORDS = FORMER | {RECORD, DELIVERIES}
"""Attributes present on a view only where the view and the stored file are one inode."""
LABEL = frozenset({VERSION_ID, STATUS})
"""Attributes that are labels on a view; tags come in addition."""
_FIELDS = RECORDS | LABEL | {LINK, TAKEN, PLACE}
"""Names that are neither the object's attributes nor its tags."""

_TOKEN = re.compile(r"[0-9a-f]{32}")
_compact = json.JSONEncoder(separators=(",", ":")).encode


def encode(version: Version) -> dict[str, bytes]:
    """All fields of a version's record, including the object's attributes and tags."""
    out = {VERSION_ID: version.id.encode()}
    if version.digest:
        out[BLAKE3] = version.digest.hex().encode()
    out[LAST_MODIFIED] = clock.stamp(version.created_ns).encode()
    out[ORIGIN] = (f"replica:{version.source}" if version.source else str(version.origin)).encode()
    if version.storage_class and version.storage_class != "STANDARD":
        out[STORAGE_CLASS] = version.storage_class.encode()
    if keys.is_hidden(version.key) or version.id == NULL:  # a null id does not identify the key
        out[KEY] = version.key
    if version.edited:
        out[EDITED] = _compact(dict(version.edited)).encode()
    if version.taken:
        out[TAKEN] = version.taken.encode()
    if version.link:
        out[LINK] = version.link[1].encode() + b" " + version.link[0]
    if version.shortfall:
        out[SHORTFALL] = _encode_shortfall(version.shortfall)
    if version.posix is not None:
        out[POSIX] = _encode_posix(version.posix)
    if version.place is not None:
        out[PLACE] = _encode_place(version.place, version.size)
    if version.deliveries:
        out[DELIVERIES] = encode_deliveries(version)
    out.update(of_object(version))
    return out


def of_object(version: Version) -> dict[str, bytes]:
    """The object's user attributes and its tags."""
    out = dict(version.attrs)
    for name, text in version.tags.items():
        out[TAG + name] = text.encode("utf-8", "surrogateescape")
    return out


def label(version: Version) -> dict[str, bytes]:
    """The labels of a view: the version id and the replication status.

    The id is first, so that it fits the inode of an ext4 filesystem. A status that does not fit is in a block that all
    views with that status share. Source: ext4, fs/ext4/xattr.c, ext4_xattr_block_set.
    """
    out = {VERSION_ID: version.id.encode()}
    if (status := version.status) is not None:
        out[STATUS] = status.encode()
    return out


def encode_deliveries(version: Version) -> bytes:
    """The deliveries of a version as JSON, an object of destination to delivery."""
    return _encode_deliveries(tuple(version.deliveries.items()))


@lru_cache(maxsize=256)
def _encode_deliveries(deliveries: tuple[tuple[str, DeliveryRecord], ...]) -> bytes:
    """Cached, because versions written in a burst mostly have equal deliveries."""
    return _compact({name: _encode_delivery(d) for name, d in deliveries}).encode()


def is_whole(raw: Mapping[str, bytes], path: bytes, *, marker: bool) -> bool:
    """Whether a record has the fields that the stored path and the content cannot supply. Copying a tree without
    attributes loses all attributes of a file at once."""
    if LAST_MODIFIED not in raw or (not marker and BLAKE3 not in raw):
        return False
    return KEY in raw or not any(map(keys.is_digest, path.split(b"/")))


def is_of(raw: Mapping[str, bytes], place: bytes, version_id: str) -> bool:
    """Whether a record may belong to a version: it names no other id and no other key.

    place: the version's key, or its spelling in the version store.

    Two versions on one inode share one record. Programs that hard-link files of equal content cause this.
    """
    if raw.get(VERSION_ID, said := version_id.encode()) != said:
        return False
    key = raw.get(KEY, place)
    return key == place or keys.stored_path(key) in (place, keys.stored_path(place))


def decode(key: bytes, stored: keys.StoredName, raw: Mapping[str, bytes], inode: Posix, size: int) -> Version:
    """A version from its stored name, its attributes (including the sidecar's) and its inode.

    A missing attribute leaves its field empty, above all the digest, which repair computes again. Raises StoreDamaged
    where an attribute contradicts the name or cannot be read.
    """
    try:
        said = raw.get(VERSION_ID, stored.id.encode()).decode()
        if said != stored.id:
            raise StoreDamaged(f"the version stored as {stored.id} says that it is {said}")
        origin, source = _decode_origin(raw.get(ORIGIN, b"user"))
        place, size = _decode_place(raw[PLACE]) if PLACE in raw else (None, size)
        others = {} if raw.keys() <= _FIELDS else {n: value for n, value in raw.items() if n not in _FIELDS}
        return Version(
            key=_key(raw[KEY], key) if KEY in raw else key,
            id=stored.id,
            created_ns=clock.within(clock.parse(raw[LAST_MODIFIED].decode()))
            if LAST_MODIFIED in raw
            else id_time(stored.id, inode),
            marker=stored.marker,
            size=0 if stored.marker else size,
            digest=bytes.fromhex(raw[BLAKE3].decode()) if BLAKE3 in raw else b"",
            origin=origin,
            source=source,
            storage_class=raw.get(STORAGE_CLASS, b"").decode(),
            posix=None if stored.marker else _decode_posix(raw[POSIX]) if POSIX in raw else inode,
            attrs=own(others) if others else {},
            tags=tags(others) if others else {},
            deliveries=_decode_deliveries(raw[DELIVERIES]) if DELIVERIES in raw else {},
            edited=_decode_edited(raw[EDITED]) if EDITED in raw else {},
            shortfall=_decode_shortfall(raw[SHORTFALL]) if SHORTFALL in raw else NO_SHORTFALL,
            taken=raw[TAKEN].decode() if TAKEN in raw else "",
            link=_decode_link(raw[LINK]) if LINK in raw else None,
            place=place,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamaged(f"the attributes of version {stored.id} cannot be read: {error}") from error


@lru_cache(maxsize=256)
def _decode_origin(said: bytes) -> tuple[Origin, str]:
    kind, _, source = said.decode().partition(":")
    return Origin(kind), source


def _key(said: bytes, key: bytes) -> bytes:
    """The key of a record that names one. key: the spelling of its stored path, with digests instead of long names."""
    if said == key or keys.stored_path(said) == key:
        return said
    if keys.is_hidden(key) or any(map(keys.is_digest, key.split(b"/"))):
        raise StoreDamaged(f"the version stored under {keys.shown(key)} says that it is of {keys.shown(said)}")
    return key  # the stored path is the authority, since users may write that attribute


def id_time(version_id: str, inode: Posix) -> int:
    """The creation time in a version id, to the millisecond; for a null version, the mtime of its file."""
    null = version_id == "null"
    return clock.within(inode.mtime_ns if null else (clock.decode_id(version_id) >> 80) * 1_000_000)


def own(raw: Mapping[str, bytes]) -> dict[str, bytes]:
    """The object's user attributes: every user.* attribute outside user.fsrepl.*."""
    return {name: value for name, value in raw.items() if not name.startswith(OURS)}


def tags(raw: Mapping[str, bytes]) -> dict[str, str]:
    named = {n.removeprefix(TAG): v for n, v in raw.items() if n.startswith(TAG) and n != TAG}
    return {name: value.decode("utf-8", "surrogateescape") for name, value in named.items()}


@lru_cache(maxsize=256)  # files mostly have the same few attributes
def is_ours(name: str) -> bool:
    """Whether an attribute describes the version, so that fsrepl writes it. A tag belongs to the object."""
    return name.startswith(OURS) and not name.startswith(TAG)


def encode_sidecar(raw: Mapping[str, bytes], *, compact: bool = False) -> bytes:
    def value(data: bytes) -> str | dict[str, str]:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(data).decode()}

    document = {name: value(data) for name, data in raw.items()}
    return (_compact(document) if compact else json.dumps(document, indent=1)).encode()


def decode_sidecar(data: bytes) -> dict[str, bytes]:
    """The attributes in a sidecar. Raises StoreDamaged where the data is not a sidecar."""
    try:
        document = json_text.loads(data)
        return {n: base64.b64decode(v["base64"]) if isinstance(v, dict) else v.encode() for n, v in document.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreDamaged(f"a sidecar cannot be read: {error}") from error


def with_delivery(version: Version, destination: str, recorded: DeliveryRecord) -> Version:
    return replace(version, deliveries={**version.deliveries, destination: recorded})


def without_delivery(version: Version, destination: str) -> Version:
    return replace(version, deliveries={n: d for n, d in version.deliveries.items() if n != destination})


_NOTHING_MORE = DeliveryRecord("", Status.PENDING)


def _encode_delivery(recorded: DeliveryRecord) -> dict[str, object] | str:
    """A delivery as JSON. The usual case, only a rule and a status, is one text of 52 bytes to fit an ext4 inode."""
    if replace(recorded, rule="", status=Status.PENDING) == _NOTHING_MORE:
        return f"{recorded.status} {recorded.rule}"
    out: dict[str, object] = {"rule": recorded.rule, "status": str(recorded.status)}
    for name in ("reason", "storage_class", "owner", "batch", "tracking", "since_ns"):
        if value := getattr(recorded, "job" if name == "batch" else name):
            out[name] = value
    if recorded.edit:
        out["edit"] = "metadata"
    if recorded.crossed_bytes is not None:
        out["crossed_bytes"] = recorded.crossed_bytes
    if recorded.before is not None:
        out["before"] = _encode_delivery(recorded.before)
    return out


def _decode_deliveries(data: bytes) -> dict[str, DeliveryRecord]:
    return {name: _decode_delivery(d) for name, d in json_text.loads(data).items()}


def _decode_delivery(d: dict[str, Any] | str) -> DeliveryRecord:
    if isinstance(d, str):  # "STATUS rule", where the delivery has no other field
        status, _, rule = d.partition(" ")
        return DeliveryRecord(rule, Status(status))
    return DeliveryRecord(
        _text(d["rule"]),
        Status(d["status"]),
        _text(d.get("reason", "")),
        _text(d.get("storage_class", "")),
        _text(d.get("owner", "")),
        _text(d.get("batch", "")),
        Tracking(d.get("tracking", "")),
        clock.within(_number(d.get("since_ns", 0))),
        "edit" in d,
        _number(d["crossed_bytes"], 0, 1 << 63) if "crossed_bytes" in d else None,
        _decode_delivery(d["before"]) if "before" in d else None,
    )


def _decode_edited(data: bytes) -> dict[str, str]:
    """The stamps of edits: see metadata.stamp_of."""
    stamps: dict[str, str] = json_text.loads(data)
    for stamp in stamps.values():
        int(stamp.partition(" ")[0])
    return stamps


# -- values of a record that somebody else may have written: of a wrong type they would be noticed much later


def _text(said: object) -> str:
    if not isinstance(said, str):
        raise ValueError(f"{said!r} is no text")
    return said


def _number(said: object, least: int = -(1 << 127), end: int = 1 << 127) -> int:
    if type(said) is not int or not least <= said < end:
        raise ValueError(f"{said!r} is no such number")
    return said


def posix_of(
    mode: object, uid: object, gid: object, mtime_ns: object, acl: bytes | None = None, default: bytes | None = None
) -> Posix:
    """Metadata of an inode. Raises ValueError for values that no inode has: system calls raise OverflowError."""
    return Posix(
        _number(mode, 0, 1 << 32), _number(uid, -1, 1 << 32), _number(gid, -1, 1 << 32),
        _number(mtime_ns, -_TIME_END_NS, _TIME_END_NS), acl, default,
    )  # fmt: skip


_TIME_END_NS = (1 << 63) * 1_000_000_000


def did_not_fit(raw: Mapping[str, bytes]) -> bool:
    """Whether a record states that its file had no room for fsrepl's attributes, so that none of them was lost."""
    try:
        return SHORTFALL in raw and VERSION_ID in _decode_shortfall(raw[SHORTFALL]).lacks
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # decoding the record reports the error


def _encode_shortfall(shortfall: Shortfall) -> bytes:
    document: dict[str, object] = {}
    if shortfall.posix is not None:
        document["posix"] = json_text.loads(_encode_posix(shortfall.posix))
    if shortfall.lacks:
        document["lacks"] = sorted(shortfall.lacks)
    return _compact(document).encode()


def _decode_shortfall(data: bytes) -> Shortfall:
    said = json_text.loads(data)
    lacks = frozenset(map(_text, said.get("lacks", ())))
    return Shortfall(_decode_posix_object(said["posix"]) if "posix" in said else None, lacks)


def _encode_place(place: Place, size: int) -> bytes:
    """A place as JSON, with the size of the content, which the empty stored file does not have."""
    document: dict[str, object] = {"tier": place.tier, "token": place.token, "size": size}
    if place.is_archived:
        document["form"] = str(place.form)
    if place.until_ns:
        document["until"] = clock.stamp(place.until_ns)
    return _compact(document).encode()


def _decode_place(data: bytes) -> tuple[Place, int]:
    said = json_text.loads(data)
    if not _TOKEN.fullmatch(said["token"]):  # it names a file
        raise ValueError(f"{said['token']!r} names no file of a tier")
    until_ns = clock.within(clock.parse(said["until"])) if "until" in said else 0
    size = _number(said["size"], 0, 1 << 63)
    return Place(_text(said["tier"]), said["token"], Form(said.get("form", "")), until_ns), size


def _decode_link(data: bytes) -> tuple[bytes, str]:
    version_id, _, key = data.partition(b" ")
    return key, version_id.decode()


def _encode_posix(posix: Posix) -> bytes:
    acl = f',"acl":"{base64.b64encode(posix.acl).decode()}"' if posix.acl else ""
    if posix.default_acl:
        acl += f',"default_acl":"{base64.b64encode(posix.default_acl).decode()}"'
    return (
        f'{{"mode":"{posix.mode:04o}","uid":{posix.uid},"gid":{posix.gid},"mtime_ns":{posix.mtime_ns}{acl}}}'.encode()
    )


_NATURAL = r"(0|[1-9][0-9]{0,19})"
_PLAIN_POSIX = re.compile(
    rf'\{{"mode":"([0-7]{{4,6}})","uid":{_NATURAL},"gid":{_NATURAL},"mtime_ns":(-?){_NATURAL}\}}'.encode()
)
"""The text that _encode_posix writes for a file without an ACL."""


def _decode_posix(data: bytes) -> Posix:
    if plain := _PLAIN_POSIX.fullmatch(data):  # parsing takes four times as long
        mode, uid, gid, sign, mtime_ns = plain.groups()
        return posix_of(int(mode, 8), int(uid), int(gid), int(sign + mtime_ns))
    return _decode_posix_object(json_text.loads(data))


def _decode_posix_object(said: Mapping[str, Any]) -> Posix:
    mode = int(said["mode"], 8) if isinstance(said["mode"], str) else said["mode"]
    acl, default = (base64.b64decode(said[name]) or None if name in said else None for name in ("acl", "default_acl"))
    return posix_of(mode, said["uid"], said["gid"], said["mtime_ns"], acl, default)
