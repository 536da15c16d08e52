"""The scrub: stored versions are read from the disk over days, and compared with their hashes.

Each bucket's scrub reads a small part at a time, in a background worker, when its turn has come (model/scrub.py). What
it finds damaged is repaired like what any step finds (refetch.py). How far it is lies in the journal; where that is
lost, a pass begins anew. A pass also removes what is not needed any more: block maps without a version, damaged content
that was kept long enough, unfinished copies that are not continued.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged, reason
from fsrepl.model import keys, scrub
from fsrepl.model.scrub import Pass, Scrub
from fsrepl.model.version import Version, Versioning
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.region import Region
from fsrepl.repair.scrub_state import load, save
from fsrepl.storage import blocks, damaged, hashing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Stored

log = logging.getLogger("fsrepl")

_LOOK_S = 1.0
_ROWS = 256
_COUNT_S = 3600.0
"""How often the bytes of a bucket are counted again, which decide how much is read at a time."""
_MARGIN_NS = 86_400 * 1_000_000_000
"""A map is kept for so much longer than its last use before the pass."""
_FAULT_S = 60.0
"""How long a bucket is left alone after a fault that prevented reading at all."""


def step(region: Region) -> bool:
    """Begin to read the next part of each bucket whose turn has come; whether there was any."""
    now_s, busy = time.monotonic(), False
    for state in region.states.values():
        if state.is_scanned and not state.scrub.is_reading and now_s >= state.scrub.look_s:
            state.scrub.look_s = now_s + _LOOK_S
            if state.bucket.versioning is not Versioning.OFF:
                busy |= _step(region, state)
    return busy


def _step(region: Region, state: BucketState) -> bool:
    journal, address = region.engine.journal, state.bucket.address
    every_s, now_ns = region.engine.settings.scrub.every_s, region.engine.site.now()
    found = load(journal, address)
    if found.is_due(every_s, now_ns):
        found = found.begun(now_ns, journal.totals.objects(address)[2])
        save(journal, address, found)
    elif found.current is not None and time.monotonic() >= state.scrub.count_s:
        size = journal.totals.objects(address)[2]
        if size != found.current.size:
            found = replace(found, current=replace(found.current, size=size))
            save(journal, address, found)
        state.scrub.count_s = time.monotonic() + _COUNT_S
    if not found.may_read(every_s, now_ns) and not found.may_end(every_s, now_ns):
        return False
    assert found.current is not None
    rows = _next(journal, address, found.current)
    if rows:
        _read_in_background(region, state, rows)
    elif found.may_end(every_s, now_ns):
        _end(region, state, found)
    return bool(rows)


def _next(journal: Journal, address: str, current: Pass) -> list[tuple[Stored, int]]:
    """The next versions, and their sizes: about one batch of bytes."""
    rows = journal.versions.sizes_after(address, current.last, _ROWS)
    total = 0
    for number, (_, size) in enumerate(rows, start=1):
        total += size
        if total >= scrub.BATCH_BYTES:
            return rows[:number]
    return rows


# -- one part


class _Found(Struct):
    """The findings in a part of a pass."""

    checked: int = 0
    bytes: int = 0
    damaged: list[Damaged] = field(default_factory=list)


def _read_in_background(region: Region, state: BucketState, rows: Sequence[tuple[Stored, int]]) -> None:
    engine, address = region.engine, state.bucket.address
    state.scrub.is_reading = True
    size = sum(size for _, size in rows)
    progress = limits.Progress(rows[-1][0].key, "", address, address, size, what="scrubbing")

    def read() -> _Found:
        found = _Found()
        with engine.progress(progress), state.bucket.open() as bucket:
            for stored, _ in rows:
                if not stored.marker:
                    _check(region, bucket, stored, found, progress)
        return found

    def finish(found: _Found | Exception) -> None:
        state.scrub.is_reading, state.scrub.look_s = False, 0.0
        if isinstance(found, Exception):
            state.scrub.look_s = time.monotonic() + _FAULT_S
            log.debug("not scrubbed bucket=%s: %s", address, reason(found))
            return
        for each in found.damaged:
            log.error('scrub found damage bucket=%s key="%s" version=%s', address, keys.shown(each.key), each.id)
        state.damaged += found.damaged
        before = load(engine.journal, address)
        if (current := before.current) is not None:  # else somebody began anew
            current = replace(
                current, last=rows[-1][0].order, checked=current.checked + found.checked,
                bytes=current.bytes + found.bytes, damaged=current.damaged + len(found.damaged),
            )  # fmt: skip
            save(engine.journal, address, replace(before, current=current))

    region.in_background(read, finish, pool=("scrub", region.name), whose=address, size_bytes=size)


def _check(region: Region, bucket: OpenBucket, stored: Stored, found: _Found, progress: limits.Progress) -> None:
    """Read one version. What is gone, or in a tier that is away, is passed over."""
    at = Damaged(bucket.address, stored.key, stored.id)
    try:
        version = versions.read(bucket, stored.key, stored.id, marker=False)
        if version is None:
            return
        is_whole = not versions.has_lost_record(version) and _matches(region, bucket, version, found, progress)
    except FileNotFoundError:
        return
    except StoreDamaged:
        is_whole = False
    except FsreplError:
        return
    except OSError:
        if bucket.fs.interrupted:
            raise
        is_whole = False  # a sector that cannot be read
    found.checked += 1
    if not is_whole:
        found.damaged.append(at)


def _matches(region: Region, bucket: OpenBucket, version: Version, found: _Found, progress: limits.Progress) -> bool:
    limiter, before = region.engine.scrub_limiter, found.bytes
    fd = versions.open_stored(bucket, version)

    def told(done: int) -> None:
        limiter.sent(before + done - found.bytes)
        found.bytes = before + done
        progress.came_to(found.bytes)
        progress.pause(limiter)

    try:
        size = bucket.fs.stat_fd(fd).st_size
        matches = versions.stored_digest(bucket, version, fd, told) == version.digest
    finally:
        bucket.fs.close(fd)
    if matches and size >= hashing.SMALL_BYTES:
        blocks.note_used(bucket, version.digest, time.time_ns())
    return matches


# -- the end of a pass


def _end(region: Region, state: BucketState, found: Scrub) -> None:
    journal, address = region.engine.journal, state.bucket.address
    done = found.ended(region.engine.site.now())
    save(journal, address, done)
    assert found.current is not None
    assert done.result is not None
    result = done.result
    log.log(
        logging.WARNING if result.damaged else logging.INFO,
        "scrubbed bucket=%s versions=%d bytes=%d damaged=%d", address, result.checked, result.bytes, result.damaged,
    )  # fmt: skip
    with contextlib.suppress(FsreplError, OSError), state.bucket.open() as bucket:
        # by the machine's clock, which the files' times are from; a map is younger than the pass that read its version
        took_ns = region.engine.site.now() - found.current.began_ns
        blocks.forget_unused(bucket, time.time_ns() - took_ns - _MARGIN_NS)
        damaged.forget_old(bucket, time.time_ns())
        staging.sweep_lasting(bucket)
