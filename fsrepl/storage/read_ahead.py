"""A file that is copied in parts is read from the disk before they are needed.

The kernel's own read-ahead is shorter, and begins anew where a part does not follow the one before.
"""

from __future__ import annotations

from collections.abc import Iterable

from fsrepl.storage.fs import Fs

_AHEAD_BYTES = 32 << 20
"""The most that is asked for, or is in the page cache, and is not copied yet."""
_PART_BYTES = 512 << 10
"""The bytes that are asked for at once: see Fs.read_ahead."""


class ReadAhead:
    """Has parts of an open file read, each a place and a size, while those before them are copied in the same order."""

    def __init__(self, fs: Fs, fd: int, parts: Iterable[tuple[int, int]]) -> None:
        self._fs, self._fd = fs, fd
        self._parts = iter(parts)
        self._at = self._left = self._ahead = 0
        self.passed(0)

    def passed(self, size: int) -> None:
        """Note that more bytes were copied, or are not copied after all."""
        self._ahead -= size
        while self._ahead < _AHEAD_BYTES:
            if self._left <= 0:
                if (part := next(self._parts, None)) is None:
                    return
                self._at, self._left = part
                continue
            size = min(_PART_BYTES, self._left)
            self._fs.read_ahead(self._fd, self._at, size)
            self._at, self._left, self._ahead = self._at + size, self._left - size, self._ahead + size
