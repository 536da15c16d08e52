"""Deliveries on their way to the agent of a region on another machine: decided, packed into frames, and under way."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable

from msgspec import Struct

from fsrepl.errors import UNEXPECTED, Failed, FsreplError, StoreDamaged
from fsrepl.link import frames
from fsrepl.link.channel import Ended
from fsrepl.link.frames import At
from fsrepl.link.host import Connection
from fsrepl.model import keys
from fsrepl.model.version import Rights, Status, Version
from fsrepl.region import limits
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.receiver import Receiver
from fsrepl.region.runtime import Runtime
from fsrepl.replicate import decide
from fsrepl.replicate.sending import Sending
from fsrepl.replicate.settle import is_pending
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery, Outcome
from fsrepl.views import directories, narrowing

log = logging.getLogger("fsrepl")

_NUMBER_MAX = 8192
BYTES_MAX = 32 << 20
"""The most content that is under way at once."""
_FRAME_ITEMS = 256
_FRAME_BYTES = 1 << 20
_AGAIN_S = 0.05
"""The wait where the same version is under way already, for another rule or job."""


class UnderWay(Struct):
    """A delivery that was sent. progress: where parts of its content are asked for."""

    delivery: Delivery
    version: Version
    size: int
    progress: limits.Progress | None = None


class Table:
    """The deliveries that were sent, and whose outcome is not known."""

    def __init__(self) -> None:
        self.under_way: dict[At, UnderWay] = {}
        self.needs_content: set[At] = set()
        """Deliveries that came back since their content was not sent with them."""
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return self.free <= 0 or self._bytes >= BYTES_MAX

    @property
    def free(self) -> int:
        return _NUMBER_MAX - len(self.under_way)

    def note(self, at: At, sent: UnderWay) -> None:
        self.under_way[at] = sent
        self._bytes += sent.size

    def forget(self, engine: Runtime, at: At) -> UnderWay:
        """Take out a delivery that has an outcome, or is to be sent again."""
        sent = self.under_way.pop(at)
        self._bytes -= sent.size
        if sent.progress is not None:
            sent.progress.stop = True
            engine.transfers.remove(sent.progress)
        return sent


def at_of(delivery: Delivery) -> At:
    return delivery.source, delivery.destination, delivery.key, delivery.id


def orders_of(engine: Runtime, source: OpenBucket, paths: Iterable[bytes]) -> dict[bytes, tuple[int, str]]:
    """By the key of a directory of a tree bucket, the order of its current version."""
    order = narrowing.order_in(engine, source.address)
    found = ((path + b"/", order(path + b"/")) for path in paths) if source.bucket.trees else ()
    return {key: each for key, each in found if each is not None}


class Batch:
    """Deliveries of one queue on their way into frames."""

    def __init__(
        self, region: Receiver, table: Table, connection: Connection, queue: Queue, source: OpenBucket
    ) -> None:
        self._region, self._table, self._connection = region, table, connection
        self._queue, self._source = queue, source
        self._engine = region.engine
        self._sending = Sending(self._engine, source)
        self._items: list[frames.Item] = []
        self._bytes = 0
        self._rights: dict[bytes, Rights] = {}
        self._looked_at: set[bytes] = set()
        large = self._engine.settings.replication.large_file_bytes
        self._inline_bytes = min(large, frames.INLINE_MAX_BYTES)
        self.outcomes: list[Outcome] = []

    def add(self, delivery: Delivery) -> None:
        """Decide about a delivery, and send it where that is the decision. An error of one affects no other.

        Raises Ended.
        """
        region, queue = self._region, self._queue
        at = at_of(delivery)
        if at in self._table.under_way:
            queue.put_off(delivery, time.monotonic() + _AGAIN_S, "the same version is under way already")
            return
        try:
            version = self._sending.version(delivery)
            if version is not None and not is_pending(version, delivery):
                self.outcomes.append(Outcome(delivery, Status.PENDING, "", None))
                return
            match decide.decide(self._sending.facts(delivery, version, lambda _: {})):
                case decide.Wait(why):
                    region.try_later([delivery], why)
                case decide.Settle(status, why):
                    why = why if status is Status.FAILED else ""
                    self.outcomes.append(Outcome(delivery, status, why, version))
                case decide.Send(_, with_tags):
                    assert version is not None
                    self._pack(delivery, at, version, with_tags=with_tags)
        except Ended:
            raise
        except Failed as error:
            log.warning('cannot send bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
            self.outcomes.append(Outcome(delivery, Status.FAILED, error.reason, None))
        except StoreDamaged as error:
            log.error('damaged bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
            if region.have_record_rebuilt(delivery):
                region.try_later([delivery], str(error))
            else:
                self.outcomes.append(Outcome(delivery, Status.FAILED, "SrcObjectNotEligible", None))
        except (OSError, FsreplError) as error:
            region.try_later([delivery], error)
        except sqlite3.Error:
            raise
        except Exception:
            region.set_aside(delivery)

    def _pack(self, delivery: Delivery, at: At, version: Version, *, with_tags: bool) -> None:
        recorded = version.deliveries[delivery.destination]
        data: bytes | None = None
        checks = recorded.before is not None and recorded.before.status is Status.COMPLETED
        is_small = not version.marker and version.size < self._inline_bytes
        if is_small and (at in self._table.needs_content or not (recorded.edit or checks)):
            data = self._sending.small_content(version)
        self._table.needs_content.discard(at)
        if not version.marker and (directory := keys.place(version.key)[0]) not in self._looked_at:
            self._look_at(directory)
        size = len(data) if data is not None else 0
        waits = version.link is not None and self._sending.is_pending(*version.link, delivery.destination)
        item = frames.pack(version, delivery.destination, with_tags=with_tags, data=data, waits_for_link=waits)
        self._items.append(item)
        self._bytes += size
        self._table.note(at, UnderWay(delivery, version, size))
        if len(self._items) >= _FRAME_ITEMS or self._bytes >= _FRAME_BYTES:
            self.send()

    def _look_at(self, directory: bytes) -> None:
        """Have the permissions of a directory and of its parents sent as well."""
        for path in directories.with_parents([directory]):
            if path not in self._looked_at:
                self._looked_at.add(path)
                if (rights := self._sending.rights(path)) is not None:
                    self._rights[path] = rights
        self._looked_at.add(directory)  # also the bucket's folder, of which nothing is sent

    def send(self) -> None:
        """Send the deliveries that were packed. Raises Ended."""
        if not self._items:
            return
        self._engine.limiter.sent(self._bytes)
        items, self._items, self._bytes = self._items, [], 0
        rights, self._rights = self._rights, {}
        self._looked_at.clear()  # the agent forgets what came with a frame once it is done with that
        try:
            orders = orders_of(self._engine, self._source, rights)
            packed = frames.pack_rights(rights)
            self._connection.send(frames.Deliver(self._queue.source, self._queue.destination, items, packed, orders))
        except Ended:
            raise
        except Exception:
            log.exception("set aside bucket=%s: an unexpected error", self._queue.source)
            way = self._queue.source, self._queue.destination
            sent = [self._table.forget(self._engine, (*way, item.key, item.id)) for item in items]
            self._region.try_later([each.delivery for each in sent], UNEXPECTED)
