"""Whether a busy thread makes progress, as seen by another thread, from the CPU time that it uses.

A thread that hangs in a system call, as on a frozen disk, uses none; a thread in a long computation does.
"""

from __future__ import annotations

import threading
import time

STUCK_S = 5.0
_MOVED_S = 0.002


class Pulse:
    """Progress of one thread, observed by another one from time to time."""

    def __init__(self) -> None:
        self._cpu_s = 0.0
        self._moved_at_s: float | None = None
        self.is_stuck = False

    def look(self, thread: threading.Thread | None, *, busy_since_s: float, now_s: float) -> bool:
        """Whether the thread makes progress again after it was stuck. busy_since_s: since when it is at work; 0 while
        it waits for work. The last look may be long ago by then."""
        cpu_s = _cpu_s(thread)
        if not busy_since_s or self._moved_at_s is None or cpu_s - self._cpu_s > _MOVED_S:
            self._cpu_s, self._moved_at_s = cpu_s, now_s
        was_stuck, self.is_stuck = self.is_stuck, now_s - max(self._moved_at_s, busy_since_s) > STUCK_S
        return was_stuck and not self.is_stuck


def _cpu_s(thread: threading.Thread | None) -> float:
    """CPU time that a thread has used so far."""
    if thread is None or thread.ident is None or not thread.is_alive():
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
