"""Sparse files: a hole is neither read nor written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fsrepl.model import digests
from fsrepl.storage.fs import Fs
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World


def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    """Section 7: holes are neither read nor written; store, replica and view take the space of the source."""
    with World(tmp_path) as world:
        size = 32 << 20
        with world.path("k").open("wb") as file:
            for at in range(0, size - (1 << 20), 1 << 20):
                file.seek(at + 300_000)
                file.write(b"x" * 4096)
            file.truncate(size)
        content = world.path("k").read_bytes()
        with world.path("k").open("rb") as file:
            assert b"".join(Fs().chunks(file.fileno())) == content
            assert b"".join(Fs().chunks(file.fileno(), 300_001)) == content[300_001:]
        world.settle()
        assert world.path("k", DESTINATION).read_bytes() == content
        taken = world.path("k").stat().st_blocks
        for bucket in (SOURCE, DESTINATION):
            (stored,) = world.path(".fsrepl/versions", bucket).glob("k;*")
            for path in (stored, world.path("k", bucket)):
                assert path.stat().st_blocks <= 2 * taken, path


def test_a_hole_is_hashed_once(tmp_path: Path) -> None:
    """Section 7: capture, read-back and verification of a sparse file together hash the zeros of each hole once."""

    class Counting(Fs):
        made = 0

        def zeros(self, count: int) -> Iterator[bytes]:
            for zeros in super().zeros(count):
                self.made += len(zeros)
                yield zeros

    fs, size = Counting(), 256 << 20
    with World(tmp_path, fs=fs) as world:
        with world.path("k").open("wb") as file:
            for number, at in enumerate((0, 100 << 20, size - 4096)):
                file.seek(at)
                file.write(bytes([number + 1]) * 4096)
        world.settle()
        assert world.path("k", DESTINATION).stat().st_blocks <= 64
        assert verify(world) == []
        assert fs.made == size - 3 * 4096
        assert world.current("k").digest == digests.of(world.path("k").read_bytes())


def test_zeros_after_other_content_are_other_zeros() -> None:
    """G3: what is remembered of a hole holds after the same content alone."""
    zeros = bytes(32 << 20)
    for before in (b"", b"a", b"b", b"a"):
        for count in (len(zeros), len(zeros) - 1):
            hasher = digests.Hasher()
            hasher.update(before)
            hasher.zeros(count, [zeros[:count]])
            hasher.update(b"after")
            assert hasher.digest() == digests.of(before + zeros[:count] + b"after")
