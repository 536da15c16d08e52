"""The progress of operations that take long, for those who wait for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgspec import Struct


class Task(Struct):
    """One operation: so much of it is done, of a total that is 0 where it is unknown."""

    total: int = 0
    done: int = 0

    def add(self, number: int) -> None:
        self.done += number
        if self.total:  # more than was expected is no reason to say so
            self.total = max(self.total, self.done)


class Tasks:
    """The operations that are under way, by their requests as text. Used by any thread."""

    def __init__(self) -> None:
        self._all: dict[str, Task] = {}

    @contextlib.contextmanager
    def begin(self, request: str, total: int = 0) -> Iterator[Task]:
        """An operation, which counts itself while the block runs."""
        task = self._all[request] = Task(total)
        try:
            yield task
        finally:
            if self._all.get(request) is task:
                self._all.pop(request, None)

    def find(self, request: str) -> Task:
        """The progress of an operation; 0 of 0 where it does not count itself, or has ended."""
        return self._all.get(request) or Task()
