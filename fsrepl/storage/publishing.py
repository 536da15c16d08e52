"""How versions that lie staged get into the store, outside the batches of capture and replication.

Durable before they have a name, and a durable name before anybody is told: capture/ingest.py and replicate/publish.py
keep the same order, with steps of their own in between.
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

    also: other files, (directory, name) each, that must be durable before. Raises OSError; what is staged then and has
    no name yet is swept at the next start.
    """
    if not staged:
        return
    syncer.staged(bucket, [*also, *((bucket.tmp, each.name) for each in staged)])
    publish_durable(bucket, staged)


def publish_durable(bucket: OpenBucket, staged: Sequence[versions.Staged]) -> None:
    """Give versions whose files are durable already, with an intent say, their names in the store, durably."""
    for each in staged:
        versions.publish(bucket, each)
    bucket.sync()
