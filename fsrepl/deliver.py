"""Deliveries into one bucket: staged, durable, visible, and only then COMPLETED, a batch at a time.

Runs in the destination's region. What became of each goes back to the source's region, which
writes the word of it on the version there (settle).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsrepl import (
    commit,
    directories,
    edits,
    gate,
    keys,
    mend,
    metadata,
    plan,
    roles,
    showing,
    store,
    transfer,
)
from fsrepl.errors import UNFORESEEN, BucketMissing, Failed, FsreplError, StoreDamaged, Unavailable
from fsrepl.fs import NO_FILE, reason
from fsrepl.model import ARCHIVED_CLASSES, NULL, Delivery, Replication, Role, Status, Version
from fsrepl.rows import Object, Owed, View, Word
from fsrepl.settling import is_owed
from fsrepl.site import OpenBucket

if TYPE_CHECKING:
    from fsrepl.place import Place
    from fsrepl.region import Region

log = logging.getLogger("fsrepl")

STEP_S = 0.1
"""So long deliveries are staged before those that are staged become durable and visible."""
_REBUILDS_MAX = 3


@dataclass(slots=True)
class Item:
    """One delivery under way."""

    owed: Owed
    version: Version | None = None
    replica: Version | None = None
    staged: transfer.StagedReplica | None = None
    groups: frozenset[str] = edits.GROUPS
    """Of its metadata, what may travel."""
    known: Object | None = None
    """The key in the destination, as the journal has it."""


def carry(region: Region, place: Place, owed: Sequence[Owed]) -> None:
    """Take deliveries from one source into one bucket as far as they can go now.

    One that met an unforeseen fault is carried alone, so that it keeps that to itself.
    """
    single = [each for each in owed if place.carries_singly or each.key in place.undelivered]
    if len(single) < len(owed):
        _carry(region, place, [each for each in owed if each not in single] if single else owed)
    for each in single:
        place.undelivered.pop(each.key, None)
        try:
            _carry(region, place, [each])
        except sqlite3.Error:
            raise
        except Exception:
            log.exception('set aside bucket=%s key="%s": what nobody foresaw', each.source, keys.shown(each.key))
            place.undelivered[each.key] = f"from {each.source}: {UNFORESEEN}"
            region.try_later([each], UNFORESEEN)
    place.carries_singly = False


def _carry(region: Region, place: Place, owed: Sequence[Owed]) -> None:
    """The same for a batch. Read this first.

    What is staged before it becomes durable and visible is bounded in time as well as in number; the rest waits for
    the next turn.
    """
    until_s = time.monotonic() + STEP_S
    source_name = owed[0].source
    engine = region.engine
    source = engine.site.buckets.get(source_name)
    if source is None:
        return  # the source left the site; its deliveries left the journal with it
    if engine.is_stuck(source_name) and source.region != region.name:
        region.try_later(owed, f"region {source.region} hangs; it is not touched from here until it moves", whole=True)
        return
    try:
        from_bucket = source.open()
    except (Unavailable, BucketMissing) as error:
        region.try_later(owed, str(error), whole=True)
        return
    with from_bucket:
        try:
            to_bucket = place.bucket.open()
        except Unavailable as error:
            region.try_later(owed, str(error), whole=True)
            return
        except BucketMissing:
            settle_all(region, owed, plan.decide(plan.Facts(destination_missing=True)))
            return
        with to_bucket:
            try:
                batch = Batch(region, place, from_bucket, to_bucket)
            except Unavailable as error:
                region.try_later(owed, str(error), whole=True)
                return
            batch.known = engine.journal.look_up(place.bucket.address, [each.key for each in owed])
            done = 0
            while done < len(owed) and not (done and time.monotonic() > until_s):
                batch.prepare(owed[done])
                done += 1
            batch.publish()
            region.queue(source_name, place.bucket.address).give_back(owed[done:])


class Batch:
    """Deliveries from one source to one destination that share their syncs."""

    def __init__(self, region: Region, place: Place, source: OpenBucket, destination: OpenBucket) -> None:
        self.region, self.place, self.source, self.destination = region, place, source, destination
        self.engine = region.engine
        self.replication: Replication | None = source.bucket.replication
        self.rules = {rule.id: rule for rule in self.replication.rules} if self.replication else {}
        self.role: Role | None = self.engine.role(self.replication.role) if self.replication else None
        self.known: Mapping[bytes, Object] = {}
        self.gate: gate.Gate | None = None
        self.ready: list[Item] = []
        self.changes: list[metadata.Change] = []
        self.words: list[Word] = []

    # -- one delivery, as far as hidden

    def prepare(self, owed: Owed) -> None:
        """Decide about one delivery, and stage it if it is to be sent."""
        self._decide(owed, self._send)

    def finish(self, item: Item, found: transfer.StagedReplica | Version) -> None:
        """Decide once more about a delivery that took its time, now that it is staged, or was found to be there.

        Its rule may be gone by then, its version removed, or the destination suspended: then nothing is published.
        """
        if isinstance(found, transfer.StagedReplica):
            item.staged = found
            item.known = self.engine.journal.object(item.owed.destination, item.owed.key)
            self._decide(item.owed, lambda _: self.ready.append(item))
            if not self.ready:
                _discard(self.destination, item)
        else:
            self._decide(item.owed, lambda _: self.bring_into_line(item, found))

    def _decide(self, owed: Owed, send: Callable[[Item], None]) -> None:
        """Settle a delivery, put it off, or send it. What goes wrong with one is its own affair."""
        try:
            item = Item(owed)
            item.version = self._version(owed)
            if item.version is not None and not is_owed(item.version, owed):
                self.words.append(Word(owed, Status.PENDING, "", None))
                return
            match plan.decide(self._facts(item)):
                case plan.Wait(why):
                    self.region.try_later([owed], why)
                case plan.Settle(status, why):
                    self.words.append(Word(owed, status, why if status is Status.FAILED else "", item.version))
                case plan.Send(_, with_tags):
                    item.groups -= set() if with_tags else {edits.TAGS}
                    send(item)
        except Failed as error:
            log.warning('cannot send bucket=%s key="%s": %s', owed.source, keys.shown(owed.key), error)
            self.words.append(Word(owed, Status.FAILED, error.reason, None))
        except StoreDamaged as error:
            self._await_record(owed, error)
        except PermissionError as error:
            refusal = "DstDelObjNotPermitted" if owed.marker else "DstPutObjectNotPermitted"
            log.warning('refused to=%s key="%s": %s', owed.destination, keys.shown(owed.key), reason(error))
            self.words.append(Word(owed, Status.FAILED, refusal, None))
        except (OSError, FsreplError) as error:
            self.region.try_later([owed], reason(error) if isinstance(error, OSError) else str(error))
        except sqlite3.Error:
            raise
        except Exception:
            log.exception('set aside bucket=%s key="%s": what nobody foresaw', owed.source, keys.shown(owed.key))
            self.place.undelivered[owed.key] = f"from {owed.source}: {UNFORESEEN}"
            self.region.try_later([owed], UNFORESEEN)

    def _await_record(self, owed: Owed, error: StoreDamaged) -> None:
        """A version whose record is lost or wrong is sent once that is rebuilt; FAILED where it cannot be."""
        log.error('damaged bucket=%s key="%s": %s', owed.source, keys.shown(owed.key), error)
        if self.region.queue(owed.source, owed.destination).attempts_of(owed) >= _REBUILDS_MAX:
            self.words.append(Word(owed, Status.FAILED, "SrcObjectNotEligible", None))
            return
        mend.repair_in_lane(self.region, owed.source, owed.key, owed.id, marker=owed.marker)
        self.region.try_later([owed], str(error))

    def _version(self, owed: Owed) -> Version | None:
        version = self.engine.recent.version(owed.source, owed.key, owed.id)
        if version is None:
            version = store.read(self.source, owed.key, owed.id, marker=owed.marker)
        return store.ensure_whole(version) if version else None

    def _facts(self, item: Item) -> plan.Facts:
        owed, version = item.owed, item.version
        rule = self.rules.get(owed.rule)
        delivery = version.deliveries.get(owed.destination) if version else None
        if version is None or delivery is None:
            there = self.engine.journal.object(owed.source, owed.key) is not None
            return plan.Facts(source_configured=self.replication is not None, source_there=False, key_there=there,
                              rule_enabled=rule is not None and rule.enabled)  # fmt: skip
        permission = roles.permission_to_send(
            self.role,
            source=owed.source,
            destination=owed.destination,
            key=owed.key.decode("utf-8", "surrogateescape"),
            marker=version.marker,
            tags=bool(version.tags) or (delivery.edit and edits.TAGS in version.edited),
            acl=bool(version.posix and version.posix.acl) or (delivery.edit and edits.ACL in version.edited),
            owner_override=bool(delivery.owner),
            batch=bool(delivery.batch),
            large=not delivery.edit and version.size >= self.engine.settings.replication.large_file_bytes,
        )
        refusal = permission.reason or self._second_gate(version)
        return plan.Facts(
            source_configured=self.replication is not None,
            rule_enabled=rule is not None and rule.enabled and rule.destination == owed.destination,
            destination_versioning=self.destination.bucket.versioning,
            permission=refusal,
            with_tags=permission.with_tags,
            archived=version.storage_class in ARCHIVED_CLASSES,
            hard_deleted=(owed.key, owed.id) in self.destination.bucket.documents.removed,
            edit=delivery.edit,
            replica_there=not delivery.edit or store.has(self.destination, owed.key, owed.id),
            null_taken=version.id == NULL and self._has_other_null(version),
        )

    def _has_other_null(self, version: Version) -> bool:
        """Whether the destination has a null version or null marker of this key that is not a replica of this one."""
        there = store.read(self.destination, version.key, NULL)
        if there is None:
            return False
        return (there.created_ns, there.marker, there.digest) != (version.created_ns, version.marker, version.digest)

    def _second_gate(self, version: Version) -> str:
        """S3's reason, where the filesystem refuses it to the user that the role works as."""
        try:
            if self.role is None or (user := gate.run_as(self.role)) is None:
                return ""
            if self.gate is None:
                self.gate = gate.Gate(user, self.source, self.destination)
            return self.gate.refusal(version)
        except Failed as error:
            log.warning("role refused bucket=%s: %s", self.source.address, error)
            return error.reason

    def _send(self, item: Item) -> None:
        version = item.version
        assert version is not None
        delivery = version.deliveries[item.owed.destination]
        if delivery.owner:
            item.groups -= {edits.ACL}
        item.replica = self._replica(item, version, delivery)
        item.known = self.known.get(version.key)
        if self._is_unlooked_at(version.key, item.known):
            showing.mark_theirs(self.region, self.place, version.key)
            raise Unavailable("its view there is looked at first")
        if version.size >= self.engine.lane_bytes and not delivery.edit:
            self.region.send_in_lane(self.place, item)
            return
        there = whole_replica(self.place, self.destination, item, unread=delivery.edit)
        if there is not None:
            self.bring_into_line(item, there)
            return
        item.staged = stage(self.region, self.source, self.destination, item)
        self.ready.append(item)

    def _is_unlooked_at(self, key: bytes, known: Object | None) -> bool:
        """Whether the view must be looked at before its key gets a newer version.

        Of one of which nothing is known yet, as before the first scan that follows a lost journal, or which is not
        as an old journal has it, it would be taken for what a user made of that version. One that is gone was
        removed by a user: that was the current version, and the removal is recorded first.
        """
        if known is None or known.marker or key in self.place.held:
            return False
        if known.view is None:
            return not self.place.scanned or self.region.marks.is_marked(self.destination.address, key)
        directory, name = keys.split(key)
        try:
            found = self.destination.fs.stat(self.destination.views.get(directory), name)
        except OSError as error:
            return error.errno in NO_FILE
        return not self.destination.fs.is_regular(found) or not (self.place.scanned or known.view.is_like(found))

    def _replica(self, item: Item, version: Version, delivery: Delivery) -> Version:
        """What is sent of a version: what may travel of it, and with another owner where the rule says so."""
        replica = transfer.replica_of(version, delivery, item.owed.source)
        for group in edits.GROUPS - item.groups:
            replica = edits.without(replica, group)
        if delivery.owner and replica.posix:
            owner = self.destination.fs.stat_fd(self.destination.fd)
            replica = transfer.given_to(replica, owner.st_uid, owner.st_gid)
        return replica

    def bring_into_line(self, item: Item, there: Version) -> None:
        """The destination has this version: its metadata becomes what was sent.

        Not where a backfill sends a replica on, and the destination has the version from elsewhere, or is where it
        was made: metadata goes from a source to its own replicas (s3-semantics, 2.2).
        """
        assert item.version is not None
        assert item.replica is not None
        if item.owed.marker or (item.owed.batch and there.source != item.owed.source):
            self.words.append(Word(item.owed, Status.COMPLETED, "", item.version))
        elif metadata.is_unseen(self.region, self.place, self.destination, there):
            showing.mark_theirs(self.region, self.place, there.key)
            self.region.try_later([item.owed], "its view there was edited, which is recorded first")
        else:
            change = metadata.change(
                self.region, self.destination, item.owed, item.version, item.replica, there, item.groups
            )
            before = item.version.deliveries[item.owed.destination].before
            if change.now == there and before is not None and before.status is Status.COMPLETED:
                # A backfill looked at it once more, and it is as it was when it was made durable.
                self.words.append(Word(item.owed, Status.COMPLETED, "", item.version))
            else:
                self.changes.append(change)

    # -- the batch, as far as completed

    def publish(self) -> None:
        """Durable, then in the store, then shown; then the words go back."""
        try:
            if self.ready:
                self.words += publish(self.region, self.place, self.source, self.destination, self.ready)
        except OSError as error:
            self.region.try_later([item.owed for item in self.ready], reason(error))
        if self.changes:
            done = metadata.carry_out(self.region, self.destination, self.changes)
            self.words += [Word(each.owed, Status.COMPLETED, "", each.sent) for each in done]
        self.region.send_words(self.words)


def whole_replica(place: Place, bucket: OpenBucket, item: Item, *, unread: bool = False) -> Version | None:
    """The version as the destination has it, its content read back unless that need not be.

    None where it lacks it, or has it damaged or in doubt and is sent it again.
    """
    replica = item.replica
    assert replica is not None
    if item.known is None or (replica.key, replica.id) in place.in_doubt:
        return None
    there = store.read(bucket, replica.key, replica.id, marker=replica.marker)
    if there is None or replica.marker or unread:
        return there
    fd = store.open_version(bucket, replica.key, replica.id)
    try:
        whole = bucket.fs.stat_fd(fd).st_size == replica.size and store.digest(bucket, fd) == replica.digest
    finally:
        bucket.fs.close(fd)
    return there if whole else None


def stage(region: Region, source: OpenBucket, destination: OpenBucket, item: Item,
          progress: transfer.Progress | None = None) -> transfer.StagedReplica:  # fmt: skip
    assert item.version is not None
    assert item.replica is not None
    return transfer.stage(
        source,
        destination,
        item.version,
        item.replica,
        linked=commit.is_linked(destination, item.replica.posix),
        data=region.engine.recent.data(item.version.digest) if item.version.digest and progress is None else None,
        progress=progress,
        limiter=region.engine.limiter,
    )


def publish(region: Region, place: Place, source: OpenBucket, bucket: OpenBucket, items: Sequence[Item]) -> list[Word]:
    """Make staged replicas visible. A version that is older than the key's newest goes to the store alone."""
    engine = region.engine
    views = {key: item.known.view if item.known else None for key, item in _newest(place, items).items()}
    intents = [commit.Intent(key, item.owed.id, views[key]) for key, item in _newest(place, items).items()]
    intent_name = b""
    try:
        if intents:
            intent_name = commit.write_intents(bucket, intents)
        staged = [(bucket.tmp, i.staged.stored.name) for i in items if i.staged]
        staged += [(bucket.tmp, i.staged.view) for i in items if i.staged and i.staged.view]
        if intent_name:
            staged.append((bucket.intents, intent_name))
        engine.syncer.staged(bucket, staged)
    except OSError as error:
        for item in items:
            _discard(bucket, item)
        if intent_name:
            commit.drop_intents(bucket, intent_name)
        region.try_later([i.owed for i in items], reason(error))
        return []
    done: list[Item] = []
    for item in items:
        assert item.staged is not None
        try:
            store.publish(bucket, item.staged.stored)
            done.append(item)
        except OSError as error:
            _discard(bucket, item)
            region.try_later([item.owed], reason(error))
    current = _newest(place, done)  # where the newest of a key failed, the one before it is shown
    follower = directories.Follower(bucket, {source.address: source})
    seen = _show(region, place, bucket, list(current.values()), views, follower)
    for item in done:
        if current.get(item.owed.key) is not item and item.staged and item.staged.view:
            with contextlib.suppress(OSError):
                store.unstage(bucket, item.staged.view)
    try:
        bucket.sync()
        in_doubt = None
    except OSError as error:
        in_doubt = error
    # Also where the sync failed: these views are shown, and are not their users' writes.
    _record(region, place, bucket, done, seen)
    if in_doubt is not None:
        place.in_doubt.update((i.owed.key, i.owed.id) for i in done)
        region.try_later([i.owed for i in done], reason(in_doubt))
        return []
    place.in_doubt.difference_update((i.owed.key, i.owed.id) for i in done)
    for version, _ in seen:
        showing.release(region, place, bucket, version.key)
    if intent_name and all(place.held[key].intent for key in current if key in place.held):
        with contextlib.suppress(OSError):  # one that stays says nothing that is not so
            commit.drop_intents(bucket, intent_name)
    return [Word(item.owed, Status.COMPLETED, "", item.version) for item in done]


def _newest(place: Place, items: Sequence[Item]) -> dict[bytes, Item]:
    """By key, the replica that its view is to show: newer than what is there, or made again since that is in doubt."""
    newest: dict[bytes, Item] = {}
    for item in items:
        assert item.replica is not None
        key, order = item.replica.key, item.replica.order
        known, rival = item.known, newest.get(key)
        if known and (order < known.order or (order == known.order and (key, item.owed.id) not in place.in_doubt)):
            continue
        if rival is None or rival.replica is None or order > rival.replica.order:
            newest[key] = item
    return newest


def _record(
    region: Region, place: Place, bucket: OpenBucket, done: Sequence[Item], seen: Sequence[tuple[Version, View | None]]
) -> None:
    journal = region.engine.journal
    with journal.transaction():
        journal.add_shown(bucket.address, seen)
        now_shown = {(version.key, version.id) for version, _ in seen}
        for item in done:
            assert item.replica is not None
            place.bucket.ids.saw(item.replica.id, item.replica.created_ns)
            if (item.replica.key, item.replica.id) not in now_shown:
                journal.add(bucket.address, item.replica)


def _show(
    region: Region, place: Place, bucket: OpenBucket, items: Sequence[Item], views: dict[bytes, View | None],
    follower: directories.Follower,
) -> list[tuple[Version, View | None]]:  # fmt: skip
    """Bring views up to their new versions. What cannot be shown yet is held, durably, and COMPLETED all the same."""
    seen: list[tuple[Version, View | None]] = []
    for item in sorted(items, key=lambda i: i.owed.marker):
        assert item.replica is not None
        assert item.staged is not None
        key = item.replica.key
        try:
            if not item.owed.marker:
                follower.before_showing(keys.split(key)[0])
            outcome = commit.show(bucket, item.replica, views[key], item.staged.view)
        except OSError as error:
            outcome = commit.Held(reason(error))
        match outcome:
            case commit.Shown(view):
                seen.append((item.replica, view))
                if item.replica.marker:
                    showing.way_is_free(region, place)
            case commit.Held(why, conflict):
                showing.hold_view(region, place, key, why, conflict=conflict, bucket=bucket, was=views[key])
            case commit.Theirs():
                showing.hold_view(
                    region, place, key, "its file holds what is not recorded yet", bucket=bucket, was=views[key]
                )
                showing.mark_theirs(region, place, key)
    return seen


def _discard(bucket: OpenBucket, item: Item) -> None:
    with contextlib.suppress(OSError):  # what stays is swept at the next start
        if item.staged:
            store.discard(bucket, item.staged.stored)
            if item.staged.view:
                store.unstage(bucket, item.staged.view)


def settle_all(region: Region, owed: Sequence[Owed], action: plan.Action) -> None:
    assert isinstance(action, plan.Settle)
    region.send_words([Word(each, action.status, action.why, None) for each in owed])
