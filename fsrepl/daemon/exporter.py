"""The metrics for Prometheus: an endpoint, or a text file for node_exporter, where the settings ask for one.

Only metrics need prometheus_client, so it may be missing otherwise. Endpoint and text file each query the
journal afresh, through their own connection: no other work waits for a scrape.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from fsrepl.daemon.metrics import Gauge
from fsrepl.errors import FsreplError, Usage, reason
from fsrepl.region.reporter import Complaint
from fsrepl.settings import Metrics, Settings
from fsrepl.storage.documents import write_bytes
from fsrepl.storage.fs import Fs

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


log = logging.getLogger("fsrepl")


_EVERY_S = 15.0
_STOP_S = 2.0

Collect = Callable[[], Iterable[Gauge]]


def check(settings: Settings) -> None:
    """Raises Usage where the settings need a package that is not installed."""
    wanted = [name for name in ("listen", "textfile") if getattr(settings.metrics, name) is not None]
    if not wanted:
        return
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise Usage(
            f"{settings.path}: [metrics] {wanted[0]} needs the Python package prometheus-client ({error}); "
            "pip install 'fsrepl[metrics]' brings it"
        ) from error


class Exporter:
    """Exports metrics as the settings say, from configure to close."""

    def __init__(self, collect: Collect, fs: Fs) -> None:
        self._collect, self._fs = collect, fs
        self._settings = Metrics()
        self._server: _Endpoint | None = None
        self._file: _TextFile | None = None

    def configure(self, settings: Metrics) -> None:
        """Follow settings that `check` accepted. An unusable port or path is logged, not raised."""
        if settings.listen != self._settings.listen and self._server is not None:
            self._server.close()
            self._server = None
        if settings.listen and self._server is None:
            self._server = _Endpoint.open(settings.listen, self._registry())
        if settings.textfile != self._settings.textfile:
            if self._file is not None:
                self._file.close()
            self._file = _TextFile(str(settings.textfile), self._registry(), self._fs) if settings.textfile else None
        self._settings = settings

    def close(self) -> None:
        """Stop; the file gets the final values."""
        self.configure(Metrics())

    def _registry(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(_Collector(self._collect))
        return registry


class _Collector:
    """Converts gauges to Prometheus' own."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect
        self._unread = Complaint("metrics cannot be counted")

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        try:
            found = list(self._collect())
        except (sqlite3.Error, OSError, FsreplError) as error:
            self._unread.say(error)  # no numbers rather than wrong ones
            return
        self._unread.over()
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for gauge in found:
            family = families.get(gauge.name)
            if family is None:
                labels = [name for name, _ in gauge.labels]
                kind = CounterMetricFamily if gauge.is_counter else GaugeMetricFamily
                family = families[gauge.name] = kind(gauge.name, gauge.about, labels=labels)
            family.add_metric([value for _, value in gauge.labels], float(gauge.value))
        yield from families.values()


class _Endpoint:
    """An HTTP server, and the thread that waits for requests. One of prometheus_client's own, as any that serves for
    ever, would look twice a second whether it is to end."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self._woken, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @staticmethod
    def open(address: tuple[str, int], registry: CollectorRegistry) -> _Endpoint | None:
        host, port = address
        try:
            server = _server(host, port, registry)
        except OSError as error:
            log.error("metrics: cannot listen on %s port %d: %s; SIGHUP tries again", host, port, reason(error))
            return None
        log.info("metrics listen=%s port=%d", host, port)
        return _Endpoint(server)

    def _run(self) -> None:
        poll = select.poll()
        for each in (self._server, self._woken):
            poll.register(each, select.POLLIN)
        while self._woken.fileno() not in dict(poll.poll()):
            self._server.handle_request()

    def close(self) -> None:
        self._wake.send(b"!")
        self._thread.join()
        self._server.server_close()
        self._wake.close()
        self._woken.close()


def _server(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    """Raises OSError."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from prometheus_client import make_wsgi_app

    class Server(ThreadingMixIn, WSGIServer):
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        daemon_threads = True
        timeout = 0
        """A request that was withdrawn is not waited for."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    return make_server(host, port, make_wsgi_app(registry), Server, Quiet)


class _TextFile:
    """A file that is rewritten at intervals, and once more at the end."""

    def __init__(self, path: str, registry: CollectorRegistry, fs: Fs) -> None:
        self._path, self._registry, self._fs = path, registry, fs
        self._unwritten = Complaint(f"metrics: cannot write {path}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._write()
            self._stop.wait(_EVERY_S)
        self._write()

    def _write(self) -> None:
        from prometheus_client import generate_latest

        try:
            _replace(self._fs, self._path, generate_latest(self._registry))
            self._unwritten.over()
        except OSError as error:
            self._unwritten.say(reason(error))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_STOP_S)


def _replace(fs: Fs, path: str, data: bytes) -> None:
    """Replace the file. It is for another program, so all users may read it."""
    directory, _, name = path.rpartition("/")
    at = fs.open_root(directory or "/")
    try:
        write_bytes(fs, at, os.fsencode(name), data, mode=0o644, durable=False)
    finally:
        fs.close(at)
