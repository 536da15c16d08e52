"""Writes into views that are stored files, where a crash takes the record of whose files these are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes
from fsrepl.model.version import Status
from fsrepl.repair import refetch
from fsrepl.replicate import settle
from fsrepl.storage import listing
from fsrepl.storage.journal.rows import Outcome, delivery_of
from fsrepl.views import overwritten
from tests.doubles import DyingFs, PowerCut
from tests.replicate.test_two_way import connect
from tests.stored import INLINE
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World

WAS, IS, NEXT = b"as it was replicated", b"WRITTEN IN PLACE", b"the next"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One object, the same in both buckets, whose views are stored files."""
    with World(tmp_path) as found:
        connect(found, SOURCE, DESTINATION)
        found.set_sharing(east="link", west="link")
        found.drop("k", WAS)
        found.settle()
        assert _stored(found).samefile(found.path("k", DESTINATION))
        yield found


def _stored(world: World, bucket: str = DESTINATION) -> Path:
    """The stored file of the first version."""
    return min(world.path(".fsrepl/versions", bucket).glob("k;*"))


def _write_into(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(IS)
        file.truncate()


def _contents(world: World, bucket: str) -> list[bytes]:
    """The content of each version of the object, oldest first, as commands return it; b"damaged" where they do not."""
    found = []
    with world.engine.site.bucket(bucket).open() as opened:
        for version in listing.versions_of(opened, b"k")[::-1]:
            try:
                found.append(b"" if version.marker else b"".join(listing.content(opened, version)))
            except StoreDamaged:
                found.append(b"damaged")
    return found


def _settle(world: World) -> None:
    for _ in range(3):
        world.settle()


def _keep_attributes(path: Path) -> None:
    pass


def _lose_record(path: Path) -> None:
    """As by root's `rsync -X` of a copy that has the other attributes alone."""
    os.removexattr(path, INLINE)


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize("then", ["removed", "replaced"])
@pytest.mark.parametrize("spoil", [_keep_attributes, _lose_record])
@pytest.mark.parametrize("newer", ["version", "marker"])
def test_a_write_is_noticed_where_a_newer_version_is_current_and_the_view_goes_between_the_start_and_the_scan(
    world: World, newer: str, spoil: Callable[[Path], None], then: str, *, without_journal: bool
) -> None:
    """G7, section 7: nothing is current any more that leads to the file that was written into."""
    view = world.path("k", DESTINATION)
    with view.open("r+b"):  # so that the newer one cannot be shown
        world.drop("k", NEXT) if newer == "version" else world.unlink("k")
        world.settle()
        _write_into(view)
    spoil(view)
    world.restart(without_journal=without_journal)
    for region in world.engine.regions.values():
        region.probe_buckets()
    view.unlink()
    if then == "replaced":
        world.drop("k", b"a user's", DESTINATION)
    _settle(world)
    assert _contents(world, DESTINATION)[0] == WAS
    assert verify(world) == []


def test_a_write_is_noticed_also_between_the_start_without_a_journal_and_the_scan(world: World) -> None:
    """G7, section 7: the store says whose view a file is, as the journal would."""
    world.drop("k", NEXT)
    world.capture(SOURCE)
    world.restart(without_journal=True)
    for region in world.engine.regions.values():
        region.probe_buckets()
    known = world.engine.journal.versions.object(DESTINATION, b"k")
    assert known is not None
    assert known.view is not None
    assert known.view.ino == _stored(world).stat().st_ino
    _write_into(world.path("k", DESTINATION))
    world.drop("k", b"a user's", DESTINATION)
    _settle(world)
    assert _contents(world, DESTINATION)[0] == WAS
    assert verify(world) == []


def test_a_write_by_another_name_of_a_file_that_is_a_view_no_longer_is_noticed(world: World) -> None:
    """Section 7: the name is gone when somebody looks, and a kill comes before the version has a file of its own."""
    view, other = world.path("k", DESTINATION), world.path("other", DESTINATION)
    world.drop("k", NEXT)
    world.capture(SOURCE)
    os.link(view, other)  # which nobody has seen when the newer version comes
    while view.read_bytes() != NEXT:
        world.region(DESTINATION).turn()
    _write_into(other)
    other.unlink()
    world.restart()
    _settle(world)
    assert _contents(world, DESTINATION) == [WAS, NEXT]
    assert world.leftovers(DESTINATION) == []
    assert verify(world) == []


def test_a_version_whose_file_is_still_open_for_writing_is_separate_once_its_view_has_left_it(world: World) -> None:
    """G2, section 7: as a log is that was renamed away, and that its program still writes to."""
    with world.path("k").open("r+b") as file:
        world.drop("k", NEXT)
        world.capture(SOURCE)
        file.write(IS)
    _settle(world)
    assert _contents(world, SOURCE) == _contents(world, DESTINATION) == [WAS, NEXT]


def test_a_record_that_is_lost_while_the_other_region_is_away_is_rebuilt_when_that_is_back(world: World) -> None:
    """G5, section 5: also across a start, after which nothing else leads to that version."""
    for name in os.listxattr(world.path("k")):
        os.removexattr(world.path("k"), name)
    world.away("west")
    world.drop("k", NEXT)
    world.settle()
    world.restart()
    world.settle()
    world.back("west")
    world.restart()
    _settle(world)
    assert _contents(world, SOURCE) == [WAS, NEXT]
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert verify(world) == []


def test_a_version_that_was_written_into_is_never_rebuilt_from_what_was_written(tmp_path: Path) -> None:
    """G2, section 7: its record is lost with its content, and no other region has it. What was written is a version of
    its own, and not two."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        view = world.path("k", DESTINATION)
        world.drop("k", WAS, DESTINATION)
        world.capture(DESTINATION)
        old = world.current("k", DESTINATION).id
        with view.open("r+b") as file:
            world.drop("k", NEXT)
            world.settle()
            file.write(IS)
            file.truncate()
        for name in os.listxattr(view):
            os.removexattr(view, name)
        _settle(world)
        world.restart(without_journal=True)
        _settle(world)
        found = world.of("k", DESTINATION)
        assert [version.id for version in found if version.digest == found[0].digest] == [found[0].id]
        assert IS not in _contents(world, DESTINATION)[:-1]
        assert world.path("k", DESTINATION).read_bytes() == IS
        assert (b"k", old) in world.state(DESTINATION).views.overwritten


# -- deliveries that failed by damage

THIRD = "north/third"


def _destroy_undelivered(world: World) -> None:
    """Write into the first of two versions at the source, while one destination is away and the third bucket has it."""
    connect(world, SOURCE, DESTINATION, THIRD)
    world.set_sharing(east="link")
    world.away("west")
    world.drop("k", WAS)
    world.settle()
    world.drop("k", NEXT)
    world.settle()
    _write_into(_stored(world, SOURCE))


def test_a_version_is_fetched_again_where_its_delivery_alone_finds_that_it_is_destroyed(tmp_path: Path) -> None:
    """G3, G11, section 7: and the delivery is renewed by itself, without `retry`."""
    with World(tmp_path, buckets=(SOURCE, DESTINATION, THIRD)) as world:
        _destroy_undelivered(world)
        world.back("west")
        _settle(world)
        assert world.statuses() == {Status.COMPLETED}
        assert _contents(world, SOURCE) == _contents(world, DESTINATION) == [WAS, NEXT]
        assert world.leftovers(SOURCE) == []


def test_a_delivery_that_fails_by_damage_in_the_moment_of_the_repair_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3, G11: its outcome is recorded between the repair and the end of the note that led to it."""
    with World(tmp_path, buckets=(SOURCE, DESTINATION, THIRD)) as world:
        _destroy_undelivered(world)
        region, state = world.region(), world.state()
        version = world.of("k")[-1]
        with state.bucket.open() as bucket:
            overwritten.note(world.engine.syncer, state, bucket, [(version.key, version.id)])
        in_background = region.in_background

        def and_then_it_fails(work: Any, finish: Any, **more: Any) -> None:
            def end(found: Any) -> None:
                monkeypatch.undo()
                delivery = delivery_of(SOURCE, version, DESTINATION, version.deliveries[DESTINATION])
                settle.settle(region, state, [Outcome(delivery, Status.FAILED, "SrcObjectNotEligible", None)])
                finish(found)

            in_background(work, end, **more)

        monkeypatch.setattr(region, "in_background", and_then_it_fails)
        _settle(world)
        world.back("west")
        _settle(world)
        assert world.statuses() == {Status.COMPLETED}
        assert _contents(world, SOURCE) == _contents(world, DESTINATION) == [WAS, NEXT]
        assert world.leftovers(SOURCE) == []


def test_a_delivery_that_failed_by_damage_is_renewed_also_after_a_kill_at_any_step(tmp_path: Path) -> None:
    """G7: the content was put in place before the kill, or the record was rebuilt, and the delivery still says
    FAILED."""
    for calls in itertools.count():
        with World(tmp_path / str(calls)) as world:
            world.set_sharing(east="link")
            world.drop("k", WAS)
            world.capture(SOURCE)
            _write_into(world.path("k"))
            world.region(DESTINATION).turn()
            assert world.engine.run_until_idle()
            world.drop("k", WAS)  # its user saves what the version held: the only whole copy
            fs = DyingFs(calls)
            try:
                world.restart(fs=fs)
                _settle(world)
            except PowerCut:
                world.restart()
            for _ in range(2):
                _settle(world)
                for each in world.state().views.overwritten.values():
                    each.due_s = 0.0
            assert world.statuses() == {Status.COMPLETED}, f"cut at {calls}, in {fs.died_in}"
            assert world.ids(SOURCE) == world.ids(DESTINATION), f"cut at {calls}, in {fs.died_in}"
            if not fs.died:
                return


def test_a_delivery_that_failed_for_want_of_a_record_is_renewed_when_a_start_rebuilds_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11, section 5: the start finds the lost record before anybody else."""
    with World(tmp_path) as world:
        world.drop("k", WAS)
        world.capture(SOURCE)
        stored = _stored(world, SOURCE)
        kept: dict[str, Any] = {name: os.getxattr(stored, name) for name in os.listxattr(stored)}
        for name in kept:
            os.removexattr(stored, name)
        with monkeypatch.context() as patch:
            patch.setattr(refetch, "fetch_due", lambda region: False)
            world.restart()
            world.engine.journal.deliveries.note(
                next(iter(world.engine.journal.deliveries.select(SOURCE))), Status.FAILED, "SrcObjectNotEligible", 1
            )
        world.restart()
        _settle(world)
        assert world.statuses() == {Status.COMPLETED}
        assert world.tree(DESTINATION) == {"k": WAS}
        assert attributes.RECORD in os.listxattr(stored)
