"""Stored versions that were come upon damaged are repaired, those that were destroyed fetched from another region."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping

from fsrepl.errors import FsreplError, reason
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.region.bucket_state import Damaged, Lost, Place
from fsrepl.region.region import Region
from fsrepl.repair import repair
from fsrepl.storage import intents
from fsrepl.views.hardlinks import At

log = logging.getLogger("fsrepl")


_AGAIN_S, _AGAIN_MAX_S = 5.0, 600.0


# -- repairing what was come upon


def repair_damaged(region: Region) -> bool:
    """Have repaired what steps have come upon, each in a lane; whether there was anything."""
    busy = False
    for place in region.places.values():
        found, place.damaged = place.damaged, []
        for damaged in found:
            busy = True
            _repair(region, damaged)
    return busy


def _repair(region: Region, damaged: Damaged) -> None:
    address, key = damaged.address, damaged.key
    target = repair.Target(address, keys.stored_path(key), damaged.id, damaged.marker)

    def finish(found: bool | Exception) -> None:
        if isinstance(found, Exception):
            why = reason(found)
            log.warning('not repaired bucket=%s key="%s" version=%s: %s', address, keys.shown(key), damaged.id, why)

    its_region, size = region_of(address), _size(region, address, (key, damaged.id))
    region.in_lane(
        lambda: repair.repair(region.regions[its_region], target), finish,
        lane=("repair", its_region), whose=address, size_bytes=size,
    )  # fmt: skip


# -- fetching again what was destroyed


def resume(place: Place, lost: Mapping[At, bytes]) -> None:
    """After a start: go on with what was to be fetched. lost: by key and version, where that is written down."""
    for at, intent in lost.items():
        place.lost.setdefault(at, Lost(intent))


def kick(region: Region) -> None:
    """A bucket came back that may have what is missing here."""
    for place in region.places.values():
        for lost in place.lost.values():
            lost.due_s = 0.0


def next_s(place: Place) -> float | None:
    """The monotonic time when something is to be fetched; None where nothing is."""
    return min((lost.due_s for lost in place.lost.values() if not lost.in_lane), default=None)


def fetch_due(region: Region) -> bool:
    """Repair what was come upon, and fetch what is due, each in a lane; whether there was anything."""
    now_s = time.monotonic()
    busy = repair_damaged(region)
    for place in region.places.values():
        for at, lost in list(place.lost.items()) if place.scanned else ():
            if lost.due_s <= now_s and not lost.in_lane:
                busy = True
                with region.at_work(place):
                    _fetch(region, place, at, lost)
    return busy


def _fetch(region: Region, place: Place, at: At, lost: Lost) -> None:
    key, version_id = at
    if at in place.bucket.documents.removed:
        _forget(place, at)
        return
    lost.in_lane, lost.attempts = True, lost.attempts + 1
    target = repair.Target(place.bucket.address, keys.stored_path(key), version_id, marker=False)

    def finish(found: bool | Exception) -> None:
        lost.in_lane = False
        lost.due_s = time.monotonic() + min(_AGAIN_S * 2.0 ** (lost.attempts - 1), _AGAIN_MAX_S)
        if isinstance(found, Exception):
            why = reason(found)
            shown = keys.shown(key)
            log.warning('not fetched bucket=%s key="%s" version=%s: %s', place.bucket.address, shown, version_id, why)
        elif found:
            _forget(place, at)

    region.in_lane(
        lambda: repair.repair(region, target), finish,
        lane=("repair", region.name), whose=target.address, size_bytes=_size(region, target.address, at),
    )  # fmt: skip


def _size(region: Region, address: str, at: At) -> int:
    """How much a repair reads, as far as the journal tells."""
    return region.engine.journal.versions.size_of(address, *at) or 0


def _forget(place: Place, at: At) -> None:
    lost = place.lost.pop(at)
    with contextlib.suppress(FsreplError, OSError), place.bucket.open() as bucket:  # else the next start drops it
        intents.drop_intents(bucket, lost.intent)
