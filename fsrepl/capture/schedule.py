"""When a bucket, or a part of it, is looked through: at start, where a directory appeared, after events were
lost, where the kernel gives no watch, and every rescan_s. And the barrier: what was done before this moment?

An epoch begins with each sentinel that was read. A scan has the epoch of what it was begun for, so that
whoever waits for all that came before a sentinel waits for it too; it is queued before what led to it is
let go, so that there is no moment in which nothing seems to be under way. Source: design.md, sections 5 and 7.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Iterable

from fsrepl.capture import look
from fsrepl.capture.scan import advance
from fsrepl.errors import FsreplError
from fsrepl.region import delivery_queue
from fsrepl.region.bucket_state import Place
from fsrepl.region.change_queue import CHANGED, FOUND, GONE, MOVED
from fsrepl.region.region import Region
from fsrepl.region.scan_queue import Scan, is_below
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import following, stale

log = logging.getLogger("fsrepl")


_STEP_S = 0.02
_LOOK_AGAIN_MAX_S = 60.0
_POLL_S = 2.0
_POLL_SHARE = 5
"""Where there are no watches, looking takes at most a fifth of the time or so."""

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
"""How the table of mounts spells blanks and the like in a path."""


def begin(region: Region, place: Place, top: bytes = b"", *, arrived: bool = False, epoch: int | None = None) -> None:
    """Begin to look through a bucket, or one directory of it. arrived: see Scan."""
    if not top:
        place.rescan_at_s = time.monotonic() + region.engine.settings.capture.rescan_s
    place.scans.add(Scan(place.bucket.address, top, arrived, region.engine.epoch if epoch is None else epoch))


def poll(region: Region, place: Place) -> None:
    """Look where there are no watches."""
    if place.trouble.polled:
        place.polled_since_s = time.monotonic()
    for path in highest(place.trouble.polled):
        begin(region, place, path, arrived=True)


def look_at_mounts(region: Region, place: Place) -> None:
    """Look at directories that another mount covers since the last look, and at those that are free again.

    Neither makes an event.
    """
    table = place.bucket.fs.mounts()
    if table != place.mounts_seen:
        place.mounts_seen = table
        covered = [key for key, why in place.unreadable.items() if why == look.MOUNTED]
        region.marks.mark(place.bucket.address, covered, region.engine.epoch)
        top = os.path.realpath(os.fsencode(place.bucket.path)) + b"/"
        for line in table.splitlines():
            at = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
            if at.startswith(top) and at[len(top) :] not in place.trouble.mounts:
                begin(region, place, at[len(top) :])
                region.marks.mark(place.bucket.address, [at[len(top) :]], region.engine.epoch)  # if it is a file
    if not place.trouble.mounts:
        return
    with contextlib.suppress(FsreplError), place.bucket.open() as bucket:
        for path in sorted(place.trouble.mounts):
            if not _is_covered(bucket, path):
                begin(region, place, path)
                stale.way_is_free(region, place)


def _is_covered(bucket: OpenBucket, path: bytes) -> bool:
    """Whether another mount lies over a directory."""
    try:
        bucket.fs.close(bucket.fs.open_dir(bucket.fd, path))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


def look_again(region: Region, place: Place, now_s: float) -> None:
    """Look into directories that could not be read for a reason that may pass, with a growing delay."""
    passing = place.trouble.passing
    if not passing:
        place.look_agains, place.look_again_at_s = 0, 0.0
    elif not place.look_again_at_s:
        place.look_again_at_s = now_s + delivery_queue.retry_delay_s(place.look_agains + 1, _LOOK_AGAIN_MAX_S)
    elif now_s >= place.look_again_at_s:
        place.look_agains, place.look_again_at_s = place.look_agains + 1, 0.0
        for path in highest(passing):
            begin(region, place, path, arrived=passing[path])


def highest(paths: Iterable[bytes]) -> list[bytes]:
    """Those of some directories that are not below another of them."""
    found: list[bytes] = []
    for path in sorted(paths, key=lambda path: path.split(b"/")):
        if not (found and is_below(path, found[-1])):
            found.append(path)
    return found


def go_round(region: Region, place: Place) -> None:
    """Begin what is due by now."""
    if place.scans:
        return
    now_s = time.monotonic()
    if place.polled_since_s:
        took_s, place.polled_since_s = now_s - place.polled_since_s, 0.0
        place.poll_at_s = now_s + max(_POLL_S, _POLL_SHARE * took_s)
    if now_s >= place.rescan_at_s:
        begin(region, place)
        return
    look_at_mounts(region, place)
    look_again(region, place, now_s)
    if place.trouble.polled and now_s >= place.poll_at_s:
        poll(region, place)


def follow_events(region: Region) -> bool:
    """Look where events say that directories came or went, or that some were lost; whether there was one."""
    marks = region.marks
    busy = False
    if marks.lost_since is not None:
        log.warning("rescan region=%s: events were lost", region.name)
        for place in region.places.values():
            if place.up:
                begin(region, place, epoch=marks.lost_since)
        marks.lost_since = None  # what is lost from now on was done before the scans, which have not begun
        region.probe_now()
        busy = True
    while marks.directories:
        event = marks.directories[0]
        place_ = region.places.get(event.address)
        if place_ and place_.up and not event.flags & GONE:
            following.note(place_, event.path)
            busy = True
        # Directories are not objects; what else counts of their attributes is that more may be read now.
        if place_ and place_.up and not (event.flags & CHANGED and not place_.is_blind(event.path)):
            busy = True
            if event.flags & MOVED and region.engine.watcher is not None:
                region.engine.watcher.forget(event.address, event.path)  # one that was removed takes its watches along
            if event.flags & GONE:
                stale.way_is_free(region, place_)
            begin(region, place_, event.path, arrived=True, epoch=event.epoch)
        marks.directories.popleft()
    return busy


def step(region: Region) -> bool:
    """Go on with the scans of each bucket, for a moment; whether there was one."""
    busy = False
    for place in region.places.values():
        if not place.up or not place.scans:
            continue
        busy = True
        with region.at_work(place):
            try:
                _step(region, place)
            except FsreplError as error:
                log.warning("scan stopped bucket=%s: %s", place.bucket.address, error)
                region.suspend(place)
    return busy


def _step(region: Region, place: Place) -> None:
    engine = region.engine
    until_s = time.monotonic() + _STEP_S
    with place.bucket.open() as bucket:
        while time.monotonic() < until_s and (scan := place.scans.next()) is not None:
            done = advance(
                scan, bucket, engine.journal, region.marks, engine.watcher, place.trouble, place.held.__contains__,
                _STEP_S, lambda path: following.note(place, path, told=place.scanned),
            )  # fmt: skip
            if not done:
                return
            # a file that could not be read is in no list of what was here: nothing else tells that it is gone
            closed = [key for key in place.unreadable if is_below(key, scan.top)]
            region.marks.mark(scan.address, closed, scan.epoch, FOUND)
            place.scans.done(scan)
            place.looked_through(scan)
            if not scan.top:
                _finished(place, scan)
                engine.notify()


def _finished(place: Place, scan: Scan) -> None:
    """A whole bucket has been looked through."""
    place.looked_ns = scan.began_ns
    address, polled = place.bucket.address, len(place.trouble.polled)
    if not place.scanned:
        log.info(
            "scanned bucket=%s directories=%d files=%d changed=%d",
            address, scan.directories, scan.files, scan.marked,
        )  # fmt: skip
    elif scan.marked:
        log.info("scan found bucket=%s changed=%d", address, scan.marked)
    if polled and not place.said_polled:
        log.warning(
            "not watched bucket=%s directories=%d: the kernel gives no more watches; they are looked at every few "
            "seconds instead; `fsrepl doctor` tells how many are needed",
            address, polled,
        )  # fmt: skip
    place.scanned, place.said_polled = True, bool(polled)
