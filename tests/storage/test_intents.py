"""Intents are files: one that cannot be written leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.errors import FsreplError
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World, v2


class NoRoomForIntents(UnsyncedFs):
    """A disk that is full, or fails, just when an intent is written, or made durable."""

    def __init__(self, call: str) -> None:
        self.call, self.faults, self.failing = call, 0, False

    def write(self, fd: int, data: bytes) -> None:
        if self.call == "write" and os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[0].endswith("/intents"):
            self._fail()
        super().write(fd, data)

    def sync_all(self, fd: int) -> None:
        if self.call == "sync_all" and os.listdir(f"/proc/self/fd/{fd}/.fsrepl/intents"):
            self._fail()

    def _fail(self) -> None:
        if self.failing:
            self.faults += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hold_a_view(world: World) -> None:
    (world.path("new", DESTINATION) / "theirs").mkdir(parents=True)
    (world.path("new", DESTINATION) / "theirs" / "file").write_bytes(b"theirs")
    world.write("new", b"a replica whose view must wait")


def let_it_be_seen(world: World) -> None:
    path = world.path("new", DESTINATION)
    (path / "theirs" / "file").unlink()
    (path / "theirs").rmdir()
    path.rmdir()


def deliver(world: World) -> None:
    world.write("k", b"three")


def edit(world: World) -> None:
    world.path("k").chmod(0o640)


def tag(world: World) -> None:
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "1"}, version_id=None)


def restore(world: World) -> None:
    world.run("object.restore", bucket=SOURCE, key=b"k", version_id=world.of("k")[1].id)


def remove(world: World) -> None:
    world.remove("k", SOURCE, world.current("k").id)


@pytest.mark.parametrize("call", ["write", "sync_all"])
@pytest.mark.parametrize("act", [hold_a_view, deliver, edit, tag, restore, remove], ids=lambda act: act.__name__)
def test_an_intent_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, act: Callable[[World], None], call: str
) -> None:
    """G7: once there is room again everything is done, and no file is left behind, without a restart."""
    with World(tmp_path, replicate=False) as world:
        world.configure(v2(markers=True))
        for data in (b"one", b"two"):
            world.write("k", data)
            world.settle()
        fs = NoRoomForIntents(call)
        world.restart(fs=fs)
        world.settle()
        fs.failing = True
        with contextlib.suppress(FsreplError):  # a command reports it, and is run again
            act(world)
        world.settle()
        world.settle()
        assert fs.faults
        fs.failing = False
        if act is hold_a_view:
            let_it_be_seen(world)
        elif act in (tag, restore, remove):
            act(world)
        world.settle()
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == []
        if act is remove:  # a permanent removal stays where it was made
            assert world.tree(SOURCE) == {"k": b"one"}
        else:
            assert world.tree(SOURCE) == world.tree(DESTINATION)
            assert world.look_of("k") == world.look_of("k", DESTINATION)


def test_what_is_no_file_among_the_intents_is_left_alone(tmp_path: Path) -> None:
    """G7: a start reads the intents; a directory, a link or a FIFO among them does not take the bucket offline."""
    with World(tmp_path) as world:
        intents = world.path(".fsrepl/intents")
        (intents / "directory").mkdir()
        (intents / "link").symlink_to("/etc")
        os.mkfifo(intents / "fifo")
        world.restart()
        world.write("k", b"k")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"k"}
        assert {path.name for path in intents.iterdir()} == {"directory", "link", "fifo"}
