"""What became of a delivery: the log line, the event and the numbers, made from one value, so that they agree.

A line is the word for what happened, then name=value, what a user chose in quotes. Under systemd a
line begins with its level, as sd-daemon(3) says.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from fsrepl import keys
from fsrepl.clock import Clock
from fsrepl.model import Status
from fsrepl.settings import Settings

log = logging.getLogger("fsrepl")
_LEVELS = {logging.DEBUG: "<7>", logging.INFO: "<6>", logging.WARNING: "<4>", logging.ERROR: "<3>"}


@dataclass(frozen=True, slots=True)
class Result:
    """How one delivery ended, for now. seconds: since the version was created."""

    source: str
    key: bytes
    version: str
    destination: str
    rule: str
    status: Status
    reason: str
    marker: bool
    size_bytes: int
    created_ns: int


class Formatter(logging.Formatter):
    """Plain lines: with a level for systemd's journal, with a time elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = line_prefix(record.levelno)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return "\n".join(prefix + line for line in text.splitlines() or [""])


def line_prefix(level: int) -> str:
    if "JOURNAL_STREAM" in os.environ:
        return _LEVELS.get(level, "")
    return time.strftime("%Y-%m-%d %H:%M:%S ") + logging.getLevelName(level) + " "


class Reporter:
    """Writes a batch's lines at once: one write for many is most of what a line costs."""

    def __init__(self, settings: Settings, now: Clock) -> None:
        self.settings, self._now = settings, now

    def captured(self, address: str, rows: Iterable[tuple[bytes, str, bool, int, str]]) -> None:
        """(key, version id, marker, size, origin) of versions made here. DEBUG: the file itself was the news."""
        if log.isEnabledFor(logging.DEBUG):
            for key, version, marker, size, origin in rows:
                word = "marker" if marker else "version"
                log.debug(
                    '%s bucket=%s key="%s" version=%s size_bytes=%d origin=%s',
                    word, address, keys.shown(key), version, size, origin,
                )  # fmt: skip

    def settled(self, results: Iterable[Result]) -> None:
        now_ns = self._now()
        lines = []
        for result in results:
            failed = result.status is Status.FAILED
            level = logging.WARNING if failed else logging.INFO
            if not log.isEnabledFor(level):
                continue
            word = "failed" if failed else "replicated marker" if result.marker else "replicated"
            reason = f" reason={result.reason}" if failed else ""
            seconds = max(0.0, (now_ns - result.created_ns) / 1e9)
            lines.append(
                f'{line_prefix(level)}{word} bucket={result.source} key="{keys.shown(result.key)}" '
                f"version={result.version} to={result.destination} size_bytes={result.size_bytes} "
                f"seconds={seconds:.3f}{reason}\n"
            )
        if lines:
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing is kept back."""
