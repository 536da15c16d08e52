"""The documents of one bucket, as values: what it is, its versioning, its rules, and what was removed from it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Set
from typing import Any, TypeVar

from msgspec import Struct, convert, field

from fsrepl.errors import Disowned, DocumentInvalid, Refused, reason
from fsrepl.model.lifecycle import Lifecycle
from fsrepl.model.rule import Replication
from fsrepl.model.version import Versioning
from fsrepl.s3 import lifecycle, replication
from fsrepl.storage import documents
from fsrepl.storage.fs import Fs

T = TypeVar("T")
_NAMES = (b"bucket.json", b"versioning.json", b"replication.json", b"lifecycle.json", b"rules.json", b"removed.jsonl")
NAMES = frozenset(_NAMES)


class RuleSince(Struct, frozen=True):
    """The start of a rule's effect: by the clock, and as a ctime of the bucket's filesystem."""

    content: str
    ctime_ns: int
    since: str


class Identity(Struct, frozen=True):
    """The content of bucket.json.

    trees: whether directories and symlinks are objects too. replaces: the uuids of lost buckets in whose place this one
    was made: content in tiers may still say that it is theirs.
    """

    uuid: str = ""
    trees: bool = False
    replaces: frozenset[str] = frozenset()


class Documents(Struct, frozen=True):
    """A bucket's settings as last read."""

    versioning: Versioning = Versioning.OFF
    replication: Replication | None = None
    since: Mapping[str, RuleSince] = field(default_factory=dict)
    removed: Set[tuple[bytes, str]] = frozenset()
    lifecycle: Lifecycle | None = None
    identity: Identity = Identity()


def looks(fs: Fs, meta: int, address: str) -> dict[bytes, tuple[int, ...]]:
    """How the files of the documents look, by name; equal as long as none has changed. meta: the bucket's .fsrepl.

    Raises Disowned for one of another user, DocumentInvalid for one that is no file, OSError.
    """
    seen: dict[bytes, tuple[int, ...]] = {}
    for name in _NAMES:
        try:
            found = fs.stat(meta, name)
        except FileNotFoundError:
            seen[name] = ()
            continue
        seen[name] = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        what = f"bucket {address}: .fsrepl/{name.decode()} is not a file of the daemon's own"
        if not stat.S_ISREG(found.st_mode):
            raise DocumentInvalid(f"{what}, but something else; move it away, and put back the file")
        if found.st_uid not in (fs.uid, 0):
            raise Disowned(f"{what}, but of uid {found.st_uid}; its content is not trusted")
    return seen


def read_identity(fs: Fs, meta: int, address: str) -> Identity | None:
    """The content of bucket.json; None where it is gone. Raises DocumentInvalid."""
    return _read(fs, meta, address, b"bucket.json", _parse_identity, None)


def read(
    fs: Fs,
    meta: int,
    address: str,
    identity: Identity,
    removed: Set[tuple[bytes, str]],
    named: Callable[[str], list[str]],
) -> Documents:
    """All documents. identity, removed: as read already. named: the addresses of all buckets with a name.

    Raises DocumentInvalid.
    """

    def parse_replication(document: dict[str, object]) -> Replication | None:
        return replication.read_replication(document, source=address, named=named)

    return Documents(
        _read(fs, meta, address, b"versioning.json", replication.parse_versioning, Versioning.OFF),
        _read(fs, meta, address, b"replication.json", parse_replication, None),
        _read(fs, meta, address, b"rules.json", _parse_since, {}),
        removed,
        _read(fs, meta, address, b"lifecycle.json", lifecycle.read_lifecycle, None),
        identity,
    )


def _read(
    fs: Fs, meta: int, address: str, name: bytes, parse: Callable[[dict[str, object]], T], otherwise: T
) -> T:  # fmt: skip
    """A parsed document; `otherwise` where it does not exist. Raises DocumentInvalid with the document's name."""
    try:
        found = documents.read_document(fs, meta, name)
        return otherwise if found is None else parse(found)
    except OSError as error:
        why = f"cannot be read: {reason(error)}"
    except ValueError as error:
        why = f"cannot be read: {error}"
    except KeyError as error:
        why = f"is not valid: it lacks {error}"
    except (Refused, TypeError) as error:
        why = f"is not valid: {error}"
    raise DocumentInvalid(
        f"bucket {address}: .fsrepl/{name.decode()} {why}; correct the file; `fsrepl check` reads it again"
    )


def _parse_identity(identity: dict[str, Any]) -> Identity:
    trees = identity.get("trees", False)
    if not isinstance(trees, bool):
        raise TypeError(f'"trees" is {trees!r}, and must be true or false')
    return Identity(str(identity["uuid"]), trees, frozenset(map(str, identity.get("replaces", ()))))


def _parse_since(document: dict[str, Any]) -> dict[str, RuleSince]:
    return convert(document, dict[str, RuleSince])
