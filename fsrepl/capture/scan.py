"""Scans: they find changed keys by comparing every file with its record, which no lost event can prevent.

A scan reads a bucket's directories, arms each watch before it lists, and queues every key
whose view is not as recorded. It runs at start, after events were lost, where a directory appeared,
and every rescan_s. It works in steps, so that live changes do not wait for all of it.
"""

from __future__ import annotations

import bisect
import errno
import itertools
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable

from fsrepl.errors import UNEXPECTED, reason
from fsrepl.model import keys
from fsrepl.region.change_queue import ARRIVED, FOUND, ChangeQueue, Watcher, WatchLimit
from fsrepl.region.change_queue import GONE as QUEUE_GONE
from fsrepl.region.scan_queue import Rest, Scan, Trouble, is_below
from fsrepl.storage import placed
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING, Entry, FileType
from fsrepl.storage.journal.questions import ScannedRows
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.walk import VANISHED, Directory

log = logging.getLogger("fsrepl")

NAMES_AT_ONCE = 4096
"""A directory with more names is compared in parts: the scan of one with a million takes no more memory than these and
the names, and live changes do not wait for all of it."""


def advance(
    scan: Scan,
    bucket: OpenBucket,
    recorded: ScannedRows,
    changes: ChangeQueue,
    watcher: Watcher | None,
    trouble: Trouble,
    is_stale: Callable[[bytes], bool],
    budget_s: float,
    listed: Callable[[bytes], None] = lambda path: None,
) -> bool:
    """Continue for about budget_s, or until the queue is full; True when the scan is complete. listed is called for
    each directory read."""
    until = time.monotonic() + budget_s
    while scan.rest is not None or scan.walk.todo or _begin_gone(scan, recorded, trouble):
        if scan.rest is None and not scan.walk.todo:
            assert scan.gone is not None
            scan.rest = Rest(scan.gone.pop(), gone=True)
        path = scan.rest.path if scan.rest is not None else scan.walk.todo[-1]
        before = trouble.of(path)
        try:
            if scan.rest is not None:
                _look_on(scan, scan.rest, bucket, recorded, changes, trouble, is_stale)
            else:
                scan.seen.add(path)
                scan.directories += 1
                trouble.forget(path)
                with scan.walk.step(bucket.fs, bucket.fd) as directory:
                    _look_into(scan, bucket, recorded, changes, watcher, trouble, is_stale, directory)
            if scan.rest is None and path in scan.seen:
                listed(path)
        except OSError as error:
            scan.rest = None
            _unlisted(scan, trouble, path, error)
            if isinstance(error, PermissionError) and path and bucket.bucket.trees:
                _queue_changed(scan, changes, [path + b"/"])  # its mode may be what was changed
        except sqlite3.Error:  # the journal's error, not this directory's
            raise
        except Exception:
            scan.rest = None
            log.exception('set aside bucket=%s directory="%s": unexpected error', scan.address, keys.shown(path))
            trouble.unreadable[path] = UNEXPECTED
        if (now := trouble.of(path)) and now != before:  # once, and not at every look
            log.warning('not looked into bucket=%s directory="%s": %s', scan.address, keys.shown(path), now)
        if time.monotonic() > until or changes.is_full(scan.address):
            return scan.rest is None and not scan.walk.todo and not _begin_gone(scan, recorded, trouble)
    return True


def _unlisted(scan: Scan, trouble: Trouble, path: bytes, error: OSError) -> None:
    if error.errno in VANISHED:
        scan.seen.discard(path)  # removed meanwhile: its keys are gone
    elif error.errno == errno.EXDEV:
        trouble.mounts.add(path)
    else:
        if error.errno not in LASTING:
            trouble.passing[path] = scan.arrived
        trouble.unreadable[path] = reason(error)


def _look_into(
    scan: Scan, bucket: OpenBucket, recorded: ScannedRows, changes: ChangeQueue, watcher: Watcher | None,
    trouble: Trouble, is_stale: Callable[[bytes], bool], directory: Directory,
) -> None:  # fmt: skip
    path, fd = directory.path, directory.fd
    if watcher is not None:
        # the watch first: changes after the listing make events
        try:
            watcher.watch(scan.address, path, fd)
        except WatchLimit:
            trouble.polled.add(path)
    entries = list(itertools.islice(directory.entries, NAMES_AT_ONCE))
    known = recorded.objects_between(scan.address, path, None, None, NAMES_AT_ONCE + 1)
    if max(len(entries), len(known)) < NAMES_AT_ONCE:
        skipped = _compare(scan, bucket, changes, is_stale, path, fd, entries, known, with_itself=True)
        if skipped:
            trouble.skipped[path] = skipped
        return
    names, odd = list[bytes](), dict[bytes, FileType]()
    for name, kind in itertools.chain(entries, directory.entries):
        if kind is not FileType.DIRECTORY:
            names.append(name)
        if kind not in (FileType.DIRECTORY, FileType.REGULAR):
            odd[name] = kind
    names.sort()
    scan.rest = Rest.of(path, names, odd, NAMES_AT_ONCE)


def _look_on(
    scan: Scan, rest: Rest, bucket: OpenBucket, recorded: ScannedRows, changes: ChangeQueue, trouble: Trouble,
    is_stale: Callable[[bytes], bool],
) -> None:  # fmt: skip
    """Compare the next names of a large directory: those up to one, of the directory and of the record alike."""
    names, is_first = rest.next_names(), rest.after is None
    last = names[-1] if names and rest.packed else None  # None: up to the end
    known = recorded.objects_between(scan.address, rest.path, rest.after, last, NAMES_AT_ONCE + 1)
    if len(known) > NAMES_AT_ONCE:
        known.popitem()
        last = next(reversed(known))
    if last is not None:
        names = names[: bisect.bisect_right(names, last)]
        rest.pass_by(last)
    if rest.gone:
        _queue_gone(scan, changes, is_stale, rest.path, known)
    else:
        entries = [(name, rest.odd.get(name, FileType.REGULAR)) for name in names]
        fd = bucket.fs.open_dir(bucket.fd, rest.path)
        try:
            rest.skipped |= _compare(
                scan, bucket, changes, is_stale, rest.path, fd, entries, known, with_itself=is_first
            )
        finally:
            bucket.fs.close(fd)
    if last is None:
        if rest.skipped:
            trouble.skipped[rest.path] = rest.skipped
        scan.rest = None


def _compare(
    scan: Scan, bucket: OpenBucket, changes: ChangeQueue, is_stale: Callable[[bytes], bool], path: bytes, fd: int,
    entries: Iterable[Entry], known: dict[bytes, Object], *, with_itself: bool,
) -> set[bytes]:  # fmt: skip
    """Queue what differs between some entries of a directory and what is recorded of the same names; the entries that
    are no objects."""
    trees, has_tiers = bucket.bucket.trees, bool(bucket.bucket.root.settings.classes)
    changed: list[bytes] = []
    itself = known.pop(b"", None)
    if with_itself and trees and path and not _is_recorded(itself, bucket, fd, b"."):
        changed.append(path + b"/")
    skipped: set[bytes] = set()
    regular = FileType.REGULAR  # in Python 3.11 finding a member of an Enum takes 0.1 µs
    for name, kind in entries:
        if kind is regular or (trees and kind is FileType.LINK):
            scan.files += 1
            if not _is_recorded(known.get(name), bucket, fd, name) or (
                kind is not regular and has_tiers and _is_written_into(known[name], bucket, fd, path, name)
            ):
                changed.append(keys.join(path, name))
            known.pop(name, None)
        elif kind is not FileType.DIRECTORY:
            if kind is FileType.LINK and has_tiers and bucket.link_target(fd, name, bucket.fs.stat(fd, name)):
                scan.files += 1
                found = known.pop(name, None)
                if not _is_recorded(found, bucket, fd, name) or _is_written_into(found, bucket, fd, path, name):
                    changed.append(keys.join(path, name))
                continue
            skipped.add(name)
            if (left := known.get(name)) is not None and _is_recorded(left, bucket, fd, name):
                del known[name]  # a symlink that was an object while the bucket was a tree bucket
    _queue_changed(scan, changes, changed)
    _queue_gone(scan, changes, is_stale, path, known)
    return skipped


def _queue_gone(
    scan: Scan, changes: ChangeQueue, is_stale: Callable[[bytes], bool], path: bytes, known: dict[bytes, Object]
) -> None:
    _queue_changed(scan, changes, (keys.join(path, n) for n, o in known.items() if not o.marker), is_stale, gone=True)


def _queue_changed(
    scan: Scan,
    changes: ChangeQueue,
    found: Iterable[bytes],
    is_stale: Callable[[bytes], bool] | None = None,
    *,
    gone: bool = False,
) -> None:
    listed = [key for key in found if is_stale is None or not is_stale(key)]
    if listed:
        scan.queued += len(listed)
        flags = (ARRIVED if scan.arrived else FOUND) | (QUEUE_GONE if gone else 0)
        changes.add(scan.address, listed, scan.epoch, flags)


def _begin_gone(scan: Scan, recorded: ScannedRows, trouble: Trouble) -> bool:
    """Whether directories are left whose keys are gone, once all that are there were read. Never those that could not
    be read."""
    if scan.gone is None:
        trouble.forget_others(scan.top, scan.seen)
        blind = [*trouble.mounts, *trouble.unreadable]
        scan.gone = [
            directory
            for directory in recorded.directories(scan.address, below=scan.top)
            if not (directory in scan.seen or any(is_below(directory, b) for b in blind))
        ]
    return bool(scan.gone)


def _is_written_into(known: Object | None, bucket: OpenBucket, fd: int, path: bytes, name: bytes) -> bool:
    """Whether the content in a tier to which a recorded view leads was written into."""
    if known is None or known.view is None:
        return False
    try:
        if bucket.link_target(fd, name, bucket.fs.stat(fd, name)) is None:
            return False
        return not placed.is_as_recorded(bucket, keys.join(path, name), known.view.shown)
    except OSError:
        return False


def _is_recorded(known: Object | None, bucket: OpenBucket, fd: int, name: bytes) -> bool:
    if known is None or known.marker or known.view is None or known.view.racy or known.view.shown != known.id:
        return False
    try:
        found = bucket.fs.stat(fd, name)
    except OSError:
        return False
    return known.view.is_same(found)
