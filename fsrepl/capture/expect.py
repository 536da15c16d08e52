"""A large file is announced to its destinations while it is captured.

Meanwhile they copy it, or, where it has changed little, put it together from the version that they have and the blocks
that are other ones, as these are cut: see replicate/early.py. An announcement is a hint. The capture may end without a
version, and the rules choose the destinations of a version after it was captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from msgspec.structs import replace

from fsrepl.errors import FsreplError
from fsrepl.model import attributes, blockmap
from fsrepl.model.address import region_of
from fsrepl.model.version import Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.expected import Expected
from fsrepl.region.mailbox import Expect, ExpectNoMore
from fsrepl.region.region import Region
from fsrepl.s3 import rules
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.coming_blocks import ComingBlocks
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
    """Announce a file; what was announced. Called by a background worker. in_effect: see rules.choose."""
    expected: Expected | None = None
    with contextlib.suppress(OSError, FsreplError):
        expected = _expected(region, bucket, key, known, in_effect)
    if expected is not None:
        for destination in expected.version.deliveries:
            _tell(region, Expect(destination, expected))
    return expected


def _expected(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, in_effect: Collection[str] | None
) -> Expected | None:  # fmt: skip
    """The announcement of a file; none where it has other names, and may be known under them. Raises OSError,
    FsreplError."""
    fd = bucket.open_view(key)
    try:
        found = bucket.fs.stat_fd(fd)
        if not bucket.fs.is_regular(found) or found.st_nlink > 1:
            return None
        raw, acl = view_metadata(bucket, fd)
        digest = b""
        if known is not None and not known.marker:
            if (before := versions.read(bucket, key, known.id, marker=False)) is None:
                return None
            if _has_changed_little(bucket, fd, before):
                digest = before.digest
            elif blockmap.average_of(before.size) != blockmap.average_of(found.st_size):
                return None  # it may have the same content in other blocks
    finally:
        bucket.fs.close(fd)
    version = Version(
        key, "", 0, size=found.st_size, posix=posix_of(found, acl), attrs=attributes.own(raw), tags=attributes.tags(raw)
    )
    chosen = rules.choose(bucket.bucket.replication, version, in_effect=in_effect)
    deliveries = {address: each for address, each in chosen.items() if _is_tree(region, address)}
    if not deliveries:
        return None
    return Expected(bucket.address, replace(version, deliveries=deliveries), digest, ComingBlocks())


def end(region: Region, state: BucketState, expected: Expected | None, *, is_published: bool) -> None:
    """Tell the destinations that the capture has ended, once the deliveries of a new version are handed over."""
    state.captures.announced = None
    if expected is None:
        return
    if not is_published:
        state.captures.unsteady.add(expected.key)
    for destination in expected.version.deliveries:
        _tell(region, ExpectNoMore(destination, expected, is_published))


def _tell(region: Region, message: Expect | ExpectNoMore) -> None:
    if (there := region.regions.get(region_of(message.destination))) is not None:
        there.post(message)


def _is_tree(region: Region, destination: str) -> bool:
    """Whether a destination is a tree of this site."""
    return destination in region.engine.site.buckets and region_of(destination) in region.regions


def _has_changed_little(bucket: OpenBucket, fd: int, version: Version) -> bool:
    """Whether samples of an open file are as in a version. Raises OSError, FsreplError."""
    fs = bucket.fs
    size = min(fs.stat_fd(fd).st_size, version.size)
    step = size // _SAMPLES // _SAMPLE_BYTES * _SAMPLE_BYTES
    if not step or size < version.size // 2:
        return False
    before = versions.open_content(bucket, version)
    try:
        equal = sum(
            fs.read_at(fd, _SAMPLE_BYTES, number * step) == fs.read_at(before, _SAMPLE_BYTES, number * step)
            for number in range(_SAMPLES)
        )
    finally:
        fs.close(before)
    return equal >= _SAMPLES * 3 // 4
