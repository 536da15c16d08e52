"""Views in a directory that link and rename from .fsrepl do not reach: they are shown, replaced and hidden all the
same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doubles import DividedFs, DyingFs, PowerCut, Tried
from tests.mounts import btrfs, only_root, subvolume
from tests.world import DESTINATION, SOURCE, World, worlds

Act = Callable[[World], None]


def _update(world: World) -> None:
    world.write("sub/k", b"two, longer")


def _remove(world: World) -> None:
    world.unlink("sub/k")


def _rename(world: World) -> None:
    world.path("sub/k").rename(world.path("k"))


def _edit(world: World) -> None:
    world.path("sub/k").chmod(0o600)


def _create(world: World) -> None:
    world.write("sub/new", b"new")
    world.write("sub/deep/large", bytes(range(256)) * 8192)


def _begin(world: World, sharing: str) -> None:
    world.set_sharing(east=sharing, west=sharing)
    world.write("sub/k", b"one")
    world.write("k.other", b"o")
    world.settle()


def _strays(world: World) -> list[str]:
    return [str(path) for path in world.home.rglob("*") if path.name.startswith(".fsrepl-") and "sub" in path.parts]


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_views_follow_where_rename_does_not_reach(tmp_path: Path, sharing: str) -> None:
    """G1, G4, G5: content and metadata, one change after the other; no other file is left beside them."""
    with World(tmp_path, fs=DividedFs()) as world:
        world.set_sharing(east=sharing, west=sharing)
        world.restart(fs=DividedFs())
        world.write("sub/k", b"one")
        os.setxattr(world.path("sub/k"), "user.colour", b"blue")
        for act in (_create, _edit, _update, _rename, _create):
            act(world)
            world.settle()
            assert world.tree(DESTINATION) == world.tree(SOURCE)
            for key in world.tree(SOURCE):
                assert world.look_of(key, DESTINATION) == world.look_of(key)
        assert world.ids(DESTINATION) == world.ids(SOURCE)
        assert _strays(world) == world.leftovers(DESTINATION) == []
        assert not world.state(DESTINATION).views.stale
        world.stays_quiet()


def test_a_write_in_the_last_moment_is_kept(tmp_path: Path) -> None:
    """G1: a file taken out of a view is inspected there as well; unrecorded content becomes a version first."""

    class Late(DividedFs):
        """A user writes into a view just before it is exchanged, or hidden."""

        late: Path | None = None

        def exchange(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            self._crosses(from_at, to_at)
            self._write()
            super().exchange(from_at, name, to_at, new_name)

        def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            self._crosses(from_at, to_at)
            if name == b"k":
                self._write()
            super().rename_new(from_at, name, to_at, new_name)

        def _write(self) -> None:
            path, self.late = self.late, None
            if path is not None:
                path.write_bytes(b"written here in the last moment")

    for act in (_update, _remove):
        fs = Late()
        with World(tmp_path / act.__name__, fs=fs) as world:
            world.write("sub/k", b"one")
            world.settle()
            fs.late = world.path("sub/k", DESTINATION)
            act(world)
            world.settle()
            assert fs.late is None
            contents = {v.digest for v in world.of("sub/k", DESTINATION) if not v.marker}
            assert len(contents) == (3 if act is _update else 2)
            assert _strays(world) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "sharing"),
    [(_update, "link"), (_remove, "auto"), (_create, "auto"), (_update, "auto")],
    ids=lambda each: each if isinstance(each, str) else each.__name__.strip("_"),
)
def test_power_cut_at_every_change(memory: Path, act: Act, sharing: str, tried: Callable[..., Tried]) -> None:
    """G2, G4, G7: the same after a cut at any change; no file is left beside a view, or taken for a user's."""
    others = tried(sharing)
    for calls, world in worlds(memory, fs=DividedFs()):
        world.restart(fs=DividedFs())
        _begin(world, sharing)
        world.restart(fs=DividedFs())
        world.settle()
        act(world)
        there = world.tree(SOURCE)
        fs = DyingFs(calls, DividedFs(), but=others)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
        world.restart(fs=DividedFs(), without_journal=bool(calls % 2))
        world.settle()
        where = f"cut at change {calls}, in {fs.died_in}"
        assert world.tree(SOURCE) == there, where
        assert world.tree(DESTINATION) == there, where
        assert world.ids(SOURCE) == world.ids(DESTINATION), where
        assert _strays(world) == [], where
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
        if not fs.died:
            return


@only_root
def test_a_replica_tree_with_subvolumes(tmp_path: Path) -> None:
    """Section 2: on a real btrfs: the destination's user made a subvolume of a directory."""
    with btrfs(tmp_path) as at, World(tmp_path / "site", regions={"west": at / "west"}) as world:
        subvolume("create", world.path("sub", DESTINATION))
        for act in (_create, _update, _edit, _rename):
            act(world)
            world.settle()
            assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert _strays(world) == world.leftovers(DESTINATION) == []
        world.stays_quiet()
