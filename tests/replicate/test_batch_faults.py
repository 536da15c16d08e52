"""A backfill that is cut short, and versions or jobs that cannot be read."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model import attributes
from fsrepl.model.version import Status
from fsrepl.storage import backfill_jobs
from tests.backfills import backfill, enable, job, listed, tasks
from tests.doubles import DyingFs, FailingFs, PowerCut
from tests.world import DESTINATION, SOURCE, World, ids, statuses


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "site", replicate=False) as found:
        yield found


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
def test_power_cut_at_every_change(memory: Path, monkeypatch: pytest.MonkeyPatch, without_journal: bool) -> None:
    """G7: an accepted backfill is completed, once, whichever change the power cut comes at."""
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 2)
    monkeypatch.setattr("fsrepl.replicate.backfill._SAVE_S", 0.0)
    for calls in itertools.count(step=3 if without_journal else 1):
        with _prepared(memory / str(calls)) as world:
            fs = DyingFs(calls)
            world.restart(fs=fs)
            accepted = False
            with contextlib.suppress(PowerCut):
                world.settle()
                world.run("replication.backfill", source=SOURCE)
                accepted = True
                world.engine.run_until_idle()
            where = f"cut at change {calls}, in {fs.died_in}"
            world.restart(without_journal=without_journal)
            world.settle()
            found = listed(world)
            assert len(found) == 1 or not accepted, where
            if not found:
                continue
            source = world.history(SOURCE)
            assert world.ids(DESTINATION) == ids(source), where
            assert world.tree(DESTINATION) == world.tree(SOURCE), where
            assert statuses(source) == {Status.COMPLETED}, where
            assert [(j["Status"], tasks(j)) for j in found] == [("Complete", (5, 5, 0))], where
            with world.engine.site.bucket(SOURCE).open() as bucket:
                (ended,), damaged = backfill_jobs.load(bucket)
                rows = list(backfill_jobs.report(bucket, world.engine.journal, ended))
            assert (len(rows), {row["Status"] for row in rows}, damaged) == (5, {"succeeded"}, []), where
            assert not any(d.before for vs in source.values() for v in vs for d in v.deliveries.values())
            assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
            if not fs.died:
                return


@pytest.mark.slow
def test_power_cut_at_every_change_of_a_cancelled_job(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: a cancelled job ends, and every version is either delivered and COMPLETED, or has its former status."""
    monkeypatch.setattr("fsrepl.replicate.backfill.SLICE", 2)
    for calls in itertools.count():
        with _prepared(memory / str(calls)) as world:
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
                world.engine.run_until_idle()
            world.restart()
            world.settle()
            where = f"cut at change {calls}, in {fs.died_in}"
            if not cancelled and job(world, job_id)["Status"] == "Active":
                continue
            assert (job(world, job_id)["Status"], tasks(job(world, job_id))) == ("Cancelled", (0, 0, 0)), where
            assert world.statuses() == {None}, where
            assert list(world.engine.journal.deliveries.select(SOURCE)) == [], where
            if not fs.died:
                return


@pytest.mark.slow
@pytest.mark.parametrize("for_ever", [False, True])
def test_a_full_or_read_only_disk_only_delays_a_backfill(memory: Path, for_ever: bool) -> None:
    """G7: full at any one change, or read-only from any change on until it works again: the backfill is complete after
    that."""
    for calls in itertools.count(step=3):
        with _prepared(memory / str(calls)) as world:
            fs = FailingFs(1 << 60, errno.EROFS if for_ever else errno.ENOSPC)
            world.restart(fs=fs)
            world.settle()
            world.run("replication.backfill", source=SOURCE)
            fs.calls_left, fs.for_ever = calls, for_ever
            world.engine.run_until_idle()
            failed = fs.failed
            fs.mend()
            for _ in range(3):
                for state in (world.state(SOURCE), world.state(DESTINATION)):
                    for run in state.backfills.jobs.values():
                        run.due_s = 0.0
                world.settle()
            source = world.history(SOURCE)
            assert world.ids(DESTINATION) == ids(source), calls
            assert statuses(source) == {Status.COMPLETED}, calls
            found = listed(world)
            assert [(j["Status"], tasks(j)) for j in found] == [("Complete", (5, 5, 0))], calls
            if not failed:
                return


def test_a_version_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    """The version is in the report, as failed."""
    for key in ("a", "b", "c"):
        world.write(key, b"x")
    world.settle()
    enable(world)
    version = world.history(SOURCE)[b"b"][0]
    os.setxattr(world.path(f".fsrepl/versions/b;{version.id}"), attributes.DELIVERIES, b"{nonsense")
    world.engine.recent.forget(SOURCE)
    found = backfill(world)
    assert (found["Status"], tasks(found)) == ("Complete", (3, 2, 1))
    ended = backfill_jobs.find(world.engine.site, str(found["JobId"]))
    with world.engine.site.bucket(SOURCE).open() as bucket:
        rows = [r for r in backfill_jobs.report(bucket, world.engine.journal, ended) if r["Status"] == "failed"]
    assert rows == [
        {
            "Bucket": SOURCE, "Key": "b", "VersionId": version.id, "Destination": "", "Status": "failed",
            "ErrorCode": "SrcObjectNotEligible",
        }
    ]  # fmt: skip


def test_a_document_that_cannot_be_read_stops_nothing_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged job is named in the log; the bucket, and other jobs, continue."""
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
    """3.3: SrcBucketInvalidRegion: a job belongs to the region in which it was requested. Its pending deliveries are
    still sent."""
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
