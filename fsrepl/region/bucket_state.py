"""State of one bucket in its region's thread: its phase, its queues, and the reasons why keys wait."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct, field

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.region.attachment import Attachment
from fsrepl.region.backfill_state import BackfillState
from fsrepl.region.capture_state import CaptureState
from fsrepl.region.deletions import Deletions
from fsrepl.region.label_queue import LabelQueue
from fsrepl.region.lifecycle_state import LifecycleState
from fsrepl.region.limits import Progress
from fsrepl.region.replica_state import ReplicaState
from fsrepl.region.scan_queue import Scan, Scans, ScanTimes, Trouble, is_below
from fsrepl.region.view_state import ViewState
from fsrepl.region.withheld import Withheld
from fsrepl.storage.bucket import Bucket


class Damaged(Struct, frozen=True):
    """A stored version of the region whose record was found wrong or lost."""

    address: str
    key: bytes
    id: str
    marker: bool = False


class Phase(enum.Enum):
    """Progress of a bucket since it was last away."""

    AWAY = "not opened yet, or could not be opened"
    SUSPENDED = "present, but no work is done in it for a while after a fault"
    SCANNING = "indexed and watched; its first scan is not complete"
    ONLINE = "its first scan is complete"


class ScrubState(Struct, eq=False):
    """The scrub of a bucket. Changed by repair/scrub.py; commands call the methods."""

    is_reading: bool = False
    """A part of the bucket is being read by the scrub."""
    progress: Progress | None = None
    """Of the part that the scrub reads, or read last."""
    count_s: float = 0.0
    """Time of the next count of the bytes that the scrub is to read."""
    look_s: float = 0.0
    """Time of the next check whether the scrub may read on."""

    def look_now(self) -> None:
        self.look_s = 0.0

    def stop(self) -> None:
        """End the read that is under way, in the midst of a large version too."""
        if self.progress is not None:
            self.progress.stop = True


class BucketState(Struct, eq=False):
    """State of one bucket. Each part is changed by one folder, or one file, which its docstring names."""

    bucket: Bucket
    phase: Phase = Phase.AWAY
    why: str = ""
    """Reason why the bucket is AWAY or SUSPENDED; empty before it is first opened, and while it is up."""
    attachment: Attachment = field(default_factory=Attachment)
    scans: Scans = field(default_factory=Scans)
    trouble: Trouble = field(default_factory=Trouble)
    scan_times: ScanTimes = field(default_factory=ScanTimes)
    captures: CaptureState = field(default_factory=CaptureState)
    views: ViewState = field(default_factory=ViewState)
    labels: LabelQueue = field(default_factory=LabelQueue)
    replicas: ReplicaState = field(default_factory=ReplicaState)
    backfills: BackfillState = field(default_factory=BackfillState)
    lifecycle: LifecycleState = field(default_factory=LifecycleState)
    scrub: ScrubState = field(default_factory=ScrubState)
    damaged: list[Damaged] = field(default_factory=list)
    """Damage that capture and delivery found here in this pass of the loop, which has each repaired once."""
    deletions: Deletions = field(default_factory=Deletions)
    """The deletions of users within the last minute."""
    withheld: Withheld = field(default_factory=Withheld)
    """Markers that are not handed over yet."""
    deleted_s: float = 0.0
    """When the last deletion was captured."""

    def describe(self) -> Document:
        """Document for `status`. Other threads read it, and all of NAMES, while the region's thread works."""
        trouble = self.bucket.trouble or (f"{self.bucket.address}: {self.why}" if self.phase is Phase.SUSPENDED else "")
        return {
            "online": self.is_up or not trouble,
            "trouble": trouble,
            "scanning": bool(self.scans) or self.attachment.is_rereading,
            "skipped": self.trouble.skipped_number if self.is_scanned else None,
            "paused": self.captures.paused,
            "exposed": self.bucket.exposed,
            "moves_wait": self.lifecycle.placing.why,
            "lifecycle_waits": self.lifecycle.run.why if self.lifecycle.run is not None else "",
        }

    def ask_to_place(self, found: Iterable[bytes]) -> None:
        """Have keys looked at whose versions may have to be moved to a tier."""
        if self.bucket.root.settings.classes:
            self.lifecycle.placing.asked.update(dict.fromkeys(found))

    @property
    def is_up(self) -> bool:
        """Whether the bucket is indexed and watched."""
        return self.phase in (Phase.SCANNING, Phase.ONLINE)

    @property
    def is_scanned(self) -> bool:
        """Whether the first scan since the bucket came up is complete."""
        return self.phase is Phase.ONLINE

    def note_skipped(self, key: bytes, *, there: bool) -> None:
        if not there and not self.trouble.skipped:  # mostly
            return
        directory, name = keys.split(key)
        names = self.trouble.skipped.get(directory)
        if there:
            self.trouble.skipped.setdefault(directory, set()).add(name)
        elif names is not None:
            names.discard(name)

    def is_blind(self, directory: bytes) -> bool:
        """Whether something in or below a directory could not be read at the last look."""
        paths = [*self.trouble.unreadable, *(keys.split(key)[0] for key in self.captures.unreadable)]
        return any(is_below(path, directory) for path in paths)

    def looked_through(self, scan: Scan) -> None:
        """Drop the unreadable files whose directories are gone, after a scan of a directory and all below it."""
        blind = [*self.trouble.mounts, *self.trouble.unreadable]
        for key in list(self.captures.unreadable):
            directory = keys.split(key)[0]
            gone = is_below(directory, scan.top) and directory not in scan.seen
            if gone and not any(is_below(directory, path) for path in blind):
                del self.captures.unreadable[key]


Names = list[tuple[bytes, str]]


def _unreadable(state: BucketState) -> Names:
    """Unreadable files, and directories with a trailing slash."""
    return [
        *list(state.captures.unreadable.items()),
        *((p + b"/", why) for p, why in list(state.trouble.unreadable.items())),
    ]


def _held(state: BucketState, *, conflict: bool) -> Names:
    return [(key, stale.why) for key, stale in list(state.views.stale.items()) if stale.conflict == conflict]


NAMES: Mapping[str, Callable[[BucketState], Names]] = {
    "polled": lambda state: [(path, "") for path in list(state.trouble.polled)],
    "mounts": lambda state: [(path, "") for path in list(state.trouble.mounts)],
    "unreadable": _unreadable,
    "behind": lambda state: _held(state, conflict=False),
    "conflicts": lambda state: _held(state, conflict=True),
    "set_aside": lambda state: [*list(state.captures.set_aside.items()), *list(state.replicas.undelivered.items())],
    "waiting": lambda state: [(key, deferred.why) for key, deferred in list(state.captures.deferred.items())],
    "uncaptured": lambda state: [
        (key, each.why) for key, each in list(state.captures.deferred.items()) if key in state.captures.faults
    ],
}
"""Lists that may be very long, by name: keys or directories, each with its reason where there is one."""
