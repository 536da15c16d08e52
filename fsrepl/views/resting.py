"""Times of directories in a tree bucket: a replica's directory gets its source's mtime once nothing changes in it.

A directory's mtime changes with each entry, so it is no part of its object, and versions do not carry it. Each change
of a replica's directory puts this off, so that a directory is visited once a burst. A lost visit does no harm: the next
scan of the directory asks again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model.version import Origin, Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket

_REST_S = 2.0
_BATCH = 256


def note(state: BucketState, path: bytes, *, changed: bool) -> None:
    """Note that something changed in a directory, or that its time may differ."""
    if path and state.bucket.trees and (changed or path not in state.resting):
        state.resting.pop(path, None)  # the order of the dict is that of the times
        state.resting[path] = time.monotonic() + _REST_S


def next_s(state: BucketState) -> float | None:
    """The monotonic time when the next directory is at rest."""
    return next(iter(state.resting.values()), None)


def rest_due(region: Region) -> bool:
    """Set the times of directories that are at rest; whether there were any."""
    busy, now_s = False, time.monotonic()
    for state in region.states.values():
        if not state.is_up or not state.resting or next(iter(state.resting.values())) > now_s:
            continue
        busy = True
        paths = [path for path, due_s in [*state.resting.items()][:_BATCH] if due_s <= now_s]
        for path in paths:
            del state.resting[path]
        with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
            _set_times(region, bucket, paths)
    return busy


def _set_times(region: Region, bucket: OpenBucket, paths: Sequence[bytes]) -> None:
    with contextlib.ExitStack() as closing:
        sources: dict[str, OpenBucket] = {}
        for address in region.engine.site.sources_of(bucket.address):
            with contextlib.suppress(FsreplError):  # while it is away nothing is known of it
                sources[address] = closing.enter_context(region.engine.site.buckets[address].open())
        for path in paths:
            with contextlib.suppress(OSError, StoreDamaged):  # gone, or not the daemon's to change
                version = _replica(region, bucket, path + b"/")
                if version is not None and version.source in sources:
                    _set_time(region, bucket, sources[version.source], version)


def _replica(region: Region, bucket: OpenBucket, key: bytes) -> Version | None:
    """The version that a directory shows, if it is a replica."""
    known = region.engine.journal.versions.object(bucket.address, key)
    if known is None or known.marker or known.view is None or known.view.shown != known.id:
        return None
    version = region.engine.recent.version(bucket.address, key, known.id)
    version = version or versions.read(bucket, key, known.id, marker=False)
    return version if version is not None and version.origin is Origin.REPLICA else None


def _set_time(region: Region, bucket: OpenBucket, source: OpenBucket, version: Version) -> None:
    """Set the time of a directory through its descriptor, and record how it looks: its ctime has changed."""
    path, journal = version.key[:-1], region.engine.journal.versions
    mtime_ns = source.fs.stat_fd(source.views.get(path)).st_mtime_ns
    fd = bucket.views.get(path)
    found = bucket.fs.stat_fd(fd)
    known = journal.object(bucket.address, version.key)
    if found.st_mtime_ns == mtime_ns or known is None or known.view is None or not known.view.has_content_of(found):
        return
    bucket.fs.set_mtime(fd, mtime_ns)
    if known.view.is_same(found):  # else it was changed, perhaps by a user, which the next look tells
        journal.see(bucket.address, version.key, bucket.view(bucket.fs.stat_fd(fd), version.id, racy=known.view.racy))
