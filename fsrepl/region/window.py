"""How many requests to a service may be under way at once. Pure.

As in TCP: the answer that there are too many (503 SlowDown) halves their number, and each round of answers after that
raises it by one. Answers to requests from before the last halving are not counted, since they say nothing about the new
number.
Source: AWS, "Reducing request rates"; RFC 5681, section 3.1.
"""

from __future__ import annotations

RECENT_S = 60.0


class Window:
    """See the module. Times are monotonic. permitted: how many the settings permit."""

    def __init__(self) -> None:
        self._size = 0.0
        """0: as many as are permitted."""
        self._halved_s = self._refused_s = 0.0
        self._why = ""

    def most(self, permitted: int) -> int:
        """How many may be under way."""
        return min(permitted, int(self._size) or permitted)

    def refused(self, permitted: int, begun_s: float, now_s: float, why: str) -> bool:
        """Note an answer that says that there are too many; whether fewer are possible. begun_s: of its request."""
        most = self.most(permitted)
        self._refused_s, self._why = now_s, why
        if begun_s >= self._halved_s:
            self._size, self._halved_s = max(1.0, most / 2), now_s
        return most > 1

    def answered(self) -> None:
        """Note an answer of any other kind."""
        if self._size:
            self._size += 1 / self._size

    def describe(self, permitted: int, now_s: float) -> str:
        """For people: that there are fewer than permitted, and why; empty where the last complaint is long ago."""
        most = self.most(permitted)
        is_recent = most < permitted and now_s - self._refused_s < RECENT_S
        return f"{most:,} of {permitted:,} requests at once: {self._why}" if is_recent else ""
