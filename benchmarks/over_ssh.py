"""A region on another machine, beside rsync over the same ssh: many small files, a large one, a change of that.

The other machine is an sshd of the tests' behind a line with a delay (tests/line.py). Both programs write to the same
disk, and what is there in the end is compared.

Two parts of the way of the small files are measured alone, to see what sets the time: their capture, in a bucket
without a rule, and their delivery, as a backfill makes it from what is stored there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from daemons import DESTINATION, SOURCE, Daemon, cpu_s

from tests.sshd import Sshd, agents_of

_BLOCK = 1 << 20
_ENDS_S = 1.0
"""After that the programs at the other end have ended too, and their processor time is counted there."""
ALONE, ALONE_THERE = "east/alone", "west/alone"


def over_ssh(folder: Path, count: int, size: int, delay_ms: int) -> None:
    print(f"ssh: {count:,} files of 4 KiB, and one of {size >> 20} MiB, over {delay_ms} ms there and back")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    try:
        with Sshd(home / "sshd", delay_s=delay_ms / 2000) as sshd:
            _measure(home, sshd, count, size)
    finally:
        shutil.rmtree(home)


def _measure(home: Path, sshd: Sshd, count: int, size: int) -> None:
    tree, big, there = home / "tree", home / "big", home / "there"
    for number in range(count):
        folder = tree / f"d{number // 200:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number:05}").write_bytes(os.urandom(4096))
    with big.open("wb") as file:
        for _ in range(size // _BLOCK):
            file.write(os.urandom(_BLOCK))
    there.mkdir()
    west = (
        f'path = "ssh://there{there}/west"\nssh = ["ssh", "-F", "{sshd.client}"]\n'
        f'agent = "{sys.executable} -m fsrepl agent --state {home}/agents"\n'
    )
    site = Daemon(home, west=west)
    try:
        rsync = ["rsync", "-a", "-e", f"ssh -F {sshd.client}"]
        source = site.path(SOURCE)
        while not (agents := list(agents_of(there / "west"))):
            time.sleep(0.1)
        (agent,) = agents

        def both(what: str, by_rsync: Callable[[], object], by_us: Callable[[], object]) -> None:
            for each in (by_rsync, by_us):
                os.sync()
                began, here_s, there_s = time.monotonic(), site.cpu_s(), cpu_s(agent)
                of_rsync_s = _ended_cpu_s(sshd)
                each()
                if each is by_us:
                    site.fsrepl("wait")
                took = time.monotonic() - began
                if each is by_rsync:
                    time.sleep(_ENDS_S)
                    rsync_s, rsync_cpu_s = took, _ended_cpu_s(sshd) - of_rsync_s
            here_s, there_s = site.cpu_s() - here_s, cpu_s(agent) - there_s
            print(
                f"  {what:22} rsync -a {rsync_s:7.2f} s   fsrepl {took:7.2f} s   {took / rsync_s:5.2f} x rsync -a   "
                f"{here_s:5.2f} CPU s here, {there_s:5.2f} there; rsync {rsync_cpu_s:5.2f}, with ssh at both ends"
            )

        both(
            f"{count:,} small files",
            lambda: _run(*rsync, f"{tree}/", f"there:{there}/copy"),
            lambda: _run("cp", "-r", f"{tree}/.", source),
        )
        _parts(site, agent, tree)
        both(
            f"a file of {size >> 20} MiB",
            lambda: _run(*rsync, big, f"there:{there}/"),
            lambda: _run("cp", big, source / "big"),
        )
        with big.open("r+b") as file:
            for at in range(0, size, max(_BLOCK, size // 16)):
                file.seek(at)
                file.write(os.urandom(4096))
        both(
            "16 pages of it changed",
            lambda: _run(*rsync, big, f"there:{there}/"),
            lambda: _run("cp", big, source / "big"),
        )
        _run("diff", "-r", "--exclude=.fsrepl", source, there / "west" / DESTINATION.partition("/")[2])
    finally:
        site.stop()


def _ended_cpu_s(sshd: Sshd) -> float:
    """The processor time of all programs that this one has started and that have ended, and of those at the sshd."""
    found = os.times()
    return found.children_user + found.children_system + cpu_s(sshd.pid)


def _parts(site: Daemon, agent: int, tree: Path) -> None:
    """Capture alone, and then delivery alone."""
    for bucket in (ALONE, ALONE_THERE):
        site.fsrepl("bucket", "create", bucket, "--versioning")

    def capture() -> None:
        _run("cp", "-r", f"{tree}/.", site.path(ALONE))
        site.fsrepl("wait", ALONE)

    def deliver() -> None:
        site.fsrepl("replication", "backfill", ALONE, "--wait")

    for what, act in (("capture alone", capture), ("delivery alone", deliver)):
        if act is deliver:
            site.fsrepl("replication", "enable", ALONE, ALONE_THERE)
        os.sync()
        began, here_s, there_s = time.monotonic(), site.cpu_s(), cpu_s(agent)
        act()
        took, here_s, there_s = time.monotonic() - began, site.cpu_s() - here_s, cpu_s(agent) - there_s
        print(f"    {what:20} {'':28}{took:7.2f} s   {'':19}{here_s:5.2f} CPU s here, {there_s:5.2f} there")


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)
