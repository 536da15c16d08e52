"""A line with a delay to a port of this machine, in a process of its own: what netem(8) does, where there is none.

Each byte arrives after the delay, in each direction; the line's bandwidth is not limited. Where packets are lost, TCP
sends them again after a fifth of a second, and what follows them waits: so does a piece of the stream here. On SIGUSR1
nothing passes any more, in either direction, and no connection is closed; on SIGUSR2 it goes on.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

from tests.waiting import until

_CHUNK = 1 << 16
_WINDOW_BYTES = 64 << 20
_AGAIN_S = 0.2


class Line:
    """Leads to a port until the end of a `with` block. delay_s: in each direction. loss: the share of pieces lost."""

    def __init__(self, to_port: int, delay_s: float = 0.0, loss: float = 0.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.line", str(self.port), str(to_port), str(delay_s), str(loss)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until(self._listens, "the line is there")

    def _listens(self) -> bool:
        """Source: proc(5), net/tcp: a connection would be carried on."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(row[1].endswith(f":{self.port:04X}") and row[3] == "0A" for row in rows)

    def hang(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGUSR2)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# -- the process

_passes = threading.Event()


def _carry(one: socket.socket, other: socket.socket, delay_s: float, loss: float) -> None:
    """Carry bytes from one side to the other."""
    waiting: deque[tuple[float, bytes]] = deque()
    changed = threading.Condition()
    size = 0

    def write() -> None:
        nonlocal size
        with contextlib.suppress(OSError):
            while True:
                with changed:
                    while not waiting:
                        changed.wait()
                    due_s, data = waiting.popleft()
                    size -= len(data)
                    changed.notify_all()
                time.sleep(max(0.0, due_s - time.monotonic()))
                _passes.wait()
                if not data:
                    break
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    threading.Thread(target=write, daemon=True).start()
    data = b"-"
    while data:
        with contextlib.suppress(OSError):
            data = b""
            data = one.recv(_CHUNK)
        with changed:
            while size > _WINDOW_BYTES:
                changed.wait()
            lost_s = _AGAIN_S if random.random() < loss else 0.0
            waiting.append((time.monotonic() + delay_s + lost_s, data))
            size += len(data)
            changed.notify_all()


def _serve(port: int, to_port: int, delay_s: float, loss: float) -> None:
    _passes.set()
    signal.signal(signal.SIGUSR1, lambda *_: _passes.clear())
    signal.signal(signal.SIGUSR2, lambda *_: _passes.set())
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", to_port))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=(*pair, delay_s, loss), daemon=True).start()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
