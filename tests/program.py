"""Processes of fsrepl that start in milliseconds: forks of a server process that has loaded the program.

A new interpreter takes 0.1 s of processor time to load a command and 0.2 s to load the daemon, and the tests start
two thousand processes. A fork has its own process id, signals, descriptors and exit status, like any other process.
What happens before the program is loaded (the locale, another user, which files a command loads) is tested with new
interpreters, as are the README's commands, the examples, questions on a terminal and completion.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerProcess

import fsrepl

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *(found.name for found in pkgutil.walk_packages(fsrepl.__path__, "fsrepl.") if "__main__" not in found.name),
        __name__,
    ]
)

_AT_START = ("LC_", "LANG", "LOCPATH", "PYTHON")
"""Variables that Python reads when it starts, by how their names begin."""


def new_interpreter(*arguments: str | bytes) -> list[str | bytes]:
    """The command line of a new interpreter that runs fsrepl."""
    return [sys.executable, "-m", "fsrepl", *arguments]


def can_fork(environ: Mapping[str, str]) -> bool:
    """Whether a fork is the same as a new process: for this user, and with the same variables for Python itself."""
    changed = {name for name, value in environ.items() if os.environ.get(name) != value}
    return os.getuid() == os.geteuid() and not any(name.startswith(_AT_START) for name in changed)


class Process:
    """A fork that runs fsrepl. It has the methods of subprocess.Popen that the tests use.

    stdin, stdout, stderr: paths; the last two are appended to, or terminals. The process leads a session of its own.
    """

    def __init__(
        self, arguments: Sequence[str | bytes], environ: Mapping[str, str], *, stdin: str, stdout: str, stderr: str
    ) -> None:
        streams = ((stdin, os.O_RDONLY), (stdout, os.O_WRONLY | os.O_APPEND), (stderr, os.O_WRONLY | os.O_APPEND))
        self._process: ForkServerProcess = _context.Process(
            target=_run, args=([os.fsdecode(each) for each in arguments], dict(environ), streams), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired("fsrepl", timeout)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str | bytes], environ: Mapping[str, str], *, stdin: bytes, timeout_s: float
) -> tuple[int, bytes, bytes]:
    """Run a command in a fork: exit status, stdout, stderr. Raises subprocess.TimeoutExpired, after killing it."""
    with _memory(stdin) as given, _memory() as out, _memory() as err:
        paths = {name: _path(fd) for name, fd in (("stdin", given), ("stdout", out), ("stderr", err))}
        process = Process(arguments, environ, **paths)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return status, _content(out), _content(err)


@contextlib.contextmanager
def _memory(content: bytes = b"") -> Iterator[int]:
    """A file in memory. Unlike a pipe it takes any number of bytes before they are read."""
    fd = os.memfd_create("stream")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def _path(fd: int) -> str:
    return f"/proc/{os.getpid()}/fd/{fd}"


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _run(arguments: list[str], environ: dict[str, str], streams: Sequence[tuple[str, int]]) -> None:
    """What the fork does: it becomes `python -m fsrepl ARGUMENTS`."""
    os.setsid()
    for number, (path, flags) in enumerate(streams):
        fd = os.open(path, flags)
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environ)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["fsrepl", *arguments]
    runpy.run_module("fsrepl", run_name="__main__", alter_sys=True)
