"""Staged files in .fsrepl/tmp: their names, and removal after a crash.

A staged file of a large content survives a crash under a name that follows from what it is to become (lasting), so
that the next try goes on with it. All of it is verified: its content is compared with the content that it should have.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time

from fsrepl.errors import Unavailable
from fsrepl.model import digests, keys
from fsrepl.storage.bucket import BARRIER, OpenBucket
from fsrepl.storage.fs import FileType

_LASTING = re.compile(rb"(?:large|early|capture|move)\.[0-9a-f]{32}")
_LASTING_S = 7 * 86_400.0
"""A lasting file that was not written for so long is no longer wanted."""

# -- after a crash


def sweep(bucket: OpenBucket) -> int:
    """Remove an earlier process's files from .fsrepl/tmp, except lasting ones; their number."""
    swept = 0
    for name, kind in list(bucket.fs.entries(bucket.tmp)):
        if name != BARRIER and not _may_last(bucket, name):
            with contextlib.suppress(OSError):
                remove = bucket.fs.remove_dir if kind is FileType.DIRECTORY else bucket.fs.unlink
                remove(bucket.tmp, name)
                swept += 1
    return swept


def sweep_of(bucket: OpenBucket, pid: int) -> None:
    """Remove the staged files of another process of the daemon that has ended. Lasting files are not its."""
    own = b"%d." % pid
    for name in bucket.fs.names(bucket.tmp):
        if name.startswith(own):
            with contextlib.suppress(OSError):
                bucket.fs.unlink(bucket.tmp, name)


def sweep_lasting(bucket: OpenBucket) -> None:
    """Remove the unfinished copies of large files that are not continued."""
    for name, _ in list(bucket.fs.entries(bucket.tmp)):
        if _LASTING.fullmatch(name) and not _may_last(bucket, name):
            unstage(bucket, name)


def _may_last(bucket: OpenBucket, name: bytes) -> bool:
    if _LASTING.fullmatch(name) is None:
        return False
    with contextlib.suppress(OSError):
        return time.time() - bucket.fs.stat(bucket.tmp, name).st_ctime < _LASTING_S  # its mtime may be its object's
    return False


_numbers = itertools.count()


def token() -> bytes:
    """A unique name for a staged file in .fsrepl/tmp."""
    return b"%d.%d" % (os.getpid(), next(_numbers))


def unstage(bucket: OpenBucket, name: bytes) -> None:
    for each in (name, name + keys.SIDECAR):
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(bucket.tmp, each)


# -- files that survive a crash


def ensure_written(bucket: OpenBucket) -> None:
    """Write a file to the disk, and remove it. Raises OSError where the disk does not take it."""
    name = token()
    fd = bucket.fs.create(bucket.tmp, name)
    try:
        bucket.fs.write(fd, name)
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)
        unstage(bucket, name)


def replica_name(key: bytes, version_id: str, digest: bytes) -> bytes:
    """The name of the staged replica of a large version."""
    return b"large." + digests.short(b"\0".join((key, version_id.encode(), digest))).encode()


def early_name(key: bytes) -> bytes:
    """The name of the content of a large file that is still being captured at its source: see early_copy.py."""
    return b"early." + digests.short(key).encode()


def go_on_with(bucket: OpenBucket, left: bytes, name: bytes) -> None:
    """Give a lasting file that a crash left another lasting name, which has no file yet. Raises OSError."""
    fs = bucket.fs
    try:
        fd = fs.open_staged(bucket.tmp, left)
    except FileNotFoundError:
        return
    try:
        if fs.lock(fd) and not is_there(bucket, name):
            fs.rename(bucket.tmp, left, bucket.tmp, name)
    finally:
        fs.close(fd)


def is_there(bucket: OpenBucket, name: bytes) -> bool:
    """Whether there is a file in .fsrepl/tmp."""
    try:
        bucket.fs.stat(bucket.tmp, name)
    except FileNotFoundError:
        return False
    return True


def capture_name(key: bytes) -> bytes:
    """The name of the copy of a large file while it is captured."""
    return b"capture." + digests.short(key).encode()


def open_lasting(bucket: OpenBucket, name: bytes) -> tuple[int, bool]:
    """Open a lasting file, or make it; its descriptor, and whether an earlier try left it.

    It is private, without attributes, and as it is on the disk: what the page cache has may never get there. Raises
    Unavailable where another try is still at it, OSError.
    """
    fs = bucket.fs
    try:
        fd = fs.open_staged(bucket.tmp, name)
    except FileNotFoundError:
        return _locked(bucket, fs.create(bucket.tmp, name)), False
    except PermissionError:  # it has the mode of its view already, which excludes its owner
        unstage(bucket, name)
        return _locked(bucket, fs.create(bucket.tmp, name)), False
    _locked(bucket, fd)
    try:
        found = fs.stat_fd(fd)
        if not fs.is_regular(found) or found.st_nlink != 1:
            unstage(bucket, name)
            fs.close(fd)
            return _locked(bucket, fs.create(bucket.tmp, name)), False
        fs.chmod(fd, 0o600)
        if found.st_uid != fs.uid:
            fs.give(fd, fs.uid, found.st_gid)
        fs.remove_acl(fd)
        for attribute in fs.attribute_names(fd):
            if attribute.startswith("user."):
                fs.remove_attribute(fd, attribute)
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(bucket.tmp, name + keys.SIDECAR)
        fs.sync_file(fd)
        fs.drop_cache(fd)
    except BaseException:
        fs.close(fd)
        raise
    return fd, True


def _locked(bucket: OpenBucket, fd: int) -> int:
    if not bucket.fs.lock(fd):
        bucket.fs.close(fd)
        raise Unavailable("an earlier copy of it is still under way")
    return fd
