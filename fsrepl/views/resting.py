"""Times of directories in a tree bucket: a replica's directory gets its source's mtime once nothing changes in it.

A directory's mtime changes with each entry, so it is no part of its object, and versions do not carry it. Each change
that the daemon makes in a replica's directory, in whatever part of it, postpones the moment, so that its time is set
once a burst. After a crash the next scan of the directory queues it again.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping

from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model.version import Version
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.region.view_state import Resting
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import folders

_REST_S = 2.0
_BATCH = 256


def note(state: BucketState, path: bytes) -> None:
    """Note that the time of a directory may differ from its source's."""
    if path and state.bucket.trees and path not in state.views.resting:
        state.views.resting[path] = Resting(time.monotonic() + _REST_S)


def _note_touched(state: BucketState) -> None:
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
        _note_touched(state)
        due_s = next_s(state)
        if not state.is_up or due_s is None or due_s > now_s:
            continue
        busy = True
        due = {
            path: each for path, each in itertools.islice(state.views.resting.items(), _BATCH) if each.due_s <= now_s
        }
        for path in due:
            del state.views.resting[path]
        with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
            _set_times(region, bucket, due)
    return busy


def _set_times(region: Region, bucket: OpenBucket, due: Mapping[bytes, Resting]) -> None:
    """Set the times of directories, and record how these look then: their ctimes have changed."""
    journal = region.engine.journal
    seen: list[tuple[bytes, View | None]] = []
    with region.engine.site.open_sources(bucket.address) as sources:  # of one that is away nothing is known
        known = journal.versions.look_up(bucket.address, [path + b"/" for path in due] if sources else [])
        for path, resting in due.items():
            key = path + b"/"
            row = known.get(key)
            if row is None or row.marker or row.view is None or row.view.shown != row.id:
                continue
            with contextlib.suppress(OSError, StoreDamaged):  # gone, or not the daemon's to change
                version, origin = None, resting.source
                if row.id != resting.version_id:
                    version = versions.read(bucket, key, row.id, marker=False)
                    origin = version.source if version is not None else ""
                source = sources.get(origin)
                if source is not None and (view := _set_time(bucket, source, key, row.view, version)) is not None:
                    seen.append((key, view))
    journal.views.see_all(bucket.address, seen)


def _set_time(
    bucket: OpenBucket, source: OpenBucket, key: bytes, view: View, version: Version | None
) -> View | None:  # fmt: skip
    """Set the time of a directory through its descriptor; how it looks then, if no user has changed its metadata.

    What is made or removed in it changes its ctime too, so that its metadata is compared with that of the version shown
    where the ctime is not the recorded one. version: the record of that, where it was read already.
    """
    mtime_ns = source.fs.stat_fd(source.views.get(key[:-1])).st_mtime_ns
    fd = bucket.views.get(key[:-1])
    found = bucket.fs.stat_fd(fd)
    if found.st_mtime_ns == mtime_ns or not view.has_content_of(found):
        return None
    is_changed = False
    if not view.is_same(found):
        version = version or versions.read(bucket, key, view.shown, marker=False)
        is_changed = version is None or versions.has_lost_record(version) or not folders.shows(bucket, fd, version)
    # RACE: an attribute or ACL that a user changes now, within two calls, stays unrecorded until the next change.
    bucket.fs.set_mtime(fd, mtime_ns)
    now = bucket.fs.stat_fd(fd)
    if is_changed or (now.st_mode, now.st_uid, now.st_gid) != (found.st_mode, found.st_uid, found.st_gid):
        return None  # the next look records the change
    return bucket.view(now, view.shown, racy=view.racy)
