"""From marked keys to versions: a batch of captures, published together.

What capture saw becomes a version, a marker, an edit of metadata, or nothing; plan says, once and
for all, which destinations are owed it. One sync, one journal transaction and one look at a
directory serve the whole batch, and one bad key leaves it without the others.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from fsrepl.capture import copy, look, names
from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import NULL, Origin, Version, Versioning
from fsrepl.model.view import View, view_of
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.change_queue import ARRIVED, CLOSED, FOUND, MOVED, WRITING, Change
from fsrepl.region.region import Region
from fsrepl.s3 import rules
from fsrepl.storage import records, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.sharing import can_reflink
from fsrepl.views import edits, hardlinks, shared_record, stale

log = logging.getLogger("fsrepl")

STEP_S = 0.1
"""So long keys of one bucket are looked at before what came of that is published, and others have their turn."""
AGAIN_S = 5.0
SET_ASIDE_S = 60.0
AGAIN_MAX_S = 30.0
TOLD = (1, 10)
"""Attempts that failed in a row of which the log tells: at first, and when it has gone on for some minutes."""
AGAIN_AT_LEAST_S = 0.2


@dataclass(slots=True)
class NewVersion:
    """A version of this batch. taken is None for a marker."""

    change: Change
    known: Object | None
    version: Version
    taken: copy.Taken | None
    staged: versions.Staged


def no_room(region: Region, bucket: OpenBucket, size_bytes: int = 0) -> str:
    """Why there is no space for a copy of so many bytes; empty where there is."""
    free, total = bucket.fs.space(bucket.fd)
    needed = region.engine.settings.capture.keep_free.needed(total)
    if free - size_bytes >= needed:
        return ""
    copy = f", its copy takes {size_bytes >> 20} MiB" if size_bytes else ""
    return f"capture waits: {free >> 20} MiB are free{copy}, and keep_free leaves {needed >> 20} MiB to the user"


def judge(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, seen: look.Seen
) -> NewVersion | look.Large | None:
    """What one look means; the version it makes, staged, if it makes one. Large: it is to be copied now, in a lane."""
    state.note_skipped(change.key, there=isinstance(seen, look.Missing) and bool(seen.why))
    if not isinstance(seen, look.Skipped):
        state.unreadable.pop(change.key, None)
    if not isinstance(seen, (look.Large, copy.Taken)):
        state.faults.pop(change.key, None)
    match seen:
        case look.Same():
            if known and known.view and known.view.shown != known.id and change.key not in state.stale:
                stale.mark_stale(region, state, change.key, "the view is behind its version", durable=False)
        case look.Missing(why):
            if not why:
                stale.retry_blocked(region, state)
            if known is None or known.marker or (change.key in state.stale and known.view is None):
                return None
            if (lost := hardlinks.overwritten_version(region, bucket, change.key, known)) is not None:
                hardlinks.set_free(region, state, bucket, lost)
            elif (lent := hardlinks.lent(region, bucket, change.key, known)) is not None:
                hardlinks.set_free(region, state, bucket, lent)
            return _marker(region, state, bucket, change, known)
        case look.Skipped(why):
            if state.unreadable.get(change.key) != why:  # once, and not at every look
                log.warning('not captured bucket=%s key="%s": %s', change.address, keys.shown(change.key), why)
            state.unreadable[change.key] = why
        case look.Large(allocated_bytes=allocated_bytes):
            if (rests_s := state.copy_again_at_s.get(change.key, 0.0) - time.monotonic()) > 0:
                region.defer(state, change, rests_s, "it keeps changing, and copying it takes a while")
            elif why := no_room(region, bucket, 0 if _is_shared(bucket) else allocated_bytes):
                log.warning('not captured bucket=%s key="%s": %s', change.address, keys.shown(change.key), why)
                region.defer(state, change, AGAIN_S, why)
            else:
                return seen
        case look.Later(after_s, why, opened):
            region.defer(state, change, max(after_s, AGAIN_AT_LEAST_S), why, opened=opened)
        case look.Closed(found, posix, why):
            if known and known.view:
                shown, racy = known.view.shown, known.view.racy or bool(change.flags & (CLOSED | WRITING))
                if racy:  # it may hold something else by now; a look that knows less must not say that it is captured
                    state.unreadable[change.key] = why
                _edit(region, state, bucket, change.key, shown, found, lambda v: metadata.seen(v, posix), racy=racy)
        case copy.Taken():
            names.look_at_others(region, change, seen)
            return _taken(region, state, bucket, change, known, seen)
    return None


def _is_shared(bucket: OpenBucket) -> bool:
    """Whether a stored version takes no space beside its view."""
    sharing = bucket.bucket.sharing
    return sharing == "link" or (sharing == "auto" and can_reflink(bucket))


def _taken(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, taken: copy.Taken
) -> NewVersion | None:
    engine, key = region.engine, change.key

    def edited(version: Version) -> Version:
        own = None if _is_stripped(state, key, known, taken) else taken.attrs
        return metadata.seen(version, taken.posix, own, taken.tags, labelled=attributes.VERSION_ID in taken.labels)

    if known and known.view and known.view.is_like(taken.found) and _shows_nothing(state, key, known.view):
        _unstage(bucket, taken)
        if key not in state.stale:
            stale.mark_stale(region, state, key, "the view is behind its version", durable=False)
        return None
    if (lent := hardlinks.lent(region, bucket, key, known, taken)) is not None:
        _unstage(bucket, taken)
        hardlinks.set_free(region, state, bucket, lent)
        region.defer(state, change, 0.0, "it was the file of another version, and is its own now")
        return None
    if known and (shown := _shown(bucket, key, known, taken)):
        taken = _let_be(bucket, key, taken)
        _edit(region, state, bucket, key, shown, taken.found, edited, labels=taken.labels, racy=taken.racy)
        if shown == known.id:
            stale.mark_fresh(region, state, bucket, key)
        elif key not in state.stale:
            stale.mark_stale(region, state, key, "the view is behind its version", durable=False)
        return None
    if not taken.has_content:  # what it was compared with is no longer current
        region.defer(state, change, AGAIN_AT_LEAST_S, "another version came while it was looked at")
        return None
    if (lost := hardlinks.overwritten_version(region, bucket, key, known, taken)) is not None:
        _unstage(bucket, taken)
        hardlinks.set_free(region, state, bucket, lost)
        region.defer(state, change, 0.0, "it was the file of a stored version, and is its own now")
        return None
    version_id, created_ns = state.bucket.ids.next(engine.site.now())
    if state.bucket.versioning is Versioning.SUSPENDED:
        version_id = NULL
    version = Version(
        key, version_id, created_ns, False, taken.size, taken.digest, Origin.USER,
        posix=taken.posix, attrs=taken.attrs, tags=taken.tags,
    )  # fmt: skip
    in_effect = _in_effect(region, state, change, taken.found.st_ctime_ns)
    chosen = rules.choose(state.bucket.replication, version, in_effect=in_effect)
    if chosen:
        version = replace(version, deliveries=chosen)
    return NewVersion(change, known, version, taken, copy.stage(bucket, taken, version))


def _shows_nothing(state: BucketState, key: bytes, view: View) -> bool:
    """Whether a view, as it was recorded, holds no version that there is: it was removed for good, say."""
    return not view.shown or (key, view.shown) in state.bucket.documents.removed


def _let_be(bucket: OpenBucket, key: bytes, taken: copy.Taken) -> copy.Taken:
    """Keep nothing of what was taken, for it is recorded; what was taken, with the view as it looks after that.

    A link that was made and is removed has changed its ctime twice. Recorded as it looked in between, it would
    never be shown a newer version: it would seem to have been changed, and be looked at, and so on.
    """
    _unstage(bucket, taken)
    if not taken.linked:
        return taken
    directory, name = keys.split(key)
    with contextlib.suppress(OSError):  # gone by now, and its event tells
        found = bucket.fs.stat(bucket.views.get(directory), name)
        if view_of(taken.found, "").has_content_of(found):
            return replace(taken, found=found, racy=True)
    return taken


def _unstage(bucket: OpenBucket, taken: copy.Taken) -> None:
    if taken.staged:
        staging.unstage(bucket, taken.staged)


def _in_effect(region: Region, state: BucketState, change: Change, ctime_ns: int) -> Collection[str] | None:
    """The rules that were in effect when a scan's find was written; None where that was just now.

    What appeared since the last complete scan appeared after every rule that was in effect then,
    whatever its own times say: a directory that is moved in keeps those of its files.
    """
    if not change.flags & FOUND or change.flags & (CLOSED | MOVED | ARRIVED):
        return None
    written_ns = max(ctime_ns, region.engine.journal.scanned_ns(change.address))
    return {name for name, since in state.bucket.documents.since.items() if since.ctime_ns <= written_ns}


def _marker(region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object) -> NewVersion:
    in_effect = _in_effect(region, state, change, _changed_ns(bucket, keys.split(change.key)[0]))
    version = new_marker(region, bucket, change.key, Origin.USER, in_effect=in_effect)
    return NewVersion(change, known, version, None, versions.stage_marker(bucket, version))


def _changed_ns(bucket: OpenBucket, directory: bytes) -> int:
    """The ctime of a directory, or of the nearest above it that is left: nothing went from it later than that."""
    while True:
        try:
            return bucket.fs.stat_fd(bucket.views.get(directory)).st_ctime_ns
        except OSError as error:
            if not directory or error.errno not in NO_FILE:
                raise
            directory = keys.split(directory)[0]


def new_marker(
    region: Region, bucket: OpenBucket, key: bytes, origin: Origin, *, in_effect: Collection[str] | None = None
) -> Version:
    """A delete marker for a key, with what it owes; not staged yet. in_effect: see plan.choose."""
    version_id, created_ns = bucket.bucket.ids.next(region.engine.site.now())
    if bucket.bucket.versioning is Versioning.SUSPENDED:
        version_id = NULL
    version = Version(key, version_id, created_ns, True, origin=origin)
    return replace(version, deliveries=rules.choose(bucket.bucket.replication, version, in_effect=in_effect))


def _shown(bucket: OpenBucket, key: bytes, known: Object, taken: copy.Taken) -> str:
    """The id of the recorded version that a view holds, if any: one that it is late to leave, or the current one."""
    view = known.view
    if view and view.shown not in ("", known.id) and view.ino == taken.found.st_ino:
        behind = versions.read(bucket, key, view.shown, marker=False)
        if behind is not None and behind.digest == taken.digest:
            return view.shown
    return known.id if not known.marker and taken.digest == known.digest else ""


def _is_stripped(state: BucketState, key: bytes, known: Object | None, taken: copy.Taken) -> bool:
    """Whether a view that carried our marks has lost every attribute. No user does that, but a copy of a tree does."""
    if taken.attrs or taken.tags or taken.labels or key in state.labels:
        return False
    view = known.view if known else None
    return view is None or view.ino == taken.found.st_ino


def _edit(
    region: Region, state: BucketState, bucket: OpenBucket, key: bytes, shown: str, found: os.stat_result,
    edited: Callable[[Version], Version], *, labels: Mapping[str, bytes] | None = None, racy: bool = False,
) -> None:  # fmt: skip
    """The content is that of the version which the view shows: at most its metadata was edited.

    marks: what the view says of its version, which it shall not say wrongly for long.
    """
    version = versions.read(bucket, key, shown, marker=False)
    if version is None:
        raise StoreDamaged(f"version {shown} is in the journal and not in the store")
    after, looks = version, view_of(found, shown, racy=racy)
    if versions.is_stripped(version):  # a record that is lost says nothing of edits
        state.damaged.append(Damaged(bucket.address, key, shown))
    else:
        if found.st_nlink > 1:  # a user of its view can write its record
            version = shared_record.mended(region.engine.journal, region.engine.recent, bucket, version)
        after = edited(version)
        if metadata.changed(version, after):
            after = edits.record_edit(region, state, bucket, version, after)
        elif after != version:  # the view is short of less than it was
            records.amend(bucket, after)
        if labels is not None and labels != attributes.label(after):
            state.labels.add(after, time.monotonic())
    with region.engine.journal.transaction():
        region.engine.journal.versions.see(bucket.address, key, looks)
