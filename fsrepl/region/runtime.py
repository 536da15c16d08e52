"""Objects that the regions of a running site share: settings, journal, roles, and background workers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator

from fsrepl.errors import FsreplError, Refused, Unavailable, reason
from fsrepl.model import json_text
from fsrepl.model.rule import Replication, Role
from fsrepl.region.change_queue import Watcher
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.region.places import Places
from fsrepl.region.recent import Recent
from fsrepl.region.reporter import Reporter
from fsrepl.region.run_lock import RunLock
from fsrepl.region.stager import Stager
from fsrepl.region.under_way import Tasks
from fsrepl.region.verifications import Verifications
from fsrepl.region.workers import Workers
from fsrepl.s3 import replication, roles
from fsrepl.settings import Settings
from fsrepl.storage import privacy
from fsrepl.storage.eventlog import EventLog
from fsrepl.storage.fs import LASTING, Fs
from fsrepl.storage.journal import database
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.probe import Threads
from fsrepl.storage.site import Site
from fsrepl.storage.sync import Syncer

log = logging.getLogger("fsrepl")

_OFTEN_S = 1.0

PUTS = "puts"
"""The pools of workers that send small objects to an S3 service, as many as its settings say."""


class Runtime:
    """See the module. The daemon has threads and a watcher, a single command has neither."""

    def __init__(self, settings: Settings, *, fs: Fs | None = None, watcher: Watcher | None = None) -> None:
        self.settings = settings
        self.site = Site(settings, fs)
        self.site.keeps_private = True
        self.fs = self.site.fs
        self.watcher = watcher
        self.threaded = False
        self.places: Places | None = None
        """In the daemon alone, as far as the kernel has it: without it places are looked at often."""
        self.rest_s = _OFTEN_S
        """How long a region with nothing to do sleeps at most."""
        self.stir: Callable[[], None] = lambda: None
        """Called when a region begins to work: the daemon's own thread may be asleep."""
        self.run_lock = RunLock()
        self.fs.released = self.run_lock.released
        self._workers: dict[tuple[str, ...], Workers] = {}
        self._backfill_slots: dict[tuple[str, str], threading.BoundedSemaphore] = {}
        self._guard = threading.Lock()
        self.syncer = Syncer()
        self.stager: Stager | None = None
        """In the daemon alone."""
        self.limiter = Limiter(settings.replication.limit_bytes_s)
        self.scrub_limiter = Limiter(settings.scrub.limit_bytes_s)
        """All scrubs together."""
        self.moves_limiter = Limiter(settings.lifecycle.limit_bytes_s)
        """All moves of content between disks together."""
        self.recent = Recent()
        self.transfers: list[Progress] = []
        self.verifications = Verifications()
        self.tasks = Tasks()
        self.probes = Threads()
        self.changed = threading.Condition()
        """Notified after every capture and every settled delivery: `wait` waits on it."""
        self.reporter = Reporter(EventLog(self.fs, self.site.state, settings.events.max_bytes), self.site.now)
        self.journal = self._open_journal()
        self._roles: dict[str, tuple[tuple[int, ...], Role | None]] = {}

    # -- the journal

    def _open_journal(self) -> Journal:
        with self.site.open_state():
            path = os.path.join(self.site.state, "journal.db")
            with database.faults_as_unavailable(path):
                journal = database.open_or_replace(path)
        return journal

    def keep_state_private(self) -> None:
        """Keep other users out of the state folder: it names every file of the site."""
        with contextlib.suppress(FsreplError, OSError), self.site.open_state() as at:
            if privacy.close(self.fs, at):
                log.warning("opened state: others could look into %s; it is closed again", self.site.state)

    def journal_faults_as_unavailable(self) -> contextlib.AbstractContextManager[None]:
        """Around uses of the journal: a fault of its disk is raised as Unavailable."""
        return database.faults_as_unavailable(self.journal.path)

    # -- background workers

    def workers(self, *pool: str, number: int = 0) -> Workers:
        """The threads for one kind of work: captures or repairs in a region, deliveries from one to another.

        number: how many, where the settings of replication do not say it.
        """
        with self._guard:
            if pool not in self._workers:
                name = f"worker {' '.join(pool)}"
                self._workers[pool] = Workers(name, number or max(2, self.settings.replication.workers))
            return self._workers[pool]

    def backfill_slots(self, source: str, destination: str) -> threading.BoundedSemaphore:
        """The workers between two regions that backfills may use: a live object always finds one more."""
        with self._guard:
            number = max(1, self.settings.replication.workers // 2)
            return self._backfill_slots.setdefault((source, destination), threading.BoundedSemaphore(number))

    @property
    def background_bytes(self) -> int:
        """The size from which a background worker handles an object: large, or above the limit's share of a batch."""
        return int(min(self.settings.replication.large_file_bytes, self.limiter.batch_bytes))

    @property
    def epoch(self) -> int:
        """Number of barriers passed. See capture/schedule.py."""
        return self.watcher.epoch if self.watcher is not None else 0

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    # -- roles

    def role(self, name: str) -> Role | None:
        """A role by name, as in its file now; None where there is none that can be used.

        Raises Unavailable where the file cannot be read now: no delivery shall fail for good because of that.
        """
        path = f"{self.settings.roles}/{name}.json"
        try:
            found = os.stat(path)
            if found.st_uid not in (0, os.geteuid()):  # its author would be root through it
                return None
            change = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            known = self._roles.get(name)
            if known is None or known[0] != change:
                with open(path, encoding="utf-8") as file:
                    known = self._roles[name] = (change, roles.parse_role(json_text.loads(file.read()), name))
            return known[1]
        except (ValueError, FsreplError):
            pass
        except OSError as error:
            if error.errno not in LASTING:
                raise Unavailable(f"role {name} cannot be read: {reason(error)}") from error
        self._roles.pop(name, None)
        return None

    def remember_replication(self, address: str, replication: Replication | None) -> None:
        """Keep a bucket's configuration in the journal, for a start while the bucket is away."""
        text, name = json.dumps(replication.document) if replication else "", f"replication {address}"
        if self.journal.fact(name) != text:
            with self.journal.transaction():
                self.journal.set_fact(name, text)

    def replication_of(self, address: str) -> Replication | None:
        """The configuration of a bucket that may be away: as last read, possibly before this start."""
        bucket = self.site.buckets.get(address)
        if bucket is None or bucket.seen:
            return bucket.replication if bucket else None
        with contextlib.suppress(Refused, ValueError):
            if text := self.journal.fact(f"replication {address}"):
                return replication.read_replication(json_text.loads(text), source=address, named=self.site.named)
        return bucket.replication

    @contextlib.contextmanager
    def progress(self, progress: Progress) -> Iterator[Progress]:
        self.transfers.append(progress)
        try:
            yield progress
        finally:
            self.transfers.remove(progress)
