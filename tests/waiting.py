"""Waiting for a condition. There is one deadline for all: only a broken build reaches it, however busy the machine
is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 60.0


def until(
    condition: Callable[[], T],
    what: str | Callable[[], str] = "what is waited for is so",
    *,
    timeout_s: float = DEADLINE_S,
    pause_s: float = 0.01,
) -> T:
    """Wait until a condition holds. Returns its value. what: the condition in words, or the message at the deadline."""
    until_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < until_s, f"not within {timeout_s} s: {what if isinstance(what, str) else what()}"
        time.sleep(pause_s)
    return found
