"""Versions that are locked: nobody may remove their files, as `chattr +i` has it. s3-semantics, 5.5, number 5."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import mounts
from tests.lifecycle.test_lifecycle import LATER, days, events, old_versions, put, run
from tests.lifecycle.test_tiers import OLD, add_tier
from tests.stored import stored
from tests.world import SOURCE, World

Clock = Callable[[str], object]
pytestmark = mounts.only_root


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    with mounts.ext4(tmp_path) as at, World(at / "world", replicate=False) as found:
        yield found


@contextlib.contextmanager
def locked(path: Path, flag: str = "i") -> Iterator[None]:
    subprocess.run(["chattr", f"+{flag}", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{flag}", path], check=True)


def ids(world: World, key: str) -> list[str]:
    return [version.id for version in world.of(key)]


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_locked_version_is_kept_and_keeps_nothing_else(world: World, clock: Clock, flag: str) -> None:
    """5.5, 5: no event, no note of a removal; the others go, and the bucket stays up. It goes once it is unlocked."""
    for data in (b"one", b"two"):
        for key in ("k", "other"):
            world.write(key, data)
        world.settle()
    before = ids(world, "k")
    put(world, old_versions())
    clock(LATER)
    with locked(stored(world, "k", number=0), flag):
        assert run(world) == {"NoncurrentVersionExpiration": 1}
        assert ids(world, "k") == before
        assert world.refused("object.rm", bucket=SOURCE, key=b"k", version_id=before[1]) == "AccessDenied"
        world.restart()
        world.write("new", b"new")
        world.settle()
        assert set(world.history(SOURCE)) == {b"k", b"other", b"new"}
    assert [len(ids(world, key)) for key in ("k", "other")] == [2, 1]
    assert [key for _, key, _ in events(world)] == ["other"]
    assert run(world) == {"NoncurrentVersionExpiration": 1}
    assert ids(world, "k") == before[:1]


def test_an_expiration_only_places_a_marker_on_a_locked_version(world: World, clock: Clock) -> None:
    """5.5, 5."""
    world.write("k", b"data")
    world.settle()
    put(world, days(2))
    clock(LATER)
    with locked(stored(world, "k")):
        assert run(world) == {"Expiration": 1}
        world.settle()
        assert [each.marker for each in world.of("k")] == [True, False]
        assert world.tree(SOURCE) == {}
    world.stays_quiet()


def test_content_in_a_tier_that_is_locked_is_kept(world: World, clock: Clock) -> None:
    """5.5, 5: `chattr +i` on the symlink of a view locks the content to which it leads."""
    tier = add_tier(world)
    for data in (b"one" * 2000, b"two" * 2000):
        world.write("k", data)
        world.settle()
    put(world, OLD)
    clock(LATER)
    run(world)
    world.settle()
    (there,) = (path for path in (tier / "src").iterdir() if path.is_file())
    put(world, old_versions())
    clock("2026-07-01T00:00:01Z")
    with locked(there):
        assert run(world) == {}
        world.settle()
        assert len(ids(world, "k")) == 2
    assert run(world) == {"NoncurrentVersionExpiration": 1}
    world.settle()
    assert not there.exists()
