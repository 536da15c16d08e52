"""Outcomes of deliveries are recorded at the source: one record that cannot be written delays no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region import label_queue
from fsrepl.region.label_queue import LabelQueue
from tests.doubles import UnsyncedFs
from tests.stored import set_field
from tests.world import DESTINATION, SOURCE, World

KEYS = ("a", "b", "c")


class StubbornFs(UnsyncedFs):
    """One version's record cannot be written."""

    stubborn = ""

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        if self.stubborn and os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2].startswith(self.stubborn + ";"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().set_attribute(fd, name, value)


def _captured(world: World) -> None:
    """Three versions that wait for a destination that is away."""
    world.away("west")
    for key in KEYS:
        world.write(key, key.encode())
    world.settle()


def _statuses(world: World) -> dict[str, Status | None]:
    return {key: world.current(key).status for key in KEYS}


def test_a_record_that_cannot_be_written_delays_no_other(tmp_path: Path) -> None:
    """G7: the others are COMPLETED, and this one as soon as possible."""
    fs = StubbornFs()
    with World(tmp_path, fs=fs) as world:
        _captured(world)
        world.back("west")
        fs.stubborn = "b"
        world.settle()
        assert _statuses(world) == {"a": "COMPLETED", "b": "PENDING", "c": "COMPLETED"}
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        fs.stubborn = ""
        world.settle()
        assert set(_statuses(world).values()) == {"COMPLETED"}


def test_a_record_that_cannot_be_read_delays_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """G7, G11: the others are COMPLETED, and this one once its record is rebuilt; it is never FAILED."""
    with World(tmp_path) as world:
        _captured(world)
        damaged = next(world.path(".fsrepl/versions").glob("b;*"))
        set_field(damaged, "version-id", "01K00000000000000000000000")
        world.restart()
        world.back("west")
        world.settle()
        delivery = {o.key.decode(): (o.status, o.reason) for o in world.engine.journal.deliveries.select(SOURCE)}
        assert delivery["a"][0] == delivery["c"][0] == "COMPLETED"
        world.settle()
        assert _statuses(world) == {"a": "COMPLETED", "b": "COMPLETED", "c": "COMPLETED"}
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert "failed bucket=" not in caplog.text


@pytest.mark.parametrize("kind", ["directory", "marker"])
def test_an_intent_of_a_waiting_view_goes_with_a_later_version(tmp_path: Path, kind: str) -> None:
    """G7: the intent of a view that had to wait is removed when a later version replaces the view."""
    with World(tmp_path) as world:
        obstacle = world.path("k", DESTINATION)
        obstacle.mkdir()
        (obstacle / "theirs").write_bytes(b"theirs")
        world.write("k", b"1")
        world.settle()
        assert any("intents/" in name for name in world.leftovers(DESTINATION))
        if kind == "marker":
            world.unlink("k")
        else:
            (obstacle / "theirs").unlink()
            obstacle.rmdir()
            world.write("k", b"2")
        world.settle()
        assert world.leftovers(DESTINATION) == []
        assert world.ids(DESTINATION)[b"k"] == world.ids(SOURCE)[b"k"]


def test_a_view_is_behind_until_it_is_labelled() -> None:
    """Section 6: for a caller that waits in another thread, a label that is being set counts as not set yet."""
    labels = LabelQueue()
    version = Version(b"k", "01K0000000000000000000000A", 1)
    names = (b"", b"k", b"other")
    assert [labels.is_behind(name) for name in names] == [False, False, False]
    labels.add(version, 0.0)
    assert [labels.is_behind(name) for name in names] == [True, True, False]
    assert labels.take(0.0) == [(version, False)]
    assert [labels.is_behind(name) for name in names] == [True, True, False]
    labels.done()
    assert [labels.is_behind(name) for name in names] == [False, False, False]


def test_views_that_tell_of_a_pending_version_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """G7, bounded memory: with a destination away for long, a million views say PENDING. The views labelled last need
    their new status alone when it is known; the others are labelled anew."""
    monkeypatch.setattr(label_queue, "REMEMBERED_MAX", 2)
    labels, late_s = LabelQueue(), 1e6
    pending = {DESTINATION: DeliveryRecord("rule", Status.PENDING)}
    versions = [Version(b"k%d" % n, f"01K000000000000000000000{n:02}", 1, deliveries=pending) for n in range(5)]
    for version in versions:
        labels.add(version, 0.0)
        assert labels.take(late_s) == [(version, False)]
    settled = [replace(version, deliveries={}) for version in versions]
    for version in settled:
        labels.add(version, late_s)
    assert labels.take(late_s) == [(version, version in settled[-2:]) for version in settled]


@pytest.mark.parametrize("is_pending", [False, True])
def test_the_views_that_wait_for_labels_are_bounded_while_a_burst_goes_on(
    monkeypatch: pytest.MonkeyPatch, is_pending: bool
) -> None:
    """A million new files in one directory: a turn of the loop may capture more of them than it labels in any case."""
    busy_max, each_turn, turns = 1000, 700, 20
    monkeypatch.setattr(label_queue, "BUSY_MAX", busy_max)
    labels = LabelQueue()
    deliveries = {DESTINATION: DeliveryRecord("rule", Status.PENDING)} if is_pending else {}
    longest = labelled = 0
    for turn in range(turns):
        now_s = 2.0 * turn
        for number in range(turn * each_turn, (turn + 1) * each_turn):
            labels.add(Version(b"k%d" % number, f"{number:026}", 1, deliveries=deliveries), now_s)
        longest = max(longest, len(labels))
        if labels.is_overdue(now_s):
            labelled += len(labels.take(now_s))
            labels.done()
    assert busy_max < longest <= busy_max + each_turn
    assert labelled + len(labels) == turns * each_turn
