"""Lifecycle where it meets replication in both directions, rules that are off, tree buckets and tiers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsrepl.model.version import Origin, Status
from tests.lifecycle.test_lifecycle import LATER, TIDY, days, old_versions, put, rule, run
from tests.lifecycle.test_tiers import ONE, add_tier, contents
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, v1, v2

Json = dict[str, Any]
Clock = Callable[[str], object]
SIZED = {"ObjectSizeGreaterThan": 0}
GLACIER = {"StorageClass": "GLACIER_IR"}
ACTIONS: dict[str, tuple[Json, int]] = {
    "Expiration": (days(2), 1),
    "NoncurrentVersionExpiration": (old_versions(), 1),
    "Transition": (rule(Filter=SIZED, Transitions=[{"Days": 1, **GLACIER}]), 1),
    "NoncurrentVersionTransition": (
        rule(Filter=SIZED, NoncurrentVersionTransitions=[{"NoncurrentDays": 1, **GLACIER}]), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("status", [Status.PENDING, Status.FAILED])
def test_what_its_replica_lacks_waits_whatever_the_action(
    world: World, clock: Clock, action: str, status: Status
) -> None:
    """5.5, 1 and 2: the action fires at the first run after completion."""
    document, number = ACTIONS[action]
    put(world, document)
    if status is Status.PENDING:
        world.away("west")
    else:
        world.run("replication.rm", source=SOURCE)
        world.configure(v2(), role="courier")
    for data in (b"one", b"two"):
        world.write("k", data)
        world.settle()
    assert {version.status for version in world.of("k")} == {status}
    before = world.history(SOURCE)
    clock("2026-05-20T10:00:00Z")
    answer = world.run("lifecycle.run", bucket=SOURCE)
    assert (set(answer["Done"].values()), answer["Blocked"]) == ({0}, number)  # type: ignore[attr-defined]
    assert world.history(SOURCE) == before
    if status is Status.PENDING:
        world.back("west")
    else:
        world.run("role.create", name="courier", source=SOURCE, destinations=[DESTINATION])
        world.run("retry", scope=SOURCE)
    world.settle()
    assert run(world) == {action: number}


def test_a_pending_marker_is_kept_until_it_is_completed(world: World, clock: Clock) -> None:
    """5.5, 7: ExpiredObjectDeleteMarker waits too."""
    world.write("k", b"data")
    world.settle()
    world.away("west")
    world.unlink("k")
    world.settle()
    for version in world.of("k")[1:]:
        world.remove("k", version=version.id)
    put(world, TIDY)
    clock(LATER)
    assert world.run("lifecycle.run", bucket=SOURCE)["Blocked"] == 1
    world.back("west")
    world.settle()
    assert run(world) == {"ExpiredObjectDeleteMarker": 1}


def test_in_two_buckets_that_are_each_others_replicas(world: World, clock: Clock) -> None:
    """5.5, 3 and 4: a replica expires by its own bucket's rules; neither the marker nor the class crosses, in either
    direction, and a user's write after that does."""
    world.configure(v1())
    world.configure(v1(to=SOURCE), source=DESTINATION)
    world.write("here", b"from the east")
    world.write("there", b"from the west", DESTINATION)
    world.settle()
    transition = rule(Filter={"And": {"Prefix": "t", **SIZED}}, Transitions=[{"Days": 1, **GLACIER}])
    put(world, rule(Filter={"Prefix": "h"}, Expiration={"Days": 1}), transition)
    clock(LATER)
    assert run(world) == {"Expiration": 1, "Transition": 1}
    world.settle()
    assert world.tree(SOURCE) == {"there": b"from the west"}
    assert world.tree(DESTINATION) == {"here": b"from the east", "there": b"from the west"}
    marker = world.current("here")
    assert (marker.origin, dict(marker.deliveries)) == (Origin.LIFECYCLE, {})
    assert (world.current("there").storage_class, world.current("there", DESTINATION).storage_class) == (
        "GLACIER_IR",
        "",
    )
    world.stays_quiet()
    clock("2026-06-01T10:00:00Z")
    world.write("here", b"written again", DESTINATION)
    world.settle()
    assert world.tree(SOURCE)["here"] == world.tree(DESTINATION)["here"] == b"written again"


def test_a_rule_that_is_disabled_does_nothing_until_it_is_enabled(world: World, clock: Clock) -> None:
    """5.1, Status; rules apply to objects from before them, by their age."""
    world.write("k", b"one")
    world.settle()
    world.write("k", b"two")
    world.settle()
    rules = [days(1), old_versions(), TIDY, ACTIONS["Transition"][0]]
    put(world, *({**each, "Status": "Disabled"} for each in rules))
    clock(LATER)
    before = world.history(SOURCE)
    assert run(world) == {}
    world.settle()
    assert world.history(SOURCE) == before
    put(world, *rules)
    assert run(world) == {"NoncurrentVersionExpiration": 1, "Transition": 1}
    assert run(world) == {"Expiration": 1}


def test_in_a_tree_bucket_files_move_to_a_tier_and_nothing_else_does(tmp_path: Path, clock: Clock) -> None:
    """A symlink of the daemon's is a file there, and a user's symlink an object; both expire as files do."""
    with World(tmp_path / "world", trees=True) as world:
        tier = add_tier(world)
        world.write("d/file", ONE)
        world.write("d/other", ONE[::-1])
        world.link("d/link", "file")
        world.settle()
        put(world, rule(Filter=SIZED, Transitions=[{"Days": 30, "StorageClass": "STANDARD_IA"}]))
        clock(LATER)
        assert run(world)["Transition"] >= 2
        world.settle()
        assert contents(tier) == sorted([ONE, ONE[::-1]])
        assert os.readlink(world.path("d/link")) == "file"
        assert world.path("d/link").read_bytes() == world.path("d/file").read_bytes() == ONE
        assert {key: len(found) for key, found in world.history(SOURCE).items()} == dict.fromkeys(
            (b"d/", b"d/file", b"d/link", b"d/other"), 1
        )
        world.stays_quiet()
        put(world, days(1))
        assert run(world) == {"Expiration": 3}
        assert run(world) == {"Expiration": 1}
        assert [path.name for path in world.path().iterdir() if path.name != ".fsrepl"] == []
        world.settle()
        assert contents(tier) == sorted([ONE, ONE[::-1]])
        world.run("object.restore", bucket=SOURCE, key=b"d/file")
        world.settle()
        assert world.path("d/file").read_bytes() == ONE
        assert verify(world) == []
