"""Which keys may have changed: marks, and decides nothing.

One inotify instance for the site, read by a thread that only puts keys into dicts, so that a burst
does not overflow the kernel's queue; where it does overflow, one flag says so and a scan follows.
Built on watchdog's inotify layer (its descriptor, its reader, its shutting down), not on its
Observer: that one makes several objects an event and tells nobody what it lost. Source: design.md, 8.

Each region has its Marks: a key waits there until it is ready, at once after a rename into place,
settle_ms after the last event otherwise, longer under a name that looks temporary, and no longer
than open_max_s while events keep coming.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import logging
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import InotifyFD, Mask, WatchDescriptor, inotify_add_watch, inotify_rm_watch

from fsrepl import keys
from fsrepl.fs import reason
from fsrepl.settings import Capture

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
_BARRIER_MASK = Mask(In.IN_CREATE | In.IN_ONLYDIR)
_BUFFER_BYTES = 1 << 20
_BREATH_S = 0.005

# What is known of a marked key.
CLOSED, MOVED, GONE, CHANGED, WRITING, FOUND, ARRIVED = 1, 2, 4, 8, 16, 32, 64
"""Written and closed; moved into place; removed; attributes; being written; a scan found it; a directory brought it."""

_WRITTEN = CLOSED | MOVED | WRITING | FOUND | ARRIVED
_LEFT = Mask(In.IN_DELETE | In.IN_MOVED_FROM)


class Mark(NamedTuple):
    """A key that may have changed. epoch: how many barriers had been passed when it was first marked, at since_s."""

    address: str
    key: bytes
    flags: int
    epoch: int
    since_s: float


class DirectoryEvent(NamedTuple):
    """A directory appeared (ARRIVED), changed its attributes (CHANGED), or is GONE, and then perhaps only MOVED."""

    address: str
    path: bytes
    flags: int
    epoch: int


@dataclass(slots=True)
class _Waiting:
    flags: int
    epoch: int
    first_s: float
    last_s: float
    temporary: bool


def _directory_flags(mask: int) -> int:
    if mask & In.IN_MOVED_FROM:
        return GONE | MOVED
    return GONE if mask & In.IN_DELETE else CHANGED if mask & In.IN_ATTRIB else ARRIVED


def temporary_pattern(patterns: Iterable[str]) -> re.Pattern[bytes]:
    """One expression for all names that look temporary; they are matched against the last component."""
    parts = [fnmatch.translate(p).encode("utf-8", "surrogateescape") for p in patterns]
    return re.compile(b"|".join(parts) or rb"(?!)")


class WatchLimit(Exception):
    """The kernel gives no more watches: fs.inotify.max_user_watches."""


class Marks:
    """The keys of one region that may have changed. The watcher's thread puts in, the region's takes out."""

    def __init__(self, wake: Callable[[], None], settings: Capture) -> None:
        self.wake = wake
        self._guard = threading.Lock()
        self._marks: dict[tuple[str, bytes], _Waiting] = {}
        self._ready: dict[tuple[str, bytes], None] = {}
        self._settling: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._temporary: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._found: dict[str, int] = {}
        self.taken: list[Mark] = []
        """The batch in hand: each of it stays here until it is published, or waits elsewhere."""
        self.directories: deque[DirectoryEvent] = deque()
        self.lost_since: int | None = None
        """Events were lost, or a filesystem was unmounted, in this epoch first: only a scan knows now."""
        self.configure(settings)

    def configure(self, settings: Capture) -> None:
        """Take over what the settings say now."""
        self._settle_s, self._temporary_s = settings.settle_ms / 1000, settings.temporary_settle_s
        self._changing_max_s = settings.open_max_s
        self.is_temporary = temporary_pattern(settings.temporary).match

    def event(self, address: str, key: bytes, name: bytes, mask: int, now_s: float, epoch: int) -> None:
        """One event of inotify for a file. The caller holds the guard."""
        at = (address, key)
        mark = self._marks.get(at)
        if mark is None:
            mark = self._marks[at] = _Waiting(0, epoch, now_s, now_s, self.is_temporary(name) is not None)
        else:
            mark.last_s = now_s
            self._settling.pop(at, None)
            self._temporary.pop(at, None)
        queue: dict[tuple[str, bytes], None] = self._temporary if mark.temporary else self._settling
        if mask & In.IN_CLOSE_WRITE:
            mark.flags = (mark.flags | CLOSED) & ~WRITING
        elif mask & In.IN_MOVED_TO:
            mark.flags = (mark.flags | MOVED) & ~(WRITING | CLOSED)
            if not mark.temporary:
                queue = self._ready
        elif mask & _LEFT:
            mark.flags = (mark.flags | GONE) & ~(WRITING | CLOSED | MOVED)
            queue = self._settling  # whatever its name, there is nothing left to wait for
        elif mask & In.IN_ATTRIB:
            mark.flags |= CHANGED
        else:
            mark.flags |= WRITING
        if now_s - mark.first_s >= self._changing_max_s:
            queue = self._ready  # it does not come to rest
        if at not in self._ready:
            queue[at] = None

    def lose(self, epoch: int) -> None:
        """Something happened that no event tells of."""
        if self.lost_since is None:
            self.lost_since = epoch

    def is_lost(self, before_epoch: int) -> bool:
        """Whether events from before a barrier were lost, and no scan for them has been queued yet."""
        since = self.lost_since
        return since is not None and since < before_epoch

    def mark(self, address: str, found: Iterable[bytes], epoch: int, flags: int = FOUND) -> None:
        """A scan found these keys to differ from the record. They are ready now, but for temporary names."""
        now_s = time.monotonic()
        with self._guard:
            for key in found:
                at = (address, key)
                mark = self._marks.get(at)
                if flags & FOUND and not (mark and mark.flags & FOUND):
                    self._found[address] = self._found.get(address, 0) + 1
                if mark is not None:
                    mark.flags |= flags
                    mark.epoch = min(mark.epoch, epoch)
                    continue
                temporary = self.is_temporary(keys.split(key)[1]) is not None
                self._marks[at] = _Waiting(flags, epoch, now_s, now_s, temporary)
                if temporary and not flags & GONE:
                    self._temporary[at] = None
                else:
                    self._ready[at] = None

    def take(self, limit: int) -> list[Mark]:
        """The keys that are ready, at most limit of them: no longer marked, but taken until the next call."""
        now_s = time.monotonic()
        with self._guard:
            out = self.taken = []
            while self._ready and len(out) < limit:
                out.append(self._pop(next(iter(self._ready)), self._ready))
            for queue, wait_s in ((self._settling, self._settle_s), (self._temporary, self._temporary_s)):
                while queue and len(out) < limit:
                    at = next(iter(queue))
                    if self._marks[at].last_s + wait_s > now_s:
                        break
                    out.append(self._pop(at, queue))
        return out

    def _pop(self, at: tuple[str, bytes], queue: dict[tuple[str, bytes], None]) -> Mark:
        del queue[at]
        mark = self._marks.pop(at)
        if mark.flags & FOUND:
            self._found[at[0]] -= 1
        return Mark(at[0], at[1], mark.flags, mark.epoch, mark.first_s)

    def has_found(self, address: str) -> bool:
        """Whether a key that a scan of this bucket found has not been taken yet."""
        return self._found.get(address, 0) > 0

    def is_marked(self, address: str, key: bytes) -> bool:
        """Whether an event for this key is waiting."""
        return (address, key) in self._marks

    def hurry(self) -> None:
        """Make everything that only settles ready now: somebody waits for it. It may be written into for ever.

        A temporary name waits as long as it would at rest.
        """
        before_s = time.monotonic() - self._temporary_s
        with self._guard:
            self._ready.update(self._settling)
            self._settling.clear()
            for at in [a for a in self._temporary if self._marks[a].first_s < before_s]:
                del self._temporary[at]
                self._ready[at] = None

    def next_s(self) -> float | None:
        """The monotonic time when the next key is ready; None where nothing waits."""
        with self._guard:
            if self._ready or self.directories or self.lost_since is not None:
                return 0.0
            due = [
                self._marks[next(iter(queue))].last_s + wait_s
                for queue, wait_s in ((self._settling, self._settle_s), (self._temporary, self._temporary_s))
                if queue
            ]
        return min(due, default=None)

    def is_waiting(self, address: str, before_epoch: int, key: bytes = b"") -> bool:
        """Whether a key of a bucket, or this one, was marked before a barrier and is not captured, nor put off."""
        with self._guard:
            if any(m.address == address and m.epoch < before_epoch and key in (b"", m.key) for m in self.taken):
                return True
            if key:
                mark = self._marks.get((address, key))
                return mark is not None and mark.epoch < before_epoch
            # while there is one, it is mostly the first: a dict keeps the order in which they were marked
            return any(bucket == address and m.epoch < before_epoch for (bucket, _), m in self._marks.items())

    def has_news(self, address: str) -> bool:
        """Whether keys of a bucket wait, or are in hand, that something may have been written to."""
        with self._guard:
            waiting = any(bucket == address and m.flags & _WRITTEN for (bucket, _), m in self._marks.items())
            return waiting or any(m.address == address and m.flags & _WRITTEN for m in self.taken)

    def forget(self, address: str) -> None:
        """Drop every mark of a bucket: it is away, and a scan follows when it is back."""
        with self._guard:
            self._found.pop(address, None)
            for at in [a for a in self._marks if a[0] == address]:
                del self._marks[at]
                for queue in (self._ready, self._settling, self._temporary):
                    queue.pop(at, None)

    def __len__(self) -> int:
        return len(self._marks)


class Watcher(InotifyFD):
    """Reads events, and marks the keys of the regions that listen."""

    def __init__(self) -> None:
        super().__init__()
        self.daemon = True
        self.name = "watch"
        self._listeners: dict[str, Marks] = {}
        self._places: dict[int, tuple[str, bytes, Marks]] = {}
        self._descriptors: dict[tuple[str, bytes], int] = {}
        self._barriers: dict[int, Marks] = {}
        self._places_guard = threading.Lock()
        self.sentinels: dict[bytes, int] = {}
        """Sentinels read, and the epoch that began with each."""
        self.epoch = 0
        self.overflows = 0

    def listen(self, region: str, marks: Marks) -> None:
        self._listeners[region] = marks

    # -- the reading thread

    def run(self) -> None:
        last_s = 0.0
        while self.should_keep_running():
            buffer = self._read_event_buffer(_BUFFER_BYTES)
            if buffer:
                for marks in self._take_in(buffer):
                    marks.wake()
                before_s, last_s = last_s, time.monotonic()
                if last_s - before_s < _BREATH_S:
                    # While much happens a breath between two reads: the kernel merges what repeats, and whoever works
                    # with what was read is interrupted less often. Its queue holds 100 ms of the fastest writers.
                    time.sleep(_BREATH_S)
                    last_s += _BREATH_S

    def _take_in(self, buffer: bytes) -> set[Marks]:
        now_s = time.monotonic()
        touched: set[Marks] = set()
        held: Marks | None = None
        try:
            for wd, mask, _cookie, name in self._parse_event_buffer(buffer):
                place = self._places.get(wd)
                if place is None or mask & (In.IN_Q_OVERFLOW | In.IN_IGNORED | In.IN_UNMOUNT):
                    self._take_in_other(wd, mask, name, touched)
                    continue
                address, prefix, marks = place
                if marks is not held:
                    if held is not None:
                        held._guard.release()
                    marks._guard.acquire()
                    held = marks
                    touched.add(marks)
                if not name:
                    continue  # of the watched directory itself: the watch above it tells that by its name
                if not mask & In.IN_ISDIR:
                    marks.event(address, prefix + name, name, mask, now_s, self.epoch)
                elif prefix or name != keys.RESERVED:
                    flags = _directory_flags(mask)
                    marks.directories.append(DirectoryEvent(address, prefix + name, flags, self.epoch))
        finally:
            if held is not None:
                held._guard.release()
        return touched

    def _take_in_other(self, wd: int, mask: int, name: bytes, touched: set[Marks]) -> None:
        if mask & In.IN_Q_OVERFLOW:
            self.overflows += 1
            for marks in self._listeners.values():
                marks.lose(self.epoch)
                touched.add(marks)
        elif mask & In.IN_UNMOUNT:
            if place := self._places.get(wd):
                place[2].lose(self.epoch)
                touched.add(place[2])
        elif mask & In.IN_IGNORED:
            with self._places_guard:
                place = self._places.pop(wd, None)
                if place is not None and self._descriptors.get(place[:2]) == wd:
                    del self._descriptors[place[:2]]
                self._barriers.pop(wd, None)
        elif wd in self._barriers:
            self.sentinels[name] = self.begin_epoch()
            touched.add(self._barriers[wd])

    # -- the regions' side

    def watch(self, address: str, path: bytes, fd: int) -> None:
        """Watch an open directory of a bucket. Raises WatchLimit, or OSError (EACCES: it cannot be read)."""
        place = (address, path + b"/" if path else b"")
        marks = self._listeners[address.partition("/")[0]]
        # One step, as is forgetting: a directory that moves to another region has one watch, and two threads after it.
        with self._places_guard:
            wd = self._add(fd, _MASK)
            old = self._places.get(wd)
            if old is not None and old[:2] != place and self._descriptors.get(old[:2]) == wd:
                del self._descriptors[old[:2]]
            self._places[wd] = (*place, marks)
            self._descriptors[place] = wd

    def begin_epoch(self) -> int:
        """What is marked from now on is of this epoch."""
        with self._places_guard:
            self.epoch += 1
            return self.epoch

    def watch_barrier(self, address: str, fd: int) -> None:
        """Watch the directory where sentinels for this bucket are made."""
        self._barriers[self._add(fd, _BARRIER_MASK)] = self._listeners[address.partition("/")[0]]

    def _add(self, fd: int, mask: Mask) -> int:
        # by descriptor: a path could lead elsewhere by the time the kernel walks it
        wd = inotify_add_watch(self._inotify_fd, b"/proc/self/fd/%d" % fd, mask)
        if wd == -1:
            number = ctypes.get_errno()
            if number == errno.ENOSPC:
                raise WatchLimit
            raise OSError(number, os.strerror(number))
        return wd

    def forget(self, address: str, path: bytes = b"") -> None:
        """No longer watch a directory and all below it, or a whole bucket."""
        prefix = path + b"/" if path else b""
        with self._places_guard:
            gone = [p for p in self._descriptors if p[0] == address and p[1].startswith(prefix)]
            descriptors = [self._descriptors.pop(p) for p in gone]
            for wd in descriptors:
                self._places.pop(wd, None)
                inotify_rm_watch(self._inotify_fd, WatchDescriptor(wd))

    def is_watching(self, address: str, path: bytes) -> bool:
        """Whether what is written in a directory of a bucket makes events."""
        return (address, path + b"/" if path else b"") in self._descriptors

    @property
    def watched(self) -> int:
        """How many directories are watched."""
        return len(self._places)


class NoWatches:
    """In the place of a Watcher where the kernel gives no inotify instance: every directory meets the limit."""

    epoch = overflows = watched = 0

    def __init__(self) -> None:
        self.sentinels: dict[bytes, int] = {}

    def listen(self, region: str, marks: Marks) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def is_alive(self) -> bool:
        return True

    def watch(self, address: str, path: bytes, fd: int) -> None:
        raise WatchLimit

    def watch_barrier(self, address: str, fd: int) -> None:
        raise WatchLimit

    def forget(self, address: str, path: bytes = b"") -> None: ...

    def is_watching(self, address: str, path: bytes) -> bool:
        return False

    def begin_epoch(self) -> int:
        self.epoch += 1
        return self.epoch


def open_watcher() -> Watcher | NoWatches:
    """A watcher, if there is an inotify instance for it."""
    try:
        return Watcher()
    except OSError as error:
        log.warning("no inotify instance (%s): raise fs.inotify.max_user_instances, and start again", reason(error))
        return NoWatches()
