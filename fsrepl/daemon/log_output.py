"""The log, written to standard error by a thread of its own, so that no other thread waits for its reader.

A full pipe would stop each thread that logs, and with them replication; a closed one gives an error at each
line. Lines wait in memory, up to a limit. Further ones are dropped and counted; the log says how many as soon as
it is read again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque

from fsrepl.region.reporter import Formatter

_WAITING_MAX_BYTES = 4 << 20
_PIECE_BYTES = 64 << 10
_PAUSE_S = 0.005
"""Lines that come within this time are written together."""
_CLOSED_S = 1.0
"""How long the lines that are left may take at the end of the process."""


class LogOutput(logging.Handler):
    """A handler of the logging package for a file descriptor."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.setFormatter(Formatter())
        self.dropped = 0
        """The number of lines dropped since the start."""
        self._fd = fd
        self._guard = threading.Lock()
        """Not the handler's own lock, which logging.shutdown holds while it waits for flush."""
        self._lines: deque[bytes] = deque()
        self._waiting_bytes, self._unreported = 0, 0
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._has_lines = threading.Event()
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, or drop it; never waits for the reader."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:
            self.handleError(record)
            return
        with self._guard:
            if self._waiting_bytes + len(line) > _WAITING_MAX_BYTES:
                self._drop(line.count(b"\n"))
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            if not self._has_lines.is_set():
                self._is_idle.clear()
                self._has_lines.set()

    def flush(self) -> None:
        """Wait until all lines are written, but no longer than a second, since they may have no reader."""
        self._is_idle.wait(_CLOSED_S)

    def _write(self) -> None:
        while True:
            self._has_lines.wait()
            while lines := self._next():
                self._write_lines(lines)
            time.sleep(_PAUSE_S)

    def _next(self) -> list[bytes]:
        """The next lines; none where all are written."""
        with self._guard:
            lines: list[bytes] = []
            size = 0
            while self._lines and size < _PIECE_BYTES:
                lines.append(self._lines.popleft())
                size += len(lines[-1])
            self._waiting_bytes -= size
            if not lines:
                self._has_lines.clear()
                self._is_idle.set()
            return lines

    def _drop(self, number: int) -> None:
        self.dropped += number
        self._unreported += number

    def _write_lines(self, lines: list[bytes]) -> None:
        with self._guard:
            unreported, self._unreported = self._unreported, 0
        rest = b"".join([*lines, self._report(unreported)] if unreported else lines)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError:  # closed, or its disk is full
                with self._guard:
                    self._drop(sum(line.count(b"\n") for line in lines))
                    self._unreported += unreported
                return

    def _report(self, number: int) -> bytes:
        what = f"log: {number} lines were dropped, since nobody read them"
        record = logging.LogRecord("fsrepl", logging.WARNING, __file__, 0, what, None, None)
        return self.format(record).encode() + b"\n"
