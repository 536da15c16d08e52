"""The pending deliveries from one source to one destination: ready now, or waiting for their next try.

Live deliveries are in memory, up to a number: see overflow.py. Backfill deliveries stay in the journal and are read a
portion at a time, oldest version first, and only while no live delivery to that destination is ready: a backfill of a
million versions takes no more memory than one of a hundred, and a live write waits for one portion at most.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.region.overflow import AGAIN_MAX, FEW, LIVE_MAX, Overflow
from fsrepl.storage.journal.rows import Delivery

PORTION = 64
PORTION_BYTES = 16 << 20
_LOOKS_MAX = 16
_NOTES_MAX = 10_000
_SLOT_LOOK_S = 0.5
_REASONS_MAX = 3
_ROOM_BYTES, _ROOM_INODES = 1 << 20, 16
"""A filesystem with less of one of them is full."""

At = tuple[bytes, str]
"""A key and a version id."""
Reader = Callable[[Delivery | None, int], list[Delivery]]
"""Reads at most that many backfill deliveries after the given one (None: from the beginning)."""


class Queue:
    """Deliveries from one source to one destination. Used by the destination's region alone."""

    is_bounded = True
    """Whether the journal here has what finds no room."""

    def __init__(self, source: str, destination: str, copying: threading.Semaphore) -> None:
        self.source, self.destination = source, destination
        self.ready: deque[Delivery] = deque()
        self.again: deque[Delivery] = deque()
        self.later: list[tuple[float, int, Delivery]] = []
        self.notes: dict[At, tuple[float, str, int]] = {}
        """Temporary failures: time of the next try, reason, number of tries."""
        self.known: set[At] = set()
        self.overflow = Overflow()
        self.backlog = Backlog(self.notes, copying)
        self.blocked_until_s = 0.0
        self.blocked_why = ""
        self.paid_at = self.paced_until_s = 0.0
        """Limiter position after the last send, and the time when that will be paid for: see region/limiter.py."""
        self.attempts = 0
        self.lacks_room = False
        """Whether a delivery met a full disk since room was last looked for."""
        self._room = 0, 0
        """The room that was there when deliveries were tried again because of it."""
        self._tickets = itertools.count()

    def blocked(self, now_s: float) -> Document | None:
        """Why nothing is sent to the destination for now, for `status`; read by other threads."""
        if not self.blocked_why:
            return None
        return {
            "source": self.source,
            "destination": self.destination,
            "why": self.blocked_why,
            "seconds": max(0.0, self.blocked_until_s - now_s),
        }

    def retries(self, key: bytes, now_s: float) -> Iterator[Document]:
        """Temporary failures of a key and the times of their next tries, for `why`; read by other threads."""
        for (noted, version), (due_s, why, attempts) in list(self.notes.items()):
            if noted == key:
                yield {
                    "source": self.source,
                    "destination": self.destination,
                    "key": keys.shown(key),
                    "version": version,
                    "why": why,
                    "seconds": max(0.0, due_s - now_s),
                    "attempts": attempts,
                }

    def reasons(self) -> Iterator[Document]:
        """Number of temporary failures by the most frequent reasons, for `status`; read by other threads."""
        whys = Counter(why for _, why, _ in list(self.notes.values()))
        for why, number in whys.most_common(_REASONS_MAX):
            yield {"source": self.source, "destination": self.destination, "why": why, "deliveries": number}

    def add(self, delivery: Delivery) -> None:
        """Queue a live delivery; where there are too many already it stays in the journal alone."""
        if (delivery.key, delivery.id) in self.known:
            return
        line = self._line(delivery)
        if self.is_bounded and len(line) >= (LIVE_MAX if line is self.ready else AGAIN_MAX):
            self.overflow.leave()
            return
        self.known.add((delivery.key, delivery.id))
        line.append(delivery)

    def add_page(self, page: Iterable[Delivery], last: Delivery | None, now_s: float) -> None:
        """Queue deliveries of the journal that were asked for, but those that wait for their next try. last: see
        Overflow.handed_over."""
        for each in page:
            due_s = self.notes.get((each.key, each.id), (0.0,))[0]
            if due_s > now_s and (each.key, each.id) not in self.known:
                self.overflow.leave(due_s)
            else:
                self.add(each)
        self.overflow.handed_over(last)

    def wants_more_s(self) -> float:
        """The monotonic time from which it is to ask for deliveries that only the journal has; inf where it needs
        none."""
        if len(self.ready) + len(self.again) >= FEW:
            return math.inf
        return max(self.overflow.next_s(), self.blocked_until_s)

    def _line(self, delivery: Delivery) -> deque[Delivery]:
        """The queue for a delivery: of new ones, or of those that are tried again, of which there may be many."""
        is_again = delivery.since_ns > delivery.created_ns or (delivery.key, delivery.id) in self.notes
        return self.again if is_again else self.ready

    def count_ready(self, now_s: float) -> int:
        """Number of live deliveries that may be tried now."""
        if now_s < max(self.blocked_until_s, self.paced_until_s):
            return 0
        while self.later and self.later[0][0] <= now_s:
            self.again.append(heapq.heappop(self.later)[2])
        return len(self.ready) + len(self.again)

    def take(self, limit: int, now_s: float, bytes_max: float = math.inf) -> list[Delivery]:
        """Take the live deliveries to try now: at most limit, and at most bytes_max bytes or a single one.

        Every fourth is one that is tried again, so that neither kind waits for all of the other.
        """
        taken: list[Delivery] = []
        size = 0
        for _ in range(min(limit, self.count_ready(now_s))):
            line = self.again if self.again and (not self.ready or len(taken) % 4 == 3) else self.ready
            size += line[0].size
            if taken and size > bytes_max:
                break
            taken.append(line.popleft())
        return taken

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Return taken deliveries that no time was left for: they are taken next, before all others."""
        for each in reversed(deliveries):
            if each.job:
                self.backlog.put_back(each)
            else:
                self._line(each).appendleft(each)

    def take_backlog(self, read: Reader, large_bytes: int, now_s: float, bytes_max: float = math.inf) -> list[Delivery]:
        """Take a portion of backfill deliveries. The caller has seen that no live one is ready."""
        if now_s < max(self.blocked_until_s, self.paced_until_s):
            return []
        return self.backlog.take(read, large_bytes, now_s, bytes_max)

    def done(self, delivery: Delivery) -> None:
        """Forget a delivery whose outcome the destination has reported."""
        at = delivery.key, delivery.id
        if at in self.notes:
            del self.notes[at]
        if delivery.job:
            self.backlog.done(delivery)
        else:
            self.known.discard(at)

    def put_off(self, delivery: Delivery, due_s: float, why: str) -> None:
        """Note a temporary failure, tried again at due_s."""
        at = delivery.key, delivery.id
        if delivery.job:
            self.backlog.put_off(delivery, due_s)
            if at not in self.notes and len(self.notes) >= _NOTES_MAX:
                return  # tried again with the next portion
        elif self.is_bounded and len(self.later) >= AGAIN_MAX:
            self.known.discard(at)
            self.overflow.leave(due_s)
            if at not in self.notes and len(self.notes) >= _NOTES_MAX:
                return
        else:
            heapq.heappush(self.later, (due_s, next(self._tickets), delivery))
        self.notes[at] = (due_s, why, self.attempts_of(delivery) + 1)

    def attempts_of(self, delivery: Delivery) -> int:
        """Number of failed tries of a delivery."""
        return self.notes.get((delivery.key, delivery.id), (0.0, "", 0))[2]

    def put_back(self, deliveries: Sequence[Delivery], until_s: float, why: str) -> None:
        """Return deliveries to a destination that is unavailable: nothing is tried before until_s."""
        self.blocked_until_s, self.blocked_why = until_s, why
        self.give_back(deliveries)

    def withdraw_markers(self) -> None:
        """Forget the markers that wait here, which their source holds from now on."""
        for delivery in [d for d in (*self.ready, *self.again, *(entry[2] for entry in self.later)) if d.marker]:
            self.known.discard((delivery.key, delivery.id))
            self.notes.pop((delivery.key, delivery.id), None)
        self.ready = deque(d for d in self.ready if not d.marker)
        self.again = deque(d for d in self.again if not d.marker)
        self.later = [entry for entry in self.later if not entry[2].marker]
        heapq.heapify(self.later)

    def retry_now(self) -> None:
        """Try every delivery now, after a change that may let it through."""
        self.blocked_until_s, self.attempts = 0.0, 0
        self.again.extend(delivery for _, _, delivery in sorted(self.later))
        self.later.clear()
        for at, (_, why, attempts) in list(self.notes.items()):
            self.notes[at] = (0.0, why, attempts)
        self.overflow.retry_now()
        self.backlog.retry_now()

    def look_for_room(self, free_bytes: int, free_inodes: int) -> None:
        """Try every delivery now if the disk was full and is so no longer. What does not fit all the same waits for its
        time, until there is twice as much room."""
        if free_bytes < _ROOM_BYTES or free_inodes < _ROOM_INODES:
            self._room = 0, 0
        elif free_bytes > 2 * self._room[0] or free_inodes > 2 * self._room[1]:
            self.lacks_room, self._room = False, (free_bytes, free_inodes)
            self.retry_now()

    def next_s(self) -> float | None:
        """The monotonic time of the next try; None where nothing waits."""
        due_s = 0.0 if self.ready or self.again else self.later[0][0] if self.later else math.inf
        due_s = min(due_s, self.backlog.next_s(), self.wants_more_s())
        return None if due_s == math.inf else max(due_s, self.blocked_until_s, self.paced_until_s)


class Backlog:
    """Pending backfill deliveries from one source to one destination, read from the journal in rounds.

    A temporary failure is passed over until its delay is over, a delivery under way until its source has
    recorded its outcome. The end of the list ends a round. Another round follows as long as
    deliveries were passed over, or added behind the reader.
    """

    def __init__(self, notes: dict[At, tuple[float, str, int]], copying: threading.Semaphore) -> None:
        self._notes, self._slots = notes, copying
        self._open = False
        self._last: Delivery | None = None
        self._again = False
        self._due_s = 0.0
        self._passed_over_s = math.inf
        self._under_way: set[At] = set()
        self._met_under_way = False
        self._in_background: set[At] = set()
        self._lacks_slot = False

    def wake(self) -> None:
        """Read the list, or read it once more: deliveries may have been added."""
        if self._open and self._last is not None:
            self._again = True
        else:
            self._open, self._due_s = True, 0.0

    def take(self, read: Reader, large_bytes: int, now_s: float, bytes_max: float = math.inf) -> list[Delivery]:
        """A portion to try now. A large object ends the portion where no worker is free for backfills."""
        portion: list[Delivery] = []
        size = 0
        if not self._open or now_s < self._due_s:
            return portion
        for _ in range(_LOOKS_MAX):
            rows = read(self._last, PORTION)
            for delivery in rows:
                if portion and size + delivery.size > min(PORTION_BYTES, bytes_max):
                    return portion
                if self._is_next(delivery, now_s):
                    if delivery.size >= large_bytes and not self._takes_slot(delivery):
                        self._lacks_slot, self._due_s = True, now_s + _SLOT_LOOK_S
                        return portion
                    self._under_way.add((delivery.key, delivery.id))
                    portion.append(delivery)
                    size += delivery.size
                self._last = delivery
            if len(rows) < PORTION:
                self._end_round()
            if portion or not self._open or self._due_s > now_s:
                break
        return portion

    def _is_next(self, delivery: Delivery, now_s: float) -> bool:
        at = delivery.key, delivery.id
        if at in self._under_way:
            self._met_under_way = True
            return False
        due_s = self._notes[at][0] if at in self._notes else 0.0
        if due_s > now_s:
            self._passed_over_s = min(self._passed_over_s, due_s)
            return False
        return True

    def _takes_slot(self, delivery: Delivery) -> bool:
        if not self._slots.acquire(blocking=False):
            return False
        self._in_background.add((delivery.key, delivery.id))
        return True

    def _end_round(self) -> None:
        self._last = None
        self._due_s = 0.0 if self._again else self._passed_over_s
        self._open = self._due_s < math.inf
        self._again, self._passed_over_s = False, math.inf

    def done(self, delivery: Delivery) -> None:
        """Free the worker of a delivery. The journal says pending until the source has settled it."""
        at = delivery.key, delivery.id
        if at in self._in_background:
            self._in_background.discard(at)
            self._slots.release()
            if self._lacks_slot:
                self._lacks_slot, self._due_s = False, 0.0

    def settled(self, deliveries: Iterable[Delivery]) -> None:
        """Note outcomes recorded at their source. A delivery that is pending again was passed over until now."""
        self._under_way.difference_update((each.key, each.id) for each in deliveries)
        if self._met_under_way:
            self._met_under_way = False
            self.wake()

    def put_off(self, delivery: Delivery, due_s: float) -> None:
        self.done(delivery)
        self._under_way.discard((delivery.key, delivery.id))
        if self._open:
            self._passed_over_s = min(self._passed_over_s, due_s)
        else:
            self._open, self._due_s = True, due_s

    def put_back(self, delivery: Delivery) -> None:
        self.done(delivery)
        self._under_way.discard((delivery.key, delivery.id))
        self.wake()

    def start_over(self) -> None:
        """Forget deliveries under way after the source came back: outcomes were not recorded while it was away."""
        self._under_way.clear()
        self.wake()

    def retry_now(self) -> None:
        if self._open:
            self._due_s = 0.0

    def next_s(self) -> float:
        return self._due_s if self._open else math.inf

    def close(self) -> None:
        """Free the workers, when the replication of this source to this destination is removed."""
        while self._in_background:
            self._in_background.pop()
            self._slots.release()


def retry_delay_s(attempts: int, retry_max_s: float, chance: float | None = None) -> float:
    """Delay after so many failed tries: doubling from a second, capped, with up to a quarter of jitter."""
    chance = random.random() if chance is None else chance
    return min(retry_max_s, 2.0 ** min(attempts, 30) / 2) * (1 - chance / 4)
