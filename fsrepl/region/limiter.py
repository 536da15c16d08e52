"""`[replication] limit`: how fast bytes may cross from one region to another, all transfers together.

Whoever has sent something says so (sent), and sends no more before that is paid for at the rate of the limit (wait_s).
Nobody sleeps in a region's thread: a way whose bytes are not paid for yet is passed over, like one that is
blocked, and its batches hold a quarter of a second's bytes, so that they become durable and visible that often. What
is larger goes in a lane, whose thread waits between its chunks. Every byte counts, those of small files that were in
memory included; what
is known to be a hole does not cross.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

_BATCH_S, _CHUNK_S = 0.25, 0.1
_BATCH_MIN_BYTES = 64 << 10
_SLICE_S = 0.1


class Limiter:
    """All transfers together, in bytes a second. 0: no limit. Used by all threads."""

    def __init__(self, rate: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._guard = threading.Lock()
        self._monotonic = monotonic
        self._rate = rate
        self._sent = self._paid = 0.0
        self._paid_at_s = monotonic()

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        with self._guard:
            self._pay()
            self._rate = rate

    def _pay(self) -> None:
        """What was sent is paid for as time goes by; nothing is saved up while nothing is sent."""
        now_s = self._monotonic()
        self._paid = min(self._sent, self._paid + self._rate * (now_s - self._paid_at_s)) if self._rate else self._sent
        self._paid_at_s = now_s

    def sent(self, count: int) -> None:
        """So many bytes have crossed."""
        with self._guard:
            self._pay()
            self._sent += count

    @property
    def position(self) -> float:
        """All that has crossed by now: see wait_s."""
        return self._sent

    def wait_s(self, position: float) -> float:
        """How long it is until all that had crossed at a mark is paid for. Others who send meanwhile delay nobody."""
        with self._guard:
            self._pay()
            return max(0.0, (position - self._paid) / self._rate) if self._rate else 0.0

    def pause(self, stopped: Callable[[], bool]) -> None:
        """Wait until all that has crossed is paid for, or the wait is stopped. Not in a region's thread."""
        position = self.position
        while (left_s := self.wait_s(position)) > 0 and not stopped():
            time.sleep(min(left_s, _SLICE_S))

    def paced(self, chunks: Iterable[bytes], stopped: Callable[[], bool]) -> Iterator[bytes]:
        """Chunks on their way to another region, no faster than the limit. Not in a region's thread."""
        for chunk in chunks:
            yield chunk
            self.sent(len(chunk))
            self.pause(stopped)

    @property
    def batch_bytes(self) -> float:
        """How much may be sent in one go, by a region's thread. What is larger goes in a lane."""
        return max(_BATCH_MIN_BYTES, self._rate * _BATCH_S) if self._rate else float("inf")

    def chunk_bytes(self, most: int) -> int:
        """How much a lane sends between two pauses."""
        return max(_BATCH_MIN_BYTES, min(most, int(self._rate * _CHUNK_S))) if self._rate else most
