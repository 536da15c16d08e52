"""Changes that tell of what the daemon did itself: most of them need no inspection of their key."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fsrepl.capture import look
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import CLOSED, FOUND, GONE, Change
from fsrepl.region.region import Region
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object
from fsrepl.views import stale

_GLANCES = 64
"""Number of keys between two looks at the clock."""


def without_own(
    region: Region, state: BucketState, bucket: OpenBucket, changes: Sequence[Change],
    objects: Mapping[bytes, Object], until_s: float,
) -> list[Change]:  # fmt: skip
    """The changes that are to be looked at, and those that no time was left for.

    Most others tell of what the daemon did itself, which makes events too: of labels that it wrote and views that it
    made, which are as recorded, and of views that it removed, as of replicas and expired objects, and of which nothing
    was heard since. A key for which something else is to be done is among the changes.
    """
    now, views = state.captures, state.views
    queues = now.deferred, views.stale, now.copying, views.unapplied, now.set_aside, now.faults, now.unreadable
    waits = [each for each in queues if each]  # mostly none
    left: list[Change] = []
    for number, change in enumerate(changes):
        if number % _GLANCES == _GLANCES - 1 and time.monotonic() > until_s:
            return [*left, *changes[number:]]
        _, key, flags, _, _ = change
        known = objects.get(key)
        if (
            known is None
            or flags & (CLOSED | FOUND)
            or (flags & GONE and (flags != GONE or not known.marker or known.view is not None))
            or (waits and any(key in each for each in waits))
            or not (flags & GONE or _is_as_recorded(bucket, key, known))
        ):
            left.append(change)
        elif flags & GONE:
            state.note_skipped(key, there=False)
            stale.retry_blocked(region, state)
    return left


def _is_as_recorded(bucket: OpenBucket, key: bytes, known: Object) -> bool:
    """Whether the file or directory of a key is as recorded."""
    if known.view is None or known.view.is_link:
        return False
    try:
        return look.is_unchanged(known, bucket.view_status(key))
    except OSError:
        return False
