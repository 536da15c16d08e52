"""The counts of a verification, and the callbacks that its caller gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct, field

from fsrepl.errors import Unavailable
from fsrepl.repair.compare import Difference
from fsrepl.repair.verified import Verified
from fsrepl.repair.verify_host import Examiner

PathInBucket = tuple[str, bytes]
"""The address of a bucket, and a path in it."""


class Dates(Struct, frozen=True):
    """Versions of a bucket with a modification time that its filesystem cannot hold: how many, and one of them."""

    number: int
    key: bytes
    mtime_ns: int


class Tally(Struct):
    """The counts of a verification so far.

    checked: versions and markers read, on either side, and bytes their size. pending: deliveries that are
    not done, and changed views that are not captured. mounted: for each directory or file below
    a mount, how many keys the mount hides. away: buckets that could not be compared, and why.
    dates: by bucket, dates that its filesystem cannot hold. They are no difference: the records have them.
    """

    checked: int = 0
    bytes: int = 0
    known: int = 0
    """The bytes of versions that were not read, since an earlier verification that was interrupted had."""
    pending: int = 0
    failed: int = 0
    differences: int = 0
    left: int = 0
    """Differences that are still there."""
    mounted: dict[PathInBucket, int] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    dates: dict[str, Dates] = field(default_factory=dict)


def _nothing() -> None:
    return None


def _cannot_examine(address: str, wanted: bytes) -> bytes:
    raise Unavailable(f"{address} is on another machine, which is not asked here")


class Hooks(Struct):
    """Callbacks of a verification. settled: waits until a running daemon has finished its present work.
    capture: captures keys of a bucket whose files differ from their record. repair: repairs one difference.
    progress: receives the tally now and then. read: called with each number of bytes read, and may wait. verified: what
    an earlier verification has read, which need not be read again. is_daemon_running: whether a daemon repairs in the
    background. examine: has the agent of a bucket on another machine read versions."""

    settled: Callable[[], None] = _nothing
    capture: Callable[[str, Sequence[bytes]], None] = lambda address, keys: None
    repair: Callable[[Difference], None] | None = None
    progress: Callable[[Tally], None] = lambda tally: None
    read: Callable[[int], None] = lambda count: None
    is_daemon_running: Callable[[], bool] = lambda: False
    examine: Examiner = _cannot_examine
    verified: Verified | None = None
