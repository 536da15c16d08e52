"""Edits of metadata: recorded on a version where they were made, applied to its replicas.

Tags, ACLs, mode, owner, times and attributes are edited in place; that makes no version. model/metadata.py
decides about an edit; this module carries it out. The record is written before the view, and
an intent before both whenever the daemon changes the view: after a crash a stale view
is no edit of its user's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from msgspec.structs import replace

from fsrepl.errors import FsreplError
from fsrepl.model import metadata
from fsrepl.model.version import Origin, Version
from fsrepl.model.view import View
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.deliveries import enqueue
from fsrepl.region.region import Region
from fsrepl.s3 import edit_rules
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.intents import Act, Intent, intend
from fsrepl.storage.posix import has_rights
from fsrepl.views import view_metadata

_NONE: Mapping[str, str] = MappingProxyType({})

# -- where an edit is made


def record_edit(
    region: Region, state: BucketState, bucket: OpenBucket, was: Version, edited: Version,
    stamps: Mapping[str, str] = _NONE,
) -> Version:  # fmt: skip
    """Stamp new metadata of a version, write it to the store, and queue deliveries to all its replicas.

    stamps: of the groups whose edit is on record already, by another name of the file: see
    metadata.stamps_of_one_file.
    """
    engine = region.engine
    groups = metadata.changed(was, edited)
    if made_here := groups - stamps.keys():
        _, now_ns = state.bucket.ids.next(engine.site.now())
        edited = metadata.stamped(edited, made_here, now_ns, bucket.address)
    edited = replace(edited, edited={**edited.edited, **stamps})
    places = {stamp.partition(" ")[2] for stamp in stamps.values()} if not made_here else set()
    there = engine.replication_of(was.source) if was.origin is Origin.REPLICA else None
    deliveries = edit_rules.edit_deliveries(
        was, edited, state.bucket.replication, home=bucket.address, original=there,
        but=places.pop() if len(places) == 1 else "",
    )  # fmt: skip
    edited = replace(edited, deliveries=deliveries)
    note_deliveries(region, bucket, [edited])
    try:
        versions.write_record(bucket, edited)
    except (OSError, FsreplError):
        # The record says how much was written; its pending deliveries are sent. The next look finds the rest.
        engine.recent.forget(bucket.address, edited.key, edited.id)
        enqueue(region, bucket.address, [edited])
        raise
    enqueue_edit(region, bucket, edited)
    return edited


def note_deliveries(region: Region, bucket: OpenBucket, versions: Sequence[Version]) -> None:
    """Write deliveries to the journal first: after a kill before the record is whole, they are sent again all the same.

    The journal's copy of the tags is not trusted then: see rows.traits_of.
    """
    journal = region.engine.journal
    with journal.transaction():
        journal.deliveries.put_all(bucket.address, versions)
        journal.versions.set_traits(bucket.address, [(version.key, version.id, None) for version in versions])


def enqueue_edit(region: Region, bucket: OpenBucket, edited: Version) -> None:
    region.engine.recent.put(bucket.address, edited)
    deliveries.enqueue(region, bucket.address, [edited])
    region.engine.notify()


def edit(region: Region, state: BucketState, bucket: OpenBucket, was: Version, edited: Version) -> None:
    """Apply an edit that a command made: to the record, and to the view."""
    put(region, bucket, was, lambda: record_edit(region, state, bucket, was, edited))


def put(region: Region, bucket: OpenBucket, was: Version, record: Callable[[], Version]) -> None:
    """Write a version's record, then update its view, so that a crash in between is no user's edit."""
    engine = region.engine
    view = view_metadata.shown_view(engine.journal.versions, bucket, was)
    if view is None:
        record()
        return
    state = region.states[bucket.address]
    with intend(engine.syncer, bucket, [Intent(was.key, was.id, view, Act.EDIT)]):
        state.views.unapplied[was.key] = view
        looks = view_metadata.show(bucket, view, record())
        bucket.fs.sync_all(bucket.fd)
        del state.views.unapplied[was.key]
        if looks is not None:
            with engine.journal.transaction():
                engine.journal.views.see(bucket.address, was.key, looks)


def finish_unapplied(region: Region, state: BucketState, bucket: OpenBucket, key: bytes) -> None:
    """Write the metadata that a fault kept from a view, so that the missing part is not taken for its user's edit.

    Raises OSError, StoreDamaged; then the view is still listed.
    """
    was = state.views.unapplied[key]
    journal = region.engine.journal
    known = journal.versions.object(bucket.address, key)
    if known is not None and not known.marker and known.view is not None and known.view.shown == known.id:
        version = versions.read(bucket, key, known.id, marker=False)
        if version is not None:
            with journal.transaction():
                view_metadata.finish_edit(bucket, journal, version, was, region.engine.recent)
    del state.views.unapplied[key]


def is_unseen(
    region: Region, state: BucketState, bucket: OpenBucket, version: Version, view: View | None = None
) -> bool:
    """Whether the view of a version was edited or replaced, and that is not recorded yet.

    That must be recorded first: of two edits the later holds, and an unrecorded one would be lost. A file with
    a writer no longer belongs to this version, and an unreadable one is not waited for. view: as it was recorded, if it
    was just read.
    """
    view = view or view_metadata.shown_view(region.engine.journal.versions, bucket, version)
    waits = state.captures.deferred.get(version.key)
    if view is None or (waits is not None and waits.opened) or version.key in state.captures.unreadable:
        return False
    try:
        found = bucket.view_status(version.key)
    except OSError as error:
        if error.errno in LASTING:
            return False
        raise
    if view.is_same(found):
        return False
    if not (found.st_nlink > 1 and view.has_content_of(found) and versions.is_file_of(bucket, version, found)):
        return True
    # the daemon's writes of the record change the ctime of a view that is the stored file as well
    return not has_rights(version.shortfall.posix or version.posix, found)
