"""The loop of a region on another machine: it keeps a connection to the agent there, and sends deliveries over it.

Many deliveries are under way at once, several to a frame, and none waits for the answer to another. What the agent
reports becomes an outcome, or a delivery that is tried again later. After the connection
has ended, all deliveries that were under way are sent again, and the agent finds those that are done. The connection is
made again after a growing delay.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from fsrepl.daemon import ssh_content
from fsrepl.daemon.ssh_batch import BYTES_MAX, Batch, Table, at_of, orders_of
from fsrepl.errors import (
    BucketMissing,
    FsreplError,
    Unavailable,
    reason,
)
from fsrepl.link import frames
from fsrepl.link.channel import Ended
from fsrepl.link.frames import FromAgent
from fsrepl.link.host import Connection, Host
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.keys import Document
from fsrepl.model.version import Status
from fsrepl.region import delivery_queue, limits
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.mailbox import DeliverAgain, LookAtDirectories, Message
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region
from fsrepl.region.rotation import Rotation
from fsrepl.region.runtime import Runtime
from fsrepl.storage.journal.rows import Delivery, Outcome
from fsrepl.views import directories, resting

log = logging.getLogger("fsrepl")

_TAKEN_MAX = 512
_DIRECTORIES_MAX = 500
_LONE_WAIT_S = 0.2
"""How long a turn without threads waits for the agent, when nothing else is to be done."""
_RECONNECT_MAX_S = 60.0
_JOURNAL_S = 1.0


class FarBucket(Struct, frozen=True):
    """A bucket of the region, for `status`."""

    trouble: str
    seen: bool

    def describe(self) -> Document:
        return {"online": not self.trouble, "trouble": self.trouble, "seen": self.seen}


class SshRegion(Receiver):
    """See the module. Other threads use its mailbox, and the connection's thread on_frame and on_end."""

    def __init__(self, engine: Runtime, name: str, regions: Mapping[str, Region]) -> None:
        super().__init__(engine, name, regions)
        self.regions = regions
        self._host: Host = engine.site.hosts[name]
        self._host.listener = self
        self._connection: Connection | None = None
        self._connecting = False
        self._attempts = 0
        self._next_try_s = 0.0
        self.why = "it is not connected yet"
        """Why the region cannot be reached; empty while it can be."""
        self._arrived: deque[tuple[Connection, FromAgent | str]] = deque()
        """Frames, and the reasons of connections that ended, in order."""
        self._has_arrived = threading.Event()
        self._table = Table()
        self._directories: dict[tuple[str, str], set[bytes]] = {}
        """By source and destination, directories whose permissions the agent is to compare; kept until it has."""
        self._directories_told: dict[tuple[str, str], set[bytes]] = {}
        """Directories whose permissions were sent over this connection, by source and destination."""
        self._routes: Rotation[tuple[str, str]] = Rotation()
        self._faulty_until_s = 0.0

    @property
    def states(self) -> dict[str, FarBucket]:
        """The buckets that deliveries went to since the start; read by other threads."""
        connection = self._connection
        known = connection.buckets if connection is not None else {}
        there = {destination for _, destination in list(self.queues)} | {*self.engine.site.destinations_in(self.name)}
        return {destination: FarBucket(self.why, destination in known) for destination in sorted(there)}  # fmt: skip

    # -- the connection's thread

    def on_frame(self, connection: Connection, frame: FromAgent) -> None:
        self._arrived.append((connection, frame))
        self._has_arrived.set()
        self.wake()

    def on_end(self, connection: Connection, why: str) -> None:
        self._arrived.append((connection, why))
        self._has_arrived.set()
        self.wake()

    # -- the loop

    def take_turn(self) -> bool:
        busy = self.read_inbox() | self.finish_background() | self.refill_queues()
        if time.monotonic() < self._faulty_until_s:
            return busy
        self._keep_connected()
        busy |= self._take_frames() | self._tell_directories() | self._deliver()
        if not busy and self._table.under_way and not self.engine.threaded:
            # without threads, a turn that does nothing is the last one
            self._has_arrived.wait(_LONE_WAIT_S)
            busy = True
        return busy

    def begin_again(self, error: sqlite3.Error) -> None:
        log.warning("waiting region=%s: the journal %s cannot be used: %s", self.name, self.engine.journal.path, error)
        self._faulty_until_s = time.monotonic() + _JOURNAL_S
        if self._connection is not None:
            self._connection.end("the journal cannot be used")  # what was under way is sent again

    def next_s(self) -> float | None:
        if self.inbox or self.background_done or (self._arrived and not self._connecting):
            return 0.0
        if self._connection is None:
            return None if self._connecting else max(self._next_try_s, self._faulty_until_s)
        if self._table.is_full:
            return None  # an outcome wakes the thread
        due = [at for queue in self.queues.values() if (at := queue.next_s()) is not None]
        return max(min(due), self._faulty_until_s) if due else None

    def last_turn(self) -> None:
        with contextlib.suppress(FsreplError, OSError, sqlite3.Error):
            self.finish_background()
            self._take_frames()
        self._host.close()

    def has_looked(self) -> bool:
        return True  # nothing is scanned

    def carry_out(self, message: Message) -> None:
        match message:
            case LookAtDirectories(address, paths):
                for source in self.engine.site.sources_of(address):
                    self._directories.setdefault((source, address), set()).update(paths)
                    self._directories_told.get((source, address), set()).difference_update(paths)
            case _:
                super().carry_out(message)

    def retry_now(self, address: str) -> None:
        """Retry deliveries from or to a bucket, and the connection, where there is none."""
        super().retry_now(address)
        self._next_try_s = 0.0

    # -- the connection

    def _keep_connected(self) -> None:
        """Connect, or connect again, where that is due."""
        host = self.engine.site.hosts.get(self.name, self._host)
        if host is not self._host:  # its settings have changed
            host.listener = self
            self._host = host
            self._lost("its settings have changed", at_once=True)
        if self._connection is not None or self._connecting or time.monotonic() < self._next_try_s:
            return
        self._connecting = True
        self.in_background(self._host.connect, self._connected, pool=("connect", self.name), whose=self.name)

    def _connected(self, found: Connection | Exception) -> None:
        self._connecting = False
        if isinstance(found, Exception):
            self._lost(reason(found))
            return
        if found is not self._host.connection:  # it has ended, or belongs to settings that have changed
            self._lost(found.why or "its settings have changed")
            return
        self._connection, self._attempts, self.why, self._host.down = found, 0, "", ""
        log.info("online region=%s at=%s", self.name, self._host.url)
        for queue in self.queues.values():
            queue.blocked_why = ""
            queue.retry_now()
        self.engine.notify()

    def _lost(self, why: str, *, at_once: bool = False) -> None:
        """There is no connection now: wait before the next, and send all that was under way once more."""
        if why != self.why:
            log.warning("offline region=%s: %s", self.name, why)
        self._connection, self.why = None, why
        self._host.down = why if self.engine.threaded else ""
        delay_s = 0.0 if at_once else delivery_queue.retry_delay_s(
            self._attempts + 1, min(_RECONNECT_MAX_S, self.engine.settings.replication.retry_max_s)
        )  # fmt: skip
        self._attempts += 1
        self._next_try_s = time.monotonic() + delay_s
        self._directories_told.clear()
        by_queue: dict[Queue, list[Delivery]] = {}
        for at in list(self._table.under_way):
            sent = self._table.forget(self.engine, at)
            by_queue.setdefault(self.queue(sent.delivery.source, sent.delivery.destination), []).append(sent.delivery)
        for queue in self.queues.values():
            self._block(queue, by_queue.get(queue, []))
        self.engine.notify()

    def _block(self, queue: Queue, given_back: Sequence[Delivery] = ()) -> None:
        self.engine.recent.forget_data()
        queue.put_back(given_back, self._next_try_s, self.why)

    # -- what the agent says

    def _take_frames(self) -> bool:
        if self._connecting:
            return False  # an agent may speak before its connection is in use here
        busy = bool(self._arrived)
        self._has_arrived.clear()
        outcomes: list[Outcome] = []
        while self._arrived:
            connection, said = self._arrived.popleft()
            if connection is not self._connection:
                continue  # an earlier one: what it had is sent again
            match said:
                case str(why):
                    self.report_outcomes(outcomes)
                    outcomes = []
                    self._lost(why)
                case frames.Outcomes(told):
                    outcomes += self._outcomes(told)
                case frames.Later() as later:
                    self._put_off(later)
                case (frames.WantBlocks() | frames.WantSpan()) as wanted:
                    self._give(wanted)
                case frames.Followed(source, destination, paths):
                    self._directories.get((source, destination), set()).difference_update(
                        self._directories_told.get((source, destination), set()).intersection(paths)
                    )
                case frames.WantTimes() as asked:
                    self._tell_times(asked)
                case frames.Lost(destination, lost):
                    self._send_again(destination, lost)
                case _:
                    pass
        if outcomes:
            self.report_outcomes(outcomes)
        return busy

    def _outcomes(self, told: Sequence[frames.Told]) -> Iterator[Outcome]:
        for each in told:
            if each.at in self._table.under_way:
                sent = self._table.forget(self.engine, each.at)
                why = each.reason if each.status is Status.FAILED else ""
                yield Outcome(sent.delivery, each.status, why, sent.version, each.crossed_bytes)

    def _put_off(self, later: frames.Later) -> None:
        by_queue: dict[Queue, list[Delivery]] = {}
        for at in later.deliveries:
            if at in self._table.under_way:
                sent = self._table.forget(self.engine, at)
                if later.lacks_content:
                    self._table.needs_content.add(at)
                by_queue.setdefault(self.queue(at[0], at[1]), []).append(sent.delivery)
        for queue, group in by_queue.items():
            if later.lacks_content:
                queue.give_back(group)
            elif later.whole and time.monotonic() < queue.blocked_until_s:
                queue.put_back(group, queue.blocked_until_s, later.why)  # those that failed together count once
            else:
                self.try_later(group, later.why, whole=later.whole)

    # -- deliveries

    def _deliver(self) -> bool:
        """Send deliveries that are ready, as many as may be under way; whether there were any."""
        now_s, limiter = time.monotonic(), self.engine.limiter
        self.pace_queues(now_s)
        due = {at: queue for at, queue in self.queues.items() if (at_s := queue.next_s()) is not None and at_s <= now_s}
        connection = self._connection
        if connection is None:
            if not self._connecting:
                for queue in due.values():
                    self._block(queue)
            return False
        busy = False
        waiting = {at: queue.count_ready(now_s) for at, queue in due.items()}
        free = min(_TAKEN_MAX, self._table.free)
        for at, share in self._routes.shares(waiting, free, now_s).items():
            if self._table.is_full or connection.queued_bytes > BYTES_MAX:
                break
            most = min(limiter.batch_bytes, BYTES_MAX / 4)
            if taken := due[at].take(share, now_s, most):
                busy = True
                self._send(connection, due[at], taken)
        for at, queue in due.items():
            if not self._table.is_full and not waiting[at] and (taken := self._backlog(queue, now_s)):
                busy = True
                self._send(connection, queue, taken)
        return busy

    def _backlog(self, queue: Queue, now_s: float) -> list[Delivery]:
        read = functools.partial(self.engine.journal.backlog.read, queue.source, queue.destination)
        return queue.take_backlog(read, self.engine.background_bytes, now_s, self.engine.limiter.batch_bytes)

    def _send(self, connection: Connection, queue: Queue, taken: Sequence[Delivery]) -> None:
        """Send deliveries of one queue."""
        if self.is_stuck(queue.source):
            why = f"region {region_of(queue.source)} hangs; it is not touched from here until it moves"
            self.try_later(taken, why, whole=True)
            return
        bucket = self.engine.site.buckets.get(queue.source)
        if bucket is None:
            return  # it left the site, and its deliveries with it
        batch, done = None, 0
        try:
            with bucket.open() as source:
                batch = Batch(self, self._table, connection, queue, source)
                for each in taken:
                    batch.add(each)
                    done += 1
                batch.send()
        except Ended:  # on_end follows, and what was under way is sent again
            self._give_back(queue, taken[done:])
        except (Unavailable, BucketMissing) as error:
            self.try_later(taken[done:], str(error), whole=True)
        except sqlite3.Error:
            self._give_back(queue, taken[done:])
            raise
        finally:
            queue.paid_at = self.engine.limiter.position
            if batch is not None and batch.outcomes:
                self.report_outcomes(batch.outcomes)

    def _give_back(self, queue: Queue, taken: Sequence[Delivery]) -> None:
        queue.give_back([each for each in taken if at_of(each) not in self._table.under_way])

    def _send_again(self, destination: str, lost: Sequence[tuple[bytes, str]]) -> None:
        """Have versions delivered again that are destroyed at the far side."""
        for source in self.engine.site.sources_of(destination):
            if (region := self.regions.get(region_of(source))) is not None:
                region.post(DeliverAgain(source, destination, lost))

    # -- directories

    def _tell_directories(self) -> bool:
        """Have the agent compare directories with their sources, some at a time; whether there were any."""
        connection, busy = self._connection, False
        if connection is None:
            return False
        for (source, destination), paths in self._directories.items():
            told = self._directories_told.setdefault((source, destination), set())
            some = list(itertools.islice((path for path in paths if path not in told), _DIRECTORIES_MAX))
            bucket = self.engine.site.buckets.get(source)
            if not some or bucket is None or self.is_stuck(source):
                continue
            with contextlib.suppress(FsreplError, OSError), bucket.open() as opened:
                found = {path: directories.rights_at(opened, path) for path in some}
                known = {path: rights for path, rights in found.items() if rights is not None}
                orders = orders_of(self.engine, opened, known)
                connection.send(frames.Directories(source, destination, frames.pack_rights(known), orders))
                told.update(known)
                paths.difference_update(found.keys() - known.keys())
                busy = True
        return busy

    def _tell_times(self, asked: frames.WantTimes) -> None:
        """Tell the agent the times of directories of a source, where that is there: else the agent asks again after its
        next scan, or once the source is back and has its directories compared."""
        connection, site = self._connection, self.engine.site
        bucket = site.buckets.get(asked.source) if asked.source in site.sources_of(asked.destination) else None
        if connection is None or bucket is None or self.is_stuck(asked.source):
            return
        with contextlib.suppress(FsreplError, OSError), bucket.open() as opened:
            found = {}
            for path in asked.paths:
                with contextlib.suppress(OSError):  # gone
                    if keys.is_key(path):
                        found[path] = resting.mtime_ns(opened, path)
            connection.send(frames.Times(asked.source, asked.destination, found))

    # -- content that the agent asks for

    def _give(self, wanted: frames.WantBlocks | frames.WantSpan) -> None:
        connection, sent = self._connection, self._table.under_way.get(wanted.at)
        if connection is None:
            return
        if sent is None:
            with contextlib.suppress(Unavailable):
                connection.send(frames.Broken(wanted.ticket, "it is not wanted any more"))
            return
        if sent.progress is None:
            each = sent.delivery
            sent.progress = limits.Progress(each.key, each.id, each.source, each.destination, each.size)
            self.engine.transfers.append(sent.progress)
        if isinstance(wanted, frames.WantSpan):
            sent.progress.came_to(max(sent.progress.bytes_done, wanted.done_bytes))
        work = functools.partial(ssh_content.give, self.engine, connection, sent.version, sent.progress, wanted)
        source = sent.delivery.source
        way = region_of(source), self.name
        self.in_background(work, lambda _: None, pool=("send", *way), whose=wanted.at, size_bytes=0)
