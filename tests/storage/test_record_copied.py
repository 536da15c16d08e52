"""Records of other versions on a view that is the stored file: a copy of attributes damages no version for long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.world import DESTINATION, SOURCE, World


def copy_attributes(a: Path, b: Path) -> None:
    """The effect of root's `rsync -X` on a file of the same size and time."""
    for name in os.listxattr(b):
        if name not in os.listxattr(a):
            os.removexattr(b, name)
    for name in os.listxattr(a):
        os.setxattr(b, name, os.getxattr(a, name))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write trusted attributes")
@pytest.mark.parametrize("then", ["nothing", "written", "removed"])
def test_attributes_of_another_view_damage_no_version(tmp_path: Path, then: str) -> None:
    """Sections 2 and 7, G1, G11: the record is rebuilt, and later changes of the file are captured."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        for key in ("a", "b"):
            world.write(key, b"the same")
            os.setxattr(world.path(key), "user.of", key.encode())
        world.settle()
        there = world.ids(DESTINATION)
        copy_attributes(world.path("a", DESTINATION), world.path("b", DESTINATION))
        world.settle()
        if then == "written":
            world.write("b", b"new", DESTINATION)
        elif then == "removed":
            world.unlink("b", DESTINATION)
        for _ in range(3):
            world.settle()
        found = world.ids(DESTINATION)
        assert found[b"a"] == there[b"a"]
        assert found[b"b"][:1] == there[b"b"]
        assert len(found[b"b"]) == (1 if then == "nothing" else 2)
        assert world.tree(DESTINATION).get("b") == {"nothing": b"the same", "written": b"new"}.get(then)
        assert world.tree(SOURCE) == {"a": b"the same", "b": b"the same"}
        assert world.leftovers(DESTINATION) == []
