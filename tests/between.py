"""A server between fsrepl and an S3 service: it notes the requests, and answers some of them itself, or not at all.

It is an HTTP proxy as well, for which the address of the service is asked for as it is, and speaks TLS on request.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "proxy-connection"})
"""Headers of one connection, which are not passed on."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that arrived. target: its path, or with a proxy the whole address."""

    method: str
    target: str
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes = field(repr=False)

    @property
    def path(self) -> str:
        """Where the object is, without what is asked about it."""
        return urlsplit(self.target).path


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in place of the service's."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def refusal(code: str, status: int) -> Reply:
    """S3's answer to what it does not do."""
    return Reply(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())


CUT = Reply(0)
"""The connection ends without an answer."""

Answer = Callable[[Request], Reply | None]
"""None: the service answers."""


def by_service(_: Request) -> Reply | None:
    return None


class Cut:
    """The network ends with one of the requests. lost: "request", which does not arrive, or its "answer"."""

    def __init__(self, number: int, lost: str) -> None:
        self.left, self._lost = number, lost

    def before(self, _: Request) -> Reply | None:
        self.left -= 1
        return CUT if self.left < 0 or (self.left == 0 and self._lost == "request") else None

    def after(self, _: Request) -> Reply | None:
        return CUT if self.left == 0 else None


class Between:
    """See the module; it runs until the end of a `with` block. port: the service's. answer may be replaced any time.

    after: called with each request that the service has carried out; CUT loses its answer.
    """

    def __init__(self, port: int, answer: Answer = by_service, tls: ssl.SSLContext | None = None) -> None:
        self._service_port, self.answer, self.after = port, answer, by_service
        self.requests: list[Request] = []
        self._guard = threading.Lock()
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                self.close_connection = True
                with contextlib.suppress(ConnectionError):  # a client that was killed
                    self.raw_requestline = self.rfile.readline(65537)
                    if self.raw_requestline and self.parse_request():
                        between.carry_out(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.scheme = "https" if tls is not None else "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Between:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def carry_out(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request. In the connection's thread."""
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(int(headers.get("content-length", 0)))
        request = Request(handler.command, handler.path, headers, body)
        with self._guard:
            self.requests.append(request)
        reply = self.answer(request)
        if reply is None:
            reply = self._ask(request)
            if self.after(request) is CUT:
                reply = CUT
        if reply is CUT:
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            return
        lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, '')}"]
        given = dict(reply.headers)
        length = given.pop("content-length", str(len(reply.body))) if request.method == "HEAD" else str(len(reply.body))
        lines += [f"{name}: {value}" for name, value in given.items()]
        if reply.status not in (204, 304):
            lines.append(f"Content-Length: {length}")
        with contextlib.suppress(OSError):
            handler.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body)

    def _ask(self, request: Request) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self._service_port, timeout=30)
        at = urlsplit(request.target)
        target = at.path + (f"?{at.query}" if at.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        try:
            connection.request(request.method, target, request.body, headers)
            found = connection.getresponse()
            body = found.read()
            kept = "content-length" if request.method == "HEAD" else ""
            passed = [(n.lower(), v) for n, v in found.getheaders() if n.lower() not in _HOP or n.lower() == kept]
            return Reply(found.status, body, tuple(passed))
        finally:
            connection.close()
