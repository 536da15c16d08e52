"""One bucket at work in its region's thread: what is known of it, what waits there, and why."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.region.change_queue import Change
from fsrepl.region.label_queue import LabelQueue
from fsrepl.region.scan_queue import Scan, Scans, Trouble, is_below
from fsrepl.storage import backfill_jobs
from fsrepl.storage.backfill_jobs import Job
from fsrepl.storage.bucket import Bucket, Documents
from fsrepl.storage.journal.rows import Delivery
from fsrepl.storage.remembered import Keeper


@dataclass(slots=True)
class Deferred:
    """A key that could not be taken yet."""

    due_s: float
    change: Change
    why: str
    opened: bool
    looked: int
    """The epoch in which it was looked at last."""


@dataclass(slots=True)
class StaleView:
    """A view that does not show its key's current version yet."""

    due_s: float
    why: str
    conflict: bool
    intent: bytes = b""
    attempts: int = 0


@dataclass(slots=True)
class Overwritten:
    """A destroyed version whose content is to be fetched again. intent: where that is written down."""

    intent: bytes
    due_s: float = 0.0
    attempts: int = 0
    in_background: bool = False


@dataclass(frozen=True, slots=True)
class Damaged:
    """A stored version whose record was found wrong or lost. Its bucket may be one of another region."""

    address: str
    key: bytes
    id: str
    marker: bool = False


@dataclass(slots=True)
class LifecycleRun:
    """One run of a bucket's lifecycle through all its keys, as of one moment.

    last: how far it is, by directory and name; todo: the directories that are left of a bucket that was never
    versioned. again: keys that were not ready, and are judged once more, up to some tries. done: by the word for it,
    how many versions something was done to.
    """

    now_ns: int
    last: tuple[bytes, bytes] | None = None
    todo: list[bytes] = field(default_factory=lambda: [b""])
    is_over: bool = False
    again: dict[bytes, None] = field(default_factory=dict)
    tries: int = 0
    due_s: float = 0.0
    judged: int = 0
    done: dict[str, int] = field(default_factory=dict)
    blocked: int = 0


class Phase(enum.Enum):
    """How far a bucket has come since it was last seen."""

    AWAY = "it was not opened yet, or could not be opened"
    SUSPENDED = "it is there, and no work is done in it for a while after a fault"
    SCANNING = "it is indexed and watched, and its first scan is not complete"
    ONLINE = "its first scan is complete"


@dataclass(slots=True, eq=False)
class BucketState:
    """One bucket at work."""

    bucket: Bucket
    phase: Phase = Phase.AWAY
    why: str = ""
    """Why it is away, or suspended; empty where it was not opened yet, and while it is up."""
    unsettled: bool = False
    """When it went away, something had been written in it that was not captured."""
    scans: Scans = field(default_factory=Scans)
    trouble: Trouble = field(default_factory=Trouble)
    deferred: dict[bytes, Deferred] = field(default_factory=dict)
    stale: dict[bytes, StaleView] = field(default_factory=dict)
    retries_blocked: bool = False
    """Something is gone since the last look at those that stood in the way of held views."""
    overwritten: dict[tuple[bytes, str], Overwritten] = field(default_factory=dict)
    """Stored versions that were destroyed, and are fetched again: key and version id."""
    damaged: list[Damaged] = field(default_factory=list)
    """What capture and delivery came upon here during this turn; the loop has each repaired once."""
    copying: dict[bytes, Change] = field(default_factory=dict)
    """Keys that a lane is copying."""
    copy_again_at_s: dict[bytes, float] = field(default_factory=dict)
    """Keys whose copying took a while, and until when the next change of theirs waits."""
    labels: LabelQueue = field(default_factory=LabelQueue)
    unreadable: dict[bytes, str] = field(default_factory=dict)
    """Files that we may not read, and why: nothing but a change of theirs makes another try worth while."""
    faults: dict[bytes, int] = field(default_factory=dict)
    """How many tries in a row went wrong, of keys that are tried again."""
    directories: dict[bytes, bool] = field(default_factory=dict)
    """Directories to look at again for what they let people do, and whether those that follow them are told already."""
    jobs: dict[str, Run] = field(default_factory=dict)
    """Backfills from here that have not ended, by id."""
    orphaned: dict[tuple[str, str], str] = field(default_factory=dict)
    """Destination and rule of what backfills owe and no rule stands for any more, and S3's reason for that."""
    documents: Documents | None = None
    keeper: Keeper = field(default_factory=Keeper)
    """Copies its documents into the site's state."""
    unsynced: set[tuple[bytes, str]] = field(default_factory=set)
    """Replicas that are there and could not be made durable: the kernel may have dropped them. They are made again."""
    stripped: bool = False
    """Versions here have lost their attributes, which another region may know when it is back."""
    paused: str = ""
    skipped_recorded: int = -1
    """The number of entries that are no objects, as the journal has it."""
    scan_began_ns: int = 0
    """When the last complete scan began, as long as not all that it found is recorded; else 0."""
    set_aside: dict[bytes, str] = field(default_factory=dict)
    """Keys that cannot be captured for a reason that nobody foresaw. Each is tried alone."""
    undelivered: dict[bytes, str] = field(default_factory=dict)
    """Keys whose replicas cannot be made here for such a reason."""
    captures_singly: bool = False
    delivers_singly: bool = False
    """After an unforeseen fault in the midst of a batch: what is captured here, and what is delivered here, is taken
    one by one once, which tells whose fault it was."""
    failures: int = 0
    up_again_at_s: float = 0.0
    """After that many batches in a row that went wrong, it is not brought up before then."""
    rescan_at_s: float = 0.0
    look_again_at_s: float = 0.0
    look_agains: int = 0
    """When to look again into directories that could not be read, and how often in a row that was in vain."""
    displaced_at_s: float = 0.0
    """When to look next at what views have left in .fsrepl/displaced."""
    poll_at_s: float = 0.0
    polled_since_s: float = 0.0
    said_polled: bool = False
    said_exposed: str = ""
    mounts_seen: bytes = b""
    """The machine's table of mounts at the last look: where it is the same, no new one covers anything here."""
    lifecycle: LifecycleRun | None = None
    """The run through it that is under way."""
    lifecycle_look_s: float = 0.0
    """When to look next whether one is due."""
    has_barrier: bool = False
    """Its sentinels are watched."""

    def describe(self) -> Document:
        """How it is, for `status`. Read by other threads while its own goes on, as all of NAMES."""
        trouble = self.bucket.trouble or (f"{self.bucket.address}: {self.why}" if self.phase is Phase.SUSPENDED else "")
        return {
            "online": self.is_up or not trouble,
            "trouble": trouble,
            "scanning": bool(self.scans),
            "skipped": self.trouble.skipped_number if self.is_scanned else None,
            "paused": self.paused,
            "exposed": self.bucket.exposed,
        }

    @property
    def is_up(self) -> bool:
        """Whether it is indexed and watched."""
        return self.phase in (Phase.SCANNING, Phase.ONLINE)

    @property
    def is_scanned(self) -> bool:
        """Whether the first scan since it came up is complete."""
        return self.phase is Phase.ONLINE

    def note_skipped(self, key: bytes, *, there: bool) -> None:
        directory, name = keys.split(key)
        names = self.trouble.skipped.get(directory)
        if there:
            self.trouble.skipped.setdefault(directory, set()).add(name)
        elif names is not None:
            names.discard(name)

    def is_blind(self, directory: bytes) -> bool:
        """Whether something in a directory, or below it, could not be read when it was looked at last."""
        paths = [*self.trouble.unreadable, *(keys.split(key)[0] for key in self.unreadable)]
        return any(is_below(path, directory) for path in paths)

    def looked_through(self, scan: Scan) -> None:
        """A directory and all below it have been looked through: what is there no longer need not be read."""
        blind = [*self.trouble.mounts, *self.trouble.unreadable]
        for key in list(self.unreadable):
            directory = keys.split(key)[0]
            gone = is_below(directory, scan.top) and directory not in scan.seen
            if gone and not any(is_below(directory, path) for path in blind):
                del self.unreadable[key]


Names = list[tuple[bytes, str]]


def _unreadable(state: BucketState) -> Names:
    """Files, and directories with a slash behind them."""
    return [*list(state.unreadable.items()), *((p + b"/", why) for p, why in list(state.trouble.unreadable.items()))]


def _held(state: BucketState, *, conflict: bool) -> Names:
    return [(key, stale.why) for key, stale in list(state.stale.items()) if stale.conflict == conflict]


NAMES: Mapping[str, Callable[[BucketState], Names]] = {
    "polled": lambda state: [(path, "") for path in list(state.trouble.polled)],
    "mounts": lambda state: [(path, "") for path in list(state.trouble.mounts)],
    "unreadable": _unreadable,
    "behind": lambda state: _held(state, conflict=False),
    "conflicts": lambda state: _held(state, conflict=True),
    "set_aside": lambda state: [*list(state.set_aside.items()), *list(state.undelivered.items())],
    "waiting": lambda state: [(key, deferred.why) for key, deferred in list(state.deferred.items())],
}
"""What a bucket may have very many of, by name: keys or directories, each with the reason where there is one."""


@dataclass(slots=True)
class Run:
    """A job at work. faults: how often in a row it could not go on; due_s: when it tries again."""

    job: Job
    saved_s: float = field(default_factory=time.monotonic)
    due_s: float = 0.0
    faults: int = 0
    reported: Delivery | None = None
    reporting: bool = False
    began_s: float = field(default_factory=time.monotonic)
    began_with: backfill_jobs.Tasks | None = None
