"""A disk that fails at every single change, once or from then on: steps that cannot be done wait, and are done
later.

Four faults take turns from change to change, two that pass and two that last: the acts make most kinds of change for
several keys, so that each kind meets both. Where replicas have a file of their own a change meets the next fault; those
at places in the code that have met both kinds before are left out. With FSREPL_LONG=1 each fault meets every change, in
both.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.errors import FsreplError
from tests import deeds
from tests.doubles import EACH_CHANGE, FailingFs, Tried
from tests.world import DESTINATION, SOURCE, ids, statuses, worlds

FAULTS = ((errno.EIO, False), (errno.ENOSPC, True), (errno.EDQUOT, False), (errno.EROFS, True))
"""An errno, and whether it lasts until it is mended."""
TURNS = range(len(FAULTS)) if EACH_CHANGE else (0,)


@pytest.mark.slow(10)
@pytest.mark.parametrize("sharing", ["auto", "private"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_fault_at_every_change(memory: Path, sharing: str, turn: int, tried: Callable[..., Tried]) -> None:
    """G1, G2, G3, G7: nothing is FAILED, nothing is lost or doubled, and no file is left behind once the disk works
    again."""
    met = {kind: tried(kind) for kind in (False, True)}  # a fault that passes, and one that lasts
    others = met[False].before & met[True].before
    for calls, world in worlds(memory):
        if sharing != "auto":
            world.set_sharing(west=sharing)
        deeds.begin(world)
        deeds.act(world)
        there = world.tree(SOURCE)
        number, lasts = FAULTS[(calls + turn + (sharing != "auto")) % len(FAULTS)]
        fs = FailingFs(1 << 60, number, but=others)
        world.restart(fs=fs)
        fs.calls_left, fs.for_ever = calls, lasts
        try:
            world.settle()
        except (FsreplError, OSError) as error:
            pytest.fail(f"fault at change {calls}: {error!r} came out of the loop")
        failed = fs.failed
        where = f"{errno.errorcode[number]} at change {calls}, in {fs.failed_in}{', until mended' if lasts else ''}"
        assert "FAILED" not in world.statuses(), where
        assert world.tree(SOURCE) == there, where
        fs.mend()
        for _ in range(3):
            world.settle()
        assert world.tree(SOURCE) == there == world.tree(DESTINATION), where
        source, destination = world.history(SOURCE), world.history(DESTINATION)
        assert ids(source) == ids(destination), where
        assert {key: len(found) for key, found in source.items()} == deeds.VERSIONS, where
        assert statuses(source) == {"COMPLETED"}, where
        assert statuses(destination) == {"REPLICA"}, where
        assert world.look_of("moved") == world.look_of("moved", DESTINATION), where
        world.restart()
        world.settle()
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
        if not failed:
            return
        met[lasts].add(fs.place)
