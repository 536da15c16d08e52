"""Which keys may have changed, by looking: the one that knows for sure.

A scan goes through a bucket's directories, arms each watch before it lists, and marks every key
whose view is not as recorded. It runs at start, after events were lost, where a directory appeared,
and every rescan_s. It works in steps, so that live changes are not kept waiting behind it.
"""

from __future__ import annotations

from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object


def is_recorded(known: Object | None, bucket: OpenBucket, fd: int, name: bytes) -> bool:
    if known is None or known.marker or known.view is None or known.view.racy or known.view.shown != known.id:
        return False
    try:
        found = bucket.fs.stat(fd, name)
    except OSError:
        return False
    return known.view.is_like(found) and known.view.mode == found.st_mode & 0o7777
