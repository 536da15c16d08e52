"""Directories whose owner may not write to them, as 0555, and a daemon that is their owner and no root."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

import pytest

from fsrepl.model.version import Origin, Status
from fsrepl.views import directories
from tests.doubles import EACH_CHANGE, DyingFs, PowerCut
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, worlds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
ACTS = ("new", "changed", "one gone", "all gone")


def act(world: World, what: str) -> None:
    """Change what is in a directory that is closed afterwards, and was before."""
    top = world.path("d")
    if top.exists():
        top.chmod(0o755)
    match what:
        case "new":
            world.write("d/k", b"one")
        case "changed":
            world.write("d/new", b"new")
            world.write("d/k", b"two")
        case "one gone":
            world.unlink("d/new")
        case "all gone":
            shutil.rmtree(top)
    if top.exists():
        top.chmod(0o555)


def settle(world: World) -> None:
    for _ in range(3):
        world.settle()


def alike(world: World, where: str = "") -> None:
    assert world.tree(DESTINATION) == world.tree(SOURCE), where
    modes = [{p.name: p.stat().st_mode for p in world.path(bucket=b).iterdir() if p.name != ".fsrepl"}
             for b in (SOURCE, DESTINATION)]  # fmt: skip
    assert modes[0] == modes[1], where
    assert not world.state(DESTINATION).views.stale, where
    assert world.ids(SOURCE) == world.ids(DESTINATION), where
    assert world.statuses() <= {Status.COMPLETED}, where


@pytest.mark.parametrize("trees", [False, True])
def test_what_is_in_a_closed_directory_is_shown_changed_and_removed(users_home: Path, trees: bool) -> None:
    """As at the source; the directory has the source's mode afterwards, and goes when it is empty."""
    with World(users_home, trees=trees) as world:
        for what in ACTS:
            act(world, what)
            settle(world)
            alike(world, what)
            assert verify(world) == []
        assert not world.path("d", DESTINATION).exists()
        world.stays_quiet()


def test_a_directory_that_its_owner_may_not_open_is_opened_again(users_home: Path) -> None:
    """As at the source, with its attributes, and its files are shown then; one that stays closed can be removed."""
    with World(users_home, trees=True) as world:
        for name in ("d", "gone"):
            world.path(name).mkdir()
            os.setxattr(world.path(name), "user.note", b"old")
        world.settle()
        for name in ("d", "gone"):
            world.path(name).chmod(0)
        settle(world)
        assert stat.S_IMODE(world.path("d", DESTINATION).stat().st_mode) == 0
        world.path("d").chmod(0o750)
        os.setxattr(world.path("d"), "user.note", b"new")
        world.write("d/k", b"content")
        world.path("gone").rmdir()
        settle(world)
        alike(world)
        assert world.tree(DESTINATION) == {"d/k": b"content"}
        assert os.getxattr(world.path("d", DESTINATION), "user.note") == b"new"
        assert verify(world) == []


def test_a_closed_directory_whose_user_has_closed_it_again_is_removed(users_home: Path) -> None:
    """Its ctime is another one when its marker arrives, and what it has cannot be compared: it waits for nothing."""
    with World(users_home, trees=True) as world:
        world.path("d").mkdir()
        world.settle()
        world.path("d").chmod(0)
        settle(world)
        world.path("d", DESTINATION).chmod(0)
        world.path("d").rmdir()
        world.capture(SOURCE)
        assert world.engine.run_until_idle()
        settle(world)
        alike(world)
        assert not world.path("d", DESTINATION).exists()


@pytest.mark.parametrize("trees", [False, True])
def test_only_the_owner_may_write_meanwhile(users_home: Path, trees: bool) -> None:
    """G4: and readers see the old file or the new one."""
    with World(users_home, trees=trees) as world:
        act(world, "new")
        settle(world)
        seen = set()
        real = world.engine.fs.chmod

        def chmod(fd: int, mode: int) -> None:
            real(fd, mode)
            seen.add(os.stat(world.path("d", DESTINATION)).st_mode & 0o777)
            assert world.path("d/k", DESTINATION).read_bytes() in (b"one", b"two")

        world.engine.fs.chmod = chmod  # type: ignore[method-assign]
        act(world, "changed")
        settle(world)
        del world.engine.fs.chmod
        assert seen == {0o555, 0o755}
        alike(world)


@pytest.mark.slow
@pytest.mark.parametrize("trees", [False, True] if EACH_CHANGE else [True])
def test_power_cut_while_the_daemon_may_write(users_memory: Path, trees: bool) -> None:
    """G7: after a cut at any change the directory has its mode again, and that is no user's change.

    A tree bucket makes all 23 changes, in the same lines of code, that another makes, and one more.
    """
    for calls, world in worlds(users_memory, trees=trees):
        act(world, "new")
        settle(world)
        act(world, "changed")
        world.look()
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            settle(world)
        world.restart(without_journal=calls % 2 == 1)
        settle(world)
        where = f"cut at {calls}, in {fs.died_in}"
        alike(world, where)
        if trees:
            assert {v.origin for v in world.of("d/", DESTINATION)} == {Origin.REPLICA}, where
        for bucket in (SOURCE, DESTINATION):
            world.path("d", bucket).chmod(0o755)  # so that it can be removed
        if not fs.died:
            return


def test_a_closed_directory_gets_the_attributes_of_its_source(users_home: Path) -> None:
    """New values, and no value that its source has no more, and its mode is the source's again."""
    with World(users_home, trees=True) as world:
        world.path("d").mkdir()
        for name in ("user.note", "user.gone"):
            os.setxattr(world.path("d"), name, b"old")
        world.path("d").chmod(0o555)
        settle(world)
        world.path("d").chmod(0o755)
        os.setxattr(world.path("d"), "user.note", b"new")
        os.removexattr(world.path("d"), "user.gone")
        world.path("d").chmod(0o555)
        settle(world)
        alike(world)
        replica = world.path("d", DESTINATION)
        assert {name: os.getxattr(replica, name) for name in os.listxattr(replica)} == {"user.note": b"new"}
        assert verify(world) == []
        world.stays_quiet()


def test_a_closed_directory_that_was_made_for_a_file_stays_when_it_is_empty(users_home: Path) -> None:
    """It is an object since its version arrived, though it could not be written to."""
    with World(users_home, trees=True) as world:
        world.path("d").mkdir()
        act(world, "new")
        settle(world)
        replica = world.path("d", DESTINATION)
        with world.engine.site.bucket(DESTINATION).open() as bucket:
            replica.chmod(0o755)
            directories.adopt(bucket, b"d")
            replica.chmod(0o555)
            world.engine.journal.views.see(DESTINATION, b"d/", None)
        settle(world)
        world.path("d").chmod(0o755)
        world.unlink("d/k")
        world.path("d").chmod(0o555)
        settle(world)
        alike(world)
        assert replica.exists()


@pytest.mark.parametrize("without_journal", [False, True])
def test_power_cut_while_a_closed_directory_gets_attributes(users_memory: Path, without_journal: bool) -> None:
    """G7: after a cut at any change the directory has its mode again, and that is no user's change."""
    for calls, world in worlds(users_memory, trees=True):
        world.path("d").mkdir()
        os.setxattr(world.path("d"), "user.note", b"old")
        world.path("d").chmod(0o555)
        settle(world)
        world.path("d").chmod(0o755)
        os.setxattr(world.path("d"), "user.note", b"new")
        world.path("d").chmod(0o555)
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            settle(world)
        world.restart(without_journal=without_journal)
        settle(world)
        where = f"cut at {calls}, in {fs.died_in}"
        alike(world, where)
        assert os.getxattr(world.path("d", DESTINATION), "user.note") == b"new", where
        assert {v.origin for v in world.of("d/", DESTINATION)} == {Origin.REPLICA}, where
        for bucket in (SOURCE, DESTINATION):
            world.path("d", bucket).chmod(0o755)  # so that it can be removed
        if not fs.died:
            return
