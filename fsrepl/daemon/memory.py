"""How a process of the daemon uses memory: one heap for all threads, and garbage is rarely looked for."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8
_GARBAGE_LOOK = 10_000
"""After so many new objects that could be in cycles the youngest ones are looked through for garbage."""


def prepare() -> None:
    """Set both for this process. Before it has threads: each keeps the heap that it began with."""
    _use_one_heap()
    # What the program is made of is never garbage, and batches of small values leave next to none in cycles: looking
    # for it after each 700 new ones took a twentieth of a burst.
    gc.freeze()
    gc.set_threshold(_GARBAGE_LOOK)


def _use_one_heap() -> None:
    """Have the threads share one heap, where the C library is glibc.

    It gives them several, and what one thread frees serves only those with the same heap: rows, pages and batches go
    from thread to thread here, which left half of the memory unused. Threads hardly wait for one another, since
    nearly all that they allocate is while they have Python's lock. Source: mallopt(3).
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 1)
