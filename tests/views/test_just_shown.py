"""Writes into a view in the moment in which it is shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doubles import CoarseFs, UnsyncedFs
from tests.replicate.test_two_way import connect
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World

WAS, IS = b"as it was replicated", b"WRITTEN IN PLACE"


def _write_into(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(IS)
        file.truncate()


def _contents(world: World, bucket: str) -> list[bytes]:
    """What is stored of the object, oldest first."""
    return [path.read_bytes() for path in sorted(world.path(".fsrepl/versions", bucket).glob("k;*"))]


class _WritingFs(UnsyncedFs):
    """A user writes into a view in the moment in which it is shown."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def exchange(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        super().exchange(from_at, name, to_at, new_name)
        self._wrote(to_at, new_name)

    def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        super().link(from_at, name, to_at, new_name)
        self._wrote(to_at, new_name)

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        super().rename_new(from_at, name, to_at, new_name)
        self._wrote(to_at, new_name)

    def _wrote(self, at: int, name: bytes) -> None:
        act, folder = self._act, os.readlink(f"/proc/self/fd/{at}")
        if name == b"k" and folder.endswith("/west/dst"):
            self._act = lambda: None
            act()


@pytest.mark.parametrize("sharing", ["private", "link"])
@pytest.mark.parametrize("is_first", [True, False], ids=["new", "update"])
def test_a_write_in_the_moment_in_which_a_view_is_shown_is_noticed_by_a_scan(
    tmp_path: Path, is_first: bool, sharing: str
) -> None:
    """G1, G6: no event is needed for that; the write becomes a version, and the one that was shown stays whole."""
    with World(tmp_path) as world:
        connect(world, SOURCE, DESTINATION)
        world.set_sharing(east=sharing, west=sharing)
        if not is_first:
            world.drop("k", b"before that")
            world.settle()
        view = world.path("k", DESTINATION)
        world.restart(fs=_WritingFs(lambda: _write_into(view)))
        world.drop("k", WAS)
        world.engine.run_until_idle()
        world.settle()
        world.restart()
        for _ in range(3):
            world.settle()
        assert _contents(world, DESTINATION)[-2:] == [WAS, IS]
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"k": IS}
        assert verify(world) == []


@pytest.mark.parametrize("step_ns", [10_000_000, 1_000_000_000])
def test_a_view_with_coarse_times_is_as_it_was_shown(tmp_path: Path, step_ns: int) -> None:
    """A filesystem that drops a part of the time makes no view look written into, and none is read for that."""
    with World(tmp_path) as world:
        world.restart(fs=CoarseFs(step_ns))
        world.drop("k", WAS)
        world.settle()
        known = world.engine.journal.versions.object(DESTINATION, b"k")
        assert known is not None
        assert known.view is not None
        assert known.view.mtime_ns % step_ns == 0
        assert known.view.has_content_of(
            world.region().engine.fs.stat(os.open(world.path(bucket=DESTINATION), 0), b"k")
        )
