"""Queries on a bucket's trees for readers: objects, their versions, one record, its content.

The version store is the truth about which versions exist. Records come from there too, except those of a list that the
caller's journal has, so that a list of many keys need not read as many files. Lists are in S3's order: keys
ascending byte by byte, and the newest version of a key first. Source: s3-semantics, section 4; the JSON is that of
design.md, section 5.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from fsrepl.errors import Refused, StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import Version, Versioning
from fsrepl.storage import unversioned, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import FileType
from fsrepl.storage.journal.listed import Listed
from fsrepl.storage.site import Site
from fsrepl.storage.walk import Directory, in_key_order

_Stored = tuple[bytes, keys.StoredName]
"""A file name in the store, and its parts."""


class Page(Struct, frozen=True):
    """A part of a list: its start (after a key, or a version of it), and its length; 0: to the end."""

    after_key: bytes | None = None
    after_version: str = ""
    most: int = 0


class Entry(Struct, frozen=True, gc=False):
    """One version or marker in a list."""

    version: Version
    latest: bool


class Wanted(Struct, frozen=True):
    """The part of a bucket that is listed. start: keys before this one may be left out. known: its versions by the
    journal, None where that is not trusted. newest: of each key only the newest version or marker."""

    prefix: bytes = b""
    start: bytes = b""
    known: Listed | None = None
    newest: bool = False


def versions_below(bucket: OpenBucket, wanted: Wanted | None = None) -> Iterator[list[Version]]:
    """The versions and markers of each key with a prefix, newest first; keys in byte order.

    A directory's names are sorted when it is reached, so that memory depends on one directory and not on the bucket.
    Contradictory records are skipped; `fsrepl verify` reports them. Those that the journal has are not read: versions
    from there lack their metadata.
    """
    wanted = wanted or Wanted()
    directory, _ = keys.split(wanted.prefix)
    if directory and not keys.is_key(directory):
        return  # as `a/./b` and `../b`: no key begins like that, and as a path it leads elsewhere
    if bucket.bucket.versioning is Versioning.OFF:
        yield from ([version] for version in unversioned.below(bucket, wanted.prefix))
        return
    path = keys.stored_directory(directory)
    for group in _in_order(bucket, path, wanted) if path == directory else _sorted(bucket, path):
        if group[0].key.startswith(wanted.prefix):
            yield group


class _Unread(Struct, frozen=True, gc=False):
    """The stored versions of one key, whose records are read when the list comes to them."""

    path: bytes
    name: bytes
    names: list[_Stored]


def _in_order(bucket: OpenBucket, start: bytes, wanted: Wanted) -> Iterator[list[Version]]:
    """The versions in one directory of the store and below, in the order of keys."""
    prefix = wanted.prefix

    def read(directory: Directory) -> Iterator[tuple[bytes, list[Version] | _Unread]]:
        path, spelled, hidden = directory.path, defaultdict[bytes, list[_Stored]](list), list[_Stored]()
        for name, kind in directory.entries:
            if kind is FileType.DIRECTORY and keys.is_digest(name):
                yield from ((group[0].key, group) for group in _sorted(bucket, keys.join(path, name)))
            elif stored := versions.stored_as(name, kind):
                (hidden if keys.is_digest(stored.name) else spelled[stored.name]).append((name, stored))
        yield from ((group[0].key, group) for group in _read(bucket, directory.fd, path, hidden))
        for component, names in spelled.items():
            if (key := keys.join(path, component)).startswith(prefix) and key >= wanted.start:
                yield key, _Unread(path, component, names)

    def enters(path: bytes) -> bool:
        is_spelled = not keys.is_digest(keys.split(path)[1])
        is_wanted = path.startswith(prefix) or prefix.startswith(path + b"/")
        return is_spelled and is_wanted and path + b"0" > wanted.start  # 0 follows the slash

    for found in in_key_order(bucket.fs, bucket.versions, start, read, enters):
        if isinstance(found, _Unread):
            with contextlib.suppress(FileNotFoundError):
                yield from _group(bucket, found, wanted)
        else:
            yield found


def _group(bucket: OpenBucket, unread: _Unread, wanted: Wanted) -> list[list[Version]]:
    """The versions of one key, or the newest, from the journal as far as that has them; else from their records."""
    names = unread.names
    known = wanted.known.of(unread.path, unread.name) if wanted.known is not None else {}
    if len(names) == 1 and (one := known.get((names[0][1].id, names[0][1].marker))) and (one.marker or one.digest):
        return [[one]]  # the common case
    told = [(version, each) for each in names if (version := known.get((each[1].id, each[1].marker)))]
    if len(told) == len(names):
        told.sort(key=lambda each: each[0].order, reverse=True)
        found = [version for version, _ in (told[:1] if wanted.newest else told)]
        if all(version.marker or version.digest for version in found):
            return [found]
        if not wanted.newest:
            found = [version for version in found if version.marker or version.digest]
            names = [each for version, each in told if not (version.marker or version.digest)]
            for read in _read(bucket, bucket.store.get(unread.path), unread.path, names):
                found += read
            return [sorted(found, key=lambda version: version.order, reverse=True)] if found else []
    return _read(bucket, bucket.store.get(unread.path), unread.path, names)


def _sorted(bucket: OpenBucket, start: bytes) -> list[list[Version]]:
    """The versions below a directory stored under a digest: their order is known only after reading all of them."""
    found: list[list[Version]] = []
    for path, fd, names in versions.walk(bucket, start):
        found += _read(bucket, fd, path, names)
    return sorted(found, key=lambda group: group[0].key)


def _read(bucket: OpenBucket, fd: int, path: bytes, names: Iterable[_Stored]) -> list[list[Version]]:
    """The records of stored versions in one directory, one list per key. Versions removed meanwhile are omitted."""
    groups: dict[bytes, list[Version]] = {}
    for name, stored in names:
        with contextlib.suppress(FileNotFoundError, StoreDamaged):
            version = versions.read_stored(bucket, fd, keys.join(path, stored.name), stored, name)
            groups.setdefault(version.key, []).append(version)
    return [sorted(group, key=lambda version: version.order, reverse=True) for group in groups.values()]


def entries(
    bucket: OpenBucket, prefix: bytes, *, versions: bool, page: Page, known: Listed | None = None
) -> tuple[list[Entry], bool]:
    """The entries of one page, and whether more follow. Without versions: current versions that are no markers.

    known: as in Wanted.
    """
    out: list[Entry] = []
    for group in versions_below(bucket, Wanted(prefix, page.after_key or b"", known, not versions)):
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
        raise Refused("NoSuchKey", f"there is no {where}{meant(bucket, key)}")
    if version_id is None:
        if group[0].marker:
            like = meant(bucket, key) if all(version.marker for version in group) else ""
            why = f"its current version {group[0].id} is a delete marker"
            raise Refused("NoSuchKey", f"{where} is deleted: {why}{like}")
        return Entry(group[0], True)
    for index, version in enumerate(group):
        if version.id == version_id:
            if version.marker:
                raise Refused("MethodNotAllowed", f"version {version_id} of {where} is a delete marker")
            return Entry(version, index == 0)
    raise Refused("NoSuchVersion", f"{where} has no version {version_id}")


def meant(bucket: OpenBucket, key: bytes) -> str:
    """See like_known, for a bucket whose store is read."""
    if bucket.bucket.versioning is Versioning.OFF:
        return ""
    return like_known(key, lambda other: bool(versions_of(bucket, other)))


def like_known(key: bytes, is_known: Callable[[bytes], bool]) -> str:
    """The end of a message that a key is missing, where the bucket has the key that was probably meant.

    In a tree bucket `web/` is the key of a directory, and people leave out its slash; and they copy a name as it was
    printed, with `\\xNN` for a byte. is_known: whether the bucket has versions or markers of a key. Empty where it has
    none of the other key.
    """
    exact = keys.unshown(key)
    if exact != key and keys.is_key(exact) and is_known(exact):
        return f"; \\xNN in a printed name is one byte, and $'{keys.shown(exact)}' in bash is that name"
    other = key[:-1] if keys.is_directory(key) else key + b"/"
    if not keys.is_key(other) or not is_known(other):
        return ""
    return f"; {keys.shown(other)} is a key there" + (", that of a directory" if keys.is_directory(other) else "")


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
        mine = [(n, s) for n in bucket.fs.names(fd) if (s := keys.parse(n)) and not s.sidecar and s.name == component]
        records = [
            versions.read_stored(bucket, fd, key, keys.StoredName(component, s.id, s.marker, False), n) for n, s in mine
        ]
    finally:
        bucket.fs.close(fd)
    return sorted((v for v in records if v.key == key), key=lambda version: version.order, reverse=True)


def content(bucket: OpenBucket, version: Version) -> Iterator[bytes]:
    """A version's content, hashed before any of it is returned. Raises StoreDamaged where the hash does not match."""
    if bucket.bucket.versioning is Versioning.OFF:
        yield from unversioned.content(bucket, version.key)
        return
    fd = versions.open_content(bucket, version)
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
    bucket = site.bucket(address)
    opened = bucket.open()
    if bucket.versioning is Versioning.OFF:
        opened.close()
        raise Refused(
            "InvalidRequest", f"{address} was never versioned; `fsrepl versioning enable {address}` makes it so"
        )
    return opened
