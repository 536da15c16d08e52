"""What a directory of a source lets people do is followed by those that replication made for it, within a moment.

Events and scans say which directories to look at again. A source writes down how a directory is, and tells its
destinations; a destination, in the thread of its own region, compares the directory it made with those of its
sources. Nothing hangs on one message: a scan of either side, as after a start, finds what was missed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from fsrepl.errors import FsreplError
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.mailbox import LookAtDirectories
from fsrepl.region.region import Region
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import directories

_BATCH = 256


def note(state: BucketState, path: bytes, *, told: bool = False) -> None:
    """A directory, or one that it follows, may let people do something else now. told: those that follow it are."""
    if path:
        state.directories[path] = state.directories.get(path, told) and told


def look_due(region: Region) -> bool:
    """Look at directories that were noted; whether there were any."""
    busy = False
    for state in region.states.values():
        if not state.is_up or not state.directories:
            continue
        busy = True
        paths = [*state.directories][:_BATCH]
        tell = {path for path in paths if not state.directories.pop(path)}
        with contextlib.suppress(FsreplError), state.bucket.open() as bucket:
            look(region, state, bucket, paths, tell)
    return busy


def look_before_showing(region: Region, state: BucketState, bucket: OpenBucket, found: Iterable[bytes]) -> None:
    """Views are about to show what they did not, without a delivery: no directory lets in more than its sources do."""
    paths = directories.with_parents(keys.split(key)[0] for key in found)
    if paths:
        look(region, state, bucket, paths, set())


def look(region: Region, state: BucketState, bucket: OpenBucket, paths: Iterable[bytes], tell: set[bytes]) -> None:
    """Bring directories into line with those of their sources, and tell those that follow them what changed."""
    changed: set[bytes] = set()
    with contextlib.ExitStack() as closing:
        sources: dict[str, OpenBucket] = {}
        for address in region.engine.site.sources_of(bucket.address):
            with contextlib.suppress(FsreplError):  # one that is away says nothing new
                sources[address] = closing.enter_context(region.engine.site.buckets[address].open())
        follower = directories.Follower(bucket, sources)
        for path in paths:
            with contextlib.suppress(OSError):  # gone, or without a version in it: nothing is to be done
                follower.follow(path)
                if state.bucket.replication is not None and (directories.remember(bucket, path) or path in tell):
                    changed.add(path)
    if changed:
        _tell(region, state, changed)


def _tell(region: Region, state: BucketState, paths: Iterable[bytes]) -> None:
    """Have the destinations look at theirs."""
    replication = state.bucket.replication
    for destination in {rule.destination for rule in replication.rules} if replication else ():
        other = region.regions.get(region_of(destination))
        if other is not None:
            other.post(LookAtDirectories(destination, frozenset(paths)))


def note_all(region: Region, address: str, paths: Iterable[bytes]) -> None:
    """Directories that some of a bucket follow have changed."""
    state = region.states.get(address)
    if state is not None and state.is_up:
        for path in paths:
            note(state, path, told=True)


def restore(region: Region, address: str, path: bytes) -> None:
    """Give a directory that replication made what its sources have, whatever was changed here. Raises OSError."""
    state = region.ready(address)
    with contextlib.ExitStack() as closing:
        bucket = closing.enter_context(state.bucket.open())
        sources = {
            source: closing.enter_context(region.engine.site.bucket(source).open())
            for source in directories.replicated(bucket, path).sources
            if source in region.engine.site.buckets
        }
        directories.Follower(bucket, sources).follow(path, anew=True)
