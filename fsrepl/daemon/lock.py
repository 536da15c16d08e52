"""The lock of a site: only one process writes in a site."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from types import TracebackType

from fsrepl.daemon import control
from fsrepl.errors import FsreplError, Refused, Usage, reason

log = logging.getLogger("fsrepl")

FILE = "lock"
WAIT_S = 30.0
_LOOK_S = 0.05


class Lock:
    """The lock of the one writer: the daemon, or a command while there is none. Released when the process ends."""

    def __init__(self, state: str | os.PathLike[str]) -> None:
        self._path = os.path.join(state, FILE)
        self._fd = -1

    def try_acquire(self) -> bool:
        """Whether this process has the lock now. Raises Usage where the state folder cannot be used."""
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except PermissionError as error:
            raise Refused(
                "AccessDenied",
                f"the state of this site, {os.path.dirname(self._path)}, is for its own user and root alone",
            ) from error
        except OSError as error:
            raise Usage(f"cannot use the site's lock {self._path}: {reason(error)}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise Usage(f"cannot lock {self._path}: {reason(error)}") from error
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        self._fd = fd
        return True

    def holder(self) -> str:
        """The process that has the lock, for a message."""
        try:
            with open(self._path, encoding="ascii") as file:
                return file.read().strip() or "another process"
        except (OSError, ValueError):
            return "another process"

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def acquire(self, within_s: float = WAIT_S) -> None:
        """Wait for a running command, or a daemon that ends. Raises Usage where there is a daemon: a site has one.

        A daemon whose lock file was just deleted still answers, so it is asked even where the lock is free.
        """
        until_s = time.monotonic() + within_s
        while True:
            holder = self.holder()
            acquired = self.try_acquire()
            if control.answers(os.path.dirname(self._path)):
                self.release()
                raise Usage(f"this site has a running daemon already (pid {holder}); a site has one")
            if acquired:
                return
            self.wait(until_s)

    def keep(self) -> None:
        """Take the lock again where its file was deleted or replaced, which would let a second daemon in.

        Another process that has the new file finds the daemon answering and releases it: the next call succeeds.
        A missing state folder is not made again: it may come back.
        """
        held = os.fstat(self._fd)
        try:
            if os.path.samestat(os.lstat(self._path), held):
                return
        except OSError:
            if not os.path.isdir(os.path.dirname(self._path)):
                return
        lost = self._fd
        with contextlib.suppress(FsreplError):
            if self.try_acquire():
                os.close(lost)
                log.warning("the lock of this site, %s, was deleted: taken again", self._path)

    def wait(self, until_s: float) -> None:
        """Wait a moment for the holder. Raises Usage where that took too long."""
        if time.monotonic() > until_s:
            raise Usage(f"another process (pid {self.holder()}) holds this site's lock; try again when it is done")
        time.sleep(_LOOK_S)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def is_locked(state: str | os.PathLike[str]) -> bool:
    """Whether a site's daemon, or a command of it, is running. Creates nothing."""
    try:
        fd = os.open(os.path.join(state, FILE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
