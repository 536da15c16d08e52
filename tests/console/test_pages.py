"""Pages without a site: functions from documents to HTML."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands.notes import Kind
from fsrepl.console import history, plots
from fsrepl.console.access import Access
from fsrepl.console.gateway import Gateway, Watch
from fsrepl.console.handlers import overview as handlers
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.history import DAY_S, HOUR_S, History, Sample
from fsrepl.console.pages import overview
from fsrepl.console.pages.rendering import Frame, with_commands
from fsrepl.model.amounts import size_text
from tests.console.visitor import read
from tests.world import SOURCE, World

FRAME = Frame(site="/srv/<site>", path="/", csrf="token")
BUCKET: dict[str, Any] = {
    "bucket": "east/src", "online": True, "versioning": "Enabled", "objects": 1, "versions": 2, "bytes": 3,
    "pending": 0, "pending_bytes": 0, "failed": 0, "skipped": 0, "lag_seconds": 0, "rules": [],
}  # fmt: skip
RUNNING = {"running": True, "ready": True, "pid": 1, "since": "2026-11-24T01:53:51Z"}


def status(*buckets: dict[str, Any], **daemon: object) -> dict[str, Any]:
    return {"daemon": {**RUNNING, **daemon}, "buckets": list(buckets), "transfers": []}


HALTED = {"since": "2026-11-24T10:00:00Z", "deleted": 2000, "keys": 3000, "share": 0.7, "held": 2000}


@pytest.mark.parametrize(
    ("more", "remedies"),
    [
        ({"failed": 3}, ["Show failures", "Retry all"]),
        ({"halted": HALTED}, ["Bring the files back", "Let the deletions cross"]),
        ({"blocked": [{"destination": "west/dst", "why": "away"}]}, ["Try again now"]),
        ({"online": False, "trouble": "region east is away"}, []),
        ({"paused": "little space", "waiting": 2}, []),
        ({"unreadable": {"k": "permission denied"}}, []),
        ({"exposed": "others can read it"}, []),
    ],
)
def test_what_is_wrong_has_the_button_that_mends_it(more: dict[str, Any], remedies: list[str]) -> None:
    (problem,) = overview.problems(status(BUCKET | more))
    assert [remedy.label for remedy in problem.remedies] == remedies


def test_what_is_no_problem_is_not_named_as_one() -> None:
    assert overview.problems(status(BUCKET | {"skipped": 4})) == []
    assert [str(kind) for kind in Kind]  # each kind has a case in overview


def test_a_read_only_page_offers_nothing_to_do() -> None:
    for frame in (Frame("/s", "/", "t", read_only=True), Frame("/s", "/", "t", trouble="the daemon is not running")):
        html = overview.live(frame, status(BUCKET | {"failed": 1}), [], History(), 0.0)
        assert "<form" not in html


def test_before_the_first_count_the_page_is_there_at_once() -> None:
    """A site of a million objects takes a second to count: nobody waits for that in front of an empty window."""
    page = overview.page(FRAME, overview.live(FRAME, None, [], History(), 0.0))
    assert "being counted" in page
    assert "/srv/&lt;site&gt;" in page


def test_an_empty_site_says_what_to_do_first() -> None:
    page = read(200, {"content-type": "text/html"}, overview.live(FRAME, status(), [], History(), 0.0).encode(), "/")
    assert "There is no bucket yet. Create two" in page.text


def test_transfers_show_their_progress() -> None:
    transfer = {
        "key": "<big>", "source": "east/src", "destination": "west/dst", "bytes_done": 1 << 20, "bytes_total": 4 << 20,
        "stalled_seconds": 12,
    }  # fmt: skip
    html = overview.live(FRAME, status(BUCKET) | {"transfers": [transfer]}, [], History(), 0.0)
    assert '<progress max="4194304" value="1048576"' in html
    assert "no progress for 12.0 s" in html
    assert "&lt;big&gt;" in html


# -- the first page


def test_the_first_page_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a million objects a status takes a second: the page shows the last one, or says that the first is being taken;
    it opens no site, asks no daemon, and waits a moment at most."""
    with World(tmp_path) as world:
        gateway = Gateway(world.settings)
        watch = Watch(gateway)
        session = Access(time.monotonic).by_socket
        visit = Visit(gateway, watch, session, "/")
        for name in ("site", "site_with", "ask"):
            monkeypatch.setattr(Gateway, name, lambda *_: pytest.fail("the page looked by itself"))
        first = bytes(handlers.overview(visit).body).decode()
        assert "being counted" in first
        assert "Look again" in first  # without JavaScript
        watch._look = watch._take(1)
        assert SOURCE in bytes(handlers.overview(visit).body).decode()


def test_commands_in_sentences_stand_out_and_names_stay_text() -> None:
    """What is in backquotes is a command; a name may have a backquote, or a tag, and is neither."""
    assert with_commands("so `fsrepl ls <b>` or `x`") == "so <code>fsrepl ls &lt;b&gt;</code> or <code>x</code>"
    assert with_commands("a`<b>") == "a`&lt;b&gt;"
    assert with_commands("\x1b`a`") == "\\x1b<code>a</code>"


# -- plots, and what they show


def sample(at_s: float, completed: int = 0, pending: int = 0) -> Sample:
    return Sample(at_s, pending, 0, 0, completed, completed * 10)


def test_history_keeps_an_hour_in_small_steps_and_a_day_in_large_ones() -> None:
    """Bounded, however often and however long the console looks."""
    kept = History()
    for second in range(0, 30 * 3600, 2):
        kept.add(sample(float(second)))
    assert len(kept.hour) <= HOUR_S / history.FINE_S * 1.1
    assert len(kept.day) <= DAY_S / history.COARSE_S * 1.1
    assert kept.hour[-1].time_s - kept.hour[0].time_s == pytest.approx(HOUR_S, abs=20)
    assert kept.day[-1].time_s - kept.day[0].time_s == pytest.approx(DAY_S, abs=600)
    kept.add(sample(50.0))  # the clock was set back
    assert [each.time_s for each in kept.hour] == [50.0]


def test_rates_are_what_was_added() -> None:
    """A count that fell, as when lifecycle removed versions, is no delivery that was undone."""
    rates = history.rates([sample(0, 10), sample(10, 40), sample(20, 5), sample(30, 15)], "completed")
    assert rates == [(10, 3.0), (20, 0.0), (30, 1.0)]


def test_the_page_says_of_what_time_nothing_is_known() -> None:
    """The day before the console was first started, and the hours in which it did not run; then nothing is drawn."""
    now_s = 1_800_000_000.0  # 2027-01-15, 08:00 UTC
    record = History(sample(now_s - back, pending=5) for back in (7200, 6900, 6600, 600, 300, 0))
    assert history.unknown(list(record.day), now_s - DAY_S) == [
        (now_s - DAY_S, now_s - 7200), (now_s - 6600, now_s - 600),
    ]  # fmt: skip
    said = overview.looked(record, now_s)
    assert "They begin on 2027-01-15 at 06:00 UTC. It did not look from 06:10 to 07:50 UTC" in said
    (drawn,) = (str(each) for each in overview._plots(record, now_s) if "Last day, pending:" in each)
    assert [len(line.split()) for line in re.findall(r'polyline class="line" points="([^"]*)"', drawn)] == [3, 3]
    whole = History(sample(now_s - back) for back in range(0, int(DAY_S), 300))
    assert overview.looked(whole, now_s) == ""
    assert "no figures yet" in overview.looked(History(), now_s)


def test_history_survives_a_restart_and_damage(tmp_path: Path) -> None:
    (tmp_path / history.FILE).write_text('{"Samples": [{"time_s": 1, "pending": 2, "pending_bytes": 0, "failed": 0, '
                                         '"completed": 3, "completed_bytes": 0}]}')  # fmt: skip
    assert [each.completed for each in history.load(str(tmp_path)).day] == [3]
    for text in ("", "{", '{"Samples": [{"a": 1}]}', "[]"):
        (tmp_path / history.FILE).write_text(text)
        assert list(history.load(str(tmp_path)).day) == []
    assert list(history.load(str(tmp_path / "none")).day) == []


def test_a_plot_stays_in_its_frame() -> None:
    """Values beyond the time are left out; the greatest reaches the upper edge or stays below it."""
    points = [(float(at), float(at % 7)) for at in range(-50, 150)]
    drawn = str(plots.plot(points, 0, 100, title="t", text=lambda v: f"{v:g} <b>", ago="then"))
    assert "<b>" not in drawn.replace("<b>t</b>", "")
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', drawn)[0])
    line = re.findall(r'polyline class="line" points="([^"]*)"', drawn)[0]
    places = [tuple(map(float, place.split(","))) for place in line.split()]
    assert len(places) == 101
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert "up to 10" in drawn
    in_bytes = plots.plot(
        [(0.0, 0.0), (1.0, 430.0 * 1024)], 0, 1, title="t", text=size_text, ago="then", of_bytes=True
    )  # fmt: skip
    assert "up to 500.0 KiB" in str(in_bytes)
    assert "no data yet" in str(plots.plot([], 0, 1, title="t", text=str, ago="then"))
