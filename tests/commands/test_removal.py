"""A version that is removed for good, by its id: its view follows, and is never taken for something a user wrote."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.doubles import DyingFs, PowerCut
from tests.world import DESTINATION, worlds


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["auto", "private"])
@pytest.mark.parametrize("versions", [1, 2])
def test_removing_what_a_view_shows(memory: Path, sharing: str, versions: int) -> None:
    """G1, s3-semantics 4: the one before is current again, or the view goes; whichever change the power goes at."""
    for calls, world in worlds(memory):
        if sharing != "auto":
            world.set_sharing(west=sharing)
        for number in range(versions):
            world.write("d/k", b"%d" % number)
            world.settle()
        before = [version.id for version in reversed(world.of("d/k", DESTINATION))]
        fs = DyingFs(calls)
        world.restart(fs=fs)
        done = False
        with contextlib.suppress(PowerCut):
            world.settle()
            world.remove("d/k", DESTINATION, before[-1])
            done = True
        world.restart()
        world.settle()
        where = f"cut at change {calls}, in {fs.died_in}"
        left = [version.id for version in reversed(world.of("d/k", DESTINATION))]
        assert left in ([before[:-1]] if done else [before, before[:-1]]), where
        assert world.tree(DESTINATION) == ({"d/k": b"%d" % (len(left) - 1)} if left else {}), where
        assert world.leftovers(DESTINATION) == [], where
        if not fs.died:
            return
