"""How many requests a busy service gets at once."""

from __future__ import annotations

from fsrepl.region.window import RECENT_S, Window


def test_a_complaint_halves_and_each_round_of_answers_adds_one() -> None:
    """As TCP: down at once, up slowly, and never below one or above what the settings permit."""
    window = Window()
    assert window.most(64) == 64
    found = []
    for now_s in range(1, 8):
        assert window.refused(64, now_s, now_s, "SlowDown") == (now_s < 7)
        found.append(window.most(64))
    assert found == [32, 16, 8, 4, 2, 1, 1]
    for _ in range(1 + 2 + 3 + 4):
        window.answered()
    assert window.most(64) in (4, 5)
    for _ in range(64 * 64):
        window.answered()
    assert window.most(64) == 64


def test_answers_to_what_was_begun_before_do_not_count_again() -> None:
    """64 refusals of one burst are one complaint."""
    window = Window()
    for _ in range(64):
        window.refused(64, 1.0, 2.0, "SlowDown")
    assert window.most(64) == 32


def test_it_is_told_while_it_is_recent() -> None:
    """`status` says so for a minute after the last complaint."""
    window = Window()
    assert window.describe(64, 0.0) == ""
    window.refused(64, 1.0, 2.0, "SlowDown")
    assert window.describe(64, 3.0) == "32 of 64 requests at once: SlowDown"
    assert window.describe(8, 3.0) == ""
    assert window.describe(64, 2.0 + RECENT_S) == ""
