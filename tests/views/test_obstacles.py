"""Directories that replication made, in the place of a view: all of a tree of them goes, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model import attributes
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import obstacles
from tests.world import DESTINATION, World


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory, replicate=False) as made:
        yield made


def make(world: World, *paths: str) -> None:
    """Directories as replication makes them."""
    for path in paths:
        at = world.path(path, DESTINATION)
        at.mkdir()
        os.setxattr(at, attributes.MADE, b"1")


def opened(world: World) -> OpenBucket:
    return world.engine.site.bucket(DESTINATION).open()


def test_directories_that_hold_nothing_else_go_with_those_in_them(world: World) -> None:
    make(world, "d", "d/e", "d/e/f", "d/g", "other")
    with opened(world) as bucket:
        assert obstacles.clear(bucket, b"d")
    assert not world.path("d", DESTINATION).exists()
    assert world.path("other", DESTINATION).exists()


@pytest.mark.parametrize("theirs", ["file", "directory", "link"])
def test_what_a_user_put_there_keeps_all_of_it(world: World, theirs: str) -> None:
    """Section 5: nothing of a user's is removed for a replica, nor the directories beside it."""
    make(world, "d", "d/e", "d/e/f", "d/g")
    path = world.path("d/e/theirs", DESTINATION)
    {"file": path.touch, "directory": path.mkdir, "link": lambda: path.symlink_to("nowhere")}[theirs]()
    with opened(world) as bucket:
        assert not obstacles.clear(bucket, b"d")
    assert path.is_symlink() or path.exists()
    assert world.path("d/e/f", DESTINATION).is_dir()
    assert world.path("d/g", DESTINATION).is_dir()


@pytest.mark.parametrize("what", ["file", "link", "nothing"])
def test_what_is_no_directory_is_not_cleared(world: World, what: str) -> None:
    path = world.path("d", DESTINATION)
    {"file": path.touch, "link": lambda: path.symlink_to("."), "nothing": lambda: None}[what]()
    with opened(world) as bucket:
        assert not obstacles.clear(bucket, b"d")


def test_however_deep_they_are(world: World) -> None:
    """Keys of 1,024 bytes have up to 512 directories, and a tree that is moved may have more."""
    make(world, *("/".join(["d"] * depth) for depth in range(1, 1_100)))
    with opened(world) as bucket:
        assert obstacles.clear(bucket, b"d")
    assert not world.path("d", DESTINATION).exists()
