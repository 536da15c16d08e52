"""The power goes, or a call fails, at every change that a move between tiers makes: content is whole in one place."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doubles import DyingFs, FailingFs, PowerCut, Tried
from tests.lifecycle.test_lifecycle import put, rule, run
from tests.lifecycle.test_tiers import DEEP, IA, OLD, ONE, add_tier, content, contents, stored, two_versions
from tests.world import SOURCE, World, worlds


def _into(world: World, clock: Callable[[str], object]) -> None:
    add_tier(world)
    two_versions(world)
    two_versions(world, "d/k2")
    put(world, OLD)
    clock("2026-06-01T00:00:01Z")


def _moved(world: World, clock: Callable[[str], object]) -> None:
    _into(world, clock)
    run(world)
    world.settle()


def _across(world: World, clock: Callable[[str], object]) -> None:
    _moved(world, clock)
    add_tier(world, "east/GLACIER_IR")
    put(world, DEEP)


def _back(world: World, clock: Callable[[str], object]) -> None:
    _moved(world, clock)
    world.run("tier.rm", tier="east/STANDARD_IA")
    world.settings = world.engine.settings


CASES: dict[str, tuple[Callable[[World, Callable[[str], object]], None], dict[str, int], list[int]]] = {
    "into": (_into, {"STANDARD_IA": 2}, [0, 22000]),
    "across": (_across, {"STANDARD_IA": 0, "GLACIER_IR": 2}, [0, 22000]),
    "back": (_back, {"STANDARD_IA": 0}, [6000, 22000]),
}


def _ended(world: World, case: str, where: str) -> None:
    """Everything is where it should be, and nowhere else."""
    world.run("lifecycle.run", bucket=SOURCE)
    world.settle()
    _, held, sizes = CASES[case]
    for name, number in held.items():
        tier = world.home / "tiers" / f"east-{name}"
        assert contents(tier) == [ONE] * number, where
        assert not (tier / "src" / ".tmp").exists() or list((tier / "src" / ".tmp").iterdir()) == [], where
    for key in ("k", "d/k2"):
        assert stored(world, key) == sizes, where
        assert [content(world, version) for version in world.of(key)] == [b"two, longer" * 2000, ONE], where
    assert world.leftovers(SOURCE) == [], where


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_move_cut_short(memory: Path, clock: Callable[[str], object], case: str, tried: Callable[..., Tried]) -> None:
    """G2, G7: cut after any change the version can be read, and the next start does the rest."""
    others = tried()
    for calls, world in worlds(memory, replicate=False):
        clock("2026-05-01T10:00:00Z")
        CASES[case][0](world, clock)
        fs = DyingFs(1 << 60, but=others)
        world.restart(fs=fs)
        fs.calls_left = calls
        with contextlib.suppress(PowerCut):
            world.run("lifecycle.run", bucket=SOURCE)
            world.settle()
        world.restart(without_journal=calls % 2 == 0)
        where = f"cut at change {calls}, in {fs.died_in}"
        assert [content(world, version) for version in world.of("k")] == [b"two, longer" * 2000, ONE], where
        world.settle()
        _ended(world, case, where)
        if not fs.died:
            return


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_move_that_fails(
    memory: Path, clock: Callable[[str], object], case: str, tried: Callable[..., Tried]
) -> None:
    """G7: any one change is refused, as by a full disk: it is done later, and nothing else is."""
    others = tried()
    for calls, world in worlds(memory, replicate=False):
        clock("2026-05-01T10:00:00Z")
        CASES[case][0](world, clock)
        fs = FailingFs(1 << 60, errno.EIO if case == "across" else errno.ENOSPC, but=others)
        world.restart(fs=fs)
        fs.calls_left = calls
        with contextlib.suppress(Exception):
            world.run("lifecycle.run", bucket=SOURCE)
            world.settle()
        failed, where = fs.failed, f"failed at change {calls}, in {fs.failed_in}"
        fs.mend()
        for _ in range(3):
            world.settle()
        world.restart()  # the sweep removes what could not be removed
        _ended(world, case, where)
        if not failed:
            return


def _shown(world: World, clock: Callable[[str], object], case: str) -> None:
    """A current version that is about to be moved into a tier, to another one, or back."""
    add_tier(world)
    world.write("d/k", ONE)
    world.settle()
    put(world, IA)
    clock("2026-06-01T00:00:01Z")
    if case != "into":
        run(world)
        world.settle()
    if case == "across":
        add_tier(world, "east/GLACIER_IR")
        put(world, rule(Filter={"ObjectSizeGreaterThan": 0}, Transitions=[{"Days": 30, "StorageClass": "GLACIER_IR"}]))
    if case == "back":
        world.run("tier.rm", tier="east/STANDARD_IA")
        world.settings = world.engine.settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "sharing"), [("into", "auto"), ("into", "link"), ("across", "auto"), ("back", "auto"), ("back", "link")]
)
def test_a_view_cut_short(
    memory: Path, clock: Callable[[str], object], case: str, sharing: str, tried: Callable[..., Tried]
) -> None:
    """G1, G4, G7: the file reads the same at every cut, and neither a version nor a marker comes of it."""
    others = tried(sharing)
    for calls, world in worlds(memory, replicate=False):
        clock("2026-05-01T10:00:00Z")
        world.set_sharing(east=sharing)
        _shown(world, clock, case)
        before = world.ids(SOURCE)
        fs = DyingFs(1 << 60, but=others)
        world.restart(fs=fs)
        fs.calls_left = calls
        with contextlib.suppress(PowerCut):
            world.run("lifecycle.run", bucket=SOURCE)
            world.settle()
        where = f"cut at change {calls}, in {fs.died_in}"
        assert world.path("d/k").read_bytes() == ONE, where
        world.restart(without_journal=calls % 2 == 0)
        world.settle()
        world.run("lifecycle.run", bucket=SOURCE)
        world.settle()
        world.restart()  # the sweep removes what a view still led to
        world.settle()
        tier = world.home / "tiers" / "east-STANDARD_IA"
        assert world.ids(SOURCE) == before, where
        assert world.path("d/k").read_bytes() == ONE, where
        assert world.path("d/k").is_symlink() is (case != "back"), where
        assert (contents(tier), world.leftovers(SOURCE)) == ([ONE] if case == "into" else [], []), where
        if case == "across":
            assert contents(world.home / "tiers" / "east-GLACIER_IR") == [ONE], where
        if not fs.died:
            return


def _renamed(world: World) -> None:
    world.path("d/k").rename(world.path("d/renamed"))


def _replaced(world: World) -> None:
    world.drop("d/k", b"new")


def _removed(world: World) -> None:
    world.path("d/k").unlink()


ACTS: dict[str, tuple[Callable[[World], None], dict[str, bytes], dict[bytes, list[bool]]]] = {
    "renamed": (_renamed, {"d/renamed": ONE}, {b"d/k": [False, True], b"d/renamed": [False]}),
    "replaced": (_replaced, {"d/k": b"new"}, {b"d/k": [False, False]}),
    "removed": (_removed, {}, {b"d/k": [False, True]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS)
def test_what_a_user_does_to_a_symlink_is_captured_through_a_cut(
    memory: Path, clock: Callable[[str], object], act: str, tried: Callable[..., Tried]
) -> None:
    """G1, G6, G7: each act makes its versions and markers once, wherever the power goes; the old content stays."""
    do, tree, markers = ACTS[act]
    others = tried()
    for calls, world in worlds(memory, replicate=False):
        clock("2026-05-01T10:00:00Z")
        _shown(world, clock, "into")
        run(world)
        world.settle()
        fs = DyingFs(1 << 60, but=others)
        world.restart(fs=fs)
        world.settle()
        do(world)
        fs.calls_left = calls
        with contextlib.suppress(PowerCut):
            world.settle()
        world.restart(without_journal=calls % 2 == 0)
        world.settle()
        world.settle()
        where = f"cut at change {calls}, in {fs.died_in}"
        assert world.tree(SOURCE) == tree, where
        history = world.history(SOURCE)
        assert {key: [v.marker for v in found] for key, found in history.items()} == markers, where
        assert content(world, history[b"d/k"][0]) == ONE, where
        assert world.leftovers(SOURCE) == [], where
        if not fs.died:
            return
