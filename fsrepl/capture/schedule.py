"""When a bucket, or a part of it, is scanned: at start, where a directory appeared, after events were
lost, where the kernel gives no watch, and every rescan_s.

Each sentinel that was read begins an epoch. A scan has the epoch of the change that it was begun for, so that
a `wait` for all changes before a sentinel covers it too. The scan is queued before that change is
dropped, so that at every moment one of the two is pending. Source: design.md, sections 5 and 7.
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
from fsrepl.errors import FsreplError, reason
from fsrepl.model import keys
from fsrepl.region import delivery_queue, tier_watches
from fsrepl.region.bucket_state import BucketState, Damaged, Phase
from fsrepl.region.change_queue import CHANGED, CLOSED, CONTENT, FOUND, GONE, MOVED, DirectoryEvent, WatchLimit
from fsrepl.region.region import Region
from fsrepl.region.scan_queue import Scan, is_below
from fsrepl.storage import placed
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import following, resting, stale

log = logging.getLogger("fsrepl")


_STEP_S = 0.02
_LOOK_AGAIN_MAX_S = 60.0
_POLL_S = 2.0
_POLL_SHARE = 5
"""Without watches, scans take at most about a fifth of the time."""

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
"""Escapes for blanks and the like in paths of the mount table."""


def begin(
    region: Region, state: BucketState, top: bytes = b"", *, arrived: bool = False, epoch: int | None = None
) -> None:
    """Begin to scan a bucket, or one directory of it. arrived: see Scan."""
    if not top:
        state.scan_times.rescan_at_s = time.monotonic() + region.engine.settings.capture.rescan_s
    state.scans.add(Scan(state.bucket.address, top, arrived, region.engine.epoch if epoch is None else epoch))


def watch_known(region: Region, bucket: OpenBucket) -> None:
    """Watch the directories that have keys, before the first scan of a bucket comes to them.

    A file that is dropped meanwhile is captured at once, and not when the comparison of a million others reaches it.
    The scan watches the other directories, and reports those that cannot be watched.
    """
    watcher = region.engine.watcher
    if watcher is None:
        return
    with contextlib.suppress(WatchLimit):
        for path in {b"", *region.engine.journal.versions.directories(bucket.address)}:
            with contextlib.suppress(OSError):
                fd = bucket.fs.open_dir(bucket.fd, path)
                try:
                    watcher.watch(bucket.address, path, fd)
                finally:
                    bucket.fs.close(fd)


def poll(region: Region, state: BucketState) -> None:
    """Scan the directories without a watch."""
    if state.trouble.polled or state.scan_times.lacks_tier_watch:
        state.scan_times.polled_since_s = time.monotonic()
    if state.scan_times.lacks_tier_watch:
        begin(region, state, arrived=True)
        return
    for path in highest(state.trouble.polled):
        begin(region, state, path, arrived=True)


def look_at_mounts(region: Region, state: BucketState) -> None:
    """Scan directories that another mount covers since the last look, and those that are free again.

    Neither makes an event.
    """
    table = state.bucket.fs.mounts()
    if table != state.scan_times.mounts_seen:
        state.scan_times.mounts_seen = table
        covered = [key for key, why in state.captures.unreadable.items() if why == look.MOUNTED]
        region.changes.add(state.bucket.address, covered, region.engine.epoch)
        top = os.path.realpath(os.fsencode(state.bucket.path)) + b"/"
        for line in table.splitlines():
            at = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
            if at.startswith(top) and at[len(top) :] not in state.trouble.mounts:
                begin(region, state, at[len(top) :])
                region.changes.add(state.bucket.address, [at[len(top) :]], region.engine.epoch)  # if it is a file
    if not state.trouble.mounts:
        return
    with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
        for path in sorted(state.trouble.mounts):
            if not _is_covered(bucket, path):
                begin(region, state, path)
                stale.retry_blocked(region, state)


def _is_covered(bucket: OpenBucket, path: bytes) -> bool:
    """Whether another mount covers a directory."""
    try:
        bucket.fs.close(bucket.fs.open_dir(bucket.fd, path))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


def probe_now(region: Region, state: BucketState, now_s: float) -> None:
    """Scan directories that could not be read because of an error that may pass, with a growing delay."""
    passing, times = state.trouble.passing, state.scan_times
    if not passing:
        times.look_agains, times.look_again_at_s = 0, 0.0
    elif not times.look_again_at_s:
        times.look_again_at_s = now_s + delivery_queue.retry_delay_s(times.look_agains + 1, _LOOK_AGAIN_MAX_S)
    elif now_s >= times.look_again_at_s:
        times.look_agains, times.look_again_at_s = times.look_agains + 1, 0.0
        for path in highest(passing):
            begin(region, state, path, arrived=passing[path])


def highest(paths: Iterable[bytes]) -> list[bytes]:
    """The given directories without those below another one."""
    found: list[bytes] = []
    for path in sorted(paths, key=lambda path: path.split(b"/")):
        if not (found and is_below(path, found[-1])):
            found.append(path)
    return found


def start_due(region: Region, state: BucketState) -> None:
    """Begin the scans that are due."""
    if state.scans:
        return
    now_s, times = time.monotonic(), state.scan_times
    if times.polled_since_s:
        took_s, times.polled_since_s = now_s - times.polled_since_s, 0.0
        times.poll_at_s = now_s + max(_POLL_S, _POLL_SHARE * took_s)
    if now_s >= times.rescan_at_s:
        begin(region, state)
        return
    if tier_watches.is_due(region, state, now_s):
        tier_watches.watch_again(region, state)
    look_at_mounts(region, state)
    probe_now(region, state, now_s)
    if (state.trouble.polled or times.lacks_tier_watch) and now_s >= times.poll_at_s:
        poll(region, state)


def next_s(region: Region, state: BucketState) -> float:
    """The monotonic time when start_due has something to do, as far as nothing tells of that earlier."""
    times = state.scan_times
    due = [times.rescan_at_s]
    if state.trouble.passing:
        due.append(times.look_again_at_s)
    if state.trouble.polled or times.lacks_tier_watch:
        due.append(times.poll_at_s)
    if tier_watches.is_incomplete(region, state):
        due.append(times.tiers_watch_at_s)
    return 0.0 if times.polled_since_s else min(due)


def follow_events(region: Region) -> bool:
    """Scan directories that events say appeared or disappeared, or all after lost events; whether there were any."""
    changes = region.changes
    busy = False
    if changes.lost_since is not None:
        log.warning("rescan region=%s: events were lost", region.name)
        for state in region.states.values():
            if state.is_up:
                begin(region, state, epoch=changes.lost_since)
        changes.lost_since = None  # events lost from now on are covered by these scans, which have not begun
        region.probe_now()
        busy = True
    for address, state in region.states.items():
        if state.is_up and (since := changes.dropped_since(address)) is not None:
            log.info("rescan bucket=%s: there were more changes than are kept in memory", address)
            begin(region, state, epoch=since)
            changes.forget_dropped(address)
            busy = True
    while changes.directories:
        event = changes.directories[0]
        state_ = region.states.get(event.address)
        if event.flags & CONTENT:
            if state_ and state_.is_up:
                _follow_content(region, state_, event)
            changes.directories.popleft()
            busy = True
            continue
        if state_ and state_.is_up and event.flags & CHANGED:  # one that appeared is noted by its scan
            following.note(state_, event.path)
            if state_.bucket.trees:
                changes.add(event.address, [event.path + b"/"], event.epoch, CHANGED)
            busy = True
        # Its attributes matter further only where more may be readable now.
        if state_ and state_.is_up and not (event.flags & CHANGED and not state_.is_blind(event.path)):
            busy = True
            if event.flags & MOVED and region.engine.watcher is not None:
                region.engine.watcher.forget(event.address, event.path)  # a removed directory takes its watches along
            if event.flags & GONE:
                stale.retry_blocked(region, state_)
            begin(region, state_, event.path, arrived=True, epoch=event.epoch)
        changes.directories.popleft()
    return busy


def _follow_content(region: Region, state: BucketState, event: DirectoryEvent) -> None:
    """Queue the key of a content in a tier after a write into it; a content that no view shows is repaired."""
    tier, _, name = event.path.partition(b"/")
    token = name.partition(b";")[0].decode("ascii", "replace")
    try:
        with state.bucket.open() as bucket:
            version = placed.version_in(bucket, tier.decode(), name)
            is_shown = version is not None and placed.leads_there(bucket, version.key, token)
    except (FsreplError, OSError) as error:
        log.warning('not looked at bucket=%s content="%s": %s', event.address, keys.shown(name), reason(error))
        begin(region, state, epoch=event.epoch)
        return
    if version is None:
        return  # of a version that is gone, or another bucket's
    if is_shown:
        region.changes.add(event.address, [version.key], event.epoch, event.flags & ~CONTENT)
    elif event.flags & CLOSED and version.place is not None and version.place.token == token:
        state.damaged.append(Damaged(event.address, version.key, version.id))


def step(region: Region) -> bool:
    """Continue the scans of each bucket for a moment; whether there were any."""
    busy = False
    for state in region.states.values():
        if not state.is_up or not state.scans or region.changes.is_full(state.bucket.address):
            continue
        busy = True
        with region.at_work(state):
            try:
                _step(region, state)
            except FsreplError as error:
                log.warning("scan stopped bucket=%s: %s", state.bucket.address, error)
                region.suspend(state, Phase.AWAY, str(error))
    return busy


def _step(region: Region, state: BucketState) -> None:
    engine = region.engine
    until_s = time.monotonic() + _STEP_S
    is_replica = region.has_sources(state.bucket.address)

    def listed(path: bytes) -> None:
        following.note(state, path, notified=state.is_scanned)
        if is_replica:
            resting.note(state, path)

    with state.bucket.open() as bucket:
        while time.monotonic() < until_s and (scan := state.scans.next()) is not None:
            if not (scan.top or scan.seen):
                tier_watches.watch(region, state, bucket)  # before the listing, as the directories'
            done = advance(
                scan, bucket, engine.journal.versions, region.changes, engine.watcher, state.trouble,
                state.views.stale.__contains__, _STEP_S, listed,
            )  # fmt: skip
            if not done:
                return
            # a file that could not be read is in no listing: nothing else shows that it is gone
            closed = [key for key in state.captures.unreadable if is_below(key, scan.top)]
            region.changes.add(scan.address, closed, scan.epoch, FOUND)
            state.scans.done(scan)
            state.looked_through(scan)
            _report_polled(state)
            if not scan.top:
                _finished(state, scan)
                engine.notify()


def _finished(state: BucketState, scan: Scan) -> None:
    """Note that a whole bucket was scanned."""
    state.scan_times.began_ns = scan.began_ns
    address = state.bucket.address
    if not state.is_scanned:
        log.info(
            "scanned bucket=%s directories=%d files=%d changed=%d",
            address, scan.directories, scan.files, scan.queued,
        )  # fmt: skip
    elif scan.queued:
        log.info("scan found bucket=%s changed=%d", address, scan.queued)
    state.phase = Phase.ONLINE
    state.views.look_for_links()


def _report_polled(state: BucketState) -> None:
    """Log that the kernel gives no more watches, once until it does again."""
    polled = len(state.trouble.polled)
    if polled and not state.scan_times.reported_polled:
        log.warning(
            "not watched bucket=%s directories=%d: the kernel gives no more watches; they are scanned every few "
            "seconds instead; `fsrepl doctor` shows how many are needed",
            state.bucket.address, polled,
        )  # fmt: skip
    state.scan_times.reported_polled = bool(polled)
