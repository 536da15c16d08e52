"""A sequence of all kinds of user actions, for tests in which one of the following steps fails."""

from __future__ import annotations

import os

from tests.world import World

VERSIONS = {b"d/k": 2, b"d/gone": 2, b"kept": 2, b"moved": 1, b"new/deep/file": 1, b"large": 1}
"""How many versions and markers each key has in the end."""


def begin(world: World) -> None:
    world.write("d/k", b"one")
    world.write("d/gone", b"g")
    world.write("kept", b"k")
    world.settle()


def act(world: World) -> None:
    world.write("d/k", b"two, longer")
    world.unlink("d/gone")
    world.path("kept").rename(world.path("moved"))
    os.chmod(world.path("moved"), 0o640)
    os.setxattr(world.path("moved"), "user.fsrepl.tag.a", b"1")
    world.write("new/deep/file", b"n" * 5000)
    world.write("large", b"l" * 100_000)
