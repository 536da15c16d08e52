"""Stale views: views that do not show their key's current version yet, and are tried again until they do.

A view is stale because of an obstacle or a writer, or because it is late. An intent records that, so that
a crash does not make it look like a user's act, and the view is tried again until it shows the version.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterable

from fsrepl.errors import UNEXPECTED, FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import ARRIVED
from fsrepl.region.region import Region
from fsrepl.region.view_state import StaleView
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import TOO_MANY_FILES
from fsrepl.storage.intents import CURRENT, Intended, Intent, drop_intents, intend
from fsrepl.views import folders, following, link_groups, overwritten, relinking, shared_record, show, stage

log = logging.getLogger("fsrepl")


_BATCH = 512
_STALE_MAX_S = 30.0
_PASSING_S = 5.0
"""The log names a conflict that has lasted so long."""
_CAPTURED_MAX = 5
"""How often a view is tried at once when its file was captured."""
_EMPTIED_MAX = 20
"""After so many tries a directory that does not become empty counts as a conflict."""


def mark_stale(
    region: Region, state: BucketState, key: bytes, why: str, *, conflict: bool = False,
    bucket: OpenBucket | None = None, was: View | None = None, durable: bool = True, is_due: bool = False,
) -> None:  # fmt: skip
    """Note that a view cannot show its version yet; with the bucket given, durably in an intent. is_due: it is tried
    at once."""
    known = state.views.stale.get(key)
    if known is None:
        known = state.views.stale[key] = StaleView(time.monotonic() + 0.2, why, conflict, since_s=time.monotonic())
    known.attempts += 1
    # a directory waits for the markers of what is in it; other things in it may stay for ever
    conflict |= keys.is_directory(key) and known.attempts > _EMPTIED_MAX
    known.why, known.conflict = why, conflict
    # not an obstacle whose marker is on its way, as where a directory becomes a symlink
    if conflict and not known.is_warned and time.monotonic() >= known.since_s + _PASSING_S:
        known.is_warned = True
        log.warning('view conflict bucket=%s key="%s": %s', state.bucket.address, keys.shown(key), why)
    known.due_s = 0.0 if is_due else time.monotonic() + min(_STALE_MAX_S, 0.1 * 2.0 ** min(known.attempts, 10))
    if bucket is not None and durable and not known.intent:
        try:
            known.intent = intend(region.engine.syncer, bucket, [Intent(key, CURRENT, was)]).keep()
        except OSError as error:
            level = logging.DEBUG if error.errno in TOO_MANY_FILES else logging.WARNING
            log.log(level, 'not recorded bucket=%s key="%s": %s', bucket.address, keys.shown(key), reason(error))


def retry_blocked(region: Region, state: BucketState) -> None:
    """Have blocked views tried again after a removal: once a pass of the loop, however much was removed."""
    state.views.retries_blocked = bool(state.views.stale)


def recapture(region: Region, state: BucketState, key: bytes) -> None:
    """Queue a key whose view has unrecorded content: that becomes a version first. One that is being copied is not
    queued, since that would discard the copy."""
    if key in state.captures.copying:
        return
    region.changes.add(state.bucket.address, [key], region.engine.epoch, ARRIVED)


def try_soon(state: BucketState, key: bytes) -> None:
    """Have a view tried again at once, since its file was captured. Not without end: it may be changed each time."""
    waiting = state.views.stale[key]
    if not waiting.conflict and waiting.attempts < _CAPTURED_MAX:
        waiting.due_s = 0.0


def show_due(region: Region) -> bool:
    """Try the stale views that are due; whether there were any."""
    now_s = time.monotonic()
    busy = False
    for state in region.states.values():
        if not state.is_up:
            continue
        free, state.views.retries_blocked = state.views.retries_blocked, False
        due = [
            key
            for key, waiting in state.views.stale.items()
            if waiting.due_s <= now_s or (free and (waiting.conflict or keys.is_directory(key)))
        ]
        if due:
            busy = True
            with region.at_work(state), contextlib.suppress(FsreplError), state.bucket.open() as bucket:
                for key in due[:_BATCH]:
                    _show_one(region, state, bucket, key)
                bucket.sync()
    return busy


def _show_one(region: Region, state: BucketState, bucket: OpenBucket, key: bytes) -> None:
    try:
        show_current(region, state, bucket, key)
    except (FsreplError, OSError, sqlite3.Error):
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": unexpected error', bucket.address, keys.shown(key))
        mark_stale(region, state, key, UNEXPECTED)


def show_current(region: Region, state: BucketState, bucket: OpenBucket, key: bytes) -> None:
    """Make a view show its key's current version, if it does not and there is no obstacle."""
    journal, address = region.engine.journal, bucket.address
    waiting = state.views.stale.get(key)
    known = journal.versions.object(address, key)
    current = None
    is_shown = known is not None and known.view is not None and known.view.shown == known.id
    if known is not None and not (is_shown and not (waiting and waiting.is_made_anew)):
        current = versions.read(bucket, key, known.id, marker=known.marker)
    if known is None or current is None or (current.marker and known.view is None and waiting is None):
        mark_fresh(region, state, bucket, key)
        return
    try:
        following.look_before_showing(region, state, bucket, [key])
        links = link_groups.LinkGroups(journal, bucket, region.engine.syncer, region.engine.recent)
        staged = links.stage(current) or stage.stage_current(bucket, current)
        outcome = show.show(bucket, current, known.view, staged)
        is_deleted_directory = current.marker and keys.is_directory(key)
        if isinstance(outcome, show.NotShown) and is_deleted_directory and bucket.bucket.trees:
            outcome = show.Shown(None) if folders.leave_to_contents(bucket, journal.versions, key) else outcome
    except (StoreDamaged, Unavailable, OSError) as error:
        mark_stale(region, state, key, reason(error))
        return
    match outcome:
        case show.Shown(view, left, record):
            if outcome.is_overwritten:
                overwritten.note(region.engine.syncer, state, bucket, [(key, left)])
            elif left:
                shared_record.repair_left(region.engine, state, bucket, key, left, record)
            with journal.transaction():
                journal.views.see(address, key, view)
                links.showed(current, known.view, view)
                links.refresh()
            state.views.await_names(links.lacking)
            mark_fresh(region, state, bucket, key)
            if view is not None:
                relinking.relink(region, state, bucket, current)  # other names of its file may have been shown before
            if current.marker:
                retry_blocked(region, state)
        case show.NotShown(why, conflict):
            mark_stale(region, state, key, why, conflict=conflict, bucket=bucket, was=known.view)
        case show.UserChanged():
            mark_stale(region, state, key, "its file has content not recorded yet", bucket=bucket, was=known.view)
            recapture(region, state, key)


def show_anew(region: Region, state: BucketState, bucket: OpenBucket, key: bytes) -> None:
    """Have a view made anew that has the content of its version, but not in the form in which it is to be shown."""
    journal, address = region.engine.journal, bucket.address
    known = journal.versions.object(address, key)
    if known is None or known.view is None or known.marker or known.view.shown != known.id:
        return  # it is to be shown anyway
    mark_stale(region, state, key, "its content lies elsewhere now", durable=False)
    state.views.stale[key].is_made_anew, state.views.stale[key].due_s = True, 0.0


def show_changed(region: Region, state: BucketState, bucket: OpenBucket, key: bytes, intended: Intended) -> None:
    """Show the version that a command made current; where that is impossible, keep the view stale, with its intent."""
    mark_stale(region, state, key, "a command changed it", durable=False)
    waiting = state.views.stale[key]
    if not waiting.intent:  # else it was stale before, and that intent suffices
        waiting.intent = intended.keep()
    show_current(region, state, bucket, key)
    bucket.sync()


def mark_all_fresh(region: Region, state: BucketState, bucket: OpenBucket, keys_: Iterable[bytes]) -> None:
    """Mark the views of many keys as fresh, of which few are stale or none: see mark_fresh."""
    for key in [key for key in keys_ if key in state.views.stale]:
        mark_fresh(region, state, bucket, key)


def mark_fresh(region: Region, state: BucketState, bucket: OpenBucket, key: bytes) -> None:
    """End a view's stale state, and remove its intent, once the view is durable."""
    waiting = state.views.stale.pop(key, None)
    if waiting is not None and waiting.intent:
        with contextlib.suppress(OSError):  # an intent that stays is still true
            bucket.sync()
            drop_intents(bucket, waiting.intent)
