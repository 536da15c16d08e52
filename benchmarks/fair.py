"""A quiet bucket beside a burst in another bucket of the same region: how long a file of it takes meanwhile.

Files come at their own times, whether or not the ones before have arrived: else those that take long would be few.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from costs import filesystem, make_tree
from daemons import SOURCE, Daemon, daemon

QUIET, QUIET_COPY = "east/quiet", "west/quiet"
_RATE_HZ = 10
_LOOK_S = 0.001
_PATIENCE_S = 60.0
_ALONE_S = 10


def fair(folder: Path, count: int) -> None:
    print(
        f"fair: {_RATE_HZ} files a second in one bucket beside a burst of {count:,} in another, on {filesystem(folder)}"
    )
    with tempfile.TemporaryDirectory(prefix="fsrepl-bench-", dir=folder) as made, daemon(folder) as site:
        tree = make_tree(Path(made) / "tree", count)
        for bucket in (QUIET, QUIET_COPY):
            site.fsrepl("bucket", "create", bucket, "--versioning")
        site.fsrepl("replication", "enable", QUIET, QUIET_COPY)
        for what, command in (
            ("alone", ["sleep", str(_ALONE_S)]),
            ("beside the burst", ["cp", "-r", f"{tree}/.", site.path(SOURCE)]),
        ):
            began = time.monotonic()
            times = sorted(_beside(site, what, subprocess.Popen(command)))
            print(f"  {what:16} {_said(times)} in {time.monotonic() - began:.1f} s")


def _said(times: list[float]) -> str:
    p50_s, p99_s = statistics.median(times), times[int(len(times) * 0.99) - 1]
    return (
        f"p50 {p50_s * 1e3:7.1f} ms   p99 {p99_s * 1e3:7.1f} ms   most {times[-1] * 1e3:7.1f} ms   {len(times)} files"
    )


def _beside(site: Daemon, what: str, burst: subprocess.Popen[bytes]) -> list[float]:
    """From a rename into place to the complete replica, of each file until a burst is over, in seconds."""
    times: list[float] = []
    waits: dict[Path, float] = {}
    due_s, number, last = time.monotonic(), 0, burst
    while last is not None or waits:
        now_s = time.monotonic()
        if last is not None and now_s >= due_s:
            due_s += 1 / _RATE_HZ
            number += 1
            aside = site.root / "east" / f".{what}-{number}"
            aside.write_bytes(os.urandom(4096))
            waits[site.path(QUIET_COPY, f"{what}-{number}")] = time.monotonic()
            aside.rename(site.path(QUIET, f"{what}-{number}"))
        for replica in [each for each in waits if each.exists()]:
            times.append(time.monotonic() - waits.pop(replica))
        if any(now_s > began_s + _PATIENCE_S for began_s in waits.values()):
            raise SystemExit(f"{next(iter(waits)).name} did not arrive within {_PATIENCE_S} s")
        if last is not None and last.poll() is not None:
            last = site.begin("wait", SOURCE) if last is burst else None
        time.sleep(_LOOK_S)
    return times
