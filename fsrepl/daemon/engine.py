"""The engine of a daemon: it owns the regions' workers and the journal, and follows new settings.

Each region has its own thread (daemon/worker.py), which does all work in that region: capture,
replicas, scans. So a region that hangs delays no other, and within a bucket there are no races.
Work that concerns two regions is sent as a message (region/mailbox.py).
"""

from __future__ import annotations

import contextlib
import time

from fsrepl.daemon.ssh_region import SshRegion
from fsrepl.daemon.uplink import Uplink
from fsrepl.daemon.worker import Worker
from fsrepl.model.address import region_of
from fsrepl.region.change_queue import Watcher
from fsrepl.region.mailbox import Probe, Reconfigure, Requeue, RetryNowFrom
from fsrepl.region.receiver import Receiver
from fsrepl.region.runtime import PUTS, Runtime
from fsrepl.settings import Settings
from fsrepl.storage import boot, probe
from fsrepl.storage.fs import Fs

_CLOSE_S = 30.0


class Engine(Runtime):
    """A running site: in the daemon with threads and a watcher, in a single command without."""

    def __init__(
        self, settings: Settings, *, fs: Fs | None = None, watcher: Watcher | None = None, asks_first: bool = False
    ) -> None:
        """asks_first: a region that hangs is not read here; its own thread reads it once it answers."""
        super().__init__(settings, fs=fs, watcher=watcher)
        with self.site.open_state(), self.journal_faults_as_unavailable():
            self._begin()
        if asks_first:
            self.site.ask_regions(probe.ANSWER_S)
        self.site.look()
        self.site.set_silent(())
        self.regions: dict[str, Worker] = {}
        self.receivers: dict[str, Receiver] = {}
        """The threads of all regions by name, those of `regions` among them."""
        for name in settings.regions:
            self._add_region(name)
        for name in settings.destinations:
            self.receivers[name] = self._receiver(name)

    def _receiver(self, name: str) -> Receiver:
        """The thread of a region that only takes replicas."""
        return (SshRegion if name in self.settings.hosts else Uplink)(self, name, self.regions)

    def _begin(self) -> None:
        journal = self.journal
        with journal.transaction():
            boot_id = boot.boot_id()
            # After a power cut the journal may have outlived attributes that were not synced: see repair/reread.py.
            if journal.fact("clean") != "1" and journal.fact("boot") != boot_id:
                journal.ask_to_reread()
            journal.set_fact("clean", "0")
            journal.set_fact("boot", boot_id)
            for address, bucket in self.site.buckets.items():
                journal.bucket_id(address, bucket.uuid)

    def _add_region(self, name: str) -> Worker:
        region = self.regions[name] = self.receivers[name] = Worker(self, name, self.regions, self.receivers)
        return region

    def region_of(self, address: str) -> Worker:
        return self.regions[region_of(address)]

    # -- the loop without threads

    def turn(self) -> bool:
        """Run one turn of every region, in order, without threads; whether anything was done."""
        busy = [region.turn() for region in self.receivers.values()]  # all of them, whether or not one was busy
        return any(busy)

    def run_until_idle(self, turns_max: int = 10_000) -> bool:
        """Run turns without threads until there is nothing to do now; whether that took at most turns_max."""
        return any(not self.turn() for _ in range(turns_max))

    def look_for_stuck(self) -> None:
        """Note which regions hang; retry deliveries from a region that moves again."""
        now_s = time.monotonic()
        for region in list(self.receivers.values()):
            if region.pulse.look(region.thread, busy_since_s=region.busy_since_s, now_s=now_s):
                for other in self.receivers.values():
                    other.post(RetryNowFrom(region.name))

    # -- new settings, and the end

    def reload(self, settings: Settings) -> None:
        """Follow new settings, except for a new location of the state."""
        self.settings = self.site.settings = settings
        self.limiter.rate = settings.replication.limit_bytes_s
        self.scrub_limiter.rate = settings.scrub.limit_bytes_s
        self.moves_limiter.rate = settings.lifecycle.limit_bytes_s
        with self._guard:
            for pool, workers in self._workers.items():
                if pool[0] != PUTS:
                    workers.number = max(2, settings.replication.workers)
        self.reporter.eventlog.max_bytes = settings.events.max_bytes
        self.site.load_identities()
        with self.journal.transaction():
            for address, bucket in self.site.buckets.items():
                self.journal.bucket_id(address, bucket.uuid)
        for name in [n for n in self.regions if n not in settings.regions]:
            region = self.regions.pop(name)
            del self.receivers[name]
            region.stopping = True
            region.wake()
            for address in list(region.states):
                if self.watcher is not None:
                    self.watcher.forget(address)
                if self.places is not None:
                    self.places.forget(address)
        for name in settings.regions:
            if name not in self.regions:
                region = self._add_region(name)
                if self.threaded:
                    region.start()
        self._follow_destinations(settings)
        for receiver in self.receivers.values():
            receiver.wake()
        for region in self.regions.values():
            region.changes.configure(settings.capture)
            region.post(Reconfigure())
            region.post(Probe())
            region.post(Requeue())

    def _follow_destinations(self, settings: Settings) -> None:
        """Stop the threads of regions that only took replicas and left the site, and start those of new ones."""
        for name in self.receivers.keys() - settings.regions.keys():
            there, wanted = self.receivers[name], SshRegion if name in settings.hosts else Uplink
            if name not in settings.destinations or not isinstance(there, wanted):
                del self.receivers[name]
                there.stopping = True
                there.wake()
        for name in settings.destinations.keys() - self.receivers.keys():
            receiver = self.receivers[name] = self._receiver(name)
            if self.threaded:
                receiver.start()

    def stop_workers(self, within_s: float) -> bool:
        """Stop background workers; whether all of them ended in time."""
        for host in self.site.hosts.values():
            host.end()
        for progress in list(self.transfers):
            progress.stop = True
        until_s = time.monotonic() + within_s
        with self._guard:
            workers = list(self._workers.values())
        ended = [each.close(max(0.0, until_s - time.monotonic())) for each in workers]
        return all(ended)

    def close(self) -> None:
        """Stop the background workers and close the journal properly."""
        self.stop_workers(_CLOSE_S)
        for region in self.regions.values():
            for state in region.states.values():
                state.replicas.forget(self.fs)
        for host in self.site.hosts.values():
            host.close()
        self.syncer.close()
        with contextlib.suppress(Exception):
            self.journal.set_fact("clean", "1")
        self.journal.close()
        self.reporter.close()
