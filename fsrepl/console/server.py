"""The process of the console: its two sockets, its threads, its end.

It listens at a TCP address and at the Unix socket `console` in the site's state. A second `fsrepl console` for the same
site finds the first by that socket, and is given another link.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import http.client
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from fsrepl.console import app
from fsrepl.console.access import Access
from fsrepl.console.app import BY_SOCKET, LINK_HEADER, READ_ONLY_HEADER
from fsrepl.console.gateway import Gateway, Watch, check_user
from fsrepl.console.pages import rendering
from fsrepl.daemon.control import short_path
from fsrepl.daemon.log_output import LogOutput
from fsrepl.errors import FsreplError, Usage, reason
from fsrepl.settings import Settings, listening

log = logging.getLogger("fsrepl")

SOCKET = "console"
_BACKLOG = 128
_STOP_S = 2
_ANSWER_S = 10.0
_LINK_MAX_BYTES = 1000


class Options(Struct, frozen=True):
    """The options of the command line, beside the settings."""

    read_only: bool = False
    verbose: int = 0
    quiet: bool = False


def run(settings: Settings, options: Options) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Where a console of this site runs, print another link of it."""
    if trouble := listening.trouble(settings.console):
        raise Usage(f"{settings.path}: {trouble}")
    check_user(settings)
    _check_certificate(settings)
    umask = os.umask(0o077)
    read_only = options.read_only or settings.console.read_only
    if (link := _link_of_running(settings.state, read_only=read_only)) is not None:
        _print_link(settings, link, "a console of this site runs already")
        return 0
    _log_to_stderr(options)
    with contextlib.ExitStack() as stack:
        by_socket = stack.enter_context(_unix_socket(settings.state))
        tcp = stack.enter_context(_tcp_socket(settings)) if settings.console.listen is not None else None
        gateway = Gateway(settings, umask)
        console = app.Console(
            gateway,
            Watch(gateway),
            Access(time.monotonic),
            _cookie(settings),
            _base(settings),
            read_only,
        )
        stack.callback(gateway.verifications.stop_all)
        console.watch.start()
        rendering.prepare()
        stack.callback(console.watch.stop)
        if not _goes_to_journal(sys.stdout.fileno()):
            _print_link(settings, console.new_link() if tcp is not None else "", f"console of {settings.path.parent}")
        log.info("console listens site=%s socket=%s", settings.path.parent, settings.state / SOCKET)
        asyncio.run(_serve(console, settings, by_socket, tcp))
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)  # the interpreter would wait for threads that may be in a filesystem that does not answer


def _check_certificate(settings: Settings) -> None:
    """Raises Usage where the certificate or its key cannot be used."""
    certificate, key = settings.console.certificate, settings.console.key
    if certificate is None or key is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        why = error.reason if isinstance(error, ssl.SSLError) else reason(error)
        raise Usage(
            f"{settings.path}: [console] certificate and key, {certificate} and {key}, cannot be used: {why}"
        ) from error


def _log_to_stderr(options: Options) -> None:
    log.addHandler(LogOutput(sys.stderr.fileno()))
    log.propagate = False
    log.setLevel(logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO)


# -- serving


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(console: app.Console, settings: Settings, by_socket: socket.socket, tcp: socket.socket | None) -> None:
    application = app.create(console)
    servers = [(_Server(_config(_marked(application))), by_socket)]
    if tcp is not None:
        servers.append((_Server(_config(application, settings.console.certificate, settings.console.key)), tcp))

    def stop() -> None:
        console.stopping = True
        for server, _ in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in servers))


def _config(application: ASGIApp, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        application, http="h11", loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, timeout_graceful_shutdown=_STOP_S,
        ssl_certfile=certificate, ssl_keyfile=key,
    )  # fmt: skip


def _marked(application: ASGIApp) -> ASGIApp:
    """The application for requests that come by the Unix socket."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        await application({**scope, BY_SOCKET: True}, receive, send)

    return marked


# -- sockets


@contextlib.contextmanager
def _unix_socket(state: Path) -> Iterator[socket.socket]:
    """The listening Unix socket, 0600; its name is removed at the end. No other console of this site runs."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with listener:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(state / SOCKET)
            with short_path(state, SOCKET) as path:
                listener.bind(path)  # the umask lets nobody else in meanwhile
                os.chmod(path, 0o600)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise FsreplError(f"cannot listen at {state / SOCKET}: {reason(error)}") from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                os.unlink(state / SOCKET)


@contextlib.contextmanager
def _tcp_socket(settings: Settings) -> Iterator[socket.socket]:
    assert settings.console.listen is not None
    host, port = settings.console.listen
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise Usage(f"cannot listen at {host}: {error.strerror}; see listen in [console] of {settings.path}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            other = "another program listens there" if error.errno == errno.EADDRINUSE else reason(error)
            raise FsreplError(
                f"cannot listen at {host} port {port}: {other}; `fsrepl console --listen {host}:PORT` takes another, "
                f"and so does listen in [console] of {settings.path}"
            ) from error
        yield listener


def _link_of_running(state: Path, *, read_only: bool) -> str | None:
    """Another link of a running console; None where none runs. Raises FsreplError where it is not read-only and should
    be."""
    connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_S)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.sock.settimeout(_ANSWER_S)
        with short_path(state, SOCKET) as path:
            connection.sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise FsreplError(f"the console at {state / SOCKET} cannot be asked: {reason(error)}") from error
    try:
        connection.request("POST", "/link", headers={LINK_HEADER: "1"})
        answer = connection.getresponse()
        text = answer.read(_LINK_MAX_BYTES).decode("ascii", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise FsreplError(f"the console at {state / SOCKET} does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise FsreplError(f"the console at {state / SOCKET} gave no link: {answer.status}; restart it")
    if read_only and answer.getheader(READ_ONLY_HEADER) != "1":
        raise FsreplError("a console of this site runs already, and is not read-only; stop it first")
    return text


# -- what is printed


def _cookie(settings: Settings) -> str:
    """The name of the session's cookie: cookies know no ports, and a machine may have several sites."""
    return f"fsrepl-{hashlib.sha256(os.fsencode(settings.path)).hexdigest()[:8]}"


def _base(settings: Settings) -> str:
    """The beginning of addresses for a browser; empty where only the Unix socket is there."""
    if settings.console.listen is None:
        return ""
    host, port = settings.console.listen
    if not listening.is_loopback(host) and settings.console.hosts:
        host = settings.console.hosts[0]
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.console.certificate is not None else 'http'}://{name}:{port}"


def _print_link(settings: Settings, link: str, what: str) -> None:
    """link: empty where no browser reaches the console."""
    print(what)
    if link:
        print(f"  {link}")
        print("  opens it once, within 15 minutes; `fsrepl console` again prints another link", flush=True)
    else:
        print(f"  it listens at the Unix socket {settings.state / SOCKET} alone", flush=True)


def _goes_to_journal(fd: int) -> bool:
    """Whether systemd's journal takes what is printed, where others may read it. Source: systemd.exec(5)."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    found = os.fstat(fd)
    return stream == f"{found.st_dev}:{found.st_ino}"
