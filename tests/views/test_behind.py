"""Stale views: whatever happens meanwhile, they are not taken for users' new files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.capture import schedule
from tests.mounts import clear, cover, only_root, unmount
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
def test_a_stale_view_is_known_without_the_journal(world: World, gone: bool, held_on: bool) -> None:
    """G1, G7, section 2: the disk alone shows that a view open for writing is merely stale; it is not taken for a
    user's file."""
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


@pytest.fixture
def mount(world: World) -> Iterator[Path]:
    """An empty directory of the destination, over which another mount of the same filesystem can come."""
    state, other = world.path("m", DESTINATION), world.home / "other"
    other.mkdir()
    yield other
    clear(state)


@only_root
@pytest.mark.parametrize("without_journal", [False, True])
def test_views_under_a_mount_are_updated_once_it_is_gone(world: World, mount: Path, without_journal: bool) -> None:
    """G1, section 2: a key deleted while a mount covers its view is hidden afterwards, and does not come back."""
    for key in ("m/gone", "m/new"):
        world.write(key, b"one")
    world.settle()
    cover(mount, world.path("m", DESTINATION))
    (mount / "theirs").write_bytes(b"on the other mount")
    world.unlink("m/gone")
    world.write("m/new", b"two!")
    world.settle()
    assert all(held.conflict and "another mount" in held.why for held in world.state(DESTINATION).views.stale.values())
    assert set(world.state(DESTINATION).views.stale) == {b"m/gone", b"m/new"}
    if without_journal:
        world.restart(without_journal=True)
        world.settle()
    assert [path.name for path in mount.iterdir()] == ["theirs"]
    unmount(world.path("m", DESTINATION))
    world.settle()
    in_step(world)


@only_root
def test_new_and_removed_mounts_are_noticed(world: World, mount: Path) -> None:
    """G6, section 2: neither makes an event. A mount is named, and changes are found once it is gone."""
    world.write("m/k", b"one", DESTINATION)
    world.settle()
    region, state = world.region(DESTINATION), world.state(DESTINATION)
    cover(mount, world.path("m", DESTINATION))
    schedule.start_due(region, state)
    world.engine.run_until_idle()
    schedule.start_due(region, state)
    assert (state.trouble.mounts, bool(state.scans)) == ({b"m"}, False)
    unmount(world.path("m", DESTINATION))
    world.write("m/k", b"two!", DESTINATION)
    schedule.start_due(region, state)
    world.engine.run_until_idle()
    assert not state.trouble.mounts
    assert len(world.of("m/k", DESTINATION)) == 2
