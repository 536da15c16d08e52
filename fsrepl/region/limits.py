"""The bandwidth limit, and the progress of one transfer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.region.limiter import Limiter

_STALLED_S = 10.0
"""A transfer without progress for so long is reported as stalled."""


@dataclass(slots=True)
class Progress:
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
    stop: bool = False
    paced: bool = False
    """The transfer waits for the limit."""
    moved_at_s: float = field(default_factory=time.monotonic)
    """Time of the last progress, or of the start."""

    def came_to(self, bytes_done: int) -> None:
        self.bytes_done, self.moved_at_s = bytes_done, time.monotonic()

    def verified_to(self, bytes_verified: int) -> None:
        self.bytes_verified, self.moved_at_s = bytes_verified, time.monotonic()

    def describe(self, now_s: float) -> Document:
        """Document for `status`; read by other threads."""
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
        """Wait for the limit, or until the transfer is no longer needed."""
        self.paced = True
        limiter.pause(lambda: self.stop)
        self.paced, self.moved_at_s = False, time.monotonic()
