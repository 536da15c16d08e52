"""Which events are made, and when: failures where metrics are on, lateness where Replication Time Control is."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.repair import repair
from tests.doubles import DyingFs, PowerCut
from tests.timed import METRICS, MINUTE_NS, TIMED, Timed, timed_world
from tests.world import DESTINATION, SOURCE

FAILED, MISSED = "OperationFailedReplication", "OperationMissedThreshold"
LATE, UNTRACKED = "OperationReplicatedAfterThreshold", "OperationNotTracked"


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    with timed_world(tmp_path, monkeypatch) as found:
        yield found


def test_a_failure_makes_an_event_where_metrics_are_on(timed: Timed) -> None:
    """3.4: OperationFailedReplication needs metrics, not RTC; with S3's reason, and all fields."""
    timed.configure(METRICS)
    timed.break_role()
    timed.world.write("a b", b"data")
    timed.settle()
    (event,) = timed.events()
    (version,) = timed.world.history(SOURCE)[b"a b"]
    assert event["eventName"] == f"Replication:{FAILED}"
    assert event["s3"]["object"] == {
        "key": "a+b", "size": 4, "eTag": version.digest.hex(), "versionId": version.id,
        "sequencer": event["s3"]["object"]["sequencer"],
    }  # fmt: skip
    assert event["replicationEventData"] == {
        "replicationRuleId": "all",
        "destinationBucket": "arn:aws:s3:west::dst",
        "s3Operation": "OBJECT_PUT",
        "requestTime": "2027-01-15T08:00:00.000Z",
        "failureReason": "AssumeRoleNotPermitted",
    }


def test_a_failure_makes_no_event_where_metrics_are_off(timed: Timed) -> None:
    """3.4: without metrics there is no event, only the status and the log line."""
    timed.configure({})
    timed.break_role()
    timed.world.write("a", b"data")
    timed.settle()
    assert timed.world.statuses() == {"FAILED"}
    assert timed.events() == []


def test_a_retry_that_fails_makes_another_event(timed: Timed) -> None:
    """3.4: each operation that fails makes one event: a retry is a new operation."""
    timed.configure(METRICS)
    timed.break_role()
    timed.world.write("a", b"data")
    timed.settle()
    timed.world.restart()
    timed.settle()
    assert timed.told() == [(FAILED, "a")]
    timed.pass_minutes(1)
    timed.world.run("retry", scope=SOURCE)
    timed.settle()
    assert timed.told() == [(FAILED, "a")] * 2
    assert timed.events()[1]["replicationEventData"]["requestTime"] == "2027-01-15T08:01:00.000Z"


def test_lateness_and_its_end_make_one_event_each(timed: Timed) -> None:
    """3.4, G11: missed after 15 minutes and not before, once, whatever is restarted or lost; then an event that it was
    replicated after the threshold."""
    timed.configure(TIMED)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.pass_minutes(14.99)
    timed.settle()
    assert timed.told() == []
    timed.pass_minutes(0.01)
    timed.settle()
    assert timed.told() == [(MISSED, "a")]
    for without_journal in (False, True):
        timed.pass_minutes(30)
        timed.world.restart(without_journal=without_journal)
        timed.settle()
        timed.settle()
        assert timed.told() == [(MISSED, "a")]
    timed.world.back("west")
    timed.world.restart()
    timed.settle()
    timed.world.restart()
    timed.settle()
    assert timed.told() == [(MISSED, "a"), (LATE, "a")]
    told = timed.events()[1]["replicationEventData"]
    assert (told["requestTime"], told["replicationTime"]) == ("2027-01-15T08:00:00.000Z", "2027-01-15T09:15:00.000Z")


def test_lateness_is_an_event_even_if_checked_too_late(timed: Timed) -> None:
    """3.4: a late delivery missed its threshold, even where its end was seen before the threshold was checked."""
    timed.configure(TIMED)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.pass_minutes(16)
    timed.world.back("west")
    timed.settle()
    assert timed.told() == [(MISSED, "a"), (LATE, "a")]


@pytest.mark.parametrize("destination", [{}, METRICS], ids=["off", "metrics"])
def test_without_rtc_nothing_is_late(timed: Timed, destination: dict[str, object]) -> None:
    """3.4: the thresholds need RTC."""
    timed.configure(destination)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.pass_minutes(60)
    timed.settle()
    timed.world.back("west")
    timed.settle()
    assert timed.world.statuses() == {"COMPLETED"}
    assert timed.told() == []


def test_markers_and_backfills_are_never_late(timed: Timed) -> None:
    """3.6: RTC leaves out markers and batch replication."""
    timed.world.write("old", b"data")
    timed.world.write("gone", b"data")
    timed.configure({}, Status="Disabled")
    timed.settle()
    timed.configure(TIMED)
    timed.world.write("gone", b"other")
    timed.settle()
    timed.world.away("west")
    timed.world.path("gone").unlink()
    timed.settle()
    timed.world.run("replication.backfill", source=SOURCE)
    timed.settle()
    timed.pass_minutes(60)
    timed.settle()
    timed.world.back("west")
    timed.settle()
    assert "PENDING" not in timed.world.statuses()
    assert timed.told() == []


def test_every_version_and_in_time_ones_not(timed: Timed) -> None:
    """3.4: each version of a key is an operation of its own, and counted from its own creation."""
    timed.configure(TIMED)
    timed.world.away("west")
    for data in (b"one", b"two"):
        timed.world.write("a", data)
        timed.settle()
        timed.pass_minutes(10)
    timed.settle()
    assert timed.told() == [(MISSED, "a")]
    timed.world.back("west")
    timed.settle()
    assert timed.told() == [(MISSED, "a"), (LATE, "a")]
    first, second = (e["s3"]["object"]["versionId"] for e in timed.events())
    assert first == second == timed.world.history(SOURCE)[b"a"][0].id


def test_an_edit_is_late_from_its_own_time_on(timed: Timed) -> None:
    """3.5: a tag set on an old version is an operation of that moment, and the event names it as such."""
    timed.configure(TIMED)
    timed.world.write("a", b"data")
    timed.settle()
    timed.pass_minutes(600)
    timed.world.away("west")
    timed.world.run("tag.set", bucket=SOURCE, key=b"a", tags={"colour": "blue"})
    timed.settle()
    assert timed.told() == []
    timed.pass_minutes(15)
    timed.world.restart(without_journal=True)
    timed.settle()
    timed.world.back("west")
    timed.settle()
    assert timed.told() == [(MISSED, "a"), (LATE, "a")]
    assert {e["replicationEventData"]["s3Operation"] for e in timed.events()} == {"OBJECT_PUT_TAGGING"}
    assert {e["replicationEventData"]["requestTime"] for e in timed.events()} == {"2027-01-15T18:00:00.000Z"}


@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
@pytest.mark.parametrize("others", [False, True], ids=["key-gone", "version-gone"])
def test_a_version_removed_before_it_was_copied(timed: Timed, others: bool, restart: bool) -> None:
    """3.2: FAILED without a version that has a status: only the event says so, once, and nothing waits any longer."""
    timed.configure(METRICS)
    timed.world.away("west")
    timed.world.write("a", b"one")
    timed.settle()
    (version,) = timed.world.history(SOURCE)[b"a"]
    if others:
        timed.world.write("a", b"two")
        timed.settle()
    if restart:
        timed.world.restart()
    timed.world.run("object.rm", bucket=SOURCE, key=b"a", version_id=version.id)
    timed.settle()
    timed.world.back("west")
    timed.settle()
    (event,) = timed.events()
    assert event["s3"]["object"]["versionId"] == version.id
    assert event["s3"]["object"]["eTag"] == version.digest.hex()
    reason = event["replicationEventData"]["failureReason"]
    assert reason == ("SrcVersionNotFound" if others else "SrcKeyNotFound")
    assert [v.id for v in timed.world.history(DESTINATION).get(b"a", [])] == [
        v.id for v in timed.world.history(SOURCE).get(b"a", [])
    ]
    assert list(timed.world.engine.journal.deliveries.select(SOURCE, key=b"a"))[: int(not others)] == []


def test_metrics_switched_off_under_way(timed: Timed) -> None:
    """3.4: for pending deliveries one event says that they are no longer tracked, and none follows."""
    timed.configure(TIMED)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.configure({})
    timed.world.write("b", b"data")
    timed.settle()
    assert timed.told() == [(UNTRACKED, "a")]
    timed.pass_minutes(20)
    timed.world.restart(without_journal=True)
    timed.settle()
    timed.world.back("west")
    timed.settle()
    assert timed.world.statuses() == {"COMPLETED"}
    assert timed.told() == [(UNTRACKED, "a")]


def test_rtc_switched_off_under_way(timed: Timed) -> None:
    """3.4: with metrics alone there are events for failures, and none for lateness."""
    timed.configure(TIMED)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.configure(METRICS)
    timed.pass_minutes(20)
    timed.settle()
    assert timed.told() == []


def test_a_rule_removed_under_way(timed: Timed) -> None:
    """3.2, 3.4: the delivery fails permanently, with the events that the rule asked for when the version was made."""
    timed.configure(METRICS)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.world.run("replication.rm", source=SOURCE)
    timed.world.back("west")
    timed.settle()
    assert timed.told() == [(FAILED, "a")]
    assert timed.events()[0]["replicationEventData"]["failureReason"] == "SrcBucketReplicationConfigMissing"


def test_events_that_cannot_be_written(timed: Timed, capsys: pytest.CaptureFixture[str]) -> None:
    """Replication does not wait for the events; lateness makes its event when they can be written again."""
    timed.configure(TIMED)
    timed.break_role()
    (Path(timed.world.engine.site.state) / "events.jsonl").mkdir()
    timed.world.write("a", b"data")
    timed.settle()
    assert timed.world.statuses() == {"FAILED"}
    timed.world.away("west")
    timed.world.write("b", b"data")
    timed.settle()
    timed.pass_minutes(15)
    timed.settle()
    (Path(timed.world.engine.site.state) / "events.jsonl").rmdir()
    timed.settle()
    assert timed.told() == [(MISSED, "b")]


def test_a_record_that_cannot_be_read(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.4: a failure because of a permanently damaged record makes an event like any other failure, once, and is
    counted."""
    monkeypatch.setattr(repair, "repair", lambda *_: False)
    timed.configure(METRICS)
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    (version,) = timed.world.history(SOURCE)[b"a"]
    os.setxattr(timed.world.path(f".fsrepl/versions/a;{version.id}"), "user.fsrepl.deliveries", b"{")
    timed.world.restart()
    timed.world.back("west")
    for _ in range(6):  # it is tried again, for its record may be rebuilt, but not for ever
        timed.settle()
    assert timed.told() == [(FAILED, "a")]
    assert sum(timed.world.engine.journal.deliveries.failed_counts(SOURCE, timed.now_ns - MINUTE_NS).values()) == 1


Act = Callable[[Timed], None]


def _fail(timed: Timed) -> None:
    timed.world.write("a", b"data")
    timed.break_role()


def _come_late(timed: Timed) -> None:
    timed.world.away("west")
    timed.world.write("a", b"data")
    timed.settle()
    timed.pass_minutes(16)
    timed.world.back("west")


@pytest.mark.slow
@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize(
    ("act", "expected"), [(_fail, {FAILED}), (_come_late, {MISSED, LATE})], ids=["failure", "lateness"]
)
def test_a_power_cut_loses_no_event_and_doubles_none(
    memory: Path, monkeypatch: pytest.MonkeyPatch, act: Act, expected: set[str], without_journal: bool
) -> None:
    """G7, 3.4: cut at any change, there is one event for each final result on record."""
    for calls in itertools.count():
        with timed_world(memory / str(calls), monkeypatch) as timed:
            timed.configure(TIMED)
            act(timed)
            fs = DyingFs(calls)
            timed.world.restart(fs=fs)
            with contextlib.suppress(PowerCut):
                timed.settle()
            timed.world.restart(without_journal=without_journal)
            timed.settle()
            told = [name for name, _ in timed.told()]
            assert (len(told), set(told)) == (len(expected), expected), f"cut at change {calls}, in {fs.died_in}"
            if not fs.died:
                return


def test_a_power_cut_while_a_version_is_removed(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7, 3.2: once the version is removed there is one event, at the latest when its destination is back."""
    for calls in itertools.count():
        with timed_world(memory / str(calls), monkeypatch) as timed:
            timed.configure(METRICS)
            timed.world.away("west")
            timed.world.write("a", b"data")
            timed.settle()
            (version,) = timed.world.history(SOURCE)[b"a"]
            fs = DyingFs(calls)
            timed.world.restart(fs=fs)
            with contextlib.suppress(PowerCut):
                timed.world.remove("a", version=version.id)
            timed.world.restart()
            timed.settle()
            timed.world.back("west")
            timed.settle()
            removed = version.id not in [v.id for v in timed.world.of("a")]
            assert timed.told() == ([(FAILED, "a")] if removed else []), f"cut at change {calls}, in {fs.died_in}"
            if not fs.died:
                assert removed
                return
