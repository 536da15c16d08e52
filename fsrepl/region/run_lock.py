"""The run lock: the regions' threads run one at a time, each for as long as it has work to do.

The interpreter runs one thread at a time anyway, and may switch at every system call. Where two threads
make one every few microseconds, switching takes longer than the calls do. With the run lock, a thread runs for
some milliseconds, and releases the lock while it waits for a disk. The lock is only for speed: correctness
does not depend on it, and a thread that hangs delays the others only briefly.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_PATIENCE_S = 0.25


class RunLock:
    """The lock shared by the regions' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around the uninterrupted work of one thread."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Around a long call that needs no interpreter: other threads may run. Does nothing without the lock."""
        if getattr(self._own, "lock", None) is None:
            yield
            return
        self._end()
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        while not (lock := self._lock).acquire(timeout=_PATIENCE_S):
            if self._lock is lock:
                self._lock = threading.Lock()  # the holder hangs: the others go on with a new lock
        self._own.lock = lock

    def _end(self) -> None:
        self._own.lock.release()
        self._own.lock = None
