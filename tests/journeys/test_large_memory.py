"""The daemon's memory does not grow with the size of a file: of 4 GiB, and of 20 GiB with FSREPL_LONG=1.

The blocks of a map grow with the file, so that either has as many.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.site import DESTINATION, Site

SIZE = 20 << 30 if os.environ.get("FSREPL_LONG") else 4 << 30
PAGE, STEP = 4096, 2 << 20
MOST_BYTES = 64 << 20


def peak_bytes(site: Site) -> int:
    assert site.daemon is not None
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{site.daemon.pid}/status").read_text())
    return int(kib) * 1024


@pytest.mark.slow(10)
def test_memory_does_not_grow_with_the_file(memory: Path) -> None:
    """Section 9: a file with a page of data in each other MiB, whose map has as many blocks as that of a file without
    holes: captured and sent."""
    with Site(memory) as site:
        site.start()
        site.write("small", b"data")
        site.wait()
        before = peak_bytes(site)
        with site.path(".aside").open("wb") as file:
            for number in range(SIZE // STEP):
                file.seek(number * STEP)
                file.write(number.to_bytes(8, "little") * (PAGE // 8))
            file.truncate(SIZE)
        site.path(".aside").rename(site.path("big"))
        site.wait(timeout_s=300)
        replica = site.path("big", DESTINATION)
        assert replica.stat().st_size == SIZE
        with replica.open("rb") as file:
            file.seek(SIZE // 2)
            assert file.read(PAGE) == (SIZE // 2 // STEP).to_bytes(8, "little") * (PAGE // 8)
        assert replica.stat().st_blocks * 512 <= 2 * SIZE // STEP * PAGE
        assert peak_bytes(site) <= before + MOST_BYTES
