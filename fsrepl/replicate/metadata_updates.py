"""Edits of metadata, applied to replicas."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import FsreplError
from fsrepl.model import keys, metadata
from fsrepl.model.version import Origin, Version
from fsrepl.model.view import View
from fsrepl.region.region import Region
from fsrepl.s3 import edit_rules
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Act, Intent, intend
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import edits, link_groups, view_metadata

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
    journal = region.engine.journal
    updates = [replace(each, view=view_metadata.shown_view(journal, bucket, each.now)) for each in updates]
    try:
        intents = [Intent(each.now.key, each.now.id, each.view, Act.EDIT) for each in updates if each.view]
        intended = intend(region.engine.syncer, bucket, intents)
    except OSError as error:
        region.try_later([each.delivery for each in updates], error)
        return []
    with intended:
        done = _carry_out(region, bucket, updates)
        if len(done) < len(updates):
            intended.keep()
    return done


def _carry_out(region: Region, bucket: OpenBucket, updates: Sequence[MetadataUpdate]) -> list[MetadataUpdate]:
    engine, journal, state = region.engine, region.engine.journal, region.states[bucket.address]
    noted = [
        each.now for each in updates if each.now.deliveries != each.there.deliveries or each.now.tags != each.there.tags
    ]
    if noted:
        edits.note_deliveries(region, bucket, noted)
    done: list[MetadataUpdate] = []
    seen: list[tuple[bytes, View | None]] = []
    for each in updates:
        try:
            if each.view is not None:
                state.unapplied[each.now.key] = each.view
            if each.now != each.there:
                engine.recent.forget(bucket.address, each.now.key, each.now.id)
                versions.write_record(bucket, each.now, applied=True)
            if each.view is not None and (looks := view_metadata.show(bucket, each.view, each.now)) is not None:
                seen.append((each.now.key, looks))
                seen += link_groups.others_after(journal, bucket, each.view, looks)
            state.unapplied.pop(each.now.key, None)
            done.append(each)
        except (OSError, FsreplError) as error:
            region.try_later([each.delivery], error)
    try:
        _make_durable(region, bucket, done, {each.now.key for each in done if each.view is not None})
    except OSError as error:
        region.try_later([each.delivery for each in done], error)
        return []
    with journal.transaction():
        journal.views.see_all(bucket.address, seen)
    for each in done:
        if each.now.deliveries != each.there.deliveries:
            edits.enqueue_edit(region, bucket, each.now)
    return done


def _make_durable(region: Region, bucket: OpenBucket, done: Sequence[MetadataUpdate], shown: Collection[bytes]) -> None:
    """Make changed records and views survive a power cut."""
    if len(done) > _FEW:
        bucket.fs.sync_all(bucket.fd)
    else:
        try:
            names = []
            for each in done:
                names.append(bucket.stored_file(each.now.key, each.now.id))
                if each.now.key in shown:
                    directory, name = keys.split(each.now.key)
                    names.append((bucket.views.get(directory), name))
            region.engine.syncer.staged(bucket, names)
        except (PermissionError, FileNotFoundError):  # a file may not be opened, or its user removed it
            bucket.fs.sync_all(bucket.fd)
    bucket.sync()
