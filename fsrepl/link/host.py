"""A region on another machine, as the site sees it: at most one connection to its agent, and questions over that.

The daemon keeps the connection, and has a listener for what concerns deliveries (daemon/ssh_region.py). A command
without a daemon connects when it asks, and the connection ends with its process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from msgspec.structs import replace

import fsrepl
from fsrepl.errors import FsreplError, Unavailable, Unreachable
from fsrepl.link import channel, frames, ssh
from fsrepl.link.channel import Channel
from fsrepl.link.frames import FromAgent, Hello, Welcome
from fsrepl.model import json_text
from fsrepl.model.address import name_of
from fsrepl.model.version import Versioning
from fsrepl.remote.elsewhere import Elsewhere
from fsrepl.settings import HostSettings

log = logging.getLogger("fsrepl")

ANSWER_S = 30.0
"""How long a command waits for an answer."""

Launch = Callable[[HostSettings], ssh.Process]


class Listener(Protocol):
    """Receives the events of a connection, in the connection's own thread."""

    def on_frame(self, connection: Connection, frame: FromAgent) -> None: ...

    def on_end(self, connection: Connection, why: str) -> None: ...


class Host(Elsewhere):
    """See the module. introduce: makes the greeting of this site."""

    settings: HostSettings

    launch: Launch = ssh.Ssh

    def __init__(self, settings: HostSettings, introduce: Callable[[Host], Hello]) -> None:
        self.settings = settings
        self._introduce = introduce
        self._guard = threading.Lock()
        self._connection: Connection | None = None
        self._opening: Connection | None = None
        self._is_over = False
        self.listener: Listener | None = None
        self.down = ""
        """In the daemon: why there is no connection, until it has made one again; empty at other times."""
        self.relay: Callable[[str], Mapping[str, str] | None] | None = None
        """In a command: asks the running daemon, whose connection is the only one; None where none runs."""

    @property
    def what(self) -> str:
        return f"a region on another machine, {self.url}"

    @property
    def advice(self) -> str:
        where = f"{self.settings.place.path}/.fsrepl-agent"
        return f"name the bucket that is replicated to it, or say `fsrepl --site {where}` on that machine"

    @property
    def not_attached(self) -> str:
        """The remedy where the site does not know the region yet."""
        return f"region {self.name} is not attached; `fsrepl region add {self.name}={self.url}` attaches it"

    def place_of(self, address: str) -> str:
        return f"{self.url}/{name_of(address)}"

    @property
    def connection(self) -> Connection | None:
        """The connection, where there is one."""
        found = self._connection
        return found if found is not None and not found.why else None

    def connect(self, *, takes: bool = False, replaces: bool = False) -> Connection:
        """The connection, made now where there is none. Raises Unavailable, which says why; Unreachable, which passes.

        takes, replaces: see frames.Hello; a new connection is made for that.
        """
        with self._guard:
            found = self.connection
            if found is not None and not takes:
                return found
            if found is not None:
                found.end("the region is attached again")
            hello = replace(self._introduce(self), takes=takes, replaces=replaces)
            if not (hello.uuid or takes):
                raise Unavailable(self.not_attached)
            made = self._opening = Connection(self, hello)
            try:
                if self._is_over:
                    raise Unavailable("the site ends")
                made.open()
            finally:
                self._opening = None
            self._connection = made
            return made

    def end(self) -> None:
        """Make no connection any more, and give up one that is being made."""
        self._is_over = True
        if (opening := self._opening) is not None:
            opening.give_up()

    def close(self, why: str = "the site ends") -> None:
        """End the connection, if there is one."""
        if (found := self._connection) is not None:
            found.end(why)
            found.join()

    # -- questions

    def _connected(self) -> Connection:
        """A connection for a question. The daemon's commands do not wait for a connection that cannot be made now.
        Raises Unavailable."""
        if self.down and self.connection is None:
            raise Unreachable(self.down)
        return self.connect()

    def ask(self, request: bytes, within_s: float | None = ANSWER_S) -> dict[str, Any]:
        """The answer to a request, as on the control socket. within_s: None for no limit. Raises Unavailable."""
        return self._connected().ask(request, within_s)

    def trouble(self) -> str:
        try:
            self.all_buckets()
        except FsreplError as error:
            return str(error)
        return ""

    def all_buckets(self) -> Mapping[str, str]:
        """The addresses of its buckets, and their versioning. Raises Unavailable."""
        if self.relay is not None and (found := self.relay(self.name)) is not None:
            return found
        return self._connected().buckets

    def buckets(self) -> list[str]:
        return sorted(self.all_buckets())

    def own_buckets(self) -> list[str]:
        return self.buckets()

    def versioning(self, address: str) -> Versioning | None:
        found = self.all_buckets().get(address)
        return None if found is None else Versioning(found)


class Connection:
    """One connection to an agent, from its greeting to its end."""

    def __init__(self, host: Host, hello: Hello) -> None:
        self._host, self._hello, self._settings = host, hello, host.settings
        self._process: ssh.Process | None = None
        self._channel: Channel[FromAgent] | None = None
        self._welcome: Future[Welcome] = Future()
        self._tickets = itertools.count()
        self._answers: dict[int, Future[bytes]] = {}
        self.buckets: Mapping[str, str] = {}
        self.uuid = ""

    @property
    def why(self) -> str:
        """Why it has ended; empty while it is open."""
        return self._channel.why if self._channel is not None else "it is not open yet"

    @property
    def queued_bytes(self) -> int:
        return self._channel.queued_bytes if self._channel is not None else 0

    def open(self) -> None:
        """Connect. Raises Unavailable."""
        process = self._process = type(self._host).launch(self._settings)
        try:
            self._greet(process)
        except BaseException:
            process.stop()
            for fd in (process.read_fd, process.write_fd):
                with contextlib.suppress(OSError):
                    os.close(fd)
            raise
        self._channel = Channel(
            process.read_fd, process.write_fd, frames.of_agent, self._on_frame, self._on_end,
            self._settings.silence_s, self._host.name,
        )  # fmt: skip
        self._channel.start()
        try:
            self._channel.send(self._hello)
            self._welcome.result(self._settings.silence_s + ANSWER_S)
        except TimeoutError:
            self.end("it does not answer")
            raise self._away("its agent does not answer") from None
        except channel.Ended as error:  # before it was asked
            raise self._away(str(error)) from error

    def give_up(self) -> None:
        """End the process that is to carry the connection."""
        if (process := self._process) is not None:
            process.stop()

    def _greet(self, process: ssh.Process) -> None:
        """Compare versions. Raises Unavailable."""
        mine = frames.greeting(frames.SITE, fsrepl.__version__)
        with contextlib.suppress(OSError):  # it has ended: what it said says why
            os.write(process.write_fd, mine)
        within_s = max(self._settings.silence_s, ANSWER_S)
        read = functools.partial(frames.read_greeting, frames.AGENT)
        line, before = channel.read_line(process.read_fd, within_s, lambda line: read(line) is not None)
        found = read(line)
        if found is None:
            said = process.why_ended()
            words = before.decode("utf-8", "replace").strip()[-200:]
            words = f"it printed {words!r} in place of an answer" if words else f"it gives no answer in {within_s:g} s"
            raise self._away(said or words)
        protocol, version = found
        if protocol != frames.PROTOCOL:
            raise self._away(
                f"fsrepl {version} there speaks protocol {protocol}, and fsrepl {fsrepl.__version__} here "
                f"protocol {frames.PROTOCOL}; install the same version on both machines"
            )

    def _away(self, why: str) -> Unreachable:
        return Unreachable(f"region {self._host.name} is offline: {self._host.url}: {why}")

    # -- frames

    def send(self, frame: frames.Frame, *, bulk: bool = False) -> None:
        """Send a frame. Raises Unavailable where the connection has ended."""
        if self._channel is None:
            raise channel.Ended(self.why)
        self._channel.send(frame, bulk=bulk)

    def ask(self, request: bytes, within_s: float | None) -> dict[str, Any]:
        """See Host.ask."""
        ticket, answer = next(self._tickets), Future[bytes]()
        self._answers[ticket] = answer
        try:
            self.send(frames.Ask(ticket, request))
            found: dict[str, Any] = json_text.loads(answer.result(within_s))
            return found
        except TimeoutError:
            raise self._away(f"no answer in {within_s:g} s; the request may have been carried out") from None
        except channel.Ended as error:
            raise self._away(str(error)) from error
        finally:
            self._answers.pop(ticket, None)

    def end(self, why: str) -> None:
        if self._channel is not None:
            self._channel.end(why)

    def join(self) -> None:
        if self._channel is not None:
            self._channel.join(2.0)

    def _on_frame(self, frame: FromAgent) -> None:
        match frame:
            case Welcome(uuid, buckets):
                self.uuid, self.buckets = uuid, buckets
                self._welcome.set_result(frame)
            case frames.Denied(why, away):
                error = self._away(why) if away else Unavailable(f"region {self._host.name}: {self._host.url}: {why}")
                self._welcome.set_exception(error)
                self.end(why)
            case frames.Answer(ticket, answer):
                if (asked := self._answers.get(ticket)) is not None:
                    asked.set_result(answer)
            case frames.Buckets(buckets):
                self.buckets = buckets
            case _:
                if (listener := self._host.listener) is not None:
                    listener.on_frame(self, frame)

    def _on_end(self, why: str) -> None:
        assert self._process is not None
        said = self._process.why_ended() if not self._welcome.done() or "closed" in why else ""
        self._process.stop()
        words = said or why
        if not self._welcome.done():
            self._welcome.set_exception(self._away(words))
        for answer in list(self._answers.values()):
            with contextlib.suppress(Exception):
                answer.set_exception(channel.Ended(words))
        if (listener := self._host.listener) is not None:
            listener.on_end(self, str(self._away(words)))
