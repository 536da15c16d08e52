"""The bandwidth limit, and the progress of one transfer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.region.limiter import Limiter

_STALLED_S = 10.0
"""What has not come further for so long is said to stand still."""


@dataclass(slots=True)
class Progress:
    """How far one transfer has come; read by status while it runs. stop: nobody wants it any more.

    A capture, too, is one: from what people see of a bucket into its store, so that source and destination are the
    bucket, and there is no version yet.
    """

    key: bytes
    version: str
    source: str
    destination: str
    bytes_total: int
    bytes_done: int = 0
    bytes_verified: int = 0
    """Of those, how many have been read back and hashed."""
    stop: bool = False
    paced: bool = False
    """It waits for the limit."""
    moved_at_s: float = field(default_factory=time.monotonic)
    """When it came further last, or began."""

    def came_to(self, bytes_done: int) -> None:
        self.bytes_done, self.moved_at_s = bytes_done, time.monotonic()

    def verified_to(self, bytes_verified: int) -> None:
        self.bytes_verified, self.moved_at_s = bytes_verified, time.monotonic()

    def describe(self, now_s: float) -> Document:
        """For `status`; read by other threads."""
        still_s = 0.0 if self.paced else now_s - self.moved_at_s
        return {
            "key": keys.shown(self.key),
            "source": self.source,
            "destination": self.destination,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            **({"bytes_verified": self.bytes_verified} if self.bytes_verified else {}),
            **({"stalled_seconds": still_s} if still_s > _STALLED_S else {}),
        }

    def pause(self, limiter: Limiter) -> None:
        """Wait for the limit, or until nobody wants it any more."""
        self.paced = True
        limiter.pause(lambda: self.stop)
        self.paced, self.moved_at_s = False, time.monotonic()
