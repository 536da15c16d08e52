"""`[replication] limit`: the rate at which bytes may cross between regions, all transfers together.

No more than the rate allows crosses in any ten seconds, within 5 %, which is half a second's bytes. A background worker
claims the bytes that it is about to send, a tenth of a second's at a time, and waits until the limit has permitted all
earlier claims; so all workers together are ahead by one piece at most.
A region's thread never sleeps. It reports the bytes that it sent, and passes over a delivery queue, like a blocked one,
until the limit has permitted them. Its batches hold a tenth of a second's bytes too, so that they become durable and
visible that often; a larger object goes to a worker. Every byte counts, also those of small files that were in memory;
known holes do not cross.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

_PIECE_S = 0.1
_PIECE_MIN_BYTES = 16 << 10
_SLICE_S = 0.1


class Limiter:
    """All transfers together, in bytes a second. 0: no limit. Used by all threads."""

    def __init__(
        self, rate: float, monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._guard = threading.Lock()
        self._monotonic, self._sleep = monotonic, sleep
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
            self._rate, self._paid_at_s = rate, self._monotonic()

    def _pay(self) -> None:
        """Account for the time since the last call. While nothing is sent, nothing is saved up."""
        if not self._rate:
            self._paid = self._sent
            return
        now_s = self._monotonic()
        self._paid = min(self._sent, self._paid + self._rate * (now_s - self._paid_at_s))
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
            unpaid = min(position, self._sent) - self._paid  # a claim before it may have been given back
            return max(0.0, unpaid / self._rate) if self._rate else 0.0

    def pause(self, stopped: Callable[[], bool]) -> None:
        """Wait until all bytes sent so far are paid for, or the wait is stopped. Not in a region's thread."""
        self._wait(self.position, stopped)

    def claim(self, count: int, stopped: Callable[[], bool]) -> bool:
        """Count bytes that are to be sent, and wait until those before are paid for. Not in a region's thread.

        Where fewer are sent, the others are given back by sent(), as a negative number. False: the wait was stopped,
        and nothing is counted.
        """
        with self._guard:
            self._pay()
            position = self._sent
            self._sent += count
        self._wait(position, stopped)
        if is_stopped := stopped():
            self.sent(-count)
        return not is_stopped

    def _wait(self, position: float, stopped: Callable[[], bool]) -> None:
        while (left_s := self.wait_s(position)) > 0 and not stopped():
            self._sleep(min(left_s, _SLICE_S))

    def paced(self, chunks: Iterable[bytes], stopped: Callable[[], bool]) -> Iterator[bytes]:
        """Chunks to another region, in pieces, no faster than the limit. Not in a region's thread."""
        for chunk in chunks:
            most = self.chunk_bytes(len(chunk))
            for at in range(0, len(chunk), most or 1):  # an empty object is one empty chunk
                piece = chunk[at : at + most]
                self.claim(len(piece), stopped)
                yield piece

    @property
    def batch_bytes(self) -> float:
        """Number of bytes that a region's thread may send at once. A larger object goes to a background worker."""
        return max(_PIECE_MIN_BYTES, self._rate * _PIECE_S) if self._rate else float("inf")

    def chunk_bytes(self, most: int) -> int:
        """Number of bytes that a background worker claims at once."""
        return min(most, max(_PIECE_MIN_BYTES, int(self._rate * _PIECE_S))) if self._rate else most
