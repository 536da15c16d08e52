"""Views that do not show their key's current version yet, and bringing them up to it.

Something stands in the way, or somebody has the file open, or it is late. That is written down as an
intent, so that a crash does not make it look like a user's act, and tried again until it is so.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time

from fsrepl.errors import UNFORESEEN, FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.view import View
from fsrepl.region.bucket_state import HeldView, Place
from fsrepl.region.change_queue import ARRIVED
from fsrepl.region.region import Region
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import CURRENT, Intended, Intent, drop_intents, intend
from fsrepl.views import following, shared_record, show, stage

log = logging.getLogger("fsrepl")


_BATCH = 512
_HELD_MAX_S = 30.0


def hold_view(
    region: Region, place: Place, key: bytes, why: str, *, conflict: bool = False, bucket: OpenBucket | None = None,
    was: View | None = None, durable: bool = True,
) -> None:  # fmt: skip
    """A view cannot show its version yet. With the bucket at hand that is written down, durably."""
    known = place.held.get(key)
    if known is None:
        known = place.held[key] = HeldView(time.monotonic() + 0.2, why, conflict)
    known.why, known.conflict = why, conflict
    known.attempts += 1
    if conflict and known.attempts == 2:  # not what the same batch took out of the way
        log.warning('view conflict bucket=%s key="%s": %s', place.bucket.address, keys.shown(key), why)
    known.due_s = time.monotonic() + min(_HELD_MAX_S, 0.1 * 2.0 ** min(known.attempts, 10))
    if bucket is not None and durable and not known.intent:
        try:
            known.intent = intend(region.engine.syncer, bucket, [Intent(key, CURRENT, was)]).keep()
        except OSError as error:
            log.warning('not written down bucket=%s key="%s": %s', bucket.address, keys.shown(key), reason(error))


def way_is_free(region: Region, place: Place) -> None:
    """Something is gone: what it was in the way of may be shown now. Looked at once a turn, however much went."""
    place.way_is_free = bool(place.held)


def mark_theirs(region: Region, place: Place, key: bytes) -> None:
    """A view holds what is not recorded: its key is looked at, and that becomes a version first."""
    region.marks.mark(place.bucket.address, [key], region.engine.epoch, ARRIVED)


def show_due(region: Region) -> bool:
    """Try those whose time has come; whether there were any."""
    now_s = time.monotonic()
    busy = False
    for place in region.places.values():
        if not place.up:
            continue
        free, place.way_is_free = place.way_is_free, False
        due = [key for key, held in place.held.items() if held.due_s <= now_s or (free and held.conflict)]
        if due:
            busy = True
            with region.at_work(place), contextlib.suppress(FsreplError), place.bucket.open() as bucket:
                for key in due[:_BATCH]:
                    _show_one(region, place, bucket, key)
                bucket.sync()
    return busy


def _show_one(region: Region, place: Place, bucket: OpenBucket, key: bytes) -> None:
    try:
        show_current(region, place, bucket, key)
    except (FsreplError, OSError, sqlite3.Error):
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": what nobody foresaw', bucket.address, keys.shown(key))
        hold_view(region, place, key, UNFORESEEN)


def show_current(region: Region, place: Place, bucket: OpenBucket, key: bytes) -> None:
    """Make a view show its key's current version, if it does not and nothing is in the way."""
    journal, address = region.engine.journal, bucket.address
    held = place.held.get(key)
    known = journal.versions.object(address, key)
    current = None
    if known is not None and not (known.view and known.view.shown == known.id):
        current = versions.read(bucket, key, known.id, marker=known.marker)
    if known is None or current is None or (current.marker and known.view is None and held is None):
        release(region, place, bucket, key)
        return
    try:
        following.look_before_showing(region, place, bucket, [key])
        staged = stage.stage_current(bucket, current)
        outcome = show.show(bucket, current, known.view, staged)
    except (StoreDamaged, OSError) as error:
        hold_view(region, place, key, reason(error))
        return
    match outcome:
        case show.Shown(view, left):
            if left:
                shared_record.mend_left(journal, region.engine.recent, place, bucket, key, left)
            with journal.transaction():
                journal.versions.see(address, key, view)
            release(region, place, bucket, key)
            if current.marker:
                way_is_free(region, place)
        case show.Held(why, conflict):
            hold_view(region, place, key, why, conflict=conflict, bucket=bucket, was=known.view)
        case show.Theirs():
            hold_view(region, place, key, "its file holds what is not recorded yet", bucket=bucket, was=known.view)
            mark_theirs(region, place, key)


def show_changed(region: Region, place: Place, bucket: OpenBucket, key: bytes, intended: Intended) -> None:
    """A command changed what is current: show that, or hold the view, with the intent that was written for it."""
    hold_view(region, place, key, "it was changed by command", durable=False)
    held = place.held[key]
    if not held.intent:  # else it was held before, and that intent says enough
        held.intent = intended.keep()
    show_current(region, place, bucket, key)
    bucket.sync()


def release(region: Region, place: Place, bucket: OpenBucket, key: bytes) -> None:
    """A view shows what it shall: it waits no longer, and its intent goes, once that is durable."""
    held = place.held.pop(key, None)
    if held is not None and held.intent:
        with contextlib.suppress(OSError):  # one that stays says nothing that is not so
            bucket.sync()
            drop_intents(bucket, held.intent)
