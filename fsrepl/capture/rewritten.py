"""Reports a bucket in which many files were rewritten with what looks encrypted (region/rewrites.py decides)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

from fsrepl.capture.apply import NewVersion
from fsrepl.errors import FsreplError
from fsrepl.model.version import Kind
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.region.rewrites import has_high_entropy
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket

log = logging.getLogger("fsrepl")

_START_BYTES = 4096


def note(region: Region, state: BucketState, bucket: OpenBucket, published: Sequence[NewVersion]) -> None:
    """Count new versions of existing keys; a warning, an event and a count where they are too many at once."""
    rewrites, now_s, many = state.captures.rewrites, time.monotonic(), False
    for new in published:
        taken, known = new.taken, new.known
        if taken is None or known is None or known.marker or taken.size == 0:
            continue
        start = taken.data if taken.data is not None else _start_of(bucket, new.version.key, new.version.id)
        if has_high_entropy(start):
            many |= rewrites.add(new.version.key, known.id, now_s)
    if not many or not rewrites.is_many(region.engine.journal.totals.counts(bucket.address).objects):
        return
    number = len(rewrites.keys)
    if rewrites.is_alarming(list(_entropy_before(bucket, rewrites.sample())), now_s):
        log.warning(
            "rewritten bucket=%s keys=%d: their new content looks encrypted; the versions before it are kept",
            bucket.address, number,
        )  # fmt: skip
        with region.engine.journal.transaction():
            region.engine.journal.add_rewrites(bucket.address)
        region.engine.reporter.announce_rewrites(bucket.address, number)


def _entropy_before(bucket: OpenBucket, sample: dict[bytes, str]) -> Iterator[bool]:
    """Of the versions before, whether their entropy is high; of those that can be read."""
    for key, version_id in sample.items():
        if start := _start_of(bucket, key, version_id):
            yield has_high_entropy(start)


def _start_of(bucket: OpenBucket, key: bytes, version_id: str) -> bytes:
    with contextlib.suppress(OSError, FsreplError):
        version = versions.read(bucket, key, version_id, marker=False)
        if version is not None and version.kind is Kind.FILE:
            fd = versions.open_content(bucket, version)
            try:
                return bucket.fs.read_at(fd, _START_BYTES, 0)
            finally:
                bucket.fs.close(fd)
    return b""
