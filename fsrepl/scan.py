"""Which keys may have changed, by looking: the one that knows for sure.

A scan goes through a bucket's directories, arms each watch before it lists, and marks every key
whose view is not as recorded. It runs at start, after events were lost, where a directory appeared,
and every rescan_s. It works in steps, so that live changes are not kept waiting behind it.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fsrepl import keys
from fsrepl.fs import GONE, reason
from fsrepl.journal import Journal, Object
from fsrepl.site import OpenBucket

from fsrepl.watch import ARRIVED, FOUND, GONE as MARK_GONE, Marks, Watcher, WatchLimit  # isort: skip

log = logging.getLogger("fsrepl")


@dataclass(slots=True)
class Trouble:
    """What a bucket's scans met that a person may want to know. Paths are below the bucket."""

    polled: set[bytes] = field(default_factory=set)
    """Directories without a watch: the kernel's limit, or a filesystem without events."""
    unreadable: dict[bytes, str] = field(default_factory=dict)
    mounts: set[bytes] = field(default_factory=set)
    skipped: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Directory to the names in it that are no objects: links, FIFOs, sockets, devices."""

    @property
    def skipped_number(self) -> int:
        return sum(len(names) for names in self.skipped.values())

    def forget(self, below: bytes) -> None:
        """Before a scan looks again at a directory and all below it."""
        prefix = below + b"/" if below else b""
        for known in (self.polled, self.mounts, self.unreadable, self.skipped):
            for path in [p for p in known if p == below or p.startswith(prefix)]:
                known.discard(path) if isinstance(known, set) else known.pop(path)


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
        watcher: Watcher | None,
        trouble: Trouble,
        held: Callable[[bytes], bool],
        budget_s: float,
    ) -> bool:
        """Go on for about budget_s; True when the pass is complete."""
        until = time.monotonic() + budget_s
        while self.todo:
            path = self.todo.pop()
            self.seen.add(path)
            self.directories += 1
            try:
                self._directory(bucket, journal, marks, watcher, trouble, held, path)
            except OSError as error:
                self._unlisted(trouble, path, error)
            if time.monotonic() > until:
                return not self.todo and self._finish(bucket, journal, marks, trouble, held)
        return self._finish(bucket, journal, marks, trouble, held)

    def _unlisted(self, trouble: Trouble, path: bytes, error: OSError) -> None:
        if error.errno in GONE or error.errno == errno.ELOOP:
            self.seen.discard(path)  # removed meanwhile: its keys are gone
        elif error.errno == errno.EXDEV:
            trouble.mounts.add(path)
            log.warning('not looked into bucket=%s directory="%s": another mount', self.address, keys.shown(path))
        else:
            trouble.unreadable[path] = reason(error)
            log.warning('not looked into bucket=%s directory="%s": %s', self.address, keys.shown(path), reason(error))

    def _directory(
        self, bucket: OpenBucket, journal: Journal, marks: Marks, watcher: Watcher | None, trouble: Trouble,
        held: Callable[[bytes], bool], path: bytes,
    ) -> None:  # fmt: skip
        fd = bucket.fs.open_dir(bucket.fd, path)
        try:
            if bucket.fs.stat_fd(fd).st_dev != bucket.device:
                raise OSError(errno.EXDEV, "another mount")
            if watcher is not None:
                # the watch first: what comes after the listing makes an event
                try:
                    watcher.watch(self.address, path, fd)
                except WatchLimit:
                    trouble.polled.add(path)
            known = journal.objects_in(self.address, path)
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
                if not _is_recorded(entry_known, bucket, fd, name):
                    changed.append(keys.join(path, name))
            if skipped:
                trouble.skipped[path] = skipped
            self._mark(marks, changed)
            self._mark(marks, (keys.join(path, n) for n, o in known.items() if not o.marker), held, gone=True)
        finally:
            bucket.fs.close(fd)

    def _mark(self, marks: Marks, found: object, held: Callable[[bytes], bool] | None = None, *, gone: bool = False) -> None:
        listed = [key for key in found if held is None or not held(key)]  # type: ignore[attr-defined]
        if listed:
            self.marked += len(listed)
            marks.mark(self.address, listed, self.epoch, (ARRIVED if self.arrived else FOUND) | (MARK_GONE if gone else 0))

    def _finish(
        self, bucket: OpenBucket, journal: Journal, marks: Marks, trouble: Trouble, held: Callable[[bytes], bool]
    ) -> bool:
        """Keys in directories that are not there any more are gone; but never those that could not be looked into."""
        blind = [*trouble.mounts, *trouble.unreadable]
        for directory in journal.directories(self.address, below=self.top):
            if directory in self.seen or any(_is_below(directory, b) for b in blind):
                continue
            known = journal.objects_in(self.address, directory)
            self._mark(marks, (keys.join(directory, n) for n, o in known.items() if not o.marker), held, gone=True)
        return True


def _is_below(path: bytes, top: bytes) -> bool:
    return not top or path == top or path.startswith(top + b"/")


def _is_recorded(known: Object | None, bucket: OpenBucket, fd: int, name: bytes) -> bool:
    if known is None or known.marker or known.view is None or known.view.racy or known.view.shown != known.id:
        return False
    try:
        found = bucket.fs.stat(fd, name)
    except OSError:
        return False
    return known.view.is_like(found) and known.view.mode == found.st_mode & 0o7777
