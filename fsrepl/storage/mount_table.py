"""The table of mounts that this process sees, read again only after a change.

Each bucket looks at it often, and where there are many mounts, as on a host of containers, the kernel would write all
their lines for each look. Source: proc_pid_mounts(5): after a mount or an unmount the file has a priority
event.
"""

from __future__ import annotations

import os
import select
import threading

PATH = "/proc/self/mountinfo"
_PART_BYTES = 1 << 20


class MountTable:
    """The lines of proc_pid_mountinfo(5). Any thread may ask for them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._fd, self._pid = -1, 0
        self._changed = select.poll()
        self._lines = b""

    def lines(self) -> bytes:
        """The table as it is now. Raises OSError."""
        with self._guard:
            if self._pid != os.getpid():  # a process that was forked sees its own, and not that of its parent
                self._fd, self._changed = os.open(PATH, os.O_RDONLY | os.O_CLOEXEC), select.poll()
                self._pid = os.getpid()
                self._changed.register(self._fd, select.POLLPRI)
            elif not self._changed.poll(0):
                return self._lines
            self._lines = self._read()  # a change from here on is seen the next time
            return self._lines

    def _read(self) -> bytes:
        parts = [b""]
        while part := os.pread(self._fd, _PART_BYTES, sum(map(len, parts))):
            parts.append(part)
        return b"".join(parts)
