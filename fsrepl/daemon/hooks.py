"""Event hooks: a command that is run for each event, a webhook that each is posted to.

events.jsonl is the queue, so no other work waits for a hook. Events of a time when a hook or the daemon
was down are sent later, as far as the two files reach. The position of each hook is a file
beside them, written after each event: after a crash an event may be sent twice, with the same id.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import fsrepl
from fsrepl.errors import FsreplError, reason
from fsrepl.region.reporter import Complaint
from fsrepl.settings import Events
from fsrepl.storage.documents import write_bytes
from fsrepl.storage.eventlog import EventLog, Reader, id_of

log = logging.getLogger("fsrepl")


_COMMAND_S = 30.0
_WEBHOOK_S = 10.0
_TRIES_MAX = 5
_PAUSE_MAX_S = 60.0
_END_S = 1.0
_AGAIN_LATER = frozenset({408, 425, 429})


class NotTaken(Exception):
    """A hook that did not take an event. lasting: a retry may do harm, or no good: after some tries it is skipped."""

    def __init__(self, why: str, *, lasting: bool) -> None:
        super().__init__(why)
        self.lasting = lasting


class Target(Protocol):
    """A receiver of events. name: the name of its position file."""

    name: str

    def send(self, line: bytes) -> None:
        """Send one event. Raises NotTaken."""

    def stop(self) -> None:
        """End a send in progress. Called from another thread."""


class Command:
    """A program that gets one event, a line, on its standard input; exit status 0 means taken."""

    name = "command"

    def __init__(self, arguments: Sequence[str], timeout_s: float = _COMMAND_S) -> None:
        self._arguments, self._timeout_s = arguments, timeout_s
        self._guard = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def send(self, line: bytes) -> None:
        process = self._start()
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(line + b"\n")
            status = process.wait(self._timeout_s)
        except subprocess.TimeoutExpired as error:
            raise NotTaken(f"it was ended, not done after {self._timeout_s:.0f} s", lasting=True) from error
        finally:
            _end(process)
            with self._guard:
                self._running = None
        if status:
            how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
            raise NotTaken(how, lasting=True)

    def _start(self) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        with self._guard:
            if self._stopped:
                raise NotTaken("stopping", lasting=False)
            try:
                self._running = subprocess.Popen(
                    self._arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    env=environ,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise NotTaken(reason(error), lasting=False) from error
            return self._running

    def stop(self) -> None:
        with self._guard:
            self._stopped = True
            running = self._running
        if running is not None:
            _end(running)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it still runs, with all processes of its group."""
    # RACE: if it ended since the poll, its number could be reused; numbers come round too slowly for that.
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


class Webhook:
    """An address that each event is posted to. A 2xx answer means taken; redirects are not followed."""

    name = "webhook"

    def __init__(self, url: str, timeout_s: float = _WEBHOOK_S) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects)

    def send(self, line: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": f"fsrepl/{fsrepl.__version__}"}
        request = urllib.request.Request(self._url, line + b"\n", headers, method="POST")
        try:
            self._opener.open(request, timeout=self._timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()
            again = error.code >= 500 or error.code in _AGAIN_LATER
            raise NotTaken(f"status {error.code} {error.reason}", lasting=not again) from error
        except urllib.error.URLError as error:
            raise NotTaken(str(error.reason), lasting=False) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotTaken(str(error) or type(error).__name__, lasting=False) from error

    def stop(self) -> None:
        """A request ends by itself, within its timeout."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


class EventSender:
    """Sends all events to one target, in order, in its own thread, from its last position."""

    def __init__(self, eventlog: EventLog, target: Target, pause_s: float = 1.0) -> None:
        self._eventlog, self._target, self._pause_s = eventlog, target, pause_s
        self._complaint = Complaint(f"events: not sent to the {target.name}")
        self._stop = threading.Event()
        with contextlib.suppress(OSError):  # tried again, and reported, where the events are read
            self._begin()
        self._thread = threading.Thread(target=self._run, name=f"events {target.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the current event finish, if that is quick; else it is sent again at the next start."""
        self._stop.set()
        with self._eventlog.written:
            self._eventlog.written.notify_all()
        self._thread.join(_END_S)
        self._target.stop()
        self._thread.join(3 * _END_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for line in self._lines():
                    if not self._send(line):
                        return
                    _write_position(self._eventlog, self._target.name, id_of(line))
            except (FsreplError, OSError) as error:
                self._complaint.say(error)
                self._stop.wait(_PAUSE_MAX_S)

    def _send(self, line: bytes) -> bool:
        """Whether an event is done: sent, or skipped. False: stopping."""
        tries = 0
        while not self._stop.is_set():
            try:
                self._target.send(line)
                self._complaint.over()
                return True
            except NotTaken as error:
                if self._stop.is_set():
                    return False
                tries += 1
                if error.lasting and tries >= _TRIES_MAX:
                    self._complaint.say(f"{error}; event {id_of(line)} is skipped after {tries} tries")
                    return True
                self._complaint.say(error)
            self._stop.wait(min(_PAUSE_MAX_S, self._pause_s * 2.0 ** (tries - 1)))
        return False

    # -- the position

    def _begin(self) -> None:
        """Start a new target at the newest event: it gets no older ones."""
        if _read_position(self._eventlog, self._target.name) is None:
            _write_position(self._eventlog, self._target.name, self._eventlog.last_id())

    def _lines(self) -> Iterator[bytes]:
        """The events after the last sent one, and new ones as they come."""
        self._begin()
        last = _read_position(self._eventlog, self._target.name)
        skipping = bool(last) and self._has(last)
        if last and not skipping:
            log.warning("events: the %s missed some, which events.jsonl no longer has", self._target.name)
        with Reader(self._eventlog.state, self._eventlog.fs) as reader:
            while not self._stop.is_set():
                count = self._eventlog.count
                for line in reader.lines():
                    if not skipping:
                        yield line
                    elif id_of(line) == last:
                        skipping = False
                with self._eventlog.written:
                    self._eventlog.written.wait_for(lambda: self._stop.is_set() or self._eventlog.count != count)  # noqa: B023

    def _has(self, identity: str | None) -> bool:
        """Whether an event is still in the files. Where the last sent one is not, all of them are sent."""
        with Reader(self._eventlog.state, self._eventlog.fs) as reader:
            return any(id_of(line) == identity for line in reader.lines())


def check(settings: Events) -> str:
    """The fault of the settings, which does not keep the daemon from replicating; empty where there is none."""
    if settings.command and shutil.which(settings.command[0]) is None:
        return f"[events] command: there is no program {settings.command[0]!r}; events.jsonl has the events meanwhile"
    return ""


def _position_file(name: str) -> bytes:
    return f"events.{name}.told".encode()


def _read_position(eventlog: EventLog, name: str) -> str | None:
    """The id of the last event sent to a target; None where none was sent yet."""
    fs = eventlog.fs
    at = fs.open_root(eventlog.state)
    try:
        fd = fs.open_read(at, _position_file(name))
    except FileNotFoundError:
        return None
    finally:
        fs.close(at)
    try:
        return fs.read_all(fd).decode("ascii", "replace").strip()
    finally:
        fs.close(fd)


def _write_position(eventlog: EventLog, name: str, identity: str) -> None:
    at = eventlog.fs.open_root(eventlog.state)
    try:
        write_bytes(eventlog.fs, at, _position_file(name), identity.encode() + b"\n", durable=False)
    finally:
        eventlog.fs.close(at)


def _forget_position(eventlog: EventLog, name: str) -> None:
    with contextlib.suppress(OSError):
        at = eventlog.fs.open_root(eventlog.state)
        try:
            eventlog.fs.unlink(at, _position_file(name))
        finally:
            eventlog.fs.close(at)


class Hooks:
    """The hooks that the settings name."""

    def __init__(self, eventlog: EventLog) -> None:
        self._eventlog = eventlog
        self._settings = Events()
        self._senders: dict[str, EventSender] = {}

    def configure(self, settings: Events) -> None:
        """Follow the settings. A removed hook loses its position, and starts afresh if it is set again."""
        wanted: dict[str, Callable[[], Target] | None] = {
            "command": (lambda: Command(settings.command)) if settings.command else None,
            "webhook": (lambda: Webhook(settings.webhook)) if settings.webhook else None,
        }
        for name, make in wanted.items():
            same = getattr(settings, name) == getattr(self._settings, name)
            if name in self._senders and not same:
                self._senders.pop(name).stop()
            if make is None:
                _forget_position(self._eventlog, name)
            elif name not in self._senders:
                self._senders[name] = EventSender(self._eventlog, make())
        self._settings = settings

    def close(self) -> None:
        """Stop sending; the next start continues from each position."""
        while self._senders:
            self._senders.popitem()[1].stop()
