"""Power cuts at every change that a lifecycle run makes: the next run finishes any half-made change."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import DyingFs, FailingFs, PowerCut, Tried
from tests.lifecycle.test_lifecycle import GLACIER, PLAIN, TIDY, days, events, old_versions, put, rule
from tests.world import SOURCE, World, worlds

Json = dict[str, Any]


def _two_versions(world: World) -> None:
    for data in (b"one", b"two, longer"):
        world.write("d/k", data)
        world.write("d/other", data)
        world.settle()


def _deleted(world: World) -> None:
    _two_versions(world)
    world.unlink("d/k")
    world.settle()
    for version in world.of("d/k")[1:]:
        world.remove("d/k", version=version.id)


def _suspended(world: World) -> None:
    world.run("replication.rm", source=SOURCE)
    world.run("versioning.set", bucket=SOURCE, status="Suspended")
    _two_versions(world)


MOVED = {"NoncurrentDays": 1, "StorageClass": "GLACIER"}
CASES: dict[str, tuple[Callable[[World], None], list[Json]]] = {
    "expiration": (_two_versions, [days(2)]),
    "suspended": (_suspended, [days(2)]),
    "noncurrent": (_two_versions, [old_versions()]),
    "markers": (_deleted, [TIDY]),
    "old markers": (_deleted, [days(2)]),
    "transition": (
        _two_versions,
        [GLACIER, rule(Filter={"ObjectSizeGreaterThan": 0}, NoncurrentVersionTransitions=[MOVED])],
    ),
}


OF_A_VIEW = CASES if os.environ.get("FSREPL_LONG") else ("expiration", "suspended", "transition")
"""The cases with an action on the current version, whose file is the view's where they are linked. The others are of
noncurrent versions and of markers, which no view shows, however they are shared."""


@pytest.mark.slow
def test_a_run_cut_short_where_nothing_was_versioned(memory: Path, clock: Callable[[str], object]) -> None:
    """G7: a file is there or removed; the next run does the rest, and no file stays hidden."""
    for calls, world in worlds(memory, replicate=False):
        clock("2026-05-01T10:00:00Z")
        world.run("bucket.create", bucket=PLAIN)
        for key in ("d/k", "other"):
            world.write(key, b"data", PLAIN)
            os.utime(world.path(key, PLAIN), (0, 0))
        put(world, days(2), bucket=PLAIN)
        fs = DyingFs(1 << 60)
        world.restart(fs=fs)
        world.settle()
        fs.calls_left = calls
        with contextlib.suppress(PowerCut):
            world.run("lifecycle.run", bucket=PLAIN)
        world.restart()
        there = {**world.tree(PLAIN), **dict.fromkeys(world.leftovers(PLAIN))}
        assert fs.died or not there, where(fs, calls)
        world.run("lifecycle.run", bucket=PLAIN)
        assert (world.tree(PLAIN), world.leftovers(PLAIN)) == ({}, []), where(fs, calls)
        if not fs.died:
            return


def where(fs: DyingFs, calls: int) -> str:
    return f"cut at change {calls}, in {fs.died_in}"


def _state(world: World) -> dict[str, Any]:
    """All that a user would notice, without values that differ in each run."""
    stacks = {
        key: [(v.marker, v.digest, v.origin, v.storage_class, v.status) for v in versions]
        for key, versions in world.history(SOURCE).items()
    }
    return {"tree": world.tree(SOURCE), "versions": stacks, "leftovers": world.leftovers(SOURCE)}


def _ended(world: World) -> dict[str, Any]:
    """The state at the end of a run, after everything that was done before it."""
    world.settle()
    world.run("lifecycle.run", bucket=SOURCE)
    world.settle()
    return _state(world)


def _events(world: World) -> list[tuple[str, str]]:
    """The events, by name and key, each once."""
    found = events(world)
    assert len(found) == len(set(found)), found
    return sorted((name, key) for name, key, _ in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "sharing"), [*((case, "auto") for case in CASES), *((case, "link") for case in OF_A_VIEW)]
)
def test_a_run_cut_short(
    memory: Path, clock: Callable[[str], object], case: str, sharing: str, tried: Callable[..., Tried]
) -> None:
    """G1, G2, G7: each action is done or not done; the next run does the rest, and there is an event for each."""
    prepare, rules = CASES[case]
    after: dict[str, Any] = {}
    told: list[tuple[str, str]] = []
    others = tried(sharing)
    for calls, world in worlds(memory):
        clock("2026-05-01T10:00:00Z")
        world.set_sharing(east=sharing)
        prepare(world)
        put(world, *rules)
        world.settle()
        clock("2026-06-01T00:00:01Z")
        fs = DyingFs(1 << 60, but=others)
        world.restart(fs=fs)
        world.capture(SOURCE)
        before = _state(world)
        fs.calls_left = calls - 1 if calls else 1 << 60  # the first run is without a cut, and shows the expected state
        with contextlib.suppress(PowerCut):
            world.run("lifecycle.run", bucket=SOURCE)
        world.restart(without_journal=calls % 2 == 0)
        where = f"cut at change {calls - 1}, in {fs.died_in}"
        found = _ended(world)
        if not calls:
            after, told = found, _events(world)
            assert after != before
            continue
        assert found == after, where
        assert _events(world) == told, where
        if not fs.died:
            return


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "suspended"])
def test_a_disk_that_fails(
    memory: Path, clock: Callable[[str], object], case: str, tried: Callable[..., Tried]
) -> None:
    """G7: any one change fails: the next run does the rest, and nothing else.

    In a suspended bucket the null version is removed before its file. Where the file cannot be removed, it comes back
    as a version, which is not lost.
    """
    prepare, rules = CASES[case]
    after: dict[str, Any] = {}
    others = tried()
    for calls, world in worlds(memory):
        clock("2026-05-01T10:00:00Z")
        prepare(world)
        put(world, *rules)
        world.settle()
        clock("2026-06-01T00:00:01Z")
        fs = FailingFs(1 << 60, but=others)
        world.restart(fs=fs)
        world.capture(SOURCE)
        fs.calls_left = calls - 1 if calls else 1 << 60
        with contextlib.suppress(Exception):
            world.run("lifecycle.run", bucket=SOURCE)
        failed = fs.failed
        fs.mend()
        for _ in range(3):
            world.settle()
        world.restart()  # an intent that could not be removed has no effect any more, and is removed then
        found = _ended(world)
        if not calls:
            after = found
            continue
        assert found == after, f"failed at change {calls - 1}, in {fs.failed_in}"
        if not failed:
            return
