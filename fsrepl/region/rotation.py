"""Round robin between buckets: the order in which waiting ones are served, and the share of each.

The one served longest ago comes first, so that one file in a quiet bucket precedes the rest of another
bucket's burst. While several wait, none takes more than an equal share of a batch; unused parts of shares
go to the others. A share is never so small that its sync costs more than its work: a bucket without room comes first
next time. Where several were served lately, batches are small, since the next one waits for the current batch;
a single one gets whole batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

SHARE_MIN = 64
LATELY_S = 10.0
SMALLER = 4

Member = TypeVar("Member", bound=Hashable)


class Rotation(Generic[Member]):
    """The order of service among members that come and go. Used by one thread, or under one lock."""

    def __init__(self) -> None:
        self._served: dict[Member, int] = {}
        self._served_at_s: dict[Member, float] = {}
        self._count = itertools.count(1)

    def shares(self, waiting: Mapping[Member, int], limit: int, now_s: float) -> dict[Member, int]:
        """The number of items for each to take now, in the order of service; at most limit in all.

        Every member of the result counts as served.
        """
        waiting = {member: number for member, number in waiting.items() if number}
        if not waiting:
            return {}
        if (self._lately(now_s) | waiting.keys()) - {next(iter(waiting))}:
            limit = max(SHARE_MIN, limit // SMALLER)
        in_order = sorted(waiting, key=lambda member: self._served.get(member, 0))  # sorted() keeps the order of equals
        claimed = itertools.accumulate((min(waiting[member], SHARE_MIN) for member in in_order), initial=0)
        in_order = [member for member, before in zip(in_order, claimed, strict=False) if before < limit]
        shares = dict.fromkeys(in_order, 0)
        left = limit
        for number, member in enumerate(sorted(in_order, key=waiting.__getitem__)):
            shares[member] = min(waiting[member], left // (len(in_order) - number))
            left -= shares[member]
        self._served = {member: count for member, count in self._served.items() if member in waiting}
        for member in in_order:
            self._served[member], self._served_at_s[member] = next(self._count), now_s
        return shares

    def _lately(self, now_s: float) -> set[Member]:
        self._served_at_s = {member: at_s for member, at_s in self._served_at_s.items() if now_s - at_s < LATELY_S}
        return set(self._served_at_s)
