"""Edits of metadata: recorded on a version where they were made, applied where it is a replica.

Tags, ACLs, mode, owner, times and attributes are edited in place; that makes no version. What is to
become of an edit is decided in model/metadata.py; here it is done. The record is written before the view, and
an intent before both wherever it is us who change the view: after a crash a view that is merely behind
is no edit of its user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fsrepl.errors import FsreplError
from fsrepl.model import keys, metadata
from fsrepl.model.version import Origin, Version
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.deliveries import enqueue
from fsrepl.region.region import Region
from fsrepl.s3 import edit_rules
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.intents import Act, Intent, intend
from fsrepl.views import view_metadata

# -- where an edit is made


def record_edit(region: Region, state: BucketState, bucket: OpenBucket, was: Version, edited: Version) -> Version:
    """Write new metadata of a version into the store, stamped, and owe it to whoever has the version."""
    engine = region.engine
    _, now_ns = state.bucket.ids.next(engine.site.now())
    edited = metadata.stamped(edited, metadata.changed(was, edited), now_ns, bucket.address)
    there = engine.replication_of(was.source) if was.origin is Origin.REPLICA else None
    deliveries = edit_rules.edit_deliveries(was, edited, state.bucket.replication, home=bucket.address, original=there)
    edited = replace(edited, deliveries=deliveries)
    note_deliveries(region, bucket, [edited])
    try:
        versions.write_record(bucket, edited)
    except (OSError, FsreplError):
        # How far that came, the record says; what is owed by it goes out. The rest is found again by the next look.
        engine.recent.forget(bucket.address, edited.key, edited.id)
        enqueue(region, bucket.address, [edited])
        raise
    enqueue_edit(region, bucket, edited)
    return edited


def note_deliveries(region: Region, bucket: OpenBucket, versions: Sequence[Version]) -> None:
    """The journal first: killed before the record is whole, this process's successor sends it again all the same.

    Nor does it believe what the journal has of its tags: see rows.traits_of.
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
    """An edit that was made by command: on the record, and on the view."""
    put(region, bucket, was, lambda: record_edit(region, state, bucket, was, edited))


def put(region: Region, bucket: OpenBucket, was: Version, record: Callable[[], Version]) -> None:
    """Write a version's record, and give its view what it says then, so that a crash in between is no user's edit."""
    engine = region.engine
    view = view_metadata.shown_view(engine.journal, bucket, was)
    if view is None:
        record()
        return
    with intend(engine.syncer, bucket, [Intent(was.key, was.id, view, Act.EDIT)]):
        looks = view_metadata.show(bucket, view, record())
        bucket.fs.sync_all(bucket.fd)
        if looks is not None:
            with engine.journal.transaction():
                engine.journal.versions.see(bucket.address, was.key, looks)


def is_unseen(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> bool:
    """Whether the view of a version has been edited or replaced, and that is not recorded yet.

    It must be first: of two edits the later holds, and one that is not recorded would be lost. A file that
    somebody writes into is none of this version's any more, and one that cannot be read is not waited for.
    """
    view = view_metadata.shown_view(region.engine.journal, bucket, version)
    waits = state.deferred.get(version.key)
    if view is None or (waits is not None and waits.opened) or version.key in state.unreadable:
        return False
    directory, name = keys.split(version.key)
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno in LASTING:
            return False
        raise
    if view.is_like(found) and view.mode == found.st_mode & 0o7777:
        return False
    return not (found.st_nlink > 1 and view.has_content_of(found) and view.mode == found.st_mode & 0o7777)
