"""The verifications that commands make at the moment, each in its own process, which tells the daemon how far it is."""

from __future__ import annotations

import threading
import time

from fsrepl.region.limits import Progress

REPORTED_S = 1.0
"""How often a command tells it."""
_FORGOTTEN_S = 10 * REPORTED_S
"""A verification that was not heard of for so long has ended without saying so, as after kill -9."""


class Verifications:
    """See the module. Used by all threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._under_way: dict[str, tuple[float, Progress]] = {}

    def note(self, token: str, source: str, bytes_done: int, bytes_total: int) -> None:
        """Note how far a verification of a source is. token: what its process is known by."""
        now_s = time.monotonic()
        with self._guard:
            if (known := self._under_way.get(token)) is not None:
                _, progress = known
            else:
                progress = Progress(b"", "", source, source, 0, what="verifying", began_at_s=now_s)
            progress.bytes_total = max(bytes_total, bytes_done)
            progress.came_to(bytes_done)
            self._under_way[token] = now_s, progress

    def end(self, token: str) -> None:
        with self._guard:
            self._under_way.pop(token, None)

    def under_way(self) -> list[Progress]:
        """The progress of each."""
        since_s = time.monotonic() - _FORGOTTEN_S
        with self._guard:
            self._under_way = {token: each for token, each in self._under_way.items() if each[0] >= since_s}
            return [progress for _, progress in self._under_way.values()]
