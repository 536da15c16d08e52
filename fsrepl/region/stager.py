"""The stager: a child process that works on files while the daemon decides, so that two processors are used.

It gets orders for many files at once: to read and copy changed files, to write staged ones, to remove views for
markers, and to record on stored versions and their views what was delivered. An order is a value that needs none of the
daemon's state. The stager decides nothing, and changes nothing but .fsrepl/tmp and the attributes and views that an
order names; an intent names these views too, and is durable by then. The daemon itself does all that the stager did
not do, so that a stager that cannot be started, ends or hangs makes work slower, and no more: what both have done is as
if it was done once.

Each order comes with descriptors of the buckets that it is about, which the stager closes before it answers. So it
holds none while it is idle. It is started for the first large batch, and ends after _IDLE_S without an order, or with
the daemon, whose end it notices by the end of their connection.

    daemon/stager_process.py        the process
    capture/in_stager.py, replicate/in_stager.py    the orders, and how each is carried out
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager

import msgspec
from msgspec import Struct

from fsrepl.errors import FsreplError, reason
from fsrepl.storage import staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.lent import Lent, lend

log = logging.getLogger("fsrepl")

WORTH = 32
"""Files of a batch from which on the stager is asked: for fewer the daemon is faster by itself."""
_STARTS = 128
"""Files of a batch from which on the stager is started: a start takes as long as some hundred files."""
_IDLE_S = 30.0
_PATIENCE_S, _BEHIND_S = 1.0, 3.0
"""An order takes some 0.1 s. After the first of these no region gives another one; after the second those that wait for
it are given up, with the stager."""
_HANGS_S = 60.0
"""How long a region waits for its own order: where its filesystem hangs, the daemon would hang in its place."""
_ENDING_S = 1.0
_LOOK_S = 0.5
_AGAIN_S, _AGAIN_MAX_S = 1.0, 60.0
"""How long a stager that ended by itself is not started again; longer each time."""
_PACE_MIN, _PACE_MAX = 64, 512
_BUFFER_BYTES = 1 << 20
"""Room for orders that wait behind others: a region that gives one does not stand still until it is read. An order has
some 200 bytes a file. Source: socket(7), SO_SNDBUF; a kernel gives what it allows."""
_LENGTH = 4
READY = b"ready"


class Order(Struct, frozen=True, array_like=True):
    """what: the name of a kind of order. order: its values, encoded. buckets: where; their descriptors come along."""

    what: str
    buckets: tuple[Lent, ...]
    order: bytes


encode = msgspec.msgpack.encode


class Pending:
    """The answer to an order, once there is one. Only the thread that gave the order asks for it."""

    def __init__(self, stager: Stager, child: _Child | None) -> None:
        self.began_s = time.monotonic()
        self._stager, self._child = stager, child
        self._answer: Future[bytes | None] = Future()

    def settle(self, answer: bytes | None) -> None:
        self._answer.set_result(answer or None)

    def result(self) -> bytes | None:
        """The answer, encoded; None where the order was not carried out."""
        if not self._answer.done():
            with self._stager.released():
                self._wait()
        return self._answer.result()

    def _wait(self) -> None:
        ending_s = 0.0
        while not wait([self._answer], _LOOK_S).done:
            now_s = time.monotonic()
            ending_s = ending_s or (now_s if self._stager.is_ending else 0.0)
            hangs = now_s - self.began_s > _HANGS_S or (ending_s and now_s - ending_s > _ENDING_S)
            if self._child is not None and (
                hangs or self._child.keeps_waiting(self, now_s) or self._child.is_stopped()
            ):
                self._child.kill()


class Stager:
    """The daemon's side. Any thread may call its methods; the stager carries out one order after the other."""

    def __init__(self, command: Sequence[str], released: Callable[[], AbstractContextManager[None]]) -> None:
        """command: the program, which gets the descriptor of its socket as its last argument. released: lets other
        regions run while one waits."""
        self._command, self.released = command, released
        self._guard = threading.Lock()
        self._child: _Child | None = None
        self._used_at_s = self._again_at_s = 0.0
        self._failures = 0
        self._paces: dict[str, int] = {}
        self._unswept: dict[str, set[int]] = {}
        """By bucket the pids of stagers that were lost while they staged there."""
        self.is_ending = False
        """Set before the daemon's end: no order is begun any more."""

    @property
    def pid(self) -> int:
        """Its process; 0 while there is none."""
        child = self._child
        return child.pid if child is not None else 0

    def is_ready(self, number: int) -> bool:
        """Whether its process takes orders; one for that many files starts it."""
        with self._guard:
            return self._ready(number) is not None

    def is_wanted(self, number: int) -> bool:
        """Whether a batch of so many files is for the stager."""
        return number >= WORTH and not self.is_ending

    def pace(self, what: str) -> int:
        """How many files an order is for, at most: as many as the last one had time for, or twice as many."""
        return self._paces.get(what, _PACE_MAX)

    def note_pace(self, what: str, asked: int, done: int) -> None:
        """Note for how many files of an order there was time."""
        if done < asked:
            self._paces[what] = max(_PACE_MIN, done)
        elif asked >= self.pace(what):
            self._paces[what] = min(_PACE_MAX, 2 * asked)

    def begin(self, what: str, order: Struct, buckets: Sequence[OpenBucket], number: int) -> Pending | None:
        """Give an order for so many files; None where it cannot be carried out now. Files are staged in the first
        bucket alone."""
        try:
            data = encode(Order(what, tuple(lend(bucket) for bucket in buckets), encode(order)))
        except (FsreplError, OSError, UnicodeEncodeError):  # text that is not Unicode, as of an attribute's name
            return None
        if not self._guard.acquire(timeout=_PATIENCE_S):
            return None
        try:
            child = self._ready(number)
            if child is None or child.is_slow():
                return None
            self._used_at_s = time.monotonic()
            return child.send(Pending(self, child), data, buckets)
        except OSError as error:
            self._lost(reason(error))
            return None
        finally:
            self._guard.release()

    def _ready(self, number: int) -> _Child | None:
        """The stager, once it is ready; a batch of that many files starts it."""
        now_s = time.monotonic()
        if self._child is not None and self._child.why_ended:
            self._lost(self._child.why_ended)
        if self._child is None and number >= _STARTS and not self.is_ending and now_s >= self._again_at_s:
            self._child, self._used_at_s = _Child(self._command), now_s
        return self._child if self._child is not None and self._child.is_ready else None

    def _lost(self, why: str) -> None:
        self._failures += 1
        self._again_at_s = time.monotonic() + min(_AGAIN_MAX_S, _AGAIN_S * 2 ** min(self._failures - 1, 10))
        if not self.is_ending:
            log.warning("the stager was lost: %s; work is slower until it is started again", why)
        if self._child is not None:
            self._child.end()
            for address in self._child.addresses:
                self._unswept.setdefault(address, set()).add(self._child.pid)
            self._child = None

    def tidy(self, bucket: OpenBucket) -> None:
        """Remove the files that a lost stager has left in a bucket. No order for the bucket may be under way."""
        for pid in self._unswept.pop(bucket.address, ()):
            with contextlib.suppress(FsreplError, OSError):
                staging.sweep_of(bucket, pid)

    def rest(self, now_s: float) -> None:
        """End the stager once it was idle for long, and notice that it has ended by itself. Called now and then."""
        if self._child is not None and self._guard.acquire(blocking=False):
            try:
                if self._child is not None and self._child.why_ended:
                    self._lost(self._child.why_ended)
                elif self._child is not None and self._child.is_idle() and now_s - self._used_at_s > _IDLE_S:
                    self._failures = 0
                    self._close()
            finally:
                self._guard.release()

    def end(self) -> None:
        """End it before the daemon ends."""
        self.is_ending = True
        if self._guard.acquire(timeout=2 * _ENDING_S):
            try:
                self._close()
            finally:
                self._guard.release()

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Child:
    """The process, and the connection to it. Raises OSError where it cannot be started."""

    def __init__(self, command: Sequence[str]) -> None:
        self._socket, its = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*command, str(its.fileno())], pass_fds=[its.fileno()], cwd="/",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            self._socket.close()
            raise
        finally:
            its.close()
        self.pid = self._process.pid
        self.addresses: set[str] = set()
        """The buckets in which it may have staged files that the daemon does not know of, if it is lost."""
        self.is_ready = False
        """Whether it takes orders. Its start takes a moment; meanwhile the daemon does the work."""
        self.why_ended = ""
        self._unanswered: deque[Pending] = deque()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_PATIENCE_S), 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._reader = threading.Thread(target=self._read, name="stager", daemon=True)
        self._reader.start()

    def is_idle(self) -> bool:
        return not self._unanswered

    def is_slow(self) -> bool:
        """Whether it has worked on one order for so long that no region should wait for the next one."""
        try:
            return time.monotonic() - self._unanswered[0].began_s > _PATIENCE_S
        except IndexError:
            return False

    def is_stopped(self) -> bool:
        """Whether somebody has stopped it, so that it answers nothing. Source: proc_pid_stat(5)."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2][:1] in (b"T", b"t")
        except OSError:
            return False

    def keeps_waiting(self, pending: Pending, now_s: float) -> bool:
        """Whether an order waits for another region's, which hangs in its filesystem as far as can be seen."""
        try:
            first = self._unanswered[0]
        except IndexError:
            return False
        return first is not pending and now_s - first.began_s > _BEHIND_S

    def send(self, pending: Pending, data: bytes, buckets: Sequence[OpenBucket]) -> Pending:
        """Send an order, whose answer is pending then. Raises OSError."""
        self.addresses.add(buckets[0].address)
        rest = memoryview(len(data).to_bytes(_LENGTH, "big") + data)
        self._unanswered.append(pending)
        rest = rest[socket.send_fds(self._socket, [rest], [bucket.fd for bucket in buckets]) :]
        while rest:
            rest = rest[self._socket.send(rest) :]
        return pending

    def _read(self) -> None:
        try:
            self.is_ready = receive_frame(self._socket) == READY
            while True:
                answer = receive_frame(self._socket)
                self._unanswered.popleft().settle(answer)
        except (EOFError, OSError, IndexError) as error:
            self.why_ended = reason(error) if isinstance(error, OSError) else "it ended"
        self.is_ready = False
        while self._unanswered:
            self._unanswered.popleft().settle(None)

    def close(self) -> None:
        """Let it end by itself, which it does at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)
        self.end()

    def kill(self) -> None:
        """Kill it: the daemon does all that it has not answered. Where it hangs in the kernel it ends later."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Kill it where it has not ended, and close the connection, which is not used any more."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LOOK_S)
        self._reader.join(_LOOK_S)
        self._socket.close()


def command(main: str) -> list[str]:
    """The command line of a process that calls a function, MODULE:NAME, of the program that runs here."""
    module, _, name = main.partition(":")
    run = f"import sys; sys.path[:] = sys.argv[1:-1]; from {module} import {name}; {name}(int(sys.argv[-1]))"
    return [sys.executable, "-I", "-c", run, *(os.path.abspath(path) for path in sys.path)]


# -- both sides


def is_text(*found: Mapping[str, object]) -> bool:
    """Whether names and values of attributes can be sent: a filesystem takes any bytes for them."""
    try:
        for each in found:
            for name, value in each.items() if each else ():
                name.encode()
                if isinstance(value, str):
                    value.encode()
    except UnicodeEncodeError:
        return False
    return True


def receive_frame(connection: socket.socket) -> bytes:
    """One frame without descriptors. Raises EOFError, OSError; BlockingIOError where a socket that does not
    block has none."""
    return _read(connection, int.from_bytes(_read(connection, _LENGTH), "big"))


def _read(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not (part := connection.recv(count - len(data))):
            raise EOFError
        data += part
    return bytes(data)


def receive_order(connection: socket.socket) -> tuple[Order, list[int]]:
    """The next order, with its descriptors, which are the caller's to close. Raises EOFError at the end."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
    if not head:
        raise EOFError
    head += _read(connection, _LENGTH - len(head))
    return _orders.decode(_read(connection, int.from_bytes(head, "big"))), fds


_FDS_MAX = 2
_orders = msgspec.msgpack.Decoder(Order)


def send_frame(connection: socket.socket, data: bytes) -> None:
    connection.sendall(len(data).to_bytes(_LENGTH, "big") + data)
