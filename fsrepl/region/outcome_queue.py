"""Outcomes of deliveries that are not written on their source's record yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from fsrepl.region.rotation import Rotation
from fsrepl.storage.journal.rows import Outcome

_BATCH = 512
_LATE_S, _LATE_MAX_S = 0.2, 15.0


class OutcomeQueue:
    """What was said of one region's deliveries and is not written down yet. Other threads may add to it."""

    def __init__(self) -> None:
        self._new: deque[Outcome] = deque()
        self._waiting: dict[str, deque[Outcome]] = {}
        """By source: in the order in which they came."""
        self._rotation: Rotation[str] = Rotation()
        self._late: list[Outcome] = []
        """Those that could not be written down, all tried again at _late_at_s."""
        self._late_at_s, self._wait_s = 0.0, _LATE_S

    def add(self, outcomes: Iterable[Outcome]) -> None:
        self._new.extend(outcomes)

    def take(self, now_s: float, limit: int = _BATCH) -> list[Outcome]:
        """Those to be written down now: in turns between sources, and all that are late if it is time for them."""
        while self._new:
            outcome = self._new.popleft()
            self._waiting.setdefault(outcome.delivery.source, deque()).append(outcome)
        waiting = {source: len(outcomes) for source, outcomes in self._waiting.items()}
        shares = self._rotation.shares(waiting, limit, now_s)
        outcomes = [self._waiting[source].popleft() for source, share in shares.items() for _ in range(share)]
        self._waiting = {source: left for source, left in self._waiting.items() if left}
        if self._late and now_s >= self._late_at_s:
            outcomes += self._late
            self._late, self._late_at_s = [], now_s + self._wait_s
            self._wait_s = min(2 * self._wait_s, _LATE_MAX_S)
        return outcomes

    def put_off(self, outcomes: Sequence[Outcome]) -> None:
        """After take: what could not be written down of it."""
        self._late += outcomes
        if not self._late:
            self._wait_s = _LATE_S

    def retry_late(self) -> None:
        self._late_at_s = 0.0

    @property
    def is_patient(self) -> bool:
        """Whether what is late has been so for a while, which needs no more saying."""
        return self._wait_s > 2 * _LATE_S

    def next_s(self) -> float | None:
        """The monotonic time when there is something to write down; None where nothing waits."""
        return 0.0 if self._new or self._waiting else self._late_at_s if self._late else None

    def clear(self) -> None:
        self._new.clear()
        self._waiting.clear()
        self._late.clear()
