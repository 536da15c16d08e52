"""The live deliveries of a queue that only the journal has, since the queue keeps a limited number of them in memory.

Their source's region hands them over again, a page at a time and the oldest version first, when few are left in the
queue. The end of the list ends a round, and another one follows where deliveries were left out since it began. So a
destination that was away while a million files changed takes no more memory than one that was never away.
"""

from __future__ import annotations

import math

from fsrepl.storage.journal.rows import Delivery

LIVE_MAX = 10_000
"""New deliveries of one queue in memory, some 6 MB."""
AGAIN_MAX = 5_000
"""The most deliveries to be tried again, which so take no room from new ones; and the most that wait for that time."""
PAGE = 4_000
UNRECORDED_MAX = 10_000
"""A source with more outcomes than this to record hands over no page until it has recorded them."""
FEW = 1_000
"""A queue asks for a page where fewer are ready."""


class Overflow:
    """Whether deliveries were left out, and how far the present round through the journal is."""

    def __init__(self) -> None:
        self._due_s = math.inf
        """When the next round begins, in monotonic seconds; inf where nothing was left out since the last one began."""
        self._in_round = self._is_asked = False
        self._after: Delivery | None = None

    def leave(self, due_s: float = 0.0) -> None:
        """Note that a delivery was left out, which may be tried from a moment on."""
        self._due_s = min(self._due_s, due_s)

    def start_over(self) -> None:
        """Begin a round again: the source has lost count, or may hand over others now."""
        self._in_round = self._is_asked = False
        self._due_s = 0.0

    def retry_now(self) -> None:
        if self._due_s < math.inf:
            self._due_s = 0.0

    def next_s(self) -> float:
        """When the next page may be asked for; inf where nothing is left, or a page is on its way."""
        if self._is_asked:
            return math.inf
        return 0.0 if self._in_round else self._due_s

    def ask(self) -> Delivery | None:
        """Note that a page is asked for; the delivery that it follows, None at the beginning of a round."""
        if not self._in_round:
            self._in_round, self._after, self._due_s = True, None, math.inf
        self._is_asked = True
        return self._after

    def handed_over(self, last: Delivery | None) -> None:
        """Note that the page has come. last: the last delivery of it, None at the end of the list."""
        self._is_asked, self._in_round, self._after = False, last is not None, last
