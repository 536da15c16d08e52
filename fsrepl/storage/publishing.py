"""Publication of staged versions in the store, outside the batches of capture and replication.

A version's file is durable before it gets its name, and its name before the version is reported. capture/ingest.py and
replicate/publish.py keep the same order, with further steps in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.sync import Syncer


def publish(
    syncer: Syncer, bucket: OpenBucket, staged: Sequence[versions.Staged], *, also: Sequence[tuple[int, bytes]] = ()
) -> None:
    """Make staged versions durable, then give them their names in the store, durably.

    also: other files, (directory, name) each, to be made durable first. Raises OSError; the next start then removes
    staged files that have no name in the store yet.
    """
    if not staged:
        return
    syncer.staged(bucket, [*also, *((bucket.tmp, each.name) for each in staged)])
    publish_durable(bucket, staged)


def publish_durable(bucket: OpenBucket, staged: Sequence[versions.Staged]) -> None:
    """Durably give versions their names in the store; their files are already durable, for instance with an intent."""
    for each in staged:
        versions.publish(bucket, each)
    bucket.sync()
