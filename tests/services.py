"""An S3 service in a process of its own, and worlds that replicate into it.

There are two, which keep versions, markers, tags, metadata and uploads in parts as S3 does. moto accepts any checksum,
so that what is sent to it is read back; ministack refuses a wrong one, so that it is believed. They also differ in what
they say with an object, and in what they find of versions below a marker.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fsrepl.remote import form
from fsrepl.remote.bucket import RemoteBucket
from fsrepl.remote.client import Client
from fsrepl.settings import EndpointSettings, reading
from tests.waiting import until
from tests.world import SOURCE, World

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secret"}
_MOTO = """
import logging
logging.getLogger("werkzeug").setLevel(logging.WARNING)
from moto.server import main
main()
"""
"""moto's service without a line for each request, which took a seventh of its time."""
THERE = "aws/copies"
"""The bucket that takes replicas."""


class Service:
    """A service that runs until the end of a `with` block; it forgets everything then."""

    def __init__(self, log: Path, kind: str = "moto") -> None:
        self._log, self.kind = log, kind
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: dict[str, Client] = {}
        """By region: botocore takes 40 ms to make one, and a test looks at a bucket ten times."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self._process is not None:
            return
        with self._log.open("ab") as log:
            program = {"moto": ["-c", _MOTO, "-H", "127.0.0.1", "-p", str(self.port)], "ministack": ["-m", "ministack"]}
            dies_with_pytest = ["setpriv", "--pdeathsig", "KILL"]
            self._process = subprocess.Popen(
                [*dies_with_pytest, sys.executable, *program[self.kind]],
                env=os.environ | {"GATEWAY_PORT": str(self.port)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self._answers, lambda: f"the service answers\n{self._log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        try:
            path = {"moto": "/moto-api/", "ministack": "/_ministack/health"}[self.kind]
            with urllib.request.urlopen(self.url + path, timeout=5):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def reset(self) -> None:
        """Remove all buckets, and forget the clients, which have read their credentials."""
        self._clients.clear()
        path = {"moto": "/moto-api/reset", "ministack": "/_ministack/reset"}[self.kind]
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method="POST"), timeout=30):
            pass

    def hang(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """Stop for good."""
        self.stop()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def client(self, region: str = "aws") -> Client:
        if region not in self._clients:
            self._clients[region] = Client(EndpointSettings(region, self.url))
        return self._clients[region]

    def bucket(self, address: str = THERE, *, url: str = "") -> RemoteBucket:
        return RemoteBucket(Client(EndpointSettings("aws", url)) if url else self.client(), address)

    def make_bucket(self, address: str = THERE, *, versioning: bool = True) -> RemoteBucket:
        bucket = self.bucket(address)
        bucket.create()
        if versioning:
            bucket.client.call(
                "put_bucket_versioning", Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"}
            )
        return bucket


@dataclass(frozen=True, slots=True)
class Found:
    """A version or marker as any client of S3 sees it."""

    key: str
    latest: bool
    marker: bool
    data: bytes = b""
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = ""

    @property
    def id(self) -> str:
        """Our version id."""
        return self.metadata.get("fsrepl-version-id", "")


def found_in(bucket: RemoteBucket) -> list[Found]:
    """All versions and markers of users' keys in a bucket, by name: the versions as they were put, then the markers."""
    call, name = bucket.client.call, bucket.name
    found = []
    rows = list(bucket.all_versions())[::-1]  # a list has the newest first
    rows.sort(key=lambda row: (row.name, row.marker))
    for row in rows:
        if row.marker:
            found.append(Found(row.name, row.latest, True))
            continue
        at: dict[str, Any] = {"Bucket": name, "Key": row.name, "VersionId": row.id}
        answer = call("get_object", **at)
        tags = bucket.tags(row.name, row.id)
        metadata, data = answer["Metadata"], answer["Body"].read()
        found.append(
            Found(row.name, row.latest, False, data, metadata, tags, answer.get("StorageClass", "STANDARD"))
        )  # fmt: skip
    return found


def current(bucket: RemoteBucket) -> dict[str, bytes]:
    """What the bucket shows: the content of each key."""
    return {each.key: each.data for each in found_in(bucket) if each.latest and not each.marker}


def sidecars(bucket: RemoteBucket) -> list[str]:
    rows = bucket.client.call("list_objects_v2", Bucket=bucket.name, Prefix=bucket.prefix).get("Contents", ())
    return [row["Key"] for row in rows if form.is_ours(row["Key"], bucket.prefix)]


class RemoteWorld(World):
    """A world whose source is replicated to a bucket of a service."""

    def __init__(
        self, home: Path, service: Service, *, url: str = "", lines: str = "", replicate: bool = True, **more: Any
    ) -> None:
        """url: the service's address, where something stands between (tests/between.py)."""
        super().__init__(home, replicate=False, buckets=(SOURCE,), **more)
        self.service = service
        with self.settings.path.open("a") as file:
            file.write(f'\n[regions.aws]\nendpoint = "{url or service.url}"\n{lines}\n')
        self.settings = reading.load(self.settings.path)
        self.restart()
        if replicate:
            self.run("replication.enable", source=SOURCE, destination=THERE)

    def flush_settling(self) -> None:
        super().flush_settling()
        for receiver in self.engine.receivers.values():
            for queue in receiver.queues.values():
                queue.retry_now()
            for state in getattr(receiver, "states", {}).values():
                if hasattr(state, "looked_at_s"):
                    state.looked_at_s = 0.0
