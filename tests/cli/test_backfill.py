"""`fsrepl replication backfill`, jobs, report and cancel, through real daemon processes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.site import DESTINATION, SOURCE, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site whose files were there before the rule."""
    with Site(tmp_path, replicate=False) as found:
        found.start()
        found.write("old/a", b"one")
        found.write("old/b", b"two")
        found.wait()
        found.must("replication", "enable", SOURCE, DESTINATION)
        yield found


def listed(site: Site) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = site.json("replication", "jobs")["Jobs"]
    return jobs


def test_queued_when_it_returns_and_waited_for(site: Site) -> None:
    """design.md, section 5: backfill returns when the job is accepted; `fsrepl wait` covers it."""
    said = site.must("replication", "backfill", SOURCE).out
    site.wait()
    site.in_step()
    assert site.tree(DESTINATION) == {"old/a": b"one", "old/b": b"two"}
    (job,) = listed(site)
    assert job["JobId"] in said
    assert (job["Status"], job["ProgressSummary"]["NumberOfTasksSucceeded"]) == ("Complete", 2)
    for bucket in (SOURCE, DESTINATION):
        assert site.head(f"{bucket}/old/a")["ReplicationStatus"] == {SOURCE: "COMPLETED"}.get(bucket, "REPLICA")
    assert job["JobId"] in site.must("replication", "jobs", SOURCE).out
    assert site.json("replication", "jobs", DESTINATION) == {"Jobs": []}


def test_waiting_reporting_and_the_exit_status(site: Site, tmp_path: Path) -> None:
    """The exit status is 0 when all is replicated, 1 when some of it failed; the report names these as CSV or JSON; a
    pipe shows no progress bar."""
    done = site.must("replication", "backfill", SOURCE, "--status", "NONE", "--wait", "--json")
    assert done.err == ""
    assert done.json()["ProgressSummary"]["NumberOfTasksSucceeded"] == 2
    site.must("versioning", "suspend", DESTINATION)
    site.write("new,\n", b"three")
    site.wait(code=1)
    path = tmp_path / "report.csv"
    failed = site.run("replication", "backfill", SOURCE, "--status", "FAILED", "--report", path)
    assert failed.code == 1
    assert "1 failed" in failed.err
    job = listed(site)[-1]["JobId"]
    (row,) = csv.DictReader(io.StringIO(path.read_text(), newline=""))
    assert row == {
        "Bucket": SOURCE, "Key": "new,\\x0a", "VersionId": site.history(SOURCE)[b"new,\n"][0][0],
        "Destination": DESTINATION, "Status": "failed", "ErrorCode": "DstBucketUnversioned", "KeyBase64": "bmV3LAo=",
    }  # fmt: skip
    assert site.must("replication", "report", job).out == path.read_text()
    site.must("versioning", "enable", DESTINATION)
    path = tmp_path / "report.json"
    site.must("replication", "backfill", SOURCE, "--report", path)
    (one,) = json.loads(path.read_text())
    assert (one["Key"], one["Status"], one["ErrorCode"]) == ("new,\n", "succeeded", "")
    assert json.loads(site.must("replication", "report", listed(site)[-1]["JobId"], "--format", "json").out) == [one]


def test_what_is_refused(site: Site, tmp_path: Path) -> None:
    """The exit status is 2 for unknown values, with the known ones listed; 3 with S3's code; 5 without a daemon. No job
    begins."""
    for arguments, says in (
        (("--status", "PENDING"), "NONE, FAILED, COMPLETED, REPLICA"),
        (("--status", "COMPLETE"), "NONE, FAILED, COMPLETED, REPLICA"),  # S3's status of an object, and none of a job's
        (("--status", "none"), "NONE, FAILED, COMPLETED, REPLICA"),
        (("--format", "csv"), "--report"),
        (("--report", tmp_path / "r", "--format", "xml"), "csv, json"),
        (("--report", tmp_path / "nowhere" / "r"), "cannot write"),
    ):
        ran = site.run("replication", "backfill", SOURCE, *arguments)
        assert (ran.code, says in ran.err) == (2, True), ran
    site.refused("InvalidRequest", "replication", "backfill", SOURCE, "--rule", "nope")
    site.refused("ReplicationConfigurationNotFoundError", "replication", "backfill", DESTINATION)
    assert "there was none to remove" in site.must("replication", "rm", DESTINATION).out  # as S3, which answers 204
    site.refused("NoSuchJob", "replication", "cancel", "01K0000000000000000000000A")
    site.refused("NoSuchJob", "replication", "report", "01K0000000000000000000000A")
    assert listed(site) == []
    assert list(tmp_path.glob("*r")) == list(tmp_path.glob(".r*")) == []
    site.stop()
    assert site.run("replication", "backfill", SOURCE).code == 5
    assert listed(site) == []


def test_a_job_continues_after_the_daemon_was_killed(site: Site) -> None:
    """G7: an accepted job continues by itself when the daemon is back, and can be queried meanwhile."""
    site.must("replication", "disable", SOURCE)
    for number in range(400):
        site.write(f"many/{number:03}", b"x" * number)
    site.wait()
    site.must("replication", "enable", SOURCE)
    site.must("replication", "backfill", SOURCE)
    site.kill()
    (job,) = listed(site)
    assert job["Status"] in ("Preparing", "Active")
    assert site.run("replication", "cancel", job["JobId"]).code == 5
    site.start()
    site.wait()
    site.in_step()
    assert len(site.tree(DESTINATION)) == 402
    (job,) = listed(site)
    summary = job["ProgressSummary"]
    assert (job["Status"], summary["NumberOfTasksSucceeded"], summary["NumberOfTasksFailed"]) == ("Complete", 402, 0)


def test_cancelled_while_the_destination_is_away(site: Site) -> None:
    """Versions that were not sent have their former status again, and `wait` no longer waits for them."""
    west = site.path(bucket=DESTINATION).parent
    west.rename(west.with_name("away"))
    job = site.json("replication", "backfill", SOURCE)["JobId"]
    site.wait(timeout_s=1, code=4)
    assert site.head(f"{SOURCE}/old/a")["ReplicationStatus"] == "PENDING"
    site.must("replication", "cancel", job)
    site.wait()
    assert site.head(f"{SOURCE}/old/a").get("ReplicationStatus") is None
    assert listed(site)[0]["Status"] == "Cancelled"
    west.with_name("away").rename(west)
    site.must("replication", "backfill", SOURCE, "--wait")
    site.in_step()


@pytest.mark.parametrize("more", [(), ("--wait",)], ids=["accepted", "waited-for"])
def test_nothing_to_send_is_said(site: Site, more: tuple[str, ...]) -> None:
    """Section 5: a backfill that matches nothing succeeds with exit status 0, and says so."""
    done = site.must("replication", "backfill", SOURCE, "--status", "FAILED", *more)
    assert f"nothing to send: no version in {SOURCE} has a rule and a status that match" in done.err
    assert "nothing to send" not in site.must("replication", "backfill", SOURCE, *more).err
