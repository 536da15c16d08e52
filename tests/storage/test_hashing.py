"""Large files are hashed: by which threads, from which memory."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from fsrepl.model import digests
from fsrepl.storage import hashing
from fsrepl.storage.fs import Fs


class Noting(Fs):
    """Notes which threads read."""

    def __init__(self) -> None:
        self.readers = set[int]()

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        self.readers.add(threading.get_ident())
        return super().read_into(fd, buffer, at)


def check(fs: Noting, path: Path, data: bytes, final: hashing.Final | None) -> None:
    fs.readers.clear()
    with path.open("rb") as file:
        found = hashing.content(fs, file.fileno(), blocks=True, final=final)
    assert found.digest == digests.of(data)
    assert found.blocks is not None
    for block in found.blocks:
        assert digests.of(data[block.at : block.end]) == block.digest


def test_what_is_in_memory_is_read_where_it_is_hashed(tmp_path: Path) -> None:
    """Section 9: handing it over would take as long as reading it. What is on the disk alone is read ahead."""
    path, data = tmp_path / "k", random.Random(1).randbytes(9 * hashing.BUFFER_BYTES - 5)
    path.write_bytes(data)
    fs, here = Noting(), {threading.get_ident()}
    check(fs, path, data, lambda at: min(len(data), at + 3 * hashing.BUFFER_BYTES))
    assert fs.readers == here
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if not fs.cached_bytes(file.fileno(), 0, len(data)):
            pytest.skip("this kernel does not say what is cached")
        check(fs, path, data, None)
        assert fs.readers == here
        fs.drop_cache(file.fileno())
        if fs.cached_bytes(file.fileno(), 0, len(data)):
            pytest.skip("this filesystem is the page cache")
    check(fs, path, data, None)
    assert here.isdisjoint(fs.readers)
