"""Queries on a bucket's trees for readers: objects, their versions, one record, its content.

All results come from the version store, which is the truth, without the daemon or the journal. Lists are in S3's order:
keys ascending byte by byte, and the newest version of a key first. Source: s3-semantics, section 4; the JSON is that of
design.md, section 5.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fsrepl.errors import Refused, StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import Version, Versioning
from fsrepl.storage import unversioned, versions
from fsrepl.storage.bucket import Bucket, OpenBucket, content_digest
from fsrepl.storage.site import Site


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list: its start (after a key, or a version of it), and its length; 0: to the end."""

    after_key: bytes | None = None
    after_version: str = ""
    most: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One version or marker in a list."""

    version: Version
    latest: bool


def versions_below(bucket: OpenBucket, prefix: bytes = b"") -> Iterator[list[Version]]:
    """The versions and markers of each key with a prefix, newest first; keys in byte order.

    A directory's names are sorted when it is reached, so that memory depends on one directory and not on the bucket.
    Contradictory records are skipped; `fsrepl verify` reports them.
    """
    if bucket.bucket.versioning is Versioning.OFF:
        yield from ([version] for version in unversioned.below(bucket, prefix))
        return
    directory, _ = keys.split(prefix)
    path = keys.stored_directory(directory)
    with contextlib.suppress(FileNotFoundError):
        for group in _walk(bucket, path, prefix) if path == directory else _sorted_walk(bucket, path):
            if group[0].key.startswith(prefix):
                yield group


def _walk(bucket: OpenBucket, path: bytes, prefix: bytes) -> Iterator[list[Version]]:
    """The versions in one directory of the store and below, in the order of keys."""
    return versions.in_depth(path, lambda below: _steps(bucket, below, prefix))


def _steps(bucket: OpenBucket, path: bytes, prefix: bytes) -> Iterator[list[Version] | bytes]:
    """The entries of one directory in order: a key's versions, or a directory, which sorts as its name and a slash."""
    files, below = _listed(bucket, path)
    digests = [group for name in below if keys.is_digest(name) for group in _sorted_walk(bucket, keys.join(path, name))]
    digests += _read_all(bucket, path, {n: found for n, found in files.items() if keys.is_digest(n)})
    digests.sort(key=lambda group: group[0].key, reverse=True)
    todo = [(keys.join(path, name), False) for name in files if not keys.is_digest(name)]
    todo += [(keys.join(path, name) + b"/", True) for name in below if not keys.is_digest(name)]
    for place, is_directory in sorted(todo):
        if not place.startswith(prefix) and not (is_directory and prefix.startswith(place)):
            continue
        while digests and digests[-1][0].key < place:
            yield digests.pop()
        if is_directory:
            yield place[:-1]
        else:
            name = keys.split(place)[1]
            yield from _read_all(bucket, path, {name: files[name]})
    yield from reversed(digests)


def _sorted_walk(bucket: OpenBucket, path: bytes) -> list[list[Version]]:
    """The versions below a directory stored under a digest: their order is known only after reading all of them."""
    found: list[list[Version]] = []
    todo = [path]
    while todo:
        path = todo.pop()
        files, below = _listed(bucket, path)
        found += _read_all(bucket, path, files)
        todo += [keys.join(path, name) for name in below]
    return sorted(found, key=lambda group: group[0].key)


def _listed(bucket: OpenBucket, path: bytes) -> tuple[dict[bytes, list[tuple[bytes, keys.StoredName]]], list[bytes]]:
    """The stored versions by component, and the subdirectories, of a directory of the store."""
    files: dict[bytes, list[tuple[bytes, keys.StoredName]]] = {}
    below = []
    fd = bucket.fs.open_dir(bucket.versions, path)
    try:
        for entry in bucket.fs.entries(fd):
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                below.append(name)
            elif entry.is_file(follow_symlinks=False) and (stored := keys.parse(name)) and not stored.sidecar:
                files.setdefault(stored.name, []).append((name, stored))
    finally:
        bucket.fs.close(fd)
    return files, below


def _read_all(
    bucket: OpenBucket, path: bytes, files: Mapping[bytes, Iterable[tuple[bytes, keys.StoredName]]]
) -> list[list[Version]]:
    """The records of stored versions in one directory, one list per key. Versions removed meanwhile are omitted."""
    groups: dict[bytes, list[Version]] = {}
    fd = bucket.fs.open_dir(bucket.versions, path)
    try:
        for found in files.values():
            for name, stored in found:
                with contextlib.suppress(FileNotFoundError, StoreDamaged):
                    version = versions.read_stored(bucket, fd, keys.join(path, stored.name), stored, name)
                    groups.setdefault(version.key, []).append(version)
    finally:
        bucket.fs.close(fd)
    return [sorted(group, key=lambda version: version.order, reverse=True) for group in groups.values()]


def entries(bucket: OpenBucket, prefix: bytes, *, versions: bool, page: Page) -> tuple[list[Entry], bool]:
    """The entries of one page, and whether more follow. Without versions: current versions that are no markers."""
    out: list[Entry] = []
    for group in versions_below(bucket, prefix):
        key = group[0].key
        if page.after_key is not None and (key < page.after_key or (key == page.after_key and not page.after_version)):
            continue
        skip = key == page.after_key
        for index, version in enumerate(group if versions else group[:1]):
            if skip:
                skip = version.id != page.after_version
                continue
            if not versions and version.marker:
                continue
            if page.most and len(out) == page.most:
                return out, True
            out.append(Entry(version, index == 0))
    return out, False


def find(bucket: OpenBucket, key: bytes, version_id: str | None) -> Entry:
    """The current version of a key, or the one with an id. Raises Refused like S3 (s3-semantics, section 4)."""
    where = f"{bucket.address}/{keys.shown(key)}"
    group = versions_of(bucket, key)
    if not group:
        raise Refused("NoSuchKey", f"there is no {where}")
    if version_id is None:
        if group[0].marker:
            raise Refused("NoSuchKey", f"{where} is deleted: its current version {group[0].id} is a delete marker")
        return Entry(group[0], True)
    for index, version in enumerate(group):
        if version.id == version_id:
            if version.marker:
                raise Refused("MethodNotAllowed", f"version {version_id} of {where} is a delete marker")
            return Entry(version, index == 0)
    raise Refused("NoSuchVersion", f"{where} has no version {version_id}")


def versions_of(bucket: OpenBucket, key: bytes) -> list[Version]:
    """The versions and markers of one key, newest first."""
    if bucket.bucket.versioning is Versioning.OFF:
        found = unversioned.read(bucket, key)
        return [found] if found else []
    if not keys.is_key(key):
        return []
    directory, last = keys.split(key)
    path, component = keys.stored_directory(directory), keys.stored_component(last)
    try:
        fd = bucket.fs.open_dir(bucket.versions, path)
    except FileNotFoundError:
        return []
    try:
        names = [os.fsencode(entry.name) for entry in bucket.fs.entries(fd)]
        mine = [(n, s) for n in names if (s := keys.parse(n)) and not s.sidecar and s.name == component]
        guess = keys.join(directory, component)
        records = [
            versions.read_stored(bucket, fd, guess, keys.StoredName(component, s.id, s.marker, False), n)
            for n, s in mine
        ]
    finally:
        bucket.fs.close(fd)
    return sorted((v for v in records if v.key == key), key=lambda version: version.order, reverse=True)


def content(bucket: OpenBucket, version: Version) -> Iterator[bytes]:
    """A version's content, hashed before any of it is returned. Raises StoreDamaged where the hash does not match."""
    if bucket.bucket.versioning is Versioning.OFF:
        yield from unversioned.content(bucket, version.key)
        return
    fd = versions.open_version(bucket, version.key, version.id)
    try:
        if content_digest(bucket, fd) != version.digest:
            raise StoreDamaged(
                f"version {version.id} of {bucket.address}/{keys.shown(version.key)} no longer matches its BLAKE3 and "
                "is not given out; `fsrepl verify --repair` looks for a good copy"
            )
        yield from bucket.fs.chunks(fd)
    finally:
        bucket.fs.close(fd)


# -- with checks of the site


def open_bucket(site: Site, address: str) -> OpenBucket:
    """A bucket opened for reading objects, versioned or not. Raises FsreplError where it is offline."""
    return site.bucket(address).open()


def open_versioned(site: Site, address: str) -> OpenBucket:
    """A bucket opened for reading versions. Raises Refused(InvalidRequest) for a never-versioned one."""
    bucket: Bucket = site.bucket(address)
    opened = bucket.open()
    if bucket.versioning is Versioning.OFF:
        opened.close()
        raise Refused(
            "InvalidRequest", f"{address} was never versioned; `fsrepl versioning enable {address}` makes it so"
        )
    return opened
