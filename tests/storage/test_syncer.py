"""Small batches and slow disks: fsyncs side by side, which wait for nothing else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fsrepl.storage import sync
from tests.world import DESTINATION, SOURCE, World


def test_an_fsync_does_not_wait_for_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7, G7: lanes that are all taken, by copies or by repairs that wait for a region, hold up no region."""
    monkeypatch.setattr(sync, "_SLOW_S", -1.0)  # every syncfs is taken for a slow one
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
