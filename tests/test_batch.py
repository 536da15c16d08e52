"""Backfill is S3 Batch Replication: what it takes, what it leaves, in which order, and that it can be interrupted."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsrepl import attrs, batch, clock, jobs, plan, records
from fsrepl.errors import Refused, Usage
from fsrepl.journal import Owed, Stored
from fsrepl.model import NULL, Delivery, Origin, Replication, Rule, Status, Version
from fsrepl.queues import Queue
from tests.doubles import DyingFs, FailingFs, PowerCut
from tests.world import DESTINATION, SOURCE, Json, World, v2

OTHER = "west/other"
THIRD = "west/third"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "site", replicate=False) as found:
        yield found


def enable(world: World, source: str = SOURCE, destination: str = DESTINATION, **more: object) -> None:
    world.run("replication.enable", source=source, destination=destination, **more)


def rule(rule_id: str, to: str = DESTINATION, priority: int = 1, **more: Any) -> Json:
    return {"ID": rule_id, **v2("", priority, to=to, **more)}


def backfill(world: World, *statuses: str, source: str = SOURCE, rules: tuple[str, ...] = ()) -> Json:
    """Ask for a backfill and let it end; the job."""
    accepted = world.run("replication.backfill", source=source, statuses=statuses, rules=rules)
    world.engine.settle_down()
    return job(world, str(accepted["JobId"]))


def listed(world: World, **params: object) -> list[Json]:
    found = world.run("replication.jobs", **params)["Jobs"]
    assert isinstance(found, list)
    return found


def job(world: World, job_id: str) -> Json:
    (found,) = listed(world, job=job_id)
    return found


def tasks(found: Json) -> tuple[int, int, int]:
    """How many there were, succeeded, and failed."""
    summary = found["ProgressSummary"]
    return summary["TotalNumberOfTasks"], summary["NumberOfTasksSucceeded"], summary["NumberOfTasksFailed"]


def deliveries(world: World, key: str, destination: str = DESTINATION, bucket: str = SOURCE) -> list[tuple[str, str]]:
    """Status and reason of a destination's delivery, of each version of a key; empty where it has none."""
    found = [v.deliveries.get(destination) for v in world.history(bucket)[key.encode()]]
    return [(str(d.status), d.reason) if d else ("", "") for d in found]


def change(world: World, key: str, make: Callable[[Version], Version], bucket: str = SOURCE) -> None:
    """Rewrite the record of a key's newest version, as somebody else would have made it."""
    with world.engine.site.bucket(bucket).open() as opened:
        version = world.history(bucket)[key.encode()][-1]
        now = make(version)
        before, after = attrs.encode(version), attrs.encode(now)
        records.update(opened, now, after, frozenset(before.keys() - after.keys()))
        world.engine.recent.forget(bucket, version.key, version.id)


# -- what it takes: the batch column of s3-semantics, 2


def test_what_was_there_before_the_rule_is_sent_whole(world: World) -> None:
    """2: every version and marker, current or not, with its id, time, metadata and place in the order (G5)."""
    world.write("d/k", b"one")
    os.chmod(world.path("d/k"), 0o640)
    os.setxattr(world.path("d/k"), "user.colour", b"blue")
    world.settle()
    world.write("d/k", b"two")
    world.write("gone", b"x")
    world.settle()
    world.path("gone").unlink()
    world.settle()
    enable(world)
    world.settle()
    assert world.tree(DESTINATION) == {}
    found = backfill(world)
    assert (found["Status"], tasks(found)) == ("Complete", (4, 4, 0))
    assert world.tree(DESTINATION) == {"d/k": b"two"}
    assert world.ids(DESTINATION) == world.ids(SOURCE)
    assert world.statuses() == {Status.COMPLETED}
    assert world.statuses(DESTINATION) == {Status.REPLICA}
    assert os.getxattr(world.path("d/k", DESTINATION), "user.colour") == b"blue"
    assert world.path("d/k", DESTINATION).stat().st_mode & 0o777 == 0o640


def test_what_was_written_while_the_rule_was_disabled(world: World) -> None:
    """2: re-enabling does not catch up; a backfill does."""
    enable(world)
    world.write("before", b"1")
    world.settle()
    world.run("replication.disable", source=SOURCE)
    world.write("meanwhile", b"2")
    world.settle()
    enable(world, destination=None)  # type: ignore[arg-type]
    world.settle()
    assert world.tree(DESTINATION) == {"before": b"1"}
    assert tasks(backfill(world)) == (1, 1, 0)
    assert world.tree(DESTINATION) == {"before": b"1", "meanwhile": b"2"}


@pytest.mark.parametrize("markers", [True, False])
def test_markers_go_as_the_rule_says(world: World, markers: bool) -> None:
    """2: V2 markers only where they are Enabled; a marker that does not go is left without a status."""
    world.write("k", b"1")
    world.settle()
    world.path("k").unlink()
    world.settle()
    world.configure(rule("r", markers=markers))
    assert tasks(backfill(world)) == ((2, 2, 0) if markers else (1, 1, 0))
    assert world.tree(DESTINATION) == ({} if markers else {"k": b"1"})
    assert deliveries(world, "k")[-1][0] == ("COMPLETED" if markers else "")


def test_lifecycle_s_markers_and_archived_classes_stay(world: World) -> None:
    """2: neither is eligible, and neither gets a status."""
    for key in ("lifecycle", "glacier", "deep", "instant", "ordinary"):
        world.write(key, b"x")
    world.settle()
    world.path("lifecycle").unlink()
    world.settle()
    change(world, "lifecycle", lambda v: replace(v, origin=Origin.LIFECYCLE))
    change(world, "glacier", lambda v: replace(v, storage_class="GLACIER"))
    change(world, "deep", lambda v: replace(v, storage_class="DEEP_ARCHIVE"))
    change(world, "instant", lambda v: replace(v, storage_class="GLACIER_IR"))
    enable(world)
    assert tasks(backfill(world)) == (3, 3, 0)
    assert set(world.tree(DESTINATION)) == {"instant", "ordinary", "lifecycle"}
    assert deliveries(world, "lifecycle") == [("COMPLETED", ""), ("", "")]
    assert deliveries(world, "glacier") == [("", "")]
    assert {v.status for v in world.history(SOURCE)[b"deep"]} == {None}


def test_tags_that_were_added_later_count(world: World) -> None:
    """2: a tag rule that matches now; and only what it matches."""
    world.write("tagged", b"1")
    world.write("plain", b"2")
    world.settle()
    world.configure(rule("r", tags={"class": "blue"}))
    world.run("tag.set", bucket=SOURCE, key=b"tagged", tags={"class": "blue"})
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert tasks(backfill(world)) == (1, 1, 0)
    assert world.tree(DESTINATION) == {"tagged": b"1"}
    assert world.history(DESTINATION)[b"tagged"][0].tags == {"class": "blue"}


def test_replicas_are_sent_on_but_never_back_into_a_second_one(world: World) -> None:
    """2 and 2.2: REPLICA versions go to the rules of the bucket they are in; where they came from has them already."""
    world.run("bucket.create", bucket=OTHER.replace("west", "east"), versioning=True)
    enable(world)
    rules = rule("on", "east/other", markers=True), rule("back", SOURCE, 2, markers=True)
    world.configure(*rules, source=DESTINATION)
    world.write("k", b"1")
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "b"})
    world.path("k").unlink()
    world.settle()
    assert world.tree("east/other") == {}
    before = world.history(SOURCE)
    assert tasks(backfill(world, "NONE", source=DESTINATION)) == (0, 0, 0)
    found = backfill(world, "REPLICA", source=DESTINATION)
    assert tasks(found) == (4, 4, 0)
    assert world.ids("east/other") == world.ids(SOURCE)
    assert world.history(SOURCE) == before, "the originals are as they were"
    assert world.statuses(DESTINATION) == {Status.REPLICA}
    assert {v.source for v in world.history("east/other")[b"k"]} == {DESTINATION}


def test_a_replica_with_less_does_not_take_anything_from_its_original(world: World) -> None:
    """2.2: metadata goes from the source to its replicas; a replica without tags, sent back, strips nothing."""
    enable(world)
    enable(world, DESTINATION, SOURCE)
    world.write("k", b"1")
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "b"})
    world.settle()
    change(world, "k", lambda v: replace(v, tags={}), DESTINATION)
    assert tasks(backfill(world, source=DESTINATION)) == (1, 1, 0)
    assert world.history(SOURCE)[b"k"][0].tags == {"a": "b"}
    assert deliveries(world, "k", SOURCE, DESTINATION) == [("COMPLETED", "")]


def test_a_version_that_is_complete_elsewhere_fills_a_new_destination(world: World) -> None:
    """2, "already replicated to another destination": by the status that S3 shows, and as NONE for the new one."""
    world.run("bucket.create", bucket=OTHER, versioning=True)
    world.run("bucket.create", bucket=THIRD, versioning=True)
    enable(world)
    world.write("k", b"1")
    world.settle()
    enable(world, destination=OTHER, add=True)
    assert tasks(backfill(world, "COMPLETED")) == (2, 2, 0)
    assert world.tree(OTHER) == {"k": b"1"}
    enable(world, destination=THIRD, add=True)
    assert tasks(backfill(world, "FAILED")) == (0, 0, 0)
    assert tasks(backfill(world, "NONE")) == (1, 1, 0)
    assert world.tree(THIRD) == {"k": b"1"}


def test_hard_deleted_replicas_are_remembered(world: World) -> None:
    """2 and 3.3: a replica that was removed by its version id does not come back, and the report says why."""
    enable(world)
    world.write("k", b"1")
    world.write("stays", b"2")
    world.settle()
    version = world.history(DESTINATION)[b"k"][0]
    world.run("object.rm", bucket=DESTINATION, key=b"k", version_id=version.id)
    found = backfill(world)
    assert (tasks(found), found["AlreadyThere"]) == ((1, 0, 1), 1)
    assert deliveries(world, "k") == [("FAILED", "DstObjectHardDeleted")]
    assert world.tree(DESTINATION) == {"stays": b"2"}
    world.restart()
    world.settle()
    assert tasks(backfill(world, "FAILED")) == (1, 0, 1), "after a restart too"


def test_a_bucket_that_was_made_again_remembers_nothing(world: World) -> None:
    """2, "destination bucket deleted and recreated": nothing is resent by itself, a backfill sends all of it."""
    enable(world)
    world.write("k", b"1")
    world.write("removed there", b"2")
    world.settle()
    version = world.history(DESTINATION)[b"removed there"][0]
    world.run("object.rm", bucket=DESTINATION, key=b"removed there", version_id=version.id)
    world.run("bucket.rm", bucket=DESTINATION, purge=True)
    world.run("bucket.create", bucket=DESTINATION, versioning=True)
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert tasks(backfill(world)) == (2, 2, 0)
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.ids(DESTINATION) == world.ids(SOURCE)


def test_removed_versions_never_cross(world: World) -> None:
    """2: the delete of a named version is never sent, by a backfill neither."""
    enable(world)
    world.write("k", b"1")
    world.settle()
    world.write("k", b"2")
    world.settle()
    first = world.history(SOURCE)[b"k"][0]
    world.run("object.rm", bucket=SOURCE, key=b"k", version_id=first.id)
    backfill(world)
    assert [v.id for v in world.history(DESTINATION)[b"k"]] == [first.id, world.history(SOURCE)[b"k"][0].id]


# -- null versions


def adopted(tmp_path: Path, *buckets: str, **keys: bytes) -> World:
    """A world whose buckets were folders with files."""
    world = World(tmp_path / "site", replicate=False)
    for bucket in buckets:
        region, name = bucket.split("/")
        for key, data in keys.items():
            world.write(key, data + region.encode(), bucket)
            os.utime(world.path(key, bucket), ns=(10**18, 10**18))
        world.run("bucket.adopt", bucket=f"{region}/{name}")
    world.engine.settle_down()
    return world


def test_null_versions_are_sent_as_null(tmp_path: Path) -> None:
    """2, "null version": as null, where the destination has none for that key; once."""
    with adopted(tmp_path, "east/old", a=b"1", b=b"2") as world:
        enable(world, "east/old")
        world.write("a", b"newer", "east/old")
        world.settle()
        assert tasks(backfill(world, source="east/old")) == (2, 2, 0)
        assert world.ids(DESTINATION) == world.ids("east/old")
        assert world.of("a", DESTINATION)[-1].id == NULL
        assert world.tree(DESTINATION) == {"a": b"newer", "b": b"2east"}
        assert tasks(backfill(world, "COMPLETED", source="east/old")) == (3, 3, 0)
        assert world.ids(DESTINATION) == world.ids("east/old")


def test_null_versions_never_replace_a_null_version(tmp_path: Path) -> None:
    """2: the destination's own null version stays; SrcObjectNotEligible, and the others go on."""
    with adopted(tmp_path, "east/old", "west/old", a=b"1") as world:
        world.write("b", b"new", "east/old")
        world.settle()
        enable(world, "east/old", "west/old")
        found = backfill(world, source="east/old")
        assert tasks(found) == (2, 1, 1)
        assert deliveries(world, "a", "west/old", "east/old") == [("FAILED", "SrcObjectNotEligible")]
        assert world.tree("west/old") == {"a": b"1west", "b": b"new"}


def test_null_markers_are_null_versions(world: World) -> None:
    """2 and 4: a marker with the id null, from a time of suspension, is sent; but not onto another null version."""
    world.run("versioning.set", bucket=SOURCE, status="Suspended")
    world.write("k", b"1")
    world.settle()
    world.path("k").unlink()
    world.settle()
    world.run("versioning.set", bucket=SOURCE, status="Enabled")
    enable(world)
    assert [(v.id, v.marker) for v in world.history(SOURCE)[b"k"]] == [(NULL, True)]
    assert tasks(backfill(world)) == (1, 1, 0)
    assert world.ids(DESTINATION) == world.ids(SOURCE)


# -- status filters


def version_with(origin: Origin = Origin.USER, **statuses: str) -> Version:
    made = {f"west/{name}": Delivery("r", Status(status)) for name, status in statuses.items()}
    return Version(b"k", "01K0000000000000000000000A", 1, origin=origin, deliveries=made, digest=bytes(32))


@pytest.mark.parametrize(
    ("version", "called"),
    [
        (version_with(), {"NONE"}),
        (version_with(dst="COMPLETED"), {"COMPLETED"}),
        (version_with(dst="FAILED"), {"FAILED"}),
        (version_with(dst="PENDING"), {"PENDING"}),
        (version_with(other="COMPLETED"), {"NONE", "COMPLETED"}),
        (version_with(other="FAILED"), {"NONE", "FAILED"}),
        (version_with(dst="COMPLETED", other="FAILED"), {"COMPLETED"}),
        (version_with(Origin.REPLICA), {"REPLICA"}),
        (version_with(Origin.REPLICA, dst="COMPLETED"), {"REPLICA", "COMPLETED"}),
        (version_with(Origin.REPLICA, other="FAILED"), {"REPLICA"}),
        (version_with(Origin.ADOPTED), {"NONE"}),
    ],
)
def test_what_a_version_is_called(version: Version, called: set[str]) -> None:
    """A version COMPLETED to one destination may be NONE to another; S3's own word for it counts as well."""
    assert plan.statuses_for(version, "west/dst") == called


def test_every_status_against_every_filter() -> None:
    """All that ask_for can meet: the status of a delivery, the filter, whether it is known to be there."""
    one = Replication("role", (Rule("r", True, b"", "west/dst"),))
    for status, wanted, there in itertools.product(
        ("", "PENDING", "FAILED", "COMPLETED", "mine"), ("", *plan.STATUSES), (True, False)
    ):
        mine = Delivery("r", Status.COMPLETED, batch="J")
        before = mine if status == "mine" else Delivery("r", Status(status), "why") if status else None
        version = replace(version_with(), deliveries={"west/dst": before} if before else {})
        asked, known = plan.ask_for(
            one, version, plan.Wanted("J", frozenset([wanted] if wanted else [])), lambda _, there=there: there
        )
        is_wanted = wanted in ("", status or "NONE") and status not in ("PENDING", "mine")
        is_known = is_wanted and status == "COMPLETED" and not wanted and there
        assert known == is_known
        assert asked == (
            {"west/dst": Delivery("r", Status.PENDING, batch="J", before=before)} if is_wanted and not is_known else {}
        )


def test_the_rule_that_decides_must_be_among_the_wanted_ones() -> None:
    """1.3: a rule that was beaten sends none of its beater's keys, nor their markers; a disabled one sends nothing."""
    rules = (
        Rule("all", True, b"", "west/dst", priority=1, v2=True, delete_markers=True, storage_class="STANDARD_IA"),
        Rule("logs", True, b"logs/", "west/dst", priority=2, v2=True, delete_markers=False),
        Rule("off", False, b"", "west/other", priority=3, v2=True),
    )

    def asked(key: bytes, *wanted: str, marker: bool = False) -> list[str]:
        version = replace(version_with(), key=key, marker=marker)
        found, _ = plan.ask_for(
            Replication("role", rules), version, plan.Wanted("J", rules=frozenset(wanted)), lambda _: False
        )
        return [f"{destination} {delivery.rule}" for destination, delivery in found.items()]

    assert asked(b"x") == asked(b"x", "all") == ["west/dst all"]
    assert asked(b"logs/x") == asked(b"logs/x", "logs") == ["west/dst logs"]
    assert asked(b"logs/x", "all") == asked(b"logs/x", "all", marker=True) == asked(b"logs/x", marker=True) == []
    assert asked(b"x", "logs") == asked(b"x", "off") == []


def test_failed_deliveries_alone(world: World) -> None:
    """2 and 3.2: FAILED is tried again when its cause is gone; the rest is not looked at twice."""
    enable(world)
    world.write("a", b"1")
    world.settle()
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    world.write("b", b"2")
    world.settle()
    assert deliveries(world, "b") == [("FAILED", "DstBucketUnversioned")]
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    assert tasks(backfill(world, "FAILED")) == (1, 1, 0)
    assert world.tree(DESTINATION) == {"a": b"1", "b": b"2"}


def test_chosen_rules_alone(world: World) -> None:
    """To chosen rules: the others' destinations are left as they are."""
    world.run("bucket.create", bucket=OTHER, versioning=True)
    world.write("k", b"1")
    world.settle()
    world.configure(rule("one", StorageClass="STANDARD_IA"), rule("two", OTHER, priority=2))
    assert tasks(backfill(world, rules=("one",))) == (1, 1, 0)
    assert world.tree(OTHER) == {}
    assert world.history(DESTINATION)[b"k"][0].storage_class == "STANDARD_IA"


# -- what is refused


def test_what_a_backfill_cannot_be_asked_for(world: World) -> None:
    """1.4 and 1.5: no configuration, no such rule, a disabled rule, no such status: nothing is begun."""

    def refused(code: str, **params: object) -> str:
        with pytest.raises(Refused, match=code) as caught:
            world.run("replication.backfill", source=SOURCE, **params)
        return str(caught.value)

    refused("ReplicationConfigurationNotFoundError")
    world.run("bucket.create", bucket=OTHER, versioning=True)
    world.configure(rule("on"), rule("off", OTHER, priority=2, status="Disabled"))
    assert "on" in refused("InvalidRequest", rules=["nope"])
    assert "disabled" in refused("InvalidRequest", rules=["on", "off"])
    world.run("replication.disable", source=SOURCE)
    assert "all rules" in refused("InvalidRequest")
    with pytest.raises(Usage, match="NONE, FAILED, COMPLETED, REPLICA"):
        world.run("replication.backfill", source=SOURCE, statuses=["PENDING"])
    with pytest.raises(Refused, match="NoSuchBucket"):
        world.run("replication.backfill", source="east/nope")
    with pytest.raises(Usage, match="no region"):
        world.run("replication.backfill", source="north/src")
    assert world.run("replication.jobs") == {"Jobs": []}
    assert not world.path(".fsrepl/jobs").exists()


def test_the_role_must_be_batch_s_too(world: World) -> None:
    """6.1: it needs s3:InitiateReplication, and to be trusted by batchoperations; live replication needs neither."""
    world.write("old", b"1")
    world.settle()
    enable(world)
    (path,) = world.settings.roles.iterdir()
    path.write_text(path.read_text().replace("s3:InitiateReplication", "s3:GetObjectVersion"))
    world.write("new", b"2")
    world.settle()
    assert tasks(backfill(world)) == (1, 0, 1)
    assert deliveries(world, "old") == [("FAILED", "InitiateReplicationNotPermitted")]
    assert deliveries(world, "new") == [("COMPLETED", "")]
    world.run("retry", scope=SOURCE)
    world.engine.settle_down()
    assert deliveries(world, "old") == [("COMPLETED", "")], "asked for by a person, it is a live delivery"


# -- order, and live traffic first


def test_late_old_versions_do_not_become_current(world: World) -> None:
    """G5: what was dropped after the rule is current at the destination, however late its predecessors come."""
    for data in (b"1", b"2"):
        world.write("k", data)
        world.settle()
    enable(world)
    world.write("k", b"3")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"3"}
    backfill(world)
    assert world.tree(DESTINATION) == {"k": b"3"}
    assert world.ids(DESTINATION) == world.ids(SOURCE)
    assert [v.status for v in world.history(SOURCE)[b"k"]] == [Status.COMPLETED] * 3


def test_live_deliveries_go_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower priority than live traffic: a portion at a time, and none while a live delivery is ready."""
    monkeypatch.setattr("fsrepl.queues.PORTION", 3)
    for i in range(10):
        world.write(f"old/{i}", b"x")
    world.settle()
    enable(world)
    sent: list[list[str]] = []
    region = world.region(DESTINATION)
    carry = region._carry

    def watched(queue: Queue, owed: list[Owed]) -> None:
        sent.append(["batch" if each.batch else "" for each in owed])
        carry(queue, owed)

    monkeypatch.setattr(region, "_carry", watched)
    world.run("replication.backfill", source=SOURCE)
    for i in range(3):
        world.write(f"new/{i}", b"y")
        world.settle()
    assert len(world.tree(DESTINATION)) == 13
    lives = [n for n, group in enumerate(sent) if "" in group]
    assert all(group in ([""], ["batch"] * len(group)) and len(group) <= 3 for group in sent)
    assert len([group for group in sent if "batch" in group]) >= 4
    assert lives[0] < [n for n, group in enumerate(sent) if "batch" in group][-1], "it did not wait for the backfill"


def test_a_backlog_is_not_held_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor after a restart: it is read from the journal when its turn comes, while the destination is away too."""
    monkeypatch.setattr("fsrepl.queues.PORTION", 4)
    monkeypatch.setattr("fsrepl.batch.SLICE", 4)
    for i in range(40):
        world.write(f"{i}", b"x")
    world.settle()
    enable(world)
    world.away("west")
    world.run("replication.backfill", source=SOURCE)
    for _ in range(2):
        world.settle()
        assert [str(owed.status) for owed in world.engine.journal.deliveries(SOURCE)] == ["PENDING"] * 40
        queues = [q for region in world.engine.regions.values() for q in region.queues.values()]
        assert all(not q.ready and not q.later and not q.known and len(q.notes) <= 4 for q in queues)
        world.restart()
    world.back("west")
    world.settle()
    world.settle()
    assert len(world.tree(DESTINATION)) == 40
    assert world.statuses() == {Status.COMPLETED}


# -- progress, reports, cancelling


def test_progress_is_counted_from_the_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G11: totals, what is done and how long it will take; the same after a restart, in the middle of it."""
    monkeypatch.setattr("fsrepl.queues.PORTION", 5)
    monkeypatch.setattr("fsrepl.batch.SLICE", 4)
    for i in range(20):
        world.write(f"{i}", bytes(10))
    world.settle()
    enable(world)
    job_id = str(world.run("replication.backfill", source=SOURCE)["JobId"])
    assert job(world, job_id)["Status"] == "Preparing"
    seen = [tasks(job(world, job_id))]
    for _ in range(4):
        world.engine.turn()
        seen.append(tasks(job(world, job_id)))
    assert seen == sorted(seen)
    assert 0 < seen[-1][1] < 20
    found = job(world, job_id)
    assert min(found["TasksPerSecond"], found["BytesPerSecond"]) > 0
    assert found["EtaSeconds"] is not None
    world.restart()
    world.region().look_around()
    found = job(world, job_id)
    assert tasks(found) >= seen[-1]
    assert found["Status"] in ("Preparing", "Active")
    world.settle()
    found = job(world, job_id)
    assert (found["Status"], tasks(found)) == ("Complete", (20, 20, 0))
    summary = found["ProgressSummary"]
    assert (summary["TotalBytes"], summary["BytesSucceeded"]) == (200, 200)
    assert found["EtaSeconds"] is found["TasksPerSecond"] is found["BytesPerSecond"] is None
    assert found["TerminationDate"] > found["CreationTime"]


def test_the_report_has_a_row_for_each_version_and_destination(world: World) -> None:
    """A report: bucket, key, version, destination, what became of it and why; kept as it was when the job ended."""
    world.run("bucket.create", bucket=OTHER, versioning=True)
    world.path().mkdir(exist_ok=True)
    Path(os.fsdecode(os.fsencode(world.path()) + b"/b\xff\n")).write_bytes(b"1")
    world.write("a", b"2")
    world.settle()
    world.configure(rule("one"), rule("two", OTHER, priority=2))
    world.run("versioning.set", bucket=OTHER, status="Suspended")
    found = backfill(world)
    assert tasks(found) == (4, 2, 2)
    ended = jobs.find(world.engine.site, str(found["JobId"]))
    world.run("versioning.set", bucket=OTHER, status="Enabled")
    world.run("retry", scope=SOURCE)
    world.engine.settle_down()
    with world.engine.site.bucket(SOURCE).open() as bucket:
        rows = list(jobs.report(bucket, world.engine.journal, ended))
    ids = {key: versions[0].id for key, versions in world.history(SOURCE).items()}
    a = {"Bucket": SOURCE, "Key": "a", "VersionId": ids[b"a"]}
    b = {"Bucket": SOURCE, "Key": "b\\xff\n", "KeyBase64": "Yv8K", "VersionId": ids[b"b\xff\n"]}
    good = {"Destination": DESTINATION, "Status": "succeeded", "ErrorCode": ""}
    bad = {"Destination": OTHER, "Status": "failed", "ErrorCode": "DstBucketUnversioned"}
    assert rows == [a | good, a | bad, b | good, b | bad] or rows == [a | bad, a | good, b | bad, b | good]
    assert job(world, ended.id)["ProgressSummary"] == found["ProgressSummary"]


def test_old_jobs_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job can be asked for as long as S3 keeps its own, 90 days."""
    enable(world)
    first = backfill(world)
    second = backfill(world)
    now = world.engine.site.now()
    monkeypatch.setattr(world.engine.site, "now", lambda: now + 91 * 86400 * 10**9)
    third = backfill(world)
    found = listed(world)
    assert [j["JobId"] for j in found] == [third["JobId"]]
    assert first["JobId"] != second["JobId"]
    assert len(list(world.path(".fsrepl/jobs").iterdir())) == 2


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("restart", [False, True])
def test_a_cancelled_job_undoes_what_it_has_not_done(
    world: World, monkeypatch: pytest.MonkeyPatch, turns: int, restart: bool
) -> None:
    """Cancelling: what is there stays COMPLETED, the rest is what it was before; and a new job takes it up."""
    monkeypatch.setattr("fsrepl.queues.PORTION", 3)
    monkeypatch.setattr("fsrepl.batch.SLICE", 4)
    enable(world)
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    for i in range(4):
        world.write(f"failed/{i}", b"f")
    world.settle()
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    world.run("replication.disable", source=SOURCE)
    for i in range(16):
        world.write(f"none/{i}", b"n")
    world.settle()
    enable(world, destination=None)  # type: ignore[arg-type]
    world.settle()
    job_id = str(world.run("replication.backfill", source=SOURCE)["JobId"])
    for _ in range(turns):
        world.engine.turn()
    world.run("replication.cancel", job=job_id)
    if restart:
        world.restart()
        world.settle()
    world.engine.settle_down()
    assert job(world, job_id)["Status"] == "Cancelled"
    there = {f"{key.decode()}" for key in world.ids(DESTINATION)}
    for key in sorted(world.tree(SOURCE)):
        expected = ("COMPLETED", "") if key in there else ("FAILED", "DstBucketUnversioned") if "f" in key else ("", "")
        assert deliveries(world, key) == [expected]
        if not restart or expected[0] != "COMPLETED":  # what a kill leaves unmarked is a courtesy left out
            assert ("user.fsrepl.replication-status" in os.listxattr(world.path(key))) == (expected[0] != "")
    assert tasks(job(world, job_id))[1] == len(there)
    assert {owed.status for owed in world.engine.journal.deliveries(SOURCE)} <= {"COMPLETED", "FAILED"}
    with pytest.raises(Refused, match="InvalidRequest"):
        world.run("replication.cancel", job=job_id)
    backfill(world)
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.statuses() == {Status.COMPLETED}


def test_cancelling_what_nobody_knows(world: World) -> None:
    """An unknown job is refused by name."""
    with pytest.raises(Refused, match="NoSuchJob"):
        world.run("replication.cancel", job="01K0000000000000000000000A")


def test_a_job_ends_where_its_configuration_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5: with the configuration gone nothing stays PENDING, and the job says why it failed."""
    monkeypatch.setattr("fsrepl.batch.SLICE", 2)
    for i in range(8):
        world.write(f"{i}", b"x")
    world.settle()
    enable(world)
    world.away("west")
    job_id = str(world.run("replication.backfill", source=SOURCE)["JobId"])
    world.engine.turn()
    world.run("replication.rm", source=SOURCE)
    world.settle()
    world.back("west")
    world.settle()
    world.settle()
    found = job(world, job_id)
    assert (found["Status"], found["StatusUpdateReason"]) == ("Failed", "SrcBucketReplicationConfigMissing")
    assert world.statuses() <= {None, Status.FAILED}
    reasons = {d.reason for vs in world.history(SOURCE).values() for v in vs for d in v.deliveries.values()}
    assert reasons == {"SrcBucketReplicationConfigMissing"}


def test_a_region_that_left_the_site(world: World) -> None:
    """3.3: DstBucketInvalidRegion is what a backfill says of a destination whose region is not there."""
    world.write("k", b"1")
    world.settle()
    enable(world)
    world.run("region.forget", name="west")
    world.settle()
    assert tasks(backfill(world)) == (1, 0, 1)
    assert deliveries(world, "k") == [("FAILED", "DstBucketInvalidRegion")]


def test_an_edit_of_what_was_backfilled_is_live(world: World) -> None:
    """2.2: metadata that changes later goes at once, with live priority, and is no part of the job any more."""
    world.write("k", b"1")
    world.settle()
    enable(world)
    found = backfill(world)
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "b"})
    (owed,) = world.engine.journal.deliveries(SOURCE)
    assert (owed.status, owed.batch) == ("PENDING", "")
    world.engine.settle_down()
    assert world.history(DESTINATION)[b"k"][0].tags == {"a": "b"}
    assert tasks(job(world, str(found["JobId"]))) == (1, 1, 0)


def test_versions_dropped_after_the_job_are_not_its_affair(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing versions: what comes while it looks through the bucket is for the live rules alone."""
    monkeypatch.setattr("fsrepl.batch.SLICE", 1)
    world.write("a", b"1")
    world.settle()
    world.configure({"ID": "r", **v2("a")})
    job_id = str(world.run("replication.backfill", source=SOURCE)["JobId"])
    world.write("z", b"2")
    world.settle()
    world.configure(rule("r"))
    world.settle()
    assert tasks(job(world, job_id)) == (1, 1, 0)
    assert world.tree(DESTINATION) == {"a": b"1"}


def test_lifecycle_can_ask_whether_a_bucket_is_being_filled(world: World) -> None:
    """5.5, point 6: while a backfill to a bucket is under way, and not after."""
    world.write("a", b"1")
    world.settle()
    enable(world)
    assert not batch.is_filling(world.engine, DESTINATION)
    world.run("replication.backfill", source=SOURCE)
    assert batch.is_filling(world.engine, DESTINATION)
    assert not batch.is_filling(world.engine, SOURCE)
    world.engine.settle_down()
    assert not batch.is_filling(world.engine, DESTINATION)


# -- faults


def _prepared(home: Path) -> World:
    world = World(home)
    world.run("replication.disable", source=SOURCE)
    world.write("a/1", b"one")
    world.write("a/2", b"two")
    world.write("x" * 240, b"long")
    world.settle()
    world.write("a/1", b"one more")
    world.path("a/2").unlink()
    world.settle()
    enable(world, destination=None)  # type: ignore[arg-type]
    world.settle()
    return world


@pytest.mark.slow
@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
def test_power_cut_at_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_journal: bool) -> None:
    """G7: a backfill that was accepted is carried to its end, once, whichever change the power goes at."""
    monkeypatch.setattr("fsrepl.batch.SLICE", 2)
    monkeypatch.setattr("fsrepl.batch._SAVE_S", 0.0)
    for calls in itertools.count(step=3 if without_journal else 1):
        with _prepared(tmp_path / str(calls)) as world:
            fs = DyingFs(calls)
            world.restart(fs=fs)
            accepted = False
            with contextlib.suppress(PowerCut):
                world.settle()
                world.run("replication.backfill", source=SOURCE)
                accepted = True
                world.engine.settle_down()
            where = f"cut at change {calls}, in {fs.died_in}"
            world.restart(without_journal=without_journal)
            world.settle()
            found = listed(world)
            assert len(found) == 1 or not accepted, where
            if not found:
                continue
            assert world.ids(DESTINATION) == world.ids(SOURCE), where
            assert world.tree(DESTINATION) == world.tree(SOURCE), where
            assert world.statuses() == {Status.COMPLETED}, where
            assert [(j["Status"], tasks(j)) for j in found] == [("Complete", (5, 5, 0))], where
            with world.engine.site.bucket(SOURCE).open() as bucket:
                (ended,), damaged = jobs.load(bucket)
                rows = list(jobs.report(bucket, world.engine.journal, ended))
            assert (len(rows), {row["Status"] for row in rows}, damaged) == (5, {"succeeded"}, []), where
            assert not any(d.before for vs in world.history(SOURCE).values() for v in vs for d in v.deliveries.values())
            assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
            if not fs.died:
                return


@pytest.mark.slow
def test_power_cut_at_every_change_of_a_cancelled_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: a cancelled job ends, and every version is either there and COMPLETED, or what it was."""
    monkeypatch.setattr("fsrepl.batch.SLICE", 2)
    for calls in itertools.count():
        with _prepared(tmp_path / str(calls)) as world:
            world.away("west")
            job_id = str(world.run("replication.backfill", source=SOURCE)["JobId"])
            world.settle()
            fs = DyingFs(calls)
            world.restart(fs=fs)
            cancelled = False
            with contextlib.suppress(PowerCut):
                world.settle()
                world.run("replication.cancel", job=job_id)
                cancelled = True
                world.engine.settle_down()
            world.restart()
            world.settle()
            where = f"cut at change {calls}, in {fs.died_in}"
            if not cancelled and job(world, job_id)["Status"] == "Active":
                continue
            assert (job(world, job_id)["Status"], tasks(job(world, job_id))) == ("Cancelled", (0, 0, 0)), where
            assert world.statuses() == {None}, where
            assert list(world.engine.journal.deliveries(SOURCE)) == [], where
            if not fs.died:
                return


@pytest.mark.slow
@pytest.mark.parametrize("for_ever", [False, True])
def test_a_disk_that_takes_nothing_only_delays_it(tmp_path: Path, for_ever: bool) -> None:
    """G7: full at any one change, or read-only from any on until it is mended: the backfill is complete after that."""
    for calls in itertools.count(step=3):
        with _prepared(tmp_path / str(calls)) as world:
            fs = FailingFs(1 << 60, errno.EROFS if for_ever else errno.ENOSPC)
            world.restart(fs=fs)
            world.settle()
            world.run("replication.backfill", source=SOURCE)
            fs.calls_left, fs.for_ever = calls, for_ever
            world.engine.settle_down()
            failed = fs.failed
            fs.mend()
            for _ in range(3):
                for place in (world.place(SOURCE), world.place(DESTINATION)):
                    for run in place.jobs.values():
                        run.due_s = 0.0
                world.settle()
            assert world.ids(DESTINATION) == world.ids(SOURCE), calls
            assert world.statuses() == {Status.COMPLETED}, calls
            found = listed(world)
            assert [(j["Status"], tasks(j)) for j in found] == [("Complete", (5, 5, 0))], calls
            if not failed:
                return


def test_a_version_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    """Errors inside one item never stop the others: it is in the report, as failed."""
    for key in ("a", "b", "c"):
        world.write(key, b"x")
    world.settle()
    enable(world)
    with world.engine.site.bucket(SOURCE).open() as opened:
        version = world.history(SOURCE)[b"b"][0]
        records.update(opened, version, {attrs.DELIVERIES: b"{nonsense"})
        world.engine.recent.forget(SOURCE)
    found = backfill(world)
    assert (found["Status"], tasks(found)) == ("Complete", (3, 2, 1))
    ended = jobs.find(world.engine.site, str(found["JobId"]))
    with world.engine.site.bucket(SOURCE).open() as bucket:
        rows = [r for r in jobs.report(bucket, world.engine.journal, ended) if r["Status"] == "failed"]
    assert rows == [
        {
            "Bucket": SOURCE, "Key": "b", "VersionId": version.id, "Destination": "", "Status": "failed",
            "ErrorCode": "SrcObjectNotEligible",
        }
    ]  # fmt: skip


def test_a_document_that_cannot_be_read_stops_nothing_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged job is named in the log; the bucket, and other jobs, go on."""
    world.write("a", b"1")
    world.settle()
    enable(world)
    backfill(world)
    (world.path(".fsrepl/jobs") / "01K0000000000000000000000A.json").write_text("{")
    (world.path(".fsrepl/jobs") / ".01K0000000000000000000000B.json.new").write_text("{")
    world.restart()
    with caplog.at_level("ERROR"):
        world.settle()
    assert "01K0000000000000000000000A.json cannot be read" in caplog.text
    assert tasks(backfill(world)) == (0, 0, 0)
    assert sorted(p.suffix for p in world.path(".fsrepl/jobs").iterdir()) == [".json"] * 3 + [".jsonl"] * 2


def test_a_bucket_that_was_moved_to_another_region(world: World) -> None:
    """3.3: SrcBucketInvalidRegion: a job is bound to where it was asked for. What it owes already is still sent."""
    world.write("a", b"1")
    world.settle()
    enable(world)
    world.run("replication.backfill", source=SOURCE)
    (document,) = world.path(".fsrepl/jobs").iterdir()
    document.write_text(document.read_text().replace(SOURCE, "north/src"))
    world.restart()
    world.settle()
    found = listed(world)
    assert [(j["Status"], j["StatusUpdateReason"]) for j in found] == [("Failed", "SrcBucketInvalidRegion")]
    assert world.statuses() == {None}


def test_jobs_are_written_and_read_back() -> None:
    """Every field of a job's document, both ways."""
    stamp = clock.parse("2026-11-24T01:53:51.123456789Z")
    full = jobs.Job(
        "01K0000000000000000000000A", SOURCE, stamp, ("NONE", "FAILED"), ("r",), jobs.State.FAILED, 5, 4, 3,
        ((b"k\xff", "01K0000000000000000000000B"),), Stored(b"d\xff", b"n", 7, NULL), stamp + 1,
        jobs.Tasks(5, 4, 3, 2, 1), "why",
    )  # fmt: skip
    for each in (full, jobs.Job("01K0000000000000000000000A", SOURCE, stamp)):
        assert jobs.decode(json.loads(json.dumps(jobs.encode(each)))) == each


def test_questions_about_jobs_are_answered_by_an_index(world: World) -> None:
    """However large a bucket: what is asked every turn is found, not looked for."""
    journal = world.engine.journal
    asked: list[str] = []
    execute = journal.execute
    journal.execute = lambda query, *values: asked.append(query) or execute(query, *values)  # type: ignore[assignment,func-returns-value]
    journal.job_pending(SOURCE, "J", 1)
    journal.job_counts(SOURCE, "J")
    journal.backlog(SOURCE, DESTINATION, None, 1)
    journal.backlog_of(SOURCE, DESTINATION, "r", 1)
    journal.backlog_ways(SOURCE)
    journal.versions_after(SOURCE, None, 1)
    journal.job_deliveries(SOURCE, "J", None, 1)
    plans = ["; ".join(row[3] for row in execute(f"EXPLAIN QUERY PLAN {q}", [None] * q.count("?"))) for q in asked]
    assert [p for p in plans if "SCAN" in p or "ORDER BY" in p] == [], plans
    assert all("backfilled (bucket=? AND batch=?" in p for p in plans[:2]), plans
    assert all("INDEX pending" in p for p in plans[2:5]), plans


def test_how_long_it_will_take() -> None:
    """ETA: by number and bytes, at the pace since this process took it up, over what is still to be found as well."""
    job = jobs.Job("01K0000000000000000000000A", SOURCE, 1, versions=1000, examined=250)
    run = batch.Run(job, began_s=100.0, began_with=jobs.Tasks(10, 0, 10, 0, 0))
    mib = 1 << 20
    assert batch.pace(run, jobs.Tasks(100, 100 * mib, 10, 0, 0), 110.0) == jobs.Pace()
    tasks = jobs.Tasks(100, 100 * mib, 25, 20 * mib, 5)
    share = batch._work(20, 20 * mib) / batch._work(100, 100 * mib)
    preparing = batch.pace(run, tasks, 110.0)
    assert (preparing.tasks_per_s, preparing.bytes_per_s) == (2.0, 2.0 * mib)
    run.job = replace(job, state=jobs.State.ACTIVE)
    active = batch.pace(run, tasks, 110.0)
    left = batch._work(100, 100 * mib) - batch._work(30, 20 * mib)
    assert active.eta_s == pytest.approx(10 * left / batch._work(20, 20 * mib), abs=0.1)
    assert preparing.eta_s == pytest.approx((active.eta_s or 0) + 10 * 3 / share, abs=0.2)
    assert batch.pace(run, jobs.Tasks(30, 20 * mib, 25, 20 * mib, 5), 110.0).eta_s == 0.0
