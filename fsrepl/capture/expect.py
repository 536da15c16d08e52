"""A large file that is new, or has changed little, is announced to its destinations while it is captured.

Meanwhile they copy it, or the version that they have, since most of the new content is in that: see
replicate/early.py. An announcement is a hint. The capture may end without a version, and the rules choose the
destinations of a version after it was captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from msgspec.structs import replace

from fsrepl.errors import FsreplError
from fsrepl.model import attributes
from fsrepl.model.address import region_of
from fsrepl.model.version import Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.expected import Expected
from fsrepl.region.mailbox import Expect, ExpectNoMore
from fsrepl.region.region import Region
from fsrepl.s3 import rules
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.posix import posix_of, view_metadata

_WORTH_BYTES = 64 << 20
"""A smaller file is captured before a destination has done much."""
_SAMPLES, _SAMPLE_BYTES = 16, 4096
"""The parts of a file that are compared with the version before, and the size of each; three quarters must be equal."""


def may_be_announced(state: BucketState, key: bytes, size_bytes: int) -> bool:
    """Whether a file is examined for an announcement: one of a bucket at a time, and no file whose last announcement
    led to no version."""
    return size_bytes >= _WORTH_BYTES and state.captures.announced is None and key not in state.captures.unsteady


def announce(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, in_effect: Collection[str] | None
) -> Expected | None:
    """Announce a file where its key is new, or it is much like its current version; what was announced. Called by a
    background worker. in_effect: see rules.choose."""
    expected: Expected | None = None
    with contextlib.suppress(OSError, FsreplError):
        if known is None:
            expected = _new(region, bucket, key, in_effect)
        elif not known.marker:
            expected = _updated(region, bucket, key, known)
    if expected is None or not expected.destinations:
        return None
    for destination in expected.destinations:
        _tell(region, Expect(destination, expected))
    return expected


def _new(
    region: Region, bucket: OpenBucket, key: bytes, in_effect: Collection[str] | None
) -> Expected | None:  # fmt: skip
    """The announcement of a key without versions; none where its file has other names, and may be known under them."""
    fd = bucket.open_view(key)
    try:
        found = bucket.fs.stat_fd(fd)
        if not bucket.fs.is_regular(found) or found.st_nlink > 1:
            return None
        raw, acl = view_metadata(bucket, fd)
    finally:
        bucket.fs.close(fd)
    version = Version(
        key, "", 0, size=found.st_size, posix=posix_of(found, acl), attrs=attributes.own(raw), tags=attributes.tags(raw)
    )
    chosen = rules.choose(bucket.bucket.replication, version, in_effect=in_effect)
    destinations = tuple(each for each in chosen if _is_tree(region, each))
    return Expected(bucket.address, key, b"", destinations, replace(version, deliveries=chosen))


def _updated(region: Region, bucket: OpenBucket, key: bytes, known: Object) -> Expected | None:
    """The announcement of an update of which little has changed."""
    replication, version = bucket.bucket.replication, versions.read(bucket, key, known.id, marker=False)
    if replication is None or version is None or not _has_changed_little(bucket, version):
        return None
    found = rules.winners(replication.rules, key, version.tags, marker=False)
    return Expected(bucket.address, key, known.digest, tuple(each for each in found if _copies(region, each)))


def end(region: Region, state: BucketState, expected: Expected | None, *, is_published: bool) -> None:
    """Tell the destinations that the capture has ended, once the deliveries of a new version are handed over."""
    state.captures.announced = None
    if expected is None:
        return
    if not is_published:
        state.captures.unsteady.add(expected.key)
    for destination in expected.destinations:
        _tell(region, ExpectNoMore(destination, expected, is_published))


def _tell(region: Region, message: Expect | ExpectNoMore) -> None:
    if (there := region.regions.get(region_of(message.destination))) is not None:
        there.post(message)


def _is_tree(region: Region, destination: str) -> bool:
    """Whether a destination is a tree of this site."""
    return destination in region.engine.site.buckets and region_of(destination) in region.regions


def _copies(region: Region, destination: str) -> bool:
    """Whether a destination is a tree of this site that copies an update, and does not make it by a reflink."""
    if not _is_tree(region, destination):
        return False
    there = region.engine.site.buckets[destination]
    return there.sharing == "private" or there.reflinks is not True


def _has_changed_little(bucket: OpenBucket, version: Version) -> bool:
    """Whether samples of a key's file are as in its version. Raises OSError, FsreplError."""
    fs = bucket.fs
    with contextlib.ExitStack() as opened:
        opened.callback(fs.close, now := bucket.open_view(version.key))
        opened.callback(fs.close, before := versions.open_content(bucket, version))
        size = min(fs.stat_fd(now).st_size, version.size)
        step = size // _SAMPLES // _SAMPLE_BYTES * _SAMPLE_BYTES
        if not step or size < version.size // 2:
            return False
        equal = sum(
            fs.read_at(now, _SAMPLE_BYTES, number * step) == fs.read_at(before, _SAMPLE_BYTES, number * step)
            for number in range(_SAMPLES)
        )
        return equal >= _SAMPLES * 3 // 4
