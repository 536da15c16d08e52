"""Backfill is S3 Batch Replication: which versions it sends, and which it leaves out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.errors import Refused, Usage
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import NULL, DeliveryRecord, Origin, Status, Version
from fsrepl.s3 import rules
from fsrepl.s3.rules import Wanted, ask_for
from tests.backfills import OTHER, THIRD, adopted, backfill, change, deliveries, enable, rule, tasks
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "site", replicate=False) as found:
        yield found


# -- which versions are sent: the batch column of s3-semantics, 2


def test_all_versions_from_before_the_rule_are_sent(world: World) -> None:
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
    """2: enabling the rule again sends nothing; a backfill does."""
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
    """2: V2 markers only where they are Enabled; a marker that is not sent has no status."""
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
    """2: a tag rule that matches now; and only the versions that it matches."""
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
    """2 and 2.2: REPLICA versions are sent by the rules of the bucket they are in; their own source already has
    them."""
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


def test_a_replica_without_tags_takes_none_from_its_original(world: World) -> None:
    """2.2: metadata goes from the source to its replicas; a replica without tags, sent back, removes nothing."""
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
    """2 and 3.3: a replica that was removed by its version id does not come back, and the report has the reason."""
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
    """2, "destination bucket deleted and recreated": nothing is sent again by itself, a backfill sends all of it."""
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


def test_removals_of_versions_are_never_sent(world: World) -> None:
    """2: the deletion of a named version is never sent, by a backfill neither."""
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


def test_null_versions_are_sent_as_null(tmp_path: Path) -> None:
    """2, "null version": as null, once, where the destination has none for that key."""
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
    """2: the destination's own null version stays; SrcObjectNotEligible, and the others continue."""
    with adopted(tmp_path, "east/old", "west/old", a=b"1") as world:
        world.write("b", b"new", "east/old")
        world.settle()
        enable(world, "east/old", "west/old")
        found = backfill(world, source="east/old")
        assert tasks(found) == (2, 1, 1)
        assert deliveries(world, "a", "west/old", "east/old") == [("FAILED", "SrcObjectNotEligible")]
        assert world.tree("west/old") == {"a": b"1west", "b": b"new"}


def test_null_markers_are_null_versions(world: World) -> None:
    """2 and 4: a marker with the id null, from a time of suspension, is sent; but not over another null version."""
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
    made = {f"west/{name}": DeliveryRecord("r", Status(status)) for name, status in statuses.items()}
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
def test_the_status_of_a_version_may_differ_by_destination(version: Version, called: set[str]) -> None:
    """A version COMPLETED to one destination may be NONE to another; S3's own status for it counts as well."""
    assert rules.statuses_for(version, "west/dst") == called


def test_every_status_against_every_filter() -> None:
    """All combinations: the status of a delivery, the filter, and whether the destination is known to have the
    version."""
    one = Replication("role", (Rule("r", True, b"", "west/dst"),))
    for status, wanted, there in itertools.product(
        ("", "PENDING", "FAILED", "COMPLETED", "mine"), ("", *rules.STATUSES), (True, False)
    ):
        mine = DeliveryRecord("r", Status.COMPLETED, job="J")
        before = mine if status == "mine" else DeliveryRecord("r", Status(status), "why") if status else None
        version = replace(version_with(), deliveries={"west/dst": before} if before else {})
        asked, known = rules.ask_for(
            one, version, rules.Wanted("J", frozenset([wanted] if wanted else [])), lambda _, there=there: there
        )
        is_wanted = wanted in ("", status or "NONE") and status not in ("PENDING", "mine")
        is_known = is_wanted and status == "COMPLETED" and not wanted and there
        assert known == is_known
        assert asked == (
            {"west/dst": DeliveryRecord("r", Status.PENDING, job="J", before=before)}
            if is_wanted and not is_known
            else {}
        )


def test_the_rule_that_wins_must_be_among_the_chosen_ones() -> None:
    """1.3: a rule that lost to another sends none of that rule's keys, nor their markers; a disabled rule sends
    nothing."""
    rules = (
        Rule("all", True, b"", "west/dst", priority=1, v2=True, delete_markers=True, storage_class="STANDARD_IA"),
        Rule("logs", True, b"logs/", "west/dst", priority=2, v2=True, delete_markers=False),
        Rule("off", False, b"", "west/other", priority=3, v2=True),
    )

    def asked(key: bytes, *wanted: str, marker: bool = False) -> list[str]:
        version = replace(version_with(), key=key, marker=marker)
        found, _ = ask_for(Replication("role", rules), version, Wanted("J", rules=frozenset(wanted)), lambda _: False)
        return [f"{destination} {recorded.rule}" for destination, recorded in found.items()]

    assert asked(b"x") == asked(b"x", "all") == ["west/dst all"]
    assert asked(b"logs/x") == asked(b"logs/x", "logs") == ["west/dst logs"]
    assert asked(b"logs/x", "all") == asked(b"logs/x", "all", marker=True) == asked(b"logs/x", marker=True) == []
    assert asked(b"x", "logs") == asked(b"x", "off") == []


def test_failed_deliveries_alone(world: World) -> None:
    """2 and 3.2: FAILED is tried again when its cause is gone; other versions are not read twice."""
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
    """A backfill of chosen rules: the others' destinations are left as they are."""
    world.run("bucket.create", bucket=OTHER, versioning=True)
    world.write("k", b"1")
    world.settle()
    world.configure(rule("one", StorageClass="STANDARD_IA"), rule("two", OTHER, priority=2))
    assert tasks(backfill(world, rules=("one",))) == (1, 1, 0)
    assert world.tree(OTHER) == {}
    assert world.history(DESTINATION)[b"k"][0].storage_class == "STANDARD_IA"


# -- refusals


def test_invalid_requests_for_a_backfill_are_refused(world: World) -> None:
    """1.4 and 1.5: no configuration, no such rule, a disabled rule, no such status: no job begins."""

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
    """6.1: the role needs s3:InitiateReplication, and must trust batchoperations; live replication needs neither."""
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
    world.engine.run_until_idle()
    assert deliveries(world, "old") == [("COMPLETED", "")], "asked for by a person, it is a live delivery"
