"""Large files are hashed: by which threads, from which memory."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from fsrepl.model import digests
from fsrepl.storage import hashing
from fsrepl.storage.fs import Fs


def test_what_is_hashed_while_it_is_written_is_read_where_it_is_hashed(tmp_path: Path) -> None:
    """Section 9: it is in memory, and handing it over would take as long as reading it. Others are read ahead."""

    class Noting(Fs):
        def __init__(self) -> None:
            self.readers = set[int]()

        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            self.readers.add(threading.get_ident())
            return super().read_into(fd, buffer, at)

    path, data = tmp_path / "k", random.Random(1).randbytes(9 * hashing.BUFFER_BYTES - 5)
    path.write_bytes(data)
    fs, here = Noting(), {threading.get_ident()}
    with path.open("rb") as file:
        for final in (None, lambda at: min(len(data), at + 3 * hashing.BUFFER_BYTES)):
            fs.readers = set()
            found = hashing.content(fs, file.fileno(), blocks=True, final=final)
            assert found.digest == digests.of(data)
            assert found.blocks is not None
            for block in found.blocks:
                assert digests.of(data[block.at : block.end]) == block.digest
            assert (fs.readers == here) == (final is not None)
