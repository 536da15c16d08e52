"""Versions move to the tier of their storage class, and from one tier to another, as transitions and rules say.

The record of a version names its class, and the place of its content (model/version.py, Place). Where the two do not
agree the content is moved, after a transition as after new settings, and for a replica that got the class of its rule.
A move needs no other note than the record, and continues after a crash. This module finds such versions in the journal,
and views that are not in the form in which they are to be shown; tier_moves.py moves, tier_sweep.py tidies up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import stat
import time
from collections.abc import Mapping

from msgspec import Struct, field

from fsrepl.errors import StoreDamaged, Unavailable, reason
from fsrepl.lifecycle import tier_moves
from fsrepl.lifecycle.tier_copy import Pace
from fsrepl.lifecycle.tier_moves import Batch, from_tier
from fsrepl.lifecycle.tier_sweep import sweep
from fsrepl.lifecycle.wanted_tier import PLACED_MIN_BYTES, to_be_moved
from fsrepl.model import keys
from fsrepl.model.version import Versioning
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.lifecycle_state import Placing
from fsrepl.region.region import Region
from fsrepl.s3.lifecycle import DAY_NS
from fsrepl.storage import placed, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Classed, read_tier, traits_of
from fsrepl.views import stale

log = logging.getLogger("fsrepl")

_STEP_S = 0.02
_ROWS = 1000
_BATCH, _BATCH_BYTES = 256, 64 << 20
_PASS_S = 3600.0
_AGAIN_S, _AGAIN_MAX_S = 1.0, 300.0


def step(region: Region) -> bool:
    """Begin the next moves of a region's buckets; whether there was anything to do."""
    busy = False
    for state in list(region.states.values()):
        placing = state.lifecycle.placing
        if placing.in_hand or not state.is_scanned:
            continue
        if state.bucket.versioning is Versioning.OFF or not state.bucket.root.settings.classes:
            continue
        busy |= _begin(region, state, placing)
    return busy


def next_s(state: BucketState) -> float | None:
    """The monotonic time of a bucket's next moves or sweep; None where there are no tiers, or moves are under way."""
    placing, classes = state.lifecycle.placing, state.bucket.root.settings.classes
    if not classes or placing.in_hand or not state.is_scanned or state.bucket.versioning is Versioning.OFF:
        return None
    if placing.asked or not placing.is_over:
        return 0.0
    return min([placing.pass_due_s, *placing.waits.values(), *map(placing.sweep_due, classes)])


def _begin(region: Region, state: BucketState, placing: Placing) -> bool:
    now_s = time.monotonic()
    day = region.engine.site.now() // DAY_NS
    if day != placing.day:  # at midnight copies of archived content go, and what was not moved because of them moves
        placing.day = day
        placing.swept.clear()
        placing.begin_again()
    if sweepable := [name for name in state.bucket.root.settings.classes if placing.sweep_due(name) <= now_s]:
        sweep(region, state, placing, sweepable)
        return True
    if any(due_s <= now_s for due_s in placing.waits.values()):
        placing.waits = {tier: due_s for tier, due_s in placing.waits.items() if due_s > now_s}
        placing.begin_again()
    elif placing.is_over and placing.pass_due_s <= now_s:
        placing.begin_again()
    elif placing.is_over and not placing.asked:
        return False
    found = _next(region, state, placing)
    if found.views or found.links:
        with state.bucket.open() as bucket:
            for key in [*found.views, *(key for key, id_ in found.links if _leads_elsewhere(bucket, key, id_))]:
                stale.show_anew(region, state, bucket, key)
    if not found.moves:
        return bool(found.views or found.links) or not placing.is_over
    placing.in_hand = True
    engine, rows, address = region.engine, list(found.moves.values()), state.bucket.address
    progress = limits.Progress(rows[0].key, "", address, address, found.size, what="moving")
    pace = Pace(engine.moves_limiter, progress, engine.settings.replication.large_file_bytes)

    def work() -> Batch:
        with engine.progress(progress), state.bucket.open() as bucket:
            return tier_moves.copy(bucket, rows, pace)

    def finish(batch: Batch | Exception) -> None:
        placing.in_hand = False
        if isinstance(batch, Exception):
            _later(state, {to_be_moved(state.bucket, r.traits, r.size) or "": reason(batch) for r in rows})
        elif state.is_up:
            with region.at_work(state):
                tier_moves.record(region, state, batch)
            _later(state, batch.failed)

    region.in_background(
        work, finish, pool=("tiers", region.name), whose=address, size_bytes=found.size
    )  # fmt: skip
    return True


class _Found(Struct):
    """The result of a part of a pass: versions to be moved, and keys whose views are to be made anew."""

    moves: dict[tuple[bytes, str], Classed] = field(default_factory=dict)
    views: list[bytes] = field(default_factory=list)
    links: list[tuple[bytes, str]] = field(default_factory=list)
    """Keys and versions whose views are symlinks, of which it is not known whether they lead to the content."""
    size: int = 0

    def is_full(self, more_bytes: int) -> bool:
        if not (self.moves or self.views or self.links):
            return False
        most = max(len(self.moves), len(self.views), len(self.links))
        return most >= _BATCH or self.size + more_bytes > _BATCH_BYTES


def _next(region: Region, state: BucketState, placing: Placing) -> _Found:
    """The next versions that do not lie where they should, as the journal has it; those first that are asked for."""
    until_s = time.monotonic() + _STEP_S
    journal, address, found = region.engine.journal.versions, state.bucket.address, _Found()
    while placing.asked and time.monotonic() < until_s:
        key = next(iter(placing.asked))
        for row in journal.classed_of(address, key):
            if found.is_full(row.size):
                return found
            _judge(state, row, found)
        del placing.asked[key]
    if placing.is_over:
        return found
    if placing.last is None:
        _read_traits(region, state)
        placing.checks_links |= region.engine.journal.fact(_fact(state)) != _paths(state)
    while time.monotonic() < until_s:
        rows = journal.classed(address, placing.last, _ROWS)
        for row in rows:
            if found.is_full(row.size):
                return found
            _judge(state, row, found)
            placing.last = row
        if not rows:
            placing.is_over, placing.pass_due_s = True, time.monotonic() + _PASS_S
            if placing.checks_links:
                with region.engine.journal.transaction():
                    region.engine.journal.set_fact(_fact(state), _paths(state))
                placing.checks_links = False
            break
    return found


def _judge(state: BucketState, row: Classed, found: _Found) -> None:
    if (row.key, row.id) in state.views.overwritten:
        return  # its content is fetched again first
    waits = state.lifecycle.placing.waits
    if (to := to_be_moved(state.bucket, row.traits, row.size)) is not None:
        if to not in waits and from_tier(read_tier(row.traits)) not in waits:
            found.moves[row.key, row.id] = row
            found.size += row.size
    elif row.view_mode and row.size >= PLACED_MIN_BYTES:
        is_placed = bool(read_tier(row.traits))
        if stat.S_ISLNK(row.view_mode) != is_placed:
            found.views.append(row.key)
        elif is_placed and state.lifecycle.placing.checks_links:
            found.links.append((row.key, row.id))


def _fact(state: BucketState) -> str:
    return f"tiers {state.bucket.address}"


def _paths(state: BucketState) -> str:
    """The directories of a region's tiers, to which symlinks lead."""
    classes = state.bucket.root.settings.classes
    return json.dumps({name: str(classes[name].path) for name in sorted(classes)})


def _leads_elsewhere(bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    """Whether the symlink in the place of a view leads to where its content was before, or its tier was mounted."""
    with contextlib.suppress(OSError, StoreDamaged, Unavailable):
        directory, name = keys.split(key)
        fd = bucket.fs.open_inode(bucket.views.get(directory), name)
        try:
            target = bucket.fs.read_link(fd) if bucket.fs.is_link(bucket.fs.stat_fd(fd)) else b""
        finally:
            bucket.fs.close(fd)
        version = versions.read(bucket, key, version_id, marker=False)
        if target and version is not None and version.place is not None:
            return placed.path_of(bucket, version) != target
    return False


def _read_traits(region: Region, state: BucketState) -> None:
    """Read what the journal does not know for sure, as after a change of tags: classes and places among it."""
    journal, address = region.engine.journal, state.bucket.address
    unread = journal.versions.unread(address, _BATCH)
    if unread:
        with state.bucket.open() as bucket:
            read = [(key, version_id, _traits(bucket, key, version_id)) for key, version_id in unread]
        journal.versions.set_traits(address, read)


def _traits(bucket: OpenBucket, key: bytes, version_id: str) -> str:
    """The traits of a version; none where its record cannot be read, which is found and repaired elsewhere."""
    with contextlib.suppress(StoreDamaged, OSError):
        version = versions.read(bucket, key, version_id)
        if version is not None:
            return traits_of(version)
    return ""


def _later(state: BucketState, failed: Mapping[str, str]) -> None:
    """Nothing more is moved to the tiers that failed, by their reasons, until a delay is over, which grows."""
    placing, now_s = state.lifecycle.placing, time.monotonic()
    if not failed and not placing.waits:
        placing.tries, placing.why = 0, ""
    if failed:
        placing.tries += 1
    for tier, why in failed.items():
        placing.waits[tier] = now_s + min(_AGAIN_MAX_S, _AGAIN_S * 2.0 ** min(placing.tries - 1, 10))
        level = logging.WARNING if placing.why != why else logging.DEBUG
        where = tier.replace(" ", "=") if " " in tier else f"to={tier or 'STANDARD'}"
        log.log(level, "tiers wait bucket=%s %s: %s", state.bucket.address, where, why)
        placing.why = why
