"""The process that carries the connection to an agent: OpenSSH's own client.

It reads the user's keys, known hosts and configuration, multiplexing included. It asks no questions, since no person
watches. Its stderr has messages of ssh and of the login shell, and the agent's log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
from collections import deque
from typing import IO, Protocol

from fsrepl.errors import Unavailable, reason
from fsrepl.settings import HostSettings

log = logging.getLogger("fsrepl")

_LINES_MAX = 20
_LINE_MAX_BYTES = 2000
_END_S = 2.0
_NOT_FOUND, _SSH_FAILED = 127, 255


class Process(Protocol):
    """The process that carries a connection. read_fd and write_fd are its caller's to close."""

    read_fd: int
    write_fd: int

    def stop(self) -> None:
        """Kill the process."""

    def why_ended(self) -> str:
        """The process's last message, for people; empty where there is none."""


def command_line(settings: HostSettings) -> list[str]:
    """The program that connects, and its arguments."""
    place = settings.place
    port = ["-p", str(place.port)] if place.port else []
    compress = ["-C"] if settings.compress else []
    target = f"{place.user}@{place.host}" if place.user else place.host
    quiet = ["-T", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"]
    return [*settings.ssh, *quiet, *compress, *port, "--", target, settings.agent]


class Ssh:
    """See Process. Raises Unavailable where the program cannot be run."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._said: deque[str] = deque(maxlen=_LINES_MAX)
        arguments = command_line(settings)
        try:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise Unavailable(f"{arguments[0]} cannot be run: {reason(error)}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.write_fd, self.read_fd = os.dup(self._process.stdin.fileno()), os.dup(self._process.stdout.fileno())
        self._process.stdin.close()
        self._process.stdout.close()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def _listen(self, stderr: IO[bytes]) -> None:
        with stderr:
            while line := stderr.readline(_LINE_MAX_BYTES):
                text = line.decode("utf-8", "replace").rstrip()
                self._said.append(text)
                log.info("from region=%s: %s", self._settings.name, text)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()

    def why_ended(self) -> str:
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return ""
        self._listener.join(_END_S)
        said = "; ".join([line for line in self._said if line][-3:])
        host = self._settings.place.host
        if status == _NOT_FOUND:
            return (
                f"the shell of {host} does not find {self._settings.agent.split()[0]!r}; install fsrepl there, or set "
                f"`agent` in [regions.{self._settings.name}] to its whole path"
            )
        if status == _SSH_FAILED:
            return f"ssh: {said.removeprefix('ssh: ')}" if said else "ssh failed"
        return said
