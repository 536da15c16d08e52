"""Directories whose owner may not write to them, as 0555, while the daemon, as their owner, changes what is in them.

A daemon that is root needs no such right. Any other daemon gives the right to itself alone, changes what it must, and
takes the right back. After a crash in between, the intent of the change names the directory, and `close_again` compares
it with its record before the first scan, so that the right is not taken for a user's change.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.questions import CurrentVersions
from fsrepl.views import directories


@contextlib.contextmanager
def made_writable(bucket: OpenBucket, path: bytes) -> Iterator[bool]:
    """Let the daemon change the entries of a directory, or of the first one above it that exists. Whether that made a
    difference: the daemon is the owner, and had no right to write. Raises OSError."""
    fd = bucket.fs.open_dir(_nearest(bucket, path), b"")  # its own descriptor: those of `views` come and go
    try:
        found = bucket.fs.stat_fd(fd)
        if os.geteuid() != found.st_uid or found.st_uid == 0 or found.st_mode & stat.S_IWUSR:
            yield False
            return
        mode = stat.S_IMODE(found.st_mode)
        bucket.fs.chmod(fd, mode | stat.S_IWUSR)
        try:
            yield True
        finally:
            bucket.fs.chmod(fd, mode)
    finally:
        bucket.fs.close(fd)


def _nearest(bucket: OpenBucket, path: bytes) -> int:
    """The first directory that exists, from a path upwards."""
    while True:
        try:
            return bucket.views.get(path)
        except FileNotFoundError:
            path = keys.split(path)[0]


def close_again(bucket: OpenBucket, current: CurrentVersions, changed: Iterable[bytes]) -> None:
    """After a crash: take the right to write back from directories that have it and should not, by their records.

    changed: the keys whose views were being changed. A user who gave the owner this right in the moment of the crash,
    in one of these directories, has to do so again.
    """
    for path in directories.with_parents(keys.place(key)[0] for key in changed):
        with contextlib.suppress(OSError, StoreDamaged):
            fd = bucket.views.get(path)
            found = bucket.fs.stat_fd(fd)
            recorded = _recorded_mode(bucket, current, path)
            if recorded is None or os.geteuid() != found.st_uid or found.st_uid == 0:
                continue
            if stat.S_IMODE(found.st_mode) == recorded | stat.S_IWUSR != recorded:
                bucket.fs.chmod(fd, recorded)


def _recorded_mode(bucket: OpenBucket, current: CurrentVersions, path: bytes) -> int | None:
    """The mode that a directory was given when it was made, or changed last; None where it is not known."""
    known = current.object(bucket.address, path + b"/") if bucket.bucket.trees else None
    if known is not None and not known.marker:
        version = versions.read(bucket, path + b"/", known.id, marker=False)
        posix = version and (version.shortfall.posix or version.posix)
        return stat.S_IMODE(posix.mode) if posix else None
    given = directories.replicated(bucket, path).given
    return given.mode if given is not None else None
