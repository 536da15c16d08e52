"""The keys of one region that may have changed, queued until they are ready to be captured.

A key is ready at once after a rename into place, otherwise settle_ms after its last event, later under a
temporary name, and after open_max_s at the latest while events keep coming. Keys are kept by bucket and taken round
robin (region/rotation.py), so that a burst in one bucket delays neither a new file in another one nor its `wait`. Where
a bucket has KEYS_MAX of them, its further events are dropped, and a scan finds the changes.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import math
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from fsrepl.model import keys
from fsrepl.region.rotation import Rotation
from fsrepl.settings import Capture

# Flags of a queued key.
CLOSED, MOVED, GONE, CHANGED, WRITING, FOUND, ARRIVED, NAMED, CONTENT = 1, 2, 4, 8, 16, 32, 64, 128, 256
"""Written and closed; moved into place; removed; attributes; being written; found by a scan; came with a directory;
another name of its file changed; its content in a tier was written into."""

_WRITTEN = CLOSED | MOVED | WRITING | FOUND | ARRIVED


KEYS_MAX = 50_000
"""Queued keys of one bucket; they take some 20 MB."""


class Change(NamedTuple):
    """A key that may have changed. epoch: number of barriers passed when it was first queued, at since_s."""

    address: str
    key: bytes
    flags: int
    epoch: int
    since_s: float


class DirectoryEvent(NamedTuple):
    """A directory that ARRIVED, CHANGED its attributes, or is GONE, perhaps only MOVED; or a write into a CONTENT, with
    the path TIER/NAME."""

    address: str
    path: bytes
    flags: int
    epoch: int


class WatchLimit(Exception):
    """The kernel gives no more watches: fs.inotify.max_user_watches."""


class Watcher(Protocol):
    """Receiver of events, which it puts into the queues of the regions (capture/watch.py)."""

    epoch: int
    sentinels: dict[bytes, int]
    """Sentinels read, and the epoch that each began."""

    def listen(self, region: str, changes: ChangeQueue) -> None: ...

    def watch(self, address: str, path: bytes, fd: int) -> None:
        """Watch an open directory of a bucket. Raises WatchLimit, or OSError (EACCES: unreadable)."""

    def watch_barrier(self, address: str, fd: int) -> None:
        """Watch the directory of this bucket's sentinels. Raises WatchLimit, OSError."""

    def watch_contents(self, address: str, tier: str, fd: int) -> bool:
        """Watch a bucket's open directory in a tier for writes; whether it was not watched before. Raises WatchLimit,
        OSError."""

    def is_watching_contents(self, address: str, tier: str) -> bool:
        """Whether a bucket's part of a tier is watched."""

    def begin_epoch(self) -> int:
        """Begin an epoch: changes queued from now on belong to it."""

    def forget(self, address: str, path: bytes = b"") -> None:
        """Stop watching a directory and all below it, or a whole bucket."""

    def is_watching(self, address: str, path: bytes) -> bool:
        """Whether writes in a directory of a bucket make events."""


@functools.lru_cache(maxsize=8)
def temporary_pattern(patterns: tuple[str, ...]) -> re.Pattern[bytes]:
    """One expression for all temporary names; it is matched against the last component."""
    parts = [fnmatch.translate(p).encode("utf-8", "surrogateescape") for p in patterns]
    return re.compile(b"|".join(parts) or rb"(?!)")


class _Waiting(Struct):
    flags: int
    epoch: int
    first_s: float
    last_s: float
    temporary: bool


class _Bucket(Struct):
    """The changes of one bucket. Each is in `changes` and in one of three queues, in the order of its events."""

    changes: dict[bytes, _Waiting] = field(default_factory=dict)
    ready: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    settling: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    temporary: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    found: int = 0
    """Number of changes that a scan found."""
    gone: int = 0
    """Number of changes that say that a file is gone."""
    lost_since: int | None = None
    """The first epoch in which an event found no room."""

    def queues(self, settle_s: float, temporary_s: float) -> list[tuple[OrderedDict[bytes, None], float]]:
        """The queues that are not empty, and the delay from a key's last event until it is ready."""
        queues = ((self.ready, -math.inf), (self.settling, settle_s), (self.temporary, temporary_s))
        return [(queue, wait_s) for queue, wait_s in queues if queue]

    def ready_s(self, queue: OrderedDict[bytes, None], wait_s: float) -> float:
        """The monotonic time when the first key of a queue is ready."""
        return self.changes[next(iter(queue))].last_s + wait_s


class ChangeQueue:
    """The keys of one region that may have changed. The watcher's thread adds, the region's thread takes."""

    def __init__(self, wake: Callable[[], None], settings: Capture) -> None:
        self.wake = wake
        self.guard = threading.Lock()
        """Held by the watcher around the events of one read."""
        self._buckets: dict[str, _Bucket] = {}
        self._rotation: Rotation[str] = Rotation()
        self.taken: list[Change] = []
        """The current batch. Each change stays here until it is published or waits elsewhere."""
        self.directories: deque[DirectoryEvent] = deque()
        self.lost_since: int | None = None
        """The first epoch in which events were lost or a filesystem was unmounted: only a scan finds the changes."""
        self.configure(settings)

    def configure(self, settings: Capture) -> None:
        """Apply the current settings."""
        self._settle_s, self._temporary_s = settings.settle_ms / 1000, settings.temporary_settle_s
        self._changing_max_s = settings.open_max_s
        self.is_temporary = temporary_pattern(settings.temporary).match

    # -- adding

    def event(self, address: str, key: bytes, name: bytes, flag: int, now_s: float, epoch: int) -> None:
        """Add one event of a file: CLOSED, MOVED, GONE, CHANGED or WRITING. The caller holds the guard."""
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = _Bucket()
        change = bucket.changes.get(key)
        if change is None:
            if len(bucket.changes) >= KEYS_MAX:
                bucket.lost_since = epoch if bucket.lost_since is None else bucket.lost_since
                return
            change = bucket.changes[key] = _Waiting(0, epoch, now_s, now_s, self.is_temporary(name) is not None)
        else:
            change.last_s = now_s
            bucket.settling.pop(key, None)
            bucket.temporary.pop(key, None)
        queue = bucket.temporary if change.temporary else bucket.settling
        if flag == CLOSED:
            change.flags = (change.flags | CLOSED) & ~WRITING
        elif flag == MOVED:
            change.flags = (change.flags | MOVED) & ~(WRITING | CLOSED)
            if not change.temporary:
                queue = bucket.ready
        elif flag == GONE:
            bucket.gone += not change.flags & GONE
            change.flags = (change.flags | GONE) & ~(WRITING | CLOSED | MOVED)
            queue = bucket.settling  # whatever its name, nothing more can happen to the file
        else:
            change.flags |= flag
        if now_s - change.first_s >= self._changing_max_s:
            queue = bucket.ready  # events keep coming
        if key not in bucket.ready:
            queue[key] = None

    def lose(self, epoch: int) -> None:
        """Note that events were lost."""
        if self.lost_since is None:
            self.lost_since = epoch

    def dropped_since(self, address: str) -> int | None:
        """The epoch since which events of a bucket found no room, once there is some again; None where there is none.
        A scan is then begun, and `forget_dropped` called."""
        with self.guard:
            bucket = self._buckets.get(address)
            return None if bucket is None or self.is_full(address) else bucket.lost_since

    def forget_dropped(self, address: str) -> None:
        """A scan that has not begun yet covers the events that were dropped until now."""
        with self.guard:
            if (bucket := self._buckets.get(address)) is not None:
                bucket.lost_since = None

    def add(self, address: str, found: Iterable[bytes], epoch: int, flags: int = FOUND) -> None:
        """Add keys that a scan found to differ from the record. They are ready now, except temporary names, and
        directories that an event told of: what is made or removed in these settles too, and one batch has it all."""
        now_s = time.monotonic()
        with self.guard:
            bucket = self._buckets.setdefault(address, _Bucket())
            for key in found:
                change = bucket.changes.get(key)
                if flags & FOUND and not (change and change.flags & FOUND):
                    bucket.found += 1
                if flags & GONE and not (change and change.flags & GONE):
                    bucket.gone += 1
                if change is not None:
                    change.flags |= flags
                    change.epoch = min(change.epoch, epoch)
                    continue
                temporary = self.is_temporary(keys.split(key)[1]) is not None
                bucket.changes[key] = _Waiting(flags, epoch, now_s, now_s, temporary)
                queue = bucket.temporary if temporary and not flags & GONE else bucket.ready
                if keys.is_directory(key) and not flags & FOUND:
                    queue = bucket.settling
                queue[key] = None

    # -- taking

    def take(self, limit: int) -> list[Change]:
        """Take at most limit ready keys, round robin between buckets. They count as taken until the next call."""
        now_s = time.monotonic()
        with self.guard:
            out = self.taken = []
            for address, share in self._rotation.shares(self._ready(now_s), limit, now_s).items():
                bucket = self._buckets[address]
                until = len(out) + share
                for queue, wait_s in bucket.queues(self._settle_s, self._temporary_s):
                    for key in list(itertools.islice(queue, until - len(out))):
                        if bucket.changes[key].last_s + wait_s > now_s:
                            break
                        out.append(self._pop(address, bucket, key, queue))
        return out

    def _ready(self, now_s: float) -> dict[str, int]:
        """By bucket, the number of keys that may be ready: all keys of each queue whose first key is."""
        return {
            address: sum(
                len(queue)
                for queue, wait_s in bucket.queues(self._settle_s, self._temporary_s)
                if bucket.ready_s(queue, wait_s) <= now_s
            )
            for address, bucket in self._buckets.items()
        }

    def _pop(self, address: str, bucket: _Bucket, key: bytes, queue: OrderedDict[bytes, None]) -> Change:
        del queue[key]
        change = bucket.changes.pop(key)
        if change.flags & FOUND:
            bucket.found -= 1
        if change.flags & GONE:
            bucket.gone -= 1
        return Change(address, key, change.flags, change.epoch, change.first_s)

    def put_back(self, changes: Iterable[Change]) -> None:
        """Return taken keys that no time was left for: they are ready next, before all others."""
        now_s = time.monotonic()
        with self.guard:
            for each in reversed(list(changes)):
                bucket = self._buckets.setdefault(each.address, _Bucket())
                change = bucket.changes.get(each.key)
                if each.flags & FOUND and not (change and change.flags & FOUND):
                    bucket.found += 1
                if each.flags & GONE and not (change and change.flags & GONE):
                    bucket.gone += 1
                if change is not None:  # a newer change is queued: its delay applies
                    change.flags |= each.flags
                    change.epoch, change.first_s = min(change.epoch, each.epoch), each.since_s
                    continue
                temporary = self.is_temporary(keys.split(each.key)[1]) is not None
                bucket.changes[each.key] = _Waiting(each.flags, each.epoch, each.since_s, now_s, temporary)
                bucket.ready[each.key] = None
                bucket.ready.move_to_end(each.key, last=False)

    def flush_settling(self, address: str) -> None:
        """Make every settling key of a bucket ready now, for a `wait`: a file may be written to for ever.

        A temporary name waits as long as it would without further events.
        """
        before_s = time.monotonic() - self._temporary_s
        with self.guard:
            if (bucket := self._buckets.get(address)) is None:
                return
            bucket.ready.update(bucket.settling)
            bucket.settling.clear()
            for key in [k for k in bucket.temporary if bucket.changes[k].first_s < before_s]:
                del bucket.temporary[key]
                bucket.ready[key] = None

    def forget(self, address: str) -> None:
        """Drop every change of a bucket that is away: a scan follows when it is back."""
        with self.guard:
            self._buckets.pop(address, None)

    # -- queries

    def has_found(self, address: str) -> bool:
        """Whether a key that a scan of this bucket found is still to be taken."""
        bucket = self._buckets.get(address)
        return bucket is not None and bucket.found > 0

    def removals(self, address: str) -> int:
        """The number of queued keys of a bucket that may have been deleted."""
        bucket = self._buckets.get(address)
        return bucket.gone if bucket is not None else 0

    def count(self, address: str) -> int:
        """The number of queued keys of a bucket."""
        bucket = self._buckets.get(address)
        return len(bucket.changes) if bucket is not None else 0

    def is_full(self, address: str) -> bool:
        """Whether a scan of a bucket is to wait until more of its queued keys are captured."""
        return self.count(address) >= KEYS_MAX // 2

    def has_directories(self, address: str) -> bool:
        """Whether an event of a directory of a bucket is queued, which may lead to a scan."""
        return any(each.address == address for each in list(self.directories))

    def is_queued(self, address: str, key: bytes) -> bool:
        """Whether an event for this key is waiting."""
        bucket = self._buckets.get(address)
        return bucket is not None and key in bucket.changes

    def is_lost(self, address: str, before_epoch: float = math.inf) -> bool:
        """Whether events of a bucket from before a barrier were lost, and no scan for them is queued yet."""
        bucket = self._buckets.get(address)
        return any(
            since is not None and since < before_epoch
            for since in (self.lost_since, bucket.lost_since if bucket is not None else None)
        )

    def next_s(self) -> float | None:
        """The monotonic time when the next key is ready; None where nothing waits."""
        with self.guard:
            if self.directories or self.lost_since is not None:
                return 0.0
            if any(each.lost_since is not None and not self.is_full(a) for a, each in self._buckets.items()):
                return 0.0
            due = [
                bucket.ready_s(queue, wait_s)
                for bucket in self._buckets.values()
                for queue, wait_s in bucket.queues(self._settle_s, self._temporary_s)
            ]
        return max(0.0, min(due)) if due else None

    def is_waiting(self, address: str, before_epoch: int, key: bytes = b"") -> bool:
        """Whether a key of a bucket, or this one, was queued before a barrier and is neither captured nor deferred."""
        with self.guard:
            if any(m.address == address and m.epoch < before_epoch and key in (b"", m.key) for m in self.taken):
                return True
            bucket = self._buckets.get(address, _Bucket())
            if key:
                change = bucket.changes.get(key)
                return change is not None and change.epoch < before_epoch
            # such a change is mostly the first: a dict keeps the order of insertion
            return any(change.epoch < before_epoch for change in bucket.changes.values())

    def has_news(self, address: str) -> bool:
        """Whether keys of a bucket are queued, or in the current batch, whose files may have been written to."""
        with self.guard:
            waiting = self._buckets.get(address, _Bucket()).changes.values()
            return any(m.flags & _WRITTEN for m in waiting) or any(
                m.address == address and m.flags & _WRITTEN for m in self.taken
            )

    def __len__(self) -> int:
        return sum(len(bucket.changes) for bucket in self._buckets.values())


class WriterWait(Struct, frozen=True):
    """How long to wait for writers, from settings; is_temporary matches names that are never taken while open."""

    open_quiet_s: float
    open_max_s: float
    large_file_bytes: int
    is_temporary: Callable[[bytes], re.Match[bytes] | None]
