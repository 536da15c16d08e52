"""Update the journal from the trees.

Reconciliation runs for each bucket before any other step: the store is read (names only, where the
journal was closed properly). Then intents are carried out, displaced files are examined, and staging is
swept (recover.py). Only after that does a difference between store and view mean a user's act.
The journal is never locked while a tree is read: a region that hangs would keep it from all others.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Collection, Iterator

from fsrepl.errors import StoreDamaged, reason
from fsrepl.model import attributes, keys
from fsrepl.model.version import NULL, Version
from fsrepl.repair import rebuild, settled
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import BAD_BLOCK, GONE, FileType
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.tree_identity import sign, tree_of
from fsrepl.storage.walk import VANISHED, Directory, Uncompared, Walk, directories
from fsrepl.views import unseen

log = logging.getLogger("fsrepl")


_ROWS = 1000
NAMES_AT_ONCE = 4096
"""Directories with fewer files, and fewer versions by the journal, are compared whole."""
_NULL_MARKER = b";" + NULL.encode() + keys.MARKER


def reconcile(
    bucket: OpenBucket, journal: Journal, *, afresh: bool, rebuilder: rebuild.Rebuilder | None = None,
    later: list[Uncompared] | None = None, may_be_older: bool = False,
) -> bool:  # fmt: skip
    """Update the journal's versions and deliveries of a bucket from its store; whether every record was read.

    afresh: every record is read; else only those whose names the journal does not know, where the tree is the
    one that was last read whole. The journal's knowledge of views is kept: a scan compares it with the views.
    rebuilder: rewrites lost records; without one nothing is written. later: gets the directories that have not changed
    since the journal had all of them, which `compare_later` then compares; without it all are compared now.
    may_be_older: a power cut may have taken what was written to the journal last.
    """
    address = bucket.address
    journal.bucket_id(address, bucket.bucket.uuid)
    tree = tree_of(bucket)
    if afresh or journal.tree(address) != tree:
        afresh = True
        journal.set_tree(address, "")
    seen_directories: set[bytes] = set()
    is_all = afresh or later is None
    replaced_ns = settled.before_ns(bucket, journal) if may_be_older and not afresh else -1
    steps = directories(bucket.fs, bucket.versions)
    if later is not None and not is_all:
        steps = settled.changed(bucket, journal, later, _has_lost_record)
    for step in steps:
        if _is_spelled(step.path):
            seen_directories.add(step.path)
        _compare(bucket, journal, step, afresh=afresh, rebuilder=rebuilder)
        if replaced_ns >= 0:
            _read_replaced(bucket, journal, step, replaced_ns, rebuilder)
    seen_directories.update(() if is_all else (each.directory for each in later or ()))
    for directory in journal.versions.version_directories(address) - seen_directories:
        _drop_missing(bucket, journal, directory)
    if rebuilder is not None and (afresh or rebuilder.rebuilt):
        bucket.sync()
        rebuilder.show()
    if rebuilder is None:
        journal.set_tree(address, tree)
    elif rebuilder.waiting:
        journal.set_tree(address, "")
    else:
        sign(bucket, journal)
    return afresh


def compare_later(bucket: OpenBucket, journal: Journal, each: Uncompared, rebuilder: rebuild.Rebuilder) -> bool:
    """Compare a directory that a start has left out, in the thread of its region, between two batches; whether it is as
    the journal knew it. Raises OSError.

    The time of a directory does not tell of files that were removed by hand while a daemon ran, or by fsck.
    """
    is_known = False
    try:
        with Walk([each.path]).step(bucket.fs, bucket.versions) as directory:
            is_known = _compare(bucket, journal, directory, afresh=False, rebuilder=rebuilder)
    except OSError as error:
        if error.errno not in VANISHED:
            raise
        _drop_missing(bucket, journal, each.directory)
    if not _is_spelled(each.path):
        _drop_missing(bucket, journal, each.directory)
    return is_known


def _is_spelled(path: bytes) -> bool:
    """Whether a directory of the store has the name of its keys' directory."""
    return not any(map(keys.is_digest, path.split(b"/")))


def _compare(
    bucket: OpenBucket, journal: Journal, step: Directory, *, afresh: bool, rebuilder: rebuild.Rebuilder | None
) -> bool:
    """Update the journal's versions of one directory of the store; whether nothing was found to differ."""
    address, path, fd, spelled = bucket.address, step.path, step.fd, _is_spelled(step.path)
    files = (name for name, kind in step.entries if kind is FileType.REGULAR)
    names = list(itertools.islice(files, NAMES_AT_ONCE))
    pages = journal.versions.file_names_in(address, path) if spelled else iter(())
    expected = set(itertools.islice(itertools.chain.from_iterable(pages), NAMES_AT_ONCE))
    is_same = max(len(names), len(expected)) == NAMES_AT_ONCE
    if is_same:
        lost, damaged = _large_directory(
            bucket, journal, path, fd, itertools.chain(names, files), spelled=spelled, afresh=afresh,
            rebuilder=rebuilder,
        )  # fmt: skip
    elif not afresh and _is_as_known(bucket, path, fd, names, expected):
        return True
    else:
        known = set(journal.versions.versions_in(address, path)) if spelled else set()
        found = [(name, stored) for name in names if (stored := keys.parse(name)) and not stored.sidecar]
        found = _without_replaced(bucket, fd, path, found, remove=rebuilder is not None)
        entries = {(stored.name, stored.id, stored.marker) for _, stored in found}
        # long names do not tell their keys, and are as many as these
        is_same = entries == known or (any(keys.is_digest(e[0]) for e in entries) and len(entries) == len(known))
        lost, damaged = _directory(bucket, journal, path, fd, found, known, rebuilder, afresh=afresh)
    if rebuilder is not None:
        _rebuild_all(rebuilder, fd, path, lost, damaged)
    else:
        for each in lost:
            _index_lost(bucket, journal, fd, path, *each)
    return is_same and not (lost or damaged)


def _read_replaced(
    bucket: OpenBucket, journal: Journal, step: Directory, since_ns: int, rebuilder: rebuild.Rebuilder | None
) -> None:
    """Read the records of a directory's null versions that are newer than a time: one that replaced another has its
    name. Else a scan would take what it shows for a new save."""
    rows = journal.versions.versions_in(bucket.address, step.path) if _is_spelled(step.path) else ()
    nulls = (_file_name(row) for row in rows if row[1] == NULL)
    while some := list(itertools.islice(nulls, _ROWS)):
        newer = [name for name in some if _is_newer(bucket, step.fd, name, since_ns)]
        read_again(bucket, journal, step.path, step.fd, newer, rebuilder)


def _is_newer(bucket: OpenBucket, fd: int, name: bytes, since_ns: int) -> bool:
    try:
        return bucket.fs.stat(fd, name).st_ctime_ns >= since_ns
    except OSError as error:
        if error.errno not in GONE | BAD_BLOCK:
            raise
        # gone is one by a name that does not spell its key: it was read, as all of these are
        return error.errno in BAD_BLOCK


def read_again(
    bucket: OpenBucket, journal: Journal, path: bytes, fd: int, names: list[bytes],
    rebuilder: rebuild.Rebuilder | None,
) -> None:  # fmt: skip
    """Update the journal from the records of some versions in a directory of the store, open here."""
    lost: list[tuple[bytes, keys.StoredName]] = []
    damaged: list[keys.StoredName] = []
    found = [(name, stored) for name in names if (stored := keys.parse(name))]
    _read_in(bucket, journal, fd, path, found, lost, damaged, rebuilder)
    if rebuilder is not None:
        _rebuild_all(rebuilder, fd, path, lost, damaged)


def _drop_missing(bucket: OpenBucket, journal: Journal, directory: bytes) -> None:
    """Drop the versions of one directory whose files are gone, each looked for by itself."""
    for last, version_id, marker in journal.versions.versions_in(bucket.address, directory):
        key = keys.join(directory, last)
        if not versions.has(bucket, key, version_id, marker=marker):
            _drop(bucket, journal, key, version_id)


def _has_lost_record(bucket: OpenBucket, journal: Journal, path: bytes, fd: int) -> bool:
    """Whether the first version of a directory has lost its record: attributes are lost by whole trees, not one by
    one."""
    first = itertools.islice(journal.versions.versions_in(bucket.address, path, 1), 1)
    names = [keys.stored_name(last, version_id, marker=marker) for last, version_id, marker in first]
    return any(_is_lost(bucket, fd, path, name, stored) for name in names if (stored := keys.parse(name)))


def _large_directory(
    bucket: OpenBucket, journal: Journal, path: bytes, fd: int, files: Iterator[bytes], *, spelled: bool, afresh: bool,
    rebuilder: rebuild.Rebuilder | None,
) -> tuple[list[tuple[bytes, keys.StoredName]], list[keys.StoredName]]:  # fmt: skip
    """The differences of a directory with a million files, without the names of all of them in memory: see _directory.

    Of each name the hash is kept. Two names of 64 bits each that are equal by chance would take one for the other:
    among a million that has a probability of 1 in 40 million.
    """
    there: set[int] = set()
    markers: set[bytes] = set()
    while some := list(itertools.islice(files, NAMES_AT_ONCE)):
        there.update(map(hash, some))
        there.difference_update([hash(name) for name in some if name.endswith(keys.SIDECAR)])
        markers.update([name.removesuffix(_NULL_MARKER) for name in some if name.endswith(_NULL_MARKER)])
    lacking: set[bytes] = set()
    for page in journal.versions.file_names_in(bucket.address, path) if spelled else ():
        hashes = list(map(hash, page))
        if not there.issuperset(hashes):
            lacking.update(name for name, each in zip(page, hashes, strict=True) if each not in there)
        there.difference_update(hashes)
    rows = journal.versions.versions_in(bucket.address, path) if lacking else ()
    missing = [row for row in rows if _file_name(row) in lacking]
    lost: list[tuple[bytes, keys.StoredName]] = []
    damaged: list[keys.StoredName] = []
    nulls: list[tuple[bytes, keys.StoredName]] = []
    missing_nulls, renewed = {name for name, version_id, _ in missing if version_id == NULL}, set[bytes]()
    first = True
    for some in _chunks(bucket, path):
        found = [(name, stored) for name in some if (stored := keys.parse(name)) and not stored.sidecar]
        if first and found:
            # one record is read in any case: attributes are lost by whole trees, not one by one
            first, afresh = False, afresh or _is_lost(bucket, fd, path, *found[0])
        pairs = {name: stored for name, stored in found if stored.id == NULL and stored.name in markers}
        nulls += pairs.items()
        unread = [each for each in found if (afresh or hash(each[0]) in there) and each[0] not in pairs]
        renewed |= {stored.name for _, stored in unread if stored.id == NULL and stored.name in missing_nulls}
        _read_in(bucket, journal, fd, path, unread, lost, damaged, rebuilder)
        if not (afresh or there or markers):
            break
    missing = [(name, v, marker) for name, v, marker in missing if not (v == NULL and name in renewed)]
    found = _without_replaced(bucket, fd, path, nulls, remove=rebuilder is not None)
    more_lost, more_damaged = _directory(bucket, journal, path, fd, found, missing, rebuilder, afresh=afresh)
    return lost + more_lost, damaged + more_damaged


def _chunks(bucket: OpenBucket, path: bytes) -> Iterator[list[bytes]]:
    """The files of a directory of the store, some at a time."""
    fd = bucket.fs.open_dir(bucket.versions, path)
    try:
        files = (name for name, kind in bucket.fs.entries(fd) if kind is FileType.REGULAR)
        while some := list(itertools.islice(files, _ROWS)):
            yield some
    finally:
        bucket.fs.close(fd)


def _file_name(row: tuple[bytes, str, bool]) -> bytes:
    name, version_id, marker = row
    return name + b";" + version_id.encode() + (keys.MARKER if marker else b"")


def _is_as_known(bucket: OpenBucket, path: bytes, fd: int, names: list[bytes], expected: set[bytes]) -> bool:
    """Whether the files in a directory of the store are those of the versions known, by names that spell the keys.

    Most directories are, and comparing their names whole takes less time than parsing each one.
    """
    if len(names) != len(expected) or not expected.issuperset(names):
        return False
    return not any(_is_lost(bucket, fd, path, name, stored) for name in names[:1] if (stored := keys.parse(name)))


def _directory(
    bucket: OpenBucket, journal: Journal, path: bytes, fd: int, found: list[tuple[bytes, keys.StoredName]],
    known: Collection[tuple[bytes, str, bool]], rebuilder: rebuild.Rebuilder | None, *, afresh: bool,
) -> tuple[list[tuple[bytes, keys.StoredName]], list[keys.StoredName]]:  # fmt: skip
    """Index one directory of the store; the versions in it whose records are missing, and those whose records
    contradict themselves. known: the versions there by the journal."""
    known = set(known)
    # one record is read in any case: attributes are lost by whole trees, not one by one
    afresh = afresh or any(_is_lost(bucket, fd, path, *each) for each in found[:1])
    lost: list[tuple[bytes, keys.StoredName]] = []
    damaged: list[keys.StoredName] = []
    unread = []
    for name, stored in found:
        entry = (stored.name, stored.id, stored.marker)
        if entry not in known or afresh:
            unread.append((name, stored))
        known.discard(entry)
    for start in range(0, len(unread), _ROWS):
        _read_in(bucket, journal, fd, path, unread[start : start + _ROWS], lost, damaged, rebuilder)
    ids = {(stored.name, stored.id) for _, stored in found}
    for last, version_id, _marker in known:
        if (last, version_id) in ids:
            continue  # a null version that a null marker replaced, or the other way round
        key = keys.join(path, last)
        if not (keys.is_hidden(key) and _has_any(bucket, key, version_id)):
            _drop(bucket, journal, key, version_id)
    return lost, damaged


def _has_any(bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    """Whether the store has a version or a marker by the name that stands for a key: `found` does not tell that."""
    return any(versions.has(bucket, key, version_id, marker=marker) for marker in (False, True))


def _without_replaced(
    bucket: OpenBucket, fd: int, path: bytes, found: list[tuple[bytes, keys.StoredName]], *, remove: bool
) -> list[tuple[bytes, keys.StoredName]]:
    """A directory without null versions, or null markers, that the other kind replaced before a crash.

    remove: the replaced files are removed, as the crash prevented.
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


def _is_lost(bucket: OpenBucket, fd: int, path: bytes, name: bytes, stored: keys.StoredName) -> bool:
    try:
        record = records.read(bucket, fd, name, keys.join(path, stored.name))
    except (FileNotFoundError, StoreDamaged):
        return False
    return record.lost or not attributes.is_whole(record.raw, keys.join(path, stored.name), marker=stored.marker)


def _read_in(
    bucket: OpenBucket, journal: Journal, fd: int, path: bytes, unread: list[tuple[bytes, keys.StoredName]],
    lost: list[tuple[bytes, keys.StoredName]], damaged: list[keys.StoredName], rebuilder: rebuild.Rebuilder | None,
) -> None:  # fmt: skip
    """Add records to the journal. Lost records are added to lost instead, and wrong ones to damaged."""
    read: list[Version] = []
    reached: list[tuple[Version, records.Record]] = []
    for name, stored in unread:
        key = keys.join(path, stored.name)
        try:
            record = records.read(bucket, fd, name, key)
            if record.lost or not attributes.is_whole(record.raw, key, marker=stored.marker):
                lost.append((name, stored))
            else:
                read.append(version := record.version(key, stored))
                if unseen.is_reached(bucket, record, version):
                    reached.append((version, record))
        except FileNotFoundError:
            continue
        except StoreDamaged as error:
            log.error('damaged bucket=%s key="%s": %s', bucket.address, keys.shown(key), error)
            damaged.append(stored)
    with journal.transaction():
        for version in read:
            journal.versions.add(bucket.address, version)
    if rebuilder is not None and reached:
        found = unseen.associate(journal, bucket, reached, rebuilder.intended)
        rebuilder.damaged += [(*at, False) for at in found]


def _rebuild_all(
    rebuilder: rebuild.Rebuilder, fd: int, path: bytes, lost: list[tuple[bytes, keys.StoredName]],
    damaged: list[keys.StoredName],
) -> None:  # fmt: skip
    """Rebuild the records in a directory of the store that are missing, or contradict themselves."""
    damaged_here = [each for each in damaged if not keys.is_digest(each.name)] if _is_spelled(path) else []
    rebuilder.damaged += [(keys.join(path, each.name), each.id, each.marker) for each in damaged_here]
    for each in damaged_here:  # before the scan, which would take what it shows for a new save
        if not each.marker:
            _rebuild(rebuilder, fd, path, _file_name((each.name, each.id, False)), each, damaged=True)
    for name, stored in lost:
        _rebuild(rebuilder, fd, path, name, stored)


def _index_lost(
    bucket: OpenBucket, journal: Journal, fd: int, path: bytes, name: bytes, stored: keys.StoredName
) -> None:
    """Index a version without a record, for a reader that does not rebuild it, if its path spells its key."""
    key = keys.join(path, stored.name)
    if not any(map(keys.is_digest, key.split(b"/"))):
        with contextlib.suppress(FileNotFoundError, StoreDamaged):
            journal.versions.add(bucket.address, versions.read_stored(bucket, fd, key, stored, name))


def _rebuild(
    rebuilder: rebuild.Rebuilder, fd: int, path: bytes, name: bytes, stored: keys.StoredName, *, damaged: bool = False
) -> None:
    bucket, journal = rebuilder.bucket, rebuilder.journal
    shown = keys.shown(keys.join(path, stored.name))
    try:
        version = rebuilder.version(fd, path, name, stored, damaged=damaged)
    except FileNotFoundError:
        return
    except (OSError, StoreDamaged) as error:
        why = reason(error)
        log.error('not rebuilt bucket=%s key="%s" version=%s: %s', bucket.address, shown, stored.id, why)
        is_unreadable = isinstance(error, OSError) and error.errno in BAD_BLOCK
        if not is_unreadable or (version := rebuilder.from_elsewhere(path, name, stored)) is None:
            return
    if version is None:
        log.error(
            'damaged bucket=%s file="%s" version=%s: its attributes are gone, and nothing else tells what they said',
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
    """Remove a version from the journal; the newest version now, None where there is none."""
    left = [v for v in journal.versions.versions_of(bucket.address, key) if v[0] != version_id]
    newest = None
    for candidate, _created, marker in left:
        newest = versions.read(bucket, key, candidate, marker=marker)
        if newest is not None:
            break
    journal.versions.remove(bucket.address, key, version_id, newest)
    return newest
