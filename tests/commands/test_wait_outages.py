"""`wait` while a region is away: what it can promise, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.commands import wait as barrier
from fsrepl.region.change_queue import CHANGED, CLOSED, MOVED
from tests.world import DESTINATION, SOURCE, World


def wait(world: World, scope: str) -> barrier.Waited:
    """What `wait --timeout 0` finds."""
    return barrier.wait(world.engine, barrier.scope_of(world.engine, scope), 0.0, lambda: False)


@pytest.mark.parametrize("flags", [CLOSED, MOVED])
def test_what_was_not_captured_when_its_region_went_is_waited_for(tmp_path: Path, flags: int) -> None:
    """Section 5, wait: a file dropped in the moment before the outage is not safe yet, and is said to be none."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        world.write("k", b"two")
        world.region().marks.mark(SOURCE, [b"k"], 0, flags)
        world.away("east")
        world.region().look_around()
        for scope in (SOURCE, f"{SOURCE}/k"):
            waited = wait(world, scope)
            assert waited.pending == 1
            assert "region east is offline" in waited.trouble[0]
        world.back("east")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"two"}
        assert not world.place().unsettled


def test_nothing_is_waited_for_in_an_outage_that_found_nothing_under_way(tmp_path: Path) -> None:
    """Section 5, wait, G8: nothing can be dropped in a region that is away, and what we mark ourselves is no news."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        for region, bucket, flags in (("east", SOURCE, CHANGED), ("west", DESTINATION, MOVED)):
            world.region(bucket).marks.mark(bucket, [b"k"], 0, flags)
            world.away(region)
            world.region(bucket).look_around()
            waited = wait(world, bucket)
            assert (waited.pending, waited.trouble) == (0, [])
            (why,) = waited.away  # which is told, for it is not known what was dropped before it went
            assert region in why
            world.back(region)
            world.settle()
