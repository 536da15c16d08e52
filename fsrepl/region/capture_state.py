"""The keys of a bucket whose capture is under way, waits or failed."""

from __future__ import annotations

from msgspec import Struct, field

from fsrepl.model.version import Version
from fsrepl.region.change_queue import Change
from fsrepl.region.rewrites import Rewrites


class Deferred(Struct):
    """A key whose capture is deferred."""

    due_s: float
    change: Change
    why: str
    opened: bool
    looked: int
    """The epoch of the last look at the key."""


class CaptureState(Struct, eq=False):
    """Changed by the steps of capture/."""

    deferred: dict[bytes, Deferred] = field(default_factory=dict)
    copying: dict[bytes, Change] = field(default_factory=dict)
    """Keys that a background worker is copying."""
    copy_again_at_s: dict[bytes, float] = field(default_factory=dict)
    """Keys whose copying took a while, and the time until which their next change waits."""
    announced: bytes | None = None
    """The key being copied that its destinations are, or may be, told of: see capture/expect.py."""
    unsteady: set[bytes] = field(default_factory=set)
    """Keys of which the last announced update came to nothing, as of a file that is always being written."""
    new_names: dict[int, list[Version]] = field(default_factory=dict)
    """In a tree bucket, by inode number: new versions of the batch being captured whose files have several names."""
    unreadable: dict[bytes, str] = field(default_factory=dict)
    """Files that the daemon may not read, and why. Only a change of the file makes another try worthwhile."""
    faults: dict[bytes, int] = field(default_factory=dict)
    """Number of failed tries in a row, by key."""
    set_aside: dict[bytes, str] = field(default_factory=dict)
    """Keys whose capture failed with an unexpected error. Each is tried alone."""
    singly: bool = False
    """After an unexpected error in a batch, its keys are captured singly once, which finds the one that failed."""
    paused: str = ""
    """Why nothing is captured, as without free space."""
    rewrites: Rewrites = field(default_factory=Rewrites)

    def forget(self) -> None:
        """The bucket goes away: a scan finds these keys again when it is back."""
        for each in (self.deferred, self.unreadable, self.set_aside, self.faults):
            each.clear()
