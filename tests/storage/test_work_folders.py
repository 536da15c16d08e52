"""The folders of .fsrepl that hold no lasting data: made where they are first needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.storage.fs import ReadingFs
from fsrepl.storage.site import Site
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World

FOLDERS = ("tmp", "displaced", "intents")


def remove_folders(world: World) -> None:
    for bucket in (SOURCE, DESTINATION):
        for name in FOLDERS:
            world.path(f".fsrepl/{name}", bucket).rmdir()


@pytest.mark.parametrize("restarted", [False, True])
def test_folders_that_were_removed_are_made_again(memory: Path, restarted: bool) -> None:
    """G7: nothing of what they are for is lost with them, while fsrepl runs and while it does not."""
    with World(memory) as world:
        world.write("k", b"one")
        world.settle()
        remove_folders(world)
        if restarted:
            world.restart()
        world.write("k", b"two")
        world.write("new", b"new")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"two", "new": b"new"}
        assert world.ids(DESTINATION) == world.ids(SOURCE)


def test_two_that_need_a_folder_at_once_both_have_it(memory: Path) -> None:
    """Each batch opens the bucket anew: two threads may find that a folder is missing."""

    class Racing(UnsyncedFs):
        """Another thread makes the folder just before."""

        def make_dir(self, at: int, name: bytes, mode: int = 0o700) -> None:
            super().make_dir(at, name, mode)
            super().make_dir(at, name, mode)

    with World(memory) as world:
        remove_folders(world)
        world.restart(fs=Racing())
        with world.engine.site.bucket(SOURCE).open() as bucket:
            assert min(bucket.tmp, bucket.displaced, bucket.intents) >= 0


def test_a_reader_makes_none(memory: Path) -> None:
    """Section 5: commands that read change nothing."""
    with World(memory) as world:
        remove_folders(world)
        with Site(world.settings, ReadingFs()).bucket(SOURCE).open() as bucket:
            assert (bucket.tmp, bucket.displaced, bucket.intents) == (-1, -1, -1)
        assert not any(world.path(f".fsrepl/{name}").exists() for name in FOLDERS)
