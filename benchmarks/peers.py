"""Other programs that keep a directory equal to another one, each started, watched and stopped in the same way.

Both are Debian's. lsyncd runs rsync and does not wait for the disk; Syncthing hashes what it sends and syncs it.
Neither is asked to keep versions. By default lsyncd waits 15 s before it looks and Syncthing 10 s; here they wait as
little as they allow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 60.0
_LOOK_S = 0.05


class Peer(ABC):
    """A running program that copies `source` to `destination`; both are empty directories when it starts."""

    name = ""
    command = ""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.source, self.destination = home / "source", home / "destination"
        for folder in (self.source, self.destination):
            folder.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def is_installed(cls) -> bool:
        return shutil.which(cls.command) is not None

    @abstractmethod
    def start(self) -> None: ...

    def _spawn(self, *arguments: object) -> None:
        log = (self.home / f"{self.name}-{len(self.processes)}.log").open("wb")
        self.processes.append(subprocess.Popen(list(map(str, arguments)), stdout=log, stderr=log))
        log.close()

    def cpu_s(self) -> float:
        """Processor seconds of all processes and their children, those that have ended included."""
        stats = _stats()
        ours = {process.pid for process in self.processes}
        while more := {pid for pid, fields in stats.items() if int(fields[1]) in ours} - ours:
            ours |= more
        return sum(sum(map(int, stats[pid][11:15])) for pid in ours if pid in stats) / _TICKS

    def wait_for(self, files: int, patience_s: float = 600.0) -> None:
        """Wait until the destination has so many files, all complete. Raises SystemExit."""
        until_s = time.monotonic() + patience_s
        while sum(map(_is_complete, _files(self.destination))) != files:
            if time.monotonic() > until_s:
                raise SystemExit(f"{self.name} did not bring {files:,} files within {patience_s:.0f} s")
            time.sleep(_LOOK_S)

    def __enter__(self) -> Self:
        self.start()
        probe = self.source / "probe"
        probe.write_bytes(b"is it watching?")
        self.wait_for(1, _START_S)
        probe.unlink()
        self.wait_for(0, _START_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def _stats() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat from the state on, by process. Source: proc(5)."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(name)] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
    return found


def _files(top: Path) -> Iterator[Path]:
    """The files below a directory; what is removed meanwhile is left out."""
    for folder, _, names in os.walk(top):
        yield from (Path(folder, name) for name in names)


def _is_complete(path: Path) -> bool:
    """Whether a file has its own name: rsync and Syncthing write beside it under another one."""
    return not path.name.startswith((".", "~syncthing~")) and ".stfolder" not in path.parts


class Lsyncd(Peer):
    """lsyncd runs `rsync -a` for what inotify names."""

    name = command = "lsyncd"

    def start(self) -> None:
        settings = self.home / "lsyncd.lua"
        settings.write_text(
            f"""
settings {{ nodaemon = true, statusFile = "{self.home}/status" }}
sync {{
    default.rsync, source = "{self.source}", target = "{self.destination}", delay = 0,
    rsync = {{ archive = true }}
}}
"""
        )
        self._spawn("lsyncd", settings)


class Syncthing(Peer):
    """Two instances on this machine, one that only sends and one that only receives."""

    name = command = "syncthing"

    def start(self) -> None:
        sides = [(self.home / "a", self.source, "sendonly"), (self.home / "b", self.destination, "receiveonly")]
        ports = [(_free_port(), _free_port()) for _ in sides]
        for home, _, _ in sides:
            _quietly("syncthing", "generate", f"--home={home}", "--no-default-folder", "--skip-port-probing")
        ids = [_quietly("syncthing", f"--home={home}", "--device-id").strip() for home, _, _ in sides]
        for (home, _, _), (gui, _) in zip(sides, ports, strict=True):
            address = f"--gui-address=127.0.0.1:{gui}"
            self._spawn(
                "syncthing", f"--home={home}", "--no-browser", "--no-upgrade", address, "--gui-apikey=benchmark"
            )
        devices = [
            {"deviceID": each, "addresses": [f"tcp://127.0.0.1:{port}"]}
            for each, (_, port) in zip(ids, ports, strict=True)
        ]
        for (_, path, kind), (gui, port) in zip(sides, ports, strict=True):
            config = _rest(gui, "GET", "config")
            config["devices"] = devices
            config["folders"] = [
                {
                    "id": "f", "path": str(path), "type": kind, "fsWatcherEnabled": True, "fsWatcherDelayS": 1,
                    "devices": [{"deviceID": each} for each in ids],
                }
            ]  # fmt: skip
            config["options"] |= {
                "listenAddresses": [f"tcp://127.0.0.1:{port}"], "globalAnnounceEnabled": False,
                "localAnnounceEnabled": False, "relaysEnabled": False, "natEnabled": False, "urAccepted": -1,
                "crashReportingEnabled": False, "reconnectionIntervalS": 1,
            }  # fmt: skip
            _rest(gui, "PUT", "config", config)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quietly(*arguments: str) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def _rest(port: int, method: str, what: str, body: object = None) -> Any:
    """One call of Syncthing's REST API, once it answers."""
    data = None if body is None else json.dumps(body).encode()
    url, headers = f"http://127.0.0.1:{port}/rest/{what}", {"X-API-Key": "benchmark"}
    until_s = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as answer:
                return json.loads(answer.read() or b"null")
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until_s:
                raise
            time.sleep(_LOOK_S)


PEERS: tuple[type[Peer], ...] = (Lsyncd, Syncthing)
