"""Each bucket's documents as they were last read, kept in the site's state.

A bucket whose .fsrepl is lost, as to `rsync --delete` or `git clean -fdx`, is made again with them. They are copies:
nothing is ever read from here while the bucket has its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping

from fsrepl.storage.bucket import Bucket, OpenBucket
from fsrepl.storage.documents import read_document, remove_document, write_bytes
from fsrepl.storage.fs import Fs
from fsrepl.storage.site import Site

IDENTITY, VERSIONING, REPLICATION = b"bucket.json", b"versioning.json", b"replication.json"
LIFECYCLE, RULES, REMOVED = b"lifecycle.json", b"rules.json", b"removed.jsonl"
DOCUMENTS = (VERSIONING, REPLICATION, LIFECYCLE, RULES, REMOVED, IDENTITY)
SETTINGS = (VERSIONING, REPLICATION, LIFECYCLE)
"""Those that a person has made, and that hold for another disk too."""


class Keeper:
    """Keeps the documents of one bucket; asked again and again, it copies those that have changed."""

    def __init__(self) -> None:
        self._kept: Mapping[bytes, tuple[int, ...]] | None = None
        self._missing: frozenset[bytes] = frozenset()

    def keep(self, site: Site, bucket: OpenBucket) -> None:
        """Keep what has changed since the last look. Raises OSError, FsreplError.

        A document that is gone is forgotten once two looks in a row say so, and not at all where the store or
        versioning.json is gone as well: then somebody is removing .fsrepl.
        """
        seen = bucket.bucket.seen
        if seen == self._kept and not self._missing:
            return
        with site.open_state() as at:
            found = {name: _read(bucket.fs, bucket.meta, name) for name in DOCUMENTS}
            known = {name: _read(site.fs, at, _copy(bucket.address, name)) for name in DOCUMENTS}
            other = known[IDENTITY] not in (None, found[IDENTITY])
            if not other and known[VERSIONING] is not None and (found[VERSIONING] is None or bucket.versions < 0):
                return
            if other:  # of another bucket, which had this name
                for name in DOCUMENTS:
                    remove_document(site.fs, at, _copy(bucket.address, name))
                known = dict.fromkeys(DOCUMENTS)
            gone = frozenset(name for name in DOCUMENTS if found[name] is None and known[name] is not None)
            for name, data in found.items():
                if data is not None and data != known[name]:
                    write_bytes(site.fs, at, _copy(bucket.address, name), data)
            for name in gone & self._missing:
                remove_document(site.fs, at, _copy(bucket.address, name))
            self._missing = gone - self._missing
        self._kept = dict(seen)


def put_back(site: Site, address: str, meta: int, names: Collection[bytes]) -> list[bytes]:
    """Write those of a bucket's documents into its .fsrepl that are not there and are remembered; which they are."""
    put = []
    with site.open_state() as at:
        for name in names:
            data = _read(site.fs, at, _copy(address, name))
            if data is not None and _read(site.fs, meta, name) is None:
                write_bytes(site.fs, meta, name, data)
                put.append(name)
    return put


def has(site: Site, address: str, name: bytes) -> bool:
    """Whether a document of a bucket is remembered."""
    with site.open_state() as at:
        return _read(site.fs, at, _copy(address, name)) is not None


def document(site: Site, address: str, name: bytes) -> dict[str, object] | None:
    """A document of a bucket as it is remembered; None where it is not. Raises ValueError where it is no JSON."""
    with site.open_state() as at:
        return read_document(site.fs, at, _copy(address, name))


def identity(site: Site, bucket: Bucket) -> dict[str, object] | None:
    """What a bucket said that it is; None where that is not remembered."""
    with site.open_state() as at, contextlib.suppress(ValueError):
        found = read_document(site.fs, at, _copy(bucket.address, IDENTITY))
        if found is not None and found.get("uuid") == bucket.uuid:
            return found
    return None


def forget(site: Site, address: str) -> None:
    """The bucket was removed."""
    with site.open_state() as at:
        for name in DOCUMENTS:
            remove_document(site.fs, at, _copy(address, name))


def _copy(address: str, name: bytes) -> bytes:
    """The name of a copy in the state. No name of a region or bucket has a comma."""
    return os.fsencode(address.replace("/", ",")) + b"," + name


def _read(fs: Fs, at: int, name: bytes) -> bytes | None:
    try:
        fd = fs.open_read(at, name)
    except FileNotFoundError:
        return None
    try:
        return fs.read_all(fd)
    finally:
        fs.close(fd)
