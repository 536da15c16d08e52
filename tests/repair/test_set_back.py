"""A region that was set back to a snapshot gets back, by repair, the versions it had since then, and their views."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import DyingFs, PowerCut
from tests.repair.test_old_state import end
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def live_on(world: World, bucket: str, *, with_state: bool = False) -> None:
    """Change, make and delete keys, then set a bucket's region back to its state before that."""
    for key in ("k", "gone", "same"):
        world.write(key, b"one")
    world.settle()
    end(world)
    state, region = Path(world.engine.site.state), world.settings.regions[bucket.partition("/")[0]].path
    put_back = [region, state] if with_state else [region]
    for path in put_back:
        shutil.copytree(path, world.home / "snapshots" / path.name)
    world.restart()
    world.write("k", b"two")
    world.write("d/new", b"new")
    world.unlink("gone")
    world.settle()
    end(world)
    for path in put_back:
        shutil.rmtree(path)
        (world.home / "snapshots" / path.name).rename(path)
    world.restart()


def is_whole(world: World) -> bool:
    """Check that both sides have the same history and views, and that nothing is left to do."""
    assert verify(world) == []
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"k": b"two", "d/new": b"new", "same": b"one"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert [len(v) for v in world.ids(SOURCE).values()] == [1, 2, 2, 1]
    return world.leftovers(SOURCE) + world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("restarted", [False, True], ids=["goes-on", "restarted"])
@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "at-once"])
@pytest.mark.parametrize("with_state", [False, True], ids=["journal-kept", "journal-too"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_what_repair_puts_back_is_shown(
    world: World, bucket: str, *, with_state: bool, scanned: bool, restarted: bool
) -> None:
    """G1, G5, section 5: a stale view of a restored version never becomes a new version."""
    live_on(world, bucket, with_state=with_state)
    if scanned:
        world.settle()
    missing = [(where, key, mended) for where, key, what, mended in verify(world, repair=True) if what == "Missing"]
    assert sorted(missing) == [(bucket, key, True) for key in ("d/new", "gone", "k")]
    if restarted:
        world.restart()
    else:
        assert is_whole(world)
    world.settle()
    assert is_whole(world)
    world.restart(without_journal=True)
    world.settle()
    assert is_whole(world)
    world.stays_quiet()


def test_a_view_that_cannot_be_shown_yet_waits(world: World) -> None:
    """G7: it is stale, also after a start that has lost the journal, and is shown once no program has it open."""
    live_on(world, DESTINATION)
    world.settle()
    with world.path("k", DESTINATION).open("r+b"):
        verify(world, repair=True)
        assert [*world.state(DESTINATION).views.stale] == [b"k"]
        world.restart(without_journal=True)
        world.settle()
        assert world.path("k", DESTINATION).read_bytes() == b"one"
        assert [*world.state(DESTINATION).views.stale] == [b"k"]
    world.settle()
    assert is_whole(world)


def test_what_its_user_wrote_meanwhile_is_newer(world: World) -> None:
    """G1: a file that differs from its record becomes a version before anything is restored, and stays."""
    live_on(world, DESTINATION)
    world.settle()
    world.write("k", b"theirs", DESTINATION)
    verify(world, repair=True)
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == b"theirs"
    assert [v.size for v in world.of("k", DESTINATION)] == [6, 3, 3]


@pytest.mark.slow
def test_power_cut_while_it_is_put_back(memory: Path) -> None:
    """G1, G7: cut at any change, each view is the old one or the new, and makes no version."""
    for calls in itertools.count():
        with World(memory / str(calls)) as world:
            live_on(world, DESTINATION)
            fs = DyingFs(1 << 60)
            world.restart(fs=fs)
            world.settle()
            fs.calls_left = calls
            with contextlib.suppress(PowerCut):
                verify(world, repair=True)
            world.restart()
            world.settle()
            verify(world, repair=True)
            world.settle()
            assert is_whole(world), f"cut at change {calls}, in {fs.died_in}"
            if not fs.died:
                return
