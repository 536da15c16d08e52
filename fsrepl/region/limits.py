"""The bandwidth limit, and the progress of one transfer."""

from __future__ import annotations

import time
from collections import deque

from msgspec import Struct, field

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.region.limiter import Limiter

_RATE_S, _SAMPLE_S = 10.0, 0.2
"""A rate is that of the last seconds, from samples at this distance."""
_TOLD_S = 60.0
"""A transfer that takes longer has a line in the log this often."""
_STALLED_S = 10.0
"""A transfer without progress for so long is reported as stalled."""


class Rate:
    """Bytes a second over the last seconds."""

    def __init__(self, now_s: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now_s, 0)])

    def came_to(self, position: int, now_s: float) -> None:
        """Note a position. Bytes before the first position are not counted."""
        if len(self._samples) == 1 and not self._samples[0][1]:
            self._samples[0] = (self._samples[0][0], position)
            return
        if now_s - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now_s, position))
            while len(self._samples) > 2 and now_s - self._samples[1][0] >= _RATE_S:
                self._samples.popleft()

    def per_s(self, now_s: float) -> float:
        samples = list(self._samples)
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        return max(0.0, (last - first) / max(_SAMPLE_S, last_s - first_s)) if now_s - last_s < _RATE_S else 0.0


class Progress(Struct):
    """Progress of one transfer; read by status while it runs. stop: the transfer is no longer needed.

    A capture has one too: from a bucket's view into its store, so that source and destination are the
    bucket, and there is no version yet.
    """

    key: bytes
    version: str
    source: str
    destination: str
    bytes_total: int
    bytes_done: int = 0
    bytes_verified: int = 0
    """The part of bytes_done that was read back and hashed."""
    what: str = ""
    """The kind of work, where it is neither a transfer nor a capture."""
    bytes_crossed: int = 0
    """The bytes that were sent in this try: the destination had the others."""
    stop: bool = False
    unwanted: bool = False
    """Stopped because its delivery has ended: nothing of it is kept for a later try."""
    paced: bool = False
    """The transfer waits for the limit."""
    moved_at_s: float = field(default_factory=time.monotonic)
    """Time of the last progress, or of the start."""

    began_at_s: float = field(default_factory=time.monotonic)
    told_at_s: float = 0.0
    """Time of its last line in the log."""
    _rate: Rate = field(default_factory=lambda: Rate(time.monotonic()))
    _read_rate: Rate = field(default_factory=lambda: Rate(time.monotonic()))
    """The speed at which the copy is read back."""

    def came_to(self, bytes_done: int) -> None:
        self.bytes_done, self.moved_at_s = min(bytes_done, self.bytes_total), time.monotonic()
        self._rate.came_to(self.bytes_done, self.moved_at_s)

    def verified_to(self, bytes_verified: int) -> None:
        self.bytes_verified, self.moved_at_s = bytes_verified, time.monotonic()
        self._read_rate.came_to(bytes_verified, self.moved_at_s)

    def _left(self, now_s: float) -> tuple[float, int]:
        """How fast it is, in bytes a second, and how many bytes are left. Once all is copied, both are those of the
        bytes to be read back."""
        if self.bytes_done >= self.bytes_total and self.bytes_verified:
            return self._read_rate.per_s(now_s), self.bytes_total - self.bytes_verified
        return self._rate.per_s(now_s), self.bytes_total - self.bytes_done

    def news(self, now_s: float) -> str:
        """The text to log once a minute, where the work takes longer than that; empty at other times."""
        if now_s - max(self.began_at_s, self.told_at_s) < _TOLD_S:
            return ""
        self.told_at_s = now_s
        (rate, left_bytes), left_s = self._left(now_s), ""
        if rate >= 1 and left_bytes > 0:
            left_s = f" left_s={left_bytes / rate:.0f}"
        verified = f" verified_bytes={self.bytes_verified}" if self.bytes_verified else ""
        what = self.what or ("capturing" if self.source == self.destination else "replicating")
        where = "" if self.source == self.destination else f" to={self.destination} crossed_bytes={self.bytes_crossed}"
        key = f' key="{keys.shown(self.key)}"' if self.key else ""
        return (
            f"{what} bucket={self.source}{key}{where} done_bytes={self.bytes_done}{verified} "
            f"size_bytes={self.bytes_total} bytes_per_s={rate:.0f}{left_s}"
        )

    def describe(self, now_s: float) -> Document:
        """Document for `status`; read by other threads."""
        still_s = 0.0 if self.paced else now_s - self.moved_at_s
        return {
            "key": keys.shown(self.key),
            "source": self.source,
            "destination": self.destination,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            **({"what": self.what} if self.what else {}),
            **({"bytes_verified": self.bytes_verified} if self.bytes_verified else {}),
            **({"bytes_crossed": self.bytes_crossed} if self.source != self.destination else {}),
            **self._pace(now_s),
            **({"stalled_seconds": still_s} if still_s > _STALLED_S else {}),
        }

    def _pace(self, now_s: float) -> Document:
        """How fast it is, and the time that is left at that rate; neither where nothing moves."""
        rate, left_bytes = self._left(now_s)
        if rate < 1 or left_bytes <= 0:
            return {}
        return {"bytes_per_second": round(rate), "eta_seconds": round(left_bytes / rate, 1)}

    def claim(self, limiter: Limiter, count: int) -> bool:
        """Wait for the limit, to send so many bytes; False where the transfer is not needed: see Limiter.claim."""
        self.paced = True
        may_send = limiter.claim(count, lambda: self.stop)
        self.paced, self.moved_at_s = False, time.monotonic()
        return may_send

    def pause(self, limiter: Limiter) -> None:
        """Wait for the limit, or until the transfer is no longer needed."""
        self.paced = True
        limiter.pause(lambda: self.stop)
        self.paced, self.moved_at_s = False, time.monotonic()
