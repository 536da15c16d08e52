"""The agent: serves one region to a site on another machine, over its standard input and output.

It is a site of its own with one region and no rules (daemon/served_region.py), and its state is outside of the region
(daemon/agent_home.py). It ends with its connection, or when the region is unmounted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

import fsrepl
from fsrepl.daemon import agent_home, control, live, request_json, requests
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.lock import Lock
from fsrepl.daemon.main import prepare_process
from fsrepl.daemon.requests import Request
from fsrepl.daemon.served_region import AgentEngine
from fsrepl.errors import FsreplError, Refused, Unavailable, Usage, reason
from fsrepl.link import channel, frames
from fsrepl.link.channel import Channel
from fsrepl.link.frames import FromSite, Hello
from fsrepl.model import clock
from fsrepl.region.mailbox import TakeOver
from fsrepl.region.reporter import Formatter
from fsrepl.replicate.arrivals import Incoming
from fsrepl.settings import FILE, Settings, reading
from fsrepl.storage.fs import Fs
from fsrepl.storage.journal.rows import delivery_of

log = logging.getLogger("fsrepl")

_HELLO_S = 60.0
_PROBED_S = 2.0
"""How long the site waits for the buckets to come up; what it sends before that comes back."""
_TERM_S = 4.0
_TURN_S = 0.2
_END_S = 8.0
_BUCKETS_S = 1.0


class Commands(Struct, frozen=True):
    """Handlers above the daemon in the order of imports."""

    run: Callable[[Engine, Request], dict[str, object]]
    """Carry out a request."""
    attach: Callable[[Settings, bool, str], None]
    """Attach the region of a site, and make it where there is none, with this identity. The flag: any region of that
    name will do."""


# -- the connection


class Agent:
    """One connection, from the greeting to its end.

    root: no region outside of it is served. states: the folder of the states of all regions. umask: for a new region's
    directory. fs: for tests.
    """

    def __init__(
        self, read_fd: int, write_fd: int, root: Path, states: Path, commands: Commands, umask: int,
        fs: Fs | None = None,
    ) -> None:  # fmt: skip
        self._read_fd, self._write_fd = read_fd, write_fd
        self._root, self._states, self._commands, self._umask, self._fs = root, states, commands, umask, fs
        self._ended = threading.Event()
        self._hello: Hello | None = None
        self._greeted = threading.Event()
        self._engine: AgentEngine | None = None
        self._since_ns = 0
        self._buckets: dict[str, str] = {}
        self._channel = Channel(read_fd, write_fd, frames.of_site, self._on_frame, self._on_end, _HELLO_S, "site")
        self._incoming = Incoming(self._channel.send)

    def stop(self) -> None:
        self._channel.end("the agent was stopped")

    def run(self) -> int:
        """Serve until the connection ends; the exit status."""
        if not self._greet():
            return 1
        self._channel.start()
        if not self._greeted.wait(_HELLO_S) or self._hello is None:
            self._channel.end("it sent no greeting")
            return 1
        try:
            with contextlib.ExitStack() as held:
                engine = self._begin(self._hello, held)
                self._serve(engine)
        except (FsreplError, OSError, ValueError, sqlite3.Error) as error:  # ValueError: a path with a zero byte
            self._deny(str(error) if isinstance(error, FsreplError) else reason(error), error)
            return 1
        return 0

    def _greet(self) -> bool:
        """Exchange versions; whether both speak the same protocol."""
        os.write(self._write_fd, frames.greeting(frames.AGENT, fsrepl.__version__))
        line, _ = channel.read_line(self._read_fd, _HELLO_S, lambda _: True)
        found = frames.read_greeting(frames.SITE, line)
        if found is None:
            log.error("this is no site of fsrepl: `fsrepl agent` is started by a site, over ssh")
            return False
        if found[0] != frames.PROTOCOL:
            log.error(
                "fsrepl %s here speaks protocol %d, and the site %d", fsrepl.__version__, frames.PROTOCOL, found[0]
            )
            return False
        return True

    def _deny(self, why: str, error: Exception) -> None:
        away = not isinstance(error, (Usage, Refused))
        with contextlib.suppress(Unavailable):
            self._channel.send(frames.Denied(why, away))
            self._channel.flush(_TERM_S)
        self._channel.end(why)
        self._channel.join(_TERM_S)

    # -- the region

    def _begin(self, hello: Hello, held: contextlib.ExitStack) -> AgentEngine:
        """Open the region, this process alone. Raises FsreplError, OSError, sqlite3.Error."""
        self._channel.silence_s = hello.silence_s
        path = agent_home.within(self._root, hello.path)
        identity = agent_home.identity_of(self._fs or Fs(), path, hello)
        state = self._states / identity
        is_moved = agent_home.bring_over(path, state, hello)
        undo = held.enter_context(contextlib.ExitStack())
        if agent_home.check_state(state, hello):
            undo.callback(shutil.rmtree, state, ignore_errors=True)
        lock = held.enter_context(Lock(state))
        agent_home.acquire(lock, state, hello)
        agent_home.write_settings(state, hello, path)
        agent_home.note_site(state, hello)
        settings = replace(
            reading.load(state / FILE), capture=hello.capture, replication=hello.replication, scrub=hello.scrub,
            safety=hello.safety,
        )  # fmt: skip
        if hello.takes or is_moved:
            self._make_directory(path)
            self._commands.attach(settings, hello.replaces, identity)
        undo.pop_all()
        agent_home.link_to(path, state)
        engine = AgentEngine(settings, self._incoming, self._fs)
        held.callback(self._close, engine)
        with engine.site.open_region(hello.name):
            uuid = engine.site.identities.regions[hello.name]
        if not hello.takes and hello.uuid != uuid:
            raise Usage(
                f"{path} holds another region than this site knows; `fsrepl region add {hello.name}=…` attaches it"
            )
        engine.served.start()
        server = control.Server(state, self._handle)
        held.callback(server.close)
        until_s = time.monotonic() + _PROBED_S
        while not engine.served.probed and time.monotonic() < until_s:
            time.sleep(_PROBED_S / 1000)
        if hello.takes and hello.replaces and hello.uuid != uuid:
            agent_home.forget(self._states, hello)
        self._engine, self._lock, self._since_ns = engine, lock, engine.site.now()
        self._buckets = _buckets(engine)
        self._channel.send(frames.Welcome(uuid, self._buckets))
        log.info("serving region=%s path=%s state=%s site=%s", hello.name, path, state, hello.where)
        return engine

    def _make_directory(self, path: Path) -> None:
        before = os.umask(self._umask)
        try:
            path.mkdir(parents=True, exist_ok=True)
        finally:
            os.umask(before)

    def _serve(self, engine: AgentEngine) -> None:
        next_s = stuck_since_s = 0.0
        while not self._ended.wait(_TURN_S):
            if engine.served.thread is None or not engine.served.thread.is_alive():
                self._channel.end("the thread of the region ended; the log has why")
                break
            if engine.served.away:
                self._channel.end(engine.served.away)
                break
            engine.look_for_stuck()
            if engine.served.probed:
                engine.journal.begin_check()
            stuck_since_s = (stuck_since_s or time.monotonic()) if engine.served.pulse.is_stuck else 0.0
            if stuck_since_s and time.monotonic() - stuck_since_s > self._channel.silence_s:
                engine.served.give_back_all(f"region {engine.served.name} does not answer there: a filesystem hangs")
            self._lock.keep()
            engine.keep_state_private()
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + _BUCKETS_S
                self._tell_buckets()

    def _tell_buckets(self) -> None:
        assert self._engine is not None
        found = _buckets(self._engine)
        if found != self._buckets:
            self._buckets = found
            with contextlib.suppress(Unavailable):
                self._channel.send(frames.Buckets(found))

    def _close(self, engine: AgentEngine) -> None:
        """Finish the current batch and close the journal; deliveries that are not done are sent again by the site."""
        self._incoming.why = self._incoming.why or "the agent ends"
        engine.fs.interrupted = True
        engine.stop_workers(1.0)
        region = engine.served
        region.stopping = True
        region.wake()
        if region.thread is not None:
            region.thread.join(_END_S)
        if region.thread is None or not region.thread.is_alive():
            engine.close()

    # -- frames

    def _on_frame(self, frame: FromSite) -> None:
        if isinstance(frame, Hello):
            self._hello = frame
            self._greeted.set()
            return
        engine = self._engine
        if engine is None:
            return
        match frame:
            case frames.Deliver(source, destination):
                arrived = self._incoming.add(frame)
                found = [delivery_of(source, each, destination, each.deliveries[destination]) for each in arrived]
                engine.served.post(TakeOver(found))
            case frames.Directories():
                engine.served.take_directories(frame)
            case frames.Times():
                engine.served.take_times(frame)
            case frames.Blocks() | frames.Chunk() | frames.End() | frames.Broken():
                self._incoming.answer(frame)
            case frames.Alive():
                pass
            case frames.Ask(ticket, request):
                threading.Thread(target=self._answer, args=(ticket, request), daemon=True).start()

    def _on_end(self, why: str) -> None:
        self._incoming.why = why
        self._greeted.set()
        self._ended.set()

    def _answer(self, ticket: int, request: bytes) -> None:
        try:
            wanted = request_json.decode(request)
            if not isinstance(wanted, FROM_SITE):
                raise Refused("AccessDenied", f"the agent carries out no {wanted.op} for another machine")
            answer: dict[str, Any] = {"ok": self._handle(wanted, lambda: True)}
        except FsreplError as error:
            answer = control.error_document(error)
        except ValueError as error:
            answer = control.error_document(Usage(f"the agent does not understand the request: {error}"))
        except Exception:
            log.exception("an unexpected error in a request")
            answer = control.error_document(FsreplError("an unexpected error at the agent; its log has it"))
        with contextlib.suppress(Unavailable):
            self._channel.send(frames.Answer(ticket, json.dumps(answer).encode()))

    def _handle(self, request: Request, alive: control.Alive) -> dict[str, object]:
        """Carry out a request of the site, or of a command on this machine."""
        assert self._engine is not None
        match request:
            case requests.GetStatus():
                return self._status(self._engine)
            case requests.GetSamples():
                return {"Hour": [], "Day": []}  # the site's daemon keeps them
            case requests.GetProgress():
                task = self._engine.tasks.find(request.of)
                return {"Done": task.done, "Total": task.total}
            case requests.GetStatusPage():
                return live.page(self._engine, str(request.bucket), request.list, request.after)
            case requests.ExplainObject():
                return live.of_key(self._engine, request.address)
            case requests.Wait():
                raise Refused("InvalidRequest", "the site that sends here knows what is to come: `fsrepl wait` there")
            case _ if isinstance(request, _NOT_HERE):
                raise Refused("InvalidRequest", DESTINATION_ONLY)
            case _:
                answer = self._commands.run(self._engine, request)
        if not isinstance(request, _READING):
            self._engine.served.ask(self._engine.served.probe_now)
            self._tell_buckets()
        return answer

    def _status(self, engine: AgentEngine) -> dict[str, object]:
        """The status, as the daemon's. Nothing is watched here."""
        region = engine.served
        return {
            "running": True,
            "pid": os.getpid(),
            "ready": region.has_looked(),
            "since": clock.stamp(self._since_ns),
            "watched": 0,
            "events_lost": 0,
            "stuck": [region.name] if region.pulse.is_stuck else [],
            **live.status(engine),
        }


_READING = (requests.Examine, requests.RecallVersions)
FROM_SITE = (
    requests.CreateBucket, requests.SetVersioning, requests.SetTrees, requests.RemoveBucket, *_READING,
)  # fmt: skip
"""The requests that the site may make: with --root, none that leads out of the region."""
_NOT_HERE = (
    requests.EnableReplication, requests.PutReplication, requests.AddRegion, requests.ForgetRegion, requests.AddTier,
    requests.RemoveTier,
)  # fmt: skip
DESTINATION_ONLY = "a region that an agent serves takes replicas, and has no rules, tiers or other regions beside it"


def _buckets(engine: Engine) -> dict[str, str]:
    return {address: str(bucket.versioning) for address, bucket in sorted(engine.site.buckets.items())}


# -- the process


def run(root: Path, states: Path, commands: Commands, *, verbose: int = 0) -> int:
    """Serve the site at standard input and output; the exit status. What is printed goes to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING)
    umask = os.umask(0o077)
    prepare_process()
    read_fd, write_fd = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    agent = Agent(read_fd, write_fd, root, states, commands, umask)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: agent.stop())
    status = agent.run()
    logging.shutdown()
    os._exit(status)  # a thread that hangs in a filesystem would keep the interpreter
