"""The brake for mass deletions, and a person's decision afterwards: ack and undelete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import schedule
from fsrepl.capture.watch import NoWatches
from fsrepl.commands import status, wait, why
from fsrepl.commands import undelete as commands
from fsrepl.daemon import metrics, worker
from fsrepl.model import clock
from fsrepl.model.version import Origin, Status
from fsrepl.region import brake, deletions, halting, withheld
from fsrepl.region.change_queue import GONE, ChangeQueue
from fsrepl.replicate import in_stager
from fsrepl.storage import halt
from tests.doubles import DyingFs, FailingFs, PowerCut, UnsyncedFs
from tests.stagers import StagerHere
from tests.tree_deeds import differences
from tests.world import DESTINATION, SOURCE, World, at, v1, worlds

NUMBER = 6


@pytest.fixture(autouse=True)
def _few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the brake act on buckets of a handful of files."""
    monkeypatch.setattr(withheld, "MARKERS_MAX", getattr(request, "param", withheld.MARKERS_MAX))
    monkeypatch.setattr(brake, "KEYS_MIN", 2)
    monkeypatch.setattr(brake, "BURST_KEYS", 0)
    monkeypatch.setattr(brake, "BURST_QUIET_S", 0.0)


in_memory_or_not = pytest.mark.parametrize(
    "_few", [withheld.MARKERS_MAX, 2], ids=["in memory", "in the journal"], indirect=True
)
"""Markers that wait for the decision: all are in memory, or, as of a million, most are in the journal alone."""


def fill(world: World, number: int = NUMBER) -> None:
    for each in range(number):
        world.write(f"d/{each}", b"content of %d" % each)
        os.chmod(world.path(f"d/{each}"), 0o640)
    world.settle()
    assert len(world.tree(DESTINATION)) == number


def wipe(world: World) -> None:
    shutil.rmtree(world.path("d"))
    world.settle()


def is_halted(world: World) -> bool:
    return world.path(".fsrepl/halt.json").exists()


def _wait_for_more(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(brake, "FIRST_QUIET_S", seconds)
    monkeypatch.setattr(brake, "FIRST_MAX_S", seconds)


def test_the_first_deletions_of_a_mass_deletion_are_held_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4: those of an `rm -r` that are captured before the others wait for these, and none of them crosses."""
    monkeypatch.setattr(brake, "BURST_KEYS", 2)
    _wait_for_more(monkeypatch, 3600.0)
    with World(tmp_path) as world:
        fill(world)
        world.unlink("d/0")
        world.unlink("d/1")
        world.settle()
        assert not is_halted(world)
        assert len(world.tree(DESTINATION)) == NUMBER
        wipe(world)
        assert is_halted(world)
        assert len(world.tree(DESTINATION)) == NUMBER


def test_deletions_that_are_queued_belong_to_a_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4: while an `rm -r` is captured, few files of it may be markers, and the others be queued."""
    monkeypatch.setattr(brake, "BURST_KEYS", 2)
    for name in ("BURST_QUIET_S", "BURST_MAX_S"):
        monkeypatch.setattr(brake, name, 3600.0)
    with World(tmp_path) as world:
        fill(world)
        monkeypatch.setattr(ChangeQueue, "removals", lambda _, __: 2)
        world.unlink("d/0")
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER


def test_a_few_deletions_cross_once_no_more_have_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 6: `rm` there, gone here; in a bucket that is too small to be HALTED at once."""
    monkeypatch.setattr(brake, "BURST_KEYS", 2)
    with World(tmp_path) as world:
        fill(world)
        _wait_for_more(monkeypatch, 3600.0)
        world.unlink("d/0")
        world.settle()
        _wait_for_more(monkeypatch, 0.0)
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER - 1
        _wait_for_more(monkeypatch, 3600.0)
        monkeypatch.setattr(brake, "KEYS_MIN", NUMBER)
        world.unlink("d/1")
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER - 2


def since(world: World) -> str:
    return str(json.loads(world.path(".fsrepl/halt.json").read_text())["since"])


def undelete(world: World, prefix: str = "", *, start: str = "", bucket: str = SOURCE) -> dict[str, Any]:
    """Run all batches. Returns the restored keys and the last answer."""
    start, after, restored, left = start or since(world), b"", 0, list[Any]()
    while True:
        answer: Any = world.run("bucket.undelete", address=f"{bucket}/{prefix}", since=start, after=after)
        restored += answer["Restored"]
        left += answer["Left"]
        if answer["After"] is None:
            return {**answer, "Restored": restored, "Left": left}
        after = os.fsencode(answer["After"])


@in_memory_or_not
def test_deletions_of_more_than_the_share_are_held(memory: Path) -> None:
    """Markers are made as ever, no replica goes, and the document says since when, how many and which share."""
    with World(memory) as world:
        fill(world)
        wipe(world)
        assert all(world.current(f"d/{each}").marker for each in range(NUMBER))
        assert len(world.tree(DESTINATION)) == NUMBER
        document = json.loads(world.path(".fsrepl/halt.json").read_text())
        assert document == {"since": since(world), "deleted": NUMBER, "keys": NUMBER, "share": 1.0}
        assert os.stat(world.path(".fsrepl/halt.json")).st_mode & 0o777 == 0o600


@in_memory_or_not
def test_half_of_a_bucket_crosses(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        for each in range(3):
            world.unlink(f"d/{each}")
        world.settle()
        assert not is_halted(world)
        assert len(world.tree(DESTINATION)) == NUMBER - 3


def test_new_writes_are_replicated_while_halted(memory: Path) -> None:
    """Also a key that is written again; later deletions are held as well, of one file or more."""
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.write("new", b"new")
        world.write("d/1", b"again")
        world.write("gone", b"gone")
        world.settle()
        there = world.tree(DESTINATION)
        assert (there["new"], there["d/1"]) == (b"new", b"again")
        world.unlink("gone")
        world.settle()
        assert "gone" in world.tree(DESTINATION)


@in_memory_or_not
@pytest.mark.parametrize("without_journal", [False, True])
def test_a_halt_survives_restart_and_loss_of_the_journal(memory: Path, without_journal: bool) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.restart(without_journal=without_journal)
        world.settle()
        assert is_halted(world)
        assert len(world.tree(DESTINATION)) == NUMBER
        world.run("bucket.ack", bucket=SOURCE)
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert world.ids(SOURCE) == world.ids(DESTINATION)


@pytest.mark.parametrize("text", ["nonsense", '{"since": "x"}', f'{{"deleted": {10**400}, "keys": 1, "since": "x"}}'])
def test_a_damaged_halt_document_still_halts(memory: Path, text: str) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.path(".fsrepl/halt.json").write_text(text.replace('"x"', '"2026-11-24T01:53:51Z"'))
        world.restart()
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER
        assert world.run("bucket.ack", bucket=SOURCE)["Released"] == NUMBER


@in_memory_or_not
def test_ack_lets_the_deletions_cross(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        assert world.run("bucket.ack", bucket=SOURCE) == {"Bucket": SOURCE, "Halted": True, "Released": NUMBER}
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert world.statuses() == {Status.COMPLETED}
        assert not is_halted(world)
        assert not world.run("bucket.ack", bucket=SOURCE)["Halted"]
        world.stays_quiet()


def test_undelete_brings_everything_back_and_ends_the_halt(memory: Path) -> None:
    """Content and metadata are the former ones; both sides have one history, the markers included."""
    with World(memory) as world:
        fill(world)
        before = world.tree(SOURCE)
        wipe(world)
        answer = undelete(world)
        assert (answer["Restored"], answer["Left"], answer["Halted"]) == (NUMBER, [], False)
        world.settle()
        assert world.tree(SOURCE) == before == world.tree(DESTINATION)
        assert os.stat(world.path("d/1")).st_mode & 0o777 == 0o640
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert [v.marker for v in world.of("d/1")] == [False, True, False]
        assert world.leftovers(SOURCE) == world.leftovers(DESTINATION) == []
        world.stays_quiet()


def test_undelete_goes_on_batch_after_batch(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_BATCH", 2)
    with World(memory) as world:
        fill(world)
        before = world.tree(SOURCE)
        wipe(world)
        answer = undelete(world)
        assert (answer["Restored"], answer["Halted"]) == (NUMBER, False)
        assert world.tree(SOURCE) == before


@pytest.mark.parametrize("refuses", [set(), {in_stager.STAGE}], ids=["stages", "refuses"])
def test_undelete_has_many_files_staged_by_the_stager(memory: Path, refuses: set[str]) -> None:
    """2,000 files a second: copies are made beside the region's thread. A damaged one is named."""
    with World(memory) as world:
        fill(world, 40)
        before = world.tree(SOURCE)
        wipe(world)
        damaged = next(world.path(".fsrepl/versions/d").glob("7;*[!d]"))
        damaged.write_bytes(b"CONTENT OF 7")
        world.engine.stager = stager = StagerHere(world.engine.fs)
        stager.refuses = refuses
        answer = undelete(world)
        assert answer["Restored"] == 39
        assert [(left["Key"], "BLAKE3" in left["Why"]) for left in answer["Left"]] == [("d/7", True)]
        assert ((in_stager.STAGE, 40) in stager.done) == (not refuses)
        world.settle()
        assert world.tree(DESTINATION) == before  # the one deletion that is left is held
        del before["d/7"]
        assert world.tree(SOURCE) == before
        assert os.stat(world.path("d/1")).st_mode & 0o777 == 0o640
        assert world.leftovers(SOURCE) == []


class _Counting(UnsyncedFs):
    """Counts how often the disk is waited for."""

    syncs = 0

    def sync_file(self, fd: int) -> None:
        self.syncs += 1

    def sync_all(self, fd: int) -> None:
        self.syncs += 1


def test_undelete_waits_for_the_disk_as_often_for_many_files_as_for_few(memory: Path) -> None:
    """2,000 files a second: they come back a batch at a time, and each batch is synced whole."""
    counts = []
    for number in (5, 120):
        fs = _Counting()
        with World(memory / str(number), fs=fs) as world:
            fill(world, number)
            wipe(world)
            before = fs.syncs
            assert undelete(world)["Restored"] == number
            counts.append(fs.syncs - before)
    assert counts[0] == counts[1]


def test_undelete_of_a_prefix_leaves_the_rest_held(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        assert world.run("bucket.undelete", address=f"{SOURCE}/d/1", since=since(world), count=True) == {
            "Keys": 1, "Bytes": 12, "First": [{"Key": "d/1"}], "After": None,
        }  # fmt: skip
        answer = undelete(world, "d/1")
        assert (answer["Restored"], answer["Halted"]) == (1, True)
        world.settle()
        assert world.tree(SOURCE) == {"d/1": b"content of 1"}
        assert len(world.tree(DESTINATION)) == NUMBER
        world.run("bucket.ack", bucket=SOURCE)
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/1": b"content of 1"}


def test_undelete_restores_keys_that_were_deleted_since_then_and_are_still_deleted(memory: Path) -> None:
    """Neither an older deletion nor a key that was written again is restored; a second run restores nothing."""
    with World(memory) as world:
        fill(world)
        world.unlink("d/0")
        world.settle()
        wipe(world)
        world.write("d/2", b"again")
        world.settle()
        first = min(world.current(f"d/{each}").created_ns for each in (1, 3, 4, 5))
        answer = undelete(world, start=clock.stamp(first))
        assert answer["Restored"] == NUMBER - 2
        world.settle()
        assert world.tree(SOURCE)["d/2"] == b"again"
        assert "d/0" not in world.tree(SOURCE)
        assert undelete(world, start=clock.stamp(first))["Restored"] == 0


@in_memory_or_not
def test_a_directory_that_is_renamed_is_no_deletion(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        world.path("d").rename(world.path("elsewhere"))
        world.settle()
        assert not is_halted(world)
        assert sorted(world.tree(DESTINATION)) == [f"elsewhere/{each}" for each in range(NUMBER)]


@in_memory_or_not
def test_a_directory_that_is_renamed_one_change_at_a_time_is_no_deletion(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The markers come first, in small batches, and wait until the files under their new names are captured."""
    monkeypatch.setattr(worker, "BATCH", 2)
    with World(memory) as world:
        fill(world)
        world.path("d").rename(world.path("a"))
        world.settle()
        assert not is_halted(world)
        assert sorted(world.tree(DESTINATION)) == [f"a/{each}" for each in range(NUMBER)]


@in_memory_or_not
def test_no_marker_of_one_scan_is_handed_over_before_the_decision(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches have one change each, and the first marker still waits for the last one."""
    monkeypatch.setattr(worker, "BATCH", 1)
    with World(memory) as world:
        fill(world)
        wipe(world)
        assert is_halted(world)
        assert len(world.tree(DESTINATION)) == NUMBER


def test_no_marker_crosses_while_scans_may_find_that_the_others_are_gone_too(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million deletions only some are queued at once, those of the last minute are few, and most are found by
    scans, when there is room for what these find. The first ones wait until it is known how many they are."""
    with World(memory) as world:
        fill(world, 4 * NUMBER)
        shutil.rmtree(world.path("d"))
        region = world.region()
        schedule.begin(region, world.state(), b"d", arrived=True)
        region.changes.add(SOURCE, [b"d/%d" % each for each in range(NUMBER)], world.engine.epoch, GONE)
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "step", lambda region: False)  # the queue is full
            world.engine.run_until_idle(20)
        assert sum(world.current(f"d/{each}").marker for each in range(4 * NUMBER)) == NUMBER
        assert len(world.tree(DESTINATION)) == 4 * NUMBER
        world.settle()
        assert is_halted(world)
        assert len(world.tree(DESTINATION)) == 4 * NUMBER


@in_memory_or_not
@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
def test_a_crash_while_the_decision_waits_for_long_lets_no_marker_cross(
    memory: Path, monkeypatch: pytest.MonkeyPatch, without_journal: bool
) -> None:
    """Also none of those that are older than a minute by then. Nothing is withheld again once it is decided."""
    if not without_journal:
        monkeypatch.setattr(halting, "NOTE_S", 0.0)
    monkeypatch.setattr(deletions, "WINDOW_NS", 1)
    whole = schedule.step
    with World(memory) as world:
        fill(world, 4 * NUMBER)
        for each in range(4 * NUMBER):
            world.unlink(f"d/{each}")
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "step", lambda region: region.name == "west" and whole(region))
            schedule.begin(world.region(), world.state(), b"d", arrived=True)
            world.region().changes.add(SOURCE, [b"d/%d" % n for n in range(NUMBER)], world.engine.epoch, GONE)
            world.engine.run_until_idle(20)
            assert world.engine.journal.deliveries.count_held(SOURCE) == NUMBER
            world.restart(without_journal=without_journal)
            world.engine.run_until_idle(20)
        assert len(world.tree(DESTINATION)) == 4 * NUMBER
        world.settle()
        assert is_halted(world)
        assert len(world.tree(DESTINATION)) == 4 * NUMBER
        world.run("bucket.ack", bucket=SOURCE)
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert not world.engine.journal.fact(f"withheld {SOURCE}")


def test_deletions_of_other_days_are_not_counted_with_the_last_ones_after_a_loss_of_the_journal(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are pending as well, where the destination is away for long; only what was deleted at once is held."""
    clock = tmp_path / "clock"
    clock.write_text("2026-05-01T10:00:00Z")
    monkeypatch.setenv("FSREPL_CLOCK", str(clock))
    with World(memory) as world:
        fill(world, 2 * NUMBER)
        world.away("west")
        for hour in (11, 12, 13):
            clock.write_text(f"2026-05-01T{hour}:00:00Z")
            for each in range(hour, hour + 3):
                world.unlink(f"d/{each - 11 + 2 * (hour - 11)}")
            world.settle()
        assert not is_halted(world)
        world.restart(without_journal=True)
        world.settle()
        assert not is_halted(world)
        world.back("west")
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION)
        assert len(world.tree(DESTINATION)) == NUMBER // 2


def test_a_single_deletion_waits_for_nothing(memory: Path) -> None:
    """Its marker is handed over in the turn of the loop in which it was captured."""
    with World(memory) as world:
        fill(world)
        world.unlink("d/1")
        world.look()
        for region in world.engine.regions.values():
            while schedule.step(region):
                pass
        world.region().turn()
        assert world.region(DESTINATION).inbox or "d/1" not in world.tree(DESTINATION)
        assert not world.state().withheld


@in_memory_or_not
def test_markers_that_wait_for_a_destination_are_withdrawn(memory: Path) -> None:
    """Markers handed over before the threshold was reached and not delivered yet are held with the others."""
    with World(memory) as world:
        fill(world)
        world.away("west")
        for each in range(2):
            world.unlink(f"d/{each}")
            world.settle()
        wipe(world)
        assert is_halted(world)
        world.back("west")
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER


@in_memory_or_not
def test_deletions_by_command_count(memory: Path) -> None:
    """`fsrepl rm` in a loop: markers from before the threshold are replicated and stay so, the others are held."""
    with World(memory) as world:
        fill(world)
        for each in range(NUMBER):
            world.remove(f"d/{each}")
            world.settle()
        assert is_halted(world)
        there = world.tree(DESTINATION)
        assert 0 < len(there) < NUMBER
        undelete(world, start="2000-01-01T00:00:00Z")
        world.settle()
        assert len(world.tree(SOURCE)) == NUMBER
        assert world.tree(SOURCE) == world.tree(DESTINATION)


def test_where_no_destination_would_follow_nothing_is_held(memory: Path) -> None:
    """A rule that copies no markers, and a bucket without rules."""
    with World(memory, replicate=False) as world:
        for each in range(NUMBER):
            world.write(f"d/{each}", b"x%d" % each)
        world.settle()
        wipe(world)
        assert not is_halted(world)
        assert undelete(world, start="2000-01-01T00:00:00Z")["Restored"] == NUMBER
        world.settle()
        assert len(world.tree(SOURCE)) == NUMBER


def test_replicas_markers_never_count(memory: Path) -> None:
    """A two-way site: after ack, the deletions are replicated, halt nothing there, and nothing comes back."""
    with World(memory) as world:
        world.run("replication.enable", source=DESTINATION, destination=SOURCE)
        fill(world)
        wipe(world)
        assert is_halted(world)
        world.run("bucket.ack", bucket=SOURCE)
        world.settle()
        assert world.tree(DESTINATION) == {} == world.tree(SOURCE)
        assert not world.path(".fsrepl/halt.json", DESTINATION).exists()
        assert undelete(world, start="2000-01-01T00:00:00Z", bucket=DESTINATION)["Restored"] == 0


def test_a_write_on_the_other_side_of_a_two_way_site_wins_over_a_held_deletion(memory: Path) -> None:
    with World(memory) as world:
        world.run("replication.enable", source=DESTINATION, destination=SOURCE)
        fill(world)
        wipe(world)
        world.write("d/3", b"newer", DESTINATION)
        world.settle()
        assert world.tree(SOURCE) == {"d/3": b"newer"}
        world.run("bucket.ack", bucket=SOURCE)
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/3": b"newer"}


def test_lifecycle_halts_nothing(memory: Path) -> None:
    """Markers made by lifecycle are never replicated, and undelete leaves them alone."""
    with World(memory) as world:
        fill(world)
        world.run(
            "lifecycle.put", bucket=SOURCE,
            document={"Rules": [{"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]},
        )  # fmt: skip
        world.engine.site.now = lambda: 4_000_000_000_000_000_000
        world.run("lifecycle.run", bucket=SOURCE)
        world.settle()
        assert {v.origin for each in range(NUMBER) for v in world.of(f"d/{each}") if v.marker} == {Origin.LIFECYCLE}
        assert not is_halted(world)
        assert undelete(world, start="2000-01-01T00:00:00Z")["Restored"] == 0


def test_deliveries_of_a_rule_that_is_disabled_while_halted_fail(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.run("replication.disable", source=SOURCE)
        world.settle()
        assert {world.current(f"d/{each}").status for each in range(NUMBER)} == {Status.FAILED}
        assert len(world.tree(DESTINATION)) == NUMBER


def test_a_backfill_sends_no_held_deletion(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.run("replication.backfill", source=SOURCE)
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER
        assert is_halted(world)


def test_retry_sends_no_held_deletion(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.run("retry", scope=SOURCE)
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER


def test_a_bucket_that_is_halted_can_be_removed(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.run("bucket.rm", bucket=SOURCE, purge=True)
        world.settle()
        assert not world.path().exists()
        world.run("bucket.create", bucket=SOURCE, versioning=True)
        world.settle()
        assert world.engine.site.buckets[SOURCE].halt is None


def test_a_change_of_the_rules_while_halted_lets_nothing_cross(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.configure(v1())
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER


def test_status_why_wait_events_and_metrics_report_the_halt(memory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """G11: status reads the bucket and the journal, and prints the same without a daemon."""
    with World(memory) as world:
        fill(world)
        wipe(world)
        site, journal = world.engine.site, world.engine.journal
        (bucket,) = (b for b in status.status(site, {})["buckets"] if b["bucket"] == SOURCE)
        assert bucket["halted"] == {
            "since": since(world), "deleted": NUMBER, "keys": NUMBER, "share": 1.0, "held": NUMBER,
        }  # fmt: skip
        answer = why.why(site, at(SOURCE, b"d/1"), None, {"running": True})
        assert "HALTED" in answer.document["Deliveries"][0]["Reason"]
        world.engine.watcher = NoWatches()

        def turn() -> bool:
            world.flush_settling()
            world.engine.run_until_idle()
            return False

        waited = wait.wait(world.engine, wait.scope_of(world.engine, None), 5, turn)
        assert (waited.pending, waited.failed) == (0, 0)
        assert [SOURCE in each for each in waited.document()["halted"]] == [True]  # type: ignore[attr-defined]
        other = wait.wait(world.engine, wait.scope_of(world.engine, at(DESTINATION)), 5, turn)
        assert other.halted == []
        events = [json.loads(line) for line in (Path(site.state) / "events.jsonl").read_text().splitlines()]
        halted = [event for event in events if event["eventName"] == "Replication:DeletionsHalted"]
        assert [event["haltEventData"]["deleted"] for event in halted] == [NUMBER]
        found = {
            dict(g.labels)["bucket"]: g.value
            for g in metrics.gauges(site, journal, metrics.Daemon(ready=True, watched=0, events_lost=0))
            if g.name == "fsrepl_bucket_halted"
        }
        assert found == {SOURCE: 1, DESTINATION: 0}
        assert [line for line in caplog.messages if line.startswith(f"halted bucket={SOURCE}: HALTED since ")]


@pytest.mark.slow
def test_a_kill_at_every_step_of_a_mass_deletion_lets_no_marker_cross(memory: Path) -> None:
    """G7: whatever was captured and written when the process was killed, halt.json included; with the journal and
    without."""
    for calls, world in worlds(memory):
        fill(world)
        shutil.rmtree(world.path("d"))
        dying = DyingFs(calls)
        world.restart(fs=dying)
        with contextlib.suppress(PowerCut):
            world.settle()
        world.restart(without_journal=calls % 2 == 1)
        world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER, (calls, dying.died_in)
        assert is_halted(world), (calls, dying.died_in)
        assert halt.read(world.engine.fs, os.open(world.path(".fsrepl"), os.O_RDONLY)) is not None
        if not dying.died:
            return


def test_a_disk_that_fails_at_every_step_of_a_mass_deletion_lets_no_marker_cross(memory: Path) -> None:
    for calls, world in worlds(memory):
        fill(world)
        shutil.rmtree(world.path("d"))
        failing = FailingFs(calls)
        world.restart(fs=failing)
        for _ in range(3):  # a bucket that is suspended comes up with the next look but one
            world.settle()
        assert len(world.tree(DESTINATION)) == NUMBER, (calls, failing.failed_in)
        assert is_halted(world), (calls, failing.failed_in)
        if not failing.failed:
            return


@pytest.mark.slow
def test_a_kill_at_every_step_of_undelete_loses_nothing(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4, G7: each key is still deleted or completely restored, and the command run again restores the rest."""
    monkeypatch.setattr(commands, "_BATCH", 3)
    for calls, world in worlds(memory):
        fill(world, 4)
        before = world.tree(SOURCE)
        wipe(world)
        start = since(world)
        dying = DyingFs(calls)
        world.restart(fs=dying)
        with contextlib.suppress(PowerCut):
            undelete(world, start=start)
        world.restart(without_journal=calls % 2 == 1)
        world.settle()
        assert world.tree(SOURCE).items() <= before.items(), (calls, dying.died_in)
        undelete(world, start=start)
        world.settle()
        assert world.tree(SOURCE) == before == world.tree(DESTINATION), (calls, dying.died_in)
        assert not is_halted(world)
        for key in before:
            assert [v.marker for v in world.of(key)] == [False, True, False], (calls, dying.died_in)
        assert world.leftovers(SOURCE) == [], (calls, dying.died_in)
        if not dying.died:
            return


@pytest.mark.parametrize("sharing", ["private", "link"])
def test_undelete_brings_back_views_however_they_share_with_the_store(memory: Path, sharing: str) -> None:
    """G2: also where view and version are one file."""
    with World(memory) as world:
        world.set_sharing(east=sharing, west=sharing)
        fill(world)
        before = world.tree(SOURCE)
        wipe(world)
        undelete(world)
        world.settle()
        assert world.tree(SOURCE) == before == world.tree(DESTINATION)
        assert os.stat(world.path("d/1")).st_mode & 0o777 == 0o640
        world.stays_quiet()


def test_a_damaged_version_is_named_and_the_others_are_back(memory: Path) -> None:
    with World(memory) as world:
        fill(world)
        wipe(world)
        (stored,) = [
            p
            for p in world.path(".fsrepl/versions/d").iterdir()
            if p.name.startswith("1;") and ";deleted" not in p.name
        ]
        stored.write_bytes(b"damaged")
        answer = undelete(world)
        assert answer["Restored"] == NUMBER - 1
        assert [each["Key"] for each in answer["Left"]] == ["d/1"]


def test_a_directory_where_a_view_belongs_is_not_touched(memory: Path) -> None:
    """G1: where a user has made a directory, the version is stored and the view waits."""
    with World(memory) as world:
        fill(world)
        wipe(world)
        world.write("d/1/inside", b"theirs")
        undelete(world)
        world.settle()
        assert world.tree(SOURCE)["d/1/inside"] == b"theirs"
        assert len(world.tree(SOURCE)) == NUMBER


@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
@pytest.mark.parametrize("decision", ["ack", "undelete"])
def test_a_tree_is_held_and_comes_back_whole(memory: Path, decision: str) -> None:
    """Directories, symlinks and names of one file count as what they are: objects. While they are held, the replica
    keeps them all; undelete makes them again as they were, and ack removes them all."""
    with World(memory, trees=True) as world:
        world.write("d/e/file", b"content")
        world.path("d/empty").mkdir()
        world.path("d/empty").chmod(0o1711)
        world.path("d/e").chmod(0o750)
        world.link("d/link", "e/file")
        world.settle()
        os.link(world.path("d/e/file"), world.path("d/other"))
        world.settle()
        world.settle()
        shutil.copytree(world.path("d", DESTINATION), world.home / "before", symlinks=True)
        wipe(world)
        assert is_halted(world)
        assert json.loads(world.path(".fsrepl/halt.json").read_text())["deleted"] == 6
        assert differences(world.home / "before", world.path("d", DESTINATION), links=False) == []
        if decision == "ack":
            world.run("bucket.ack", bucket=SOURCE)
        else:
            assert undelete(world)["Left"] == []
        for _ in range(3):
            world.settle()
        assert differences(world.path(), world.path(bucket=DESTINATION)) == []
        assert world.path("d").exists() == (decision == "undelete")
        if decision == "undelete":
            assert differences(world.home / "before", world.path("d"), links=False) == []
            assert world.path("d/other").stat().st_ino == world.path("d/e/file").stat().st_ino
        assert not world.state(SOURCE).views.stale
        assert not world.state(DESTINATION).views.stale
        assert not is_halted(world)
        world.stays_quiet()
