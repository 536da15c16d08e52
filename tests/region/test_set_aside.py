"""An unexpected error: only the key or the bucket concerned is set aside, which status names; all other work
continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import look
from fsrepl.commands import status
from fsrepl.commands.notes import notes_of
from fsrepl.daemon import live
from fsrepl.daemon.worker import Worker
from fsrepl.model.version import Version
from fsrepl.region.bucket_state import Phase
from fsrepl.region.change_queue import Change
from fsrepl.replicate import deliver, transfer
from fsrepl.storage import records, versions
from fsrepl.storage.journal.rows import Delivery
from fsrepl.storage.journal.versions import Versions
from fsrepl.views import show, view_attributes
from tests.world import DESTINATION, SOURCE, World

OTHERS = ("east/other", "west/copy")
BAD = b"bad"


def concerns(value: object) -> bool:
    """Whether an argument of a function is about the key that causes the error."""
    match value:
        case Change() | Version() | Delivery():
            return value.key == BAD
        case versions.Staged():
            return value.version.key == BAD
        case list() | tuple():
            return any(map(concerns, value))
    return False


class Broken:
    """One function that raises an unexpected error when it is called for that key."""

    def __init__(self, patch: pytest.MonkeyPatch, state: object, name: str) -> None:
        self.whole = getattr(state, name)
        self.met = 0
        self.mended = False

        def call(*args: Any, **more: Any) -> Any:
            if not self.mended and any(map(concerns, args)):
                self.met += 1
                raise ZeroDivisionError("nobody thought of this")
            return self.whole(*args, **more)

        patch.setattr(state, name, call)


STEPS: dict[str, tuple[object, str]] = {
    "look": (look, "look"),
    "publish": (versions, "publish"),
    "record": (Versions, "add_shown"),
    "write the deliveries": (records, "write_deliveries"),
    "stage": (transfer, "stage"),
    "show": (show, "show"),
    "label": (view_attributes, "label_view"),
}


@pytest.fixture
def world(memory: Path) -> Any:
    with World(memory / "w", buckets=(SOURCE, DESTINATION, *OTHERS)) as world:
        world.run("replication.enable", source=OTHERS[0], destination=OTHERS[1])
        yield world


def status_of_buckets(world: World) -> dict[str, Any]:
    """`fsrepl status --json`, by bucket."""
    said = status.status(world.engine.site, {"running": True} | live.status(world.engine))
    return {each["bucket"]: each for each in said["buckets"]}


def settle(world: World) -> None:
    for _ in range(4):  # a suspended bucket comes up again in the next
        world.settle()


@pytest.mark.parametrize("step", STEPS)
def test_an_unexpected_fault_sets_aside_one_key(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """G6, G7: its neighbours in the batch, its bucket and its region continue; once the cause is gone it is processed
    by itself."""
    broken = Broken(monkeypatch, *STEPS[step])
    for name in ("a", "bad", "c"):
        world.write(name, name.encode())
        world.write(name + "-other", name.encode(), OTHERS[0])
    settle(world)
    assert broken.met
    assert world.tree(OTHERS[1]) == world.tree(OTHERS[0])
    there = world.tree(DESTINATION)
    assert (there["a"], there["c"]) == (b"a", b"c")
    world.write("d", b"later")
    settle(world)
    assert world.tree(DESTINATION)["d"] == b"later"
    assert all(world.state(bucket).is_up for bucket in world.engine.site.buckets)
    broken.mended = True
    settle(world)
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"a": b"a", "bad": b"bad", "c": b"c", "d": b"later"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert {len(versions) for versions in world.ids(SOURCE).values()} == {1}
    assert world.statuses() == {"COMPLETED"}


@pytest.mark.parametrize("step", ["look", "publish", "stage"])
def test_status_names_the_key_that_was_set_aside(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """G11: a key that waits for an unexpected error is shown, too."""
    Broken(monkeypatch, *STEPS[step])
    for name in ("a", "bad"):
        world.write(name, name.encode())
    settle(world)
    said = status_of_buckets(world)[DESTINATION if step == "stage" else SOURCE]
    assert [each["Key"] for each in said["set_aside"]] == ["bad"]
    assert any("bad" in note.text and "unexpected" in note.text for note in notes_of(said, None))


BUCKET_STEPS: dict[str, tuple[object, str]] = {
    "its documents": (Worker, "follow_documents"),
    "coming up": (Worker, "_bring_up"),
    "deliveries": (deliver, "_carry"),
}


@pytest.mark.parametrize("step", BUCKET_STEPS)
def test_an_unexpected_fault_takes_one_bucket_offline(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """G6, G7: the region's other buckets continue, status names the one, and it is online again once the cause is
    gone."""
    state, name = BUCKET_STEPS[step]
    whole: Callable[..., Any] = getattr(state, name)
    broken = True

    def call(*args: Any, **more: Any) -> Any:
        mine = [each for each in args if getattr(each, "bucket", None) is world.engine.site.buckets[DESTINATION]]
        if broken and mine:
            raise ZeroDivisionError("nobody thought of this")
        return whole(*args, **more)

    monkeypatch.setattr(state, name, call)
    world.restart()
    world.write("a", b"a")
    world.write("a", b"a", OTHERS[0])
    settle(world)
    assert world.tree(OTHERS[1]) == {"a": b"a"}
    assert world.tree(DESTINATION) == {}
    said = status_of_buckets(world)
    if step != "deliveries":
        assert {address for address, each in said.items() if not each["online"]} == {DESTINATION}
        assert "unexpected" in said[DESTINATION]["trouble"]
    broken = False
    settle(world)
    assert world.tree(DESTINATION) == {"a": b"a"}
    assert world.statuses() == {"COMPLETED"}


def test_a_bucket_with_an_unexpected_record_stays_offline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G6, G7: without its row in the index the file would become a version once more. Its neighbours continue."""
    for name in ("a", "bad", "c"):
        world.write(name, name.encode())
    world.settle()
    broken = Broken(monkeypatch, Versions, "add")
    world.restart(without_journal=True)
    world.write("a", b"a", OTHERS[0])
    settle(world)
    assert world.tree(OTHERS[1]) == {"a": b"a"}
    down = {bucket for bucket in world.engine.site.buckets if world.state(bucket).phase is Phase.SUSPENDED}
    assert down == {SOURCE, DESTINATION}
    broken.mended = True
    settle(world)
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert {len(versions) for versions in world.ids(SOURCE).values()} == {1}
