"""Coarse file times: a write within one step of the clock leaves the times unchanged, and is found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.storage import times
from fsrepl.storage.fs import Fs
from tests.doubles import CoarseFs
from tests.world import DESTINATION, SOURCE, World

TICK, SECOND, TWO = 10_000_000, 1_000_000_000, 2_000_000_000


@pytest.fixture(params=[TICK, SECOND, TWO], ids=["ticks", "whole seconds", "even seconds"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """Before Linux 6.13; ext3, and ext4 with inodes of 128 bytes; FAT."""
    with World(tmp_path, fs=CoarseFs(request.param)) as found:
        yield found


def test_a_change_that_leaves_the_same_coarse_times(world: World) -> None:
    """G6: of the same size and within one step of the clock; a scan finds it."""
    for number in range(20):
        world.write("k", b"%02d" % number)
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"%02d" % number}
    assert len(world.ids(SOURCE)[b"k"]) == 20


def test_a_replica_that_is_edited_in_the_step_in_which_it_came(world: World) -> None:
    """G1, G6: its view was recorded by fsrepl and not captured; a scan finds the edit as well."""
    world.write("k", b"ours")
    world.settle()
    world.write("k", b"mine", DESTINATION)
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == b"mine"
    assert len(world.of("k", DESTINATION)) == 2


def test_an_edit_of_a_replica_is_kept_where_the_next_version_comes_in_the_same_step(world: World) -> None:
    """G1: no scan comes in between. A file taken out of the view is compared by its hash, and becomes a version."""
    world.write("k", b"ours")
    world.settle()
    world.write("k", b"mine", DESTINATION)
    world.write("k", b"next, longer")
    world.capture(SOURCE)
    world.engine.run_until_idle()
    world.settle()
    contents = {v.size for v in world.of("k", DESTINATION)}
    assert contents == {4, 12}
    assert len(world.of("k", DESTINATION)) == 3


def test_coarse_times_are_recognised_by_measurement(tmp_path: Path) -> None:
    """Section 7: this kernel's own times are recognised as fine or coarse by inspection; as clock ticks where that
    fails."""
    at = os.open(tmp_path, os.O_RDONLY)
    try:
        assert times.coarse_ns(CoarseFs(TICK), at) == times.TICKS_NS
        assert times.coarse_ns(CoarseFs(SECOND), at) == times.WHOLE_NS
        assert times.coarse_ns(CoarseFs(TWO), at) == times.WHOLE_NS
        assert os.listdir(tmp_path) == []
        proc = os.open("/proc", os.O_RDONLY)
        assert times.coarse_ns(Fs(), proc) == times.TICKS_NS
        os.close(proc)
    finally:
        os.close(at)
    assert times.of_changes([11, 12, 13]) == 0
    assert times.of_changes([11, 11, 13]) == times.TICKS_NS
    assert times.of_changes([SECOND, SECOND]) == times.WHOLE_NS


@pytest.mark.parametrize(
    ("ctime_ns", "later_ns", "coarse_ns", "racy"),
    [
        (SECOND + 1, 0, 0, False),
        (SECOND + 1, TICK, times.TICKS_NS, True),
        (SECOND + 1, 2 * TICK, times.TICKS_NS, False),
        (SECOND, SECOND + TICK, 0, True),  # an old inode beside new ones
        (SECOND, times.WHOLE_NS, 0, False),
        (SECOND, TWO + TICK, times.WHOLE_NS, True),  # on FAT, and the clock of files lags behind
    ],
)
def test_how_long_times_are_not_trusted(ctime_ns: int, later_ns: int, coarse_ns: int, *, racy: bool) -> None:
    """Section 7: for as long as a change may leave them unchanged; a whole second counts as coarse everywhere."""
    assert times.is_racy(ctime_ns, ctime_ns + later_ns, coarse_ns) is racy
