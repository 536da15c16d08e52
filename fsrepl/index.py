"""Bring the journal into line with the trees, and finish what a crash left under way.

Run for each bucket before anything else is done in it: the store is read (names only, where the
journal was closed properly), then intents are carried out, then what was displaced is looked at,
then staging is swept. Only after that does a difference between store and view mean a user's act.
The journal is never locked while a tree is read: a region that hangs would keep it from all others.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace

from fsrepl import attrs, commit, displaced, keys, metadata, rebuild, records, store
from fsrepl.errors import UNFORESEEN, FsreplError, StoreDamaged
from fsrepl.fs import LASTING, reason
from fsrepl.journal import Journal
from fsrepl.model import Version
from fsrepl.rows import View, view_of
from fsrepl.site import OpenBucket

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
    for path, fd, found in store.walk(bucket):
        spelled = not any(map(keys.is_digest, path.split(b"/")))
        if spelled:
            seen_directories.add(path)
        stripped = _directory(bucket, journal, path, fd, found, afresh=afresh, spelled=spelled)
        for name, stored in stripped:
            if rebuilder is not None:
                _rebuild(rebuilder, fd, path, name, stored)
            else:
                _read_stripped(bucket, journal, fd, path, name, stored)
    for directory in journal.version_directories(address) - seen_directories:
        for last, version_id, marker in journal.versions_in(address, directory):
            key = keys.join(directory, last)
            if not store.has(bucket, key, version_id, marker=marker):
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
) -> list[tuple[bytes, keys.StoredName]]:  # fmt: skip
    """Bring one directory of the store into the journal; the versions in it that have lost their records."""
    address = bucket.address
    known = journal.versions_in(address, path) if spelled else set()
    # one of the records is looked at in any case: attributes are lost by whole trees, not one by one
    afresh = afresh or any(_is_stripped(bucket, fd, path, *each) for each in found[:1])
    stripped: list[tuple[bytes, keys.StoredName]] = []
    unread = []
    for name, stored in found:
        entry = (stored.name, stored.id, stored.marker)
        if entry not in known or afresh:
            unread.append((name, stored))
        known.discard(entry)
    for start in range(0, len(unread), _ROWS):
        _read_in(bucket, journal, fd, path, unread[start : start + _ROWS], stripped)
    for last, version_id, _marker in known:
        if not last.startswith(b"~") and not keys.is_hidden(keys.join(path, last)):
            _drop(bucket, journal, keys.join(path, last), version_id)
    return stripped


def _is_stripped(bucket: OpenBucket, fd: int, path: bytes, name: bytes, stored: keys.StoredName) -> bool:
    try:
        record = records.read(bucket, fd, name, keys.join(path, stored.name))
    except (FileNotFoundError, StoreDamaged):
        return False
    return record.bare or not attrs.is_whole(record.raw, keys.join(path, stored.name), marker=stored.marker)


def _read_in(
    bucket: OpenBucket, journal: Journal, fd: int, path: bytes, unread: list[tuple[bytes, keys.StoredName]],
    stripped: list[tuple[bytes, keys.StoredName]],
) -> None:  # fmt: skip
    """Put records into the journal. Those that are not whole are added to stripped."""
    read: list[Version] = []
    for name, stored in unread:
        key = keys.join(path, stored.name)
        try:
            record = records.read(bucket, fd, name, key)
            if record.bare or not attrs.is_whole(record.raw, key, marker=stored.marker):
                stripped.append((name, stored))
            else:
                read.append(record.version(key, stored))
        except FileNotFoundError:
            continue
        except StoreDamaged as error:
            log.error('damaged bucket=%s key="%s": %s', bucket.address, keys.shown(key), error)
    with journal.transaction():
        for version in read:
            journal.add(bucket.address, version)


def _read_stripped(
    bucket: OpenBucket, journal: Journal, fd: int, path: bytes, name: bytes, stored: keys.StoredName
) -> None:
    """Count a version whose record is gone, for a reader who does not rebuild it, if its path spells its key."""
    key = keys.join(path, stored.name)
    if not any(map(keys.is_digest, key.split(b"/"))):
        with contextlib.suppress(FileNotFoundError, StoreDamaged):
            journal.add(bucket.address, store.read_stored(bucket, fd, key, stored, name))


def _rebuild(rebuilder: rebuild.Rebuilder, fd: int, path: bytes, name: bytes, stored: keys.StoredName) -> None:
    bucket, journal = rebuilder.bucket, rebuilder.journal
    shown = keys.shown(keys.join(path, stored.name))
    try:
        version = rebuilder.version(fd, path, name, stored)
    except FileNotFoundError:
        return
    except (OSError, StoreDamaged) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        log.error('not rebuilt bucket=%s key="%s" version=%s: %s', bucket.address, shown, stored.id, why)
        return
    if version is None:
        log.error(
            'damaged bucket=%s file="%s" version=%s: its attributes are gone, and nothing tells its key',
            bucket.address, shown, stored.id,
        )  # fmt: skip
        return
    with journal.transaction():
        journal.add(bucket.address, version)


def _drop(bucket: OpenBucket, journal: Journal, key: bytes, version_id: str) -> None:
    log.error(
        'lost bucket=%s key="%s" version=%s: it is no longer in the store', bucket.address, keys.shown(key), version_id
    )
    forget_version(bucket, journal, key, version_id)


def forget_version(bucket: OpenBucket, journal: Journal, key: bytes, version_id: str) -> Version | None:
    """Take a version out of the journal; the version that is the newest now, None where none is left."""
    left = [v for v in journal.versions_of(bucket.address, key) if v[0] != version_id]
    newest = None
    for candidate, _created, marker in left:
        newest = store.read(bucket, key, candidate, marker=marker)
        if newest is not None:
            break
    journal.remove(bucket.address, key, version_id, newest)
    return newest


def finish(
    bucket: OpenBucket, journal: Journal, hold: Callable[[commit.Intent, commit.Held], bool]
) -> dict[tuple[bytes, str], bytes]:
    """Carry out the intents that a crash left, look at what was displaced, sweep staging.

    After that every view shows its key's current version, or is held. The journal's row of any other view is older
    than the tree, and is forgotten: what is there now is compared with the versions, as without a journal.
    hold: takes a view that cannot change yet; whether that is written down durably, so that its old intent may go.
    Returns the versions that are still to be fetched again, and under what name that is written down.
    """
    files = list(commit.read_intents(bucket))
    intents = [intent for _, group in files for intent in group]
    kept: set[bytes] = set()
    held: set[bytes] = set()
    fetched: dict[tuple[bytes, str], bytes] = {}
    for intent in intents:
        _finish_removal(bucket, journal, intent.key)
    displaced.clear(bucket, journal, intents)
    displaced.clear_beside(bucket, journal, intents)
    commit.sweep(bucket)
    for name, group in files:
        fetched |= {(i.key, i.version): name for i in group if i.act is commit.Act.FETCH}
    for intent in intents:
        if intent.act is commit.Act.FETCH:
            continue
        outcome = _finish_one(bucket, journal, intent)
        if isinstance(outcome, commit.Held):
            held.add(intent.key)
            if not hold(intent, outcome):
                kept.add(intent.key)
    behind = journal.behind(bucket.address)
    journal.see_all(bucket.address, [(key, None) for key in behind if key not in held])
    bucket.sync()
    if files:
        bucket.fs.sync_all(bucket.fd)
        for name, group in files:
            if name not in fetched.values() and not any(intent.key in kept for intent in group):
                commit.drop_intents(bucket, name)
    return fetched


def _finish_removal(bucket: OpenBucket, journal: Journal, key: bytes) -> None:
    """Remove the versions of a key that were about to be, for good: that much was written down."""
    for version_id, _, marker in journal.versions_of(bucket.address, key):
        if (key, version_id) in bucket.bucket.documents.removed:
            store.remove(bucket, Version(key, version_id, 0, marker=marker))
            forget_version(bucket, journal, key, version_id)


def _finish_one(bucket: OpenBucket, journal: Journal, intent: commit.Intent) -> commit.Outcome:
    """As finish_one. A view that cannot be looked at now waits, and holds up no other."""
    try:
        return finish_one(bucket, journal, intent)
    except OSError as error:
        if intent.act is commit.Act.EDIT:
            raise
        journal.see(bucket.address, intent.key, intent.was)  # it is behind, as far as anybody knows
        return commit.Held(reason(error))
    except (FsreplError, sqlite3.Error):
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": what nobody foresaw', bucket.address, keys.shown(intent.key))
        return commit.Held(UNFORESEEN)


def finish_one(bucket: OpenBucket, journal: Journal, intent: commit.Intent) -> commit.Outcome:
    """Make one view show its key's current version, if what it shows is merely behind."""
    known = journal.object(bucket.address, intent.key)
    if known is None:
        if intent.version == "" and intent.was is not None:  # its last version was removed for good
            return _show(bucket, commit.nothing(intent.key), intent.was)
        return commit.Shown(None)  # never published: staging was swept, nothing happened
    current = store.read(bucket, intent.key, known.id, marker=known.marker)
    if current is None:
        return commit.Shown(None)
    directory, name = keys.split(intent.key)
    expected: View | None = None
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno not in LASTING:
            raise
        found = None
        if error.errno == errno.EXDEV:  # what is under that mount is as it was
            expected = intent.was
    if intent.act is commit.Act.EDIT:
        return _finish_edit(bucket, journal, intent, current, found)
    if found is not None and bucket.fs.is_regular(found):
        shown = _shown_digest(bucket, directory, name)
        if not current.marker and shown == current.digest:
            view = view_of(found, current.id, racy=True)  # an edit since then is still to be noticed
            journal.see(bucket.address, intent.key, view)
            return commit.Shown(view)
        before = _version_digest(bucket, journal, intent.key, intent.was.shown) if intent.was else b""
        stale = intent.was is not None and ((intent.was.is_like(found) and not intent.was.racy) or shown == before)
        if not stale:
            return commit.Theirs()
        expected = bucket.view(found, intent.was.shown if intent.was else "")
    elif found is None and expected is None and intent.was is not None and not current.marker:
        return commit.Theirs()  # it was there when the intent was written: its user removed it
    try:
        staged = commit.stage_current(bucket, current)
    except (StoreDamaged, FileNotFoundError) as error:
        return commit.Held(str(error))
    outcome = _show(bucket, current, expected, staged)
    if isinstance(outcome, commit.Shown):
        journal.see(bucket.address, intent.key, outcome.view)
    elif isinstance(outcome, commit.Held) and expected is not None:
        journal.see(bucket.address, intent.key, expected)  # a new journal does not know that it is merely behind
    return outcome


def _show(bucket: OpenBucket, version: Version, expected: View | None, staged: bytes = b"") -> commit.Outcome:
    """As commit.show. A view that may not be changed, being immutable perhaps, waits and holds up no other."""
    try:
        return commit.show(bucket, version, expected, staged)
    except PermissionError as error:
        return commit.Held(reason(error))


def _finish_edit(
    bucket: OpenBucket, journal: Journal, intent: commit.Intent, current: Version, found: os.stat_result | None
) -> commit.Outcome:
    """Give a view the metadata that its version has on the record, if it is that view still."""
    was = intent.was
    if was and found and current.id == intent.version and (found.st_ino, found.st_size) == (was.ino, was.size):
        looks = metadata.show(bucket, view_of(found, current.id), current)
        if looks is not None:
            journal.see(bucket.address, intent.key, replace(looks, racy=True))  # written into since then?
    return commit.Shown(None)


def _shown_digest(bucket: OpenBucket, directory: bytes, name: bytes) -> bytes:
    try:
        fd = bucket.fs.open_read(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno not in LASTING:
            raise
        return b""
    try:
        return store.digest(bucket, fd)
    finally:
        bucket.fs.close(fd)


def _version_digest(bucket: OpenBucket, journal: Journal, key: bytes, version_id: str) -> bytes:
    with contextlib.suppress(StoreDamaged):
        version = store.read(bucket, key, version_id, marker=False)
        if version is not None:
            return version.digest
    return b""
