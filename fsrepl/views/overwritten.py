"""Stored versions whose content or record is lost, or may be, since users could write to their files.

An intent notes each of them until it was examined and is whole (repair/refetch.py). After a crash nothing else leads to
a version that no view shows: without the intent it would stay damaged until the scrub reads it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping

from fsrepl.errors import FsreplError
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.view_state import Overwritten
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Act, Intent, drop_intents, write_intents
from fsrepl.storage.sync import Syncer

At = tuple[bytes, str]
"""A key and a version id."""


def note(syncer: Syncer, state: BucketState, bucket: OpenBucket, found: Iterable[At], *, later_s: float = 0.0) -> None:
    """Note durably that versions are to be repaired where they are not whole. Raises OSError. later_s: when they are
    looked at first, where that was just done."""
    made = []
    for at in found:
        if (known := state.views.overwritten.get(at)) is not None:
            known.is_noted_again = True
        else:
            due_s = time.monotonic() + later_s if later_s else 0.0
            state.views.overwritten[at] = Overwritten(write(bucket, at), due_s)
            made.append((bucket.intents, state.views.overwritten[at].intent))
    if made:
        syncer.staged(bucket, made)


def resume(state: BucketState, found: Mapping[At, bytes]) -> None:
    """Take over what the intents say after a start: by key and version, the intent that records it."""
    for at, intent in found.items():
        state.views.overwritten.setdefault(at, Overwritten(intent))


def forget(state: BucketState, at: At) -> None:
    """A version is whole again, or was removed for good: its intent is removed."""
    known = state.views.overwritten.pop(at)
    with contextlib.suppress(FsreplError, OSError), state.bucket.open() as bucket:  # else the next start drops it
        drop_intents(bucket, known.intent)


def write(bucket: OpenBucket, at: At, was: View | None = None) -> bytes:
    """Write the intent of one version, not durable until synced; its name. Raises OSError. was: its view before that
    was written into, if it surely was: the content of its file is no evidence of the version then."""
    return write_intents(bucket, [Intent(*at, was, Act.FETCH)])
