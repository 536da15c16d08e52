"""The machine's start, and whether its clock was set since a moment after it."""

from __future__ import annotations

import time

_SET_NS = 500_000_000
"""A clock that is corrected by less is not set."""
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_id() -> str:
    """The identity of this start of the machine. Source: random(4)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(int(time.time() - time.monotonic()))


def apart_ns() -> int:
    """The difference of the time of day and that since the boot: constant for as long as the clock is not set."""
    return time.time_ns() - time.clock_gettime_ns(_SINCE_BOOT)


def is_clock_set(before_ns: int) -> bool:
    """Whether the clock was set since the two were so far apart, in nanoseconds."""
    return abs(apart_ns() - before_ns) >= _SET_NS
