"""The disk fails once, at every change in turn, while an edit of metadata is recorded, sent and applied."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Container
from pathlib import Path

import pytest

from fsrepl.errors import FsreplError
from fsrepl.model.version import Status
from tests.doubles import FailingFs, Place, Tried
from tests.replicate.test_edit_power_cut import attribute, chmod, large, replica_chmod, rule, tag
from tests.world import DESTINATION, SOURCE, World, statuses


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("act", [chmod, attribute, large, tag, replica_chmod], ids=lambda act: act.__name__)
def test_a_fault_at_every_change(
    tmp_path: Path, act: Callable[[World], None], number: int, tried: Callable[..., Tried]
) -> None:
    """s3-semantics 3.2: a passing fault is tried again; then both sides have the edit, and nothing changes any more."""
    fail_at_every_change(tmp_path, act, number, tried(number))


@pytest.mark.slow
def test_a_view_that_was_given_only_some_of_its_tags_is_no_edit(memory: Path) -> None:
    """G1: tags that a fault kept from a replica's view are not taken for its user's edit, and sent back as one.

    In memory the scan comes before the next try.
    """
    fail_at_every_change(memory, tag, errno.EIO)


def fail_at_every_change(home: Path, act: Callable[[World], None], number: int, others: Container[Place] = ()) -> None:
    for calls in itertools.count():
        with World(home / str(calls), replicate=False) as world:
            world.configure(rule(DESTINATION), source=SOURCE)
            world.configure(rule(SOURCE), source=DESTINATION)
            world.write("k", b"data")
            os.setxattr(world.path("k"), "user.colour", b"blue")
            os.setxattr(world.path("k"), "user.fsrepl.tag.a", b"1")
            world.settle()
            fs = FailingFs(1 << 40, number, but=others)
            world.restart(fs=fs)
            world.settle()
            if act is not tag:
                act(world)
            fs.calls_left = calls
            if act is tag:
                try:
                    act(world)
                except (FsreplError, OSError):
                    act(world)  # a command that failed is run again
            for _ in range(3):
                world.settle()
            where = f"fault at change {calls}"
            if number != errno.ENOSPC:  # this errno also means that an attribute does not fit: then a view lacks it
                assert world.look_of("k") == world.look_of("k", DESTINATION), where
            source, destination = world.history(SOURCE), world.history(DESTINATION)
            a, b = source[b"k"][-1], destination[b"k"][-1]
            assert (a.posix, a.attrs, a.tags) == (b.posix, b.attrs, b.tags), where
            assert (len(source[b"k"]), len(destination[b"k"])) == (1, 1), where
            assert (statuses(source), statuses(destination)) == ({Status.COMPLETED}, {Status.REPLICA}), where
            if not fs.failed:
                return
