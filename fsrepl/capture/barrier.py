"""The barrier of `wait`: a sentinel on the same inotify instance shows that all older events were read."""

from __future__ import annotations

import contextlib
import errno
import time

from fsrepl.capture import schedule
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import WatchLimit
from fsrepl.region.region import Region
from fsrepl.storage import staging
from fsrepl.storage.bucket import BARRIER, OpenBucket
from fsrepl.storage.fs import NO_SPACE

_TAKES_NO_FILE = NO_SPACE | {errno.EROFS}
"""Errors of a filesystem on which not even an empty file can be created."""


def watch_barrier(region: Region, state: BucketState, bucket: OpenBucket) -> None:
    """Watch the directory of a bucket's sentinels, if the kernel gives a watch for it."""
    watcher = region.engine.watcher
    if watcher is None:
        return
    with contextlib.suppress(FileExistsError):
        bucket.fs.make_dir(bucket.tmp, BARRIER)
    fd = bucket.fs.open_dir(bucket.tmp, BARRIER)
    try:
        watcher.watch_barrier(bucket.address, fd)
        state.scan_times.has_barrier = True
    except WatchLimit:
        state.scan_times.has_barrier = False
    finally:
        bucket.fs.close(fd)


def pass_barrier(region: Region, state: BucketState, timeout_s: float) -> int:
    """Begin the epoch after everything done in a bucket before now; changes of earlier epochs are queued, or
    will be by a pending scan. 0 after the timeout. Raises FsreplError where the bucket is away.

    A caller waits, so that settling changes become ready now, and files that were open are inspected again:
    a close through another name of the file makes no event here.
    """
    schedule.poll(region, state)
    schedule.look_at_mounts(region, state)
    epoch = _next_epoch(region, state, timeout_s)
    region.changes.flush_settling(state.bucket.address)
    for later in state.captures.deferred.values():
        if later.opened:
            later.due_s = 0.0
    return epoch


def _next_epoch(region: Region, state: BucketState, timeout_s: float) -> int:
    watcher = region.engine.watcher
    assert watcher is not None
    try:
        if not state.scan_times.has_barrier:
            with state.bucket.open() as bucket:
                watch_barrier(region, state, bucket)
        if state.scan_times.has_barrier:
            return _read_sentinel(region, state, timeout_s)
    except OSError as error:
        if error.errno not in _TAKES_NO_FILE:
            raise
    # There is neither a watch nor room for a sentinel: changes made before now are found by a scan that begins now.
    schedule.begin(region, state, arrived=True)
    return watcher.begin_epoch()


def _read_sentinel(region: Region, state: BucketState, timeout_s: float) -> int:
    """Make a sentinel, and wait until the watcher has read it."""
    watcher = region.engine.watcher
    assert watcher is not None
    name = staging.token()
    with state.bucket.open() as bucket:
        try:
            at = bucket.fs.open_dir(bucket.tmp, BARRIER)
        except FileNotFoundError:
            state.scan_times.has_barrier = False  # removed by a user: the next call makes it again
            return 0
        try:
            bucket.fs.close(bucket.fs.create(at, name))
            try:
                until_s = time.monotonic() + timeout_s
                while name not in watcher.sentinels and time.monotonic() < until_s:
                    region.pause(0.002)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    bucket.fs.unlink(at, name)
        finally:
            bucket.fs.close(at)
    return watcher.sentinels.pop(name, 0)
