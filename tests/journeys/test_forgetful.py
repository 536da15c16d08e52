"""Power cuts in which the disk loses data that was never synced, or some sectors of it: nothing that was reported as
done is undone."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.daemon.attach import Attaching
from fsrepl.model.version import Status
from fsrepl.storage import boot
from fsrepl.storage.bucket import content_digest
from fsrepl.storage.versions import open_version
from tests.doubles import DyingFs, PowerCut
from tests.forgetful import ForgetfulFs
from tests.journeys.test_power_cut import ACTS
from tests.world import DESTINATION, SOURCE, World, ids, statuses, worlds

SEEDS = int(os.environ.get("FSREPL_TORN", "4"))
LOST: list[dict[str, Any]] = [{}, {"names": False}, {"files": False}, {"region": "east"}, {"region": "west"}]
LOST += [{"torn": seed} for seed in range(SEEDS)]
"""What is lost: one of these at each change. FSREPL_TORN=10 tries all of ten seeds at each change."""


def _contents(world: World, bucket: str) -> Iterator[tuple[bytes, str, bytes]]:
    """Key, version id and BLAKE3 of the stored content; a marker has none."""
    with world.engine.site.bucket(bucket).open() as opened:
        for key, versions in world.history(bucket).items():
            for version in versions:
                fd = open_version(opened, key, version.id, marker=version.marker)
                yield key, version.id, b"" if version.marker else content_digest(opened, fd)
                opened.fs.close(fd)


def _is_kept(world: World, before: dict[bytes, list[str]]) -> None:
    """G3: the destination has the content of every version whose record says COMPLETED, and no version is gone."""
    there = {(key, version_id): digest for key, version_id, digest in _contents(world, DESTINATION)}
    history = world.history(SOURCE)
    for key, versions in history.items():
        for version in versions:
            if version.status is Status.COMPLETED:
                assert there.get((key, version.id)) == version.digest, (key, version.id)
    for key, known in before.items():
        assert set(known) <= {version.id for version in history[key]}, key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "sharing"),
    [*((act, "auto") for act in ACTS), *((act, "private") for act in ACTS[:3])],
    ids=lambda value: getattr(value, "__name__", value).strip("_"),
)
def test_a_power_cut_that_loses_unsynced_data_loses_no_version(
    memory: Path, act: Callable[[World], None], sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2, G3, G7: contents, names or both are lost, of one disk or both, or any sectors, at any change; in the end the
    state is the same as without."""
    boots, calls = map(str, itertools.count()), 0
    monkeypatch.setattr(boot, "boot_id", lambda: next(boots))
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: calls % 2 == 1))  # then as a daemon does
    for number, world in worlds(memory):
        if "FSREPL_TORN" in os.environ:
            calls, lost = number // SEEDS, {"torn": number}
        else:
            calls, lost = number, LOST[number % len(LOST)]
        if sharing != "auto":
            world.set_sharing(west=sharing)
        world.write("d/k", b"one")
        world.write("other", b"o")
        world.settle()
        act(world)
        there = world.tree(SOURCE)
        before = {key: [v.id for v in versions] for key, versions in world.history(SOURCE).items()}
        disk = ForgetfulFs(world.home / "attic")
        fs = DyingFs(calls, disk)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
        disk.forget(**lost)
        where = f"cut at change {calls}, in {fs.died_in}, lost {lost or 'everything'}"
        world.restart(without_journal=calls % 2 == 0)
        _is_kept(world, before)
        for _ in range(2):
            world.settle()
        assert world.tree(SOURCE) == there, where
        assert world.tree(DESTINATION) == there, where
        histories = {bucket: world.history(bucket) for bucket in (SOURCE, DESTINATION)}
        assert ids(histories[SOURCE]) == ids(histories[DESTINATION]), where
        assert max(len(found) for found in histories[SOURCE].values()) <= 2, where
        for bucket, history in histories.items():
            digests = {(key, v.id): v.digest for key, found in history.items() for v in found}
            assert {(key, version_id): digest for key, version_id, digest in _contents(world, bucket)} == digests, where
        assert statuses(histories[SOURCE]) == {"COMPLETED"}, where
        assert statuses(histories[DESTINATION]) == {"REPLICA"}, where
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
        if not fs.died:
            return
