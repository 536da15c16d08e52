"""After a power cut the records of all versions are read again, beside other work."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.commands import wait
from fsrepl.daemon.attach import Attaching
from fsrepl.model.version import Status
from fsrepl.repair import rebuild, reread, settled
from fsrepl.storage import boot, records
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.view_file import ViewFile
from tests.boots import note_synced
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
        note_synced(found)
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


def with_synced_notes(world: World, addresses: Iterable[str]) -> Path:
    """A copy of the journal, as of a moment before which all is synced: what is written to it from now on is lost."""
    note_synced(world, addresses)
    kept = world.home / "kept.db"
    with (
        contextlib.closing(sqlite3.connect(Path(world.engine.site.state) / "journal.db")) as now,
        contextlib.closing(sqlite3.connect(kept)) as copy,
    ):
        now.backup(copy)
    return kept


def cut_with(world: World, monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    """A power cut that took what was written to the journal since it was copied."""
    world.engine.journal.close()
    for path in Path(world.engine.site.state).glob("journal.db*"):
        path.unlink()
    kept.rename(Path(world.engine.site.state) / "journal.db")
    cut(world, monkeypatch)


@pytest.mark.parametrize("bucket", ["east/plain", DESTINATION])
def test_a_null_version_that_replaced_another_is_not_captured_again(
    memory: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:  # fmt: skip
    """G6: the store has it by the name of the one that it replaced, and the journal has lost it."""
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: True))
    with World(memory / "n", buckets=(SOURCE, DESTINATION, "east/plain")) as world:
        world.run("versioning.set", bucket=bucket, status="Suspended")
        world.drop("k", b"first", bucket)
        world.settle()
        kept = with_synced_notes(world, [bucket])
        world.drop("k", b"second", bucket)
        world.settle()
        before = world.ids(bucket)
        cut_with(world, monkeypatch, kept)
        world.settle()
        assert world.ids(bucket) == before
        world.stays_quiet()


@pytest.mark.parametrize("sharing", ["link", "private"])
def test_an_edit_that_the_journal_has_lost_is_delivered(
    memory: Path, monkeypatch: pytest.MonkeyPatch, sharing: str
) -> None:  # fmt: skip
    """G3: a record on a view is compared with the journal, since users can write to it; here the journal is older."""
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: True))
    with World(memory / "e") as world:
        world.set_sharing(east=sharing)
        world.write("d/k", b"content")
        world.settle()
        kept = with_synced_notes(world, [SOURCE, DESTINATION])
        os.setxattr(world.path("d/k"), "user.mine", b"value")
        world.look()
        world.capture(SOURCE)
        assert world.current("d/k").status is Status.PENDING
        cut_with(world, monkeypatch, kept)
        world.settle()
        assert world.current("d/k").status is Status.COMPLETED
        assert world.current("d/k", bucket=DESTINATION).attrs == {"user.mine": b"value"}
        world.stays_quiet()


@pytest.mark.parametrize("name", ["short", "n" * 240, "n" * 240 + "/short"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_removal_that_the_journal_has_lost_is_found(
    memory: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:  # fmt: skip
    """G6: also of a version whose stored name does not spell its key."""
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: True))
    with World(memory / "r") as world:
        key = f"d/{name}"
        for data in (b"first", b"second"):
            world.drop(key, data)
            world.settle()
        kept = with_synced_notes(world, [SOURCE, DESTINATION])
        world.remove(key, version=world.of(key)[number].id)
        world.settle()
        before = world.ids(SOURCE), world.ids(DESTINATION), world.tree(SOURCE)
        cut_with(world, monkeypatch, kept)
        world.settle()
        assert (world.ids(SOURCE), world.ids(DESTINATION), world.tree(SOURCE)) == before
        known = world.engine.journal.versions.versions_of(SOURCE, key.encode())
        assert [version_id for version_id, _, _ in known] == [version.id for version in world.of(key)]


class Killed(BaseException):
    """The daemon is killed."""


@pytest.fixture
def private(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A site whose replicas share nothing with their views, where a scan would see what is lost."""
    monkeypatch.setattr(Attaching, "_leaves_out", property(lambda _: True))
    monkeypatch.setattr(settled, "_SLACK_NS", -(10**9))
    with World(memory / "p") as world:
        world.set_sharing(west="private")
        for key in ("d/a", "d/b", "d/c"):
            world.write(key, b"content")
        world.settle()
        with_synced_notes(world, [SOURCE, DESTINATION])
        yield world


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_record_that_waits_for_a_region_outlives_the_daemon(
    private: World, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:  # fmt: skip
    """G7: as soon as the region is back it is rebuilt, also by a later start."""
    world, listed = private, list(private.path(".fsrepl/versions/d", bucket=DESTINATION).iterdir())
    path = next(each for each in sorted(listed)[1:] if each != listed[0])  # each start looks at the first ones
    for name in os.listxattr(path):
        os.removexattr(path, name)
    world.away("east")
    cut(world, monkeypatch)
    if is_stopped:
        world.settle()
        for region in world.engine.regions.values():
            region.last_turn()
        world.engine.close()
    else:

        def is_killed(attaching: Attaching, state: object, rebuilder: rebuild.Rebuilder) -> None:
            if rebuilder.waiting:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Attaching, "_note_lacking", is_killed)
            with pytest.raises(Killed):
                world.settle()
    world.restart()
    world.settle()
    world.back("east")
    world.settle()
    world.settle()
    assert os.listxattr(path)


def test_only_views_of_rebuilt_records_are_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the work takes as long as its records do, however many objects there are."""
    monkeypatch.setattr("fsrepl.daemon.attach._COMPARE_S", 0.0)
    for directory, name in (("d0", "k3"), ("d1", "k4")):
        (path,) = world.path(f".fsrepl/versions/{directory}").glob(f"{name};*")
        for attribute in os.listxattr(path):
            os.removexattr(path, attribute)
    shown: list[bytes] = []
    real = rebuild.Rebuilder._show

    def show(rebuilder: rebuild.Rebuilder, key: bytes, known: Object, view: ViewFile) -> None:
        shown.append(key)
        real(rebuilder, key, known, view)

    monkeypatch.setattr(rebuild.Rebuilder, "_show", show)
    cut(world, monkeypatch)
    world.settle()
    assert sorted(shown) == [b"d0/k3", b"d1/k4"]
