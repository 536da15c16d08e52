"""`fsrepl verify` and hard links of a tree bucket."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fsrepl.views import link_groups, relinking
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World


def torn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three names of one file at the source, of which the replica makes separate files."""
    with monkeypatch.context() as patch:
        patch.setattr(link_groups.LinkGroups, "stage", lambda *_: b"")
        patch.setattr(relinking, "_apart", lambda *_: [])
        world.write("a", b"content")
        world.write("other", b"content")
        world.settle()
        world.path("d").mkdir()
        for name in ("b", "d/c"):
            os.link(world.path("a"), world.path(name))
        for _ in range(3):
            world.settle()
        for state in (world.state(SOURCE), world.state(DESTINATION)):
            state.views.may_lack_links = False


def inodes(world: World, bucket: str) -> set[int]:
    return {world.path(name, bucket).stat().st_ino for name in ("a", "b", "d/c")}


def test_names_of_one_file_that_are_several_in_the_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named, and repaired; another file of the same content is none of them."""
    with World(tmp_path, trees=True) as world:
        torn(world, monkeypatch)
        assert len(inodes(world, DESTINATION)) == 3
        found = [(DESTINATION, name, "ViewDiffers", False) for name in ("b", "d/c")]
        assert verify(world) == found
        assert verify(world, repair=True) == [(*each[:3], True) for each in found]
        assert len(inodes(world, DESTINATION)) == 1
        assert world.path("other", DESTINATION).stat().st_ino not in inodes(world, DESTINATION)
        assert verify(world) == []
        world.path("b").write_bytes(b"newer")
        for _ in range(3):
            world.settle()
        assert world.path("d/c", DESTINATION).read_bytes() == b"newer"
        assert verify(world) == []
        world.stays_quiet()


def test_a_name_that_a_user_has_replaced_is_no_difference(tmp_path: Path) -> None:
    """It is a change that is not captured yet; nor is one at the source."""
    with World(tmp_path, trees=True) as world:
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        for _ in range(3):
            world.settle()
        assert verify(world) == []
        for bucket in (DESTINATION, SOURCE):
            shutil.copy2(world.path("b", bucket), world.home / "copy")
            (world.home / "copy").rename(world.path("b", bucket))
            assert verify(world) == []


def test_links_outside_tree_buckets_are_not_compared(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.write("a", b"content")
        os.link(world.path("a"), world.path("b"))
        world.settle()
        assert verify(world) == []
