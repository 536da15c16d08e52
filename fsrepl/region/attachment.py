"""How a bucket came up: what of its tree the journal has, and when it is tried again after failures."""

from __future__ import annotations

from msgspec import Struct, field

from fsrepl.storage.bucket_documents import Documents
from fsrepl.storage.remembered import Keeper
from fsrepl.storage.walk import Uncompared


class Attachment(Struct, eq=False):
    """Changed by daemon/attach.py."""

    is_indexed: bool = False
    """All that is in the store is in the journal, as far as is known: no batch failed between the two."""
    noted_s: float = 0.0
    """The monotonic time when that was noted last: see repair/settled.py."""
    noted_commits: int = -1
    """The journal's number of transactions then."""
    uncompared: list[Uncompared] = field(default_factory=list)
    """Directories that the start left out: see repair/settled.py."""
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
    reported_exposed: str = ""
    """The reason that the log last gave why others can reach the store."""
