"""Times of directories in a tree bucket: a replica's directory gets its source's mtime once nothing changes in it.

A directory's mtime changes with each entry, so it is no part of its object, and versions do not carry it. Each change
that the daemon makes in a replica's directory, in whatever part of it, postpones the moment, so that its time is set
once a burst. After a crash the next scan of the directory queues it again. Where the source is on another machine, it
is asked for the time then, and an answer that is lost is made up for by the next scan as well.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model.version import Version
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region, TimeAt
from fsrepl.region.view_state import Resting
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.site import Site
from fsrepl.views import folders

_REST_S = 2.0
_BATCH = 256


def note(state: BucketState, path: bytes) -> None:
    """Note that the time of a directory may differ from its source's."""
    if path and state.bucket.trees and path not in state.views.resting:
        state.views.resting[path] = Resting(time.monotonic() + _REST_S)


def note_touched(state: BucketState) -> None:
    """Note the directories in which the daemon has changed something."""
    touched, due_s = state.bucket.touched, time.monotonic() + _REST_S
    while touched:  # a background worker may add to it
        if path := touched.pop():
            known = state.views.resting.pop(path, Resting(0.0))  # the order of the dict is that of the times
            state.views.resting[path] = replace(known, due_s=due_s)


def note_shown(state: BucketState, version: Version) -> None:
    """Note that a directory shows a replicated version now, so that this need not be read again."""
    path = version.key[:-1]
    state.views.resting.pop(path, None)
    state.views.resting[path] = Resting(time.monotonic() + _REST_S, version.id, version.source)


def next_s(state: BucketState) -> float | None:
    """The monotonic time when the next directory is at rest."""
    return next((each.due_s for each in state.views.resting.values()), None)


def rest_due(region: Region) -> bool:
    """Set the times of directories that are at rest; whether there were any."""
    busy, now_s = False, time.monotonic()
    for state in region.states.values():
        note_touched(state)
        due_s = next_s(state)
        if not state.is_up or due_s is None or due_s > now_s:
            continue
        busy = True
        due = {
            path: each for path, each in itertools.islice(state.views.resting.items(), _BATCH) if each.due_s <= now_s
        }
        for path in due:
            del state.views.resting[path]
        if not region.has_sources(state.bucket.address):
            continue
        with (
            contextlib.suppress(FsreplError),
            state.bucket.open() as bucket,
            region.source_times(bucket.address) as time_at,
        ):
            _set_times(region, bucket, due, time_at)
    return busy


@contextlib.contextmanager
def times_here(site: Site, address: str) -> Iterator[TimeAt]:
    """Tells the times of directories at the sources of a bucket that can be read now."""
    with site.open_sources(address) as sources:  # of one that is away nothing is known
        yield lambda source, path: mtime_ns(sources[source], path) if source in sources else None


def mtime_ns(bucket: OpenBucket, path: bytes) -> int:
    """The modification time of a directory. Raises OSError."""
    return bucket.fs.stat_fd(bucket.views.get(path)).st_mtime_ns


def set_received(region: Region, state: BucketState, source: str, mtimes_ns: Mapping[bytes, int]) -> None:
    """Set the times that directories have at a source, which has sent them, except where something has changed since
    they were asked for: those directories come to rest once more."""
    note_touched(state)
    due = {path: Resting(0.0) for path in mtimes_ns if path not in state.views.resting}
    with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
        _set_times(region, bucket, due, lambda address, path: mtimes_ns[path] if address == source else None)


def _set_times(region: Region, bucket: OpenBucket, due: Mapping[bytes, Resting], time_at: TimeAt) -> None:
    """Set the times of directories, and record how these look then: their ctimes have changed."""
    journal = region.engine.journal
    seen: list[tuple[bytes, View | None]] = []
    known = journal.versions.look_up(bucket.address, [path + b"/" for path in due])
    for path, resting in due.items():
        key = path + b"/"
        row = known.get(key)
        if row is None or row.marker or row.view is None or row.view.shown != row.id:
            continue
        with contextlib.suppress(OSError, StoreDamaged):  # gone, or not the daemon's to change
            version, source = None, resting.source
            if row.id != resting.version_id:
                version = versions.read(bucket, key, row.id, marker=False)
                source = version.source if version is not None else ""
            time_ns = time_at(source, path) if source else None
            if time_ns is not None and (view := _set_time(bucket, time_ns, key, row.view, version)) is not None:
                seen.append((key, view))
    journal.views.see_all(bucket.address, seen)


def _set_time(bucket: OpenBucket, time_ns: int, key: bytes, view: View, version: Version | None) -> View | None:
    """Set the time of a directory through its descriptor; how it looks then, if no user has changed its metadata.

    What is made or removed in it changes its ctime too, so that its metadata is compared with that of the version shown
    where the ctime is not the recorded one. version: the record of that, where it was read already.
    """
    fd = bucket.views.get(key[:-1])
    found = bucket.fs.stat_fd(fd)
    if found.st_mtime_ns == time_ns or not view.has_content_of(found):
        return None
    is_changed = False
    if not view.is_same(found):
        version = version or versions.read(bucket, key, view.shown, marker=False)
        is_changed = version is None or versions.has_lost_record(version) or not folders.shows(bucket, fd, version)
    # RACE: an attribute or ACL that a user changes now, within two calls, stays unrecorded until the next change.
    bucket.fs.set_mtime(fd, time_ns)
    now = bucket.fs.stat_fd(fd)
    if is_changed or (now.st_mode, now.st_uid, now.st_gid) != (found.st_mode, found.st_uid, found.st_gid):
        return None  # the next look records the change
    return bucket.view(now, view.shown, racy=view.racy)
