"""Power cuts where a process of root would not notice a mistake."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest

from tests.doubles import DyingFs, PowerCut
from tests.world import DESTINATION, SOURCE, World, ids, statuses


@pytest.mark.slow
@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
def test_power_cut_at_every_change_of_an_ordinary_user(users_memory: Path, without_journal: bool) -> None:
    """G2, G3, G7: an update, a deletion, a new file and one that its owner may not write, cut at every change."""
    for calls in itertools.count():
        with World(users_memory / str(calls)) as world:
            world.write("d/k", b"one")
            world.write("gone", b"g")
            world.settle()
            world.write("d/k", b"two, longer")
            world.path("gone").unlink()
            world.write("shut", b"s")
            world.path("shut").chmod(0o400)
            there = world.tree(SOURCE)
            fs = DyingFs(calls)
            world.restart(fs=fs)
            with contextlib.suppress(PowerCut):
                world.settle()
            world.restart(without_journal=without_journal)
            world.settle()
            where = f"cut at change {calls}, in {fs.died_in}"
            assert world.tree(SOURCE) == there, where
            assert world.tree(DESTINATION) == there, where
            source = world.history(SOURCE)
            assert ids(source) == world.ids(DESTINATION), where
            assert {k: len(v) for k, v in source.items()} == {b"d/k": 2, b"gone": 2, b"shut": 1}, where
            assert statuses(source) == {"COMPLETED"}, where
            assert world.path("shut", DESTINATION).stat().st_mode & 0o777 == 0o400, where
            assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
            if not fs.died:
                return
