"""The control socket: one socket in the site's state folder, both sides of it.

A request is a line of JSON (request_json.py); the answer is another, {"ok"} or {"error"}. The socket is
0600, and its peer must be the daemon's user or root. A Unix socket's path may have 107 bytes, so both
sides reach it through a descriptor of the folder. Source: design.md, sections 5 and 8; unix(7).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fsrepl import errors
from fsrepl.daemon import request_json, requests
from fsrepl.daemon.requests import Request
from fsrepl.errors import FsreplError, NotRunning, Refused, Usage, reason
from fsrepl.model import json_text

log = logging.getLogger("fsrepl")


SOCKET = "control"
TOO_MANY = "SlowDown"
"""S3's code for too many requests at once."""
COMMANDS_MAX = 1024
"""Number of commands that a daemon serves at once: each takes a thread and a descriptor."""
_REQUEST_MAX_BYTES = 8 << 20
_PEER = struct.Struct("3i")
_TIMEVAL = struct.Struct("ll")
_LOOK_S = 1.0
_HANDSHAKE_S = 10.0

Alive = Callable[[], bool]
"""Whether the caller still waits for the answer."""
Handler = Callable[[Request, Alive], dict[str, object]]


@contextlib.contextmanager
def short_path(state: str | os.PathLike[str], name: str = SOCKET) -> Iterator[str]:
    """The path of a socket in a form that fits: a Unix socket's path may have 107 bytes. Source: unix(7)."""
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


# -- the daemon's side


class Server:
    """Answers requests, each in its own thread, and at most commands_max of them at once."""

    def __init__(
        self, state: str | os.PathLike[str], handle: Handler, commands_max: int = COMMANDS_MAX, look_s: float = _LOOK_S
    ) -> None:
        """The caller holds the site's lock, so an existing socket belongs to a dead process. look_s: how often to look
        whether the socket is still there."""
        self._state, self._handle, self._commands_max, self._look_s = state, handle, commands_max, look_s
        self._free = threading.BoundedSemaphore(commands_max)
        self._turned_away = False
        self._listener, self._bound = self._listen()
        self._closing = False
        self._woken, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def _listen(self) -> tuple[socket.socket, os.stat_result]:
        """A new listener at the socket's path, and the status of that path."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._state, SOCKET))
            with short_path(self._state) as path:
                listener.bind(path)
                os.chmod(path, 0o600)
                bound = os.lstat(path)
            listener.listen(self._commands_max)  # the kernel takes fewer where net.core.somaxconn is lower
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener, bound

    def _keep(self) -> None:
        """Listen again where the socket was deleted or replaced: commands would take the daemon for dead."""
        if self._is_there():
            return
        with contextlib.suppress(OSError):  # the state folder is gone or full: the next call tries again
            listener, bound = self._listen()
            self._listener.close()
            self._listener, self._bound = listener, bound
            log.warning("the control socket, %s, was deleted: listening again", os.path.join(self._state, SOCKET))

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.lstat(os.path.join(self._state, SOCKET)), self._bound)
        return False

    def keep(self) -> None:
        """Have the socket made again where it was deleted or replaced. Any thread may call it."""
        if not self._is_there():
            self._wake_up()

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):  # closed
            self._wake.send(b"!")

    def _is_called(self) -> bool:
        """Wait for a command; False where none came for long, or somebody has woken this thread."""
        poll = select.poll()
        for each in (self._listener, self._woken):
            poll.register(each, select.POLLIN)
        ready = dict(poll.poll(self._look_s * 1000))
        if self._woken.fileno() in ready:
            self._woken.recv(64)
        return self._listener.fileno() in ready

    def _run(self) -> None:
        while not self._closing:
            try:
                if not self._is_called():
                    if not self._closing:
                        self._keep()
                    continue
                connection, _ = self._listener.accept()
            except OSError as error:
                log.warning("a command could not be accepted: %s", reason(error))
                threading.Event().wait(_LOOK_S)  # no descriptors left: not a reason to spin
                continue
            if self._closing:
                connection.close()
                return
            self._receive(connection)

    def _receive(self, connection: socket.socket) -> None:
        """Serve a command in its own thread, or answer that there are too many."""
        if not self._free.acquire(blocking=False):
            self._turn_away(connection, f"the daemon is busy with {self._commands_max:,} commands")
            return
        try:
            threading.Thread(target=self._serve, args=(connection,), name="command", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            self._free.release()
            self._turn_away(connection, f"the daemon has no thread for another command ({error})")
        else:
            self._turned_away = False

    def _turn_away(self, connection: socket.socket, why: str) -> None:
        """Refuse without a thread and without reading the request. The log gets a line each time refusals begin."""
        if not self._turned_away:
            log.warning("commands are turned away: %s", why)
            self._turned_away = True
        answer = error_document(Refused(TOO_MANY, f"{why}; try again when some of them have ended"))
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._talk(connection)
        finally:
            self._free.release()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_HANDSHAKE_S)
            _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if uid not in (0, os.geteuid()):
                answer: dict[str, object] = error_document(
                    Refused("AccessDenied", "the daemon obeys its own user and root")
                )
            else:
                answer = self._answer(connection)
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, connection: socket.socket) -> dict[str, object]:
        try:
            request = request_json.decode(_read_line(connection, _REQUEST_MAX_BYTES))
        except Usage as error:
            return error_document(error)
        except ValueError as error:
            return error_document(Usage(f"the daemon was asked something it does not understand: {error}"))
        op = request.op
        try:
            return {"ok": self._handle(request, lambda: _is_open(connection))}
        except FsreplError as error:
            return error_document(error)
        except OSError as error:
            return error_document(FsreplError(f"{op} failed: {error.strerror or error}"))
        except Exception:
            log.exception("command op=%s: an unexpected error", op)
            return error_document(FsreplError(f"{op} failed with an unexpected error; the daemon's log has it"))

    def close(self) -> None:
        self._closing = True
        self._wake_up()
        self._thread.join(_HANDSHAKE_S)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._state, SOCKET))
        if not self._thread.is_alive():  # it may hang in the state's filesystem
            for each in (self._listener, self._woken, self._wake):
                each.close()


def _is_open(connection: socket.socket) -> bool:
    """Whether the peer still waits. A peer sends nothing after its request, so readable input is its end."""
    poll = select.poll()  # select(2) takes no descriptor from 1,024 on
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)


def _read_line(connection: socket.socket, max_bytes: int | None) -> bytes:
    """A line, of any length where max_bytes is None. Raises ValueError where it is longer, or has no end."""
    data = bytearray()
    while not data.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            raise ValueError("it was cut short")
        data += part
        if max_bytes is not None and len(data) > max_bytes:
            raise ValueError(f"a request may have {max_bytes:,} bytes")
    return bytes(data)


def error_document(error: FsreplError) -> dict[str, object]:
    """An error as an answer."""
    document: dict[str, object] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, Refused):
        document["code"] = error.code
    return {"error": document}


# -- the caller's side


def ask(state: str | os.PathLike[str], request: Request, timeout_s: float | None = None) -> dict[str, Any]:
    """The daemon's answer, however long, or the error that the operation raised there.

    Raises NotRunning only where nothing listens, or the daemon is ending: an answer that cannot be read comes from a
    running daemon.
    """
    op, line = request.op, request_json.encode(request)
    if len(line) > _REQUEST_MAX_BYTES:
        raise Usage(f"{op}: a request of {len(line):,} bytes is too long; it may have {_REQUEST_MAX_BYTES:,}")
    with _connected(state, op, timeout_s) as connection:
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(line)  # a daemon that stops reading has sent its reason
            answer = json_text.loads(_read_line(connection, None))
            if "error" not in answer:
                found: dict[str, Any] = answer["ok"]
                return found
        except TimeoutError as error:
            raise _late(op, timeout_s) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unanswered(state, op, error) from error
    raise raised(answer["error"])


@contextlib.contextmanager
def _connected(state: str | os.PathLike[str], op: str, timeout_s: float | None) -> Iterator[socket.socket]:
    """A connection to the daemon. Raises NotRunning where nothing listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            if timeout_s is not None:  # a full queue of connections makes connect(2) wait. Source: unix(7), socket(7)
                until = _TIMEVAL.pack(int(timeout_s), max(1, int(timeout_s % 1 * 1e6)))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, until)
            with short_path(state) as path:
                connection.connect(path)
            connection.settimeout(timeout_s)
        except PermissionError as error:
            raise Refused(
                "AccessDenied", f"the daemon of this site obeys its own user and root: {reason(error)}"
            ) from error
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotRunning("the daemon of this site is not running; `fsrepl daemon` starts it") from error
        except BlockingIOError as error:
            raise _late(op, timeout_s) from error
        except OSError as error:
            raise FsreplError(f"the daemon of this site could not be asked: {reason(error)}") from error
        yield connection


def _late(op: str, timeout_s: float | None) -> errors.TimedOut:
    return errors.TimedOut(f"the daemon did not answer {op} within {timeout_s} s")


def _unanswered(state: str | os.PathLike[str], op: str, error: Exception) -> FsreplError:
    """The error for an answer that could not be read: the daemon may have ended meanwhile."""
    try:
        with _connected(state, op, _HANDSHAKE_S):
            pass
    except NotRunning:
        return NotRunning(f"the daemon of this site ended before it answered {op}; `fsrepl daemon` starts it")
    except FsreplError:
        pass
    why = reason(error)
    return FsreplError(
        f"the daemon runs, and its answer to {op} cannot be read: {why}; the request may have been carried out"
    )


def answers(state: str) -> bool:
    """Whether a daemon runs, even if it hangs."""
    try:
        ask(state, requests.GetSite(), _HANDSHAKE_S)
    except NotRunning:
        return False
    except FsreplError:
        return True
    return True


def raised(document: dict[str, Any]) -> FsreplError:
    """The error of an answer, {"kind", "message"}."""
    kind, message = document.get("kind"), str(document.get("message"))
    if kind == "Refused":
        code = str(document["code"])
        return Refused(code, message.removeprefix(f"{code}: "))
    found = getattr(errors, str(kind), FsreplError)
    if not (isinstance(found, type) and issubclass(found, FsreplError)):
        return FsreplError(message)
    return next(each for each in found.__mro__ if each in _OF_A_MESSAGE)(message)


_OF_A_MESSAGE: tuple[type[FsreplError], ...] = (
    errors.Usage, errors.Away, errors.TierAway, errors.Unreachable, errors.DocumentInvalid, errors.Unavailable,
    errors.BucketMissing, errors.StoreDamaged, errors.TimedOut, NotRunning, FsreplError,
)  # fmt: skip
"""The errors that are made again from a daemon's answer; any other error becomes its nearest base class here."""
