"""The course of a backfill: its order, its progress, its end, and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.commands import backfills
from fsrepl.commands.documents.jobs import Pace
from fsrepl.errors import Refused
from fsrepl.model import clock
from fsrepl.model.version import NULL, Status
from fsrepl.region import backfill_state
from fsrepl.region.delivery_queue import Queue
from fsrepl.storage import backfill_jobs
from fsrepl.storage.journal.rows import Counts, Delivery, Stored
from tests.backfills import OTHER, backfill, deliveries, enable, job, listed, rule, tasks
from tests.world import DESTINATION, SOURCE, World, v2


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "site", replicate=False) as found:
        yield found


# -- order, and live traffic first


def test_late_old_versions_do_not_become_current(world: World) -> None:
    """G5: a version from after the rule is current at the destination, however late the older ones come."""
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
    monkeypatch.setattr("fsrepl.region.delivery_queue.PORTION", 3)
    for i in range(10):
        world.write(f"old/{i}", b"x")
    world.settle()
    enable(world)
    sent: list[list[str]] = []
    region = world.region(DESTINATION)
    carry = region._carry

    def watched(queue: Queue, deliveries: list[Delivery]) -> None:
        sent.append(["batch" if each.job else "" for each in deliveries])
        carry(queue, deliveries)

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
    """Nor after a restart: it is read from the journal when it is needed, while the destination is away too."""
    monkeypatch.setattr("fsrepl.region.delivery_queue.PORTION", 4)
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 4)
    for i in range(40):
        world.write(f"{i}", b"x")
    world.settle()
    enable(world)
    world.away("west")
    world.run("replication.backfill", source=SOURCE)
    for _ in range(2):
        world.settle()
        assert [str(delivery.status) for delivery in world.engine.journal.deliveries.select(SOURCE)] == ["PENDING"] * 40
        queues = [q for region in world.engine.regions.values() for q in region.queues.values()]
        assert all(not q.ready and not q.again and not q.later and not q.known and len(q.notes) <= 4 for q in queues)
        world.restart()
    world.back("west")
    world.settle()
    world.settle()
    assert len(world.tree(DESTINATION)) == 40
    assert world.statuses() == {Status.COMPLETED}


# -- progress, reports, cancelling


def test_progress_is_counted_from_the_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G11: totals, finished tasks and the remaining time; the same after a restart, in the middle of it."""
    monkeypatch.setattr("fsrepl.region.delivery_queue.PORTION", 5)
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 4)
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
    world.region().probe_buckets()
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
    """Bucket, key, version, destination, result and reason; the report stays as it was when the job ended."""
    world.run("bucket.create", bucket=OTHER, versioning=True)
    world.path().mkdir(exist_ok=True)
    Path(os.fsdecode(os.fsencode(world.path()) + b"/b\xff\n")).write_bytes(b"1")
    world.write("a", b"2")
    world.settle()
    world.configure(rule("one"), rule("two", OTHER, priority=2))
    world.run("versioning.set", bucket=OTHER, status="Suspended")
    found = backfill(world)
    assert tasks(found) == (4, 2, 2)
    ended = backfill_jobs.find(world.engine.site, str(found["JobId"]))
    world.run("versioning.set", bucket=OTHER, status="Enabled")
    world.run("retry", scope=SOURCE)
    world.engine.run_until_idle()
    with world.engine.site.bucket(SOURCE).open() as bucket:
        rows = list(backfill_jobs.report(bucket, world.engine.journal, ended))
    ids = {key: versions[0].id for key, versions in world.history(SOURCE).items()}
    a = {"Bucket": SOURCE, "Key": "a", "VersionId": ids[b"a"]}
    b = {"Bucket": SOURCE, "Key": "b\\xff\n", "KeyBase64": "Yv8K", "VersionId": ids[b"b\xff\n"]}
    good = {"Destination": DESTINATION, "Status": "succeeded", "ErrorCode": ""}
    bad = {"Destination": OTHER, "Status": "failed", "ErrorCode": "DstBucketUnversioned"}
    assert rows == [a | good, a | bad, b | good, b | bad] or rows == [a | bad, a | good, b | bad, b | good]
    assert job(world, ended.id)["ProgressSummary"] == found["ProgressSummary"]


def test_jobs_are_kept_for_90_days(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as S3 keeps its own."""
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
def test_a_cancelled_job_restores_the_status_of_tasks_not_done(
    world: World, monkeypatch: pytest.MonkeyPatch, turns: int, restart: bool
) -> None:
    """Delivered versions stay COMPLETED, the others have their former status; a new job takes these up."""
    monkeypatch.setattr("fsrepl.region.delivery_queue.PORTION", 3)
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 4)
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
    world.engine.run_until_idle()
    assert job(world, job_id)["Status"] == "Cancelled"
    there = {f"{key.decode()}" for key in world.ids(DESTINATION)}
    for key in sorted(world.tree(SOURCE)):
        expected = ("COMPLETED", "") if key in there else ("FAILED", "DstBucketUnversioned") if "f" in key else ("", "")
        assert deliveries(world, key) == [expected]
        if not restart or expected[0] != "COMPLETED":  # labels that a kill prevented are not required
            assert ("user.fsrepl.replication-status" in os.listxattr(world.path(key))) == (expected[0] != "")
    assert tasks(job(world, job_id))[1] == len(there)
    assert {delivery.status for delivery in world.engine.journal.deliveries.select(SOURCE)} <= {"COMPLETED", "FAILED"}
    with pytest.raises(Refused, match="InvalidRequest"):
        world.run("replication.cancel", job=job_id)
    backfill(world)
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.statuses() == {Status.COMPLETED}


def test_cancelling_an_unknown_job_is_refused(world: World) -> None:
    """By its name."""
    with pytest.raises(Refused, match="NoSuchJob"):
        world.run("replication.cancel", job="01K0000000000000000000000A")


def test_a_job_ends_where_its_configuration_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5: without the configuration nothing stays PENDING, and the job has the reason why it failed."""
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 2)
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
    """3.3: DstBucketInvalidRegion is a backfill's result for a destination whose region is not in the site."""
    world.write("k", b"1")
    world.settle()
    enable(world)
    world.run("region.forget", name="west")
    world.settle()
    assert tasks(backfill(world)) == (1, 0, 1)
    assert deliveries(world, "k") == [("FAILED", "DstBucketInvalidRegion")]


def test_an_edit_of_what_was_backfilled_is_live(world: World) -> None:
    """2.2: metadata that changes later is sent at once, with live priority, and is no part of the job any more."""
    world.write("k", b"1")
    world.settle()
    enable(world)
    found = backfill(world)
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "b"})
    (delivery,) = world.engine.journal.deliveries.select(SOURCE)
    assert (delivery.status, delivery.job) == ("PENDING", "")
    world.engine.run_until_idle()
    assert world.history(DESTINATION)[b"k"][0].tags == {"a": "b"}
    assert tasks(job(world, str(found["JobId"]))) == (1, 1, 0)


def test_versions_from_after_the_request_are_not_part_of_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing versions: those that arrive while the job reads the bucket are for the live rules alone."""
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 1)
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
    """5.5, point 6: while a backfill to a bucket is running, and not after."""
    world.write("a", b"1")
    world.settle()
    enable(world)
    assert not backfill_jobs.is_filling(world.engine.site, world.engine.journal, DESTINATION)
    world.run("replication.backfill", source=SOURCE)
    assert backfill_jobs.is_filling(world.engine.site, world.engine.journal, DESTINATION)
    assert not backfill_jobs.is_filling(world.engine.site, world.engine.journal, SOURCE)
    world.engine.run_until_idle()
    assert not backfill_jobs.is_filling(world.engine.site, world.engine.journal, DESTINATION)


def test_jobs_are_written_and_read_back() -> None:
    """Every field of a job's document, both ways."""
    stamp = clock.parse("2026-11-24T01:53:51.123456789Z")
    full = backfill_jobs.Job(
        "01K0000000000000000000000A", SOURCE, stamp, ("NONE", "FAILED"), ("r",), backfill_jobs.State.FAILED, 5, 4, 3,
        ((b"k\xff", "01K0000000000000000000000B"),), Stored(b"d\xff", b"n", 7, NULL), stamp + 1,
        backfill_jobs.Tasks(5, 4, 3, 2, 1), "why",
    )  # fmt: skip
    for each in (full, backfill_jobs.Job("01K0000000000000000000000A", SOURCE, stamp)):
        assert backfill_jobs.decode(json.loads(json.dumps(backfill_jobs.encode(each)))) == each


def test_questions_about_jobs_are_answered_by_an_index(world: World) -> None:
    """However large a bucket is: a query that runs in every turn of the loop uses an index."""
    journal = world.engine.journal
    asked: list[str] = []
    execute = journal.execute
    journal.execute = lambda query, *values: asked.append(query) or execute(query, *values)  # type: ignore[assignment,func-returns-value]
    journal.backlog.job_pending(SOURCE, "J", 1)
    journal.backlog.job_counts(SOURCE, "J")
    journal.backlog.read(SOURCE, DESTINATION, None, 1)
    journal.backlog.of_rule(SOURCE, DESTINATION, "r", 1)
    journal.backlog.rules(SOURCE, DESTINATION)
    journal.versions.versions_after(SOURCE, None, 1)
    journal.backlog.job_deliveries(SOURCE, "J", None, 1)
    plans = ["; ".join(row[3] for row in execute(f"EXPLAIN QUERY PLAN {q}", [None] * q.count("?"))) for q in asked]
    assert [p for p in plans if "SCAN" in p or "ORDER BY" in p] == [], plans
    assert all("backfilled (bucket=? AND batch=?" in p for p in plans[:2]), plans
    assert all("INDEX pending" in p for p in plans[2:5]), plans


class Numbers:
    """JobCounts, in memory."""

    def job_counts(self, source: str, job: str) -> dict[str, Counts]:
        assert (source, job) == (SOURCE, "J")
        return {"COMPLETED": Counts(3, 30), "FAILED": Counts(2, 20), "PENDING": Counts(4, 40)}


def test_the_tasks_of_a_job_are_counted_until_it_ends() -> None:
    """S3 Batch: total, succeeded and failed; an unreadable version failed too. Afterwards the numbers stay."""
    job = backfill_jobs.Job("J", SOURCE, 1, unreadable=((b"k", NULL),))
    assert backfill_jobs.tasks_of(Numbers(), job) == backfill_jobs.Tasks(10, 90, 3, 30, 3)
    ended = backfill_jobs.Tasks(1, 2, 1, 2, 0)
    assert backfill_jobs.tasks_of(Numbers(), replace(job, tasks=ended)) is ended


def test_how_long_it_will_take() -> None:
    """The estimate: by number and bytes, at the rate since this process began with the job, including versions that are
    still to be found."""
    job = backfill_jobs.Job("01K0000000000000000000000A", SOURCE, 1, versions=1000, examined=250)
    run = backfill_state.Run(job, began_s=100.0, began_with=backfill_jobs.Tasks(10, 0, 10, 0, 0))
    mib = 1 << 20
    assert backfills.pace(run, backfill_jobs.Tasks(100, 100 * mib, 10, 0, 0), 110.0) == Pace()
    tasks = backfill_jobs.Tasks(100, 100 * mib, 25, 20 * mib, 5)
    share = backfills._work(20, 20 * mib) / backfills._work(100, 100 * mib)
    preparing = backfills.pace(run, tasks, 110.0)
    assert (preparing.tasks_per_s, preparing.bytes_per_s) == (2.0, 2.0 * mib)
    run.job = replace(job, state=backfill_jobs.State.ACTIVE)
    active = backfills.pace(run, tasks, 110.0)
    left = backfills._work(100, 100 * mib) - backfills._work(30, 20 * mib)
    assert active.eta_s == pytest.approx(10 * left / backfills._work(20, 20 * mib), abs=0.1)
    assert preparing.eta_s == pytest.approx((active.eta_s or 0) + 10 * 3 / share, abs=0.2)
    assert backfills.pace(run, backfill_jobs.Tasks(30, 20 * mib, 25, 20 * mib, 5), 110.0).eta_s == 0.0
