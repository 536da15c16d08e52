"""A site whose clock the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.commands import lifecycle
from tests.world import World

START = "2026-05-01T10:00:00Z"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Sets the current time. A command does not wait between its tries, since nothing else goes on meanwhile."""
    monkeypatch.setattr(lifecycle, "_PATIENCE_S", 0.0)
    path = tmp_path / "now"
    path.write_text(START)
    monkeypatch.setenv("FSREPL_CLOCK", str(path))
    return path.write_text


@pytest.fixture
def world(tmp_path: Path, clock: Callable[[str], object]) -> Iterator[World]:
    with World(tmp_path / "world") as found:
        yield found
