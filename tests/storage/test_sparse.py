"""Sparse files: a hole is neither read nor written."""

from __future__ import annotations

from pathlib import Path

from fsrepl.storage.fs import Fs
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
