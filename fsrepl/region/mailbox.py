"""Messages to a region: what concerns it and was seen elsewhere. They are values, carried out by its own thread.

Outcomes of deliveries have a queue of their own (outcome_queue.py), which is written down at the end as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsrepl.storage.journal.rows import Delivery


@dataclass(frozen=True, slots=True)
class TakeOver:
    """These are to be delivered to buckets of the region."""

    deliveries: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What became of a backfill's deliveries to a bucket of the region is written down at their source."""

    source: str
    destination: str
    deliveries: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class WakeBacklog:
    """Backfills of a source owe something to a bucket of the region. start_over: it is read from its beginning."""

    source: str
    destination: str
    start_over: bool


@dataclass(frozen=True, slots=True)
class LookAtDirectories:
    """Directories of a source have changed in what they let people do: those that follow them are looked at."""

    address: str
    paths: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class RetryNow:
    """A bucket came back, or its settings changed: what waits for it is tried again."""

    address: str


@dataclass(frozen=True, slots=True)
class RetryNowFrom:
    """A region that hung moves again: what is to come from there goes on."""

    region: str


@dataclass(frozen=True, slots=True)
class DropQueues:
    """A source is removed: nothing comes from there any more."""

    source: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """A region left the site, or has lost its queues: all that buckets of this one owe is handed over again."""


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """There are new settings."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Buckets have come or gone, or their documents changed: the region looks at them in its next turn."""


@dataclass(frozen=True, slots=True)
class Call:
    """A command, or a repair, is carried out in the region's thread, between its batches."""

    run: Callable[[], None]


Message = (
    TakeOver
    | Acknowledged
    | WakeBacklog
    | LookAtDirectories
    | RetryNow
    | RetryNowFrom
    | DropQueues
    | Requeue
    | Reconfigure
    | Probe
    | Call
)
