"""Messages to a region about events elsewhere. They are values, carried out by the region's own thread.

Regions send each other values that never change, since a region may be on another machine. Messages are read in the
order in which they were sent. A Call has code to run: only commands and the region's own background workers, in the
same process, send one.
Outcomes of deliveries have their own queue (outcome_queue.py), which is also written down at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from fsrepl.region.expected import Expected
from fsrepl.storage.journal.rows import Delivery


class TakeOver(Struct, frozen=True):
    """Deliveries to buckets of the region."""

    deliveries: Sequence[Delivery]


class HandOverMore(Struct, frozen=True):
    """A queue has room again: the next page of a source's pending deliveries is asked for. after: see Overflow.ask."""

    source: str
    destination: str
    after: Delivery | None


class TakeMore(Struct, frozen=True):
    """The page that HandOverMore asked for. last: see Overflow.handed_over."""

    source: str
    destination: str
    deliveries: Sequence[Delivery]
    last: Delivery | None


class StartOver(Struct, frozen=True):
    """Of a source's pending deliveries to a bucket of the region only the first were handed over."""

    source: str
    destination: str


class Acknowledged(Struct, frozen=True):
    """Outcomes of backfill deliveries to a bucket of the region are recorded at their source."""

    source: str
    destination: str
    deliveries: Sequence[Delivery]


class WakeBacklog(Struct, frozen=True):
    """Backfill deliveries from a source to a bucket of the region are pending. start_over: read from the beginning."""

    source: str
    destination: str
    start_over: bool


class LookAtDirectories(Struct, frozen=True):
    """Permissions of directories of a source have changed: their replicas are compared with them."""

    address: str
    paths: frozenset[bytes]


class Expect(Struct, frozen=True):
    """An update of a large file is being captured, and will probably be delivered to a bucket of the region."""

    destination: str
    update: Expected


class ExpectNoMore(Struct, frozen=True):
    """An expected capture has ended. is_published: it made a version, and its deliveries are handed over."""

    destination: str
    update: Expected
    is_published: bool


class RetryNow(Struct, frozen=True):
    """A bucket came back, or its settings changed: deliveries that wait for it are tried again."""

    address: str


class RetryNowFrom(Struct, frozen=True):
    """A region that hung responds again: deliveries from it continue."""

    region: str


class DropQueues(Struct, frozen=True):
    """A source was removed, and its delivery queues are dropped."""

    source: str


class WithdrawMarkers(Struct, frozen=True):
    """A source is HALTED: its markers that wait in the delivery queues are not delivered."""

    source: str


class DeliverAgain(Struct, frozen=True):
    """Versions that were delivered from a source of the region are destroyed at a destination. lost: keys and ids."""

    source: str
    destination: str
    lost: Sequence[tuple[bytes, str]]


class RebuildRecord(Struct, frozen=True):
    """The record of a stored version of the region was found wrong or lost by another one, which delivers it."""

    address: str
    key: bytes
    id: str
    marker: bool


class Requeue(Struct, frozen=True):
    """A region left the site, or lost its queues: all pending deliveries from this one are handed over again."""


class Reconfigure(Struct, frozen=True):
    """The settings have changed."""


class Probe(Struct, frozen=True):
    """Buckets appeared or disappeared, or their documents changed: the region probes them in its next pass."""


class Call(Struct, frozen=True):
    """A step of a command, or of background work of this region, run in the region's thread between its batches."""

    run: Callable[[], None]


Message = (
    TakeOver
    | HandOverMore
    | TakeMore
    | StartOver
    | Acknowledged
    | WakeBacklog
    | LookAtDirectories
    | Expect
    | ExpectNoMore
    | RetryNow
    | RetryNowFrom
    | DropQueues
    | WithdrawMarkers
    | DeliverAgain
    | RebuildRecord
    | Requeue
    | Reconfigure
    | Probe
    | Call
)
