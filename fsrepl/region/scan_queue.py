"""A bucket's scans: when the next one is due, those under way, and the entries they found that are no objects."""

from __future__ import annotations

import bisect
import time
from collections.abc import Container

from msgspec import Struct, field

from fsrepl.model import keys
from fsrepl.storage.fs import FileType
from fsrepl.storage.walk import Walk


class Trouble(Struct):
    """A bucket's findings that a person may want to know. Paths are below the bucket."""

    polled: set[bytes] = field(default_factory=set)
    """Directories without a watch: the kernel's limit, or a filesystem without events."""
    unreadable: dict[bytes, str] = field(default_factory=dict)
    passing: dict[bytes, bool] = field(default_factory=dict)
    """The unreadable directories that are tried again, since the error may pass; and Scan.arrived."""
    mounts: set[bytes] = field(default_factory=set)
    skipped: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Directory to the names in it that are no objects: links, FIFOs, sockets, devices."""

    @property
    def skipped_number(self) -> int:
        return sum(len(names) for names in self.skipped.values())

    def of(self, path: bytes) -> str:
        """Why a directory could not be read at the last look; empty where it could."""
        return "another mount" if path in self.mounts else self.unreadable.get(path, "")

    def forget(self, path: bytes) -> None:
        """Forget one directory, which is about to be read again."""
        for known in (self.polled, self.mounts, self.unreadable, self.passing, self.skipped):
            known.discard(path) if isinstance(known, set) else known.pop(path, None)

    def forget_others(self, top: bytes, seen: Container[bytes]) -> None:
        """Forget paths that a scan of a directory and all below it has not seen: they no longer exist."""
        for known in (self.polled, self.mounts, self.unreadable, self.passing, self.skipped):
            for path in [p for p in known if is_below(p, top) and p not in seen]:
                self.forget(path)


class Rest(Struct):
    """The rest of a directory with so many names that it takes several steps.

    packed: the names that are there, in order: the last of them first, many in one, joined by zero bytes. names: the
    next ones, unpacked. after: everything up to this name is done; None at the beginning. odd: those that are no
    regular files. gone: the directory itself is gone, so that no name is there.
    """

    path: bytes
    packed: list[bytes] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    after: bytes | None = None
    odd: dict[bytes, FileType] = field(default_factory=dict)
    skipped: set[bytes] = field(default_factory=set)
    gone: bool = False

    @classmethod
    def of(cls, path: bytes, names: list[bytes], odd: dict[bytes, FileType], at_once: int) -> Rest:
        """names: sorted; emptied as they are packed, since a million take 60 MB."""
        packed = []
        while names:
            packed.append(b"\0".join(names[-at_once:]))
            del names[-at_once:]
        return cls(path, packed, odd=odd)

    def next_names(self) -> list[bytes]:
        """The next names, in order; they stay here until `pass_by`."""
        if not self.names and self.packed:
            self.names = self.packed.pop().split(b"\0")
        return self.names

    def pass_by(self, last: bytes) -> None:
        """Everything up to a name is done."""
        self.after = last
        self.names = self.names[bisect.bisect_right(self.names, last) :]


class Scan(Struct):
    """One pass over a directory of a bucket and all below it.

    arrived: a live event led here, so that files found are new, whatever their times say.
    """

    address: str
    top: bytes = b""
    arrived: bool = False
    epoch: int = 0
    walk: Walk = field(default_factory=lambda: Walk(but=keys.RESERVED))
    rest: Rest | None = None
    """The directory that was read and is not compared whole yet."""
    gone: list[bytes] | None = None
    """Once all directories were read: those that have keys and are gone, and were not looked at yet."""
    seen: set[bytes] = field(default_factory=set)
    began_ns: int = 0
    directories: int = 0
    files: int = 0
    queued: int = 0

    def __post_init__(self) -> None:
        self.walk.todo = [self.top]
        self.began_ns = time.time_ns()


class Scans:
    """The pending scans of one bucket, those of parts of it first: live changes do not wait.

    A scan that has begun is finished, whatever is added meanwhile, so that there is always progress.
    Other threads may ask is_pending.
    """

    def __init__(self) -> None:
        self._parts: dict[bytes, Scan] = {}
        self._whole: Scan | None = None
        self._part_begun: Scan | None = None
        self._whole_begun: Scan | None = None

    def add(self, scan: Scan) -> None:
        """Add a scan; a queued scan that covers the new one replaces it."""
        if not scan.top:
            scan.epoch = min([scan.epoch, *(each.epoch for each in (self._whole, *self._parts.values()) if each)])
            self._whole = scan
            self._parts = {}
        elif same := self._whole or self._parts.get(scan.top):
            same.epoch = min(same.epoch, scan.epoch)
        else:
            self._parts[scan.top] = scan

    def next(self) -> Scan | None:
        """The scan to continue, which counts as pending until it is done."""
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
        """Whether a scan for a change from before a barrier is pending."""
        # RACE: next() moves a scan between these; read in the order of the moves, none is missed.
        return any(
            each.epoch < before_epoch
            for each in (*self._parts.copy().values(), self._whole, self._part_begun, self._whole_begun)
            if each
        )

    def __bool__(self) -> bool:
        return bool(self._parts or self._whole or self._part_begun or self._whole_begun)


class ScanTimes(Struct, eq=False):
    """When a bucket is scanned, or a part of it. Changed by capture/; other steps call the methods."""

    began_ns: int = 0
    """Start of the last complete scan while some of its findings are not recorded yet; else 0."""
    recorded_ns: int | None = None
    """The start of the last scan that is recorded completely, as the journal has it; None where that was not asked."""
    rescan_at_s: float = 0.0
    look_again_at_s: float = 0.0
    look_agains: int = 0
    """Time of the next look into directories that could not be read, and the number of failed looks in a row."""
    poll_at_s: float = 0.0
    polled_since_s: float = 0.0
    reported_polled: bool = False
    mounts_seen: bytes = b""
    """The mount table at the last look. While it is unchanged, no new mount covers anything here."""
    lacks_tier_watch: bool = False
    """The kernel gives no watch for a tier."""
    tiers_watch_at_s: float = 0.0
    """The monotonic time of the next look whether all tiers are watched."""
    has_barrier: bool = False
    """The bucket's sentinel directory is watched."""

    def forget(self) -> None:
        """The bucket goes away: its scan is not recorded."""
        self.began_ns = 0

    def come_up(self) -> None:
        """The bucket comes up, perhaps with another journal."""
        self.recorded_ns = None

    def note_recorded(self) -> None:
        """All that the last scan found is recorded."""
        self.recorded_ns, self.began_ns = self.began_ns, 0


def is_below(path: bytes, top: bytes) -> bool:
    """Whether a directory equals another, or is below it."""
    return not top or path == top or path.startswith(top + b"/")
