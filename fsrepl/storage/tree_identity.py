"""The identity of the tree that the journal has indexed. A copy of the tree, or an older state of it, has another."""

from __future__ import annotations

import contextlib
import time

from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal

_INDEXED = b"indexed"
"""An empty file in .fsrepl. Its ctime distinguishes the journal that has indexed the tree from any older one."""


def sign(bucket: OpenBucket, journal: Journal) -> None:
    """Sign a tree as indexed by this journal, when work in it begins and when it ends.

    An older copy of the journal, such as a restored backup or a snapshot, no longer matches the tree. Neither does
    a journal of another site that had the tree meanwhile. Such rows are read again.
    """
    fs = bucket.fs
    with contextlib.suppress(OSError):  # where nothing can be changed, nothing can differ
        try:
            fd = fs.open_read(bucket.meta, _INDEXED)
        except FileNotFoundError:
            fd = fs.create(bucket.meta, _INDEXED)
        try:
            fs.set_mtime(fd, time.time_ns())  # ctime follows, and no program can set it
        finally:
            fs.close(fd)
    journal.set_tree(bucket.address, tree_of(bucket))


def tree_of(bucket: OpenBucket) -> str:
    """The identity of a tree, which differs from that of a copy and of an older state of it. See sign.

    A copy has other inodes, and its attributes may be gone.
    """
    identity = bucket.fs.stat(bucket.meta, b"bucket.json")
    try:
        indexed_ns = bucket.fs.stat(bucket.meta, _INDEXED).st_ctime_ns
    except FileNotFoundError:
        indexed_ns = 0
    return f"{bucket.fs.stat_fd(bucket.versions).st_ino} {identity.st_ino} {identity.st_ctime_ns} {indexed_ns}"
