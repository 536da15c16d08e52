"""What an act costs: wall and CPU seconds, and what is written to the disk."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemons import Daemon
from peers import Peer


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took: wall and CPU seconds, and what was written to the disk until it was all there."""

    wall_s: float
    cpu_s: float
    written_bytes: int


def filesystem(folder: Path) -> str:
    """The type of the filesystem where a folder is. Source: proc(5), mountinfo."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next((line[line.index("-") + 1] for line in lines if line[2] == number), "an unknown filesystem")


def text(cost: Cost) -> str:
    return f"{cost.wall_s:6.2f} s   {cost.cpu_s:5.2f} CPU s   {cost.written_bytes / 2**20:5.0f} MiB written"


def cost_of(
    folder: Path, act: Callable[[], object], site: Daemon | Peer | None = None, *, durably: bool = False
) -> Cost:  # fmt: skip
    """What something costs, with our daemon until that has done its part. CPU: the daemon's, else the children's.

    durably: until all of it is on the disk.
    """
    os.sync()
    written, cpu_s, began = _written_bytes(folder), _cpu_s(site), time.monotonic()
    act()
    if isinstance(site, Daemon):
        site.fsrepl("wait")
    if durably:
        os.sync()
    wall_s, cpu_s = time.monotonic() - began, _cpu_s(site) - cpu_s
    os.sync()
    return Cost(wall_s, cpu_s, _written_bytes(folder) - written)


def _cpu_s(site: Daemon | Peer | None) -> float:
    if site is not None:
        return site.cpu_s()
    found = os.times()
    return found.children_user + found.children_system


def _written_bytes(folder: Path) -> int:
    """What a folder's disk was told to write so far, by all programs. 0: it has none. Source: Linux, block/stat.rst."""
    device = folder.stat().st_dev
    at = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(at.read_text().split()[6]) * 512 if at.exists() else 0


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)


def make_tree(top: Path, count: int, in_each: int = 200) -> Path:
    for i in range(count):
        if i % in_each == 0:
            folder = top / f"d{i // in_each:03}"
            folder.mkdir(parents=True)
        (folder / f"f{i:05}").write_bytes(os.urandom(4096))
    return top


def timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began
