"""`--since` and `--at`, as people write a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.cli import lifecycle, safety
from fsrepl.errors import Usage
from fsrepl.model import clock


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2026-11-24", "2026-11-24T00:00:00"),
        ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00"),
        ("2026-11-24 10:00:00+02:00", "2026-11-24T08:00:00"),
        ("1h", "2026-11-24T11:00:00"),
        ("90m", "2026-11-24T10:30:00"),
        ("2d", "2026-11-22T12:00:00"),
    ],
)
def test_a_time_a_date_or_how_long_ago(text: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clock").write_text("2026-11-24T12:00:00Z")
    monkeypatch.setenv("FSREPL_CLOCK", str(tmp_path / "clock"))
    assert safety._moment(text) == f"{found}.000000000Z"


@pytest.mark.parametrize("text", ["1x", "yesterday", "2026", "2026-02-30", "2026-11-24T25:00:00Z", ""])
def test_what_is_no_time_is_quoted_as_it_was_written(text: str) -> None:
    """Section 5: what, where, and what to write."""
    for moment in (safety._moment, lifecycle._moment):
        with pytest.raises(Usage, match=f"'{text}' is neither a date such as 2026-11-24 nor a time such as"):
            moment(text)
    with pytest.raises(ValueError, match=f"'{text}'"):
        clock.moment(text)
