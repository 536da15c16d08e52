"""Stored versions whose content or record is lost, or may be, since users could write to their files.

An intent notes each of them until it was examined and is whole (repair/refetch.py). After a crash nothing else leads to
a version that no view shows: without the intent it would stay damaged until the scrub reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fsrepl.region.bucket_state import BucketState
from fsrepl.region.view_state import Overwritten
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Act, Intent, write_intents
from fsrepl.storage.sync import Syncer

At = tuple[bytes, str]
"""A key and a version id."""


def note(syncer: Syncer, state: BucketState, bucket: OpenBucket, found: Iterable[At]) -> None:
    """Note durably that versions are to be repaired where they are not whole. Raises OSError."""
    made = []
    for at in found:
        if at not in state.views.overwritten:
            state.views.overwritten[at] = Overwritten(write(bucket, at))
            made.append((bucket.intents, state.views.overwritten[at].intent))
    if made:
        syncer.staged(bucket, made)


def write(bucket: OpenBucket, at: At) -> bytes:
    """Write the intent of one version, not durable until synced; its name. Raises OSError."""
    return write_intents(bucket, [Intent(*at, None, Act.FETCH)])
