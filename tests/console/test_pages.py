"""Pages without a site: functions from documents to HTML."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands.notes import Kind
from fsrepl.commands.reader import Record
from fsrepl.console import plots
from fsrepl.console.access import Access
from fsrepl.console.gateway import Gateway, Watch
from fsrepl.console.handlers import overview as handlers
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import backlog, overview
from fsrepl.console.pages.rendering import Frame, with_commands
from fsrepl.daemon.samples import DAY_S, Sample
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
        html = overview.live(frame, status(BUCKET | {"failed": 1}), [], Record(), 0.0)
        assert "<form" not in html


def test_before_the_first_count_the_page_is_there_at_once() -> None:
    """A site of a million objects takes a second to count: nobody waits for that in front of an empty window."""
    page = overview.page(FRAME, overview.counting(FRAME))
    assert "being counted" in page
    assert "/srv/&lt;site&gt;" in page


def test_an_empty_site_says_what_to_do_first() -> None:
    page = read(200, {"content-type": "text/html"}, overview.live(FRAME, status(), [], Record(), 0.0).encode(), "/")
    assert "There is no bucket yet. Create two" in page.text


def test_transfers_show_their_progress() -> None:
    transfer = {
        "key": "<big>", "source": "east/src", "destination": "west/dst", "bytes_done": 1 << 20, "bytes_total": 4 << 20,
        "stalled_seconds": 12, "bytes_crossed": 1 << 10, "bytes_per_second": 1 << 19, "eta_seconds": 6.0,
    }  # fmt: skip
    within = transfer | {"key": "", "destination": "east/src"}
    read = [within | {"what": what} for what in ("verifying", "scrubbing")]
    html = overview.live(FRAME, status(BUCKET) | {"transfers": [transfer, *read]}, [], Record(), 0.0)
    assert '<progress max="4194304" value="1048576"' in html
    assert "no progress for 12.0 s" in html
    assert "1.0 MiB of 4.0 MiB, 512.0 KiB/s, 6.0 s left, 1.0 KiB crossed" in html
    assert "<td>all versions</td>\n<td>east/src, being verified</td>" in html
    assert "east/src, being scrubbed" in html
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


def test_a_rate_is_what_was_done_in_a_step() -> None:
    """The first sample after a gap counts from the beginning of its step; nothing is drawn across the gap."""
    kept = [Sample(110, 10, 0, 30), Sample(120, 10, 0, 0), Sample(500, 20, 0, 10)]
    assert backlog.points(kept, lambda s: backlog._rate(s, s.completed)) == [
        (100, 3), (110, 3), (120, 0), (480, 0.5), (500, 0.5),
    ]  # fmt: skip


def test_the_page_says_of_what_time_nothing_is_known() -> None:
    """Before the daemon was first started, and while it did not run; then nothing is drawn."""
    now_s = 1_800_000_000.0  # 2027-01-15, 08:00 UTC
    ago = (7200, 6900, 6600, 600, 300, 0)
    record = Record((), [Sample(now_s - back, 300, 5) for back in ago])
    gaps = backlog.unknown(record.day, now_s - DAY_S, now_s)
    assert gaps == [(now_s - DAY_S, now_s - 7500), (now_s - 6600, now_s - 900)]
    assert backlog.not_known(record.day, now_s) == (
        "The daemon takes these figures while it runs; there are none until 15 Jan 05:55, "
        "from 15 Jan 06:10 to 15 Jan 07:45 (UTC)."
    )
    (drawn,) = (str(each) for each in backlog.plots_of(record, now_s) if "Last day, pending:" in each)
    assert [len(line.split()) for line in re.findall(r'polyline class="line" points="([^"]*)"', drawn)] == [4, 4]
    assert "5 now, 5 at most" in drawn
    later = backlog.not_known(record.day, now_s + 3600)
    assert "since 15 Jan 08:00" in later
    (drawn,) = (str(each) for each in backlog.plots_of(record, now_s + 3600) if "Last day, pending:" in each)
    assert "not known now, 5 at most" in drawn
    parts = [Sample(300, 300, 0, 30), Sample(310, 10, 4, 10)]
    assert backlog._even(parts) == [Sample(310, 310, 4, 40)]
    assert backlog._even(parts[:1]) == parts[:1]
    whole = [Sample(now_s - back, 300, 0) for back in range(int(DAY_S), -1, -300)]
    assert backlog.not_known(whole, now_s) == ""
    assert "no figures of the last day" in backlog.not_known([], now_s)
    often = [Sample(now_s - back, 1, 0) for back in range(80_000, 0, -8000)]
    assert "and 7 times before (UTC)" in backlog.not_known(often, now_s)


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
    assert "no figures yet" in str(plots.plot([], 0, 1, title="t", text=str, ago="then"))
