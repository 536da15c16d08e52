"""What the daemon owns: the regions' workers, the journal, and following new settings."""

from __future__ import annotations

import time


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(int(time.time() - time.monotonic()))
