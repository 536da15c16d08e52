"""Edits on replicas: they stay there, or are replicated back where both sides have ReplicaModifications Enabled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model.version import Status
from tests.world import DESTINATION, SOURCE, Json, World, v2

FAR = "north/far"
PENDING, COMPLETED, FAILED, REPLICA = Status.PENDING, Status.COMPLETED, Status.FAILED, Status.REPLICA


def rule(to: str, *, sync: bool, priority: int = 1, **more: object) -> Json:
    made = v2(to=to, priority=priority, markers=True, **more)  # type: ignore[arg-type]
    made["SourceSelectionCriteria"] = {"ReplicaModifications": {"Status": "Enabled" if sync else "Disabled"}}
    return made


def two_way(world: World, *, there: bool = True, back: bool = True) -> None:
    world.configure(rule(DESTINATION, sync=there), source=SOURCE)
    world.configure(rule(SOURCE, sync=back), source=DESTINATION)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False) as made:
        two_way(made)
        made.write("k", b"data")
        made.settle()
        yield made


def in_step(world: World, *buckets: str, key: str = "k") -> None:
    """Check that both sides have the same versions with the same metadata, on record and on the views."""
    a, *others = buckets or (SOURCE, DESTINATION)
    for b in others:
        assert world.ids(a) == world.ids(b)
        assert world.records(a) == world.records(b)
        assert world.look_of(key, a) == world.look_of(key, b)


# -- without it


@pytest.mark.parametrize("sharing", ["auto", "private"])
@pytest.mark.parametrize(("there", "back"), [(False, False), (True, False), (False, True), (None, None)])
def test_without_it_an_edit_on_a_replica_stays_there(
    tmp_path: Path, there: bool | None, back: bool | None, sharing: str
) -> None:
    """s3-semantics 2.2: by default only from source to replica; one side alone is not enough."""
    with World(tmp_path, replicate=there is None) as world:
        if sharing != "auto":
            world.set_sharing(west=sharing)
        if there is not None and back is not None:
            two_way(world, there=there, back=back)
        world.write("k", b"data")
        world.settle()
        world.path("k", DESTINATION).chmod(0o600)
        os.setxattr(world.path("k", DESTINATION), "user.there", b"1")
        world.run("tag.set", bucket=DESTINATION, key=b"k", tags={"there": "1"})
        world.settle()
        assert world.current("k").edited == {}
        assert world.look_of("k")[0].mode == 0o644
        assert world.current("k", DESTINATION).tags == {"there": "1"}
        assert (world.statuses(), world.statuses(DESTINATION)) == ({COMPLETED}, {REPLICA})
        assert len(world.of("k", DESTINATION)) == 1
        world.stays_quiet()
        # the source's next edit is later, and wins: for its group, and no other
        world.run("tag.set", bucket=SOURCE, key=b"k", tags={"here": "2"})
        world.settle()
        replica = world.current("k", DESTINATION)
        assert (replica.tags, replica.attrs) == ({"here": "2"}, {"user.there": b"1"})
        assert world.look_of("k", DESTINATION)[0].mode == 0o600
        world.path("k").chmod(0o640)
        os.setxattr(world.path("k"), "user.here", b"2")
        world.settle()
        in_step(world)
        world.stays_quiet()


# -- with it


def test_an_edit_on_a_replica_goes_back(world: World) -> None:
    """s3-semantics 2.2: only metadata, never data, never a version; then nothing changes any more."""
    before, inode = world.ids(SOURCE), world.path("k").stat().st_ino
    world.path("k", DESTINATION).chmod(0o600)
    world.settle()
    in_step(world)
    assert world.look_of("k")[0].mode == 0o600
    world.stays_quiet()
    os.setxattr(world.path("k", DESTINATION), "user.colour", b"blue")
    world.run("tag.set", bucket=DESTINATION, key=b"k", tags={"class": "x"})
    world.settle()
    in_step(world)
    assert world.look_of("k")[1] == {"user.colour": b"blue", "user.fsrepl.tag.class": b"x"}
    world.stays_quiet()
    os.removexattr(world.path("k", DESTINATION), "user.colour")
    world.run("tag.rm", bucket=DESTINATION, key=b"k", names=["class"])
    world.settle()
    in_step(world)
    assert world.look_of("k")[1] == {}
    assert world.ids(SOURCE) == before
    assert world.path("k").stat().st_ino == inode
    assert (world.statuses(), world.statuses(DESTINATION)) == ({COMPLETED}, {REPLICA})
    assert world.current("k", DESTINATION).deliveries == {}
    world.stays_quiet()


def test_a_replica_is_pending_while_its_edit_is_sent(world: World) -> None:
    """s3-semantics 3.1: PENDING, on record, on the view and in the numbers; then REPLICA again."""
    world.away("east")
    world.path("k", DESTINATION).chmod(0o600)
    world.settle()
    assert world.statuses(DESTINATION) == {PENDING}
    delivery = list(world.engine.journal.deliveries.select(DESTINATION, status=PENDING))
    assert [(o.destination, o.id) for o in delivery] == [(SOURCE, world.current("k", DESTINATION).id)]
    world.restart()  # nor does a restart forget it
    world.settle()
    world.back("east")
    world.settle()
    in_step(world)
    assert world.statuses(DESTINATION) == {REPLICA}
    assert os.getxattr(world.path("k", DESTINATION), "user.fsrepl.replication-status") == b"REPLICA"
    assert list(world.engine.journal.deliveries.select(DESTINATION)) == []
    world.stays_quiet()


@pytest.mark.parametrize(
    ("lacks", "reason"),
    [
        ("s3:ReplicateObject", "DstPutObjectNotPermitted"),
        ("s3:GetObjectVersionForReplication", "SrcGetObjectNotPermitted"),
    ],
)
def test_an_edit_that_failed(world: World, lacks: str, reason: str) -> None:
    """s3-semantics 2.2, 3.1: FAILED with the reason, and REPLICA again once a retry, or another edit, succeeded."""
    role = world.settings.roles / "courier-west-dst.json"
    text = role.read_text()
    role.write_text(text.replace(f'"{lacks}"', '"s3:None"'))
    world.path("k", DESTINATION).chmod(0o600)
    world.settle()
    replica = world.current("k", DESTINATION)
    assert (replica.status, replica.deliveries[SOURCE].reason) == (FAILED, reason)
    assert world.look_of("k")[0].mode == 0o644
    assert world.statuses(SOURCE) == {COMPLETED}
    world.stays_quiet()
    role.write_text(text)
    world.settle()
    assert world.statuses(DESTINATION) == {FAILED}, "permission that is back retries nothing"
    world.run("retry", scope=DESTINATION)
    world.settle()
    in_step(world)
    assert world.statuses(DESTINATION) == {REPLICA}
    role.write_text(text.replace(f'"{lacks}"', '"s3:None"'))
    world.path("k", DESTINATION).chmod(0o606)
    world.settle()
    assert world.statuses(DESTINATION) == {FAILED}
    role.write_text(text)
    os.setxattr(world.path("k", DESTINATION), "user.colour", b"blue")
    world.settle()
    in_step(world)
    assert world.statuses(DESTINATION) == {REPLICA}
    world.stays_quiet()


def test_an_original_that_is_gone(world: World) -> None:
    """s3-semantics 3.3: DstVersionNotFound, and the original does not come back."""
    world.remove("k", SOURCE, world.current("k").id)
    world.path("k", DESTINATION).chmod(0o600)
    world.settle()
    replica = world.current("k", DESTINATION)
    assert (replica.status, replica.deliveries[SOURCE].reason) == (FAILED, "DstVersionNotFound")
    assert world.ids(SOURCE) == {}
    world.stays_quiet()


@pytest.mark.parametrize("first", [SOURCE, DESTINATION])
def test_edits_on_both_sides_at_once(world: World, first: str) -> None:
    """s3-semantics 2.2: the later edit of a group wins, the same on both sides; edits of different groups are both
    kept."""
    second = DESTINATION if first == SOURCE else SOURCE
    world.path("k", first).chmod(0o600)
    os.setxattr(world.path("k", first), "user.first", b"1")
    world.capture(first)
    world.path("k", second).chmod(0o606)
    world.run("tag.set", bucket=second, key=b"k", tags={"second": "2"})
    world.settle()
    world.settle()
    in_step(world)
    posix, own = world.look_of("k")
    assert (posix.mode, own) == (0o606, {"user.first": b"1", "user.fsrepl.tag.second": b"2"})
    assert (world.statuses(SOURCE), world.statuses(DESTINATION)) == ({COMPLETED}, {REPLICA})
    world.stays_quiet()


def test_an_edit_that_is_not_recorded_yet_is_not_overwritten(world: World) -> None:
    """s3-semantics 2.2: a user's unrecorded change of a view is an edit of its own, and the later one."""
    world.path("k").chmod(0o600)
    world.capture(SOURCE)
    world.path("k", DESTINATION).chmod(0o606)
    while world.region(DESTINATION).turn():
        pass
    assert world.path("k", DESTINATION).stat().st_mode & 0o777 == 0o606
    world.settle()
    world.settle()
    in_step(world)
    assert world.look_of("k")[0].mode == 0o606
    world.stays_quiet()


def test_noncurrent_versions_and_edits_without_a_daemon(world: World) -> None:
    """s3-semantics 2.2, G6: tags of an old version, and changes of replicas while the daemon was down."""
    old = world.current("k")
    world.write("k", b"newer")
    world.settle()
    world.run("tag.set", bucket=DESTINATION, key=b"k", version_id=old.id, tags={"old": "1"})
    world.settle()
    assert world.of("k")[1].tags == {"old": "1"}
    in_step(world)
    for without_journal in (False, True):
        world.engine.close()
        os.setxattr(world.path("k", DESTINATION), "user.n", b"%d" % without_journal)
        world.restart(without_journal=without_journal)
        world.settle()
        in_step(world)
        assert world.look_of("k")[1] == {"user.n": b"%d" % without_journal}
    world.stays_quiet()


@pytest.mark.parametrize("there", [True, False])
def test_an_edit_while_the_original_is_away_since_the_start(tmp_path: Path, there: bool) -> None:
    """G11, 2.2: the other side's rules on edits are the last known ones, after a restart as before it."""
    with World(tmp_path, replicate=False) as world:
        two_way(world, there=there)
        world.write("k", b"data")
        world.settle()
        world.away("east")
        world.restart()
        world.run("tag.set", bucket=DESTINATION, key=b"k", tags={"n": "1"})
        world.settle()
        assert world.current("k", DESTINATION).status is (PENDING if there else REPLICA)
        world.back("east")
        world.settle()
        assert world.current("k").tags == ({"n": "1"} if there else {})
        assert world.current("k", DESTINATION).status is REPLICA


def test_versions_made_on_either_side(world: World) -> None:
    """s3-semantics 2.2: a replica here is the original there; edits of both are replicated both ways."""
    world.write("theirs", b"data", DESTINATION)
    world.settle()
    assert world.current("theirs").status is REPLICA
    world.path("theirs").chmod(0o600)
    world.settle()
    in_step(world, key="theirs")
    world.path("theirs", DESTINATION).chmod(0o606)
    world.settle()
    in_step(world, key="theirs")
    assert world.look_of("theirs")[0].mode == 0o606
    assert (world.current("theirs").status, world.current("theirs", DESTINATION).status) == (REPLICA, COMPLETED)
    world.stays_quiet()


def test_the_rules_that_count_are_those_of_its_key_and_tags(tmp_path: Path) -> None:
    """s3-semantics 1.3: for an object, the winner among the rules to that bucket decides; a disabled rule does not."""
    with World(tmp_path, replicate=False) as world:
        world.configure(
            rule(DESTINATION, sync=True),
            rule(DESTINATION, sync=False, priority=2, prefix="own/"),
            source=SOURCE,
        )
        world.configure(rule(SOURCE, sync=True), source=DESTINATION)
        for key in ("k", "own/k"):
            world.write(key, b"data")
        world.settle()
        for key in ("k", "own/k"):
            world.path(key, DESTINATION).chmod(0o600)
        world.settle()
        assert world.look_of("k")[0].mode == 0o600
        assert world.look_of("own/k")[0].mode == 0o644
        world.run("replication.disable", source=SOURCE)
        world.path("k", DESTINATION).chmod(0o606)
        world.settle()
        assert world.look_of("k")[0].mode == 0o600
        assert world.statuses(DESTINATION) == {REPLICA}


def test_an_original_hands_an_edit_on_to_its_other_replicas(tmp_path: Path) -> None:
    """G5, s3-semantics 2.2: replicas have their original's metadata, and no other bucket relays anything."""
    with World(tmp_path, replicate=False, buckets=(SOURCE, DESTINATION, FAR)) as world:
        world.configure(rule(DESTINATION, sync=True), rule(FAR, sync=False, priority=2), source=SOURCE)
        world.configure(rule(SOURCE, sync=True), rule(FAR, sync=True, priority=2), source=DESTINATION)
        world.write("k", b"data")
        world.settle()
        world.path("k", DESTINATION).chmod(0o600)
        world.settle()
        in_step(world, SOURCE, DESTINATION, FAR)
        assert world.look_of("k", FAR)[0].mode == 0o600
        assert (world.statuses(SOURCE), world.statuses(DESTINATION)) == ({COMPLETED}, {REPLICA})
        world.stays_quiet()
        world.path("k", FAR).chmod(0o606)
        world.settle()
        assert world.look_of("k")[0].mode == 0o600
        world.stays_quiet()


def test_owner_override_is_respected_on_the_way_back(tmp_path: Path) -> None:
    """s3-semantics 1.5: the replica's owner and ACL are its own, in both directions."""
    if os.geteuid() != 0:
        pytest.skip("gives files away")
    with World(tmp_path, replicate=False) as world:
        there = rule(DESTINATION, sync=True)
        there["Destination"] |= {"Account": "000000000000", "AccessControlTranslation": {"Owner": "Destination"}}
        world.configure(there, source=SOURCE)
        world.configure(rule(SOURCE, sync=True), source=DESTINATION)
        role = world.settings.roles / "courier-east-src.json"
        role.write_text(
            role.read_text().replace('"s3:ReplicateTags"', '"s3:ReplicateTags", "s3:ObjectOwnerOverrideToBucketOwner"')
        )
        os.chown(world.path(bucket=DESTINATION), 77, 88)
        world.write("k", b"data")
        os.chown(world.path("k"), 1234, 4321)
        world.settle()
        replica = world.path("k", DESTINATION)
        assert (replica.stat().st_uid, replica.stat().st_gid) == (77, 88)
        replica.chmod(0o606)
        world.settle()
        found = world.path("k").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 4321, 0o606)
        world.path("k").chmod(0o600)
        world.settle()
        assert (replica.stat().st_uid, replica.stat().st_gid, replica.stat().st_mode & 0o777) == (77, 88, 0o600)
        world.stays_quiet()
