"""Scans under way, and the entries they found that are no objects."""

from __future__ import annotations

import time
from collections.abc import Container

from msgspec import Struct, field

from fsrepl.model import keys
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


class Scan(Struct):
    """One pass over a directory of a bucket and all below it.

    arrived: a live event led here, so that files found are new, whatever their times say.
    """

    address: str
    top: bytes = b""
    arrived: bool = False
    epoch: int = 0
    walk: Walk = field(default_factory=lambda: Walk(but=keys.RESERVED))
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


def is_below(path: bytes, top: bytes) -> bool:
    """Whether a directory equals another, or is below it."""
    return not top or path == top or path.startswith(top + b"/")
