"""From marked keys to versions: a batch of captures, published together.

What capture saw becomes a version, a marker, an edit of metadata, or nothing; plan says, once and
for all, which destinations are owed it. One sync, one journal transaction and one look at a
directory serve the whole batch, and one bad key leaves it without the others.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fsrepl import (
    attrs,
    capture,
    commit,
    directories,
    edits,
    keys,
    mend,
    metadata,
    names,
    owing,
    plan,
    records,
    shared,
    showing,
    store,
)
from fsrepl.errors import UNFORESEEN, FsreplError, StoreDamaged
from fsrepl.fs import NO_FILE, NO_SPACE, reason
from fsrepl.marks import ARRIVED, CLOSED, FOUND, MOVED, Mark
from fsrepl.model import NULL, Origin, Version, Versioning
from fsrepl.rows import Object, view_of
from fsrepl.site import OpenBucket

if TYPE_CHECKING:
    from fsrepl.place import Place
    from fsrepl.region import Region

log = logging.getLogger("fsrepl")

_BATCH_BYTES = 16 << 20
"""So much content is held in memory, to be sent without another read."""
STEP_S = 0.1
"""So long keys of one bucket are looked at before what came of that is published, and others have their turn."""
_AGAIN_S = 5.0
_SET_ASIDE_S = 60.0
_AGAIN_MAX_S = 30.0
_TOLD = (1, 10)
"""Attempts that failed in a row of which the log tells: at first, and when it has gone on for some minutes."""
_AGAIN_AT_LEAST_S = 0.2


@dataclass(slots=True)
class _New:
    """A version of this batch. taken is None for a marker."""

    mark: Mark
    known: Object | None
    version: Version
    taken: capture.Taken | None
    staged: store.Staged


def take(region: Region, place: Place, marks: Sequence[Mark]) -> Sequence[Mark]:
    """Look at marked keys of one bucket, and record what became of them, for a moment; those that are left then.

    What is taken is bounded in time as well as in number: the region's other buckets wait meanwhile.
    Raises FsreplError where the bucket is away.
    """
    until_s = time.monotonic() + STEP_S
    with place.bucket.open() as bucket:
        region.follow_documents(place, bucket)
        if place.bucket.versioning is Versioning.OFF:
            return []
        if paused := _no_room(region, bucket):
            if not place.paused:
                log.warning("paused bucket=%s: %s", bucket.address, paused)
            place.paused = paused
            for mark in marks:
                region.look_later(place, mark, _AGAIN_S, paused)
            return []
        place.paused = ""
        batch: list[_New] = []
        held_bytes = 0
        objects = region.engine.journal.look_up(bucket.address, [mark.key for mark in marks])
        left: Sequence[Mark] = []
        for number, mark in enumerate(marks):
            if number and time.monotonic() > until_s:
                left = marks[number:]
                break
            if place.takes_singly or mark.key in place.set_aside:
                _take_singly(region, place, bucket, mark, objects.get(mark.key))
                continue
            new = _look(region, place, bucket, mark, objects.get(mark.key))
            if new is None:
                continue
            batch.append(new)
            held_bytes += len(new.taken.data) if new.taken and new.taken.data else 0
            if held_bytes >= _BATCH_BYTES:
                _publish(region, place, bucket, batch)
                batch, held_bytes = [], 0
        if batch:
            _publish(region, place, bucket, batch)
        place.takes_singly &= bool(left)
        return left


def _take_singly(region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object | None) -> None:
    """Look at a key, and record what became of it, so that a fault that nobody foresaw is this key's alone."""
    if (new := _look(region, place, bucket, mark, known)) is None:
        return
    with _set_aside(region, place, mark):
        try:
            _publish(region, place, bucket, [new])
        except Exception:
            if new.version.id != NULL and not region.engine.journal.has_version(bucket.address, new.version):
                store.remove(bucket, new.version)  # nobody has seen it, and the next try makes another one
            raise


def finish_large(region: Region, place: Place, mark: Mark, seen: capture.Seen) -> None:
    """A lane has copied a large file: go on with it as with any other. Raises FsreplError where the bucket is away."""
    with place.bucket.open() as bucket:
        with _set_aside(region, place, mark):
            if isinstance(seen, capture.Taken) and not seen.moving and region.marks.is_marked(mark.address, mark.key):
                store.unstage(bucket, seen.staged)
                region.look_later(place, mark, _AGAIN_AT_LEAST_S, "it changed while it was copied")
                return
            known = region.engine.journal.object(mark.address, mark.key)
            if (new := _judge(region, place, bucket, mark, known, seen)) is None:
                return
        _publish(region, place, bucket, [new])


def _no_room(region: Region, bucket: OpenBucket, size_bytes: int = 0) -> str:
    """Why there is no space for a copy of so many bytes; empty where there is."""
    free, total = bucket.fs.space(bucket.fd)
    needed = region.engine.settings.capture.keep_free.needed(total)
    if free - size_bytes >= needed:
        return ""
    copy = f", its copy takes {size_bytes >> 20} MiB" if size_bytes else ""
    return f"capture waits: {free >> 20} MiB are free{copy}, and keep_free leaves {needed >> 20} MiB to the user"


def _look(region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object | None) -> _New | None:
    if not keys.is_key(mark.key):
        return None
    began_s = time.monotonic()
    place.set_aside.pop(mark.key, None)
    if (waited := place.later.pop(mark.key, None)) is not None:
        # It still waits for what it waited for, and so does whoever waits for it.
        since_s = waited.mark.since_s if waited.opened else mark.since_s
        mark = mark._replace(epoch=min(mark.epoch, waited.mark.epoch), since_s=since_s)
    if mark.key in place.lanes:
        region.look_later(place, mark, _AGAIN_AT_LEAST_S, "it is being copied")
        return None
    with _set_aside(region, place, mark):
        open_for_s = began_s - mark.since_s
        seen = capture.look(bucket, mark, known, region.patience, time.time_ns(), open_for_s=open_for_s)
        if isinstance(seen, capture.Later):
            # A key that keeps changing waits five times as long as its last look took.
            again_s = max(seen.after_s, _AGAIN_AT_LEAST_S, 5 * (time.monotonic() - began_s))
            region.look_later(place, mark, again_s, seen.why, opened=seen.opened)
            return None
        return _judge(region, place, bucket, mark, known, seen)
    return None


@contextlib.contextmanager
def _set_aside(region: Region, place: Place, mark: Mark) -> Iterator[None]:
    """Whatever goes wrong with one key is put off, and holds up no other."""
    try:
        yield
    except (OSError, FsreplError) as error:
        put_off(region, place, mark, error)
    except sqlite3.Error:  # it is the journal's, not this key's: see Region.turn
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": what nobody foresaw', mark.address, keys.shown(mark.key))
        place.set_aside[mark.key] = UNFORESEEN
        region.look_later(place, mark, _SET_ASIDE_S, UNFORESEEN)


def put_off(region: Region, place: Place, mark: Mark, error: Exception) -> None:
    """What cannot be done with a key now is tried again, with a growing delay."""
    why = reason(error) if isinstance(error, OSError) else str(error)
    attempts = place.faults[mark.key] = place.faults.get(mark.key, 0) + 1
    level = logging.WARNING if isinstance(error, OSError) and error.errno in NO_SPACE else logging.ERROR
    log.log(
        level if attempts in _TOLD else logging.DEBUG,
        'not captured bucket=%s key="%s" attempts=%d: %s', mark.address, keys.shown(mark.key), attempts, why,
    )  # fmt: skip
    region.look_later(place, mark, plan.retry_delay_s(attempts, _AGAIN_MAX_S), why)
    if isinstance(error, StoreDamaged):
        _repair(region, mark)


def _repair(region: Region, mark: Mark) -> None:
    """The record of the version that a view shows contradicts itself: have it rebuilt before the next look at its key.

    Nobody need have damaged it: root's `rsync -X` writes every attribute of one file on another of the same content
    and time, and a view may be the stored file.
    """
    known = region.engine.journal.object(mark.address, mark.key)
    shown = known.view.shown or known.id if known and known.view else ""
    if shown:
        mend.repair_in_lane(region, mark.address, mark.key, shown)


def _judge(
    region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object | None, seen: capture.Seen
) -> _New | None:
    """What one look means; the version it makes, staged, if it makes one."""
    place.note_skipped(mark.key, there=isinstance(seen, capture.Missing) and bool(seen.why))
    if not isinstance(seen, capture.Skipped):
        place.unreadable.pop(mark.key, None)
    if not isinstance(seen, (capture.Large, capture.Taken)):
        place.faults.pop(mark.key, None)
    match seen:
        case capture.Same():
            if known and known.view and known.view.shown != known.id and mark.key not in place.held:
                showing.hold_view(region, place, mark.key, "the view is behind its version", durable=False)
        case capture.Missing(why):
            if not why:
                showing.way_is_free(region, place)
            if known is None or known.marker or (mark.key in place.held and known.view is None):
                return None
            if (lost := shared.destroyed(region, bucket, mark.key, known)) is not None:
                shared.set_free(region, place, bucket, lost)
            elif (lent := shared.lent(region, bucket, mark.key, known)) is not None:
                shared.set_free(region, place, bucket, lent)
            return _marker(region, place, bucket, mark, known)
        case capture.Skipped(why):
            if place.unreadable.get(mark.key) != why:  # once, and not at every look
                log.warning('not captured bucket=%s key="%s": %s', mark.address, keys.shown(mark.key), why)
            place.unreadable[mark.key] = why
        case capture.Large(allocated_bytes):
            if (rests_s := place.rests_until_s.get(mark.key, 0.0) - time.monotonic()) > 0:
                region.look_later(place, mark, rests_s, "it keeps changing, and copying it takes a while")
            elif why := _no_room(region, bucket, 0 if _is_shared(bucket) else allocated_bytes):
                log.warning('not captured bucket=%s key="%s": %s', mark.address, keys.shown(mark.key), why)
                region.look_later(place, mark, _AGAIN_S, why)
            else:
                region.look_in_lane(place, mark)
        case capture.Later(after_s, why, opened):
            region.look_later(place, mark, max(after_s, _AGAIN_AT_LEAST_S), why, opened=opened)
        case capture.Closed(found, posix, why):
            place.unreadable[mark.key] = why
            if known and known.view:
                shown, racy = known.view.shown, known.view.racy
                _edit(region, place, bucket, mark.key, shown, found, lambda v: edits.seen(v, posix), racy=racy)
        case capture.Taken():
            names.look_at_others(region, mark, seen)
            return _taken(region, place, bucket, mark, known, seen)
    return None


def _is_shared(bucket: OpenBucket) -> bool:
    """Whether a stored version takes no space beside its view."""
    sharing = bucket.bucket.sharing
    return sharing == "link" or (sharing == "auto" and commit.can_reflink(bucket))


def _taken(
    region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object | None, taken: capture.Taken
) -> _New | None:
    engine, key = region.engine, mark.key

    def edited(version: Version) -> Version:
        own = None if _is_stripped(place, key, known, taken) else taken.attrs
        return edits.seen(version, taken.posix, own, taken.tags, marked=attrs.VERSION_ID in taken.marks)

    if known and known.view and not known.view.shown and known.view.is_like(taken.found):
        _unstage(bucket, taken)
        if key not in place.held:
            showing.hold_view(region, place, key, "the view is behind its version", durable=False)
        return None
    if (lent := shared.lent(region, bucket, key, known, taken)) is not None:
        _unstage(bucket, taken)
        shared.set_free(region, place, bucket, lent)
        region.look_later(place, mark, 0.0, "it was the file of another version, and is its own now")
        return None
    if known and (shown := _shown(bucket, key, known, taken)):
        taken = _let_be(bucket, key, taken)
        _edit(region, place, bucket, key, shown, taken.found, edited, marks=taken.marks, racy=taken.racy)
        if shown == known.id:
            showing.release(region, place, bucket, key)
        elif key not in place.held:
            showing.hold_view(region, place, key, "the view is behind its version", durable=False)
        return None
    if not taken.has_content:  # what it was compared with is no longer current
        region.look_later(place, mark, _AGAIN_AT_LEAST_S, "another version came while it was looked at")
        return None
    if (lost := shared.destroyed(region, bucket, key, known, taken)) is not None:
        _unstage(bucket, taken)
        shared.set_free(region, place, bucket, lost)
        region.look_later(place, mark, 0.0, "it was the file of a stored version, and is its own now")
        return None
    version_id, created_ns = place.bucket.ids.next(engine.site.now())
    if place.bucket.versioning is Versioning.SUSPENDED:
        version_id = NULL
    version = Version(
        key, version_id, created_ns, False, taken.size, taken.digest, Origin.USER,
        posix=taken.posix, attrs=taken.attrs, tags=taken.tags,
    )  # fmt: skip
    in_effect = _in_effect(region, place, mark, taken.found.st_ctime_ns)
    chosen = plan.choose(place.bucket.replication, version, in_effect=in_effect)
    if chosen:
        version = replace(version, deliveries=chosen)
    return _New(mark, known, version, taken, capture.stage(bucket, taken, version))


def _let_be(bucket: OpenBucket, key: bytes, taken: capture.Taken) -> capture.Taken:
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


def _unstage(bucket: OpenBucket, taken: capture.Taken) -> None:
    if taken.staged:
        store.unstage(bucket, taken.staged)


def _in_effect(region: Region, place: Place, mark: Mark, ctime_ns: int) -> Collection[str] | None:
    """The rules that were in effect when a scan's find was written; None where that was just now.

    What appeared since the last complete scan appeared after every rule that was in effect then,
    whatever its own times say: a directory that is moved in keeps those of its files.
    """
    if not mark.flags & FOUND or mark.flags & (CLOSED | MOVED | ARRIVED):
        return None
    written_ns = max(ctime_ns, region.engine.journal.scanned_ns(mark.address))
    return {name for name, since in place.bucket.documents.since.items() if since.ctime_ns <= written_ns}


def _marker(region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object) -> _New:
    in_effect = _in_effect(region, place, mark, _changed_ns(bucket, keys.split(mark.key)[0]))
    version = new_marker(region, bucket, mark.key, Origin.USER, in_effect=in_effect)
    return _New(mark, known, version, None, store.stage_marker(bucket, version))


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
    return replace(version, deliveries=plan.choose(bucket.bucket.replication, version, in_effect=in_effect))


def _shown(bucket: OpenBucket, key: bytes, known: Object, taken: capture.Taken) -> str:
    """The id of the recorded version that a view holds, if any: one that it is late to leave, or the current one."""
    view = known.view
    if view and view.shown not in ("", known.id) and view.ino == taken.found.st_ino:
        behind = store.read(bucket, key, view.shown, marker=False)
        if behind is not None and behind.digest == taken.digest:
            return view.shown
    return known.id if not known.marker and taken.digest == known.digest else ""


def _is_stripped(place: Place, key: bytes, known: Object | None, taken: capture.Taken) -> bool:
    """Whether a view that carried our marks has lost every attribute. No user does that, but a copy of a tree does."""
    if taken.attrs or taken.tags or taken.marks or key in place.unmarked:
        return False
    view = known.view if known else None
    return view is None or view.ino == taken.found.st_ino


def _edit(
    region: Region, place: Place, bucket: OpenBucket, key: bytes, shown: str, found: os.stat_result,
    edited: Callable[[Version], Version], *, marks: Mapping[str, bytes] | None = None, racy: bool = False,
) -> None:  # fmt: skip
    """The content is that of the version which the view shows: at most its metadata was edited.

    marks: what the view says of its version, which it shall not say wrongly for long.
    """
    version = store.read(bucket, key, shown, marker=False)
    if version is None:
        raise StoreDamaged(f"version {shown} is in the journal and not in the store")
    after, looks = version, view_of(found, shown, racy=racy)
    if store.is_stripped(version):  # a record that is lost says nothing of edits
        mend.repair_in_lane(region, bucket.address, key, shown)
    else:
        after = edited(version)
        if edits.changed(version, after):
            after = metadata.record_edit(region, place, bucket, version, after)
        elif after != version:  # the view is short of less than it was
            records.amend(bucket, after)
        if marks is not None and marks != attrs.marks(after):
            place.unmarked.add(after, time.monotonic())
    with region.engine.journal.transaction():
        region.engine.journal.see(bucket.address, key, looks)


def _publish(region: Region, place: Place, bucket: OpenBucket, batch: list[_New]) -> None:
    """Durable, then visible in the store, then recorded. New keys before markers, so that a rename is never a gap."""
    engine = region.engine
    try:
        engine.syncer.staged(bucket, [(bucket.tmp, new.staged.name) for new in batch])
    except OSError as error:
        # The kernel may have dropped what it could not write: nothing of this is believed, all is made again.
        for new in batch:
            store.discard(bucket, new.staged)
            put_off(region, place, new.mark, error)
        return
    published: list[_New] = []
    for new in sorted(batch, key=lambda new: new.version.marker):
        try:
            store.publish(bucket, new.staged)
            published.append(new)
        except OSError as error:
            store.discard(bucket, new.staged)
            put_off(region, place, new.mark, error)
    _remember_directories(bucket, published)
    bucket.sync()
    shown = [
        (n.version, view_of(n.taken.found, n.version.id, racy=n.taken.racy) if n.taken else None) for n in published
    ]
    with engine.journal.transaction():
        engine.journal.add_shown(bucket.address, shown)
    now_s = time.monotonic()
    for new in published:
        place.faults.pop(new.mark.key, None)
        data, linked = (new.taken.data, new.taken.linked) if new.taken else (None, False)
        engine.recent.put(bucket.address, new.version, data, plain=not (new.staged.sidecar or linked))
        showing.release(region, place, bucket, new.version.key)  # the view is its user's now, whatever it waited for
        if new.taken:
            place.unmarked.add(new.version, now_s)
        else:
            place.unmarked.drop(new.version.key)
            showing.way_is_free(region, place)
    owing.owe(region, bucket.address, [new.version for new in published])
    engine.reporter.captured(
        bucket.address,
        [(n.version.key, n.version.id, n.version.marker, n.version.size, n.version.origin) for n in published],
    )
    engine.notify()


def _remember_directories(bucket: OpenBucket, published: Collection[_New]) -> None:
    """What the directories of new versions let people do is on record before anything of them is sent."""
    paths = {keys.split(new.version.key)[0] for new in published if not new.version.marker}
    for path in directories.with_parents(paths):
        with contextlib.suppress(OSError):  # one that is gone by now was as it was seen last
            directories.remember(bucket, path)
