"""The loop of a region on another machine: it keeps a connection to the agent there, and sends deliveries over it.

Many deliveries are under way at once, several to a frame, and none waits for the answer to another. What the agent
reports becomes an outcome, or a delivery that is tried again later. When the connection ends, all that was under way
is to be sent again: the agent finds what is done. The connection is made again after a growing delay.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import (
    UNEXPECTED,
    BucketMissing,
    Failed,
    FsreplError,
    StoreDamaged,
    Unavailable,
    reason,
)
from fsrepl.link import frames
from fsrepl.link.channel import Ended
from fsrepl.link.frames import At, FromAgent
from fsrepl.link.host import Connection, Host
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.delta import Span
from fsrepl.model.keys import Document
from fsrepl.model.version import Rights, Status, Version
from fsrepl.region import deliveries, delivery_queue, limits
from fsrepl.region.bucket_state import Damaged
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.mailbox import Call, LookAtDirectories, Message
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region
from fsrepl.region.rotation import Rotation
from fsrepl.region.runtime import Runtime
from fsrepl.replicate import decide
from fsrepl.replicate.sending import Sending, StoredContent
from fsrepl.replicate.settle import is_pending
from fsrepl.s3.rules import renewed
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery, Outcome
from fsrepl.views import directories, narrowing

log = logging.getLogger("fsrepl")

_UNDER_WAY_MAX = 8192
_UNDER_WAY_BYTES = 32 << 20
_FRAME_ITEMS = 256
_FRAME_BYTES = 1 << 20
_TAKEN_MAX = 512
_REBUILDS_MAX = 3
_DIRECTORIES_MAX = 500
_AGAIN_S = 0.05
"""The wait where the same version is under way already, for another rule or job."""
_LONE_WAIT_S = 0.2
"""How long a turn without threads waits for the agent, when nothing else is to be done."""
_RECONNECT_MAX_S = 60.0
_JOURNAL_S = 1.0


class UnderWay(Struct):
    """A delivery that was sent. progress: where parts of its content are asked for."""

    delivery: Delivery
    version: Version
    size: int
    progress: limits.Progress | None = None


class BucketState(Struct, frozen=True):
    """What is known of a bucket of the region, for `status`."""

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
        self.under_way: dict[At, UnderWay] = {}
        self._bytes_under_way = 0
        self.needs_content: set[At] = set()
        self._directories: dict[tuple[str, str], set[bytes]] = {}
        """By source and destination, directories whose permissions the agent is to compare; kept until it has."""
        self._directories_told: dict[tuple[str, str], set[bytes]] = {}
        """Those that this connection has been told of."""
        self._routes: Rotation[tuple[str, str]] = Rotation()
        self._faulty_until_s = 0.0

    @property
    def states(self) -> dict[str, BucketState]:
        """The buckets that deliveries went to since the start; read by other threads."""
        connection = self._connection
        known = connection.buckets if connection is not None else {}
        there = {destination for _, destination in list(self.queues)} | {*self.engine.site.destinations_in(self.name)}
        return {destination: BucketState(self.why, destination in known) for destination in sorted(there)}  # fmt: skip

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
        busy = self.read_inbox() | self.finish_background()
        if time.monotonic() < self._faulty_until_s:
            return busy
        self._keep_connected()
        busy |= self._take_frames() | self._tell_directories() | self._deliver()
        if not busy and self.under_way and not self.engine.threaded:
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
        if self.inbox or self.background_done or self._arrived:
            return 0.0
        if self._connection is None:
            return None if self._connecting else max(self._next_try_s, self._faulty_until_s)
        if self._is_full:
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

    @property
    def _is_full(self) -> bool:
        return len(self.under_way) >= _UNDER_WAY_MAX or self._bytes_under_way >= _UNDER_WAY_BYTES

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
        self.in_background(self._connect, self._connected, pool=("connect", self.name), whose=self.name)

    def _connect(self) -> Connection:
        if self.name not in self.engine.site.identities.regions:
            raise Unavailable(
                f"region {self.name} is not attached; `fsrepl region add {self.name}={self._host.url}` attaches it"
            )
        return self._host.connect()

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
        for at in list(self.under_way):
            sent = self.forget(at)
            by_queue.setdefault(self.queue(sent.delivery.source, sent.delivery.destination), []).append(sent.delivery)
        for queue in self.queues.values():
            self._block(queue, by_queue.get(queue, []))
        self.engine.notify()

    def _block(self, queue: Queue, given_back: Sequence[Delivery] = ()) -> None:
        self.engine.recent.forget_data()
        queue.put_back(given_back, self._next_try_s, self.why)

    # -- what the agent says

    def _take_frames(self) -> bool:
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
                case frames.Lost(destination, lost):
                    self._send_again(destination, lost)
                case _:
                    pass
        if outcomes:
            self.report_outcomes(outcomes)
        return busy

    def _outcomes(self, told: Sequence[frames.Told]) -> Iterator[Outcome]:
        for each in told:
            if each.at in self.under_way:
                sent = self.forget(each.at)
                status = Status(each.status)
                yield Outcome(
                    sent.delivery, status, each.reason if status is Status.FAILED else "",
                    sent.version, each.crossed_bytes,
                )  # fmt: skip

    def _put_off(self, later: frames.Later) -> None:
        by_queue: dict[Queue, list[Delivery]] = {}
        for at in later.deliveries:
            if at in self.under_way:
                sent = self.forget(at)
                if later.lacks_content:
                    self.needs_content.add(at)
                by_queue.setdefault(self.queue(at[0], at[1]), []).append(sent.delivery)
        for queue, group in by_queue.items():
            if later.lacks_content:
                queue.give_back(group)
            elif later.whole and time.monotonic() < queue.blocked_until_s:
                queue.put_back(group, queue.blocked_until_s, later.why)  # those that failed together count once
            else:
                self.try_later(group, later.why, whole=later.whole)

    def forget(self, at: At) -> UnderWay:
        sent = self.under_way.pop(at)
        self._bytes_under_way -= sent.size
        if sent.progress is not None:
            sent.progress.stop = True
            self.engine.transfers.remove(sent.progress)
        return sent

    # -- deliveries

    def _deliver(self) -> bool:
        """Send deliveries that are ready, as many as may be under way; whether there were any."""
        now_s, limiter = time.monotonic(), self.engine.limiter
        for queue in self.queues.values():
            queue.paced_until_s = now_s + limiter.wait_s(queue.paid_at) if limiter.rate else 0.0
        due = {at: queue for at, queue in self.queues.items() if (at_s := queue.next_s()) is not None and at_s <= now_s}
        connection = self._connection
        if connection is None:
            if not self._connecting:
                for queue in due.values():
                    self._block(queue)
            return False
        busy = False
        waiting = {at: queue.count_ready(now_s) for at, queue in due.items()}
        free = min(_TAKEN_MAX, _UNDER_WAY_MAX - len(self.under_way))
        for at, share in self._routes.shares(waiting, free, now_s).items():
            if self._is_full or connection.queued_bytes > _UNDER_WAY_BYTES:
                break
            most = min(limiter.batch_bytes, _UNDER_WAY_BYTES / 4)
            if taken := due[at].take(share, now_s, most):
                busy = True
                self._send(connection, due[at], taken)
        for at, queue in due.items():
            if not self._is_full and not waiting[at] and (taken := self._backlog(queue, now_s)):
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
        outcomes: list[Outcome] = []
        try:
            with bucket.open() as source:
                batch = _Batch(self, connection, queue, source)
                for each in taken:
                    batch.add(each)
                batch.send()
                outcomes = batch.outcomes
        except Ended:  # on_end follows, and what was under way is sent again
            queue.give_back([each for each in taken if at_of(each) not in self.under_way])
        except (Unavailable, BucketMissing) as error:
            self.try_later(taken, str(error), whole=True)
            return
        except sqlite3.Error:
            queue.give_back([each for each in taken if at_of(each) not in self.under_way])
            raise
        queue.paid_at = self.engine.limiter.position
        if outcomes:
            self.report_outcomes(outcomes)

    def note(self, at: At, sent: UnderWay) -> None:
        self.under_way[at] = sent
        self._bytes_under_way += sent.size

    def have_repaired(self, delivery: Delivery) -> None:
        """Have the source's region rebuild the record of a version."""
        region = self.regions.get(region_of(delivery.source))
        if region is None:
            return

        def repair() -> None:
            if (state := region.states.get(delivery.source)) is not None:
                state.damaged.append(Damaged(delivery.source, delivery.key, delivery.id, delivery.marker))

        region.post(Call(repair))

    def _send_again(self, destination: str, lost: Sequence[tuple[bytes, str]]) -> None:
        """Have versions delivered again that are destroyed at the far side."""
        for source in self.engine.site.sources_of(destination):
            if (region := self.regions.get(region_of(source))) is not None:
                region.post(Call(functools.partial(_redeliver, region, source, destination, lost)))

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

    # -- content that the agent asks for

    def _give(self, wanted: frames.WantBlocks | frames.WantSpan) -> None:
        connection, sent = self._connection, self.under_way.get(wanted.at)
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
        work = functools.partial(_give, self.engine, connection, sent.version, sent.progress, wanted)
        source = sent.delivery.source
        way = region_of(source), self.name
        self.in_background(work, lambda _: None, pool=("send", *way), whose=wanted.at, size_bytes=0)


def _redeliver(region: Region, source: str, destination: str, lost: Sequence[tuple[bytes, str]]) -> None:
    """Make deliveries that were COMPLETED pending again. Runs in the thread of the source's region."""
    state = region.states.get(source)
    if state is None or not state.is_up:
        return
    with region.at_work(state), state.bucket.open() as bucket:
        for key, version_id in lost:
            with contextlib.suppress(StoreDamaged, OSError):
                version = versions.read_whole(bucket, key, version_id, marker=False)
                recorded = version.deliveries.get(destination) if version is not None else None
                if version is not None and recorded is not None and recorded.status is Status.COMPLETED:
                    log.warning(
                        'sent again bucket=%s key="%s" to=%s: it is destroyed there',
                        source,
                        keys.shown(key),
                        destination,
                    )
                    again = replace(renewed(recorded), edit=False)
                    deliveries.redeliver(region, bucket, version, {**version.deliveries, destination: again})


def orders_of(engine: Runtime, source: OpenBucket, paths: Iterable[bytes]) -> dict[bytes, tuple[int, str]]:
    """By the key of a directory of a tree bucket, the order of its current version."""
    order = narrowing.order_in(engine, source.address)
    found = ((path + b"/", order(path + b"/")) for path in paths) if source.bucket.trees else ()
    return {key: each for key, each in found if each is not None}


def at_of(delivery: Delivery) -> At:
    return delivery.source, delivery.destination, delivery.key, delivery.id


def _give(
    engine: Runtime, connection: Connection, version: Version, progress: limits.Progress,
    wanted: frames.WantBlocks | frames.WantSpan,
) -> None:  # fmt: skip
    """Send what the agent asks for of a content. In a background worker."""
    try:
        with engine.site.bucket(wanted.at[0]).open() as bucket, Sending(engine, bucket).content(version) as content:
            if isinstance(wanted, frames.WantBlocks):
                blocks = content.blocks() if not wanted.afresh or content.is_whole(progress.verified_to) else None
                if blocks is None:
                    raise Failed("SrcObjectNotEligible", "the stored version no longer matches its BLAKE3")
                connection.send(frames.Blocks(wanted.ticket, blocks.encode()), bulk=True)
                return
            _give_span(engine, connection, content, progress, wanted)
    except Failed as error:
        _break(connection, frames.Broken(wanted.ticket, str(error), error.reason))
    except Ended:
        pass
    except (FsreplError, OSError) as error:
        _break(connection, frames.Broken(wanted.ticket, reason(error), unwanted=progress.unwanted))


def _give_span(
    engine: Runtime, connection: Connection, content: StoredContent, progress: limits.Progress, wanted: frames.WantSpan
) -> None:
    limiter, at, end = engine.limiter, wanted.start, wanted.start + wanted.size
    for part in content.data_of(Span(wanted.start, wanted.size)):
        if part.at > at:
            connection.send(frames.Chunk(wanted.ticket, at, part.at - at, None), bulk=True)
        at = part.at
        while at < part.end:
            most = min(part.end - at, limiter.chunk_bytes(frames.CHUNK_BYTES))
            if not progress.claim(limiter, most):
                raise Unavailable("its copy was stopped")
            data = b""
            try:
                data = content.read(at, most)
            finally:
                limiter.sent(len(data) - most)
            if not data:
                raise Unavailable("the stored file is shorter than it was")
            connection.send(frames.Chunk(wanted.ticket, at, len(data), data), bulk=True)
            at += len(data)
            progress.bytes_crossed += len(data)
            progress.came_to(max(progress.bytes_done, at))
    if at < end:
        connection.send(frames.Chunk(wanted.ticket, at, end - at, None), bulk=True)
    connection.send(frames.End(wanted.ticket), bulk=True)


def _break(connection: Connection, frame: frames.Broken) -> None:
    with contextlib.suppress(Unavailable):
        connection.send(frame, bulk=True)


class _Batch:
    """Deliveries of one queue on their way into frames."""

    def __init__(self, region: SshRegion, connection: Connection, queue: Queue, source: OpenBucket) -> None:
        self._region, self._connection, self._queue, self._source = region, connection, queue, source
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
        if at in region.under_way:
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
                    self._pack(delivery, version, with_tags=with_tags)
        except Ended:
            raise
        except Failed as error:
            log.warning('cannot send bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
            self.outcomes.append(Outcome(delivery, Status.FAILED, error.reason, None))
        except StoreDamaged as error:
            log.error('damaged bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
            if queue.attempts_of(delivery) >= _REBUILDS_MAX:
                self.outcomes.append(Outcome(delivery, Status.FAILED, "SrcObjectNotEligible", None))
                return
            region.have_repaired(delivery)
            region.try_later([delivery], str(error))
        except (OSError, FsreplError) as error:
            region.try_later([delivery], error)
        except sqlite3.Error:
            raise
        except Exception:
            log.exception(
                'set aside bucket=%s key="%s": an unexpected error', delivery.source, keys.shown(delivery.key)
            )
            region.try_later([delivery], UNEXPECTED)

    def _pack(self, delivery: Delivery, version: Version, *, with_tags: bool) -> None:
        recorded, at = version.deliveries[delivery.destination], at_of(delivery)
        data: bytes | None = None
        checks = recorded.before is not None and recorded.before.status is Status.COMPLETED
        is_small = not version.marker and version.size < self._inline_bytes
        if is_small and (at in self._region.needs_content or not (recorded.edit or checks)):
            with self._sending.content(version, just_stored=True) as content:
                data = content.whole()
            self._engine.limiter.sent(len(data))
        self._region.needs_content.discard(at)
        for path in directories.with_parents([keys.place(version.key)[0]]) if not version.marker else ():
            if path not in self._looked_at:
                self._looked_at.add(path)
                if (rights := self._sending.rights(path)) is not None:
                    self._rights[path] = rights
        size = len(data) if data is not None else 0
        waits = version.link is not None and self._sending.is_owed(*version.link, delivery.destination)
        item = frames.pack(version, delivery.destination, with_tags=with_tags, data=data, waits_for_link=waits)
        self._items.append(item)
        self._bytes += size
        self._region.note(at, UnderWay(delivery, version, size))
        if len(self._items) >= _FRAME_ITEMS or self._bytes >= _FRAME_BYTES:
            self.send()

    def send(self) -> None:
        """Send what was packed. Raises Ended."""
        if not self._items:
            return
        items, self._items, self._bytes = self._items, [], 0
        rights, self._rights = self._rights, {}
        try:
            orders = orders_of(self._engine, self._source, rights)
            packed = frames.pack_rights(rights)
            self._connection.send(frames.Deliver(self._queue.source, self._queue.destination, items, packed, orders))
        except Ended:
            raise
        except Exception:
            log.exception("set aside bucket=%s: an unexpected error", self._queue.source)
            sent = [self._region.forget((self._queue.source, self._queue.destination, i.key, i.id)) for i in items]
            self._region.try_later([each.delivery for each in sent], UNEXPECTED)
