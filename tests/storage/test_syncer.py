"""Small batches and slow disks: fsyncs run side by side, and wait for nothing else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fsrepl.storage import sync
from tests.world import DESTINATION, SOURCE, World


def test_an_fsync_does_not_wait_for_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7, G7: workers that are all occupied, by copies or by repairs that wait for a region, delay no region."""
    monkeypatch.setattr(sync, "_SLOW_S", -1.0)  # every syncfs counts as slow
    with World(tmp_path) as world:
        world.write("first", b"1")
        world.settle()
        release = threading.Event()
        ended: list[int] = []
        for number in range(world.settings.replication.workers):

            def copy(number: int = number) -> None:
                release.wait(20)
                ended.append(number)

            world.engine.workers("capture", "east").submit(SOURCE, copy)
        try:
            world.write("k", b"small")
            world.settle()
            assert not ended
        finally:
            release.set()
        assert world.tree(DESTINATION) == world.tree(SOURCE) == {"first": b"1", "k": b"small"}
