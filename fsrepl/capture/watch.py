"""The inotify watcher: it queues keys that may have changed (region/change_queue.py), and decides nothing.

One inotify instance for the site, read by a thread that only puts keys into dicts, so that a burst
does not overflow the kernel's queue; an overflow sets a flag, and a scan follows.
Built on watchdog's inotify layer (its descriptor, its reader, its shutdown), not on its
Observer, which makes several objects an event and does not report lost events. Source: design.md, 8.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time

from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import InotifyFD, Mask, WatchDescriptor, inotify_add_watch, inotify_rm_watch

from fsrepl.errors import reason
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.region.change_queue import (
    ARRIVED,
    CHANGED,
    CLOSED,
    CONTENT,
    GONE,
    MOVED,
    WRITING,
    ChangeQueue,
    DirectoryEvent,
    WatchLimit,
)
from fsrepl.region.subtrees import Directory, Subtrees

log = logging.getLogger("fsrepl")


_MASK = Mask(
    In.IN_CREATE
    | In.IN_MODIFY
    | In.IN_CLOSE_WRITE
    | In.IN_MOVED_FROM
    | In.IN_MOVED_TO
    | In.IN_DELETE
    | In.IN_ATTRIB
    | In.IN_ONLYDIR
    | In.IN_EXCL_UNLINK
)
_CONTENTS_MASK = Mask(In.IN_MODIFY | In.IN_CLOSE_WRITE | In.IN_ONLYDIR | In.IN_EXCL_UNLINK)
"""The daemon itself writes contents elsewhere, and renames them into place."""
_BARRIER_MASK = Mask(In.IN_CREATE | In.IN_ONLYDIR)
_LEFT = Mask(In.IN_DELETE | In.IN_MOVED_FROM)
_BUFFER_BYTES = 1 << 20
_PAUSE_S = 0.005


def _file_flag(mask: int) -> int:
    """The flag of a queued key for an inotify event of a file."""
    if mask & In.IN_CLOSE_WRITE:
        return CLOSED
    if mask & In.IN_MOVED_TO:
        return MOVED
    return GONE if mask & _LEFT else CHANGED if mask & In.IN_ATTRIB else WRITING


def _directory_flags(mask: int) -> int:
    """Flags for an inotify event of a directory."""
    if mask & In.IN_MOVED_FROM:
        return GONE | MOVED
    return GONE if mask & In.IN_DELETE else CHANGED if mask & In.IN_ATTRIB else ARRIVED


class InotifyWatcher(InotifyFD):
    """Reads events, and queues the keys of the regions that listen."""

    def __init__(self) -> None:
        super().__init__()
        self.daemon = True
        self.name = "watch"
        self._listeners: dict[str, ChangeQueue] = {}
        self._watches: dict[int, tuple[str, bytes, ChangeQueue]] = {}
        self._descriptors: dict[tuple[str, bytes], int] = {}
        self._below = Subtrees()
        self._barriers: dict[int, ChangeQueue] = {}
        self._contents: dict[int, tuple[str, bytes]] = {}
        """Watched directories of tiers: the bucket, and the tier."""
        self._guard = threading.Lock()
        self.sentinels: dict[bytes, int] = {}
        """Sentinels read, and the epoch that each began."""
        self.epoch = 0
        self.overflows = 0

    def listen(self, region: str, changes: ChangeQueue) -> None:
        self._listeners[region] = changes

    # -- the reading thread

    def run(self) -> None:
        last_s = 0.0
        while self.should_keep_running():
            buffer = self._read_event_buffer(_BUFFER_BYTES)
            if buffer:
                for changes in self._take_in(buffer):
                    changes.wake()
                before_s, last_s = last_s, time.monotonic()
                if last_s - before_s < _PAUSE_S:
                    # Under load a pause between two reads: the kernel merges repeated events, and other threads are
                    # interrupted less often. The kernel's queue holds 100 ms of the fastest writers.
                    time.sleep(_PAUSE_S)
                    last_s += _PAUSE_S

    def _take_in(self, buffer: bytes) -> set[ChangeQueue]:
        now_s = time.monotonic()
        touched: set[ChangeQueue] = set()
        held: ChangeQueue | None = None
        try:
            for wd, mask, _cookie, name in self._parse_event_buffer(buffer):
                watch = self._watches.get(wd)
                if watch is None or mask & (In.IN_Q_OVERFLOW | In.IN_IGNORED | In.IN_UNMOUNT):
                    self._take_in_other(wd, mask, name, touched)
                    continue
                address, prefix, changes = watch
                if changes is not held:
                    if held is not None:
                        held.guard.release()
                    changes.guard.acquire()
                    held = changes
                    touched.add(changes)
                if not name:
                    continue  # an event of the watched directory itself: the watch above it reports it by name
                if not mask & In.IN_ISDIR:
                    changes.event(address, prefix + name, name, _file_flag(mask), now_s, self.epoch)
                elif prefix or name != keys.RESERVED:
                    flags = _directory_flags(mask)
                    changes.directories.append(DirectoryEvent(address, prefix + name, flags, self.epoch))
        finally:
            if held is not None:
                held.guard.release()
        return touched

    def _take_in_other(self, wd: int, mask: int, name: bytes, touched: set[ChangeQueue]) -> None:
        if mask & In.IN_Q_OVERFLOW:
            self.overflows += 1
            for changes in self._listeners.values():
                changes.lose(self.epoch)
                touched.add(changes)
        elif mask & In.IN_UNMOUNT:
            if watch := self._watches.get(wd):
                watch[2].lose(self.epoch)
                touched.add(watch[2])
        elif mask & In.IN_IGNORED:
            with self._guard:
                watch = self._watches.pop(wd, None)
                if watch is not None and self._descriptors.get(watch[:2]) == wd:
                    self._drop(watch[:2])
                self._barriers.pop(wd, None)
                self._contents.pop(wd, None)
        elif (content := self._contents.get(wd)) is not None and name:
            changes = self._listeners[region_of(content[0])]
            flags = CONTENT | (CLOSED if mask & In.IN_CLOSE_WRITE else WRITING)
            event = DirectoryEvent(content[0], content[1] + b"/" + name, flags, self.epoch)
            if not (changes.directories and changes.directories[-1] == event):
                changes.directories.append(event)
            touched.add(changes)
        elif wd in self._barriers:
            self.sentinels[name] = self.begin_epoch()
            touched.add(self._barriers[wd])

    # -- the regions' side

    def watch(self, address: str, path: bytes, fd: int) -> None:
        """Watch an open directory of a bucket. Raises WatchLimit, or OSError (EACCES: unreadable)."""
        directory = (address, path + b"/" if path else b"")
        changes = self._listeners[region_of(address)]
        # Atomic, as is forget: a directory that moves to another region has one watch, and two threads that use it.
        with self._guard:
            wd = self._add(fd, _MASK)
            old = self._watches.get(wd)
            if old is not None and old[:2] != directory and self._descriptors.get(old[:2]) == wd:
                self._drop(old[:2])
            self._watches[wd] = (*directory, changes)
            self._descriptors[directory] = wd
            self._below.add(directory)

    def begin_epoch(self) -> int:
        """Begin an epoch: changes queued from now on belong to it."""
        with self._guard:
            self.epoch += 1
            return self.epoch

    def watch_barrier(self, address: str, fd: int) -> None:
        """Watch the directory of this bucket's sentinels."""
        self._barriers[self._add(fd, _BARRIER_MASK)] = self._listeners[region_of(address)]

    def watch_contents(self, address: str, tier: str, fd: int) -> bool:
        """Watch a bucket's open directory in a tier for writes; whether it was not watched before. Raises WatchLimit,
        OSError."""
        with self._guard:
            wd = self._add(fd, _CONTENTS_MASK)
            is_new = self._contents.get(wd) != (address, tier.encode())
            self._contents[wd] = address, tier.encode()
            return is_new

    def _add(self, fd: int, mask: Mask) -> int:
        # by descriptor: a path could be replaced before the kernel resolves it
        wd = inotify_add_watch(self._inotify_fd, b"/proc/self/fd/%d" % fd, mask)
        if wd == -1:
            number = ctypes.get_errno()
            if number == errno.ENOSPC:
                raise WatchLimit
            raise OSError(number, os.strerror(number))
        return wd

    def forget(self, address: str, path: bytes = b"") -> None:
        """Stop watching a directory and all below it, or a whole bucket."""
        with self._guard:
            for wd in [wd for wd, (whose, _) in self._contents.items() if whose == address and not path]:
                del self._contents[wd]
                inotify_rm_watch(self._inotify_fd, WatchDescriptor(wd))
            for directory in self._below.of((address, path + b"/" if path else b"")):
                wd = self._drop(directory)
                self._watches.pop(wd, None)
                inotify_rm_watch(self._inotify_fd, WatchDescriptor(wd))

    def _drop(self, directory: Directory) -> int:
        self._below.remove(directory)
        return self._descriptors.pop(directory)

    def is_watching_contents(self, address: str, tier: str) -> bool:
        return (address, tier.encode()) in list(self._contents.values())

    def is_watching(self, address: str, path: bytes) -> bool:
        """Whether writes in a directory of a bucket make events."""
        return (address, path + b"/" if path else b"") in self._descriptors

    @property
    def watched(self) -> int:
        """Number of watched directories."""
        return len(self._watches)


class NoWatches:
    """Replaces InotifyWatcher where the kernel gives no inotify instance: every directory counts as over the limit."""

    epoch = overflows = watched = 0

    def __init__(self) -> None:
        self.sentinels: dict[bytes, int] = {}

    def listen(self, region: str, changes: ChangeQueue) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def is_alive(self) -> bool:
        return True

    def watch(self, address: str, path: bytes, fd: int) -> None:
        raise WatchLimit

    def watch_barrier(self, address: str, fd: int) -> None:
        raise WatchLimit

    def watch_contents(self, address: str, tier: str, fd: int) -> bool:
        raise WatchLimit

    def forget(self, address: str, path: bytes = b"") -> None: ...

    def is_watching_contents(self, address: str, tier: str) -> bool:
        return True  # as far as that is possible

    def is_watching(self, address: str, path: bytes) -> bool:
        return False

    def begin_epoch(self) -> int:
        self.epoch += 1
        return self.epoch


def open_watcher() -> InotifyWatcher | NoWatches:
    """A watcher, with an inotify instance if there is one."""
    try:
        return InotifyWatcher()
    except OSError as error:
        log.warning("no inotify instance (%s): raise fs.inotify.max_user_instances, and start again", reason(error))
        return NoWatches()
