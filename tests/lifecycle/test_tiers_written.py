"""Content in a tier that is written into through the symlink of its view, as root may, and its owner."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.capture import schedule
from fsrepl.errors import Refused, StoreDamaged
from fsrepl.lifecycle import tiers
from fsrepl.region.change_queue import WatchLimit
from fsrepl.storage.intents import Act, Intent, write_intents
from tests.doubles import DeafWatcher, DyingFs, PowerCut
from tests.journeys.test_lifecycle_journey import later
from tests.lifecycle.test_archives import CURRENT, add_archive, restore
from tests.lifecycle.test_lifecycle import LATER, days, put, run
from tests.lifecycle.test_tiers import IA, ONE, add_tier, content, contents, placed
from tests.site import Site
from tests.verifying import verify
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World, worlds

Clock = Callable[[str], object]
NEW = b"written through the link"


def write_through(view: Path, data: bytes = NEW) -> None:
    """As `echo > FILE` does; the owner gives himself the right first."""
    os.chmod(view, 0o644)
    with view.open("wb") as file:
        file.write(data)


def settled(world: World) -> None:
    """Until all is settled: what was written into just now is left alone for a moment."""

    def is_over() -> bool:
        world.settle()
        return not any("just now" in each.why for each in world.state().captures.deferred.values())

    until(is_over)
    for _ in range(3):
        for overwritten in world.state().views.overwritten.values():
            overwritten.due_s = 0.0
        world.settle()


@pytest.mark.parametrize("journal", ["kept", "lost", "restarted"])
def test_what_is_written_through_a_symlink_becomes_a_version(world: World, clock: Clock, journal: str) -> None:
    """Section 7, View and store; G6: a scan finds it, the new content is a version of its own, and the destroyed one is
    fetched from the other region."""
    tier = add_tier(world)
    view = placed(world, clock)
    before = world.of("d/k")
    write_through(view)
    if journal != "kept":
        world.restart(without_journal=journal == "lost")
    settled(world)
    new, old = world.of("d/k")
    assert (view.is_symlink(), view.read_bytes()) == (False, NEW)
    assert (new.posix.mode, new.storage_class, new.tags) == (before[0].posix.mode, "", before[0].tags)
    assert (old.id, old.digest, old.storage_class) == (before[0].id, before[0].digest, "STANDARD_IA")
    assert content(world, old) == ONE
    assert contents(tier) == [ONE]
    assert world.tree(DESTINATION) == {"d/k": NEW}
    assert verify(world) == []
    assert world.leftovers(SOURCE) == []
    world.stays_quiet()


def test_without_another_region_the_destroyed_version_is_served_to_nobody(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Section 7: it is reported as damaged."""
    with World(tmp_path / "world", replicate=False) as world:
        tier = add_tier(world)
        view = placed(world, clock)
        write_through(view)
        settled(world)
        new, old = world.of("d/k")
        assert (view.read_bytes(), content(world, new)) == (NEW, NEW)
        with pytest.raises(StoreDamaged, match="not given out"):
            content(world, old)
        assert contents(tier) == []
        assert "destroyed" in caplog.text


def test_content_of_the_same_size_is_noticed(world: World, clock: Clock) -> None:
    """A write sets the time."""
    add_tier(world)
    view = placed(world, clock)
    write_through(view, same := b"two" * 2000)
    settled(world)
    assert view.read_bytes() == same
    assert [content(world, version) for version in world.of("d/k")] == [same, ONE]


def test_a_touched_content_is_no_version(world: World, clock: Clock) -> None:
    """`touch` follows the symlink; by its time the content is known, and it gets that back."""
    add_tier(world)
    view = placed(world, clock)
    before = world.of("d/k")
    os.utime(view)
    settled(world)
    assert world.of("d/k") == before
    assert view.stat().st_mtime == 1e9
    world.stays_quiet()


def test_a_writer_is_waited_for(world: World, clock: Clock) -> None:
    """Section 7, Capture: nothing half written becomes a version."""
    add_tier(world)
    view = placed(world, clock)
    os.chmod(view, 0o644)
    with view.open("wb") as file:
        file.write(NEW)
        file.flush()
        settled(world)
        assert len(world.of("d/k")) == 1
        assert world.state().captures.deferred[b"d/k"].opened
        file.write(b", and more")
    settled(world)
    assert view.read_bytes() == NEW + b", and more"
    assert [content(world, version) for version in world.of("d/k")] == [NEW + b", and more", ONE]


@pytest.mark.parametrize("act", ["expires", "deleted", "moves"])
def test_what_is_written_is_captured_before_the_symlink_goes(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """G1: an expiration, a removal by command and a move to another tier meet a content that no scan has seen yet."""
    add_tier(world)
    view = placed(world, clock)
    write_through(view)
    if act == "expires":
        put(world, days(2))
        clock("2027-01-01T00:00:00Z")
        run(world)
    elif act == "deleted":
        with contextlib.suppress(Exception):
            world.remove("d/k")
    else:
        world.run("tier.rm", tier="east/STANDARD_IA")
        for _ in range(5):
            tiers.step(world.region())
    settled(world)
    assert NEW in [content(world, v) for v in world.of("d/k") if not v.marker and v.size == len(NEW)]
    if act != "deleted":
        assert view.read_bytes() == NEW


def test_a_second_write_before_the_symlink_is_replaced_is_kept(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: the first is a version already, and its file about to take the symlink's place."""
    add_tier(world)
    view = placed(world, clock)
    write_through(view)
    region = world.region()
    world.look()
    monkeypatch.setattr("fsrepl.views.stale.show_due", lambda region: False)

    def is_captured() -> bool:
        world.flush_settling()
        region.take_turn()
        return len(world.of("d/k")) == 2

    until(is_captured)
    assert view.is_symlink()
    write_through(view, b"once more")
    monkeypatch.undo()
    clock(LATER)
    settled(world)
    assert view.read_bytes() == b"once more"
    assert [content(world, version) for version in world.of("d/k")] == [b"once more", NEW, ONE]


def test_a_restored_copy_of_archived_content_that_is_written_into(world: World, clock: Clock) -> None:
    """The archived content is whole; what was written is a version, and the copy is served to nobody."""
    add_archive(world)
    world.write("d/k", ONE)
    world.settle()
    put(world, CURRENT)
    clock(LATER)
    assert run(world) == {"Transition": 1}
    world.settle()
    restore(world, None, key=b"d/k")
    world.settle()
    view = world.path("d/k")
    assert view.read_bytes() == ONE
    write_through(view)
    settled(world)
    new, old = world.of("d/k")
    assert view.read_bytes() == content(world, new) == NEW
    with pytest.raises(Refused, match="InvalidObjectState"):
        content(world, old)
    clock("2026-07-01T00:00:01Z")
    settled(world)
    restore(world, old.id, key=b"d/k")
    assert content(world, world.of("d/k")[1]) == ONE
    assert verify(world) == []


def test_a_fetch_that_is_over_takes_nothing_from_a_tier(world: World, clock: Clock) -> None:
    """G7: after a crash between a repair and the note of it, the version may be in its tier already."""
    tier = add_tier(world)
    placed(world, clock)
    (there,) = (path for path in (tier / "src").iterdir() if path.is_file())
    version = world.current("d/k")
    with world.engine.site.bucket(SOURCE).open() as bucket:
        write_intents(bucket, [Intent(b"d/k", version.id, None, Act.FETCH)])
    world.away("west")
    world.restart()
    settled(world)
    assert world.current("d/k") == version
    assert there.read_bytes() == ONE


class _Limited(DeafWatcher):
    """The kernel gives no watch for a tier."""

    def watch_contents(self, address: str, tier: str, fd: int) -> bool:
        raise WatchLimit


def test_without_a_watch_for_the_tier_a_wait_scans(world: World, clock: Clock) -> None:
    """Section 5, wait: as with directories that are not watched."""
    add_tier(world)
    world.engine.watcher = _Limited()
    view = placed(world, clock)
    state = world.state()
    assert not state.scans
    write_through(view)
    schedule.poll(world.region(), state)
    assert state.scans.is_pending(world.engine.epoch + 1)
    world.engine.watcher = None
    settled(world)
    assert view.read_bytes() == NEW


@pytest.mark.slow
def test_a_wait_notices_a_write_through_a_symlink(tmp_path: Path) -> None:
    """Section 5, wait: as of any file: the daemon watches the tier."""
    now, tier = tmp_path / "now", tmp_path / "tier"
    now.write_text("2026-05-01T10:00:00Z")
    with Site(tmp_path) as site:
        site.environ["FSREPL_CLOCK"] = str(now)
        site.must("tier", "add", f"east/STANDARD_IA={tier}")
        site.start()
        site.put("d/k", ONE)
        site.wait()
        site.must("lifecycle", "put", SOURCE, "-", stdin=json.dumps({"Rules": [IA]}).encode())
        later(now, LATER)
        site.must("lifecycle", "run", SOURCE)
        view = site.path("d/k")
        site.until(view.is_symlink, "it is in the tier")
        write_through(view)
        site.wait()
        assert site.tree(DESTINATION) == {"d/k": NEW}
        site.until(lambda: not view.is_symlink(), "its view is a file again")
        site.until(lambda: contents(tier) == [ONE], "the destroyed version is back")


@pytest.mark.slow
def test_power_cut_while_what_was_written_is_captured(memory: Path, clock: Clock) -> None:
    """G1, G7: what was written is a version in the end, and the destroyed one is back."""
    for calls, world in worlds(memory):
        clock("2026-05-01T10:00:00Z")
        add_tier(world)
        view = placed(world, clock)
        write_through(view)
        fs = DyingFs(calls)
        with contextlib.suppress(PowerCut):
            world.restart(fs=fs)
            settled(world)
        world.restart(without_journal=calls % 2 == 0)
        settled(world)
        found = [content(world, version) for version in world.of("d/k")]
        where = f"cut at {calls}, in {fs.died_in}"
        assert (found, view.read_bytes()) == ([NEW, ONE], NEW), where
        assert world.leftovers(SOURCE) == [], where
        if not fs.died:
            return
