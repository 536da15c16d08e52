"""Rules are carried out: s3-semantics, 5.2, 5.3 and 5.5, through a whole site with a clock that the test sets."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl.commands import status
from fsrepl.commands.notes import notes_of
from fsrepl.daemon import live
from fsrepl.errors import Unavailable
from fsrepl.model.version import DeliveryRecord, Origin, Status
from fsrepl.storage import records
from tests.doubles import DyingFs, FailingFs, PowerCut, UnsyncedFs
from tests.stored import stored
from tests.world import DESTINATION, SOURCE, World, v2

Json = dict[str, Any]
Clock = Callable[[str], object]
PLAIN = "east/plain"
LATER = "2026-06-01T00:00:01Z"


def rule(**actions: object) -> Json:
    return {"ID": "r", "Filter": {}, "Status": "Enabled", **actions}


def days(number: int) -> Json:
    return rule(Expiration={"Days": number})


def old_versions(number: int = 1, **more: object) -> Json:
    return rule(NoncurrentVersionExpiration={"NoncurrentDays": number, **more})


TIDY = rule(Expiration={"ExpiredObjectDeleteMarker": True})
GLACIER = rule(
    Filter={"ObjectSizeGreaterThan": 0}, Transitions=[{"Days": 1, "StorageClass": "GLACIER"}]
)  # fmt: skip


def put(world: World, *rules: Json, bucket: str = SOURCE) -> None:
    named = [{**each, "ID": str(number)} for number, each in enumerate(rules)]
    world.run("lifecycle.put", bucket=bucket, document={"Rules": named})


def run(world: World, bucket: str = SOURCE) -> Json:
    """The answer of `fsrepl lifecycle run`."""
    return {name: number for name, number in world.run("lifecycle.run", bucket=bucket)["Done"].items() if number}  # type: ignore[attr-defined]


def events(world: World) -> list[tuple[str, str, str]]:
    """(name, key, version id) of lifecycle's events, the oldest first."""
    path = Path(world.engine.site.state) / "events.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        (each["eventName"], each["s3"]["object"]["key"], each["s3"]["object"]["versionId"])
        for each in found
        if each["eventName"].startswith("Lifecycle")
    ]


# -- 5.2: each action


def test_a_current_version_expires_under_a_marker(world: World, clock: Clock) -> None:
    """5.2: the view is hidden and nothing is removed; restore brings it back; the marker's origin is lifecycle and it
    has no delivery."""
    world.write("d/k", b"data")
    world.settle()
    before = world.current("d/k")
    put(world, days(2))
    assert run(world) == {}
    clock("2026-05-04T00:00:00Z")
    assert run(world) == {"Expiration": 1}
    marker, version = world.of("d/k")
    assert (marker.marker, marker.origin, dict(marker.deliveries)) == (True, Origin.LIFECYCLE, {})
    assert version == before
    assert world.tree(SOURCE) == {}
    assert world.leftovers(SOURCE) == []
    assert events(world) == [("LifecycleExpiration:DeleteMarkerCreated", "d/k", marker.id)]
    world.settle()
    assert world.tree(DESTINATION) == {"d/k": b"data"}  # lifecycle's markers are never replicated
    assert run(world) == {}
    world.run("object.restore", bucket=SOURCE, key=b"d/k")
    assert world.tree(SOURCE) == {"d/k": b"data"}
    world.settle()
    world.stays_quiet()


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_in_a_suspended_bucket(world: World, clock: Clock, sharing: str) -> None:
    """5.2, the last column: a null marker replaces a null version, and is added on top of any other."""
    world.set_sharing(east=sharing)
    world.run("replication.rm", source=SOURCE)
    world.write("named", b"named")
    world.settle()
    world.run("versioning.set", bucket=SOURCE, status="Suspended")
    world.write("null", b"null")
    world.settle()
    put(world, days(1))
    clock(LATER)
    assert run(world) == {"Expiration": 2}
    assert [(v.id, v.marker) for v in world.of("null")] == [("null", True)]
    assert [(v.id == "null", v.marker) for v in world.of("named")] == [(True, True), (False, False)]
    world.settle()
    assert world.tree(SOURCE) == {}
    assert [(v.id, v.marker) for v in world.of("null")] == [("null", True)]


def test_in_a_bucket_that_was_never_versioned(world: World, clock: Clock) -> None:
    """5.2, the first column: removed permanently, by the age of the file; noncurrent rules have no effect."""
    world.run("bucket.create", bucket=PLAIN)
    for key, age in (("d/old", 0), ("new", 1_790_000_000)):
        world.write(key, b"data", PLAIN)
        os.utime(world.path(key, PLAIN), (age, age))
    put(world, days(1), old_versions(), bucket=PLAIN)
    clock(LATER)
    assert run(world, PLAIN) == {"Expiration": 1}
    assert world.tree(PLAIN) == {"new": b"data"}
    assert world.leftovers(PLAIN) == []


class StuckFs(UnsyncedFs):
    """A file that was taken out of a view cannot be removed for a while."""

    is_stuck = True

    def unlink(self, at: int, name: bytes) -> None:
        if self.is_stuck and b";=" in name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().unlink(at, name)


def test_a_fault_in_a_bucket_that_was_never_versioned_passes(world: World, clock: Clock) -> None:
    """G7: the run goes on once the file can be removed, and the bucket is not called offline."""
    world.run("bucket.create", bucket=PLAIN)
    world.write("k", b"data", PLAIN)
    os.utime(world.path("k", PLAIN), (0, 0))
    put(world, days(1), bucket=PLAIN)
    clock(LATER)
    fs = StuckFs()
    world.restart(fs=fs)
    world.settle()
    assert world.state(PLAIN).describe()["online"]
    fs.is_stuck = False
    for _ in range(2):
        world.settle()
    assert (world.tree(PLAIN), world.leftovers(PLAIN)) == ({}, [])
    assert world.state(PLAIN).describe()["online"]


def test_noncurrent_versions_are_removed_permanently(world: World, clock: Clock) -> None:
    """5.2, 5.3: a day after their successor was made; they are remembered as removed, and the file stays."""
    for number in range(4):
        clock(f"2026-05-0{number + 1}T10:00:00Z")
        world.write("k", b"%d" % number)
        world.settle()
    put(world, old_versions(NewerNoncurrentVersions=1))
    ids = [version.id for version in world.of("k")]
    clock("2026-05-05T00:00:00Z")
    seen = world.path("k").stat()
    assert run(world) == {"NoncurrentVersionExpiration": 2}
    assert [version.id for version in world.of("k")] == ids[:2]
    assert world.path("k").stat() == seen
    assert [each[0] for each in events(world)] == ["LifecycleExpiration:Delete"] * 2
    removed = world.path(".fsrepl/removed.jsonl").read_text()
    assert all(version_id in removed for version_id in ids[2:])
    world.settle()
    assert len(world.of("k", DESTINATION)) == 4  # removals are never replicated
    world.stays_quiet()


def test_a_removal_tells_the_blake3_of_what_is_gone(world: World, clock: Clock) -> None:
    """3.4: its event has the size and the ETag of the version; a marker has none."""
    world.write("k", b"data")
    world.settle()
    gone = world.current("k")
    world.unlink("k")
    world.settle()
    world.write("k", b"new")
    world.settle()
    put(world, old_versions())
    clock(LATER)
    assert run(world) == {"NoncurrentVersionExpiration": 2}
    lines = (Path(world.engine.site.state) / "events.jsonl").read_text().splitlines()
    told = {each["versionId"]: each for each in (json.loads(line)["s3"]["object"] for line in lines)}
    assert (told[gone.id]["eTag"], told[gone.id]["size"]) == (gone.digest.hex(), 4)
    assert sorted("eTag" in each for each in told.values()) == [False, True]


@pytest.mark.parametrize("action", ["Expiration", "NoncurrentVersionExpiration"])
def test_a_version_whose_record_is_lost_waits_for_its_repair(world: World, clock: Clock, action: str) -> None:
    """G1: the journal alone permits no removal; the record is rebuilt, and the next run removes the version."""
    for data in (b"one", b"two"):
        world.write("k", data)
        world.settle()
    put(world, days(2) if action == "Expiration" else old_versions())
    clock(LATER)
    lost = stored(world, "k", number=-1 if action == "Expiration" else 0)
    for name in os.listxattr(lost):
        os.removexattr(lost, name)
    assert run(world) == {}
    assert (world.tree(SOURCE), len(world.history(SOURCE)[b"k"])) == ({"k": b"two"}, 2)
    world.settle()
    run(world)
    assert len(events(world)) == 1


def test_the_time_on_record_decides_where_the_journal_has_another(world: World, clock: Clock) -> None:
    """5.3: a version is never removed early."""
    for data in (b"one", b"two"):
        world.write("k", data)
        world.settle()
    put(world, days(2))
    for table in ("version", "object"):
        world.engine.journal.execute(f"UPDATE {table} SET created = created - 864000000000000")
    assert run(world) == {}
    assert world.tree(SOURCE) == {"k": b"two"}


def test_a_backfill_that_only_the_record_asks_for_blocks(world: World, clock: Clock) -> None:
    """5.5, 1: as after a crash between the record and the journal, while its job goes on."""
    world.run("replication.rm", source=SOURCE)
    for data in (b"one", b"two"):
        world.write("k", data)
        world.settle()
    world.run("replication.enable", source=SOURCE, destination=DESTINATION)
    world.run("replication.backfill", source=SOURCE)
    put(world, old_versions())
    clock(LATER)
    old = world.of("k")[1]
    deliveries = {DESTINATION: DeliveryRecord("r", Status.PENDING, job=next(iter(world.state().backfills.jobs)))}
    with world.engine.site.bucket(SOURCE).open() as bucket:
        records.write_deliveries(bucket, replace(old, deliveries=deliveries))
    assert run(world) == {}
    assert world.of("k")[1].id == old.id


def test_markers_of_which_no_version_is_left(world: World, clock: Clock) -> None:
    """5.2, the third row: first the versions below are removed, and at the next run the marker itself."""
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.settle()
    put(world, TIDY, old_versions())
    clock(LATER)
    assert run(world) == {"NoncurrentVersionExpiration": 1}
    assert run(world) == {"ExpiredObjectDeleteMarker": 1}
    assert world.history(SOURCE) == {}
    assert world.engine.journal.versions.object(SOURCE, b"k") is None
    assert [each[0] for each in events(world)] == ["LifecycleExpiration:Delete"] * 2
    world.restart(without_journal=True)
    world.settle()
    assert world.history(SOURCE) == {}


def test_a_transition_writes_the_storage_class(world: World, clock: Clock) -> None:
    """5.4: on the record, of current and noncurrent versions; content, file and replica stay as they are."""
    world.write("k", b"one")
    world.settle()
    world.write("k", b"two")
    world.settle()
    below = {"NoncurrentDays": 1, "StorageClass": "DEEP_ARCHIVE"}
    put(world, GLACIER, rule(Filter={"ObjectSizeGreaterThan": 0}, NoncurrentVersionTransitions=[below]))
    clock(LATER)
    assert run(world) == {"Transition": 1, "NoncurrentVersionTransition": 1}
    assert [version.storage_class for version in world.of("k")] == ["GLACIER", "DEEP_ARCHIVE"]
    assert run(world) == {}
    assert [version.storage_class for version in world.of("k", DESTINATION)] == ["", ""]
    assert world.tree(SOURCE) == {"k": b"two"}
    assert [each[0] for each in events(world)] == ["LifecycleTransition"] * 2
    world.restart(without_journal=True)
    world.settle()
    assert [version.storage_class for version in world.of("k")] == ["GLACIER", "DEEP_ARCHIVE"]
    assert run(world) == {}
    assert len(world.of("k")) == 2


@pytest.mark.parametrize("sharing", ["private", "link"])
def test_a_transition_is_no_edit_and_no_version(world: World, clock: Clock, sharing: str) -> None:
    """5.4: also where the stored version and the file are one."""
    world.set_sharing(east=sharing)
    world.write("k", b"one")
    world.settle()
    put(world, GLACIER)
    clock(LATER)
    assert run(world) == {"Transition": 1}
    world.settle()
    (version,) = world.of("k")
    assert (version.storage_class, dict(version.edited), version.status) == ("GLACIER", {}, Status.COMPLETED)
    world.stays_quiet()


def test_old_staged_files_are_removed(world: World, clock: Clock) -> None:
    """5.1, AbortIncompleteMultipartUpload: by a rule for the whole bucket, counted from the last write."""
    staged = world.path(".fsrepl/tmp/left")
    staged.write_bytes(b"a part")
    os.utime(staged, (0, 0))
    of_a_prefix, of_all = ({"Prefix": "d/"}, {})
    for filter_, moment, is_there in (
        (of_all, "2026-05-01T10:00:00Z", True),
        (of_a_prefix, "2100-01-01T00:00:00Z", True),
        (of_all, "2100-01-01T00:00:00Z", False),
    ):
        put(world, rule(Filter=filter_, AbortIncompleteMultipartUpload={"DaysAfterInitiation": 7}))
        clock(moment)
        assert run(world) == {}
        assert staged.exists() is is_there


def test_an_unfinished_move_to_a_tier_is_given_up_too(world: World, clock: Clock) -> None:
    """5.1, AbortIncompleteMultipartUpload: also a power cut before its removal leaves it whole, to be removed later."""
    world.run("tier.add", tier="east/GLACIER", path=str(world.home / "tiers" / "east-GLACIER"), compress="none")
    world.settings = world.engine.settings
    world.write("k", b"data")
    world.settle()
    world.restart(fs=(fs := DyingFs(1 << 60)))
    world.settle()
    left = world.home / "tiers" / "east-GLACIER" / "src" / ".tmp" / ("move." + "0" * 32)
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"a part")
    put(world, rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 7}))
    assert run(world) == {}
    assert left.exists()
    clock("2100-01-01T00:00:00Z")
    fs.calls_left = 0
    with contextlib.suppress(PowerCut):
        run(world)
    assert (fs.died_in, left.read_bytes()) == ("unlink", b"a part")
    world.restart()
    assert run(world) == {}
    assert not left.exists()


# -- G1


def test_an_unrecorded_change_becomes_a_version_and_nothing_expires(world: World, clock: Clock) -> None:
    """G1: an edit without an event is captured first, and is too new for any rule."""
    world.write("k", b"one")
    world.settle()
    put(world, days(2))
    clock(LATER)
    world.write("k", b"an edit")
    assert run(world) == {}
    assert [version.marker for version in world.of("k")] == [False, False]
    assert world.tree(SOURCE) == {"k": b"an edit"}


def test_a_file_that_is_open_for_writing_is_left_alone(world: World, clock: Clock) -> None:
    """G1, G4: it waits for the next run, and the command says so."""
    world.write("k", b"one")
    world.settle()
    put(world, days(2))
    clock(LATER)
    with world.path("k").open("ab"):
        assert world.run("lifecycle.run", bucket=SOURCE)["Busy"] == ["k"]
        assert world.tree(SOURCE) == {"k": b"one"}
    assert run(world) == {"Expiration": 1}


def test_old_versions_of_a_file_that_keeps_changing_go(world: World, clock: Clock) -> None:
    """5.2: constant writes do not keep its old versions."""
    for data in (b"one", b"two"):
        world.write("k", data)
        world.settle()
    put(world, old_versions())
    clock(LATER)
    with world.path("k").open("ab") as file:
        file.write(b" and more")
        file.flush()
        assert run(world) == {"NoncurrentVersionExpiration": 1}
    world.settle()
    assert world.tree(SOURCE) == {"k": b"two and more"}
    assert [version.marker for version in world.of("k")] == [False, False]


def test_a_rule_that_is_gone_removes_nothing(world: World, clock: Clock) -> None:
    """G1: a version is removed only if a rule names it at that very moment."""
    world.write("k", b"one")
    world.settle()
    put(world, days(2))
    clock(LATER)
    world.path(".fsrepl/lifecycle.json").unlink()
    assert world.refused("lifecycle.run", bucket=SOURCE) == "NoSuchLifecycleConfiguration"
    assert world.tree(SOURCE) == {"k": b"one"}


# -- 5.3: once a day, after midnight UTC


def test_a_run_a_day_after_midnight(world: World, clock: Clock) -> None:
    """5.3: new rules wait for the next midnight; then once a day, whatever is due."""
    world.write("k", b"one")
    world.settle()
    clock("2026-05-10T10:00:00Z")
    put(world, days(2))
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    clock("2026-05-10T23:59:59Z")
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    clock("2026-05-11T00:00:01Z")
    world.settle()
    assert world.tree(SOURCE) == {}
    world.write("again", b"two")
    world.settle()
    clock("2026-05-13T10:00:00Z")
    world.settle()
    assert world.tree(SOURCE) == {"again": b"two"}
    clock("2026-05-14T10:00:00Z")
    world.settle()
    assert world.tree(SOURCE) == {}


def test_rules_put_without_a_daemon(world: World, clock: Clock) -> None:
    """5.3: they first run at the next midnight, whether a daemon was running then or not."""
    world.write("k", b"one")
    world.settle()
    put(world, days(2))
    clock("2026-05-20T15:00:00Z")
    world.restart()
    world.settle()
    assert world.tree(SOURCE) == {}


def test_rules_that_were_away_are_new(world: World, clock: Clock) -> None:
    """5.3: rules removed and put again wait for the next midnight, like new ones."""
    world.write("k", b"one")
    put(world, days(2))
    world.settle()
    world.run("lifecycle.rm", bucket=SOURCE)
    world.settle()
    clock("2026-05-20T15:00:00Z")
    world.settle()
    put(world, days(2))
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    clock("2026-05-21T00:00:01Z")
    world.settle()
    assert world.tree(SOURCE) == {}


def test_a_run_that_was_missed_is_made_up_for(world: World, clock: Clock) -> None:
    """5.3: after downtime; changes made in a tree meanwhile are captured first."""
    world.write("k", b"one")
    world.write("edited", b"one")
    put(world, days(2))
    world.settle()
    clock("2026-05-20T15:00:00Z")
    world.write("edited", b"two")
    world.restart()
    world.settle()
    assert world.tree(SOURCE) == {"edited": b"two"}
    assert [version.marker for version in world.of("edited")] == [False, False]


def test_a_clock_that_was_wrong(world: World, clock: Clock) -> None:
    """5.3: no action is early; after the clock was set ahead and back, runs come daily again."""
    world.write("k", b"one")
    put(world, days(200))
    world.settle()
    clock("2026-09-01T00:00:00Z")
    world.settle()
    clock("2026-05-02T00:00:00Z")
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    clock("2026-11-25T00:00:00Z")
    world.settle()
    assert world.tree(SOURCE) == {}


# -- 5.5: together with replication


def test_a_replica_that_arrived_late_goes_by_its_source_s_creation_time(world: World, clock: Clock) -> None:
    """GUIDE, S25; 5.3: it may be due the moment it arrives, and a REPLICA does not wait."""
    world.away("west")
    world.write("k", b"data")
    world.settle()
    clock("2026-05-20T10:00:00Z")
    world.back("west")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"data"}
    put(world, days(2), bucket=DESTINATION)
    assert run(world, DESTINATION) == {"Expiration": 1}
    assert world.tree(DESTINATION) == {}
    assert world.tree(SOURCE) == {"k": b"data"}


def test_a_pending_version_expires_once_it_is_completed(world: World, clock: Clock) -> None:
    """GUIDE, S26; 5.5, 1 and 2."""
    put(world, days(2), old_versions())
    world.away("west")
    for data in (b"one", b"two"):
        world.write("k", data)
        world.settle()
    clock("2026-05-20T10:00:00Z")
    answer = world.run("lifecycle.run", bucket=SOURCE)
    assert (set(answer["Done"].values()), answer["Blocked"]) == ({0}, 2)  # type: ignore[attr-defined]
    assert world.tree(SOURCE) == {"k": b"two"}
    world.back("west")
    world.settle()
    clock("2026-05-21T00:00:01Z")
    world.settle()
    assert world.tree(SOURCE) == {}
    assert [version.marker for version in world.of("k")] == [True, False]


def test_a_failed_version_expires_once_it_is_sent(world: World, clock: Clock) -> None:
    """5.5, 1: FAILED blocks as well; a retry that succeeds ends that."""
    put(world, days(2))
    world.run("replication.rm", source=SOURCE)
    world.configure(v2(), role="courier")
    world.write("k", b"one")
    world.settle()
    assert world.current("k").status is Status.FAILED
    clock("2026-05-20T10:00:00Z")
    assert world.run("lifecycle.run", bucket=SOURCE)["Blocked"] == 1
    world.run("role.create", name="courier", source=SOURCE, destinations=[DESTINATION])
    world.run("retry", scope=SOURCE)
    world.settle()
    assert world.current("k").status is Status.COMPLETED
    assert run(world) == {"Expiration": 1}


def test_both_sides_configured(world: World, clock: Clock) -> None:
    """5.5, 4: each bucket runs its own rules, and both end in the same state."""
    for bucket in (SOURCE, DESTINATION):
        put(world, days(2), old_versions(), TIDY, bucket=bucket)
    world.write("k", b"data")
    world.settle()
    for day in range(3, 9):
        clock(f"2026-05-0{day}T00:00:01Z")
        world.settle()
    assert world.history(SOURCE) == world.history(DESTINATION) == {}
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {}


def test_a_replicated_marker_stays_while_a_backfill_fills_the_bucket(world: World, clock: Clock) -> None:
    """5.5, 6: the versions below it may still come."""
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.settle()
    for version in world.of("k", DESTINATION)[1:]:
        world.remove("k", DESTINATION, version.id)
    put(world, TIDY, bucket=DESTINATION)
    world.run("replication.backfill", source=SOURCE)
    clock(LATER)
    answer = world.run("lifecycle.run", bucket=DESTINATION)
    assert (answer["Blocked"], len(world.of("k", DESTINATION))) == (1, 1)
    world.settle()
    assert run(world, DESTINATION) == {"ExpiredObjectDeleteMarker": 1}


def test_a_null_version_expires_at_the_moment_of_its_creation(world: World) -> None:
    """Section 5.2, Suspended: its null marker is later, also where the clock did not advance, and hides the file."""
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    world.write("k", b"null", DESTINATION)
    world.settle()
    put(world, rule(Expiration={"Date": "2026-01-01T00:00:00Z"}), bucket=DESTINATION)
    assert run(world, DESTINATION) == {"Expiration": 1}
    assert [(v.id, v.marker) for v in world.of("k", DESTINATION)] == [("null", True)]
    assert not world.path("k", DESTINATION).exists()


def test_a_directory_does_not_expire_while_it_holds_objects(tmp_path: Path, clock: Clock) -> None:
    """An object of a tree bucket that others are below stays; once they are expired, it expires as well."""
    with World(tmp_path / "world", trees=True) as world:
        world.write("full/file", b"content")
        world.path("empty").mkdir()
        world.settle()
        put(world, days(1))
        clock(LATER)
        assert run(world) == {"Expiration": 2}
        assert [p.name for p in world.path().iterdir() if p.name != ".fsrepl"] == ["full"]
        assert run(world) == {"Expiration": 1}
        assert [p.name for p in world.path().iterdir() if p.name != ".fsrepl"] == []
        assert world.current("full/").origin is Origin.LIFECYCLE
        world.settle()
        assert world.path("full", DESTINATION).is_dir(), "markers of lifecycle are not replicated"


# -- a disk that refuses


def test_a_run_that_the_disk_refuses_says_so_and_ends(world: World, clock: Clock) -> None:
    """G7: the command names what it cannot get, and what was done; nothing is half done, and the next run does it."""
    world.write("k", b"data")
    world.settle()
    put(world, days(1))
    world.restart(fs=(fs := FailingFs(1 << 60, errno.ENOSPC)))
    world.settle()
    clock(LATER)
    fs.calls_left, fs.for_ever = 0, True
    refusal = f"the lifecycle run of {SOURCE} cannot go on: no space left on device; 0 actions carried out; once that"
    with pytest.raises(Unavailable, match=refusal):
        run(world)
    assert world.tree(SOURCE) == {"k": b"data"}
    world.flush_settling()
    world.engine.run_until_idle(50)
    (found,) = [each for each in _status(world)["buckets"] if each["bucket"] == SOURCE]
    note = f"{SOURCE}: lifecycle cannot go on, and tries again: no space left on device"
    assert note in [each.text for each in notes_of(found, None)]
    fs.mend()
    world.settle()
    assert world.tree(SOURCE) == {}
    assert "lifecycle_waits" not in [*_status(world)["buckets"][0]]


def _status(world: World) -> Json:
    return status.status(world.engine.site, live.status(world.engine))
