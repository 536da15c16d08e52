"""Scans under way, and what they met that is no object."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

from fsrepl.capture import scan
from fsrepl.capture.watch import NoWatches, Watcher, WatchLimit
from fsrepl.errors import UNFORESEEN
from fsrepl.model import keys
from fsrepl.region.change_queue import ARRIVED, FOUND, Marks
from fsrepl.region.change_queue import GONE as MARK_GONE
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE, LASTING, reason
from fsrepl.storage.journal.database import Journal

log = logging.getLogger("fsrepl")


@dataclass(slots=True)
class Trouble:
    """What a bucket's scans met that a person may want to know. Paths are below the bucket."""

    polled: set[bytes] = field(default_factory=set)
    """Directories without a watch: the kernel's limit, or a filesystem without events."""
    unreadable: dict[bytes, str] = field(default_factory=dict)
    passing: dict[bytes, bool] = field(default_factory=dict)
    """Those of the unreadable directories that are tried again, as nothing refuses them; and Scan.arrived."""
    mounts: set[bytes] = field(default_factory=set)
    skipped: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Directory to the names in it that are no objects: links, FIFOs, sockets, devices."""

    @property
    def skipped_number(self) -> int:
        return sum(len(names) for names in self.skipped.values())

    def of(self, path: bytes) -> str:
        """Why a directory could not be looked into at the last look; empty where it could."""
        return "another mount" if path in self.mounts else self.unreadable.get(path, "")

    def forget(self, path: bytes) -> None:
        """What was known of one directory: it is looked at again."""
        for known in (self.polled, self.mounts, self.unreadable, self.passing, self.skipped):
            known.discard(path) if isinstance(known, set) else known.pop(path, None)

    def forget_others(self, top: bytes, seen: Container[bytes]) -> None:
        """After a scan of a directory and all below it: what was not seen is not there any more."""
        for known in (self.polled, self.mounts, self.unreadable, self.passing, self.skipped):
            for path in [p for p in known if is_below(p, top) and p not in seen]:
                self.forget(path)


@dataclass(slots=True)
class Scan:
    """One pass over a directory of a bucket and all below it.

    arrived: a live event led here, so that what is found is new now, whatever its times say.
    """

    address: str
    top: bytes = b""
    arrived: bool = False
    epoch: int = 0
    todo: list[bytes] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)
    began_ns: int = 0
    directories: int = 0
    files: int = 0
    marked: int = 0

    def __post_init__(self) -> None:
        self.todo.append(self.top)
        self.began_ns = time.time_ns()

    def step(
        self,
        bucket: OpenBucket,
        journal: Journal,
        marks: Marks,
        watcher: Watcher | NoWatches | None,
        trouble: Trouble,
        held: Callable[[bytes], bool],
        budget_s: float,
        listed: Callable[[bytes], None] = lambda path: None,
    ) -> bool:
        """Go on for about budget_s; True when the pass is complete. listed is told of each directory that was."""
        until = time.monotonic() + budget_s
        while self.todo:
            path = self.todo.pop()
            self.seen.add(path)
            self.directories += 1
            before = trouble.of(path)
            trouble.forget(path)
            try:
                self._directory(bucket, journal, marks, watcher, trouble, held, path)
                listed(path)
            except OSError as error:
                self._unlisted(trouble, path, error)
            except sqlite3.Error:  # it is the journal's, not this directory's
                raise
            except Exception:
                log.exception('set aside bucket=%s directory="%s": what nobody foresaw', self.address, keys.shown(path))
                trouble.unreadable[path] = UNFORESEEN
            if (now := trouble.of(path)) and now != before:  # once, and not at every look
                log.warning('not looked into bucket=%s directory="%s": %s', self.address, keys.shown(path), now)
            if time.monotonic() > until:
                return not self.todo and self._finish(bucket, journal, marks, trouble, held)
        return self._finish(bucket, journal, marks, trouble, held)

    def _unlisted(self, trouble: Trouble, path: bytes, error: OSError) -> None:
        if error.errno in GONE or error.errno == errno.ELOOP:
            self.seen.discard(path)  # removed meanwhile: its keys are gone
        elif error.errno == errno.EXDEV:
            trouble.mounts.add(path)
        else:
            if error.errno not in LASTING:
                trouble.passing[path] = self.arrived
            trouble.unreadable[path] = reason(error)

    def _directory(
        self, bucket: OpenBucket, journal: Journal, marks: Marks, watcher: Watcher | NoWatches | None, trouble: Trouble,
        held: Callable[[bytes], bool], path: bytes,
    ) -> None:  # fmt: skip
        fd = bucket.fs.open_dir(bucket.fd, path)
        try:
            if watcher is not None:
                # the watch first: what comes after the listing makes an event
                try:
                    watcher.watch(self.address, path, fd)
                except WatchLimit:
                    trouble.polled.add(path)
            known = journal.versions.objects_in(self.address, path)
            changed: list[bytes] = []
            skipped: set[bytes] = set()
            for entry in bucket.fs.entries(fd):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if path or name != keys.RESERVED:
                        self.todo.append(keys.join(path, name))
                    continue
                if not entry.is_file(follow_symlinks=False):
                    skipped.add(name)
                    continue
                self.files += 1
                entry_known = known.pop(name, None)
                if not scan.is_recorded(entry_known, bucket, fd, name):
                    changed.append(keys.join(path, name))
            if skipped:
                trouble.skipped[path] = skipped
            self._mark(marks, changed)
            self._mark(marks, (keys.join(path, n) for n, o in known.items() if not o.marker), held, gone=True)
        finally:
            bucket.fs.close(fd)

    def _mark(
        self, marks: Marks, found: Iterable[bytes], held: Callable[[bytes], bool] | None = None, *, gone: bool = False
    ) -> None:
        listed = [key for key in found if held is None or not held(key)]
        if listed:
            self.marked += len(listed)
            flags = (ARRIVED if self.arrived else FOUND) | (MARK_GONE if gone else 0)
            marks.mark(self.address, listed, self.epoch, flags)

    def _finish(
        self, bucket: OpenBucket, journal: Journal, marks: Marks, trouble: Trouble, held: Callable[[bytes], bool]
    ) -> bool:
        """Keys in directories that are not there any more are gone; but never those that could not be looked into."""
        trouble.forget_others(self.top, self.seen)
        blind = [*trouble.mounts, *trouble.unreadable]
        for directory in journal.versions.directories(self.address, below=self.top):
            if directory in self.seen or any(is_below(directory, b) for b in blind):
                continue
            known = journal.versions.objects_in(self.address, directory)
            self._mark(marks, (keys.join(directory, n) for n, o in known.items() if not o.marker), held, gone=True)
        return True


class Scans:
    """The scans of one bucket that are still to be done, those of parts of it first: live changes do not wait.

    Those that have begun are finished, whatever is added meanwhile, so that there is always progress.
    Other threads may ask is_pending.
    """

    def __init__(self) -> None:
        self._parts: dict[bytes, Scan] = {}
        self._whole: Scan | None = None
        self._part_begun: Scan | None = None
        self._whole_begun: Scan | None = None

    def add(self, scan: Scan) -> None:
        """Another one to be done; one that has not begun, and sees what this one would, does for it."""
        if not scan.top:
            scan.epoch = min([scan.epoch, *(each.epoch for each in (self._whole, *self._parts.values()) if each)])
            self._whole = scan
            self._parts = {}
        elif same := self._whole or self._parts.get(scan.top):
            same.epoch = min(same.epoch, scan.epoch)
        else:
            self._parts[scan.top] = scan

    def next(self) -> Scan | None:
        """The one to go on with; it counts as pending until it is done."""
        if self._part_begun is None and self._parts:
            self._part_begun = next(iter(self._parts.values()))
            del self._parts[self._part_begun.top]
        if self._part_begun is None and self._whole_begun is None and self._whole is not None:
            self._whole_begun, self._whole = self._whole, None
        return self._part_begun or self._whole_begun

    def done(self, scan: Scan) -> None:
        if scan is self._part_begun:
            self._part_begun = None
        else:
            self._whole_begun = None

    def is_pending(self, before_epoch: int) -> bool:
        """Whether one is to be done that was begun for something from before a barrier."""
        # RACE: next() moves a scan between these; read in the order of its way, none is missed.
        return any(
            each.epoch < before_epoch
            for each in (*self._parts.copy().values(), self._whole, self._part_begun, self._whole_begun)
            if each
        )

    def __bool__(self) -> bool:
        return bool(self._parts or self._whole or self._part_begun or self._whole_begun)


def is_below(path: bytes, top: bytes) -> bool:
    """Whether a directory is another, or below it."""
    return not top or path == top or path.startswith(top + b"/")
