"""The daemon's own data: limited, whatever the backlog; the rest comes a page at a time, or by key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.cli import status_screen
from fsrepl.commands import reader, status, why
from fsrepl.daemon import control, live, requests
from fsrepl.errors import Refused, Usage
from fsrepl.region.capture_state import Deferred
from fsrepl.region.change_queue import Change
from fsrepl.region.view_state import StaleView
from tests.world import DESTINATION, SOURCE, World, at

NUMBER = 2500
NAMES = [f"{'n' * 200}/{number:08}" for number in range(NUMBER)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        found.settle()
        yield found


def load(world: World) -> None:
    """Fill every list that a bucket may have."""
    state = world.state()
    for name in map(str.encode, NAMES):
        state.captures.unreadable[name] = "permission denied"
        state.captures.deferred[name] = Deferred(
            0.0, Change(SOURCE, name, 0, 0, 0.0), "it is open for writing", True, 0
        )
        state.views.stale[name] = StaleView(0.0, "it is being written", conflict=name.endswith(b"0"))
        state.trouble.polled.add(name)


def test_the_answer_does_not_grow_with_the_backlog(world: World) -> None:
    """Section 5: the first hundred of each list, and how many there are."""
    load(world)
    answer = live.status(world.engine)
    assert len(json.dumps(answer)) < 6 * live.FIRST * 300
    told = answer["buckets"][SOURCE]
    assert told["counts"] == {
        "polled": NUMBER, "mounts": 0, "unreadable": NUMBER, "behind": NUMBER * 9 // 10, "conflicts": NUMBER // 10,
        "waiting": NUMBER, "set_aside": 0, "uncaptured": 0,
    }  # fmt: skip
    assert list(told["unreadable"]) == NAMES[: live.FIRST]
    assert answer["buckets"][DESTINATION]["counts"]["waiting"] == 0


def test_the_rest_comes_page_by_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5: `status --all` names every file, in answers of a page each."""
    load(world)
    asked: list[str] = []

    def ask(state: object, request: requests.GetStatusPage, timeout_s: float) -> dict[str, Any]:
        asked.append(request.list)
        found = live.page(world.engine, str(request.bucket), request.list, request.after)
        assert len(found["items"]) <= live.PAGE
        return found

    monkeypatch.setattr(control, "ask", ask)
    said = reader.with_all_names(world.settings, {"running": True, **live.status(world.engine)})
    assert list(said["buckets"][SOURCE]["unreadable"]) == NAMES
    assert said["buckets"][SOURCE]["mounts"] == {}
    assert asked.count("unreadable") == 3
    with pytest.raises(Usage, match="there is no list 'nonsense'"):
        live.page(world.engine, SOURCE, "nonsense", b"")
    with pytest.raises(Refused, match="NoSuchBucket"):
        live.page(world.engine, "east/none", "waiting", b"")


def test_the_screen_says_how_many_more_there_are(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5: the screen is short, and has the number of the names that it leaves out."""
    load(world)
    document = status.status(world.engine.site, {"running": True, "since": "2026-11-24", **live.status(world.engine)})
    (bucket,) = [b for b in document["buckets"] if b["bucket"] == SOURCE]
    assert bucket["counts"] == {"polled": NUMBER, "unreadable": NUMBER, "views_behind": NUMBER * 9 // 10}
    status_screen.show(document)
    shown = capsys.readouterr().out
    assert shown.count("cannot be captured: nnn") == 5
    assert "cannot be captured: 2,495 more; `fsrepl status --all` names them" in shown
    assert "2,500 directories" in shown


def test_why_knows_a_key_however_many_wait(world: World) -> None:
    """Section 5: what happened to a key and what is next, also for a key that `status` does not name."""
    load(world)
    name = NAMES[-1]
    said = live.of_key(world.engine, at(SOURCE, name.encode()))
    assert len(json.dumps(said)) < 10_000
    notes = why.why(world.engine.site, at(SOURCE, name.encode()), None, said).sentences
    assert "a change waits to be captured: it is open for writing" in notes
    assert "a change cannot be captured: permission denied" in notes


def test_why_explains_a_delivery_that_is_tried_again(world: World) -> None:
    """Section 5: the reason, the number of tries and the time of the next; of this key alone."""
    queue = world.region(DESTINATION).queue(SOURCE, DESTINATION)
    for key in (b"k", b"other"):
        queue.notes[key, "01K"] = (0.0, "no space left", 3)
    told = live.of_key(world.engine, at(SOURCE, b"k"))["retries"]
    assert [(r["key"], r["version"], r["why"], r["attempts"]) for r in told] == [("k", "01K", "no space left", 3)]
