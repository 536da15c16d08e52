"""Messages to a region about events elsewhere. They are values, carried out by the region's own thread.

Outcomes of deliveries have their own queue (outcome_queue.py), which is also written down at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsrepl.storage.journal.rows import Delivery


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Deliveries to buckets of the region."""

    deliveries: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Outcomes of backfill deliveries to a bucket of the region are recorded at their source."""

    source: str
    destination: str
    deliveries: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class WakeBacklog:
    """Backfill deliveries from a source to a bucket of the region are pending. start_over: read from the beginning."""

    source: str
    destination: str
    start_over: bool


@dataclass(frozen=True, slots=True)
class LookAtDirectories:
    """Permissions of directories of a source have changed: their replicas are compared with them."""

    address: str
    paths: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class RetryNow:
    """A bucket came back, or its settings changed: deliveries that wait for it are tried again."""

    address: str


@dataclass(frozen=True, slots=True)
class RetryNowFrom:
    """A region that hung responds again: deliveries from it continue."""

    region: str


@dataclass(frozen=True, slots=True)
class DropQueues:
    """A source was removed, and its delivery queues are dropped."""

    source: str


@dataclass(frozen=True, slots=True)
class WithdrawMarkers:
    """A source is HALTED: its markers that wait in the delivery queues are not delivered."""

    source: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """A region left the site, or lost its queues: all pending deliveries from this one are handed over again."""


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """The settings have changed."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Buckets appeared or disappeared, or their documents changed: the region probes them in its next pass."""


@dataclass(frozen=True, slots=True)
class Call:
    """A command or a repair, carried out in the region's thread between its batches."""

    run: Callable[[], None]


Message = (
    TakeOver
    | Acknowledged
    | WakeBacklog
    | LookAtDirectories
    | RetryNow
    | RetryNowFrom
    | DropQueues
    | WithdrawMarkers
    | Requeue
    | Reconfigure
    | Probe
    | Call
)
