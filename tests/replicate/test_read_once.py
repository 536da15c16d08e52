"""How often a content is read at its source, where several destinations are to have it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World, v2

ALL = (DESTINATION, "north/dst", "south/dst", "far/dst")


class CountingReads(UnsyncedFs):
    """Counts the bytes that are read from files of the source, by method."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def _note(self, what: str, fd: int, count: int) -> None:
        if f"/{SOURCE}" in os.readlink(f"/proc/self/fd/{fd}"):
            self.found[what] += count

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        self._note("read", fd, len(data := super().read_at(fd, size, at)))
        return data

    def read(self, fd: int, size: int) -> bytes:
        self._note("read", fd, len(data := super().read(fd, size)))
        return data

    def read_all(self, fd: int, size_hint: int = 0) -> bytes:
        self._note("read", fd, len(data := super().read_all(fd, size_hint)))
        return data

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        self._note("read", fd, count := super().read_into(fd, buffer, at))
        return count

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        self._note("sent", from_fd, copied := super().copy(from_fd, to_fd, at, count))
        return copied

    def copy_within(self, from_fd: int, to_fd: int, from_at: int, to_at: int, count: int, *, share: bool = True) -> int:
        copied = super().copy_within(from_fd, to_fd, from_at, to_at, count, share=share)
        self._note("captured", from_fd, copied)
        return copied


@pytest.mark.parametrize(
    ("size", "limits"),
    [(4096, {"read": 1}), (300_000, {"read": 1}), (32 << 20, {"captured": 1, "read": 1.01, "sent": len(ALL)})],
)
def test_the_source_is_read_once_for_all_destinations(memory: Path, size: int, limits: dict[str, float]) -> None:
    """A small content is kept for the moment that its deliveries take. A larger one is captured, hashed, and sent to
    each destination by the kernel, out of its cache."""
    fs = CountingReads()
    with World(memory, fs=fs, buckets=(SOURCE, *ALL), replicate=False) as world:
        world.configure(*({**v2(to=to, priority=n), "ID": f"{n}"} for n, to in enumerate(ALL, 1)))
        world.settle()
        fs.found.clear()
        world.write("k", os.urandom(size))
        world.settle()
        for bucket in ALL:
            assert world.tree(bucket) == world.tree(SOURCE)
        assert {what: n / size for what, n in fs.found.items() if n / size > limits.get(what, 0)} == {}
