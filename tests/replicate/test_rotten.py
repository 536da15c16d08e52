"""A replica that is sent again since its content rotted: what people see is mended with what is stored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.daemon.engine import Engine
from tests.backfills import backfill
from tests.hosts import FarWorld
from tests.verifying import tally, verify
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World

Mend = Callable[[World], object]


def mend_by_backfill(world: World) -> None:
    backfill(world, "COMPLETED")


def mend_by_verify(world: World) -> None:
    verify(world, repair=True)


@pytest.mark.parametrize(("kind", "mend"), [(World, mend_by_backfill), (FarWorld, mend_by_verify)])
@pytest.mark.parametrize("size", [100, 9 << 20], ids=["small", "large"])
def test_a_rotten_view_is_mended_with_its_version(tmp_path: Path, kind: type[World], mend: Mend, size: int) -> None:
    """G3: view and stored version are one file in a replica tree. Left as it is, what rotted would be read by
    everybody, and taken for a user's version by the next scan."""
    with kind(tmp_path) as world:
        _, view = replica_of(world, size)
        rot(view)
        forget_ctime(world)
        mend(world)
        world.settle()
        assert view.read_bytes() == world.path("k").read_bytes()
        assert world.ids(DESTINATION) == world.ids(SOURCE)
        assert tally(world).differences == 0
        world.restart()
        world.settle()
        assert world.ids(DESTINATION) == world.ids(SOURCE)


@pytest.mark.parametrize(("kind", "mend"), [(World, mend_by_backfill), (FarWorld, mend_by_verify)])
def test_what_was_written_into_the_stored_file_is_a_version(tmp_path: Path, kind: type[World], mend: Mend) -> None:
    """G1: a write through the other name makes no event in the tree; it is captured once it is known of."""
    with kind(tmp_path) as world:
        stored, view = replica_of(world, 100)
        stored.write_bytes(b"written")
        mend(world)
        world.settle()
        # another machine captures it after it has answered, and the site knows nothing of that
        until(lambda: len(world.of("k", DESTINATION)) == 2, "what was written is a version")
        assert view.read_bytes() == b"written"
        assert stored.read_bytes() == world.path("k").read_bytes()


def replica_of(world: World, size: int) -> tuple[Path, Path]:
    """The stored file and the view of a replica, which are one file."""
    world.write("k", bytes(size))
    world.settle()
    (stored,) = world.path(".fsrepl/versions", DESTINATION).glob("k;*")
    view = world.path("k", DESTINATION)
    assert os.path.samefile(stored, view)
    return stored, view


def rot(path: Path) -> None:
    """Change a byte without changing the times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def forget_ctime(world: World) -> None:
    """As if the ctime of the view had not changed."""
    journal = engine_of(world).journal
    known = journal.versions.object(DESTINATION, b"k")
    assert known is not None
    assert known.view is not None
    with journal.transaction():
        journal.views.see(DESTINATION, b"k", replace(known.view, ctime_ns=0))


def engine_of(world: World) -> Engine:
    """The engine of the destination's region."""
    if not isinstance(world, FarWorld):
        return world.engine
    (engine,) = (each.agent._engine for each in world.connections if each.thread.is_alive())
    assert engine is not None
    return engine
