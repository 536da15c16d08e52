"""A version that is permanently removed by its id: its view follows, and is never taken for a user's write."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.commands import status
from fsrepl.errors import FsreplError
from tests.doubles import DyingFs, FailingFs, PowerCut, Tried
from tests.world import DESTINATION, SOURCE, World, worlds


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["auto", "private"])
@pytest.mark.parametrize("versions", [1, 2])
def test_the_version_before_a_removed_one_is_current(
    memory: Path, sharing: str, versions: int, tried: Callable[..., Tried]
) -> None:
    """G1, s3-semantics 4: or the view is removed; at whichever change the power is cut."""
    others = tried(sharing)
    for calls, world in worlds(memory):
        if sharing != "auto":
            world.set_sharing(west=sharing)
        for number in range(versions):
            world.write("d/k", b"%d" % number)
            world.settle()
        before = [version.id for version in reversed(world.of("d/k", DESTINATION))]
        fs = DyingFs(calls, but=others)
        world.restart(fs=fs)
        done = False
        with contextlib.suppress(PowerCut):
            world.settle()
            world.remove("d/k", DESTINATION, before[-1])
            done = True
        world.restart()
        world.settle()
        where = f"cut at change {calls}, in {fs.died_in}"
        left = [version.id for version in reversed(world.of("d/k", DESTINATION))]
        assert left in ([before[:-1]] if done else [before, before[:-1]]), where
        assert world.tree(DESTINATION) == ({"d/k": b"%d" % (len(left) - 1)} if left else {}), where
        assert world.leftovers(DESTINATION) == [], where
        if not fs.died:
            return


def _objects(world: World) -> int:
    """The number of objects in the source, from status."""
    (found,) = (b for b in status.status(world.engine.site, {})["buckets"] if b["bucket"] == SOURCE)
    number: int = found["objects"]
    return number


@pytest.mark.parametrize("versions", [1, 2])
def test_removing_from_a_full_disk_leaves_the_counts_true(tmp_path: Path, versions: int) -> None:
    """G1, G11: at whichever change the disk is full, status counts the versions in the store, then and later. Once
    there is room the rest is done."""
    for calls in itertools.count():
        fs = FailingFs(1 << 60, errno.ENOSPC, for_ever=True)
        with World(tmp_path / str(calls), fs=fs, replicate=False, buckets=(SOURCE,)) as world:
            for number in range(versions):
                world.write("k", b"%d" % number)
                world.settle()
            before = [version.id for version in reversed(world.of("k"))]
            fs.calls_left = calls
            with contextlib.suppress(FsreplError, OSError):
                world.remove("k", version=before[-1])
            where = f"full at change {calls}, in {fs.failed_in}"
            assert _objects(world) == len(world.history(SOURCE)), where
            fs.mend()
            world.region().probe_now()
            world.settle()
            left = [version.id for version in reversed(world.of("k"))]
            assert left in (before, before[:-1]), where
            assert _objects(world) == len(world.history(SOURCE)) == min(1, len(left)), where
            assert world.tree(SOURCE) == ({"k": b"%d" % (len(left) - 1)} if left else {}), where
            if not fs.failed:
                return


def test_a_line_that_a_crash_cut_short_damages_no_other_line(tmp_path: Path) -> None:
    """G7, s3-semantics 9.8: removals recorded before and after that line are remembered."""
    with World(tmp_path, buckets=(SOURCE,), replicate=False) as world:
        removed = []
        for data in (b"one", b"two", b"three"):
            world.write("k", data)
            world.settle()
        for version in world.of("k")[1:]:
            world.remove("k", version=version.id)
            removed.append((b"k", version.id))
            with world.path(".fsrepl/removed.jsonl").open("ab") as file:
                file.write(b'{"key": "k", "ver')
        world.settle()
        assert world.state().bucket.documents.removed == set(removed)
        world.restart()
        assert world.engine.site.bucket(SOURCE).documents.removed == set(removed)
        world.path(".fsrepl/removed.jsonl").unlink()
        world.settle()
        assert world.state().bucket.documents.removed == set()
