"""What the regions of a running site share: settings, journal, roles, and the hand-overs between them.

Each region has a thread of its own (region/region.py), which does all that happens in that region: it
captures, it places replicas, it scans. So a region that hangs holds up nobody else, and within a
bucket nothing races with itself. What concerns two regions travels as a message.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

from fsrepl.errors import FsreplError, Refused, Unavailable
from fsrepl.model.rule import Replication, Role
from fsrepl.region.change_queue import Watcher
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.region.recent import Recent
from fsrepl.region.reporter import Reporter
from fsrepl.region.run_lock import Turns
from fsrepl.region.workers import Workers
from fsrepl.s3 import replication, roles
from fsrepl.settings import Settings
from fsrepl.storage.eventlog import EventLog
from fsrepl.storage.fs import LASTING, Fs, reason
from fsrepl.storage.journal import database
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.probe import Threads
from fsrepl.storage.site import Site
from fsrepl.storage.sync import Syncer

if TYPE_CHECKING:
    from fsrepl.region.region import Region


_ALIVE_S = 0.5
_ANSWER_S = 5.0
"""How long a region that hangs is waited for by who asks something of it that it has not begun with."""
_BEGUN_S = 30.0
"""And once it has: that may be one slow disk, and there is no taking back."""
_CLOSE_S = 30.0

T = TypeVar("T")


class Engine:
    """A site at work: in the daemon with threads and a watcher, in a single command without."""

    def __init__(self, settings: Settings, *, fs: Fs | None = None, watcher: Watcher | None = None) -> None:
        from fsrepl.region.region import Region

        self.settings = settings
        self.site = Site(settings, fs)
        self.site.keeps_private = True
        self.fs = self.site.fs
        self.watcher = watcher
        self.threaded = False
        self.turns = Turns()
        self.fs.aside = self.turns.aside
        self._workers: dict[tuple[str, ...], Workers] = {}
        self._backfill_lanes: dict[tuple[str, str], threading.BoundedSemaphore] = {}
        self._guard = threading.Lock()
        self.syncer = Syncer()
        self.limiter = Limiter(settings.replication.limit_bytes_s)
        self.recent = Recent()
        self.transfers: list[Progress] = []
        self.probes = Threads()
        self.changed = threading.Condition()
        """Notified whenever something was captured or settled: what `wait` waits on."""
        self.reporter = Reporter(EventLog(self.fs, self.site.state, settings.events.max_bytes), self.site.now)
        self.journal = self._open_journal()
        self.site.look()
        self._roles: dict[str, tuple[tuple[int, ...], Role | None]] = {}
        self._tickets = itertools.count(1)
        self.regions: dict[str, Region] = {name: Region(self, name) for name in settings.regions}

    # -- the journal

    def _open_journal(self) -> Journal:
        with self.site.open_state():
            path = os.path.join(self.site.state, "journal.db")
            with database.faults_told(path):
                journal = database.open_or_replace(path)
                self._begin(journal)
        return journal

    def _begin(self, journal: Journal) -> None:
        with journal.transaction():
            boot = _boot_id()
            # After a power cut the journal may have outlived attributes that were not synced: read them again.
            if journal.fact("clean") != "1" and journal.fact("boot") != boot:
                journal.forget_trees()
            journal.set_fact("clean", "0")
            journal.set_fact("boot", boot)
            for address, bucket in self.site.buckets.items():
                journal.bucket_id(address, bucket.uuid)

    def journal_told(self) -> contextlib.AbstractContextManager[None]:
        """Around what uses the journal: a fault of its disk is raised as Unavailable."""
        return database.faults_told(self.journal.path)

    # -- lanes

    def workers(self, *lane: str) -> Workers:
        """The threads of one kind of work: captures or repairs in a region, deliveries from one to another."""
        with self._guard:
            if lane not in self._workers:
                name = f"lane {' '.join(lane)}"
                self._workers[lane] = Workers(name, max(2, self.settings.replication.workers))
            return self._workers[lane]

    def backfill_lanes(self, source: str, destination: str) -> threading.BoundedSemaphore:
        """The lanes from one region to another that backfills may use: a live object always finds one more."""
        with self._guard:
            number = max(1, self.settings.replication.workers // 2)
            return self._backfill_lanes.setdefault((source, destination), threading.BoundedSemaphore(number))

    @property
    def lane_bytes(self) -> int:
        """From which size on an object goes in a lane: it is large, or larger than the limit lets through at once."""
        return int(min(self.settings.replication.large_file_bytes, self.limiter.batch_bytes))

    def stop_lanes(self, within_s: float) -> bool:
        """Stop what is under way in lanes; whether all of it ended in time."""
        for progress in list(self.transfers):
            progress.stop = True
        until_s = time.monotonic() + within_s
        with self._guard:
            workers = list(self._workers.values())
        ended = [each.close(max(0.0, until_s - time.monotonic())) for each in workers]
        return all(ended)

    def close(self) -> None:
        """Stop the lanes and close the journal properly."""
        self.stop_lanes(_CLOSE_S)
        self.syncer.close()
        with contextlib.suppress(Exception):
            self.journal.set_fact("clean", "1")
        self.journal.close()
        self.reporter.close()

    # -- regions

    @property
    def epoch(self) -> int:
        """How many barriers have been passed. See capture/schedule.py."""
        return self.watcher.epoch if self.watcher is not None else 0

    def region_of(self, address: str) -> Region:
        return self.regions[address.partition("/")[0]]

    def look_for_stuck(self) -> None:
        """Note which regions hang; where one moves again, have what is to come from there sent."""
        now_s = time.monotonic()
        for region in list(self.regions.values()):
            if region.pulse.look(region.thread, busy=region.busy_since_s > 0, now_s=now_s):
                for other in self.regions.values():
                    other.post(functools.partial(other.kick_from, region.name))

    def is_stuck(self, address: str) -> bool:
        """Whether the region of a bucket hangs: who touched it would hang as well."""
        region = self.regions.get(address.partition("/")[0])
        return region is not None and region.pulse.is_stuck

    def ask(self, region: str, what: Callable[[], T], timeout_s: float | None = None) -> T:
        """Have something done by a region's own thread, between its batches; its result, or what it raised.

        Raises Unavailable where the region stopped before it came to that, or hangs; TimeoutError. One that is busy
        is waited for, however long that is. What it had not begun with when it hung is not done later either.
        """
        if not self.threaded:
            return what()
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # whoever asked has given up
            try:
                future.set_result(what())
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, sqlite3.Error) and database.is_passing(error):
                    raise  # whoever asked is told, and the region begins again

        asked = self.regions[region]
        asked.post(run)
        since_s = time.monotonic()
        while not future.done():
            waited_s = time.monotonic() - since_s
            if not asked.is_alive():
                raise Unavailable(f"region {region} has stopped")
            if timeout_s is not None and waited_s >= timeout_s:
                raise TimeoutError
            if timeout_s is None and asked.pulse.is_stuck:
                _give_up(future, region, waited_s)
            wait([future], _ALIVE_S if timeout_s is None else min(timeout_s - waited_s, _ALIVE_S))
        return future.result()

    def turn(self) -> bool:
        """One turn of every region, in order, where there are no threads; whether anything was done."""
        busy = [region.turn() for region in self.regions.values()]  # every one of them, whatever the others say
        return any(busy)

    def settle_down(self, turns_max: int = 10_000) -> None:
        """Without threads: turn until nothing is left to do now."""
        for _ in range(turns_max):
            if not self.turn():
                return

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def ticket(self) -> int:
        return next(self._tickets)

    def reload(self, settings: Settings) -> None:
        """Follow new settings: everything but where the state lies."""
        from fsrepl.region.region import Region

        self.settings = self.site.settings = settings
        self.limiter.rate = settings.replication.limit_bytes_s
        with self._guard:
            for workers in self._workers.values():
                workers.number = max(2, settings.replication.workers)
        self.reporter.eventlog.max_bytes = settings.events.max_bytes
        self.site.load_identities()
        with self.journal.transaction():
            for address, bucket in self.site.buckets.items():
                self.journal.bucket_id(address, bucket.uuid)
        for name in [n for n in self.regions if n not in settings.regions]:
            region = self.regions.pop(name)
            region.stopping = True
            region.wake()
            if self.watcher is not None:
                for address in list(region.places):
                    self.watcher.forget(address)
        for name in settings.regions:
            if name not in self.regions:
                self.regions[name] = Region(self, name)
                if self.threaded:
                    self.regions[name].start()
        for region in self.regions.values():
            region.marks.configure(settings.capture)
            region.post(region.configure)
            region.post(region.probe_now)
            region.post(region.owe_all_again)

    # -- roles

    def role(self, name: str) -> Role | None:
        """A role by name, as its file says now; None where there is none that can be used.

        Raises Unavailable where that cannot be told now: nothing shall fail for good by that.
        """
        path = self.settings.roles / (name + ".json")
        try:
            found = os.stat(path)
            if found.st_uid not in (0, os.geteuid()):  # whoever wrote it would be root through it
                return None
            mark = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            known = self._roles.get(name)
            if known is None or known[0] != mark:
                with open(path, encoding="utf-8") as file:
                    known = self._roles[name] = (mark, roles.parse_role(json.load(file), name))
            return known[1]
        except (ValueError, FsreplError):
            pass
        except OSError as error:
            if error.errno not in LASTING:
                raise Unavailable(f"role {name} cannot be read: {reason(error)}") from error
        self._roles.pop(name, None)
        return None

    def remember_replication(self, address: str, replication: Replication | None) -> None:
        """Keep what a bucket's configuration says, for when it is away at our start."""
        text, name = json.dumps(replication.document) if replication else "", f"replication {address}"
        if self.journal.fact(name) != text:
            with self.journal.transaction():
                self.journal.set_fact(name, text)

    def replication_of(self, address: str) -> Replication | None:
        """The configuration of a bucket that may be away: as last read, if need be before our start."""
        bucket = self.site.buckets.get(address)
        if bucket is None or bucket.seen:
            return bucket.replication if bucket else None
        with contextlib.suppress(Refused, ValueError):
            if text := self.journal.fact(f"replication {address}"):
                return replication.read_replication(json.loads(text), source=address, named=self.site.named)
        return bucket.replication

    @contextlib.contextmanager
    def progress(self, progress: Progress) -> Iterator[Progress]:
        self.transfers.append(progress)
        try:
            yield progress
        finally:
            self.transfers.remove(progress)


def _give_up(future: Future[T], region: str, waited_s: float) -> None:
    """Raises Unavailable where a region that hangs has been waited for long enough. It says whether it had begun."""
    if waited_s >= _ANSWER_S and future.cancel():
        raise Unavailable(
            f"region {region} does not answer (no answer in {_ANSWER_S:g} s); nothing was done; try again once it does"
        )
    if waited_s >= _BEGUN_S and not future.done():
        raise Unavailable(
            f"region {region} does not answer (no answer in {_BEGUN_S:g} s); "
            "it had begun: what became of it will show once it does"
        )


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(int(time.time() - time.monotonic()))
