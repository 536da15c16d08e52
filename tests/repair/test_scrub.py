"""The scrub: all stored versions are read over its time, what is damaged is repaired, and nothing is held up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands import status
from fsrepl.model import clock
from fsrepl.settings import reading
from fsrepl.storage import staging
from fsrepl.storage.journal.database import Journal
from tests.replicate.test_large import content, set_up
from tests.stored import stored
from tests.world import DESTINATION, SOURCE, World

DAY_NS = 86_400 * 10**9
BEGAN_NS = clock.parse("2026-05-01T10:00:00Z")


class Days:
    """The date, which a test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.move(0)

    def move(self, days: float) -> None:
        self.path.write_text(clock.stamp(BEGAN_NS + int(days * DAY_NS)))


@pytest.fixture
def days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.setenv("FSREPL_CLOCK", str(tmp_path / "now"))
    return Days(tmp_path / "now")


def scrub_unlimited(world: World) -> None:
    """Set up large files, replicas in files of their own, and a scrub that reads as fast as it can."""
    set_up(world)
    world.settings.path.write_text(world.settings.path.read_text() + '[scrub]\nlimit = "0"\n')
    world.settings = reading.load(world.settings.path)
    world.restart()
    world.set_sharing(west="private")


@pytest.fixture
def world(tmp_path: Path, days: Days) -> Iterator[World]:
    with World(tmp_path / "world") as made:
        scrub_unlimited(made)
        made.write("k", content())
        made.write("d/small", b"data")
        made.write("gone", b"x")
        made.settle()
        made.unlink("gone")
        made.settle()
        yield made


def turn(world: World) -> None:
    """Everything that the scrub may do now."""
    for region in world.engine.regions.values():
        for state in region.states.values():
            state.scrub.look_s = 0.0
    world.settle()
    for region in world.engine.regions.values():
        for state in region.states.values():
            state.scrub.look_s = 0.0
    world.settle()


def told(world: World, bucket: str = SOURCE) -> dict[str, Any]:
    said = {"running": True}
    (found,) = [b for b in status.status(world.engine.site, said)["buckets"] if b["bucket"] == bucket]  # type: ignore[union-attr]
    scrub: dict[str, Any] = found["scrub"]
    return scrub


def rot(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"rot")


def test_damage_is_found_within_the_time_and_repaired(
    world: World, days: Days, caplog: pytest.LogCaptureFixture
) -> None:
    """Section 9: on either side; a part at a time, the last one at the end of the time."""
    paths = [stored(world, "k", SOURCE), stored(world, "d/small", DESTINATION)]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        rot(path)
    turn(world)
    assert [path.read_bytes() for path in paths] != before
    for day in range(31):
        days.move(day)
        turn(world)
    assert [path.read_bytes() for path in paths] == before
    assert caplog.text.count("scrub found damage") == 2
    assert told(world)["last"]["damaged"] == 1
    assert told(world)["last"]["checked"] == 3
    assert world.engine.journal.damage(SOURCE) == (1, 1)
    for day in range(31, 62):
        days.move(day)
        turn(world)
    assert told(world)["last"]["damaged"] == 0
    world.stays_quiet()


def test_nothing_is_read_before_its_time(world: World, days: Days) -> None:
    """Settings, scrub: what is one part is read in the middle of the time."""
    turn(world)
    days.move(1)
    turn(world)
    assert told(world)["current"]["bytes_done"] == 0


def test_a_restart_goes_on_where_it_was(world: World, days: Days) -> None:
    """G11: what status says of it is the same, and nothing is read twice."""
    turn(world)
    days.move(20)
    turn(world)
    before = told(world)
    assert before["current"]["checked"] > 0
    world.restart()
    world.settle()
    assert told(world) == before


@pytest.mark.parametrize("every", ["30d", "0"])
def test_a_person_may_have_it_done_now_or_pause_it(world: World, days: Days, every: str) -> None:
    """Section 5: run ends a pause; a pause outlives a restart."""
    text = world.settings.path.read_text() + f'every = "{every}"\n'
    world.settings.path.write_text(text)
    world.settings = reading.load(world.settings.path)
    world.restart()
    world.settle()
    rot(stored(world, "k"))
    world.run("scrub.pause", bucket=SOURCE)
    world.restart()
    days.move(99)
    turn(world)
    assert told(world)["paused"]
    assert "last" not in told(world)
    world.run("scrub.run", bucket=SOURCE)
    turn(world)
    assert told(world)["last"]["damaged"] == 1
    assert not told(world)["paused"]
    assert stored(world, "k").read_bytes() == content()
    assert world.refused("scrub.run", bucket="east/nobucket") == "NoSuchBucket"


@pytest.mark.parametrize("every", ["30d", "0"])
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_goes_on_after_a_pause_unless_it_is_ended(world: World, every: str, ended: bool) -> None:
    """Section 5: also where the settings say never, so that no pace is left but the run's, and after a restart."""
    world.settings.path.write_text(world.settings.path.read_text() + f'every = "{every}"\n')
    world.settings = reading.load(world.settings.path)
    world.restart()
    world.settle()
    world.run("scrub.run", bucket=SOURCE)
    world.run("scrub.pause", bucket=SOURCE)
    if ended:
        world.run("scrub.run", bucket=SOURCE, on=False)
    turn(world)
    assert told(world)["paused"]
    assert "last" not in told(world)
    world.restart()
    world.run("scrub.pause", bucket=SOURCE, on=False)
    turn(world)
    assert not told(world)["paused"]
    assert ("last" in told(world)) is not ended
    if ended:
        assert not told(world)["current"]["asked"]


def test_a_pass_removes_what_nobody_needs(world: World, days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2: maps without a version, old damaged content, unfinished copies; maps in use stay."""
    folder = world.path(".fsrepl/blocks")
    (used,) = folder.iterdir()
    unused, aside = folder / ("0" * 64), world.path(".fsrepl/damaged")
    aside.mkdir()
    left = [unused, aside / "old", world.path(".fsrepl/tmp") / ("capture." + "0" * 32)]
    for path in left:
        path.write_bytes(b"")
    for path in (*left, used):
        os.utime(path, (1, 1))
    monkeypatch.setattr(staging, "_LASTING_S", -1.0)
    world.run("scrub.run")
    turn(world)
    assert [path.exists() for path in (*left, used)] == [False, False, False, True]


def test_a_lost_journal_costs_another_pass(world: World, days: Days) -> None:
    """G7: and nothing else."""
    world.run("scrub.run")
    turn(world)
    assert "last" in told(world)
    world.restart(without_journal=True)
    world.settle()
    assert "last" not in told(world)
    world.run("scrub.run")
    turn(world)
    assert told(world)["last"]["damaged"] == 0


def test_what_is_remembered_is_removed_with_its_bucket(world: World, days: Days) -> None:
    """Section 2: a bucket of the same name that is made later begins anew."""
    world.run("scrub.run")
    turn(world)
    assert isinstance(world.engine.journal, Journal)
    world.run("replication.rm", source=SOURCE)
    world.run("bucket.rm", bucket=SOURCE, purge=True)
    world.run("bucket.create", bucket=SOURCE, versioning=True)
    assert "last" not in told(world)
