"""The bucket as it came up: how much of its tree the journal has, and when it is tried again after failures."""

from __future__ import annotations

import time

from msgspec import Struct, field

from fsrepl.storage.bucket_documents import Documents
from fsrepl.storage.journal.rows import Stored
from fsrepl.storage.remembered import Keeper
from fsrepl.storage.walk import Uncompared

_FAILED_MAX_S = 60.0


class Attachment(Struct, eq=False):
    """Changed by daemon/attach.py; other steps call the methods."""

    is_indexed: bool = False
    """All that is in the store is in the journal, as far as is known: no batch failed between the two."""
    noted_s: float = 0.0
    """The monotonic time when that was noted last: see repair/settled.py."""
    noted_commits: int = -1
    """The journal's number of transactions then."""
    synced_s: float = 0.0
    """The monotonic time when a sync for a note was begun last."""
    is_unsynced: bool = False
    """Something was noted since."""
    uncompared: list[Uncompared] = field(default_factory=list)
    """Directories that the start left out: see repair/settled.py."""
    is_rereading: bool = False
    """Records are read again after a power cut: see repair/reread.py."""
    reread_to: Stored | None = None
    """The last version whose record was."""
    unsettled: bool = False
    """The bucket went away while something written in it was not captured yet."""
    lacks_records: bool = False
    """Versions here have lost their attributes. Another region may know them once it is back."""
    documents: Documents | None = None
    """The documents that were last followed."""
    keeper: Keeper = field(default_factory=Keeper)
    """Copies the bucket's documents into the site's state."""
    failures: int = 0
    up_again_at_s: float = 0.0
    """Time before which the bucket is not brought up again, after that many failed batches in a row."""
    was_scanned: bool = False
    """A scan was completed before the bucket came up: the directories it found are watched while they are compared."""
    skipped_recorded: int = -1
    """Number of entries that are no objects, as recorded in the journal."""
    displaced_at_s: float = 0.0
    """Time of the next look into .fsrepl/displaced."""
    is_told: bool = False
    """The kernel tells of each change of its documents and its place."""
    there_at_s: float = field(default_factory=time.monotonic)
    """The monotonic time when it was found there last."""
    reported_exposed: str = ""
    """The reason that the log last gave why others can reach the store."""

    def forget(self, *, unsettled: bool) -> None:
        """The bucket goes away, perhaps with a write that is not captured yet."""
        self.unsettled |= unsettled
        self.is_indexed = False

    def note_unrecorded(self) -> None:
        """A batch failed between the store and the journal."""
        self.is_indexed = False

    def note_success(self) -> None:
        self.failures = 0

    def note_failure(self, now_s: float) -> None:
        """A batch failed: the bucket comes up again after a growing delay."""
        self.failures = min(self.failures + 1, 10)
        self.up_again_at_s = now_s + min(_FAILED_MAX_S, 2.0**self.failures / 4)

    def wait(self, until_s: float) -> None:
        """The bucket does not come up before that."""
        self.up_again_at_s = until_s
