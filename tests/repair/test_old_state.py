"""A state that is older than the trees: restored from a backup, from a machine that was set back, or of another site.

The trees are the truth, and no row of the old journal is taken for a user's change.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.model.version import Status
from fsrepl.region.scan_queue import Scans
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


class Backup:
    """A copy of a site's state, made while no process runs. A restart after restoring it finds the old state."""

    def __init__(self, world: World) -> None:
        self.world, self.copy = world, world.home / "backup"
        end(world)
        shutil.copytree(world.engine.site.state, self.copy)
        world.restart()
        world.settle()

    def restore(self) -> None:
        end(self.world)
        state = Path(self.world.engine.site.state)
        shutil.rmtree(state)
        shutil.copytree(self.copy, state)
        self.world.restart()


def end(world: World) -> None:
    """End the process in order."""
    for region in world.engine.regions.values():
        region.last_turn()
    world.engine.close()


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "at-once"])
def test_a_new_file_is_shown_where_the_state_is_from_before_a_deletion(world: World, *, scanned: bool) -> None:
    """G1, G5: the destination already had the deletion. It makes no marker of its own for the version that arrives."""
    world.write("k", b"one")
    world.settle()
    backup = Backup(world)
    world.unlink("k")
    world.settle()
    backup.restore()
    if scanned:
        world.settle()
    world.write("k", b"two")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"two"}
    assert world.ids(DESTINATION) == world.ids(SOURCE)
    world.stays_quiet()


def test_a_source_machine_that_was_set_back_sends_what_is_written_next(world: World) -> None:
    """G5: its state and its region are those of a snapshot, and the destination has everything since then."""
    world.write("k", b"one")
    world.write("gone", b"one")
    world.settle()
    backup = Backup(world)
    east, snapshot = world.settings.regions["east"].path, world.home / "snapshot"
    shutil.copytree(east, snapshot)
    world.write("k", b"lost with the machine")
    world.unlink("gone")
    world.settle()
    end(world)
    shutil.rmtree(east)
    snapshot.rename(east)
    world.restart()
    backup.restore()
    world.settle()
    world.write("k", b"three")
    world.write("gone", b"three")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"three", "gone": b"three"}
    for key in ("k", "gone"):
        assert world.current(key, DESTINATION).id == world.current(key).id


def _replaced(world: World) -> None:
    world.drop("k", b"two")


def _written(world: World) -> None:
    world.write("k", b"two")


def _edited(world: World) -> None:
    os.chmod(world.path("k"), 0o600)


def _deleted_and_made_again(world: World) -> None:
    world.unlink("k")
    world.settle()
    world.write("k", b"one")


@pytest.mark.parametrize("change", [_replaced, _written, _edited, _deleted_and_made_again])
def test_an_old_row_of_a_view_makes_no_version_beside_a_delivery(world: World, change: Callable[[World], None]) -> None:
    """G5, G6: a delivery arrives before the destination was scanned. The existing file is a replica, not a user's
    write."""
    world.write("k", b"one")
    world.settle()
    backup = Backup(world)
    change(world)
    world.settle()
    world.drop("k", b"three")
    world.capture(SOURCE)
    backup.restore()
    for region in world.engine.regions.values():
        region.probe_buckets()
    world.state(DESTINATION).scans = Scans()  # as if its scan had not reached that directory
    world.engine.run_until_idle()
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"three"}
    assert world.ids(DESTINATION) == world.ids(SOURCE)


def test_a_users_write_is_captured_though_an_old_row_knows_its_content(world: World) -> None:
    """G1: the user wrote the content that an old row has again, into the same file, since then."""
    world.write("k", b"one")
    world.settle()
    backup = Backup(world)
    world.write("k", b"two")
    world.settle()
    world.write("k", b"one")
    backup.restore()
    world.settle()
    assert world.path("k").read_bytes() == b"one"
    first, *_, last = world.history(SOURCE)[b"k"]
    assert (last.digest, len(world.of("k"))) == (first.digest, 3)
    assert world.tree(DESTINATION) == {"k": b"one"}


def test_an_edit_that_was_pending_since_then_is_delivered(world: World) -> None:
    """G7, G11: an edit was recorded and pending when the journal from before it is restored."""
    world.write("k", b"one")
    world.settle()
    backup = Backup(world)
    world.away("west")
    os.chmod(world.path("k"), 0o600)
    world.settle()
    assert world.statuses() == {Status.PENDING}
    backup.restore()
    world.back("west")
    world.settle()
    assert world.path("k", DESTINATION).stat().st_mode & 0o777 == 0o600
    assert world.statuses() == {Status.COMPLETED}


class CountingFs(UnsyncedFs):
    """Counts the attributes that are read."""

    reads = 0

    def attribute(self, fd: int, name: str) -> bytes | None:
        self.reads += 1
        return super().attribute(fd, name)


def test_a_current_journal_is_trusted(tmp_path: Path) -> None:
    """Section 7: a restart compares instead of reading everything, after a crash as after an orderly end."""
    with World(tmp_path) as world:
        for number in range(40):
            world.write(f"{number}", b"k")
        world.settle()
        for orderly in (True, False):
            if orderly:
                end(world)
            fs = CountingFs()
            world.restart(fs=fs)
            world.settle()
            assert fs.reads < 40
