"""The region that an agent serves: its deliveries come from the connection, and their outcomes go there.

It delivers as any region does (daemon/worker.py). A delivery that cannot be made now is given back at once, since the
site at the other end keeps the order, the delays and the reasons.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from fsrepl.daemon.engine import Engine
from fsrepl.daemon.worker import Worker
from fsrepl.errors import Away, FsreplError, Unavailable
from fsrepl.link import frames
from fsrepl.region.delivery_queue import Queue
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region, TimeAt
from fsrepl.region.runtime import Runtime
from fsrepl.replicate.arrivals import LACKS_CONTENT, ArrivedSource, Incoming
from fsrepl.replicate.source import Source
from fsrepl.settings import Settings
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs
from fsrepl.storage.journal.rows import Delivery, Outcome
from fsrepl.views import directories, narrowing, resting


class _Queue(Queue):
    """Deliveries that were sent: those of a backfill wait as the others do, since its list is at the site, and so is
    that of all that are pending."""

    is_bounded = False

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        self.ready.extendleft(reversed(deliveries))

    def done(self, delivery: Delivery) -> None:
        self.known.discard((delivery.key, delivery.id))


class ServedRegion(Worker):
    """The region of an agent: its deliveries come from the connection, and their outcomes go there."""

    def __init__(
        self, engine: Runtime, name: str, regions: Mapping[str, Region], receivers: Mapping[str, Receiver],
        incoming: Incoming,
    ) -> None:  # fmt: skip
        super().__init__(engine, name, regions, receivers)
        self._incoming = incoming
        self._told: dict[str, set[tuple[bytes, str]]] = {}
        """By bucket, versions that the site knows to be destroyed."""
        self._to_follow: deque[frames.Directories] = deque()
        """Permissions of directories that wait for their bucket."""
        self._times: deque[frames.Times] = deque()
        """Times of directories that were asked for, until they are set."""
        self.away = ""
        """Why the region is away; empty while it is there."""

    def probe_buckets(self) -> None:
        super().probe_buckets()
        self.away = ""
        try:
            with self.engine.site.open_region(self.name):
                pass
        except Away as error:
            self.away = str(error)
        except FsreplError:
            pass  # each of its buckets says so

    def take_turn(self) -> bool:
        self._tell_lost()
        busy = super().take_turn()
        self._follow_directories()
        self._set_times()
        return busy

    def _tell_lost(self) -> None:
        """Ask the site for versions that are destroyed here: there is no other region to fetch them from."""
        for address, state in self.states.items():
            lost = {*state.views.overwritten, *((each.key, each.id) for each in state.damaged if not each.marker)}
            told = self._told.setdefault(address, set())
            told &= {*state.views.overwritten}
            if news := lost - told:
                told |= news
                self._send(frames.Lost(address, sorted(news)))

    def queue(self, source: str, destination: str) -> Queue:
        at = (source, destination)
        if at not in self.queues:
            self.queues[at] = _Queue(source, destination, threading.BoundedSemaphore())
        return self.queues[at]

    @contextlib.contextmanager
    def _opened(self, address: str, destination: OpenBucket) -> Iterator[Source]:
        yield ArrivedSource(self._incoming, address, destination.address, self.engine.fs.released)

    def open_source(self, address: str, destination: OpenBucket) -> AbstractContextManager[Source]:
        return self._opened(address, destination)

    def report_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        told = []
        for each in outcomes:
            self.queue(each.delivery.source, each.delivery.destination).done(each.delivery)
            if (at := self._incoming.forget(each.delivery)) is not None:
                told.append(frames.Told(at, each.status, each.reason, each.crossed_bytes))
        if told:
            self._send(frames.Outcomes(told))

    def try_later(self, deliveries: Sequence[Delivery], why: str | Exception, *, whole: bool = False) -> None:
        given_back = []
        for each in deliveries:
            self.queue(each.source, each.destination).done(each)
            if (at := self._incoming.forget(each)) is not None:
                given_back.append(at)
        # Small content came with its delivery, and would cross again for each try. A quota concerns one user's alone.
        is_full = isinstance(why, OSError) and why.errno == errno.ENOSPC
        whole = whole or (is_full and any(each.size < frames.INLINE_MAX_BYTES for each in deliveries))
        why = why if isinstance(why, str) else self.why_not(why)
        if given_back:
            self._send(frames.Later(given_back, why, whole, lacks_content=why == LACKS_CONTENT))

    def _send(self, frame: frames.Frame) -> None:
        with contextlib.suppress(Unavailable):  # the site sends them again over its next connection
            self._incoming.send(frame)

    def begin_again(self, error: sqlite3.Error) -> None:
        super().begin_again(error)
        self.give_back_all(f"the journal {self.engine.journal.path} cannot be used: {error}")

    def give_back_all(self, why: str) -> None:
        """Give back all that was sent; what of it is done is found when it is sent again. Any thread may call it."""
        if given_back := self._incoming.forget_all():
            self._send(frames.Later(given_back, why, whole=True))

    def take_directories(self, frame: frames.Directories) -> None:
        """Give directories the permissions that they have at a source now, once their bucket is up. Any thread may call
        it."""
        self._to_follow.append(frame)
        self.wake()

    def _follow_directories(self) -> None:
        for _ in range(len(self._to_follow)):
            frame = self._to_follow.popleft()
            state = self.states.get(frame.destination)
            if state is None or not state.is_up:
                self._to_follow.append(frame)
                continue
            rights = frames.unpack_rights(frame.rights)
            with self.at_work(state), state.bucket.open() as bucket:
                narrower = narrowing.Narrower(self.engine, bucket, {frame.source: frame.orders.get})
                follower = directories.Follower(bucket, {frame.source: rights.get}, narrower)
                for path in rights:
                    resting.note(state, path)
                    with contextlib.suppress(OSError):  # gone, or without a version in it: nothing to do
                        follower.follow(path)
            if state.is_up:
                self._send(frames.Followed(frame.source, frame.destination, list(rights)))
            else:
                self._to_follow.append(frame)

    # -- the times of directories

    def has_sources(self, address: str) -> bool:
        return True  # the site knows which

    @contextlib.contextmanager
    def source_times(self, address: str) -> Iterator[TimeAt]:
        """None is known here: those that are wanted are asked for together."""
        wanted: dict[str, list[bytes]] = {}

        def ask(source: str, path: bytes) -> None:
            wanted.setdefault(source, []).append(path)

        yield ask
        for source, paths in wanted.items():
            self._send(frames.WantTimes(source, address, paths))

    def take_times(self, frame: frames.Times) -> None:
        """Set times that were asked for. Any thread may call it."""
        self._times.append(frame)
        self.wake()

    def _set_times(self) -> None:
        while self._times:
            frame = self._times.popleft()
            state = self.states.get(frame.destination)
            if state is not None and state.is_up:  # else a scan follows, after which they are asked for again
                resting.set_received(self, state, frame.source, frame.mtimes_ns)


class AgentEngine(Engine):
    """The engine of a site with one region that is served. fs: for tests."""

    def __init__(self, settings: Settings, incoming: Incoming, fs: Fs | None = None) -> None:
        self._incoming = incoming
        super().__init__(settings, fs=fs)
        self.threaded = True

    def _add_region(self, name: str) -> Worker:
        region = ServedRegion(self, name, self.regions, self.receivers, self._incoming)
        self.regions[name] = self.receivers[name] = region
        return region

    @property
    def served(self) -> ServedRegion:
        (region,) = self.regions.values()
        assert isinstance(region, ServedRegion)
        return region
