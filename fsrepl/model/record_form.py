"""A version's record on a file: its fields <-> `user.fsrepl.record` and the attributes beside it. Pure.

model/attributes.py names the fields of a record, which include the object's attributes and tags:

    user.fsrepl.record        one JSON object with the names of fsrepl's fields, without their prefix; written once
    user.fsrepl.deliveries    the deliveries, which change, small enough for the inode
    user.fsrepl.tag.NAME      and the object's other attributes, each as it is

A whole record is the same JSON object with `deliveries` and `attributes` in it. It is complete by itself where the
attributes beside it are a view's, which users may change. Earlier builds wrote each field as a separate attribute, and
a whole record as an object of attribute names. Both forms are read. Source: design.md, section 2.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, clock, json_text, keys
from fsrepl.model.attributes import (
    BLAKE3,
    DELIVERIES,
    EDITED,
    KEY,
    LAST_MODIFIED,
    ORIGIN,
    OURS,
    PLACE,
    POSIX,
    RECORD,
    RECORDS,
    SHORTFALL,
    STATUS,
    STORAGE_CLASS,
    VERSION_ID,
    is_ours,
)
from fsrepl.model.version import NO_SHORTFALL, NULL, Version

_NESTED = frozenset({DELIVERIES, EDITED, PLACE, POSIX, SHORTFALL})
"""Fields whose value is JSON."""
_ATTRIBUTES = "attributes"
"""The field of only a whole record: the object's attributes and tags."""

_compact = json.JSONEncoder(separators=(",", ":")).encode

_NATURAL = r"(?:0|[1-9][0-9]{0,19})"
_POSIX = rf'\{{"mode":"[0-7]{{4,6}}","uid":{_NATURAL},"gid":{_NATURAL},"mtime_ns":-?{_NATURAL}\}}'
_PLAIN_POSIX = re.compile(_POSIX.encode())
"""The posix field of a file without an ACL, as attributes.py writes it. It differs from file to file."""
_USUAL_FIELDS = (VERSION_ID, BLAKE3, LAST_MODIFIED, ORIGIN, STORAGE_CLASS, POSIX)
_MEMBERS = (
    r'"version-id":"([0-9A-Za-z]+)"(?:,"blake3":"([0-9a-f]{64})")?,"last-modified":"([0-9T:.Z-]+)"'
    rf',"origin":"([A-Za-z0-9:/._-]+)"(?:,"storage-class":"([A-Z_]+)")?(?:,"posix":({_POSIX}))?'
)
_USUAL = re.compile(rf"\{{{_MEMBERS}\}}".encode())
"""The record of most versions and markers, as `on_file` writes it: in this form each field's value stands as it is."""
_USUAL_WHOLE = re.compile(rf' \{{{_MEMBERS},"key":"([ !#-\[\]-~]+)","{_ATTRIBUTES}":\{{\}}\}}'.encode())
"""A whole record of the same form, as `whole` writes it."""


# -- written


def of(version: Version) -> dict[str, bytes]:
    """The attributes of a version's record, as on_file makes them of its fields: of most versions in a single step."""
    if (members := _usual(version)) is None:
        return on_file(attributes.encode(version))
    found = {RECORD: f"{{{members}{_own(version)}}}".encode()}
    if version.deliveries:
        found[DELIVERIES] = attributes.encode_deliveries(version)
    if version.attrs or version.tags:
        found.update(attributes.of_object(version))
    return found


def whole_of(version: Version) -> bytes:
    """A version's record in one value, with its key, as whole makes it of the fields."""
    if _has_more(version) or (members := _usual(version)) is None:
        return whole({**attributes.encode(version), KEY: version.key})
    return _whole(version, members)


def _whole(version: Version, members: str) -> bytes:
    return f' {{{members}{_own(version)},"key":{_quoted(version.key)},"{_ATTRIBUTES}":{{}}}}'.encode()


def _has_more(version: Version) -> bool:
    """Whether a record has more than fields that never change."""
    return bool(version.deliveries or version.attrs or version.tags)


def shown_of(version: Version) -> dict[str, bytes]:
    """The fields of a version's record that are also shown singly: not those that the name and the inode tell."""
    if (members := _usual(version)) is not None:
        found = {RECORD: f"{{{members}}}".encode()}
        return found | {DELIVERIES: attributes.encode_deliveries(version)} if version.deliveries else found
    return shown(attributes.encode(version))


def shared_of(version: Version) -> tuple[bytes, dict[str, bytes]]:
    """whole_of and shown_of: what a file has that is a view too."""
    if _has_more(version) or (members := _usual(version)) is None:
        return whole_of(version), shown_of(version)
    return _whole(version, members), {RECORD: f"{{{members}}}".encode()}


def shown_beside(data: bytes) -> bytes | None:
    """The value of RECORD that shown_of makes of a version with this whole record, in most cases; else None."""
    usual = _USUAL_WHOLE.fullmatch(data)
    if usual is None or usual[1] == NULL.encode() or keys.is_hidden(usual[7]):
        return None
    return data[1 : usual.end(5 if usual[5] else 4) + 1] + b"}"  # up to the posix field, whose values the inode has


def shown(fields: Mapping[str, bytes]) -> dict[str, bytes]:
    """The fields of a record that are also shown singly."""
    needless = {POSIX}
    if not keys.is_hidden(fields.get(KEY, b"")) and fields.get(VERSION_ID) != NULL.encode():
        needless.add(KEY)
    said = on_file({name: value for name, value in fields.items() if name not in needless})
    return {name: value for name, value in said.items() if name in RECORDS}


def _own(version: Version) -> str:
    """The posix field of such a record, after its other members."""
    if (posix := version.posix) is None:
        return ""
    return f',"posix":{{"mode":"{posix.mode:04o}","uid":{posix.uid},"gid":{posix.gid},"mtime_ns":{posix.mtime_ns}}}'


def _usual(version: Version) -> str | None:
    """The members of the record of a version that has no others than _USUAL_FIELDS, without the posix field; else
    None."""
    posix = version.posix
    if (
        version.edited
        or version.taken
        or version.link
        or version.place is not None
        or version.shortfall != NO_SHORTFALL
        or version.id == NULL
        or (posix is not None and (posix.acl or posix.default_acl))
        or keys.is_hidden(version.key)
    ):
        return None
    digest = f',"blake3":"{version.digest.hex()}"' if version.digest else ""
    origin = _replica_of(version.source) if version.source else f'"{version.origin}"'
    kind = version.storage_class
    if kind:
        kind = "" if kind == "STANDARD" else f',"storage-class":{_quoted(kind.encode())}'
    modified = clock.stamp(version.created_ns)
    return f'"version-id":"{version.id}"{digest},"last-modified":"{modified}","origin":{origin}{kind}'


@lru_cache(maxsize=64)
def _replica_of(source: str) -> str:
    """The origin of the replicas of a source, as JSON."""
    return _quoted(f"replica:{source}".encode())


def on_file(fields: Mapping[str, bytes]) -> dict[str, bytes]:
    """The attributes of a record on a file that users cannot write to."""
    members, beside = [], {}
    for name, value in fields.items():
        if name != DELIVERIES and is_ours(name):
            members.append(_member(name, value))
        else:
            beside[name] = value
    return {RECORD: _object(members), **beside}


def whole(fields: Mapping[str, bytes]) -> bytes:
    """A record in one value.

    It begins with a space, since the same file shows most of these words in another attribute. ext4 finds blocks of
    attributes by a hash that XORs their words: at equal distance they cancel out, all files have one hash, and each
    new block is compared with all others. Source: Linux, fs/ext4/xattr.c, ext4_xattr_rehash.
    """
    members, others = [], {}
    for name, value in fields.items():
        if is_ours(name):
            members.append(_member(name, value))
        else:
            others[name] = _text(value)
    return b" " + _object([*members, f'"{_ATTRIBUTES}":{_compact(others) if others else "{}"}'])


def _object(members: Iterable[str]) -> bytes:
    return f"{{{','.join(members)}}}".encode()


def _member(name: str, value: bytes) -> str:
    """One field as a member of a JSON object. Nested JSON is inserted unparsed where its form is known."""
    return _name(name) + (_nested(value) if name in _NESTED else _quoted(value))


@lru_cache(maxsize=64)
def _name(name: str) -> str:
    return _compact(name.removeprefix(OURS)) + ":"


def _nested(value: bytes) -> str:
    return value.decode() if _PLAIN_POSIX.fullmatch(value) else _parsed(value)


@lru_cache(maxsize=256)
def _parsed(value: bytes) -> str:
    """A nested value as JSON; a value that is no JSON object stays text, and decoding reports it.

    The values are cached, as the versions of a burst mostly have the same deliveries.
    """
    try:
        nested = json_text.loads(value)
    except ValueError:
        nested = None
    return _compact(nested if isinstance(nested, dict) else _text(value))


def _quoted(value: bytes) -> str:
    try:
        return encode_basestring_ascii(value.decode())
    except UnicodeDecodeError:
        return _compact(_text(value))


def _text(value: bytes) -> object:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


# -- read


def glance(data: bytes, version_id: str, created_ns: int) -> tuple[bytes, str] | None:
    """The BLAKE3, empty for a marker, and the origin in the record of most versions; None for a record of another
    form, or of another version or time."""
    usual = _USUAL.fullmatch(data)
    if usual is None or usual[1] != version_id.encode() or usual[3] != clock.stamp(created_ns).encode():
        return None
    return bytes.fromhex(usual[2].decode()) if usual[2] else b"", usual[4].decode()


def read(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The fields of a record from a file's attributes. Raises StoreDamaged where the record cannot be read.

    An existing record takes precedence: separate attributes named like its fields were left by an earlier build.
    """
    rest = {name: value for name, value in found.items() if name not in (RECORD, STATUS)}
    if RECORD not in found:
        return rest
    if usual := _USUAL.fullmatch(found[RECORD]):  # parsing takes ten times as long
        fields = {name: value for name, value in zip(_USUAL_FIELDS, usual.groups(), strict=True) if value is not None}
    else:
        document = _parse(found[RECORD])
        if is_whole(document):
            return _fields_of_whole(document)
        fields = _fields(document)
    for name, value in rest.items():
        if name == DELIVERIES or not is_ours(name):
            fields[name] = value
    return fields


def read_whole(data: bytes) -> dict[str, bytes] | None:
    """The fields of a whole record; None for a record completed by the attributes beside it.

    Raises StoreDamaged for anything else.
    """
    if usual := _USUAL_WHOLE.fullmatch(data):
        named = zip((*_USUAL_FIELDS, KEY), usual.groups(), strict=True)
        return {name: value for name, value in named if value is not None}
    document = _parse(data)
    return _fields_of_whole(document) if is_whole(document) else None


def is_whole(document: Mapping[str, object]) -> bool:
    return _ATTRIBUTES in document or _is_former(document)


def _is_former(document: Iterable[str]) -> bool:
    return any(name.startswith(OURS) for name in document)


def _fields_of_whole(document: dict[str, object]) -> dict[str, bytes]:
    if _is_former(document):
        fields = {name: _bytes(value) for name, value in document.items()}
        fields.pop(STATUS, None)
        return fields
    others = document.pop(_ATTRIBUTES)
    if not isinstance(others, dict):
        raise StoreDamaged("a record's attributes cannot be read")
    return _fields(document) | {name: _bytes(value) for name, value in others.items()}


def _fields(document: Mapping[str, object]) -> dict[str, bytes]:
    return {OURS + name: _bytes(value) for name, value in document.items()}


def _parse(data: bytes) -> dict[str, object]:
    try:
        document = json_text.loads(data)
    except ValueError as error:
        raise StoreDamaged(f"a record cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise StoreDamaged("a record is no JSON object")
    return document


def _bytes(value: object) -> bytes:
    try:
        if isinstance(value, dict):
            if value.keys() == {"base64"}:
                return base64.b64decode(value["base64"])
            return _compact(value).encode()
        if isinstance(value, str):
            return value.encode()
    except (ValueError, TypeError) as error:
        raise StoreDamaged(f"a record cannot be read: {error}") from error
    raise StoreDamaged("a record cannot be read: a value is neither text nor an object")
