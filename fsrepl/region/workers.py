"""Threads for what takes long, such as the copy of a large object: a few for each pair of regions and direction.

Captures in a region, deliveries from one region to another, and repairs in a region each have workers of their
own, so that copies which hang or are slow, as on a frozen disk, hold up nothing that does not touch that disk. Work
of several buckets is begun in turns. The threads are daemons: one that hangs does not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

_IDLE_S = 10.0

Work = Callable[[], None]


class Workers:
    """At most so many threads, which begin what is submitted in turns between those whose work it is."""

    def __init__(self, name: str, number: int) -> None:
        self._name, self.number = name, number
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Hashable, deque[Work]] = OrderedDict()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def submit(self, whose: Hashable, work: Work) -> None:
        """Have something done. whose: between these the workers take turns. work sees to its own exceptions."""
        with self._changed:
            self._waiting.setdefault(whose, deque()).append(work)
            if self._idle:
                self._changed.notify()
            elif len(self._threads) < self.number and not self._closed:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.add(thread)
                thread.start()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Work | None:
        """What to do next; None where this thread is to end."""
        until_s = time.monotonic() + _IDLE_S
        with self._changed:
            while not self._waiting and not self._closed and time.monotonic() < until_s:
                self._idle += 1
                self._changed.wait(max(0.0, until_s - time.monotonic()))
                self._idle -= 1
            if self._closed or not self._waiting:
                self._threads.discard(threading.current_thread())
                return None
            whose, works = self._waiting.popitem(last=False)
            work = works.popleft()
            if works:
                self._waiting[whose] = works  # at the end: the others come first
            return work

    def close(self, within_s: float) -> bool:
        """Begin nothing more, and wait for what is under way; whether all of it ended in time."""
        until_s = time.monotonic() + within_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)
