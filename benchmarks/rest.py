"""A daemon at rest: what it does with nothing to do, and how long it takes to start where nothing has changed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

from costs import filesystem
from daemons import DESTINATION, SOURCE, Daemon, daemon
from million import commands, is_scanning, make, measured

_IN_EACH = 1_000
_IDLE_S = 60.0
_LOOK_S = 0.005
_AFTER_S = 1.0
"""How long after it is ready a daemon gets a new file."""
_KEEP = "\n[capture]\nkeep_free = 0\n"


def rest(folder: Path, count: int) -> None:
    print(f"rest: {count:,} empty files in directories of {_IN_EACH:,}, replicated, on {filesystem(folder)}")
    with daemon(folder, settings=_KEEP) as site:
        _fill(site, count, _IN_EACH)
        _idle(site)
        for number, how in enumerate((signal.SIGTERM, signal.SIGKILL)):
            _start_again(site, how, f"new-{number}")
        commands(site)


def flat(folder: Path, counts: tuple[int, ...]) -> None:
    """The same number of names a second, however many there are in one directory?"""
    print(f"flat: names in one directory, replicated, on {filesystem(folder)}")
    for count in counts:
        with daemon(folder, settings=_KEEP) as site:
            _fill(site, count, count)


def _fill(site: Daemon, count: int, in_each: int) -> None:
    make(tree := site.root / "east" / ".tree", count, in_each)
    with measured(site, f"{count:,} captured and replicated"):
        for directory in sorted(tree.iterdir()):
            directory.rename(site.path(SOURCE, directory.name))
        site.fsrepl("wait")
    while is_scanning(site, SOURCE):
        time.sleep(_LOOK_S)


def _idle(site: Daemon) -> None:
    """What wakes it up, by the threads that wait: voluntary_ctxt_switches of proc_pid_status(5)."""
    while len(site.processes()) > 1:  # the stager ends after half a minute
        time.sleep(_AFTER_S)
    cpu_s, before = site.cpu_s(), _switches(site)
    time.sleep(_IDLE_S)
    woken = _switches(site) - before
    print(
        f"  idle: {site.cpu_s() - cpu_s:.2f} CPU s in {_IDLE_S:.0f} s, woken up "
        f"{sum(woken.values()) / _IDLE_S:.1f} times a second, by thread {sorted(woken.values(), reverse=True)}"
    )


def _switches(site: Daemon) -> Counter[str]:
    return Counter(
        {
            task.name: int((task / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
            for task in Path(f"/proc/{site.process.pid}/task").iterdir()
        }
    )


def _start_again(site: Daemon, how: signal.Signals, name: str) -> None:
    site.process.send_signal(how)
    site.process.wait()
    began_s = time.monotonic()
    site.start()
    ready_s, cpu_s = time.monotonic() - began_s, site.cpu_s()
    time.sleep(_AFTER_S)
    dropped_s = time.monotonic()
    site.path(SOURCE, name).write_bytes(b"new")
    while not site.path(DESTINATION, name).exists():
        time.sleep(_LOOK_S)
    there_s = time.monotonic() - dropped_s
    print(
        f"  after {how.name} ready in {ready_s:.2f} s, {cpu_s:.2f} CPU s; a file that is new {_AFTER_S:.0f} s later "
        f"is replicated {there_s:.2f} s after that"
    )
    with measured(site, "compared whole"):
        while is_scanning(site, SOURCE) or is_scanning(site, DESTINATION):
            time.sleep(_LOOK_S)
