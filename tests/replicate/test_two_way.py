"""Buckets that replicate to each other: the same versions everywhere, in the same order, and then no further change."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model.version import Origin, Status
from tests.world import DESTINATION, SOURCE, Json, World, v2

FAR = "north/far"
MESH = (SOURCE, DESTINATION, FAR)


def rule(to: str, priority: int = 1) -> Json:
    made = v2(to=to, priority=priority, markers=True)
    made["SourceSelectionCriteria"] = {"ReplicaModifications": {"Status": "Enabled"}}
    return made


def connect(world: World, *buckets: str) -> None:
    """Each bucket replicates to every other."""
    for bucket in buckets:
        others = [other for other in buckets if other != bucket]
        world.configure(*(rule(other, n) for n, other in enumerate(others, 1)), source=bucket)


def in_step(world: World, *buckets: str) -> None:
    a, *others = buckets
    for b in others:
        assert world.ids(a) == world.ids(b)
        assert world.tree(a) == world.tree(b)
        assert world.records(a) == world.records(b)
    for bucket in buckets:
        current = {key.decode(): versions[-1] for key, versions in world.history(bucket).items()}
        assert world.tree(bucket).keys() == {key for key, version in current.items() if not version.marker}
        assert world.leftovers(bucket) == []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False) as made:
        connect(made, SOURCE, DESTINATION)
        yield made


def test_each_sides_versions_are_replicas_on_the_other(world: World) -> None:
    """s3-semantics 0.4, 2.2: a user's versions and deletions are replicated from either side, a replica never goes
    back."""
    world.write("a", b"from east")
    world.write("b", b"from west", DESTINATION)
    world.settle()
    in_step(world, SOURCE, DESTINATION)
    assert world.tree(SOURCE) == {"a": b"from east", "b": b"from west"}
    assert [(world.current(k, b).origin, world.current(k, b).status) for k in "ab" for b in (SOURCE, DESTINATION)] == [
        (Origin.USER, Status.COMPLETED), (Origin.REPLICA, Status.REPLICA),
        (Origin.REPLICA, Status.REPLICA), (Origin.USER, Status.COMPLETED),
    ]  # fmt: skip
    world.write("a", b"over there", DESTINATION)
    world.unlink("b")
    world.settle()
    in_step(world, SOURCE, DESTINATION)
    assert world.tree(SOURCE) == {"a": b"over there"}
    assert len(world.of("a")) == len(world.of("b")) == 2
    world.stays_quiet()


@pytest.mark.parametrize("first", [SOURCE, DESTINATION])
def test_written_on_both_sides_at_once(world: World, first: str) -> None:
    """s3-semantics 2.2: both versions arrive in both, the one created later is current, nothing is merged or lost."""
    second = DESTINATION if first == SOURCE else SOURCE
    for bucket in (first, second):
        world.write("k", bucket.encode(), bucket)
        world.capture(bucket)
    world.settle()
    in_step(world, SOURCE, DESTINATION)
    assert world.tree(SOURCE) == {"k": second.encode()}
    assert len(world.of("k")) == 2
    world.stays_quiet()


def test_deleted_on_both_sides_at_once(world: World) -> None:
    """s3-semantics 2.2: two users who delete leave two markers, in both, and no more than these."""
    world.write("k", b"data")
    world.settle()
    for bucket in (SOURCE, DESTINATION):
        world.unlink("k", bucket)
    world.settle()
    in_step(world, SOURCE, DESTINATION)
    assert [v.marker for v in world.of("k")] == [True, True, False]
    assert {v.origin for v in world.of("k")[:2]} == {Origin.USER, Origin.REPLICA}
    world.stays_quiet()


def test_deleted_here_and_written_there(world: World) -> None:
    """s3-semantics 2.2: the later action decides which version is shown; the other is kept."""
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.write("k", b"newer", DESTINATION)
    world.settle()
    in_step(world, SOURCE, DESTINATION)
    assert len(world.of("k")) == 3
    world.stays_quiet()


def test_a_marker_removed_on_one_side_does_not_come_back(world: World) -> None:
    """s3-semantics 0.1, P14: the removal of a named version is never replicated, and nothing restores it."""
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.settle()
    world.remove("k", SOURCE, world.current("k").id)
    world.settle()
    assert world.tree(SOURCE) == {"k": b"data"}
    assert world.tree(DESTINATION) == {}
    world.restart(without_journal=True)
    world.settle()
    assert world.tree(SOURCE) == {"k": b"data"}
    assert world.tree(DESTINATION) == {}
    world.stays_quiet()


def test_no_bucket_relays_replicas(tmp_path: Path) -> None:
    """s3-semantics 2.2: A to B and B to C gives C only what users write in B; versions do not circulate in a ring."""
    with World(tmp_path, replicate=False, buckets=MESH) as world:
        for bucket, to in ((SOURCE, DESTINATION), (DESTINATION, FAR), (FAR, SOURCE)):
            world.configure(rule(to), source=bucket)
        for number, bucket in enumerate(MESH):
            world.write(f"k{number}", bucket.encode(), bucket)
        world.settle()
        assert set(world.tree(SOURCE)) == {"k0", "k2"}
        assert set(world.tree(DESTINATION)) == {"k0", "k1"}
        assert set(world.tree(FAR)) == {"k1", "k2"}
        world.stays_quiet()
        world.unlink("k0", DESTINATION)  # a user's marker of a key that is a replica there: it goes on to C alone
        world.settle()
        assert set(world.tree(SOURCE)) == {"k0", "k2"}
        assert [v.marker for v in world.of("k0", FAR)] == [True]
        world.stays_quiet()


KEYS = ("a", "b", "d/c")


@pytest.mark.parametrize("seed", range(12))
def test_a_mesh_converges_whatever_happens(tmp_path: Path, seed: int) -> None:
    """P14, G5, G6, G7: three regions, any actions of users, outages and restarts: one state in the end, and then no
    further change."""
    chance = random.Random(seed)
    with World(tmp_path, replicate=False, buckets=MESH) as world:
        connect(world, *MESH)
        away: set[str] = set()
        for number in range(40):
            bucket, key = chance.choice(MESH), chance.choice(KEYS)
            region = bucket.partition("/")[0]
            act = chance.choice(
                ("write", "write", "replace", "delete", "chmod", "colour", "tag", "outage", "turn", "restart")
            )
            if act == "outage":
                (world.back if region in away else world.away)(region)
                away ^= {region}
            elif act == "turn":
                world.look()
                world.flush_settling()
                for _ in range(chance.randrange(4)):
                    world.engine.regions[region].turn()
            elif act == "restart" and chance.random() < 0.5:
                world.restart(without_journal=chance.random() < 0.3)
            elif region not in away:
                _act(world, act, bucket, key, number)
        for region in away:
            world.back(region)
        for _ in range(3):
            world.settle()
        in_step(world, *MESH)
        for key in KEYS:
            with contextlib.suppress(FileNotFoundError):
                looks = [world.look_of(key, bucket) for bucket in MESH]
                assert all(a == b for a, b in itertools.pairwise(looks)), (seed, key)
        assert all(world.statuses(bucket) <= {Status.COMPLETED, Status.REPLICA} for bucket in MESH)
        world.stays_quiet()


def _act(world: World, act: str, bucket: str, key: str, number: int) -> None:
    path = world.path(key, bucket)
    data = b"%d" % number
    if act == "write":
        world.write(key, data, bucket)
    elif act == "replace":
        world.drop(key, data, bucket, tags={"n": str(number)})
    elif path.exists():
        if act == "delete":
            path.unlink()
        elif act == "chmod":
            path.chmod(0o600 + number)
        elif act == "colour":
            os.setxattr(path, "user.colour", data)
        elif act == "tag":
            os.setxattr(path, "user.fsrepl.tag.t", data)
