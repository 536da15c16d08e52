"""Names in .fsrepl/tmp, and what a crash left there."""

from __future__ import annotations

import contextlib
import itertools
import os

from fsrepl.model import keys
from fsrepl.storage.bucket import BARRIER, OpenBucket

# -- after a crash


def sweep(bucket: OpenBucket) -> int:
    """Remove what an earlier process left in .fsrepl/tmp; how much there was."""
    swept = 0
    for entry in list(bucket.fs.entries(bucket.tmp)):
        name = os.fsencode(entry.name)
        if name != BARRIER:
            with contextlib.suppress(OSError):
                remove = bucket.fs.remove_dir if entry.is_dir(follow_symlinks=False) else bucket.fs.unlink
                remove(bucket.tmp, name)
                swept += 1
    return swept


_numbers = itertools.count()


def token() -> bytes:
    """A name for something in .fsrepl/tmp that no other staging uses."""
    return b"%d.%d" % (os.getpid(), next(_numbers))


def unstage(bucket: OpenBucket, name: bytes) -> None:
    for each in (name, name + keys.SIDECAR):
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(bucket.tmp, each)
