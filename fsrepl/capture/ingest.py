"""Changed keys become versions: inspected, judged, staged and published, a batch at a time."""

from __future__ import annotations

import contextlib
import errno
import logging
import operator
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from fsrepl.capture import apply, copy, expect, in_stager, look, own_changes, rewritten
from fsrepl.capture.apply import NewVersion
from fsrepl.capture.judge import AGAIN_AT_LEAST_S, AGAIN_S, CopyInBackground
from fsrepl.errors import UNEXPECTED, FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import NULL, Versioning
from fsrepl.model.view import View, view_of
from fsrepl.region import delivery_queue, halting, limits
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.change_queue import ARRIVED, FOUND, GONE, Change
from fsrepl.region.recent import Written
from fsrepl.region.region import Region
from fsrepl.storage import staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_SPACE, TOO_MANY_FILES
from fsrepl.storage.journal.rows import Object
from fsrepl.views import directories, edits, following, hardlinks, obstacles, stale

log = logging.getLogger("fsrepl")


STEP_S = 0.1
"""Time for the keys of one bucket before their versions are published, and other buckets are served."""
SET_ASIDE_S = 60.0
AGAIN_MAX_S = 30.0
LOGGED = (1, 10)
"""Numbers of failed tries in a row that are logged: the first, and the one after some minutes."""
_ALIKE_MAX = 16
"""The number of stored versions of a large file's size that are searched for its content, as after a rename."""
_BATCH_BYTES = 16 << 20
"""Limit of the content held in memory, to be sent without another read."""
_VERSION_ID = operator.attrgetter("version.id")
"""The order in which keys were inspected."""


def take(region: Region, state: BucketState, bucket: OpenBucket, changes: Sequence[Change]) -> Sequence[Change]:
    """Capture queued keys of one bucket for a moment; the keys that are left then.

    Both time and number are bounded: the region's other buckets wait meanwhile.
    """
    if state.bucket.versioning is Versioning.OFF:
        return []
    if paused := apply.no_room(region, bucket):
        if not state.captures.paused:
            log.warning("paused bucket=%s: %s", bucket.address, paused)
        state.captures.paused = paused
        for change in changes:
            region.defer(state, change, AGAIN_S, paused)
        return []
    state.captures.paused = ""
    state.captures.new_names.clear()
    if state.bucket.trees:
        changes = _with_directories(region, state, changes)
    objects = region.engine.journal.versions.look_up(bucket.address, [change.key for change in changes])
    until_s = time.monotonic() + STEP_S
    if not (changes := own_changes.without_own(region, state, bucket, changes, objects, until_s)):
        state.captures.singly = False
        return []
    chunks = [changes]
    if (stager := region.engine.stager) is not None and stager.is_wanted(len(changes)):
        stager.tidy(bucket)
        chunks = [changes[at : at + in_stager.CHUNK] for at in range(0, len(changes), in_stager.CHUNK)]
    reading = in_stager.Reading(region, state, bucket, chunks[0], objects, STEP_S)
    left: list[Change] = []
    staged: list[NewVersion] = []
    stagings: list[in_stager.Staging] = []
    for number, chunk in enumerate(chunks):
        if number and time.monotonic() > until_s:
            left += chunk
            continue
        batch, late = _take_chunk(region, state, bucket, chunk, objects, reading.result(), until_s)
        left += late
        # The stager gets its next orders before the versions of the former chunk are published: it works meanwhile.
        staging = in_stager.Staging(region, bucket, [new for new in batch if not new.staged.name])
        was_read = reading.is_begun
        if number + 1 < len(chunks):
            reading = in_stager.Reading(region, state, bucket, chunks[number + 1], objects, STEP_S)
        if was_read:  # what the daemon has looked at by itself shares its syncs
            _publish_staged(region, state, bucket, staged, stagings)
            staged, stagings = [], []
        staged += [new for new in batch if new.staged.name]
        stagings.append(staging)
    _publish_staged(region, state, bucket, staged, stagings)
    state.captures.singly &= bool(left)
    return left


def _take_chunk(
    region: Region, state: BucketState, bucket: OpenBucket, changes: Sequence[Change], objects: Mapping[bytes, Object],
    read: Mapping[bytes, copy.Taken], until_s: float,
) -> tuple[list[NewVersion], list[Change]]:  # fmt: skip
    """The versions that changed keys make, staged or with the stager; and the keys that no time was left for.

    read: what the stager has read. The first key is captured in any case, and a directory where files were read: else
    these would be replicated before it.
    """
    batch: list[NewVersion] = []
    left: list[Change] = []
    held_bytes = 0
    for number, change in enumerate(changes):
        known = objects.get(change.key)
        if (taken := read.get(change.key)) is not None:
            new = _apply_singly(region, state, bucket, change, known, taken)
        else:
            now_s = time.monotonic()
            if number and now_s > until_s and not (read and keys.is_directory(change.key)):
                left.append(change)
                continue
            if state.captures.singly or change.key in state.captures.set_aside:
                _take_singly(region, state, bucket, change, known)
                continue
            new = look_at_key(region, state, bucket, change, known, now_s)
        if new is None:
            continue
        batch.append(new)
        held_bytes += len(new.taken.data) if new.taken and new.taken.data else 0
        if held_bytes >= _BATCH_BYTES:
            publish(region, state, bucket, [each for each in batch if each.staged.name])
            batch, held_bytes = [each for each in batch if not each.staged.name], 0
    return batch, left


def _publish_staged(
    region: Region, state: BucketState, bucket: OpenBucket, batch: Sequence[NewVersion],
    stagings: Sequence[in_stager.Staging],
) -> None:  # fmt: skip
    """Publish staged versions, and those that the stager has staged; those that it did not stage are inspected
    again."""
    ready = list(batch)
    for each in stagings:
        staged, left = each.result()
        ready += staged
        for new in left:
            region.defer(state, new.change, AGAIN_AT_LEAST_S, "its content was not staged")
    if ready:
        publish(region, state, bucket, sorted(ready, key=_VERSION_ID))


def _apply_singly(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, taken: copy.Taken
) -> NewVersion | None:
    """The version that a file makes which the stager has read. An error concerns this key alone."""
    try:
        return _apply(region, state, bucket, change, known, taken)
    except Exception as error:
        _defer_after(region, state, change, error)
        return None


def _with_directories(region: Region, state: BucketState, changes: Sequence[Change]) -> list[Change]:
    """Changes in a tree bucket, each directory before what is in it, and with those above new keys that have no version
    yet.

    So no replica gets a file before the version of its directory, and has to make that without one. A directory is
    mostly delivered with its files: once it is there it is watched, and each of these makes an event.
    """
    address = state.bucket.address
    first: dict[bytes, Change] = {}
    above: dict[bytes, Change] = {}
    parents: set[bytes] = set()
    for change in changes:
        if change.flags & GONE:
            continue
        key = change.key
        if keys.is_directory(key):
            first[key] = change
            key = key[:-1]
        if (parent := key.rpartition(b"/")[0]) in parents:  # mostly so, and every file of a burst comes by here
            continue
        parents.add(parent)
        for path in directories.with_parents([parent]):
            above.setdefault(path + b"/", change._replace(key=path + b"/", flags=change.flags & FOUND or ARRIVED))
    known = region.engine.journal.versions.look_up(address, above)
    missing = {
        key: change
        for key, change in above.items()
        if key not in first and key not in state.views.stale and (key not in known or known[key].marker)
    }
    rest = [each for each in changes if each.key not in first]
    named = {each.key for each in rest}
    before = first | {key: change for key, change in missing.items() if key not in named}
    ordered: list[Change] = []
    latest = b""
    for change in rest:
        if before and (parent := change.key.rpartition(b"/")[0]) != latest:
            latest = parent
            found = [before.pop(path + b"/", None) for path in directories.with_parents([parent])]
            ordered += [each for each in found if each is not None]
        ordered.append(change)
    return [*ordered, *(before[key] for key in sorted(before))]


def _take_singly(region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None) -> None:
    """Capture a key by itself, so that an unexpected error concerns this key alone."""
    state.captures.set_aside.pop(change.key, None)
    if (new := look_at_key(region, state, bucket, change, known, time.monotonic())) is None:
        return
    with _set_aside(region, state, change):
        try:
            publish(region, state, bucket, [new])
        except Exception:
            state.attachment.note_unrecorded()
            if new.version.id != NULL and not region.engine.journal.versions.has_version(bucket.address, new.version):
                versions.remove(bucket, new.version)  # not visible yet, and the next try makes another one
            raise


def finish_large(region: Region, state: BucketState, change: Change, seen: look.Seen) -> bool:
    """Finish a large file copied by a background worker; whether it became a version. Raises FsreplError where the
    bucket is away."""
    new: NewVersion | None = None
    with state.bucket.open() as bucket:
        with _set_aside(region, state, change):
            if (
                isinstance(seen, copy.Taken)
                and not seen.moving
                and region.changes.is_queued(change.address, change.key)
            ):
                staging.unstage(bucket, seen.staged)
                region.defer(state, change, AGAIN_AT_LEAST_S, "the file changed during the copy")
                return False
            known = region.engine.journal.versions.object(change.address, change.key)
            new = _apply(region, state, bucket, change, known, seen)
        return bool(publish(region, state, bucket, [new])) if new is not None else False


def look_at_key(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, began_s: float
) -> NewVersion | None:
    """The version that a look at a key makes, staged, if it makes one now. began_s: the monotonic time."""
    if not keys.is_key(change.key):
        return None
    if (waited := state.captures.deferred.pop(change.key, None)) is not None:
        # The reason to wait still applies, and so does the earlier epoch of a `wait`.
        since_s = waited.change.since_s if waited.opened else change.since_s
        change = change._replace(epoch=min(change.epoch, waited.change.epoch), since_s=since_s)
    if change.key in state.captures.copying:
        region.defer(state, change, AGAIN_AT_LEAST_S, "the file is being copied")
        return None
    try:
        if change.key in state.views.unapplied:
            edits.finish_unapplied(region, state, bucket, change.key)
            known = region.engine.journal.versions.object(bucket.address, change.key)
        open_for_s = began_s - change.since_s
        seen = look.look(bucket, change, known, region.writer_wait, time.time_ns(), open_for_s=open_for_s)
        if isinstance(seen, look.Later):
            # A key that keeps changing waits five times as long as its last look took.
            again_s = max(seen.after_s, AGAIN_AT_LEAST_S, 5 * (time.monotonic() - began_s))
            region.defer(state, change, again_s, seen.why, opened=seen.opened)
            return None
        return _apply(region, state, bucket, change, known, seen)
    except Exception as error:
        _defer_after(region, state, change, error)
        return None


def _apply(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, seen: look.Seen
) -> NewVersion | None:
    """The version that an inspection makes, if it makes one now; a large file is first copied in the background."""
    applied = apply.apply(region, state, bucket, change, known, seen)
    if isinstance(applied, CopyInBackground):
        copy_in_background(region, state, change, applied.size_bytes)
        return None
    if applied is None and change.key not in state.captures.deferred:
        state.captures.faults.pop(change.key, None)
    return applied


@contextlib.contextmanager
def _set_aside(region: Region, state: BucketState, change: Change) -> Iterator[None]:
    """Defer a key after any error, so that it delays no other key."""
    try:
        yield
    except Exception as error:
        _defer_after(region, state, change, error)


def _defer_after(region: Region, state: BucketState, change: Change, error: Exception) -> None:
    if isinstance(error, (OSError, FsreplError)):
        put_off(region, state, change, error)
    elif isinstance(error, sqlite3.Error):  # the journal's error, not this key's: see Worker.turn
        raise error
    else:
        log.error(
            'set aside bucket=%s key="%s": unexpected error', change.address, keys.shown(change.key), exc_info=error
        )
        state.captures.set_aside[change.key] = UNEXPECTED
        region.defer(state, change, SET_ASIDE_S, UNEXPECTED)


def put_off(region: Region, state: BucketState, change: Change, error: Exception) -> None:
    """Defer a key after an error, with a growing delay."""
    why = reason(error)
    attempts = state.captures.faults[change.key] = state.captures.faults.get(change.key, 0) + 1
    number = error.errno if isinstance(error, OSError) else None
    level = logging.WARNING if number in NO_SPACE else logging.ERROR
    # the daemon is ending; or it has few descriptors, which is no fault of this file, and said at the start
    is_passing = number == errno.ECANCELED or (number in TOO_MANY_FILES and attempts == 1)
    log.log(
        level if attempts in LOGGED and not is_passing else logging.DEBUG,
        'not captured bucket=%s key="%s" attempts=%d: %s', change.address, keys.shown(change.key), attempts, why,
    )  # fmt: skip
    region.defer(state, change, delivery_queue.retry_delay_s(attempts, AGAIN_MAX_S), why)
    if isinstance(error, StoreDamaged):
        _have_repaired(region, state, change)


def _have_repaired(region: Region, state: BucketState, change: Change) -> None:
    """Have the contradictory record of a view's version rebuilt before the next look at its key.

    No person need have damaged it: root's `rsync -X` writes every attribute of one file on another of the same content
    and time, and a view may be the stored file.
    """
    known = region.engine.journal.versions.object(change.address, change.key)
    shown = known.view.shown or known.id if known and known.view else ""
    if shown:
        state.damaged.append(Damaged(change.address, change.key, shown))


def publish(region: Region, state: BucketState, bucket: OpenBucket, batch: list[NewVersion]) -> list[NewVersion]:
    """Make a batch durable, then visible in the store, then recorded; the versions that were. The changes of the others
    are deferred.

    New keys precede markers: a rename is no gap. Markers are staged first, where the stager has not staged them.
    """
    engine, tmp = region.engine, bucket.tmp
    batch = [new for new in batch if new.staged.name or _stage_marker(region, state, bucket, new)]
    try:
        engine.syncer.staged(bucket, [(tmp, new.staged.name) for new in batch])
    except OSError as error:
        # The kernel may have dropped the unwritten data: none of this batch is trusted, all is made again.
        for new in batch:
            versions.discard(bucket, new.staged)
            put_off(region, state, new.change, error)
        return []
    published: list[NewVersion] = []
    for new in sorted(batch, key=operator.attrgetter("version.marker")):
        try:
            versions.publish(bucket, new.staged, is_first=new.known is None)
            published.append(new)
        except OSError as error:
            versions.discard(bucket, new.staged)
            put_off(region, state, new.change, error)
    _remember_directories(region, state, bucket, published)
    bucket.sync()
    shown = [(n.version, _view(n)) for n in published]
    with engine.journal.transaction():
        engine.journal.versions.add_shown(bucket.address, shown)
    if bucket.bucket.trees:
        _remove_left_directories(bucket, published)
    now_s = time.monotonic()
    engine.recent.put_all(bucket.address, [_written(new) for new in published])
    # the views are their users' now, whatever they waited for
    stale.mark_all_fresh(region, state, bucket, [new.version.key for new in published])
    for new, (_, view) in zip(published, shown, strict=True):
        if new.change.key in state.captures.faults:
            del state.captures.faults[new.change.key]
        if new.taken and new.taken.is_placed:  # the symlink leads to the content of another version
            why = "its symlink leads to another version"
            stale.mark_stale(region, state, new.version.key, why, durable=False, is_due=True)
            if new.taken.destroyed is not None:
                hardlinks.forget_restored(region, bucket, new.taken.destroyed)
        elif new.taken:
            state.labels.add(new.version, now_s, view)
        else:
            state.labels.drop(new.version.key)
            stale.retry_blocked(region, state)
    halting.enqueue_new(
        region, state, [(new.version, new.known) for new in published],
        {new.version.key for new in published if new.change.flags & FOUND},
    )  # fmt: skip
    rewritten.note(region, state, bucket, published)
    engine.reporter.captured(
        bucket.address,
        [(n.version.key, n.version.id, n.version.marker, n.version.size, n.version.origin) for n in published],
    )
    engine.notify()
    return published


def _stage_marker(region: Region, state: BucketState, bucket: OpenBucket, new: NewVersion) -> bool:
    """Stage a marker; whether it is staged. Its change is deferred where it is not."""
    try:
        new.staged = versions.stage_marker(bucket, new.version)
    except Exception as error:
        _defer_after(region, state, new.change, error)
        return False
    return True


def _written(new: NewVersion) -> Written:
    """The record of a new version as it was written."""
    if new.taken is None:
        return Written(new.version, is_plain=not new.staged.sidecar)
    return Written(new.version, new.taken.data, is_plain=not (new.staged.sidecar or new.taken.linked))


def _view(new: NewVersion) -> View | None:
    """How the view of a new version is recorded. A symlink to the content of another version does not show it."""
    if new.taken is None:
        return None
    return view_of(new.taken.found, "" if new.taken.is_placed else new.version.id, racy=new.taken.racy)


def _remember_directories(
    region: Region, state: BucketState, bucket: OpenBucket, published: Collection[NewVersion]
) -> None:
    """Record the permissions of new versions' directories before any delivery of them; replicas follow changes."""
    made = [new for new in published if not new.version.marker]
    just_read = {
        new.version.key[:-1]: new.taken.posix.rights
        for new in made
        if new.taken is not None and keys.is_directory(new.version.key)
    }
    changed = set()
    for path in directories.with_parents(keys.split(new.version.key)[0] for new in made):
        with contextlib.suppress(OSError):  # a directory that is gone keeps its last record
            if directories.remember(bucket, path, just_read.get(path)):
                changed.add(path)
    if changed:
        following.notify(region, state, changed)


def _remove_left_directories(bucket: OpenBucket, published: Collection[NewVersion]) -> None:
    """Remove directories that were left to what is in them when they were deleted, and whose last file is gone now."""
    for path in {keys.place(new.version.key)[0] for new in published if new.version.marker}:
        obstacles.remove_made_directories(bucket, path)


def copy_in_background(region: Region, state: BucketState, change: Change, size_bytes: int) -> None:
    """Copy and hash a large file in a background worker."""
    state.captures.copying[change.key] = change
    began_s, expected = 0.0, None
    if is_announced := expect.may_be_announced(state, change.key, size_bytes):
        state.captures.announced = change.key
    in_effect = apply.rules_in_effect(region, state, change, lambda: 0)  # at least: the file may be younger
    progress = limits.Progress(change.key, "", change.address, change.address, size_bytes)

    def copy() -> look.Seen:
        nonlocal began_s, expected
        began_s = time.monotonic()
        with region.engine.progress(progress), state.bucket.open() as bucket:
            known = region.engine.journal.versions.object(change.address, change.key)
            open_for_s = began_s - change.since_s
            if is_announced:
                expected = expect.announce(region, bucket, change.key, known, in_effect)
            return look.look(
                bucket, change, known, region.writer_wait, time.time_ns(),
                open_for_s=open_for_s, in_background=True, progress=progress.came_to,
                alike=lambda size: region.engine.journal.versions.of_size(change.address, size, _ALIKE_MAX),
            )  # fmt: skip

    def finish(seen: look.Seen | Exception) -> None:
        _delay_next_copy(region, state, change.key, time.monotonic() - began_s)
        is_published = False
        with region.moving():
            try:
                if not state.is_up:
                    pass  # a scan follows when the bucket is back
                elif isinstance(seen, Exception):
                    put_off(region, state, change, seen)
                else:
                    with region.at_work(state):
                        is_published = finish_large(region, state, change, seen)
                        state.attachment.note_success()
            finally:
                del state.captures.copying[change.key]
                if is_published:
                    state.captures.unsteady.discard(change.key)
                if is_announced:
                    expect.end(region, state, expected, is_published=is_published)
        region.engine.notify()

    region.in_background(copy, finish, pool=("capture", region.name), whose=change.address, size_bytes=size_bytes)


def _delay_next_copy(region: Region, state: BucketState, key: bytes, took_s: float) -> None:
    """Make a key that keeps changing wait five times as long as its last capture took. Source: design.md, section 7."""
    now_s, captures = time.monotonic(), state.captures
    captures.copy_again_at_s = {k: until_s for k, until_s in captures.copy_again_at_s.items() if until_s > now_s}
    captures.copy_again_at_s[key] = now_s + min(5 * took_s, region.engine.settings.capture.open_max_s)
