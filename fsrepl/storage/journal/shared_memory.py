"""The journal's shared memory, the file journal.db-shm, which SQLite maps: on a full disk it must still be writable.

A copy-on-write filesystem needs new space for each page of a mapped file that is written again. Where there is none,
the kernel ends the process with SIGBUS. So the file gets the attribute No_COW (`chattr +C`) before SQLite fills it: its
pages are then written where they are. Source: ioctl_iflags(2), FS_NOCOW_FL; seen on a full btrfs of Linux 6.18.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

_GETFLAGS, _SETFLAGS, _NOCOW = 0x80086601, 0x40086602, 0x00800000
_IN_USE = 128
"""The byte on which each SQLite process has a lock while it has the file open. Source: os_unix.c, UNIX_SHM_DMS."""


def write_in_place(path: str) -> None:
    """Give the shared memory of a journal No_COW, where the filesystem knows that, and no other process uses the file.

    The caller's process must not have the journal open: closing a file ends all of the process's locks on it.
    """
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
        try:
            _set(fd)  # an error where it is not known: then the file itself stays untouched
        finally:
            os.close(fd)
        fd = os.open(path + "-shm", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _IN_USE)
            os.ftruncate(fd, 0)  # as SQLite does when it is the first to open it; the attribute needs an empty file
            _set(fd)
        finally:
            os.close(fd)


def _set(fd: int) -> None:
    (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GETFLAGS, bytes(struct.calcsize("l"))))
    fcntl.ioctl(fd, _SETFLAGS, struct.pack("l", flags | _NOCOW))
