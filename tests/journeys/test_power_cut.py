"""Power cuts at every single change of the disk: nothing is lost, doubled or half there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doubles import DyingFs, PowerCut, Tried
from tests.world import DESTINATION, SOURCE, World, ids, statuses, worlds

Act = Callable[[World], None]


def _update(world: World) -> None:
    world.write("d/k", b"two, longer")


def _remove(world: World) -> None:
    world.path("d/k").unlink()


def _rename(world: World) -> None:
    world.path("d/k").rename(world.path("d/renamed"))


def _edit(world: World) -> None:
    os.chmod(world.path("d/k"), 0o600)
    os.setxattr(world.path("d/k"), "user.colour", b"blue")


def _create(world: World) -> None:
    world.write("new/deep/file", b"new")
    world.write("large", bytes(range(256)) * 8192)


def _long_name(world: World) -> None:
    world.write("x" * 240, b"long")


ACTS = [_update, _remove, _rename, _edit, _create, _long_name]


@pytest.mark.slow
@pytest.mark.parametrize(("sharing", "without_journal"), [("auto", True), ("private", False)], ids=str)
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__.strip("_"))
def test_power_cut_at_every_change(
    memory: Path, act: Act, sharing: str, without_journal: bool, tried: Callable[..., Tried]
) -> None:
    """G2, G3, G4, G7: after a cut at any change and a restart, both trees are the same as without the cut.

    Each change counts where replicas are shown by reflinks or links; where they have a file of their own, those that
    leave another disk (tests/doubles.py), at places where no act above was cut.
    """
    each, others = sharing == "auto", tried()
    for calls, world in worlds(memory):
        if sharing != "auto":
            world.set_sharing(west=sharing)
        world.write("d/k", b"one")
        world.write("other", b"o")
        world.settle()
        act(world)
        there = world.tree(SOURCE)
        seen = world.tree(DESTINATION)
        fs = DyingFs(calls, each=True) if each else DyingFs(calls, but=others)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
        _views_are_whole(world, seen, there)
        world.restart(without_journal=without_journal)
        world.settle()
        where = f"cut at change {calls}, in {fs.died_in}"
        assert world.tree(SOURCE) == there, where
        assert world.tree(DESTINATION) == there, where
        source, destination = world.history(SOURCE), world.history(DESTINATION)
        assert ids(source) == ids(destination), where
        assert len(source[b"other"]) == 1, where
        assert max(len(found) for found in source.values()) <= 2, where
        assert statuses(source) == {"COMPLETED"}, where
        assert statuses(destination) == {"REPLICA"}, where
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
        if not fs.died:
            return


def _views_are_whole(world: World, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """G4: each view in the destination is the old version or the new one, and is never missing in between."""
    now = world.tree(DESTINATION)
    for key, data in now.items():
        assert data in (before.get(key), after.get(key)), key
    for key in before.keys() & after.keys():
        assert key in now, key
