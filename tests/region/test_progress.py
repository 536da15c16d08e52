"""Progress of one transfer: how fast, how long still, and what the log says of it."""

from __future__ import annotations

import pytest

from fsrepl.region import limits
from fsrepl.region.limits import Progress, Rate
from fsrepl.region.verifications import Verifications


def test_a_rate_is_that_of_the_last_seconds() -> None:
    """Section 9: what was there before does not count, nor does what was fast a minute ago."""
    rate = Rate(100.0)
    rate.came_to(5000, 100.0)
    for second in range(1, 31):
        rate.came_to(5000 + second * 1000, 100.0 + second)
    assert rate.per_s(130.0) == pytest.approx(1000)
    for second in range(31, 61):
        rate.came_to(35_000 + (second - 30) * 10, 100.0 + second)
    assert rate.per_s(160.0) == pytest.approx(10)
    assert rate.per_s(175.0) == 0


def test_a_verification_of_another_process_is_known_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: bytes, rate and time left, and a line a minute; one that was killed is forgotten."""
    now_s = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now_s)
    found, lines = Verifications(), []
    for second in range(1, 71):
        now_s = 1000.0 + second
        found.note("a", "east/src", second * 50, 10_000)
        found.note("b", "east/other", 10, 5)
        lines += [each.news(now_s) for each in found.under_way()]
    first, other = (each.describe(now_s) for each in found.under_way())
    assert (first["key"], first["source"], first["destination"], first["what"]) == (
        "", "east/src", "east/src", "verifying",
    )  # fmt: skip
    assert (first["bytes_done"], first["bytes_per_second"], first["eta_seconds"]) == (3500, 50, 130.0)
    assert (other["bytes_done"], other["bytes_total"]) == (10, 10)
    line, *_ = filter(None, lines)
    assert line == "verifying bucket=east/src done_bytes=3050 size_bytes=10000 bytes_per_s=50 left_s=139"
    found.end("b")
    assert len(found.under_way()) == 1
    now_s += 11
    assert found.under_way() == []
    found.end("a")


@pytest.mark.parametrize("to", ["west/dst", "east/src"])
def test_one_that_takes_long_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """Section 9: bytes, rate and time left; a short one has no line but the one at its end."""
    now_s = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now_s)
    progress = Progress(b"k", "1", "east/src", to, 10_000, began_at_s=now_s)
    lines = []
    for second in range(1, 131):
        now_s = 1000.0 + second
        progress.came_to(second * 50)
        progress.bytes_crossed = second * 40
        lines.append(progress.news(now_s))
    first, second_ = [line for line in lines if line]
    assert (lines.index(first), lines.index(second_)) == (59, 119)
    assert first.endswith("done_bytes=3000 size_bytes=10000 bytes_per_s=50 left_s=140")
    assert ("to=west/dst crossed_bytes=2400" in first) == (to == "west/dst")
    assert first.startswith("replicating" if to == "west/dst" else "capturing")


def test_what_is_only_read_back_has_a_rate_and_a_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: of a renamed file nothing crosses, and all of it is verified; also in the log, once a minute."""
    now_s = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now_s)
    progress = Progress(b"k", "1", "east/src", "west/dst", 10_000, began_at_s=now_s)
    progress.came_to(10_000)
    lines = []
    for second in range(1, 71):
        now_s = 1000.0 + second
        progress.verified_to(second * 50)
        lines.append(progress.news(now_s))
    document = progress.describe(now_s)
    assert (document["bytes_per_second"], document["eta_seconds"]) == (50, 130.0)
    (line,) = filter(None, lines)
    assert line.endswith("done_bytes=10000 verified_bytes=3000 size_bytes=10000 bytes_per_s=50 left_s=140")
