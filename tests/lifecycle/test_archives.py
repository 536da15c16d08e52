"""Archive classes with a tier: content that has to be restored before it is read, compressed or not."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands.documents.objects import head_document
from fsrepl.errors import Refused
from fsrepl.storage import listing
from tests.doubles import DyingFs, PowerCut
from tests.lifecycle.test_lifecycle import LATER, put, rule, run
from tests.lifecycle.test_tiers import ONE, add_tier, content, contents, stored, two_versions
from tests.stored import stored as path_of
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, v2, worlds

Json = dict[str, Any]
Clock = Callable[[str], object]
TIER = "east/GLACIER"
OLD = rule(
    Filter={"ObjectSizeGreaterThan": 0},
    NoncurrentVersionTransitions=[{"NoncurrentDays": 30, "StorageClass": "GLACIER"}],
)
CURRENT = rule(Filter={"ObjectSizeGreaterThan": 0}, Transitions=[{"Days": 30, "StorageClass": "GLACIER"}])


def add_archive(world: World, tier: str = TIER, compress: str = "zstd") -> Path:
    path = world.home / "tiers" / tier.replace("/", "-")
    world.run("tier.add", tier=tier, path=str(path), compress=compress)
    world.settings = world.engine.settings
    return path


def archived(world: World, clock: Clock) -> str:
    """A noncurrent version in an archive; its id."""
    two_versions(world)
    put(world, OLD)
    clock(LATER)
    assert run(world) == {"NoncurrentVersionTransition": 1}
    world.settle()
    return world.of("k")[1].id


def names(tier: Path, bucket: str = "src") -> list[str]:
    return sorted(path.name[33:] for path in (tier / bucket).iterdir() if path.is_file())


def restore(world: World, version: str | None, days: int = 2, key: bytes = b"k", bucket: str = SOURCE) -> Json:
    return world.run("object.restore_archived", bucket=bucket, key=key, version_id=version, days=days)


@pytest.mark.parametrize("compress", ["zstd", "none"])
def test_archived_content_is_listed_and_restored_for_some_days(world: World, clock: Clock, compress: str) -> None:
    """InvalidObjectState until it is restored, and again after midnight UTC of the last day."""
    tier = add_archive(world, compress=compress)
    old = archived(world, clock)
    suffix = ".zst" if compress == "zstd" else ".arc"
    assert names(tier) == ["k" + suffix]
    (packed,) = contents(tier)
    assert (len(packed) < 1000) is (compress == "zstd")
    assert stored(world) == [0, 22000]
    assert [v.size for v in world.of("k")] == [22000, 6000]
    assert verify(world) == []
    with pytest.raises(Refused, match="InvalidObjectState"):
        content(world, world.of("k")[1])
    assert world.refused("object.restore", bucket=SOURCE, key=b"k", version_id=old) == "InvalidObjectState"
    answer = restore(world, old)
    assert answer["Restore"] == 'ongoing-request="false", expiry-date="Thu, 04 Jun 2026 00:00:00 GMT"'
    assert content(world, world.of("k")[1]) == ONE
    assert names(tier) == ["k", "k" + suffix]
    with world.engine.site.bucket(SOURCE).open() as bucket:
        assert head_document(bucket, listing.find(bucket, b"k", old))["Restore"] == answer["Restore"]
    assert restore(world, old, 4)["Extended"]
    clock("2026-06-04T12:00:00Z")
    world.settle()
    assert content(world, world.of("k")[1]) == ONE
    clock("2026-06-06T00:00:01Z")
    with pytest.raises(Refused, match="InvalidObjectState"):
        content(world, world.of("k")[1])
    world.settle()
    assert names(tier) == ["k" + suffix]
    assert verify(world) == []


def test_anybody_can_decompress_what_is_archived(world: World, clock: Clock) -> None:
    """No fsrepl is needed to get the data back: `zstd -d` reads it, and its attributes say what it is."""
    tier = add_archive(world)
    archived(world, clock)
    (path,) = [path for path in (tier / "src").iterdir() if path.is_file()]
    assert b'"key":"k"' in os.getxattr(path, "user.fsrepl.record")
    with contextlib.suppress(FileNotFoundError):
        assert subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout == ONE


def test_a_restored_version_can_be_made_current(world: World, clock: Clock) -> None:
    add_archive(world)
    old = archived(world, clock)
    restore(world, old)
    world.run("object.restore", bucket=SOURCE, key=b"k", version_id=old)
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"k": ONE}
    assert (world.current("k").storage_class, world.current("k").place) == ("", None)


def test_a_current_version_in_an_archive(world: World, clock: Clock) -> None:
    """Its symlink leads to where the restored copy is, while there is one; what replaces it is a version as ever."""
    add_archive(world)
    world.write("d/k", ONE)
    world.path("d/k").chmod(0o640)
    world.settle()
    put(world, CURRENT)
    clock(LATER)
    assert run(world) == {"Transition": 1}
    world.settle()
    view = world.path("d/k")
    assert (view.is_symlink(), view.exists()) == (True, False)
    assert [v.marker for v in world.of("d/k")] == [False]
    assert verify(world) == []
    world.restart(without_journal=True)
    world.settle()
    assert [v.marker for v in world.of("d/k")] == [False]
    restore(world, None, key=b"d/k")
    assert (view.read_bytes(), view.stat().st_mode & 0o777) == (ONE, 0o440)
    world.stays_quiet()
    clock("2026-07-01T00:00:01Z")
    world.settle()
    assert not view.exists()
    world.drop("d/k", b"new")
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/k": b"new"}


def test_nothing_is_written_through_the_symlink_of_archived_content(world: World, clock: Clock) -> None:
    """G1: a program that opens the file to write it anew would make a file in the tier, which is no version, and goes
    with the next restored copy. It is refused instead, also for root and after a restored copy; and for archives of
    earlier builds once they are swept. What replaces the symlink is a version."""
    tier = add_archive(world)
    world.write("k", ONE)
    world.settle()
    put(world, CURRENT)
    clock(LATER)
    run(world)
    world.settle()
    view, where = world.path("k"), Path(os.readlink(world.path("k")))

    def is_refused() -> bool:
        with pytest.raises(FileNotFoundError):
            view.write_bytes(b"new")
        with pytest.raises(FileNotFoundError):
            view.read_bytes()
        return not view.exists() and where.is_symlink()

    assert is_refused()
    where.unlink()
    world.restart()
    world.settle()
    assert is_refused()
    restore(world, None)
    assert view.read_bytes() == ONE
    clock("2026-07-01T00:00:01Z")
    world.settle()
    assert is_refused()
    assert verify(world) == []
    world.drop("k", b"new")
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"k": b"new"}
    world.run("object.rm", bucket=SOURCE, key=b"k", version_id=world.of("k")[1].id)
    assert [each.name for each in tier.rglob("*;k*")] == []


def test_a_bucket_is_removed_with_its_archives(world: World, clock: Clock) -> None:
    """Section 5: nothing of it stays in the tier."""
    tier = add_archive(world)
    world.write("k", ONE)
    world.settle()
    put(world, CURRENT)
    clock(LATER)
    run(world)
    world.settle()
    world.run("bucket.rm", bucket=SOURCE, purge=True)
    assert not (tier / "src").exists()


def test_what_is_not_archived_is_not_restored(world: World, clock: Clock) -> None:
    """S3's codes: InvalidObjectState for other classes, InvalidArgument for no day, NoSuchKey."""
    add_tier(world)
    world.write("k", ONE)
    world.settle()
    asked: Json = {"bucket": SOURCE, "key": b"k"}
    assert world.refused("object.restore_archived", **asked, days=1) == "InvalidObjectState"
    assert world.refused("object.restore_archived", **asked, days=0) == "InvalidArgument"
    assert world.refused("object.restore_archived", bucket=SOURCE, key=b"none", days=1) == "NoSuchKey"


def test_from_one_archive_to_another_and_back(world: World, clock: Clock) -> None:
    glacier, deep = add_archive(world), add_archive(world, "east/DEEP_ARCHIVE", "none")
    archived(world, clock)
    put(
        world,
        rule(
            Filter={"ObjectSizeGreaterThan": 0},
            NoncurrentVersionTransitions=[{"NoncurrentDays": 30, "StorageClass": "DEEP_ARCHIVE"}],
        ),
    )
    assert run(world) == {"NoncurrentVersionTransition": 1}
    world.settle()
    assert (contents(glacier), contents(deep)) == ([], [ONE])
    world.run("tier.rm", tier="east/DEEP_ARCHIVE")
    world.settle()
    assert (contents(deep), stored(world)) == ([], [6000, 22000])
    assert content(world, world.of("k")[1]) == ONE


def test_restored_content_moves_to_another_archive_after_its_days(world: World, clock: Clock) -> None:
    """What was asked for by days can be read for these days, also where a transition makes it due to move."""
    glacier, deep = add_archive(world), add_archive(world, "east/DEEP_ARCHIVE")
    old = archived(world, clock)
    restore(world, old)
    to_deep = {"NoncurrentDays": 30, "StorageClass": "DEEP_ARCHIVE"}
    put(world, rule(Filter={"ObjectSizeGreaterThan": 0}, NoncurrentVersionTransitions=[to_deep]))
    assert run(world) == {"NoncurrentVersionTransition": 1}
    world.settle()
    assert content(world, world.of("k")[1]) == ONE
    assert (names(glacier), names(deep)) == (["k", "k.zst"], [])
    clock("2026-06-04T00:00:00Z")
    world.settle()
    world.settle()
    assert (names(glacier), names(deep)) == ([], ["k.zst"])


def test_an_archive_that_is_away_delays_no_move_to_another_from_elsewhere(world: World, clock: Clock) -> None:
    """A tier that cannot be read is one thing, and the tier that content goes to another."""
    glacier, deep = add_archive(world), add_archive(world, "east/DEEP_ARCHIVE")
    archived(world, clock)
    glacier.rename(glacier.with_name("away"))
    world.write("other", ONE)
    world.settle()
    to_deep = {"StorageClass": "DEEP_ARCHIVE"}
    put(
        world,
        rule(
            Filter={"ObjectSizeGreaterThan": 0},
            NoncurrentVersionTransitions=[{"NoncurrentDays": 30, **to_deep}],
            Transitions=[{"Days": 0, **to_deep}],
        ),
    )
    clock("2026-07-10T00:00:01Z")
    assert run(world) == {"Transition": 2, "NoncurrentVersionTransition": 1}
    world.settle()
    assert names(deep) == ["k.zst", "other.zst"]
    assert "is offline" in world.state().lifecycle.placing.why
    glacier.with_name("away").rename(glacier)
    world.settle()
    world.settle()
    assert (names(glacier), names(deep)) == ([], ["k.zst", "k.zst", "other.zst"])


def test_damaged_archived_content_is_named_and_repaired(world: World, clock: Clock) -> None:
    tier = add_archive(world)
    archived(world, clock)
    (path,) = [path for path in (tier / "src").iterdir() if path.is_file()]
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    assert [found[:2] for found in verify(world)] == [(SOURCE, "k")]
    assert [found[3] for found in verify(world, repair=True)] == [True]
    world.restart()
    world.settle()
    assert names(tier) == ["k.zst"]
    assert verify(world) == []


def test_a_rule_may_archive_replicas(world: World, clock: Clock) -> None:
    """The destination storage class of a rule: COMPLETED, and archived on the other side."""
    add_archive(world, "west/DEEP_ARCHIVE")
    world.configure(v2(markers=True, StorageClass="DEEP_ARCHIVE"))
    world.write("d/k", ONE)
    world.settle()
    world.settle()
    assert world.current("d/k").status == "COMPLETED"
    view = world.path("d/k", DESTINATION)
    assert (view.is_symlink(), view.exists()) == (True, False)
    restore(world, None, key=b"d/k", bucket=DESTINATION)
    assert view.read_bytes() == ONE
    world.run("replication.backfill", source=SOURCE, statuses=("COMPLETED",))
    world.settle()
    assert world.current("d/k").status == "COMPLETED"
    assert verify(world) == []


def test_an_archived_replica_is_a_good_copy(world: World, clock: Clock) -> None:
    """It is decompressed, and the version in the other region is repaired from it."""
    add_archive(world, "west/DEEP_ARCHIVE")
    world.configure(v2(markers=True, StorageClass="DEEP_ARCHIVE"))
    world.write("k", ONE)
    world.settle()
    world.settle()
    path = path_of(world, "k")
    path.write_bytes(b"x" * len(ONE))
    world.unlink("k")
    world.settle()
    assert (SOURCE, "k", "DigestMismatch", True) in verify(world, repair=True)
    assert path.read_bytes() == ONE


def test_archived_content_is_scrubbed(world: World, clock: Clock) -> None:
    """It is read and decompressed like any other, and what is damaged is repaired."""
    tier = add_archive(world)
    archived(world, clock)
    (path,) = [path for path in (tier / "src").iterdir() if path.is_file()]
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    world.run("scrub.run", bucket=SOURCE)
    for _ in range(3):
        world.settle()
    world.restart()
    world.settle()
    assert verify(world) == []
    assert names(tier) == ["k.zst"]


@pytest.mark.slow
def test_a_restore_cut_short(memory: Path, clock: Clock) -> None:
    """G2, G7: cut after any change the archived content is whole, and a copy that no record speaks for goes."""
    for calls, world in worlds(memory, replicate=False):
        clock("2026-05-01T10:00:00Z")
        tier = add_archive(world)
        old = archived(world, clock)
        fs = DyingFs(1 << 60)
        world.restart(fs=fs)
        world.settle()
        fs.calls_left = calls
        with contextlib.suppress(PowerCut):
            restore(world, old)
        where = f"cut at change {calls}, in {fs.died_in}"
        world.restart(without_journal=calls % 2 == 0)
        world.settle()
        is_restored = world.of("k")[1].place.until_ns > 0  # type: ignore[union-attr]
        assert names(tier) == (["k", "k.zst"] if is_restored else ["k.zst"]), where
        restore(world, old)
        assert content(world, world.of("k")[1]) == ONE, where
        if not fs.died:
            return
