"""A group of deliveries from one bucket to another, staged together."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from fsrepl.errors import UNEXPECTED, Failed, FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import keys, metadata
from fsrepl.model.version import NULL, DeliveryRecord, Status, Version
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.region import Region
from fsrepl.replicate import decide, in_stager, metadata_updates, publish, transfer
from fsrepl.replicate.destination import Destination, LocalTree
from fsrepl.replicate.draft import StagedReplica
from fsrepl.replicate.settle import is_pending
from fsrepl.replicate.source import Source
from fsrepl.replicate.transfer import Item
from fsrepl.s3 import rules
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE
from fsrepl.storage.journal.rows import Delivery, Object, Outcome
from fsrepl.views import edits, hardlinks, stale

log = logging.getLogger("fsrepl")

STEP_S = 0.1
"""Seconds for which deliveries are staged before the staged ones become durable and visible."""


class DeliveryGroup:
    """Deliveries from one source to one destination that share their syncs."""

    def __init__(
        self, region: Region, state: BucketState, source: Source, destination: OpenBucket, number: int = 1
    ) -> None:
        """number: how many deliveries are to be prepared, at most."""
        self.region, self.state, self.source, self.destination = region, state, source, destination
        self.tree: Destination = LocalTree(destination)
        self.engine = region.engine
        self._background_bytes = region.engine.background_bytes
        self.known: Mapping[bytes, Object] = {}
        self.ready: list[Item] = []
        self.large: list[Item] = []
        """Items that a background worker copies."""
        self.postponed: list[Delivery] = []
        """Other names of files that may still be prepared in this group; prepared last, when it is_complete."""
        self.is_complete = False
        stager = region.engine.stager
        is_wanted = stager is not None and source.here is not None and stager.is_wanted(number)
        self._stager = stager if is_wanted else None
        self._unstaged: list[Item] = []
        """Items for the next order to the stager."""
        self._staging: list[tuple[list[Item], in_stager.Staging]] = []
        """Items that the stager stages now, while others are prepared."""
        self._ordered = 0
        """How many these are."""
        self.left: list[Delivery] = []
        """Deliveries for which there was no time."""
        self.updates: list[metadata_updates.MetadataUpdate] = []
        self.outcomes: list[Outcome] = []

    # -- one delivery, up to its hidden copy

    def prepare(self, delivery: Delivery) -> None:
        """Decide about one delivery, and stage it if it is to be sent."""
        self._decide(delivery, self._send)

    @property
    def is_full(self) -> bool:
        """Whether the stager has enough to do."""
        if self._stager is None:
            return False
        return self._ordered + len(self._unstaged) >= self._stager.pace(in_stager.STAGE)

    def finish(self, item: Item, found: StagedReplica | Version) -> None:
        """Decide again about a large delivery, once it is staged or its replica was found.

        Meanwhile its rule or its version may have been removed, or the destination suspended: then nothing is
        published.
        """
        if isinstance(found, StagedReplica):
            item.staged = found
            item.known = self.engine.journal.versions.object(item.delivery.destination, item.delivery.key)
            self._decide(item.delivery, lambda _: self.ready.append(item))
            if not self.ready:
                self.tree.discard(found)
        else:
            self._decide(item.delivery, lambda _: self.bring_into_line(item, found))

    def _decide(self, delivery: Delivery, send: Callable[[Item], None]) -> None:
        """Settle a delivery, postpone it, or send it. An error of one delivery affects no other."""
        try:
            item = Item(delivery)
            item.version = self.source.version(delivery)
            if item.version is not None and not is_pending(item.version, delivery):
                self.outcomes.append(Outcome(delivery, Status.PENDING, "", None))
                return
            match decide.decide(self.source.facts(delivery, item.version, self._there)):
                case decide.Send(_, with_tags):
                    item.groups -= set() if with_tags else {metadata.TAGS}
                    send(item)
                case decide.Wait(why):
                    self.region.try_later([delivery], why)
                case decide.Settle(status, why):
                    self.outcomes.append(
                        Outcome(delivery, status, why if status is Status.FAILED else "", item.version)
                    )
        except Failed as error:
            log.warning('cannot send bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
            self.outcomes.append(Outcome(delivery, Status.FAILED, error.reason, None))
        except StoreDamaged as error:
            self._await_record(delivery, error)
        except PermissionError as error:
            refusal = "DstDelObjNotPermitted" if delivery.marker else "DstPutObjectNotPermitted"
            log.warning('refused to=%s key="%s": %s', delivery.destination, keys.shown(delivery.key), reason(error))
            self.outcomes.append(Outcome(delivery, Status.FAILED, refusal, None))
        except (OSError, FsreplError) as error:
            self.region.try_later([delivery], error)
        except sqlite3.Error:
            raise
        except Exception:
            self.state.replicas.undelivered[delivery.key] = f"from {delivery.source}: {UNEXPECTED}"
            self.region.set_aside(delivery)

    def _await_record(self, delivery: Delivery, error: StoreDamaged) -> None:
        """Postpone a version whose record is lost or wrong until that is rebuilt; FAILED where it cannot be."""
        log.error('damaged bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
        if self.region.have_record_rebuilt(delivery):
            self.region.try_later([delivery], str(error))
        else:
            self.outcomes.append(Outcome(delivery, Status.FAILED, "SrcObjectNotEligible", None))

    def _there(self, version: Version) -> dict[str, Any]:
        """The facts of the destination that decide about a version."""
        edit = version.deliveries[self.destination.address].edit
        return {
            "destination_versioning": self.destination.bucket.versioning,
            "hard_deleted": (version.key, version.id) in self.destination.bucket.documents.removed,
            "replica_there": not edit or self.tree.has(version.key, version.id),
            "null_taken": version.id == NULL and self._has_other_null(version),
        }

    def _has_other_null(self, version: Version) -> bool:
        """Whether the destination has a null version or null marker of this key that is not a replica of this one."""
        there = self.tree.read(version.key, NULL)
        if there is None:
            return False
        return (there.created_ns, there.marker, there.digest) != (version.created_ns, version.marker, version.digest)

    def _send(self, item: Item) -> None:
        version = item.version
        assert version is not None
        recorded = version.deliveries[item.delivery.destination]
        if recorded.owner:
            item.groups -= {metadata.ACL}
        item.replica = self._replica(item, version, recorded)
        if version.source == self.destination.address and not self.tree.has(version.key, version.id):
            item.replica = rules.brought_back(item.replica, self.destination.bucket.replication, item.delivery.source)
        item.known = self.known.get(version.key)
        if self._is_unlooked_at(version.key, item.known):
            stale.recapture(self.region, self.state, version.key)
            raise Unavailable("its view there is captured first")
        if version.link is not None and self._comes_first(*version.link):
            if self.is_complete:
                raise Unavailable("the file of which it is another name is delivered first")
            self.postponed.append(item.delivery)
            return
        hardlinks.set_free_unseen(self.region, self.state, self.destination, version.key, item.known)
        if version.size >= self._background_bytes and not recorded.edit:
            self.large.append(item)
            return
        there = whole_replica(self.state, self.source, self.tree, item, unread=recorded.edit)
        if there is not None:
            self.bring_into_line(item, there)
            return
        if self._stager is not None and in_stager.takes(item.replica):
            self._unstaged.append(item)
            if len(self._unstaged) >= in_stager.CHUNK:
                self._order()
            return
        item.staged = stage(self.source, self.tree, item)
        self.ready.append(item)

    def _order(self) -> None:
        """Have the stager stage what is prepared for it so far."""
        stager, source, items = self._stager, self.source.here, self._unstaged
        assert stager is not None
        assert source is not None
        if not self._staging:
            stager.tidy(self.destination)
        self._unstaged = []
        self._ordered += len(items)
        replicas = [item.replica for item in items if item.replica is not None]
        within_s = STEP_S * len(items) / max(len(items), stager.pace(in_stager.STAGE))
        self._staging.append((items, in_stager.Staging(stager, source, self.destination, replicas, within_s)))

    def _stage_together(self) -> None:
        """Have the stager stage the items that are left to it. Those that it does not stage are prepared again, and
        staged here."""
        if self._stager is not None and self._stager.is_wanted(self._ordered + len(self._unstaged)) and self._unstaged:
            self._order()
        stager, here = self._stager, self._unstaged
        self._stager, self._unstaged = None, []
        asked = done = 0
        for items, staging in self._staging:
            staged = staging.result()
            asked, done = asked + len(items), done + len(staged)
            self.left += [item.delivery for item in items[len(staged) :]]
            for item, replica in zip(items, staged, strict=False):
                if replica is None:
                    here.append(item)
                    continue
                item.staged = replica
                self.engine.limiter.sent(replica.stored.version.size)
                self.ready.append(item)
        if stager is not None and asked:
            stager.note_pace(in_stager.STAGE, asked, done)
        for item in here:
            self.prepare(item.delivery)

    def _comes_first(self, key: bytes, version_id: str) -> bool:
        """Whether a version is still to be delivered, and its view is to be one file with another one's."""
        if not self.destination.bucket.trees or self.tree.has(key, version_id):
            return False
        if any((item.delivery.key, item.delivery.id) == (key, version_id) for item in self.ready):
            return False
        return self.source.is_pending(key, version_id, self.destination.address)

    def _is_unlooked_at(self, key: bytes, known: Object | None) -> bool:
        """Whether the view must be captured before its key gets a newer version.

        Otherwise a later capture would take the view for a user's change of the newer version. Nothing is
        known of a view before the first scan after a lost journal, and an old journal may not match it. A missing view
        was removed by a user: that removal belongs to the current version, and is recorded first.
        """
        if known is None or known.marker or key in self.state.views.stale:
            return False
        if known.view is None:
            is_queued = key in self.state.captures.deferred or self.region.changes.is_queued(
                self.destination.address, key
            )
            return is_queued or not self.state.is_scanned
        try:
            found = self.destination.view_status(key)
        except OSError as error:
            return error.errno in NO_FILE
        if not self.destination.is_object(key, found):
            # A symlink or directory that was shown while this was a tree bucket: nothing captures it now, and it stays.
            is_former = not self.destination.bucket.trees and known.view.has_content_of(found)
            return not is_former or self.destination.fs.is_regular(found)
        return not (self.state.is_scanned or known.view.is_like(found))

    def _replica(self, item: Item, version: Version, recorded: DeliveryRecord) -> Version:
        """The version as it is sent: the metadata that may travel, and another owner where the rule says so."""
        replica = rules.replica_of(version, recorded, item.delivery.source)
        for group in metadata.GROUPS - item.groups:
            replica = metadata.without(replica, group)
        if recorded.owner and replica.posix:
            owner = self.destination.fs.stat_fd(self.destination.fd)
            replica = rules.given_to(replica, owner.st_uid, owner.st_gid)
        return replica

    def bring_into_line(self, item: Item, there: Version) -> None:
        """Update the metadata of a version that the destination has to the metadata that was sent.

        Metadata travels only from a source to its own replicas (s3-semantics, 2.2). So a backfill changes nothing where
        it sends a replica on and the destination has the version from elsewhere, or made it.
        """
        assert item.version is not None
        assert item.replica is not None
        if item.delivery.marker or (item.delivery.job and there.source != item.delivery.source):
            self.outcomes.append(Outcome(item.delivery, Status.COMPLETED, "", item.version))
        elif edits.is_unseen(self.region, self.state, self.destination, there):
            stale.recapture(self.region, self.state, there.key)
            self.region.try_later([item.delivery], "its view there was edited, which is recorded first")
        else:
            update = metadata_updates.update(
                self.region, self.destination, item.delivery, item.version, item.replica, there, item.groups
            )
            before = item.version.deliveries[item.delivery.destination].before
            if update.now == there and before is not None and before.status is Status.COMPLETED:
                # A backfill checked the version again, and it is as it was when it was made durable.
                self.outcomes.append(Outcome(item.delivery, Status.COMPLETED, "", item.version))
            else:
                self.updates.append(update)

    # -- the batch, up to COMPLETED

    def publish(self) -> None:
        """Make the batch durable, then stored, then shown; then report its outcomes."""
        self._stage_together()
        self.is_complete = True
        for delivery in self.postponed:
            self.prepare(delivery)
        try:
            if self.ready:
                self.outcomes += publish.publish(
                    self.region, self.state, self.source, self.destination, self.tree, self.ready
                )
        except OSError as error:
            self.region.try_later([item.delivery for item in self.ready], error)
        if self.updates:
            done = metadata_updates.carry_out(self.region, self.destination, self.updates)
            self.outcomes += [Outcome(each.delivery, Status.COMPLETED, "", each.sent) for each in done]
        self.region.report_outcomes(self.outcomes)


def whole_replica(
    state: BucketState, source: Source, destination: Destination, item: Item, *, unread: bool = False
) -> Version | None:
    """The version as the destination has it, its content read back unless unread is set.

    None where the destination lacks it, as where all that it has of the key is older, or where its copy is damaged or
    in doubt and must be sent again. Raises Unavailable where its record there is lost. That record is rebuilt first,
    unless nobody there could do that: a new one would hide what else it held.
    """
    replica = item.replica
    assert replica is not None
    if item.known is None or item.known.order < replica.order or (replica.key, replica.id) in state.replicas.unsynced:
        return None
    try:
        there = destination.read(replica.key, replica.id, marker=replica.marker)
        if there is None or replica.marker or (versions.ensure_whole(there) and unread):
            return there
    except StoreDamaged as error:
        if source.replaces_records:
            return None
        state.damaged.append(Damaged(destination.address, replica.key, replica.id))
        raise Unavailable(f"its record in {destination.address} is rebuilt first: {error}") from error
    return there if destination.is_whole(replace(replica, place=there.place)) else None


def stage(
    source: Source, destination: Destination, item: Item, progress: limits.Progress | None = None
) -> StagedReplica:
    assert item.version is not None
    assert item.replica is not None
    return transfer.stage(
        source, destination, item.version, item.replica, progress=progress, just_stored=progress is None
    )
