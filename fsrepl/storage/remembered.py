"""Copies of each bucket's documents as last read, in the site's state.

A bucket whose .fsrepl is lost, as to `rsync --delete` or `git clean -fdx`, is restored from them. While the bucket has
its own documents, the copies are not read.
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
"""Documents made by a person, which also apply to another disk."""


class Keeper:
    """Keeper of one bucket's copies; each call copies the documents that changed."""

    def __init__(self) -> None:
        self._kept: Mapping[bytes, tuple[int, ...]] | None = None
        self._missing: frozenset[bytes] = frozenset()

    def is_done(self, bucket: Bucket) -> bool:
        """Whether the last call has left nothing for the next one."""
        return bucket.seen == self._kept and not self._missing

    def keep(self, site: Site, bucket: OpenBucket) -> None:
        """Copy documents that changed since the last call. Raises OSError, FsreplError.

        The copy of a missing document is deleted after two calls in a row find it missing. It is kept where the store
        or versioning.json is missing as well, since .fsrepl is then being removed.
        """
        if self.is_done(bucket.bucket):
            return
        seen = bucket.bucket.seen
        with site.open_state() as at:
            copies = set(site.fs.names(at))
            found = {name: _read(bucket.fs, bucket.meta, name) if seen.get(name) else None for name in DOCUMENTS}
            known = {
                name: _read(site.fs, at, copy) if (copy := _copy(bucket.address, name)) in copies else None
                for name in DOCUMENTS
            }
            other = known[IDENTITY] not in (None, found[IDENTITY])
            if not other and known[VERSIONING] is not None and (found[VERSIONING] is None or bucket.versions < 0):
                return
            if other:  # the copies belong to another bucket, which had this name
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
    """Write the remembered documents that are missing from a bucket's .fsrepl; the names of those written."""
    put = []
    with site.open_state() as at:
        for name in names:
            data = _read(site.fs, at, _copy(address, name))
            if data is not None and _read(site.fs, meta, name) is None:
                write_bytes(site.fs, meta, name, data)
                put.append(name)
    return put


def has(site: Site, address: str, name: bytes) -> bool:
    """Whether a bucket's document is remembered."""
    with site.open_state() as at:
        return _read(site.fs, at, _copy(address, name)) is not None


def document(site: Site, address: str, name: bytes) -> dict[str, object] | None:
    """A bucket's document as remembered; None without one. Raises ValueError where it is no JSON."""
    with site.open_state() as at:
        return read_document(site.fs, at, _copy(address, name))


def was_tree(site: Site, address: str) -> bool:
    """Whether a bucket was a tree bucket, as remembered, on any disk that it was on."""
    with contextlib.suppress(ValueError):
        return (document(site, address, IDENTITY) or {}).get("trees") is True
    return False


def identity(site: Site, bucket: Bucket) -> dict[str, object] | None:
    """The identity of a bucket as remembered; None without one."""
    with site.open_state() as at, contextlib.suppress(ValueError):
        found = read_document(site.fs, at, _copy(bucket.address, IDENTITY))
        if found is not None and found.get("uuid") == bucket.uuid:
            return found
    return None


def forget(site: Site, address: str) -> None:
    """Delete the copies of a removed bucket's documents."""
    with site.open_state() as at:
        for name in DOCUMENTS:
            remove_document(site.fs, at, _copy(address, name))


def _copy(address: str, name: bytes) -> bytes:
    """The name of a copy in the state. Names of regions and buckets have no comma."""
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
