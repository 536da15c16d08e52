"""A record that the disk does not give is one record's trouble; a disk that takes no writes is its bucket's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.daemon.attach import Attaching
from fsrepl.errors import Unavailable
from fsrepl.region.bucket_state import NAMES, Phase
from fsrepl.repair import repair, reread, settled
from fsrepl.repair.target import Target
from fsrepl.storage import boot
from tests.boots import note_synced
from tests.doubles import BadBlockFs
from tests.world import DESTINATION, SOURCE, World

KEYS = [*(f"d{number % 3}/k{number}" for number in range(7)), "top"]
STARTS = ("after a kill", "after a power cut", "without the journal")


@pytest.fixture(params=["private", "link"])
def world(memory: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """A site whose journal has all that is in the stores, synced; a start leaves out what has not changed."""
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: True))
    monkeypatch.setattr(settled, "_SLACK_NS", -(10**9))
    monkeypatch.setattr(reread, "_AT_ONCE", 2)
    with World(memory / "w") as found:
        found.set_sharing(west=request.param, east="private")
        for key in KEYS:
            found.write(key, b"content of " + key.encode())
        found.settle()
        note_synced(found)
        yield found


def start(world: World, monkeypatch: pytest.MonkeyPatch, fs: BadBlockFs, how: str) -> None:
    if how == "after a power cut":
        monkeypatch.setattr(boot, "boot_id", lambda: "another start")
    world.restart(fs=fs, without_journal=how == "without the journal")


def stored(world: World, key: str, bucket: str) -> list[Path]:
    directory, _, name = key.rpartition("/")
    return list(world.path(f".fsrepl/versions/{directory}", bucket=bucket).glob(f"{name};*"))


@pytest.mark.parametrize("lost", ["content", "attributes"])
@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
@pytest.mark.parametrize("number", [1, len(KEYS)])
def test_records_are_repaired_while_the_bucket_works(
    world: World, monkeypatch: pytest.MonkeyPatch, bucket: str, how: str, number: int, lost: str
) -> None:
    """G7: the bucket stays online, and what the disk does not give comes back from the other region."""
    before, shown, fs = world.ids(SOURCE), world.tree(SOURCE), BadBlockFs(lost)
    fs.inodes = {each.stat().st_ino for key in KEYS[-number:] for each in stored(world, key, bucket)}
    start(world, monkeypatch, fs, how)
    world.settle()
    assert world.state(bucket).is_scanned
    assert not world.state(bucket).attachment.is_rereading
    world.write("new", b"new")
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {**shown, "new": b"new"}
    if how == "after a kill":
        return  # records are read no further than the first of each directory; the rest is the scrub's
    assert not any(each.stat().st_ino in fs.inodes for key in KEYS for each in stored(world, key, bucket))
    after = world.ids(SOURCE)
    assert after == world.ids(DESTINATION)
    assert {key: after[key] for key in before} == before
    is_link = world.settings.regions["west"].sharing == "link"
    if is_link and (bucket, how, lost) == (DESTINATION, STARTS[2], "attributes"):
        # views that were such files, of which nothing is known: what their users gave them cannot be told
        assert [why for _, why in NAMES["uncaptured"](world.state(bucket))] == ["bad message"] * number
        return
    world.stays_quiet()


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_files_that_cannot_even_be_removed_stop_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bucket: str, how: str
) -> None:
    """G6, G7: until the filesystem is repaired. A new save, a removal and a rename of their keys are versions."""
    fs, before = BadBlockFs("inode"), world.ids(SOURCE)
    fs.inodes = {each.stat().st_ino for key in KEYS for each in stored(world, key, bucket)}
    start(world, monkeypatch, fs, how)
    world.settle()
    with caplog.at_level(logging.INFO, "fsrepl"):
        world.write("top", b"a new save")
        world.path(KEYS[0]).unlink()
        world.path(KEYS[1]).rename(world.path("moved"))
        world.write("new", b"new")
        world.settle()
    assert "suspended" not in caplog.text
    assert world.state(bucket).is_scanned
    target = Target(bucket, b"top", before[b"top"][0][0], marker=False)
    with pytest.raises(Unavailable, match="run fsck"):
        repair.repair(world.region(bucket), target)
    touched = {b"top", b"moved", b"new", *(key.encode() for key in KEYS[:2])}
    assert not world.state(SOURCE).captures.deferred.keys() & touched
    assert world.engine.journal.totals.counts(SOURCE).objects == len(KEYS)


@pytest.mark.parametrize("how", STARTS[1:])
def test_a_disk_that_takes_no_writes_is_the_buckets_trouble(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Nothing is taken for damaged, and all goes on when the disk is back."""
    before, fs = world.ids(SOURCE), BadBlockFs()
    fs.inodes = {each.stat().st_ino for key in KEYS for each in stored(world, key, DESTINATION)}
    fs.is_dead = True
    start(world, monkeypatch, fs, how)
    with caplog.at_level(logging.INFO, "fsrepl"):
        for _ in range(20):
            world.region(DESTINATION).turn()
    state = world.state(DESTINATION)
    assert state.phase in (Phase.AWAY, Phase.SUSPENDED)
    assert "input/output error" in caplog.text
    assert not state.damaged
    assert not state.views.overwritten
    assert "damaged" not in caplog.text
    fs.inodes, fs.is_dead = set(), False
    world.region(DESTINATION).probe_now()
    state.attachment.up_again_at_s = 0.0
    world.settle()
    assert world.ids(SOURCE) == world.ids(DESTINATION) == before
    world.stays_quiet()
