"""Staged files in .fsrepl/tmp: their names, and removal after a crash."""

from __future__ import annotations

import contextlib
import itertools
import os

from fsrepl.model import keys
from fsrepl.storage.bucket import BARRIER, OpenBucket
from fsrepl.storage.fs import FileType

# -- after a crash


def sweep(bucket: OpenBucket) -> int:
    """Remove an earlier process's files from .fsrepl/tmp; their number."""
    swept = 0
    for name, kind in list(bucket.fs.entries(bucket.tmp)):
        if name != BARRIER:
            with contextlib.suppress(OSError):
                remove = bucket.fs.remove_dir if kind is FileType.DIRECTORY else bucket.fs.unlink
                remove(bucket.tmp, name)
                swept += 1
    return swept


_numbers = itertools.count()


def token() -> bytes:
    """A unique name for a staged file in .fsrepl/tmp."""
    return b"%d.%d" % (os.getpid(), next(_numbers))


def unstage(bucket: OpenBucket, name: bytes) -> None:
    for each in (name, name + keys.SIDECAR):
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(bucket.tmp, each)
