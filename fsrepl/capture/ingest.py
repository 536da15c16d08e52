"""Changed keys become versions: looked at, judged, staged and published, a batch at a time."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence

from fsrepl.capture import copy, judge, look
from fsrepl.capture.judge import AGAIN_AT_LEAST_S, AGAIN_MAX_S, AGAIN_S, SET_ASIDE_S, STEP_S, TOLD, NewVersion
from fsrepl.errors import UNFORESEEN, FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import NULL, Versioning
from fsrepl.model.view import view_of
from fsrepl.region import deliveries, delivery_queue, limits
from fsrepl.region.bucket_state import Damaged, Place
from fsrepl.region.change_queue import Mark
from fsrepl.region.region import Region
from fsrepl.storage import staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_SPACE
from fsrepl.storage.journal.rows import Object
from fsrepl.views import directories, stale

log = logging.getLogger("fsrepl")


_BATCH_BYTES = 16 << 20
"""So much content is held in memory, to be sent without another read."""


def take(region: Region, place: Place, bucket: OpenBucket, marks: Sequence[Mark]) -> Sequence[Mark]:
    """Look at marked keys of one bucket, and record what became of them, for a moment; those that are left then.

    What is taken is bounded in time as well as in number: the region's other buckets wait meanwhile.
    """
    until_s = time.monotonic() + STEP_S
    if place.bucket.versioning is Versioning.OFF:
        return []
    if paused := judge.no_room(region, bucket):
        if not place.paused:
            log.warning("paused bucket=%s: %s", bucket.address, paused)
        place.paused = paused
        for mark in marks:
            region.look_later(place, mark, AGAIN_S, paused)
        return []
    place.paused = ""
    batch: list[NewVersion] = []
    held_bytes = 0
    objects = region.engine.journal.versions.look_up(bucket.address, [mark.key for mark in marks])
    left: Sequence[Mark] = []
    for number, mark in enumerate(marks):
        if number and time.monotonic() > until_s:
            left = marks[number:]
            break
        if place.takes_singly or mark.key in place.set_aside:
            _take_singly(region, place, bucket, mark, objects.get(mark.key))
            continue
        new = look_at_key(region, place, bucket, mark, objects.get(mark.key))
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
    if (new := look_at_key(region, place, bucket, mark, known)) is None:
        return
    with _set_aside(region, place, mark):
        try:
            _publish(region, place, bucket, [new])
        except Exception:
            if new.version.id != NULL and not region.engine.journal.versions.has_version(bucket.address, new.version):
                versions.remove(bucket, new.version)  # nobody has seen it, and the next try makes another one
            raise


def finish_large(region: Region, place: Place, mark: Mark, seen: look.Seen) -> None:
    """A lane has copied a large file: go on with it as with any other. Raises FsreplError where the bucket is away."""
    with place.bucket.open() as bucket:
        with _set_aside(region, place, mark):
            if isinstance(seen, copy.Taken) and not seen.moving and region.marks.is_marked(mark.address, mark.key):
                staging.unstage(bucket, seen.staged)
                region.look_later(place, mark, AGAIN_AT_LEAST_S, "it changed while it was copied")
                return
            known = region.engine.journal.versions.object(mark.address, mark.key)
            if (new := _judge(region, place, bucket, mark, known, seen)) is None:
                return
        _publish(region, place, bucket, [new])


def look_at_key(
    region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object | None
) -> NewVersion | None:
    if not keys.is_key(mark.key):
        return None
    began_s = time.monotonic()
    place.set_aside.pop(mark.key, None)
    if (waited := place.later.pop(mark.key, None)) is not None:
        # It still waits for what it waited for, and so does whoever waits for it.
        since_s = waited.mark.since_s if waited.opened else mark.since_s
        mark = mark._replace(epoch=min(mark.epoch, waited.mark.epoch), since_s=since_s)
    if mark.key in place.lanes:
        region.look_later(place, mark, AGAIN_AT_LEAST_S, "it is being copied")
        return None
    with _set_aside(region, place, mark):
        open_for_s = began_s - mark.since_s
        seen = look.look(bucket, mark, known, region.patience, time.time_ns(), open_for_s=open_for_s)
        if isinstance(seen, look.Later):
            # A key that keeps changing waits five times as long as its last look took.
            again_s = max(seen.after_s, AGAIN_AT_LEAST_S, 5 * (time.monotonic() - began_s))
            region.look_later(place, mark, again_s, seen.why, opened=seen.opened)
            return None
        return _judge(region, place, bucket, mark, known, seen)
    return None


def _judge(
    region: Region, place: Place, bucket: OpenBucket, mark: Mark, known: Object | None, seen: look.Seen
) -> NewVersion | None:
    """The version that a look makes, if it makes one now; a large file is copied beside everything else first."""
    judged = judge.judge(region, place, bucket, mark, known, seen)
    if isinstance(judged, look.Large):
        look_in_lane(region, place, mark, judged.size_bytes)
        return None
    return judged


@contextlib.contextmanager
def _set_aside(region: Region, place: Place, mark: Mark) -> Iterator[None]:
    """Whatever goes wrong with one key is put off, and holds up no other."""
    try:
        yield
    except (OSError, FsreplError) as error:
        put_off(region, place, mark, error)
    except sqlite3.Error:  # it is the journal's, not this key's: see Worker.turn
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": what nobody foresaw', mark.address, keys.shown(mark.key))
        place.set_aside[mark.key] = UNFORESEEN
        region.look_later(place, mark, SET_ASIDE_S, UNFORESEEN)


def put_off(region: Region, place: Place, mark: Mark, error: Exception) -> None:
    """What cannot be done with a key now is tried again, with a growing delay."""
    why = reason(error)
    attempts = place.faults[mark.key] = place.faults.get(mark.key, 0) + 1
    number = error.errno if isinstance(error, OSError) else None
    level = logging.WARNING if number in NO_SPACE else logging.ERROR
    log.log(
        level if attempts in TOLD and number != errno.ECANCELED else logging.DEBUG,  # that is the end of the daemon
        'not captured bucket=%s key="%s" attempts=%d: %s', mark.address, keys.shown(mark.key), attempts, why,
    )  # fmt: skip
    region.look_later(place, mark, delivery_queue.retry_delay_s(attempts, AGAIN_MAX_S), why)
    if isinstance(error, StoreDamaged):
        _have_repaired(region, place, mark)


def _have_repaired(region: Region, place: Place, mark: Mark) -> None:
    """The record of the version that a view shows contradicts itself: have it rebuilt before the next look at its key.

    Nobody need have damaged it: root's `rsync -X` writes every attribute of one file on another of the same content
    and time, and a view may be the stored file.
    """
    known = region.engine.journal.versions.object(mark.address, mark.key)
    shown = known.view.shown or known.id if known and known.view else ""
    if shown:
        place.damaged.append(Damaged(mark.address, mark.key, shown))


def _publish(region: Region, place: Place, bucket: OpenBucket, batch: list[NewVersion]) -> None:
    """Durable, then visible in the store, then recorded. New keys before markers, so that a rename is never a gap."""
    engine = region.engine
    try:
        engine.syncer.staged(bucket, [(bucket.tmp, new.staged.name) for new in batch])
    except OSError as error:
        # The kernel may have dropped what it could not write: nothing of this is believed, all is made again.
        for new in batch:
            versions.discard(bucket, new.staged)
            put_off(region, place, new.mark, error)
        return
    published: list[NewVersion] = []
    for new in sorted(batch, key=lambda new: new.version.marker):
        try:
            versions.publish(bucket, new.staged)
            published.append(new)
        except OSError as error:
            versions.discard(bucket, new.staged)
            put_off(region, place, new.mark, error)
    _remember_directories(bucket, published)
    bucket.sync()
    shown = [
        (n.version, view_of(n.taken.found, n.version.id, racy=n.taken.racy) if n.taken else None) for n in published
    ]
    with engine.journal.transaction():
        engine.journal.versions.add_shown(bucket.address, shown)
    now_s = time.monotonic()
    for new in published:
        place.faults.pop(new.mark.key, None)
        data, linked = (new.taken.data, new.taken.linked) if new.taken else (None, False)
        engine.recent.put(bucket.address, new.version, data, plain=not (new.staged.sidecar or linked))
        stale.release(region, place, bucket, new.version.key)  # the view is its user's now, whatever it waited for
        if new.taken:
            place.unmarked.add(new.version, now_s)
        else:
            place.unmarked.drop(new.version.key)
            stale.way_is_free(region, place)
    deliveries.owe(region, bucket.address, [new.version for new in published])
    engine.reporter.captured(
        bucket.address,
        [(n.version.key, n.version.id, n.version.marker, n.version.size, n.version.origin) for n in published],
    )
    engine.notify()


def _remember_directories(bucket: OpenBucket, published: Collection[NewVersion]) -> None:
    """What the directories of new versions let people do is on record before anything of them is sent."""
    paths = {keys.split(new.version.key)[0] for new in published if not new.version.marker}
    for path in directories.with_parents(paths):
        with contextlib.suppress(OSError):  # one that is gone by now was as it was seen last
            directories.remember(bucket, path)


def look_in_lane(region: Region, place: Place, mark: Mark, size_bytes: int) -> None:
    """A large file: copy and hash it beside everything else."""
    place.lanes[mark.key] = mark
    began_s = 0.0
    progress = limits.Progress(mark.key, "", mark.address, mark.address, size_bytes)

    def copy() -> look.Seen:
        nonlocal began_s
        began_s = time.monotonic()
        with region.engine.progress(progress), place.bucket.open() as bucket:
            known = region.engine.journal.versions.object(mark.address, mark.key)
            open_for_s = began_s - mark.since_s
            return look.look(
                bucket, mark, known, region.patience, time.time_ns(),
                open_for_s=open_for_s, in_lane=True, told=progress.came_to,
            )  # fmt: skip

    def finish(seen: look.Seen | Exception) -> None:
        _rest(region, place, mark.key, time.monotonic() - began_s)
        with region.moving():
            try:
                if not place.up:
                    pass  # a scan follows when it is back
                elif isinstance(seen, Exception):
                    put_off(region, place, mark, seen)
                else:
                    with region.at_work(place):
                        finish_large(region, place, mark, seen)
                        place.stumbles = 0
            finally:
                del place.lanes[mark.key]
        region.engine.notify()

    region.in_lane(copy, finish, lane=("capture", region.name), whose=mark.address, size_bytes=size_bytes)


def _rest(region: Region, place: Place, key: bytes, took_s: float) -> None:
    """A key that keeps changing waits five times as long as its last capture took. Source: design.md, section 7."""
    now_s = time.monotonic()
    place.rests_until_s = {k: until_s for k, until_s in place.rests_until_s.items() if until_s > now_s}
    place.rests_until_s[key] = now_s + min(5 * took_s, region.engine.settings.capture.open_max_s)
