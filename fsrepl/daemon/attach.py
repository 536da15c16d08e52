"""Buckets come and go: one that is there is indexed, watched and scanned; one that is not is suspended."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping

from fsrepl.capture import barrier, schedule
from fsrepl.errors import FsreplError, Unavailable
from fsrepl.lifecycle import act
from fsrepl.model.address import region_of
from fsrepl.model.version import Version, Versioning
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import Damaged, Place
from fsrepl.region.mailbox import DropQueues, Kick, Probe
from fsrepl.region.region import Region
from fsrepl.region.runtime import Runtime
from fsrepl.repair import rebuild, reconcile, recover, refetch
from fsrepl.replicate import backfill, thresholds
from fsrepl.storage import privacy
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Intent, read_intents
from fsrepl.storage.rule_times import note_rules
from fsrepl.storage.site import ignore_in_git
from fsrepl.views import displaced, following, show, stale

PROBE_S = 1.0
_DISPLACED_S = 10.0


log = logging.getLogger("fsrepl")


class Attaching(Region):
    """A region whose buckets come and go."""

    def __init__(self, engine: Runtime, name: str, regions: Mapping[str, Region]) -> None:
        super().__init__(engine, name, regions)
        self.probed = False
        """Its buckets have been looked at once."""

    def look_around(self) -> None:
        """Take up the buckets that are there, put down those that are not."""
        self._probe_at_s = time.monotonic() + PROBE_S
        self._keep_state_private()
        mine = {a: b for a, b in self.engine.site.buckets.items() if b.region == self.name}
        for address in [a for a in self.places if mine.get(a) is not self.places[a].bucket]:
            self.suspend(self.places.pop(address))
        for address, bucket in mine.items():
            place = self.places.setdefault(address, Place(bucket))
            if place.up or not place.stumbles or time.monotonic() >= place.up_again_at_s:
                with self.at_work(place):
                    self._look_after(place)
        self.probed = True

    def _keep_state_private(self) -> None:
        """The state names every file of the site: nobody else looks into it."""
        with contextlib.suppress(FsreplError, OSError), self.engine.site.open_state() as at:
            if privacy.close(self.engine.fs, at):
                log.warning("opened state: others could look into %s; it is closed again", self.engine.site.state)

    def look_again(self) -> None:
        """Somebody waits: what was put down is tried now."""
        for place in self.places.values():
            place.up_again_at_s = 0.0
        self.look_around()

    def _look_after(self, place: Place) -> None:
        try:
            with place.bucket.open() as bucket:
                self.follow_documents(place, bucket)
                with contextlib.suppress(FsreplError, OSError):  # they are copies; the next look tries again
                    place.keeper.keep(self.engine.site, bucket)
                is_due = not place.up and time.monotonic() >= place.up_again_at_s
                if is_due and place.bucket.versioning is not Versioning.OFF:
                    self._bring_up(place, bucket)
                elif place.scanned and time.monotonic() >= place.displaced_at_s:
                    place.displaced_at_s = time.monotonic() + _DISPLACED_S
                    displaced.clear(bucket, self.engine.journal, self.engine.settings.capture.open_quiet_s)
                    bucket.sync()
        except (FsreplError, OSError) as error:
            why = self.why_not(error)
            if place.up or place.offline != why:
                log.warning("offline bucket=%s: %s", place.bucket.address, why)
                self.suspend(place)
            place.offline = place.bucket.trouble = why
            self._tell_exposed(place)
            return
        place.offline = ""
        self._tell_exposed(place)
        if place.up:
            self._record_skipped(place)
            schedule.go_round(self, place)

    def _tell_exposed(self, place: Place) -> None:
        """Others could look into what is ours: that is said, and what is below closed as well."""
        if place.bucket.exposed == place.said_exposed:
            return
        place.said_exposed = place.bucket.exposed
        log.warning("opened bucket=%s: %s", place.bucket.address, place.bucket.exposed)

        def close() -> int:
            with place.bucket.open() as bucket:
                return privacy.close_below(bucket.fs, bucket.meta)

        def finish(closed: object) -> None:
            log.info("closed bucket=%s files=%s", place.bucket.address, closed)

        self.in_lane(close, finish, lane=("repair", self.name), whose=place.bucket.address)

    def _record_skipped(self, place: Place) -> None:
        """How many entries are no objects is shown without the daemon, too."""
        number = place.trouble.skipped_number
        if place.scanned and number != place.skipped_recorded:
            with self.engine.journal.transaction():
                self.engine.journal.set_skipped(place.bucket.address, number)
            place.skipped_recorded = number

    def _bring_up(self, place: Place, bucket: OpenBucket) -> None:
        """A bucket is there, at start or again: index, what a crash left, watch, scan. In this order."""
        engine, address = self.engine, bucket.address
        self._index(place, bucket)
        place.bucket.ids = type(place.bucket.ids)(*engine.journal.versions.newest(address))
        place.held.clear()

        def hold(intent: Intent, outcome: show.Held) -> bool:
            stale.hold_view(
                self, place, intent.key, outcome.why, conflict=outcome.conflict, bucket=bucket, was=intent.was
            )
            return bool(place.held[intent.key].intent)

        intents = [intent.key for _, group in read_intents(bucket) for intent in group]
        following.look_before_showing(self, place, bucket, intents)
        act.tell_again(self, bucket)
        lost = recover.finish(bucket, engine.journal, engine.settings.capture.open_quiet_s, hold)
        refetch.resume(place, lost)
        thresholds.untrack(engine, address)
        ignore_in_git(bucket.fs, bucket.meta)
        barrier.watch_barrier(self, place, bucket)
        backfill.resume(self, place, bucket)
        place.up, place.scanned, place.unsettled, place.put_down = True, False, False, ""
        engine.recent.forget_data()
        deliveries.owe_all(self, place)
        for queue in self.queues.values():
            if queue.destination == address:
                queue.kick()
        for region in self.regions.values():
            if region is not self:
                region.post(Kick(address))
        schedule.begin(self, place)
        log.info("online bucket=%s", address)

    def _index(self, place: Place, bucket: OpenBucket) -> None:
        journal = self.engine.journal
        with rebuild.Rebuilder(self.engine.site, bucket, journal) as rebuilder:
            reconcile.reconcile(bucket, journal, afresh=journal.scanned_ns(bucket.address) == 0, rebuilder=rebuilder)
        place.damaged += [Damaged(bucket.address, *each) for each in rebuilder.damaged]
        place.stripped = rebuilder.waiting > 0
        if place.stripped:
            log.warning(
                "not rebuilt bucket=%s versions=%d: their attributes are gone, and a region is away that may know more",
                bucket.address, rebuilder.waiting,
            )  # fmt: skip

    def recall(self, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
        """What can be found out of a version here whose record cannot be read; None where it is too little."""
        with rebuild.Rebuilder(self.engine.site, bucket, self.engine.journal) as rebuilder:
            return rebuilder.recall(key, version_id)

    def ready(self, address: str) -> Place:
        """A bucket of this region, ready to be worked in. Raises FsreplError where it is away."""
        place = self.places.get(address)
        if place is None or not place.up or place.bucket is not self.engine.site.buckets.get(address):
            self.look_again()
            place = self.places.get(address)
        bucket = self.engine.site.bucket(address)
        if place is None or not place.up:
            with bucket.open():
                pass  # raises with the reason
            if place is None or bucket.versioning is not Versioning.OFF:
                why = (place.put_down or place.offline) if place else ""
                raise Unavailable(f"bucket {address} is not up yet: {why or 'it is being taken up; try again'}")
        return place

    def follow(self, address: str) -> None:
        """The settings of a bucket were changed by command: take them over before the command returns."""
        self.look_around()
        for region in self.regions.values():
            if region is not self:
                region.post(Probe())

    def follow_documents(self, place: Place, bucket: OpenBucket) -> None:
        """After each look at a bucket's documents: write down since when its rules are in effect; wake what waits."""
        documents = place.bucket.documents
        if documents is place.documents:
            return
        if note_rules(bucket, self.engine.site.now()):
            place.bucket.refresh(bucket)
            documents = place.bucket.documents
        first, place.documents = place.documents is None, documents
        self.engine.remember_replication(bucket.address, documents.replication)
        if not first:
            for region in self.regions.values():
                region.post(Kick(bucket.address))
            if place.up:
                deliveries.owe_all(self, place)
            thresholds.untrack(self.engine, bucket.address)

    def kick(self, address: str) -> None:
        """A bucket came back, or its settings changed: try again what waits for it."""
        for queue in self.queues.values():
            if address in (queue.source, queue.destination):
                queue.kick()
        refetch.kick(self)
        for place in self.places.values():
            if place.up and place.stripped:
                with self.at_work(place), contextlib.suppress(FsreplError, OSError), place.bucket.open() as bucket:
                    self._index(place, bucket)
                    deliveries.owe_all(self, place)

    def kick_from(self, region: str) -> None:
        """A region that hung moves again: go on with what is to come from there."""
        for queue in self.queues.values():
            if region_of(queue.source) == region:
                queue.kick()

    def put_down(self, address: str) -> None:
        """A bucket is about to be removed."""
        if (place := self.places.pop(address, None)) is not None:
            self.suspend(place)
        for region in self.regions.values():
            region.post(DropQueues(address))
