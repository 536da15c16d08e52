"""Directories that replication made get the permissions of their sources' directories, within a moment.

Events and scans name the directories to compare again. A source records a directory's permissions, and notifies its
destinations; a destination, in the thread of its own region, compares the directory it made with those of its
sources. A lost message does no harm: a scan of either side, as after a start, finds the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Origin
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.mailbox import LookAtDirectories
from fsrepl.region.region import Region
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import directories, narrowing, resting

_BATCH = 256


def note(state: BucketState, path: bytes, *, notified: bool = False) -> None:
    """Note a directory that may have to be changed, or its replicas. notified: the replicas know."""
    if path:
        state.views.directories[path] = state.views.directories.get(path, notified) and notified


def look_due(region: Region) -> bool:
    """Compare the noted directories; whether there were any."""
    busy = False
    for state in region.states.values():
        if not state.is_up or not state.views.directories:
            continue
        busy = True
        paths = [*state.views.directories][:_BATCH]
        unnotified = {path for path in paths if not state.views.directories.pop(path)}
        with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
            look(region, state, bucket, paths, unnotified)
    return busy


def look_before_showing(region: Region, state: BucketState, bucket: OpenBucket, found: Iterable[bytes]) -> None:
    """Before views are shown without a delivery: make their directories admit no more people than their sources'."""
    paths = directories.with_parents(keys.split(key)[0] for key in found)
    if paths:
        look(region, state, bucket, paths, set())


def look_before_recovery(region: Region, state: BucketState, bucket: OpenBucket, found: Iterable[bytes]) -> None:
    """Look at the directories of keys of intents, after a crash. Directories that are made for replicas get a record
    first, as in a delivery: without one they would be taken for their users'. While a source is away, they are the
    daemon's alone.
    """
    wanted = list(found)
    look_before_showing(region, state, bucket, wanted)
    by_source: dict[str, list[bytes]] = {}
    for key, known in region.engine.journal.versions.look_up(bucket.address, wanted).items():
        with contextlib.suppress(StoreDamaged):
            version = None if known.marker else versions.read(bucket, key, known.id, marker=False)
            if version is not None and version.origin is Origin.REPLICA:
                by_source.setdefault(version.source, []).append(keys.place(key)[0])
    for address, paths in by_source.items():
        with contextlib.ExitStack() as closing:
            sources: dict[str, directories.RightsAt] = {address: _unknown}
            with contextlib.suppress(FsreplError):
                sources = directories.readers(
                    {address: closing.enter_context(region.engine.site.bucket(address).open())}
                )
            follower = directories.Follower(bucket, sources, narrowing.Narrower(region.engine, bucket))
            for path in paths:
                with contextlib.suppress(OSError):  # then the view is shown later, and its directory looked at again
                    follower.before_showing(path)


def _unknown(path: bytes) -> None:
    """The rights of directories at a source that is away."""


def look(
    region: Region, state: BucketState, bucket: OpenBucket, paths: Iterable[bytes], unnotified: set[bytes]
) -> None:
    """Give directories the permissions of their sources, and notify their replicas of changes."""
    changed: set[bytes] = set()
    with region.engine.site.open_sources(bucket.address) as sources:  # one that is away has no news
        follower = directories.Follower(bucket, directories.readers(sources), narrowing.Narrower(region.engine, bucket))
        for path in paths:
            with contextlib.suppress(OSError):  # gone, or without a version in it: nothing to do
                follower.follow(path)
                if state.bucket.replication is not None and (directories.remember(bucket, path) or path in unnotified):
                    changed.add(path)
    if changed:
        notify(region, state, changed)


def notify(region: Region, state: BucketState, paths: Iterable[bytes]) -> None:
    """Have the destinations compare their directories."""
    replication = state.bucket.replication
    for destination in {rule.destination for rule in replication.rules} if replication else ():
        other = region.receivers.get(region_of(destination))
        if other is not None:
            other.post(LookAtDirectories(destination, frozenset(paths)))


def note_all(region: Region, address: str, paths: Iterable[bytes]) -> None:
    """Note changed source directories of directories in a bucket."""
    state = region.states.get(address)
    if state is not None and state.is_up:
        for path in paths:
            note(state, path, notified=True)
            resting.note(state, path)


def restore(region: Region, address: str, path: bytes) -> None:
    """Give a directory that replication made its sources' permissions, also where they were changed here. Raises
    OSError."""
    state = region.ready(address)
    with contextlib.ExitStack() as closing:
        bucket = closing.enter_context(state.bucket.open())
        sources = {
            source: closing.enter_context(region.engine.site.bucket(source).open())
            for source in directories.replicated(bucket, path).sources
            if source in region.engine.site.buckets
        }
        directories.Follower(bucket, directories.readers(sources)).follow(path, anew=True)
