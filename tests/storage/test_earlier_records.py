"""Trees whose records earlier builds wrote: one attribute for each field, in the store and on the view."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model import attributes
from fsrepl.model.version import Status
from tests.doubles import DyingFs, PowerCut
from tests.repair.test_rebuild import restore_by_cp, strip_all
from tests.stored import as_earlier_builds, former, is_of_today, set_field, stored
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, worlds

BOTH = (SOURCE, DESTINATION)
LONG = "d/" + "x" * 240


def fill(world: World, *, large: bool = False) -> None:
    """Versions, markers, tags, metadata, a key that no stored path spells, and one whose record does not fit."""
    for data in (b"one", b"two"):
        for key in ("d/k", LONG, "gone"):
            world.drop(key, data)
        world.settle()
    os.setxattr(world.path("d/k"), "user.colour", b"blue")
    world.path("d/k").chmod(0o600)
    world.unlink("gone")
    world.drop("tagged", b"x", tags={"class": "blue"})
    if large:
        world.write("large", b"x")
        os.setxattr(world.path("large"), "user.large", b"z" * 3900)
    world.settle()


@pytest.fixture(params=["auto", "private", "link"])
def world(request: pytest.FixtureRequest, memory: Path) -> Iterator[World]:
    with World(memory) as found:
        if request.param != "auto":
            found.set_sharing(east=request.param, west=request.param)
        yield found


def _age(world: World, *buckets: str) -> None:
    for bucket in buckets:
        assert as_earlier_builds(world, bucket)
    assert all(False in is_of_today(world, bucket) for bucket in buckets)


@pytest.mark.parametrize("buckets", [BOTH, (SOURCE,), (DESTINATION,)], ids=["both", "source", "replica"])
@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
def test_they_are_read(world: World, buckets: tuple[str, ...], without_journal: bool) -> None:
    """Section 2, G11: there is no difference, and nothing is made or sent again; with and without the journal."""
    fill(world)
    before = {bucket: world.history(bucket) for bucket in BOTH}
    _age(world, *buckets)
    world.restart(without_journal=without_journal)
    world.settle()
    assert {bucket: world.history(bucket) for bucket in BOTH} == before
    assert verify(world) == []
    assert world.statuses() <= {Status.COMPLETED}
    world.stays_quiet()


def test_they_are_rewritten_when_they_are_touched(world: World) -> None:
    """Section 2: by an edit of metadata and by the outcome of a delivery; other records stay as they are, and are
    read."""
    world.away("west")
    fill(world)
    _age(world, SOURCE)
    world.restart()
    world.back("west")
    world.settle()
    assert world.statuses() == {Status.COMPLETED}
    assert is_of_today(world, SOURCE) == {True}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    _age(world, *BOTH)
    world.restart()
    world.settle()
    world.path("d/k").chmod(0o640)
    world.settle()
    assert is_of_today(world, SOURCE) == is_of_today(world, DESTINATION) == {True, False}
    assert world.records(SOURCE) == world.records(DESTINATION)
    for bucket in BOTH:
        alone = world.path("d/k", bucket).stat().st_nlink == 1
        there = {n for n in os.listxattr(world.path("d/k", bucket)) if attributes.is_ours(n)}
        assert there == attributes.LABEL if alone else there >= attributes.LABEL, bucket
    world.restart(without_journal=True)
    world.settle()
    assert verify(world) == []
    world.stays_quiet()


def test_a_sidecar_of_an_earlier_build(tmp_path: Path) -> None:
    """Section 2: where both exist the sidecar is the record; it is removed when there is room."""
    with World(tmp_path) as world:
        fill(world, large=True)
        before = {bucket: world.history(bucket) for bucket in BOTH}
        sidecars = list(world.path(".fsrepl/versions").rglob("large;*meta.json"))
        assert len(sidecars) == 1
        _age(world, *BOTH)
        assert b"replication-status" in sidecars[0].read_bytes()
        world.restart(without_journal=True)
        world.settle()
        assert {bucket: world.history(bucket) for bucket in BOTH} == before
        os.setxattr(world.path("large"), "user.large", b"not any more")
        world.settle()
        assert not sidecars[0].exists()
        assert world.records(SOURCE) == world.records(DESTINATION)
        assert attributes.STATUS not in os.listxattr(stored(world, "large"))
        assert verify(world) == []


@pytest.mark.parametrize("lose", [strip_all, restore_by_cp], ids=["stripped", "cp"])
@pytest.mark.parametrize("bucket", BOTH)
def test_a_tree_without_attributes_is_rebuilt_from_them(tmp_path: Path, bucket: str, lose: object) -> None:
    """Section 5: the other side's records may be those of an earlier build."""
    with World(tmp_path) as world:
        fill(world)
        before = {b: world.history(b) for b in BOTH}
        _age(world, *BOTH)
        world.engine.close()
        lose(world.path(bucket=bucket))  # type: ignore[operator]
        world.restart(without_journal=True)
        world.settle()
        assert {b: world.history(b) for b in BOTH} == before
        assert is_of_today(world, bucket) == {True}


def test_one_that_is_damaged_is_rebuilt_in_todays_form(world: World) -> None:
    """Section 5: the remaining fields of either form count; the others come from the other side."""
    fill(world)
    before = world.history(SOURCE)
    _age(world, SOURCE)
    file = stored(world, "d/k", SOURCE, 0)
    for name in ("blake3", "last-modified"):
        os.removexattr(file, attributes.OURS + name)
    for name in set(os.listxattr(file)) & {attributes.TRUSTED_RECORD, attributes.OWN_RECORD}:
        os.removexattr(file, name)
    assert verify(world) == [(SOURCE, "d/k", "AttributesLost", False)]
    assert verify(world, repair=True) == [(SOURCE, "d/k", "AttributesLost", True)]
    assert world.history(SOURCE) == before
    assert verify(world) == []


def test_the_record_wins_where_a_rewrite_was_cut_short(tmp_path: Path) -> None:
    """G7: the new form beside the rest of the earlier one."""
    with World(tmp_path) as world:
        fill(world)
        before = world.history(SOURCE)
        file = stored(world, "d/k")
        for name, value in former(world.of("d/k")[1]).items():  # of another version: it must not count
            if name in attributes.FORMER:
                os.setxattr(file, name, value)
        world.restart(without_journal=True)
        world.settle()
        assert world.history(SOURCE) == before
        world.path("d/k").chmod(0o604)
        world.settle()
        assert not set(os.listxattr(file)) & attributes.FORMER


def test_a_record_that_cannot_be_parsed_is_damage(tmp_path: Path) -> None:
    """Section 5: `verify` names it, and `--repair` rebuilds it from the other side."""
    with World(tmp_path) as world:
        fill(world)
        before = world.history(SOURCE)
        os.setxattr(stored(world, "d/k"), attributes.RECORD, b"{")
        set_field(stored(world, "tagged"), "posix", "nonsense")
        found = verify(world)
        assert {(key, what) for _, key, what, _ in found} == {
            ("d/k", "RecordDamaged"),
            ("tagged", "RecordDamaged"),
        }
        verify(world, repair=True)
        assert verify(world) == []
        assert world.history(SOURCE) == before


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["auto", "private", "link"])
def test_power_cut_while_they_are_rewritten(memory: Path, sharing: str) -> None:
    """G5, G7: whichever change the power cut comes at, also without the journal, each version has its complete record
    in the end."""
    for calls, world in worlds(memory):
        if sharing != "auto":
            world.set_sharing(east=sharing, west=sharing)
        world.away("west")
        world.drop("d/k", b"data", tags={"class": "blue"})
        world.settle()
        before = world.ids(SOURCE)
        as_earlier_builds(world, SOURCE)
        world.restart(fs=(fs := DyingFs(calls)))
        world.back("west")
        with contextlib.suppress(PowerCut):
            world.settle()
            as_earlier_builds(world, DESTINATION)
            world.path("d/k").chmod(0o600)
            world.settle()
        world.restart(without_journal=calls % 2 == 0)
        world.path("d/k").chmod(0o600)
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION) == before, (calls, fs.died_in)
        assert world.statuses() == {Status.COMPLETED}, (calls, fs.died_in)
        assert world.current("d/k", DESTINATION).tags == {"class": "blue"}, (calls, fs.died_in)
        assert world.look_of("d/k") == world.look_of("d/k", DESTINATION), (calls, fs.died_in)
        assert verify(world) == [], (calls, fs.died_in)
        if not fs.died:
            return
