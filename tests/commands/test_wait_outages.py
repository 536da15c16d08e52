"""`wait` while a region is away: what it can promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.commands import wait as barrier
from fsrepl.model.address import Address
from fsrepl.region.change_queue import CHANGED, CLOSED, MOVED
from tests.world import DESTINATION, SOURCE, World


def wait(world: World, scope: str) -> barrier.Waited:
    """The result of `wait --timeout 0`."""
    named = Address.parse(scope) if scope else None
    return barrier.wait(world.engine, barrier.scope_of(world.engine, named), 0.0, lambda: False)


@pytest.mark.parametrize("flags", [CLOSED, MOVED])
def test_what_was_not_captured_when_its_region_went_is_waited_for(tmp_path: Path, flags: int) -> None:
    """Section 5, wait: a file dropped in the moment before the outage is not safe yet, and `wait` says so."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        world.write("k", b"two")
        world.region().changes.add(SOURCE, [b"k"], 0, flags)
        world.away("east")
        world.region().probe_buckets()
        for scope in (SOURCE, f"{SOURCE}/k"):
            waited = wait(world, scope)
            assert waited.pending == 1
            assert "region east is offline" in waited.trouble[0]
        world.back("east")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"two"}
        assert not world.state().attachment.unsettled


def test_nothing_is_waited_for_in_an_outage_that_found_nothing_under_way(tmp_path: Path) -> None:
    """Section 5, wait, G8: fsrepl's own labels make no change that is waited for; files dropped during the outage are
    unknown, so the exit status is 1."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        for region, bucket, flags in (("east", SOURCE, CHANGED), ("west", DESTINATION, MOVED)):
            world.region(bucket).changes.add(bucket, [b"k"], 0, flags)
            world.away(region)
            world.region(bucket).probe_buckets()
            waited = wait(world, bucket)
            assert (waited.pending, waited.trouble) == (0, [])
            (why,) = waited.away if bucket == SOURCE else waited.replicas_away
            assert region in why
            assert not (waited.replicas_away if bucket == SOURCE else waited.away)
            world.back(region)
            world.settle()


def test_a_region_that_is_not_attached_is_named(tmp_path: Path) -> None:
    """Section 5, wait, G11: a site whose state was lost knows no bucket, and calls none safe."""
    with World(tmp_path) as world:
        for region in ("east", "west"):
            world.away(region)
            world.engine.regions[region].probe_buckets()
        del world.engine.site.identities.regions["east"]
        assert [why for why in wait(world, "").away if "region add east=" in why]


def test_a_key_in_a_region_that_is_away_is_not_taken_for_one_that_does_not_exist(tmp_path: Path) -> None:
    """Section 5, wait: the key may have been written since the region was last scanned."""
    with World(tmp_path) as world:
        world.settle()
        world.away("east")
        world.region().probe_buckets()
        assert wait(world, f"{SOURCE}/new").away
