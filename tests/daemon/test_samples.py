"""Samples of the backlog and of what was replicated: taken while the daemon runs, and there after it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import convert

from fsrepl.daemon import control, requests, samples
from fsrepl.daemon.samples import COARSE_S, DAY_S, FINE_S, HOUR_S, Sample, Samples
from fsrepl.settings import FILE, reading
from fsrepl.storage.fs import Fs
from tests.site import Site


def hour(taken: Samples) -> list[Sample]:
    return convert(taken.document()["Hour"], list[Sample])


def day(taken: Samples) -> list[Sample]:
    return convert(taken.document()["Day"], list[Sample])


def run(taken: Samples, from_s: float, seconds: float, *, step_s: float = FINE_S, each: int = 1) -> list[float]:
    """A daemon that completes `each` deliveries of ten bytes in a step; the times at which it would save."""
    saves, at_s = [], 0.0
    while at_s <= seconds:
        number = each * round(at_s / step_s)
        if taken.take(from_s + at_s, at_s, 5, (number, 10 * number), 0.0):
            saves.append(from_s + at_s)
        at_s += step_s
    return saves


def test_an_hour_in_small_steps_and_a_day_in_large_ones() -> None:
    """Bounded, however long the daemon runs; in both each delivery is counted once."""
    taken = Samples()
    run(taken, 0, 30 * 3600)
    assert len(hour(taken)) <= HOUR_S / FINE_S + 2
    assert len(day(taken)) <= DAY_S / COARSE_S + 2
    assert hour(taken)[-1].time_s - hour(taken)[0].time_s == pytest.approx(HOUR_S, abs=2 * FINE_S)
    for kept, span_s in ((hour(taken), HOUR_S), (day(taken), DAY_S)):
        assert sum(each.completed for each in kept) == pytest.approx(span_s / FINE_S, abs=COARSE_S / FINE_S)
        assert sum(each.seconds for each in kept) == pytest.approx(span_s, abs=COARSE_S)
        for before, after in itertools.pairwise(kept):  # nothing between two steps
            assert after.time_s - after.seconds == pytest.approx(before.time_s)


def test_what_takes_long_to_count_is_counted_seldom() -> None:
    """A backlog of millions: a hundredth of the time at most, and once a minute at least."""
    taken = Samples()
    for took_s, pause_s in ((0.0, FINE_S), (0.2, 20.0), (5.0, 60.0)):
        taken.take(0.0, 1000.0, 0, (0, 0), took_s)
        assert not taken.is_due(1000.0 + pause_s - 0.1)
        assert taken.is_due(1000.0 + pause_s)


def test_kill_loses_one_step_at_most(tmp_path: Path) -> None:
    """G7: what was saved before is there afterwards; what the plots lack is no longer than a step of the day."""
    taken = Samples()
    for at_s in range(0, 10_000, 10):
        if taken.take(float(at_s), float(at_s), 5, (at_s, 0), 0.0):
            taken.save(Fs(), str(tmp_path))
        (kept, *_) = [*reversed(samples.load(str(tmp_path))), Sample(0, 0, 0)]
        assert at_s - kept.time_s <= COARSE_S
    after = Samples(samples.load(str(tmp_path)))
    run(after, 20_000, 600)
    assert [each.time_s for each in day(after)][:2] == [300, 600]
    assert day(after)[-1].time_s == 20_600


def test_a_clock_that_is_set_back_leaves_no_future() -> None:
    """What was noted for later times goes; the steps from then on are whole."""
    taken = Samples()
    run(taken, 50_000, 4000)
    taken.take(47_000.0, 4010.0, 7, (500, 0), 0.0)
    assert [each for each in (*hour(taken), *day(taken)) if each.time_s > 47_000] == []
    assert hour(taken)[-1].pending == 7
    ahead = Samples([Sample(9e9, 300.0, 1)])  # of a daemon whose clock was ahead
    run(ahead, 1000, 20)
    assert [each.time_s for each in hour(ahead)] == [1010, 1020]


def test_a_daemon_that_ends_early_again_and_again_keeps_a_bounded_number() -> None:
    kept: list[Sample] = []
    for start in range(2000):
        taken = Samples(kept)
        run(taken, 40.0 * start, 20)
        taken.end()
        kept = day(taken)
    assert len(kept) <= 1000


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"Samples": 3}', '{"Samples": [{"a": 1}]}',
     '{"Samples": [{"time_s": NaN, "seconds": 1, "pending": 1}]}',
     '{"Samples": [{"time_s": 1e400, "seconds": 1, "pending": 1}]}', "[" * 100_000, "\x00"],
)  # fmt: skip
def test_a_damaged_file_is_no_samples(text: str, tmp_path: Path) -> None:
    assert samples.load(str(tmp_path)) == []
    (tmp_path / samples.FILE).write_text(text)
    assert samples.load(str(tmp_path)) == []


def asked(site: Site) -> list[dict[str, Any]]:
    answer = control.ask(reading.load(site.root / FILE).state, requests.GetSamples())
    found: list[dict[str, Any]] = answer["Day"]
    return found


def test_a_daemon_shows_what_earlier_ones_noted(tmp_path: Path) -> None:
    """The plots have data wherever a daemon ran: one that stopped has saved its last step, one that was killed has left
    the file of the one before as it was."""
    with Site(tmp_path) as site:
        file = site.root / ".fsrepl-site" / samples.FILE
        site.start()
        site.write("k", b"content")
        site.wait()
        assert site.stop() == 0
        (noted,) = json.loads(file.read_text())["Samples"]
        assert (noted["pending"], noted["completed"], noted["completed_bytes"]) == (0, 1, 7)
        site.start()
        assert asked(site) == [noted]
        site.kill()
        site.start()
        assert asked(site) == [noted]
