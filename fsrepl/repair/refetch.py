"""Stored versions that steps found damaged are repaired; overwritten ones are fetched from another region."""

from __future__ import annotations

import contextlib
import logging
import time

from fsrepl.errors import FsreplError, reason
from fsrepl.model import keys
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.region import Region
from fsrepl.region.view_state import Overwritten
from fsrepl.repair import repair
from fsrepl.repair.target import Target
from fsrepl.storage import sharing
from fsrepl.views import hardlinks, overwritten
from fsrepl.views.hardlinks import At

log = logging.getLogger("fsrepl")


_AGAIN_S, _AGAIN_MAX_S = 5.0, 600.0
_CAPTURED_S = 0.5


# -- repairing damaged versions


def repair_damaged(region: Region) -> bool:
    """Repair versions that steps found damaged, in the background; whether there were any."""
    busy = False
    for state in region.states.values():
        found, state.damaged = state.damaged, []
        for damaged in dict.fromkeys(found):
            busy = True
            _repair(region, state, damaged)
    return busy


def _repair(region: Region, state: BucketState, damaged: Damaged) -> None:
    address, key = damaged.address, damaged.key
    target = Target(address, keys.stored_path(key), damaged.id, damaged.marker)

    def finish(found: bool | Exception) -> None:
        if isinstance(found, Exception):
            why = reason(found)
            log.warning('not repaired bucket=%s key="%s" version=%s: %s', address, keys.shown(key), damaged.id, why)
        if found is not True and not damaged.marker:
            with contextlib.suppress(FsreplError, OSError), state.bucket.open() as bucket:
                if sharing.links_views(bucket):  # a user may have done it: it is tried again, also after a start
                    overwritten.note(region.engine.syncer, state, bucket, [(key, damaged.id)], later_s=_AGAIN_S)

    region.in_background(
        lambda: repair.repair(region, target), finish,
        pool=("repair", region.name), whose=address, size_bytes=_size(region, address, (key, damaged.id)),
    )  # fmt: skip


# -- fetching overwritten versions


def retry_now(region: Region) -> None:
    """Try pending fetches now: a bucket came back that may have the missing versions."""
    for state in region.states.values():
        for each in state.views.overwritten.values():
            each.due_s = 0.0


def next_s(state: BucketState) -> float | None:
    """The monotonic time of the next fetch; None where there is none."""
    return min(
        (each.due_s for each in state.views.overwritten.values() if not each.in_background),
        default=None,
    )


def fetch_due(region: Region) -> bool:
    """Repair damaged versions and fetch due ones, in the background; whether there were any."""
    now_s = time.monotonic()
    busy = repair_damaged(region)
    for state in region.states.values():
        for at, each in list(state.views.overwritten.items()) if state.is_scanned else ():
            if each.due_s <= now_s and not each.in_background:
                busy = True
                with region.at_work(state):
                    _fetch(region, state, at, each)
    return busy


def _fetch(region: Region, state: BucketState, at: At, known: Overwritten) -> None:
    key, version_id = at
    if at in state.bucket.documents.removed:
        overwritten.forget(state, at)
        return
    with state.bucket.open() as bucket:
        is_ready, was = hardlinks.empty_in_tier(region, bucket, key, version_id), hardlinks.stored(bucket, *at)
    if not is_ready:  # what was written into the view is captured first, and shown
        known.due_s = time.monotonic() + _CAPTURED_S
        return
    known.in_background, known.attempts, known.is_noted_again = True, known.attempts + 1, False
    target = Target(state.bucket.address, keys.stored_path(key), version_id, marker=False)

    def finish(found: bool | Exception) -> None:
        known.in_background = False
        known.due_s = time.monotonic() + min(_AGAIN_S * 2.0 ** (known.attempts - 1), _AGAIN_MAX_S)
        if isinstance(found, Exception):
            why = reason(found)
            shown = keys.shown(key)
            log.warning('not fetched bucket=%s key="%s" version=%s: %s', state.bucket.address, shown, version_id, why)
        elif found and known.is_noted_again:
            known.due_s = 0.0  # what failed meanwhile is renewed by the next one
        elif found:
            try:
                with state.bucket.open() as bucket:
                    is_closed = hardlinks.close_to_people(region, bucket, at, was)
            except (FsreplError, OSError):
                is_closed = False  # it was written into just now, for instance
            if is_closed:
                overwritten.forget(state, at)
                state.ask_to_place([key])

    region.in_background(
        lambda: repair.repair(region, target), finish,
        pool=("repair", region.name), whose=target.address, size_bytes=_size(region, target.address, at),
    )  # fmt: skip


def _size(region: Region, address: str, at: At) -> int:
    """The number of bytes that a repair reads, if the journal knows it."""
    return region.engine.journal.versions.size_of(address, *at) or 0
