"""Whose turn it is: the threads of the regions run one at a time, for as long as they have something to do at once.

The interpreter runs one thread at a time anyway, and is handed over at every system call. Where two threads
make one every few microseconds, handing it to and fro takes longer than the calls do. So they take turns of
some milliseconds, and who waits for a disk gives up his turn meanwhile. This is a courtesy and no lock:
nothing depends on it, and nobody waits long for a thread that hangs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_PATIENCE_S = 0.25


class RunLock:
    """The turns of some threads."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._mine = threading.local()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around what one thread does at a stretch."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Around what takes a while and needs no interpreter: others may go on. Does nothing out of turn."""
        if getattr(self._mine, "turn", None) is None:
            yield
            return
        self._end()
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        while not (turn := self._turn).acquire(timeout=_PATIENCE_S):
            if self._turn is turn:
                self._turn = threading.Lock()  # whoever has it hangs: the others go on without
        self._mine.turn = turn

    def _end(self) -> None:
        self._mine.turn.release()
        self._mine.turn = None
