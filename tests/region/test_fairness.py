"""A burst in one bucket delays no other bucket of its region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fsrepl.capture import ingest
from fsrepl.daemon import worker
from fsrepl.region import outcome_queue, rotation
from fsrepl.region.change_queue import Change
from fsrepl.replicate import deliver
from tests.world import DESTINATION, SOURCE, World

QUIET, QUIET_REPLICA = "east/quiet", "west/quiet"
BURST = 200


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A bucket with a burst of changes, and another replicated bucket in the same region; batches are small."""
    for module, name, number in ((worker, "BATCH", 32), (outcome_queue, "_BATCH", 32), (rotation, "SHARE_MIN", 8)):
        monkeypatch.setattr(module, name, number)
    world = World(tmp_path, buckets=(SOURCE, DESTINATION, QUIET, QUIET_REPLICA))
    world.run("replication.enable", source=QUIET, destination=QUIET_REPLICA)
    world.settle()
    for number in range(BURST):
        world.write(f"f{number}", b"x")
    world.look()
    for _ in range(3):
        world.engine.turn()
    assert 0 < len(world.tree(DESTINATION)) < BURST
    return world


def test_a_new_file_in_a_quiet_bucket_goes_before_the_rest_of_a_burst(busy: World) -> None:
    """A file in the other bucket is captured and delivered in the next batches."""
    busy.write("note", b"1", QUIET)
    busy.region(QUIET).changes.add(QUIET, [b"note"], 0)
    for _ in range(2):
        busy.engine.turn()
    assert busy.tree(QUIET_REPLICA) == {"note": b"1"}
    assert len(busy.tree(DESTINATION)) < BURST
    busy.engine.turn()
    assert not busy.state(QUIET).labels.is_behind(b"note"), "its view tells that, beside the burst"
    busy.settle()
    assert busy.tree(DESTINATION) == busy.tree(SOURCE)


def test_the_rest_of_a_batch_that_was_cut_short_is_done_next(busy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: a batch that large files cut short loses no key and no delivery, and keeps their order."""
    monkeypatch.setattr(ingest, "STEP_S", -1.0)
    monkeypatch.setattr(deliver, "STEP_S", -1.0)
    busy.write("f7", b"newer")
    busy.settle()
    assert busy.tree(DESTINATION) == busy.tree(SOURCE)
    assert busy.ids(DESTINATION) == busy.ids(SOURCE)
    assert not busy.region().changes
    assert not busy.state().captures.deferred
    busy.stays_quiet()


def test_a_slow_machine_takes_only_what_it_has_time_for(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: keys that no time is left for are not taken and put back again and again."""
    monkeypatch.setattr(worker, "_BATCH_MIN", 4)
    with World(memory) as world:
        for number in range(BURST):
            world.write(f"f{number}", b"x")
        monkeypatch.setattr(ingest, "STEP_S", -1.0)  # time for one
        taken: list[int] = []
        changes = world.region().changes
        take = changes.take
        monkeypatch.setattr(changes, "take", lambda limit: taken.append(len(found := take(limit))) or found)
        world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert BURST <= sum(taken) <= worker.BATCH + 4 * BURST


def test_few_keys_are_taken_that_no_time_is_left_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: a batch is about what a step has time for, and hardly any key is taken and put back."""
    taken, left = list[int](), list[int]()

    def take(_region: object, _state: object, _bucket: object, changes: Sequence[Change]) -> Sequence[Change]:
        taken.append(len(changes))
        left.append(max(0, len(changes) - 200))
        return changes[200:]

    with World(tmp_path) as world:
        world.settle()
        monkeypatch.setattr(ingest, "take", take)
        region = world.region()
        region.changes.add(SOURCE, [b"%d" % i for i in range(10_000)], 0)
        while region.changes.is_queued(SOURCE, b"9999"):
            region.turn()
        assert sum(taken) - sum(left) == 10_000
        assert sum(left) < 1_600
