"""`[replication] limit`: the rate at which bytes may cross between regions, all transfers together.

A sender reports its bytes (sent), and sends no more before they are paid for at the rate of the limit (wait_s).
A region's thread never sleeps: a delivery queue whose bytes are not paid for yet is passed over, like a
blocked one, and its batches hold a quarter of a second's bytes, so that they become durable and visible that often.
A larger object is sent by a background worker, whose thread waits between chunks. Every byte counts, those of small
files that were in memory included; known holes do not cross.
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
        """Account for the time since the last call. While nothing is sent, nothing is saved up."""
        now_s = self._monotonic()
        self._paid = min(self._sent, self._paid + self._rate * (now_s - self._paid_at_s)) if self._rate else self._sent
        self._paid_at_s = now_s

    def sent(self, count: int) -> None:
        """Count bytes that have crossed."""
        with self._guard:
            self._pay()
            self._sent += count

    @property
    def position(self) -> float:
        """Total of the bytes that have crossed: see wait_s."""
        return self._sent

    def wait_s(self, position: float) -> float:
        """Time until the bytes up to a position are paid for. Bytes that others send meanwhile do not prolong it."""
        with self._guard:
            self._pay()
            return max(0.0, (position - self._paid) / self._rate) if self._rate else 0.0

    def pause(self, stopped: Callable[[], bool]) -> None:
        """Wait until all bytes sent so far are paid for, or the wait is stopped. Not in a region's thread."""
        position = self.position
        while (left_s := self.wait_s(position)) > 0 and not stopped():
            time.sleep(min(left_s, _SLICE_S))

    def paced(self, chunks: Iterable[bytes], stopped: Callable[[], bool]) -> Iterator[bytes]:
        """Chunks to another region, no faster than the limit. Not in a region's thread."""
        for chunk in chunks:
            yield chunk
            self.sent(len(chunk))
            self.pause(stopped)

    @property
    def batch_bytes(self) -> float:
        """Number of bytes that a region's thread may send at once. A larger object goes to a background worker."""
        return max(_BATCH_MIN_BYTES, self._rate * _BATCH_S) if self._rate else float("inf")

    def chunk_bytes(self, most: int) -> int:
        """Number of bytes that a background worker sends between two pauses."""
        return max(_BATCH_MIN_BYTES, min(most, int(self._rate * _CHUNK_S))) if self._rate else most
