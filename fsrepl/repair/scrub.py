"""The scrub: stored versions are read from the disk over days, and compared with their hashes.

Each bucket's scrub reads a small part at a time, in a background worker, when its turn has come (model/scrub.py): some
versions, or a part of a large one (scrub_read.py). What it finds damaged is repaired like what any step finds
(refetch.py). How far it is lies in the journal; where that is lost, a pass begins anew. A pass also removes what is not
needed any more: block maps without a version, damaged content that was kept long enough, unfinished copies that are not
continued.
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
from fsrepl.model.scrub import Pass, Position, Scrub
from fsrepl.model.version import Version, Versioning
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.region import Region
from fsrepl.repair import scrub_read
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
        found = found.begun(now_ns, journal.totals.counts(address).bytes)
        save(journal, address, found)
    elif found.current is not None and time.monotonic() >= state.scrub.count_s:
        size = journal.totals.counts(address).bytes
        if size != found.current.size:
            found = replace(found, current=replace(found.current, size=size))
            save(journal, address, found)
        state.scrub.count_s = time.monotonic() + _COUNT_S
    if not found.may_read(every_s, now_ns) and not found.may_end(every_s, now_ns):
        return False
    assert found.current is not None
    rows = _next(journal, address, found.current)
    if rows:
        _read_in_background(region, state, rows, found.current)
    elif found.may_end(every_s, now_ns):
        _end(region, state, found)
    return bool(rows)


def _next(journal: Journal, address: str, current: Pass) -> list[tuple[Stored, int]]:
    """The next versions, and their sizes: about one batch of bytes. A larger one is read in parts, by itself."""
    rows = journal.versions.sizes_after(address, current.last, _ROWS)
    total = 0
    for number, (_, size) in enumerate(rows, start=1):
        if size > scrub.BATCH_BYTES and number > 1:
            return rows[: number - 1]
        total += size
        if total >= scrub.BATCH_BYTES:
            return rows[:number]
    return rows


# -- one part


class _Found(Struct):
    """The findings in a part of a pass. last: the version that was read last. inside: see Pass."""

    last: Position | None
    inside: tuple[Position, int] | None = None
    checked: int = 0
    bytes: int = 0
    damaged: list[Damaged] = field(default_factory=list)


def _read_in_background(region: Region, state: BucketState, rows: Sequence[tuple[Stored, int]], current: Pass) -> None:
    engine, address = region.engine, state.bucket.address
    state.scrub.is_reading = True
    progress = state.scrub.progress = _progress(state, rows, current.read_of(rows[0][0].order))

    def read() -> _Found:
        found = _Found(current.last)
        with engine.progress(progress), state.bucket.open() as bucket, contextlib.suppress(scrub_read.Stopped):
            for stored, _ in rows:
                if not stored.marker:
                    _check(region, bucket, stored, current, found, progress)
                if found.inside is not None:
                    break
                found.last = stored.order
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
        if (now := before.current) is not None:  # else somebody began anew
            now = replace(
                now, last=found.last, inside=found.inside, checked=now.checked + found.checked,
                bytes=now.bytes + found.bytes, damaged=now.damaged + len(found.damaged),
            )  # fmt: skip
            save(engine.journal, address, replace(before, current=now))

    size = sum(size for _, size in rows)
    region.in_background(read, finish, pool=("scrub", region.name), whose=address, size_bytes=size)


def _progress(state: BucketState, rows: Sequence[tuple[Stored, int]], begin: int) -> limits.Progress:
    """The progress of a part; that of the part before, where the same version is read on without a pause."""
    before, key, address = state.scrub.progress, rows[-1][0].key, state.bucket.address
    if before is not None and begin and (before.key, before.bytes_done) == (key, begin) and not before.stop:
        return before
    size = sum(size for _, size in rows)
    return limits.Progress(key, "", address, address, size, begin, what="scrubbing")


def _check(
    region: Region, bucket: OpenBucket, stored: Stored, current: Pass, found: _Found, progress: limits.Progress
) -> None:
    """Read one version, or a part of it. What is gone, or in a tier that is away, is passed over. Raises Stopped."""
    at = Damaged(bucket.address, stored.key, stored.id)
    try:
        version = versions.read(bucket, stored.key, stored.id, marker=False)
        if version is None:
            return
        is_whole = not versions.has_lost_record(version)
        if is_whole:
            result = _read(region, bucket, stored, version, current, found, progress)
            if not result.is_complete:
                found.inside = stored.order, result.upto
                return
            is_whole = result.matches
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


def _read(
    region: Region, bucket: OpenBucket, stored: Stored, version: Version, current: Pass, found: _Found,
    progress: limits.Progress,
) -> scrub_read.Read:  # fmt: skip
    limiter, begin = region.engine.scrub_limiter, current.read_of(stored.order)
    before, earlier = found.bytes, progress.bytes_done

    def note(done: int, count: int) -> bool:
        found.bytes = before + max(0, done - begin)
        progress.came_to(earlier - begin + done)
        limiter.sent(count)
        progress.pause(limiter)
        return not (progress.stop or bucket.fs.interrupted)

    fd = versions.open_stored(bucket, version)
    try:
        result = scrub_read.read(bucket, version, fd, begin, current.part_bytes, note)
    except scrub_read.Stopped:
        found.bytes = before
        raise
    finally:
        bucket.fs.close(fd)
    if result.matches and result.is_complete and result.size >= hashing.SMALL_BYTES:
        blocks.note_used(bucket, version.digest, time.time_ns())
    return result


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
