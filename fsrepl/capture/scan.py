"""Scans: they find changed keys by comparing every file with its record, which no lost event can prevent.

A scan reads a bucket's directories, arms each watch before it lists, and queues every key
whose view is not as recorded. It runs at start, after events were lost, where a directory appeared,
and every rescan_s. It works in steps, so that live changes do not wait for all of it.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from fsrepl.errors import UNEXPECTED, reason
from fsrepl.model import keys
from fsrepl.region.change_queue import ARRIVED, FOUND, ChangeQueue, Watcher, WatchLimit
from fsrepl.region.change_queue import GONE as QUEUE_GONE
from fsrepl.region.scan_queue import Scan, Trouble, is_below
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING, FileType
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.walk import VANISHED, Directory

log = logging.getLogger("fsrepl")


class Recorded(Protocol):
    """What a scan compares files with: each key's current version, and its view as last seen. The journal has it."""

    def objects_in(self, address: str, directory: bytes) -> dict[bytes, Object]:
        """The keys of one directory, by name."""

    def directories(self, address: str, *, below: bytes = b"") -> list[bytes]:
        """A directory with keys, and those below it; without one, all of the bucket."""


def advance(
    scan: Scan,
    bucket: OpenBucket,
    recorded: Recorded,
    changes: ChangeQueue,
    watcher: Watcher | None,
    trouble: Trouble,
    is_stale: Callable[[bytes], bool],
    budget_s: float,
    listed: Callable[[bytes], None] = lambda path: None,
) -> bool:
    """Continue for about budget_s; True when the scan is complete. listed is called for each directory read."""
    until = time.monotonic() + budget_s
    while scan.walk.todo:
        path = scan.walk.todo[-1]
        scan.seen.add(path)
        scan.directories += 1
        before = trouble.of(path)
        trouble.forget(path)
        try:
            with scan.walk.step(bucket.fs, bucket.fd) as directory:
                _look_into(scan, bucket, recorded, changes, watcher, trouble, is_stale, directory)
            listed(path)
        except OSError as error:
            _unlisted(scan, trouble, path, error)
        except sqlite3.Error:  # the journal's error, not this directory's
            raise
        except Exception:
            log.exception('set aside bucket=%s directory="%s": unexpected error', scan.address, keys.shown(path))
            trouble.unreadable[path] = UNEXPECTED
        if (now := trouble.of(path)) and now != before:  # once, and not at every look
            log.warning('not looked into bucket=%s directory="%s": %s', scan.address, keys.shown(path), now)
        if time.monotonic() > until:
            return not scan.walk.todo and _finish(scan, bucket, recorded, changes, trouble, is_stale)
    return _finish(scan, bucket, recorded, changes, trouble, is_stale)


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
    scan: Scan, bucket: OpenBucket, recorded: Recorded, changes: ChangeQueue, watcher: Watcher | None, trouble: Trouble,
    is_stale: Callable[[bytes], bool], directory: Directory,
) -> None:  # fmt: skip
    path, fd = directory.path, directory.fd
    if watcher is not None:
        # the watch first: changes after the listing make events
        try:
            watcher.watch(scan.address, path, fd)
        except WatchLimit:
            trouble.polled.add(path)
    known = recorded.objects_in(scan.address, path)
    trees, has_tiers = bucket.bucket.trees, bool(bucket.bucket.root.settings.classes)
    changed: list[bytes] = []
    itself = known.pop(b"", None)
    if trees and path and not _is_recorded(itself, bucket, fd, b"."):
        changed.append(path + b"/")
    skipped: set[bytes] = set()
    regular = FileType.REGULAR  # in Python 3.11 finding a member of an Enum takes 0.1 µs
    for name, kind in directory.entries:
        if kind is regular or (trees and kind is FileType.LINK):
            scan.files += 1
            if not _is_recorded(known.pop(name, None), bucket, fd, name):
                changed.append(keys.join(path, name))
        elif kind is not FileType.DIRECTORY:
            if kind is FileType.LINK and has_tiers and bucket.link_target(fd, name, bucket.fs.stat(fd, name)):
                scan.files += 1
                if not _is_recorded(known.pop(name, None), bucket, fd, name):
                    changed.append(keys.join(path, name))
                continue
            skipped.add(name)
            if (left := known.get(name)) is not None and _is_recorded(left, bucket, fd, name):
                del known[name]  # a symlink that was an object while the bucket was a tree bucket
    if skipped:
        trouble.skipped[path] = skipped
    _queue_changed(scan, changes, changed)
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


def _finish(
    scan: Scan,
    bucket: OpenBucket,
    recorded: Recorded,
    changes: ChangeQueue,
    trouble: Trouble,
    is_stale: Callable[[bytes], bool],
) -> bool:
    """Queue the keys of removed directories, which are gone; but never those of directories that could not be read."""
    trouble.forget_others(scan.top, scan.seen)
    blind = [*trouble.mounts, *trouble.unreadable]
    for directory in recorded.directories(scan.address, below=scan.top):
        if directory in scan.seen or any(is_below(directory, b) for b in blind):
            continue
        known = recorded.objects_in(scan.address, directory)
        _queue_changed(
            scan, changes, (keys.join(directory, n) for n, o in known.items() if not o.marker), is_stale, gone=True
        )
    return True


def _is_recorded(known: Object | None, bucket: OpenBucket, fd: int, name: bytes) -> bool:
    if known is None or known.marker or known.view is None or known.view.racy or known.view.shown != known.id:
        return False
    try:
        found = bucket.fs.stat(fd, name)
    except OSError:
        return False
    return known.view.is_same(found)
