"""After a power cut the records of all versions are read again, beside other work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.commands import wait
from fsrepl.daemon.attach import Attaching
from fsrepl.model.version import Status
from fsrepl.repair import reread, settled
from fsrepl.storage import boot, records
from tests.world import DESTINATION, SOURCE, World

KEYS = [*(f"d{number % 3}/k{number}" for number in range(7)), "top", "d1/" + "n" * 250, "d3/" + "m" * 250]


@pytest.fixture
def world(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A site whose journal has all that is in the stores, synced; a start leaves out what has not changed."""
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: True))
    monkeypatch.setattr(settled, "_SLACK_NS", -(10**9))
    monkeypatch.setattr(reread, "_AT_ONCE", 2)
    with World(memory / "w") as found:
        for key in KEYS:
            found.write(key, b"content")
        found.settle()
        for address in (SOURCE, DESTINATION):
            with found.engine.site.bucket(address).open() as bucket:
                noted_ns = settled.note(bucket, found.engine.journal)
            settled.note_synced(address, found.engine.journal, noted_ns)
        yield found


def forget_outcome(world: World, key: str) -> None:
    """As if the record of a delivery's outcome had not been synced."""
    version = world.current(key)
    assert version.status is Status.COMPLETED
    (recorded,) = version.deliveries.values()
    pending = {DESTINATION: replace(recorded, status=Status.PENDING)}
    with world.engine.site.bucket(SOURCE).open() as bucket:
        records.write_deliveries(bucket, replace(version, deliveries=pending))
    assert world.current(key).status is Status.PENDING


def cut(world: World, monkeypatch: pytest.MonkeyPatch, start: str = "another start") -> None:
    monkeypatch.setattr(boot, "boot_id", lambda: start)
    world.restart()


def until_rereading(world: World) -> None:
    for _ in range(100):
        world.region().turn()
        if world.state().is_scanned and world.state().attachment.reread_to is not None:
            return
    raise AssertionError("nothing is read again")


@pytest.mark.parametrize("key", KEYS)
def test_what_the_journal_outlived_is_found(world: World, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """G3: a record says COMPLETED in the end, though its attributes were not synced before the power cut."""
    forget_outcome(world, key)
    world.restart()
    world.settle()
    assert world.current(key).status is Status.PENDING  # after a kill nothing is lost, and nothing read again
    cut(world, monkeypatch)
    world.settle()
    assert world.current(key).status is Status.COMPLETED
    assert len(world.of(key)) == 1
    world.stays_quiet()


def test_a_record_that_is_gone_is_rebuilt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = world.path(".fsrepl/versions/d1", bucket=DESTINATION).glob("k1;*")
    for name in os.listxattr(path):
        os.removexattr(path, name)
    cut(world, monkeypatch)
    world.settle()
    assert world.current("d1/k1", bucket=DESTINATION).status is Status.REPLICA


def test_until_then_the_bucket_is_being_scanned_and_takes_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A start with a million objects is ready within seconds after a power cut, too, and works while it reads."""
    monkeypatch.setattr("fsrepl.daemon.attach._COMPARE_S", 0.0)
    forget_outcome(world, "top")
    cut(world, monkeypatch)
    until_rereading(world)
    state, scope = world.state(), wait.Scope((SOURCE,))
    assert state.describe()["scanning"]
    epochs: dict[str, int | None] = {SOURCE: 0}
    assert not wait._is_captured(world.engine, SOURCE, scope, epochs, None, set())
    world.write("new", b"new")
    world.capture(SOURCE)
    assert len(world.of("new")) == 1
    assert state.attachment.is_rereading
    world.settle()
    assert not state.describe()["scanning"]
    assert world.current("top").status is Status.COMPLETED


def test_a_start_in_the_midst_of_it_begins_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsrepl.daemon.attach._COMPARE_S", 0.0)
    forget_outcome(world, "d0/k0")
    cut(world, monkeypatch)
    until_rereading(world)
    world.restart()
    world.settle()
    assert world.current("d0/k0").status is Status.COMPLETED
    forget_outcome(world, "d0/k0")
    world.restart()
    world.settle()
    assert world.current("d0/k0").status is Status.PENDING  # it was done
