"""State of one bucket in its region's thread: its phase, its queues, and the reasons why keys wait."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from msgspec import Struct, field

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.model.version import Version
from fsrepl.model.view import View
from fsrepl.region.change_queue import Change
from fsrepl.region.deletions import Deletions
from fsrepl.region.expected import Expected
from fsrepl.region.label_queue import LabelQueue
from fsrepl.region.rewrites import Rewrites
from fsrepl.region.scan_queue import Scan, Scans, Trouble, is_below
from fsrepl.region.withheld import Withheld
from fsrepl.storage import backfill_jobs
from fsrepl.storage.alike import Alike
from fsrepl.storage.backfill_jobs import Job
from fsrepl.storage.bucket import Bucket
from fsrepl.storage.bucket_documents import Documents
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.journal.rows import Classed, Delivery
from fsrepl.storage.remembered import Keeper
from fsrepl.storage.walk import Uncompared


class Resting(Struct, frozen=True):
    """A directory of a replica in a tree bucket, at rest from a monotonic time on.

    version_id, source: the replicated version that it was made to show, as far as that is known here, and its source.
    """

    due_s: float
    version_id: str = ""
    source: str = ""


class Deferred(Struct):
    """A key whose capture is deferred."""

    due_s: float
    change: Change
    why: str
    opened: bool
    looked: int
    """The epoch of the last look at the key."""


class StaleView(Struct):
    """A view that does not show its key's current version yet."""

    due_s: float
    why: str
    conflict: bool
    intent: bytes = b""
    attempts: int = 0
    since_s: float = 0.0
    is_warned: bool = False
    """The log has named the conflict."""
    is_made_anew: bool = False
    """The view shows the current version, but in another form than it must."""


class Overwritten(Struct):
    """A destroyed version whose content is to be fetched again. intent: the intent that records it."""

    intent: bytes
    due_s: float = 0.0
    attempts: int = 0
    in_background: bool = False


class Damaged(Struct, frozen=True):
    """A stored version of the region whose record was found wrong or lost."""

    address: str
    key: bytes
    id: str
    marker: bool = False


class LifecycleRun(Struct):
    """One run of a bucket's lifecycle through all its keys, as of one moment.

    last: the position reached, directory and name; todo: the directories left in a bucket that was never
    versioned. again: keys that were not ready, judged again up to a number of tries. done: by the name of the action,
    the number of versions it was applied to. refused: how often in a row nothing could begin, and why.
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
    refused: int = 0
    why: str = ""


class Placing(Struct):
    """A pass through a bucket for versions that do not lie in the tier of their class.

    asked: keys of which something may have to be moved. last: the position reached. in_hand: a background worker
    copies, or sweeps a tier. waits: by tier, empty for the bucket's store, or as `from TIER`, the monotonic time of the
    next try where the last one failed; why: what it failed for. checks_links: symlinks may lead to where a content was
    before. swept: by tier, the monotonic time of the next sweep; day: the last UTC day on which tiers were swept.
    """

    asked: dict[bytes, None] = field(default_factory=dict)
    last: Classed | None = None
    checks_links: bool = False
    is_over: bool = False
    pass_due_s: float = 0.0
    in_hand: bool = False
    tries: int = 0
    waits: dict[str, float] = field(default_factory=dict)
    why: str = ""
    swept: dict[str, float] = field(default_factory=dict)
    day: int = 0

    def begin_again(self) -> None:
        """Go through the bucket from its beginning, at once."""
        self.last, self.is_over, self.pass_due_s = None, False, 0.0

    def sweep_due(self, tier: str) -> float:
        return self.swept.get(tier, 0.0)


class Phase(enum.Enum):
    """Progress of a bucket since it was last away."""

    AWAY = "not opened yet, or could not be opened"
    SUSPENDED = "present, but no work is done in it for a while after a fault"
    SCANNING = "indexed and watched; its first scan is not complete"
    ONLINE = "its first scan is complete"


class BucketState(Struct, eq=False):
    """State of one bucket."""

    bucket: Bucket
    phase: Phase = Phase.AWAY
    why: str = ""
    """Reason why the bucket is AWAY or SUSPENDED; empty before it is first opened, and while it is up."""
    is_indexed: bool = False
    """All that is in its store is in the journal, as far as is known: no batch failed between the two."""
    noted_s: float = 0.0
    """The monotonic time when that was noted last: see repair/settled.py."""
    noted_commits: int = -1
    """The journal's number of transactions then."""
    uncompared: list[Uncompared] = field(default_factory=list)
    """Directories that the start left out: see repair/settled.py."""
    unsettled: bool = False
    """The bucket went away while something written in it was not captured yet."""
    scans: Scans = field(default_factory=Scans)
    trouble: Trouble = field(default_factory=Trouble)
    deferred: dict[bytes, Deferred] = field(default_factory=dict)
    stale: dict[bytes, StaleView] = field(default_factory=dict)
    unapplied: dict[bytes, View] = field(default_factory=dict)
    """Views before a write of metadata that a fault interrupted: the missing part is no user's edit."""
    retries_blocked: bool = False
    """Something was removed since the last check of the obstacles to stale views."""
    overwritten: dict[tuple[bytes, str], Overwritten] = field(default_factory=dict)
    """Destroyed stored versions that are being fetched again: key and version id."""
    alike: Alike = field(default_factory=Alike)
    """Samples of the blocks of its large contents."""
    damaged: list[Damaged] = field(default_factory=list)
    """Damage that capture and delivery found here in this pass of the loop, which has each repaired once."""
    copying: dict[bytes, Change] = field(default_factory=dict)
    """Keys that a background worker is copying."""
    copy_again_at_s: dict[bytes, float] = field(default_factory=dict)
    """Keys whose copying took a while, and the time until which their next change waits."""
    announced: bytes | None = None
    """The key being copied that its destinations are, or may be, told of: see capture/expect.py."""
    unsteady: set[bytes] = field(default_factory=set)
    """Keys of which the last announced update came to nothing, as of a file that is always being written."""
    expected: dict[tuple[str, bytes], Expected] = field(default_factory=dict)
    """By source and key: updates that are being captured there, for which no early copy has begun."""
    early: dict[tuple[str, bytes], EarlyCopy] = field(default_factory=dict)
    """By source and key: copies of versions here, for updates that are expected from there. Background workers take
    them out."""
    scanned_ns: int | None = None
    """The start of the last scan that is recorded completely, as the journal has it; None where that was not asked."""
    new_names: dict[int, list[Version]] = field(default_factory=dict)
    """In a tree bucket, by inode number: new versions of the batch being captured whose files have several names."""
    resting: dict[bytes, Resting] = field(default_factory=dict)
    """In a tree bucket: directories of replicas by path, the one that is at rest first before the others."""
    may_lack_links: bool = False
    """In a tree bucket: views that are to be one file may be several."""
    awaited_names: set[bytes] = field(default_factory=set)
    """In a tree bucket: keys that other views were to be linked to, and could not be."""
    labels: LabelQueue = field(default_factory=LabelQueue)
    unreadable: dict[bytes, str] = field(default_factory=dict)
    """Files that the daemon may not read, and why. Only a change of the file makes another try worthwhile."""
    faults: dict[bytes, int] = field(default_factory=dict)
    """Number of failed tries in a row, by key."""
    directories: dict[bytes, bool] = field(default_factory=dict)
    """Directories whose permissions are to be compared again, and whether their replicas were notified already."""
    jobs: dict[str, Run] = field(default_factory=dict)
    """Unfinished backfills from here, by id."""
    orphaned: dict[tuple[str, str], str] = field(default_factory=dict)
    """Destination and rule of backfill deliveries that no rule covers any more, and S3's reason."""
    documents: Documents | None = None
    keeper: Keeper = field(default_factory=Keeper)
    """Copies the bucket's documents into the site's state."""
    unsynced: set[tuple[bytes, str]] = field(default_factory=set)
    """Replicas that exist but could not be synced: the kernel may have dropped their data. They are made again."""
    lacks_records: bool = False
    """Versions here have lost their attributes. Another region may know them once it is back."""
    paused: str = ""
    skipped_recorded: int = -1
    """Number of entries that are no objects, as recorded in the journal."""
    was_scanned: bool = False
    """A scan was completed before the bucket came up: the directories it found are watched while they are compared."""
    scan_began_ns: int = 0
    """Start of the last complete scan while some of its findings are not recorded yet; else 0."""
    set_aside: dict[bytes, str] = field(default_factory=dict)
    """Keys whose capture failed with an unexpected error. Each is tried alone."""
    undelivered: dict[bytes, str] = field(default_factory=dict)
    """Keys whose replicas cannot be made here because of such an error."""
    captures_singly: bool = False
    delivers_singly: bool = False
    """After an unexpected error in a batch, its captures or deliveries are taken one by one once, which finds the one
    that failed."""
    failures: int = 0
    up_again_at_s: float = 0.0
    """Time before which the bucket is not brought up again, after that many failed batches in a row."""
    rescan_at_s: float = 0.0
    look_again_at_s: float = 0.0
    look_agains: int = 0
    """Time of the next look into directories that could not be read, and the number of failed looks in a row."""
    displaced_at_s: float = 0.0
    """Time of the next look into .fsrepl/displaced."""
    poll_at_s: float = 0.0
    polled_since_s: float = 0.0
    reported_polled: bool = False
    reported_exposed: str = ""
    mounts_seen: bytes = b""
    """The mount table at the last look. While it is unchanged, no new mount covers anything here."""
    lifecycle: LifecycleRun | None = None
    """The lifecycle run under way."""
    lifecycle_look_s: float = 0.0
    """Time of the next check whether a lifecycle run is due."""
    has_lifecycle: bool = True
    """False once it is known to have no rules, and the journal to remember none."""
    lacks_tier_watch: bool = False
    """The kernel gives no watch for a tier."""
    tiers_watch_at_s: float = 0.0
    """The monotonic time of the next look whether all tiers are watched."""
    placing: Placing = field(default_factory=Placing)
    """The moves between tiers."""
    scrubbing: bool = False
    """A part of it is being read by the scrub."""
    scrub_count_s: float = 0.0
    """Time of the next count of the bytes that the scrub is to read."""
    scrub_look_s: float = 0.0
    """Time of the next check whether the scrub may read on."""
    deletions: Deletions = field(default_factory=Deletions)
    """The deletions of users within the last minute."""
    rewrites: Rewrites = field(default_factory=Rewrites)
    withheld: Withheld = field(default_factory=Withheld)
    """Markers that are not handed over yet."""
    deleted_s: float = 0.0
    """When the last deletion was captured."""
    has_barrier: bool = False
    """The bucket's sentinel directory is watched."""

    def describe(self) -> Document:
        """Document for `status`. Other threads read it, and all of NAMES, while the region's thread works."""
        trouble = self.bucket.trouble or (f"{self.bucket.address}: {self.why}" if self.phase is Phase.SUSPENDED else "")
        return {
            "online": self.is_up or not trouble,
            "trouble": trouble,
            "scanning": bool(self.scans),
            "skipped": self.trouble.skipped_number if self.is_scanned else None,
            "paused": self.paused,
            "exposed": self.bucket.exposed,
            "moves_wait": self.placing.why,
            "lifecycle_waits": self.lifecycle.why if self.lifecycle is not None else "",
        }

    def await_names(self, found: Collection[bytes]) -> None:
        """Have views looked at that could not be linked to some keys, also once one of these is shown."""
        self.may_lack_links |= bool(found)
        self.awaited_names.update(found)

    def ask_to_place(self, found: Iterable[bytes]) -> None:
        """Have keys looked at whose versions may have to be moved to a tier."""
        if self.bucket.root.settings.classes:
            self.placing.asked.update(dict.fromkeys(found))

    @property
    def is_up(self) -> bool:
        """Whether the bucket is indexed and watched."""
        return self.phase in (Phase.SCANNING, Phase.ONLINE)

    @property
    def is_scanned(self) -> bool:
        """Whether the first scan since the bucket came up is complete."""
        return self.phase is Phase.ONLINE

    def note_skipped(self, key: bytes, *, there: bool) -> None:
        directory, name = keys.split(key)
        names = self.trouble.skipped.get(directory)
        if there:
            self.trouble.skipped.setdefault(directory, set()).add(name)
        elif names is not None:
            names.discard(name)

    def is_blind(self, directory: bytes) -> bool:
        """Whether something in or below a directory could not be read at the last look."""
        paths = [*self.trouble.unreadable, *(keys.split(key)[0] for key in self.unreadable)]
        return any(is_below(path, directory) for path in paths)

    def looked_through(self, scan: Scan) -> None:
        """Drop the unreadable files whose directories are gone, after a scan of a directory and all below it."""
        blind = [*self.trouble.mounts, *self.trouble.unreadable]
        for key in list(self.unreadable):
            directory = keys.split(key)[0]
            gone = is_below(directory, scan.top) and directory not in scan.seen
            if gone and not any(is_below(directory, path) for path in blind):
                del self.unreadable[key]


Names = list[tuple[bytes, str]]


def _unreadable(state: BucketState) -> Names:
    """Unreadable files, and directories with a trailing slash."""
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
    "uncaptured": lambda state: [(key, each.why) for key, each in list(state.deferred.items()) if key in state.faults],
}
"""Lists that may be very long, by name: keys or directories, each with its reason where there is one."""


class Run(Struct):
    """A job at work. faults: number of failures in a row; due_s: time of the next try."""

    job: Job
    saved_s: float = field(default_factory=time.monotonic)
    due_s: float = 0.0
    faults: int = 0
    reported: Delivery | None = None
    reporting: bool = False
    began_s: float = field(default_factory=time.monotonic)
    began_with: backfill_jobs.Tasks | None = None
