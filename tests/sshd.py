"""A real sshd with its own keys, configuration and port, and a client's configuration that reaches it.

It is Debian's, unpacked by tests/run and started by no service. As root it runs in a mount namespace of its own, where
its user for privilege separation exists; on request also in a network namespace behind a line with delay and loss.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from tests.line import Line
from tests.mounts import own_mounts
from tests.waiting import until

UNPACKED = Path(__file__).parent.parent / ".venv" / "openssh"
_NAMESPACE = """
set -e
(cat /etc/passwd; echo 'sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin') > "$1/passwd"
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs tmpfs /run
mkdir -m 0755 /run/sshd
shift
exec "$@"
"""


def program() -> str | None:
    """The path of sshd; None where there is none, or no client."""
    unpacked = UNPACKED / "usr" / "sbin" / "sshd"
    found = str(unpacked) if unpacked.exists() else shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    return found if shutil.which("ssh") else None


needs_sshd = pytest.mark.skipif(program() is None, reason="there is no sshd: tests/run unpacks it as root on Debian")


class Sshd:
    """Runs until the end of a `with` block. network: the arguments of netem(8) for both directions of the line."""

    def __init__(
        self, home: Path, *, root: Path | None = None, network: str = "", delay_s: float | None = None,
        loss: float = 0.0,
    ) -> None:  # fmt: skip
        """root: what its agents may serve, as in authorized_keys, which allows nothing else then. delay_s, loss: the
        client comes over a Line with these.
        """
        self.home, self._network, self._delay_s, self._loss = home, network, delay_s, loss
        self._line: Line | None = None
        self._address = "127.0.0.1"
        self._process: subprocess.Popen[bytes] | None = None
        self._undo = contextlib.ExitStack()
        home.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
        key, may = (home / "user.pub").read_text(), "restrict"
        if root is not None:
            may = f'command="{sys.executable} -m fsrepl agent --root {root} --state {home}/agents",restrict'
        (home / "authorized_keys").write_text(f"{may} {key}")
        (home / "authorized_keys").chmod(0o600)
        self.client = home / "client"
        """The configuration for `ssh -F`; the host is called `there`."""

    def __enter__(self) -> Sshd:
        try:
            return self._start()
        except BaseException:
            self._undo.close()
            raise

    def _start(self) -> Sshd:
        prefix: list[str] = []
        if self._network:
            prefix = self._make_network()
        if self._delay_s is not None:
            self._line = self._undo.enter_context(Line(self.port, self._delay_s, self._loss))
        config = self.home / "sshd_config"
        config.write_text(
            f"ListenAddress {self._address}\nPort {self.port}\nHostKey {self.home}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.home}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        )
        port = self._line.port if self._line is not None else self.port
        self.client.write_text(
            f"Host there\nHostName {self._address}\nPort {port}\nUser {pwd.getpwuid(os.geteuid()).pw_name}\n"
            f"IdentityFile {self.home}/user\nIdentitiesOnly yes\nUserKnownHostsFile {self.home}/known_hosts\n"
            "StrictHostKeyChecking accept-new\nLogLevel ERROR\n"
        )
        if os.geteuid() == 0:
            prefix += [*own_mounts(self.home.parent), "sh", "-c", _NAMESPACE, "sshd", str(self.home)]
        libraries = ":".join(str(path.parent) for path in UNPACKED.rglob("libwrap.so.0"))
        found = program()
        assert found is not None
        with (self.home / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, found, "-r", "-D", "-e", "-f", str(config)],
                env=os.environ | {"LD_LIBRARY_PATH": libraries}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._undo.callback(self._stop)
        until(self._answers, lambda: f"sshd answers\n{(self.home / 'sshd.log').read_text()[-2000:]}")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "sshd.log").read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection((self._address, self.port), timeout=5):
            return True
        return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def _make_network(self) -> list[str]:
        """A network namespace with one line to it; how programs are run there. Skips where that is not allowed."""
        number = os.getpid() % 60_000
        space, here, there = f"fsrepl{number}", f"fsr{number}", f"fsx{number}"
        net = f"10.{213 + number % 40}.{number // 256 % 256}"
        self._address = f"{net}.2"
        steps = [
            ["ip", "netns", "add", space],
            ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", space],
            ["ip", "addr", "add", f"{net}.1/24", "dev", here],
            ["ip", "link", "set", here, "up"],
            ["ip", "-n", space, "addr", "add", f"{net}.2/24", "dev", there],
            ["ip", "-n", space, "link", "set", there, "up"],
            ["ip", "-n", space, "link", "set", "lo", "up"],
            ["tc", "qdisc", "add", "dev", here, "root", "netem", *self._network.split()],
            ["ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", there, "root", "netem", *self._network.split()],
        ]
        self._undo.callback(subprocess.run, ["ip", "netns", "del", space], capture_output=True)
        self._undo.callback(subprocess.run, ["ip", "link", "del", here], capture_output=True)
        for step in steps:
            try:
                done = subprocess.run(step, capture_output=True, text=True)
            except OSError as error:
                pytest.skip(f"no network of its own can be made here: {error}")
            if done.returncode:
                pytest.skip(f"no network of its own can be made here: {done.stderr.strip()}")
        return ["ip", "netns", "exec", space]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def line(self) -> Line:
        assert self._line is not None
        return self._line


def agents_of(region: Path) -> Iterator[int]:
    """The processes of agents that serve a region: those that have its state folder's lock open."""
    lock = os.path.realpath(region / ".fsrepl-agent" / "lock")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) == lock for fd in (entry / "fd").iterdir()):
                    yield int(entry.name)
