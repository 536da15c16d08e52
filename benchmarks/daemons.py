"""A site of two regions and its daemon, to be measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsrepl.daemon import control, requests
from fsrepl.errors import NotRunning
from fsrepl.settings import FILE

SOURCE, DESTINATION = "east/src", "west/dst"


class Daemon:
    """A site of two regions below a folder, and its daemon."""

    def __init__(self, home: Path, *, trees: bool = False, settings: str = "", west: str = "") -> None:
        """trees: of tree buckets. settings: lines for its fsrepl.toml. west: the table of the second region, where that
        is on another machine or a service."""
        self.root = home / "site"
        self.fsrepl("init", self.root, "--region", "east", *([] if west else ["--region", "west"]))
        with (self.root / FILE).open("a") as file:
            file.write("\n[safety]\ndelete_share = 1\n" + settings)  # all of a bucket is removed, and shall cross
            file.write(f"\n[regions.west]\n{west}\n" if west else "")
        if path := tomllib.loads(west).get("path"):
            self.fsrepl("region", "add", f"west={path}")
        for bucket in (SOURCE, DESTINATION):
            self.fsrepl("bucket", "create", bucket, "--versioning", *(["--trees"] if trees else []))
        self.fsrepl("replication", "enable", SOURCE, DESTINATION)
        self._log = (home / "daemon.log").open("ab")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command("daemon"), stdout=self._log, stderr=self._log)
        while not self._is_ready():
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return bool(self.said()["ready"])
        except NotRunning:
            return False

    def said(self) -> dict[str, Any]:
        """What the daemon says of itself: `fsrepl status` counts in the journal besides, for seconds where that has
        millions of rows."""
        return control.ask(self.root / ".fsrepl-site", requests.GetStatus())

    def _command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "fsrepl", "--site", str(self.root), *map(str, arguments)]

    def fsrepl(self, *arguments: object) -> str:
        return subprocess.run(self._command(*arguments), check=True, capture_output=True, text=True).stdout

    def begin(self, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command(*arguments), stdout=subprocess.DEVNULL)

    def path(self, bucket: str, name: str = "") -> Path:
        return self.root / bucket / name

    def processes(self) -> list[int]:
        """The daemon, and the stager while there is one. Source: proc_tid_children(5)."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [self.process.pid, *(int(each) for thread in threads for each in thread.read_text().split())]

    def cpu_s(self) -> float:
        """All of its processes, those that have ended included."""
        return sum(map(cpu_s, self.processes()))

    def written_bytes(self) -> int:
        """What it wrote to disks so far. Source: proc_pid_io(5), write_bytes."""
        found = [Path(f"/proc/{pid}/io").read_text() for pid in self.processes()]
        return sum(int(each.split("\nwrite_bytes: ")[1].split()[0]) for each in found)

    def peak_bytes(self) -> int:
        """The peak of each process, added up: together they had at most that."""
        found = [Path(f"/proc/{pid}/status").read_text() for pid in self.processes()]
        return sum(int(each.split("VmHWM:")[1].split()[0]) * 1024 for each in found)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()


def cpu_s(pid: int) -> float:
    """The processor time of a process so far, and of its children that have ended. Source: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def daemon(folder: Path, *, trees: bool = False, settings: str = "") -> Iterator[Daemon]:
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    found = Daemon(home, trees=trees, settings=settings)
    try:
        yield found
    finally:
        found.stop()
        shutil.rmtree(home)
