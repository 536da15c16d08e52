"""A key <-> the file name of its versions in the version store.

A version of `2026/cat.jpg` is the file `2026/cat.jpg;VERSION-ID` below the version store, a marker has `;deleted` after
that, a sidecar `;meta.json`. A component that is too long, or that reads like one of these names, is stored under a
digest. The record, user.fsrepl.record, then holds the whole key. Source: design.md, section 2.
"""

from __future__ import annotations

import base64
import contextlib
import re
from functools import lru_cache

from msgspec import Struct

from fsrepl.model import digests

MARKER = b";deleted"
SIDECAR = b";meta.json"
RESERVED = b".fsrepl"
"""The only name, at the top of a bucket, that is never a key."""

_ID = rb"(?:[0-7][0-9A-HJKMNP-TV-Z]{25}|null)"
_NAME_MAX = 255
_COMPONENT_MAX = _NAME_MAX - len(b";") - 26 - len(SIDECAR)
_AMBIGUOUS = re.compile(rb"(?s).*;" + _ID + rb"(?:;deleted|;meta\.json)?")
_NO_NAMES = frozenset({b"", b".", b".."})
_HASHED = re.compile(rb"~[0-9a-f]{32}")
_SHOWN_BYTE = re.compile(rb"\\x([0-9a-f]{2})")
_STORED = re.compile(rb"(?s)(?P<name>.*);(?P<id>" + _ID + rb")(?P<kind>;deleted|;meta\.json)?")


class StoredName(Struct, frozen=True, gc=False):
    """The parts of a file name in the version store. name is the last component as stored."""

    name: bytes
    id: str
    marker: bool
    sidecar: bool


@lru_cache(maxsize=1024)  # each step of a batch asks for the keys of that batch
def split(key: bytes) -> tuple[bytes, bytes]:
    """The directory of a key (empty at the top, without a slash at its end) and its last component."""
    head, _, name = key.rpartition(b"/")
    return head, name


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def stored_component(component: bytes) -> bytes:
    if b";" not in component and component[:1] != b"~" and len(component) <= _COMPONENT_MAX:
        return component  # the common case
    if len(component) > _COMPONENT_MAX or _AMBIGUOUS.fullmatch(component) or _HASHED.match(component):
        return b"~" + digests.short(component).encode()
    return component


def is_digest(stored: bytes) -> bool:
    """Whether a stored component is a digest, whose order is not that of its key."""
    return _HASHED.match(stored) is not None


@lru_cache(maxsize=4096)
def stored_directory(directory: bytes) -> bytes:
    """The directory for versions of a directory's keys, relative to the version store."""
    return b"/".join(stored_component(part) for part in directory.split(b"/")) if directory else b""


def stored_path(key: bytes) -> bytes:
    """A key as spelled in the version store, without a version."""
    directory, name = split(key)
    return join(stored_directory(directory), stored_component(name))


@lru_cache(maxsize=4096)  # asked when a version is published, and again when its delivery is recorded
def stored_name(name: bytes, version_id: str, *, marker: bool = False) -> bytes:
    """The file name of a version, from the last component of its key."""
    return stored_component(name) + b";" + version_id.encode() + (MARKER if marker else b"")


def tier_name(token: str, key: bytes) -> bytes:
    """The file name of a version's content in a tier: a random token, and the last component for people who look."""
    return token.encode() + b";" + stored_component(split(key)[1])


def parse(stored: bytes) -> StoredName | None:
    """The parts of a file name in the version store; None for a foreign file."""
    match = _STORED.fullmatch(stored)
    if match is None:
        return None
    kind = match["kind"]
    return StoredName(match["name"], match["id"].decode(), kind == MARKER, kind == SIDECAR)


def displaced_name(token: bytes, key: bytes) -> bytes:
    """The name in .fsrepl/displaced for a file removed from a key's view.

    The name contains the key itself, which saves a search; a digest replaces a key that is too long for a name.
    """
    spelled = token + b";=" + base64.urlsafe_b64encode(key)
    return spelled if len(spelled) <= _NAME_MAX else token + b";" + digests.short(key).encode()


def displaced_key(name: bytes) -> tuple[bytes | None, str]:
    """The key in a displaced file's name, or None and the digest that replaces the key."""
    tail = name.rpartition(b";")[2]
    if tail.startswith(b"="):
        with contextlib.suppress(ValueError):
            return base64.b64decode(tail[1:], altchars=b"-_", validate=True), ""
    return None, tail.decode("ascii", "replace")


def is_hidden(key: bytes) -> bool:
    """Whether the stored path does not spell the key, so that the record must contain the key."""
    if b";" not in key and b"~" not in key and len(key) <= _COMPONENT_MAX:
        return False
    return any(stored_component(part) != part for part in key.split(b"/"))


def is_directory(key: bytes) -> bool:
    """Whether a key is that of a directory in a tree bucket."""
    return key[-1:] == b"/"  # no call: each step of each file comes by here


def place(key: bytes) -> tuple[bytes, bytes]:
    """The directory of a key's view, and its name there. Of the key `a/b/`, a directory, these are `a` and `b`.

    split() divides such a key into `a/b` and an empty name instead: that is where its versions are stored.
    """
    return split(key.removesuffix(b"/"))


def is_key(key: bytes) -> bool:
    """Whether a relative path can name an object: no empty, `.` or `..` component, nothing below `.fsrepl`.

    A slash at the end is that of a directory in a tree bucket.
    """
    parts = key.removesuffix(b"/").split(b"/")
    return parts[0] != RESERVED and b"\0" not in key and _NO_NAMES.isdisjoint(parts)


def shown(key: bytes) -> str:
    """A key for display: bytes that are not UTF-8, and control characters, as `\\xNN`."""
    text = key.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode("utf-8", "surrogatepass")) for c in text
    )


def unshown(name: bytes) -> bytes:
    """The key that is shown as this name, unless that is a key itself: `\\xNN` becomes a byte again."""
    return _SHOWN_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), name)


def text(key: bytes) -> str:
    """A key as a string for JSON, which escapes control characters: bytes that are not UTF-8 as `\\xNN`."""
    return key.decode("utf-8", "backslashreplace")


def is_exact(key: bytes) -> bool:
    """Whether text(key) is the key itself: valid UTF-8."""
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


Document = dict[str, object]


# -- as JSON


def key_document(key: bytes) -> Document:
    """A key as JSON: its text, and also its bytes where the text is inexact."""
    document: Document = {"Key": text(key)}
    if not is_exact(key):
        document["KeyBase64"] = base64.b64encode(key).decode()
    return document
