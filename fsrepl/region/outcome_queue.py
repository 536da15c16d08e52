"""Outcomes of deliveries that are not on their source's record yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from fsrepl.region.rotation import Rotation
from fsrepl.storage.journal.rows import Outcome

_BATCH, _BATCH_MAX, _SHARE = 512, 4096, 4
"""The number of outcomes that are recorded at once: a fourth of those that wait, within these limits. So the queue gets
no longer than four times the number that arrive meanwhile, from any number of destinations."""
_LATE_S, _LATE_MAX_S = 0.2, 15.0


class OutcomeQueue:
    """Unrecorded outcomes of one region's deliveries. Other threads may add to it."""

    def __init__(self) -> None:
        self._new: deque[Outcome] = deque()
        self._waiting: dict[str, deque[Outcome]] = {}
        """By source, in the order of arrival."""
        self._rotation: Rotation[str] = Rotation()
        self._late: list[Outcome] = []
        """Outcomes that could not be recorded, all tried again at _late_at_s."""
        self._late_at_s, self._wait_s = 0.0, _LATE_S

    def add(self, outcomes: Iterable[Outcome]) -> None:
        self._new.extend(outcomes)

    def take(self, now_s: float) -> list[Outcome]:
        """Take the outcomes to record now: round robin between sources, and all late ones when these are due."""
        while self._new:
            outcome = self._new.popleft()
            if (source := outcome.delivery.source) not in self._waiting:
                self._waiting[source] = deque()
            self._waiting[source].append(outcome)
        waiting = {source: len(outcomes) for source, outcomes in self._waiting.items()}
        limit = max(_BATCH, min(_BATCH_MAX, sum(waiting.values()) // _SHARE))
        shares = self._rotation.shares(waiting, limit, now_s)
        outcomes = [self._waiting[source].popleft() for source, share in shares.items() for _ in range(share)]
        self._waiting = {source: left for source, left in self._waiting.items() if left}
        if self._late and now_s >= self._late_at_s:
            outcomes += self._late
            self._late, self._late_at_s = [], now_s + self._wait_s
            self._wait_s = min(2 * self._wait_s, _LATE_MAX_S)
        return outcomes

    def put_off(self, outcomes: Sequence[Outcome]) -> None:
        """Return the taken outcomes that could not be recorded."""
        self._late += outcomes
        if not self._late:
            self._wait_s = _LATE_S

    def versions(self, source: str, destination: str) -> set[tuple[bytes, str]]:
        """Keys and version ids of the outcomes of one way that are not recorded yet."""
        waiting = self._waiting.get(source, ())
        every = (each.delivery for each in (*self._new.copy(), *waiting, *self._late))
        return {(each.key, each.id) for each in every if (each.source, each.destination) == (source, destination)}

    def count(self, source: str) -> int:
        """The number of outcomes of one source that are not recorded yet; those that arrived in this moment count for
        every source."""
        late = sum(each.delivery.source == source for each in self._late)
        return len(self._new) + len(self._waiting.get(source, ())) + late

    def retry_late(self) -> None:
        self._late_at_s = 0.0

    @property
    def is_patient(self) -> bool:
        """Whether outcomes have been late for a while, so that no more needs to be logged."""
        return self._wait_s > 2 * _LATE_S

    def next_s(self) -> float | None:
        """The monotonic time when the next outcome is due; None where none is queued."""
        return 0.0 if self._new or self._waiting else self._late_at_s if self._late else None

    def clear(self) -> None:
        self._new.clear()
        self._waiting.clear()
        self._late.clear()
