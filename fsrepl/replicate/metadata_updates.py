"""Edits of metadata, applied to replicas."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import FsreplError
from fsrepl.model import keys, metadata
from fsrepl.model.version import Origin, Version
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.s3 import edit_rules
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Act, Intent, intend
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import edits, one_file, stale, view_metadata
from fsrepl.views.one_file import Name

_FEW = 4
"""Up to so many edits are made durable one by one, since the disk may be busy with other writes."""


# -- applying an edit at its destination


class MetadataUpdate(Struct, frozen=True):
    """A version at a destination, as it is and as it will be.

    sent: the version as its source has it. view: the file that shows it, as it was recorded; None where none does.
    """

    delivery: Delivery
    sent: Version
    there: Version
    now: Version
    view: View | None = None


def update(region: Region, bucket: OpenBucket, delivery: Delivery, sent: Version, replica: Version, there: Version,
           groups: frozenset[str]) -> MetadataUpdate:  # fmt: skip
    """The effect of received metadata on a version here: the later edit of each group wins.

    An original whose replica was edited gets deliveries of that edit to its other replicas. Other metadata is not
    forwarded.
    """
    delivered = there.deliveries.get(delivery.source)
    if delivered is not None and delivered.owner and replica.posix and there.posix:
        # the replica has another owner and no ACL, by owner override: neither is copied back
        groups -= {metadata.ACL}
        replica = replace(replica, posix=replace(replica.posix, uid=there.posix.uid, gid=there.posix.gid))
    now = metadata.merged(there, replica, groups)
    if there.origin is not Origin.REPLICA:
        deliveries = edit_rules.edit_deliveries(
            there, now, bucket.bucket.replication, home=bucket.address, but=delivery.source
        )
        now = replace(now, deliveries=deliveries)
    return MetadataUpdate(delivery, sent, there, now)


def carry_out(region: Region, bucket: OpenBucket, updates: Sequence[MetadataUpdate]) -> list[MetadataUpdate]:
    """Apply updates of metadata to store and views, durably; the updates that were applied.

    The others are tried again later; their intent stays, so that a crash before that changes nothing.
    """
    journal, state = region.engine.journal, region.states[bucket.address]
    updates = [replace(each, view=view_metadata.shown_view(journal.versions, bucket, each.now)) for each in updates]
    updates = [each for each in updates if not _is_put_off(region, state, bucket, each, each.view)]
    try:
        intents = [Intent(each.now.key, each.now.id, each.view, Act.EDIT) for each in updates if each.view]
        intended = intend(region.engine.syncer, bucket, intents)
    except OSError as error:
        region.try_later([each.delivery for each in updates], error)
        return []
    with intended:
        batch = _Batch(region, bucket, updates)
        done = batch.carry_out()
        if batch.has_failed:
            intended.keep()
    return done


def _is_put_off(
    region: Region, state: BucketState, bucket: OpenBucket, each: MetadataUpdate, view: View | None
) -> bool:
    """Whether an update waits for the capture of an edit of its view, made since the update was prepared."""
    if view is None or not edits.is_unseen(region, state, bucket, each.there, view):
        return False
    stale.recapture(region, state, each.now.key)
    region.try_later([each.delivery], "its view there was edited, which is recorded first")
    return True


class _Batch:
    """Updates that are made durable together. An update of one name of a file is recorded for all its names."""

    def __init__(self, region: Region, bucket: OpenBucket, updates: Sequence[MetadataUpdate]) -> None:
        self._region, self._bucket, self._updates = region, bucket, updates
        self._state, self._recent = region.states[bucket.address], region.engine.recent
        self._to_come = {(each.now.key, each.now.id) for each in updates}
        self._changed: list[Version] = []
        """Versions with records to be made durable."""
        self._forwarded: list[Version] = []
        self._seen: dict[bytes, View] = {}
        self.has_failed = False

    def carry_out(self) -> list[MetadataUpdate]:
        """The updates that were applied."""
        region, bucket, journal = self._region, self._bucket, self._region.engine.journal
        noted = [
            each.now
            for each in self._updates
            if each.now.deliveries != each.there.deliveries or each.now.tags != each.there.tags
        ]
        if noted:
            edits.note_deliveries(region, bucket, noted)
        done: list[MetadataUpdate] = []
        for each in self._updates:
            try:
                if self._apply(each):
                    done.append(each)
            except (OSError, FsreplError) as error:
                self.has_failed = True
                region.try_later([each.delivery], error)
        try:
            _make_durable(region, bucket, self._changed, self._seen)
        except OSError as error:
            region.try_later([each.delivery for each in done], error)
            return []
        with journal.transaction():
            journal.views.see_all(bucket.address, self._seen.items())
        for version in self._forwarded:
            edits.enqueue_edit(region, bucket, version)
        return done

    def _apply(self, each: MetadataUpdate) -> bool:
        """Apply one update; False where it waits. Raises OSError, FsreplError."""
        bucket, unapplied = self._bucket, self._state.views.unapplied
        key, view = each.now.key, each.view and self._seen.get(each.now.key, each.view)
        self._to_come.discard((key, each.now.id))
        if _is_put_off(self._region, self._state, bucket, each, view):
            return False
        names = self._names(each.now, view)
        now = one_file.latest(each.now, names, bucket.address)
        written = [now] if now != each.there else []
        for was, after in one_file.behind(names, now, bucket.address):
            if (was.key, was.id) not in self._to_come:
                written.append(self._with_deliveries(each, was, after))
        views = {name.version.key: name.view for name in names}
        if view is not None:
            views[key] = view
        unapplied.update(views)
        for version in written:
            one_file.write(bucket, self._recent, version)
        if view is not None and (looks := view_metadata.show(bucket, view, now)) is not None:
            self._seen |= {at: replace(looks, shown=was.shown, racy=was.racy) for at, was in views.items()}
            if names:
                one_file.share_shortfall(bucket, self._recent, now, names)
        for at in views:
            unapplied.pop(at, None)
        self._changed += [now, *written[now != each.there :]]
        self._forwarded += [now] if now.deliveries != each.there.deliveries else []
        return True

    def _names(self, version: Version, view: View | None) -> list[Name]:
        """The other names of a version's file, with their records as they are now."""
        if view is None:
            return []
        names = one_file.other_names(self._region.engine.journal.views, self._bucket, version, view.ino)
        return [replace(name, view=self._seen.get(name.version.key, name.view)) for name in names]

    def _with_deliveries(self, each: MetadataUpdate, was: Version, now: Version) -> Version:
        """Another name's version after its file was edited, with the deliveries of that edit to its replicas."""
        if was.origin is Origin.REPLICA:
            return now
        bucket = self._bucket
        deliveries = edit_rules.edit_deliveries(
            was, now, bucket.bucket.replication, home=bucket.address, but=each.delivery.source
        )
        if deliveries == was.deliveries:
            return now
        now = replace(now, deliveries=deliveries)
        edits.note_deliveries(self._region, bucket, [now])
        self._forwarded.append(now)
        return now


def _make_durable(region: Region, bucket: OpenBucket, changed: Sequence[Version], shown: Collection[bytes]) -> None:
    """Make changed records and views survive a power cut."""
    if len(changed) > _FEW:
        bucket.fs.sync_all(bucket.fd)
    else:
        try:
            names = []
            for version in changed:
                names.append(bucket.stored_file(version.key, version.id))
                if version.key in shown:
                    directory, name = keys.split(version.key)
                    names.append((bucket.views.get(directory), name))
            region.engine.syncer.staged(bucket, names)
        except (PermissionError, FileNotFoundError):  # a file may not be opened, or its user removed it
            bucket.fs.sync_all(bucket.fd)
    bucket.sync()
