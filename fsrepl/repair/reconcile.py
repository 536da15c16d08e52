"""Bring the journal into line with the trees, and finish what a crash left under way.

Run for each bucket before anything else is done in it: the store is read (names only, where the
journal was closed properly), then intents are carried out, then what was displaced is looked at,
then staging is swept. Only after that does a difference between store and view mean a user's act.
The journal is never locked while a tree is read: a region that hangs would keep it from all others.
"""

from __future__ import annotations

import contextlib
import logging
import time

from fsrepl.errors import StoreDamaged, reason
from fsrepl.model import attributes, keys
from fsrepl.model.version import NULL, Version
from fsrepl.repair import rebuild
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal

log = logging.getLogger("fsrepl")


_ROWS = 1000
_INDEXED = b"indexed"
"""An empty file in .fsrepl. Its ctime tells the journal that has the tree on record from any older one."""


def reconcile(
    bucket: OpenBucket, journal: Journal, *, afresh: bool, rebuilder: rebuild.Rebuilder | None = None
) -> None:
    """Make the journal's versions and deliveries of a bucket those of its store.

    afresh: every record is read; else only those whose names the journal does not know, where it is the same
    tree that was last read whole. What the journal knows of views is kept: a scan compares it with what is
    there. rebuilder: writes records again that have lost their attributes; without one nothing is written.
    """
    address = bucket.address
    journal.bucket_id(address, bucket.bucket.uuid)
    tree = _tree(bucket)
    if afresh or journal.tree(address) != tree:
        afresh = True
        journal.set_tree(address, "")
    seen_directories: set[bytes] = set()
    for path, fd, found in versions.walk(bucket):
        spelled = not any(map(keys.is_digest, path.split(b"/")))
        if spelled:
            seen_directories.add(path)
        found = _without_replaced(bucket, fd, path, found, remove=rebuilder is not None)
        stripped, damaged = _directory(bucket, journal, path, fd, found, afresh=afresh, spelled=spelled)
        if rebuilder is not None and spelled:
            rebuilder.damaged += [
                (keys.join(path, s.name), s.id, s.marker) for s in damaged if not keys.is_digest(s.name)
            ]
        for name, stored in stripped:
            if rebuilder is not None:
                _rebuild(rebuilder, fd, path, name, stored)
            else:
                _read_stripped(bucket, journal, fd, path, name, stored)
    for directory in journal.versions.version_directories(address) - seen_directories:
        for last, version_id, marker in journal.versions.versions_in(address, directory):
            key = keys.join(directory, last)
            if not versions.has(bucket, key, version_id, marker=marker):
                _drop(bucket, journal, key, version_id)
    if rebuilder is not None and (afresh or rebuilder.rebuilt):
        bucket.sync()
        rebuilder.show()
    if rebuilder is None:
        journal.set_tree(address, tree)
    elif rebuilder.waiting:
        journal.set_tree(address, "")
    else:
        sign(bucket, journal)


def sign(bucket: OpenBucket, journal: Journal) -> None:
    """Mark a tree as the one that this journal has on record, when work in it begins and when it ends.

    A copy of the journal from before then, as a restored backup or a snapshot is, does not match the tree any
    more, and neither does that of another site which had the tree meanwhile. Its rows are read again.
    """
    fs = bucket.fs
    with contextlib.suppress(OSError):  # where nothing can be changed, nothing will differ
        try:
            fd = fs.open_read(bucket.meta, _INDEXED)
        except FileNotFoundError:
            fd = fs.create(bucket.meta, _INDEXED)
        try:
            fs.set_mtime(fd, time.time_ns())  # ctime follows, and nobody can set that
        finally:
            fs.close(fd)
    journal.set_tree(bucket.address, _tree(bucket))


def _tree(bucket: OpenBucket) -> str:
    """What tells a tree from a copy of it, and from its own past. See sign.

    A copy has other inodes, and its attributes may be gone.
    """
    identity = bucket.fs.stat(bucket.meta, b"bucket.json")
    try:
        indexed_ns = bucket.fs.stat(bucket.meta, _INDEXED).st_ctime_ns
    except FileNotFoundError:
        indexed_ns = 0
    return f"{bucket.fs.stat_fd(bucket.versions).st_ino} {identity.st_ino} {identity.st_ctime_ns} {indexed_ns}"


def _directory(
    bucket: OpenBucket, journal: Journal, path: bytes, fd: int, found: list[tuple[bytes, keys.StoredName]],
    *, afresh: bool, spelled: bool,
) -> tuple[list[tuple[bytes, keys.StoredName]], list[keys.StoredName]]:  # fmt: skip
    """Bring one directory of the store into the journal; the versions in it that have lost their records, and those
    whose records contradict themselves."""
    address = bucket.address
    known = journal.versions.versions_in(address, path) if spelled else set()
    # one of the records is looked at in any case: attributes are lost by whole trees, not one by one
    afresh = afresh or any(_is_stripped(bucket, fd, path, *each) for each in found[:1])
    stripped: list[tuple[bytes, keys.StoredName]] = []
    damaged: list[keys.StoredName] = []
    unread = []
    for name, stored in found:
        entry = (stored.name, stored.id, stored.marker)
        if entry not in known or afresh:
            unread.append((name, stored))
        known.discard(entry)
    for start in range(0, len(unread), _ROWS):
        _read_in(bucket, journal, fd, path, unread[start : start + _ROWS], stripped, damaged)
    ids = {(stored.name, stored.id) for _, stored in found}
    for last, version_id, _marker in known:
        if (last, version_id) in ids:
            continue  # a null version, and a null marker is in its place, or the other way round
        if not last.startswith(b"~") and not keys.is_hidden(keys.join(path, last)):
            _drop(bucket, journal, keys.join(path, last), version_id)
    return stripped, damaged


def _without_replaced(
    bucket: OpenBucket, fd: int, path: bytes, found: list[tuple[bytes, keys.StoredName]], *, remove: bool
) -> list[tuple[bytes, keys.StoredName]]:
    """A directory without the null versions, or markers, whose place was taken by the other when that was cut short.

    remove: these go, which was about to be.
    """
    names = [each for each in found if each[1].id == NULL]
    if len(names) == len({stored.name for _, stored in names}):
        return found
    nulls: dict[bytes, list[tuple[int, bytes]]] = {}
    for name, stored in names:
        with contextlib.suppress(FileNotFoundError, StoreDamaged):
            key = keys.join(path, stored.name)
            version = records.read(bucket, fd, name, key).version(key, stored)
            nulls.setdefault(stored.name, []).append((version.created_ns, name))
    replaced = {min(each)[1] for each in nulls.values() if len(each) > 1}
    for name in replaced if remove else ():
        for gone in (name, name + keys.SIDECAR):
            with contextlib.suppress(FileNotFoundError):
                bucket.fs.unlink(fd, gone)
    return [each for each in found if each[0] not in replaced]


def _is_stripped(bucket: OpenBucket, fd: int, path: bytes, name: bytes, stored: keys.StoredName) -> bool:
    try:
        record = records.read(bucket, fd, name, keys.join(path, stored.name))
    except (FileNotFoundError, StoreDamaged):
        return False
    return record.bare or not attributes.is_whole(record.raw, keys.join(path, stored.name), marker=stored.marker)


def _read_in(
    bucket: OpenBucket, journal: Journal, fd: int, path: bytes, unread: list[tuple[bytes, keys.StoredName]],
    stripped: list[tuple[bytes, keys.StoredName]], damaged: list[keys.StoredName],
) -> None:  # fmt: skip
    """Put records into the journal. Those that are not whole are added to stripped, and wrong ones to damaged."""
    read: list[Version] = []
    for name, stored in unread:
        key = keys.join(path, stored.name)
        try:
            record = records.read(bucket, fd, name, key)
            if record.bare or not attributes.is_whole(record.raw, key, marker=stored.marker):
                stripped.append((name, stored))
            else:
                read.append(record.version(key, stored))
        except FileNotFoundError:
            continue
        except StoreDamaged as error:
            log.error('damaged bucket=%s key="%s": %s', bucket.address, keys.shown(key), error)
            damaged.append(stored)
    with journal.transaction():
        for version in read:
            journal.versions.add(bucket.address, version)


def _read_stripped(
    bucket: OpenBucket, journal: Journal, fd: int, path: bytes, name: bytes, stored: keys.StoredName
) -> None:
    """Count a version whose record is gone, for a reader who does not rebuild it, if its path spells its key."""
    key = keys.join(path, stored.name)
    if not any(map(keys.is_digest, key.split(b"/"))):
        with contextlib.suppress(FileNotFoundError, StoreDamaged):
            journal.versions.add(bucket.address, versions.read_stored(bucket, fd, key, stored, name))


def _rebuild(rebuilder: rebuild.Rebuilder, fd: int, path: bytes, name: bytes, stored: keys.StoredName) -> None:
    bucket, journal = rebuilder.bucket, rebuilder.journal
    shown = keys.shown(keys.join(path, stored.name))
    try:
        version = rebuilder.version(fd, path, name, stored)
    except FileNotFoundError:
        return
    except (OSError, StoreDamaged) as error:
        why = reason(error)
        log.error('not rebuilt bucket=%s key="%s" version=%s: %s', bucket.address, shown, stored.id, why)
        return
    if version is None:
        log.error(
            'damaged bucket=%s file="%s" version=%s: its attributes are gone, and nothing tells its key',
            bucket.address, shown, stored.id,
        )  # fmt: skip
        return
    with journal.transaction():
        journal.versions.add(bucket.address, version)


def _drop(bucket: OpenBucket, journal: Journal, key: bytes, version_id: str) -> None:
    if (key, version_id) not in bucket.bucket.documents.removed:
        log.error(
            'lost bucket=%s key="%s" version=%s: it is no longer in the store',
            bucket.address, keys.shown(key), version_id,
        )  # fmt: skip
    forget_version(bucket, journal, key, version_id)


def forget_version(bucket: OpenBucket, journal: Journal, key: bytes, version_id: str) -> Version | None:
    """Take a version out of the journal; the version that is the newest now, None where none is left."""
    left = [v for v in journal.versions.versions_of(bucket.address, key) if v[0] != version_id]
    newest = None
    for candidate, _created, marker in left:
        newest = versions.read(bucket, key, candidate, marker=marker)
        if newest is not None:
            break
    journal.versions.remove(bucket.address, key, version_id, newest)
    return newest
