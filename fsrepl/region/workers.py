"""Background workers: threads for long work, such as the copy of a large object, a few for each pair of regions.

Captures in a region, deliveries from one region to another, and repairs in a region have separate
workers, so that copies that hang or are slow, as on a frozen disk, delay only work on the same disk. Work
of several buckets starts round robin. The threads are daemons: one that hangs does not keep the process from ending.

A sparse file of 2 TB takes little space and is hashed for ten minutes, so that a few of them would occupy all
workers for long. Therefore work far smaller than everything under way gets an extra worker: a file never waits for
one of eight times its size or more. That is one extra worker for each power of eight, twelve from 8 MiB to the
largest possible file. Holes cannot be hashed any faster the first time: each KiB of BLAKE3's input counts its own
position in the file, so that no two stretches of zeros have a common result. The second time they are skipped, as
where the replica is read back (see digests.Hasher).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

from msgspec import Struct

_IDLE_S = 10.0

Work = Callable[[], None]


def magnitude(size_bytes: int) -> int:
    """The power of eight that a size has reached. Sizes that differ eightfold have different ones."""
    return max(0, size_bytes.bit_length() - 1) // 3


class _Task(Struct, frozen=True):
    ticket: int
    """Position in the order of submission."""
    magnitude: int
    work: Work


class Workers:
    """At most `number` threads, and an extra one for work far smaller than all under way. Work starts round robin
    between its owners.
    """

    def __init__(self, name: str, number: int) -> None:
        self._name, self.number = name, number
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Hashable, dict[int, deque[_Task]]] = OrderedDict()
        """By owner and magnitude."""
        self._tickets = 0
        self._threads: set[threading.Thread] = set()
        self._under_way: list[int] = []
        """The magnitude of each task under way."""
        self._idle = 0
        self._closed = False

    def submit(self, whose: Hashable, work: Work, size_bytes: int = 0) -> None:
        """Queue work. whose: the owners that take turns. work handles its own exceptions.

        size_bytes: size of the content that is read for it, holes included.
        """
        with self._changed:
            self._tickets += 1
            task = _Task(self._tickets, magnitude(size_bytes), work)
            self._waiting.setdefault(whose, {}).setdefault(task.magnitude, deque()).append(task)
            self._have_begun()

    def _have_begun(self) -> None:
        """Wake or start a thread where a task may begin."""
        if self._closed or self._choose() is None:
            return
        if self._idle:
            self._changed.notify()
        else:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            task.work()
            with self._changed:
                self._under_way.remove(task.magnitude)

    def _next(self) -> _Task | None:
        """The next task; None where this thread is to end."""
        until_s = time.monotonic() + _IDLE_S
        with self._changed:
            while (chosen := self._choose()) is None and not self._closed and time.monotonic() < until_s:
                self._idle += 1
                self._changed.wait(max(0.0, until_s - time.monotonic()))
                self._idle -= 1
            if self._closed or chosen is None:
                self._threads.discard(threading.current_thread())
                return None
            task = self._take(*chosen)
            self._under_way.append(task.magnitude)
            self._have_begun()  # one wake-up may have been for two tasks: this thread begins one
            return task

    def _choose(self) -> tuple[Hashable, int] | None:
        """Owner and magnitude of the task that may begin now: the owner that waited longest, its oldest task first."""
        below = min(self._under_way) if len(self._under_way) >= self.number else None
        for whose, tasks in self._waiting.items():
            may = [waiting[0] for size, waiting in tasks.items() if below is None or size < below]
            if may:
                return whose, min(may, key=lambda task: task.ticket).magnitude
        return None

    def _take(self, whose: Hashable, size: int) -> _Task:
        tasks = self._waiting.pop(whose)
        task = tasks[size].popleft()
        if not tasks[size]:
            del tasks[size]
        if tasks:
            self._waiting[whose] = tasks  # at the end: the others come first
        return task

    def close(self, within_s: float) -> bool:
        """Begin no more work, and wait for all under way; whether all of it ended in time."""
        until_s = time.monotonic() + within_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)
