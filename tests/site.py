"""A site with real daemon processes, for the journeys.

Everything goes through the command line and the directories, as a user's actions do; only making the site, and asking
whether the daemon is ready, start no process. Waiting is for conditions, with a deadline that only a broken daemon
reaches.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from fsrepl.commands import operations, sites
from fsrepl.daemon import control, requests
from fsrepl.errors import NotRunning
from fsrepl.model.address import Address
from fsrepl.settings import FILE, reading
from tests import program, shown
from tests.waiting import DEADLINE_S, until

T = TypeVar("T")

SOURCE, DESTINATION = "east/src", "west/dst"


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def _argument(given: object) -> str | bytes:
    return given if isinstance(given, bytes) else str(given)


class Site:
    """Two regions with a versioned bucket each, below a folder; more, or elsewhere, as the arguments say.

    regions: name to directory. settings: lines to add to fsrepl.toml. user: an uid to run everything as.
    """

    def __init__(
        self,
        home: Path,
        *,
        regions: Mapping[str, Path] | None = None,
        buckets: tuple[str, ...] = (SOURCE, DESTINATION),
        replicate: bool = True,
        settings: str = "",
        user: int | None = None,
    ) -> None:
        self.home, self.user = home, user
        self.root = home / "site"
        self.regions = dict(regions or {name: self.root / name for name in ("east", "west")})
        self.environ: dict[str, str] = {}
        self.daemon: program.Process | subprocess.Popen[bytes] | None = None
        self.log = home / "daemon.log"
        if user is None:
            self._make(buckets, replicate, settings)
        else:
            self._make_by_commands(buckets, replicate, settings)

    def _make(self, buckets: tuple[str, ...], replicate: bool, lines: str) -> None:
        sites.init(self.root, {name: str(path) for name, path in self.regions.items()})
        self._set(lines)
        with operations.local_engine(reading.load(self.root / FILE)) as engine:
            for bucket in buckets:
                operations.run(engine, requests.CreateBucket(Address.parse_bucket(bucket), versioning=True))
            if replicate:
                source, destination = Address.parse_bucket(SOURCE), Address.parse_bucket(DESTINATION)
                operations.run(engine, requests.EnableReplication(source, destination))

    def _make_by_commands(self, buckets: tuple[str, ...], replicate: bool, lines: str) -> None:
        """The same, as another user."""
        self.must("init", self.root, *(f"--region={n}={p}" for n, p in self.regions.items()))
        self._set(lines)
        for bucket in buckets:
            self.must("bucket", "create", bucket, "--versioning")
        if replicate:
            self.must("replication", "enable", SOURCE, DESTINATION)

    def _set(self, lines: str) -> None:
        if lines:
            with (self.root / FILE).open("a") as file:
                file.write(f"\n{lines}\n")

    # -- commands

    def run(self, *arguments: object, stdin: bytes = b"", timeout_s: float = DEADLINE_S) -> Ran:
        given, environ = self._arguments(arguments), self._environ()
        if self._forks(arguments):
            code, out, err = program.run(given, environ, stdin=stdin, timeout_s=timeout_s)
        else:
            command = program.new_interpreter(*given)
            done = subprocess.run(
                command, input=stdin, capture_output=True, timeout=timeout_s, env=environ, user=self.user
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        return Ran(code, out.decode(errors="replace"), err.decode(errors="replace"))

    def must(self, *arguments: object, stdin: bytes = b"") -> Ran:
        done = self.run(*arguments, stdin=stdin)
        assert done.code == 0, f"fsrepl {' '.join(map(str, arguments))}: exit {done.code}: {done.err}"
        return done

    def json(self, *arguments: object) -> Any:
        return self.must(*arguments, "--json").json()

    def refused(self, code: str, *arguments: object, stdin: bytes = b"") -> Ran:
        """Run a command that must be refused with S3's code, in a sentence and without a traceback."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.code, done.err.split(":")[0]) == (3, code), done
        assert "Traceback" not in done.err
        return done

    def wait(self, scope: str = "", *, timeout_s: float = DEADLINE_S, code: int = 0) -> Ran:
        done = self.run("wait", *([scope] if scope else []), "--timeout", timeout_s, timeout_s=timeout_s + 30)
        assert done.code == code, f"wait: exit {done.code}: {done.err}\n{self.tail()}"
        return done

    def settle(self) -> None:
        """Wait until the daemon has no reason left to look at any key.

        When `wait` returns, the labels that the daemon set on the views have made events, and it will look at those
        keys once more. Until then it captures a change that made no event, and repairs damage that it meets.
        """
        self.wait()
        self.wait()

    def _forks(self, arguments: tuple[object, ...]) -> bool:
        """Whether a process may be a fork of one that has loaded the program: see tests/program.py."""
        return self.user is None and program.can_fork(self.environ)

    def _arguments(self, arguments: tuple[object, ...]) -> list[str | bytes]:
        return ["--site", str(self.root), *map(_argument, arguments)]

    def _daemon_command(self, options: tuple[str, ...]) -> list[str | bytes]:
        """The command line of a daemon that is no fork."""
        return program.new_interpreter(*self._arguments((*options, "daemon")))

    def _environ(self) -> dict[str, str]:
        return {**os.environ, "NO_COLOR": "1", "TERM": "dumb", **self.environ}

    # -- the daemon

    def start(self, *options: str, ready: bool = True, timeout_s: float = DEADLINE_S) -> None:
        with self.log.open("ab") as log:
            if self._forks((*options, "daemon")):
                self.daemon = program.Process(
                    self._arguments((*options, "daemon")),
                    self._environ(),
                    stdin=os.devnull,
                    stdout=str(self.log),
                    stderr=str(self.log),
                )
            else:
                self.daemon = subprocess.Popen(
                    self._daemon_command(options),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environ(),
                    user=self.user,
                    start_new_session=True,
                )
        if ready:
            self.until(self._is_ready, "the daemon is ready", timeout_s)

    def _is_ready(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, f"the daemon ended at start: {self.tail()}"
        try:
            return bool(control.ask(reading.load(self.root / FILE).state, requests.GetStatus())["ready"])
        except NotRunning:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end. Returns the exit status."""
        assert self.daemon is not None
        daemon, self.daemon = self.daemon, None
        daemon.send_signal(number)
        return daemon.wait(DEADLINE_S)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def tail(self, size: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def until(self, condition: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
        """Wait until a condition holds. Returns its value."""
        return until(condition, lambda: f"{what}\n{self.tail()}", timeout_s=timeout_s, pause_s=0.02)

    def __enter__(self) -> Site:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(DEADLINE_S)

    # -- the trees

    def path(self, key: str | bytes = "", bucket: str = SOURCE) -> Path:
        region, name = bucket.split("/")
        return self.regions[region] / name / os.fsdecode(key)

    def write(self, key: str | bytes, data: bytes, bucket: str = SOURCE) -> Path:
        path = self.path(key, bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def put(self, key: str | bytes, data: bytes, bucket: str = SOURCE) -> Path:
        """Write beside the bucket, and rename into place."""
        path = self.path(key, bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.regions[bucket.split("/")[0]] / ".aside"
        aside.write_bytes(data)
        return aside.rename(path)

    def tree(self, bucket: str) -> dict[str, bytes]:
        """Every object that a user sees: key to content."""
        return shown.files(self.path(bucket=bucket))

    def history(self, bucket: str) -> dict[bytes, list[tuple[str, str, bool]]]:
        """By key: (version id, creation time, whether it is a marker), newest first."""
        listed = self.json("ls", bucket, "--versions")
        out: dict[bytes, list[tuple[str, str, bool]]] = {}
        for name, marker in (("Versions", False), ("DeleteMarkers", True)):
            for each in listed[name]:
                key = base64.b64decode(each["KeyBase64"]) if "KeyBase64" in each else os.fsencode(each["Key"])
                out.setdefault(key, []).append((each["VersionId"], each["LastModified"], marker))
        return {key: sorted(rows, key=lambda row: (row[1], row[0]), reverse=True) for key, rows in sorted(out.items())}

    def stored(self, key: str, version: str, bucket: str = SOURCE) -> Path:
        return self.path(f".fsrepl/versions/{key};{version}", bucket)

    def head(self, address: str) -> Any:
        return self.json("head", address)

    def bucket_status(self, bucket: str) -> Any:
        return next(b for b in self.json("status")["buckets"] if b["bucket"] == bucket)

    def in_step(self, a: str = SOURCE, b: str = DESTINATION) -> None:
        """Check that both buckets show the same files and have the same versions in the same order."""
        assert self.tree(a) == self.tree(b)
        assert self.history(a) == self.history(b)
