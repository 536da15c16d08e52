"""Tiers are watched for writes into content that a view shows, from a bucket's first scan on, and again once a tier
that was away is back."""

from __future__ import annotations

import contextlib

from fsrepl.errors import FsreplError
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import WatchLimit
from fsrepl.region.region import Region
from fsrepl.region.scan_queue import Scan
from fsrepl.storage.bucket import OpenBucket

_AGAIN_S = 10.0


def watch(region: Region, state: BucketState, bucket: OpenBucket) -> bool:
    """Watch a bucket's part of each tier that is there; whether one of them was not watched before. Where there are no
    more watches the bucket is scanned every few seconds, and for each wait, as an unwatched directory is."""
    watcher, is_new, state.scan_times.lacks_tier_watch = region.engine.watcher, False, False
    for name in bucket.bucket.root.settings.classes if watcher is not None else ():
        assert watcher is not None
        try:
            is_new |= watcher.watch_contents(bucket.address, name, bucket.tier(name).fd)
        except WatchLimit:
            state.scan_times.lacks_tier_watch = True
        except (FsreplError, OSError):
            pass  # it is away: nobody writes there
    return is_new


def is_due(region: Region, state: BucketState, now_s: float) -> bool:
    """Whether to try again to watch tiers that were away, or were unmounted since."""
    if now_s < state.scan_times.tiers_watch_at_s or not is_incomplete(region, state):
        return False
    state.scan_times.tiers_watch_at_s = now_s + _AGAIN_S
    return True


def is_incomplete(region: Region, state: BucketState) -> bool:
    """Whether a tier is not watched."""
    watcher, classes = region.engine.watcher, state.bucket.root.settings.classes
    return watcher is not None and not all(watcher.is_watching_contents(state.bucket.address, name) for name in classes)


def watch_again(region: Region, state: BucketState) -> None:
    """Watch tiers that may have come back, and have all looked at that was written into them meanwhile."""
    with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
        if watch(region, state, bucket):
            state.scans.add(Scan(bucket.address, epoch=region.engine.epoch))
