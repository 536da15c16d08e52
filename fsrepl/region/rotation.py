"""Turns between buckets: which of those that have something waiting are served next, and how much of each.

Whoever was served longest ago comes first, so that one file in a quiet bucket goes before the rest of another
bucket's burst. While several wait none takes more than an equal share of a batch; what some leave of theirs the
others get. A share is never so small that its sync costs more than its work: who finds no room comes first
next time. Where several had something lately, batches are small, since whoever is next waits for the one in hand;
one that is alone gets whole batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

SHARE_MIN = 64
LATELY_S = 10.0
SMALLER = 4

Who = TypeVar("Who", bound=Hashable)


class Rotation(Generic[Who]):
    """The order of service among some that come and go. Used by one thread, or under one lock."""

    def __init__(self) -> None:
        self._served: dict[Who, int] = {}
        self._served_at_s: dict[Who, float] = {}
        self._turns = itertools.count(1)

    def shares(self, waiting: Mapping[Who, int], limit: int, now_s: float) -> dict[Who, int]:
        """How many each may do now, of those it has waiting, in the order of service; limit in all at most.

        Whoever is named in the answer counts as served.
        """
        waiting = {who: number for who, number in waiting.items() if number}
        if not waiting:
            return {}
        if (self._lately(now_s) | waiting.keys()) - {next(iter(waiting))}:
            limit = max(SHARE_MIN, limit // SMALLER)
        in_order = sorted(waiting, key=lambda who: self._served.get(who, 0))  # sorted() keeps the order of equals
        claimed = itertools.accumulate((min(waiting[who], SHARE_MIN) for who in in_order), initial=0)
        in_order = [who for who, before in zip(in_order, claimed, strict=False) if before < limit]
        shares = dict.fromkeys(in_order, 0)
        left = limit
        for number, who in enumerate(sorted(in_order, key=waiting.__getitem__)):
            shares[who] = min(waiting[who], left // (len(in_order) - number))
            left -= shares[who]
        self._served = {who: turn for who, turn in self._served.items() if who in waiting}
        for who in in_order:
            self._served[who], self._served_at_s[who] = next(self._turns), now_s
        return shares

    def _lately(self, now_s: float) -> set[Who]:
        self._served_at_s = {who: at_s for who, at_s in self._served_at_s.items() if now_s - at_s < LATELY_S}
        return set(self._served_at_s)
