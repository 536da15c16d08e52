"""Views that cannot follow their versions for a while: whatever happens meanwhile, they are nobody's new files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import DESTINATION, SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def in_step(world: World) -> None:
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.ids(DESTINATION) == world.ids(SOURCE)
    assert world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("held_on", [False, True])
def test_a_view_that_is_held_outlives_the_journal(world: World, gone: bool, held_on: bool) -> None:
    """G1, G7, section 2: the disk alone says that an open view is merely behind; it is not taken for a user's file."""
    world.write("k", b"one")
    world.settle()
    with world.path("k", DESTINATION).open("r+b"):
        if gone:
            world.unlink("k")
        else:
            world.write("k", b"two!")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"one"}
        if held_on:
            world.restart(without_journal=True)
            world.settle()
            assert world.tree(DESTINATION) == {"k": b"one"}
    if not held_on:
        world.restart(without_journal=True)
    world.settle()
    in_step(world)
