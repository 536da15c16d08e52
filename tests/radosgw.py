"""Ceph's radosgw over one monitor and one store in memory: the S3 service that most people run themselves.

Unlike the services of tests/services.py it is no imitation, and differs from S3 in its own ways: a deleted key gets no
second marker, a wrong SHA-256 is accepted. `FSREPL_RADOSGW=1 bash tests/run` installs it from Debian's packages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.services import KEYS, Service
from tests.waiting import until

PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool", "ceph-authtool")

only_with_radosgw = pytest.mark.skipif(
    not (os.environ.get("FSREPL_RADOSGW") and all(map(shutil.which, PROGRAMS))),
    reason="runs with FSREPL_RADOSGW=1, where radosgw, ceph-mon and ceph-osd are installed",
)

_SETTINGS = """
[global]
fsid = {fsid}
keyring = {home}/keyring
mon host = v2:127.0.0.1:{monitor_port}
mon initial members = a
mon data = {home}/mon
mon data avail crit = 0
mon allow pool size one = true
auth allow insecure global id reclaim = false
osd data = {home}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
run dir = {home}/run
admin socket = {home}/run/$name.asok
log file = {home}/run/$name.log
pid file = {home}/run/$name.pid
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw run sync thread = false
"""


class Radosgw(Service):
    """A service as in tests/services.py."""

    def __init__(self, log: Path) -> None:
        super().__init__(log, "radosgw")
        self._home = log.parent / f"ceph-{uuid.uuid4().hex[:8]}"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        if self._process is not None:
            return
        if not self._daemons:
            self._make_cluster()
        self._process = self._run("radosgw", "-n", "client.rgw")
        until(self._answers, lambda: f"radosgw answers\n{self._log.read_text()[-2000:]}")

    def _make_cluster(self) -> None:
        for name in ("mon", "osd", "run"):
            (self._home / name).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monitor_port = free.getsockname()[1]
        fsid = str(uuid.uuid4())
        (self._home / "ceph.conf").write_text(
            _SETTINGS.format(fsid=fsid, home=self._home, monitor_port=monitor_port, port=self.port)
        )
        keyring, monmap = str(self._home / "keyring"), str(self._home / "monmap")
        for number, name in enumerate(("mon.", "client.admin", "client.rgw", "osd.0")):
            allowed = [word for of in ("mon", "osd", "mgr") for word in ("--cap", of, "allow *")]
            self._do("ceph-authtool", keyring, *([] if number else ["-C"]), "--gen-key", "-n", name, *allowed)
        self._do("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", monmap)
        self._do("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._daemons.append(self._run("ceph-mon", "-i", "a"))
        store = str(uuid.uuid4())
        self._do("ceph", "osd", "new", store)
        self._do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", store)
        self._daemons.append(self._run("ceph-osd", "-i", "0"))
        until(lambda: "1 up" in self._do("ceph", "osd", "stat"), "the store is up")
        user = ("--uid", "tests", "--display-name", "tests", "--max-buckets", "0")
        access, secret = KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]
        self._do(
            "radosgw-admin", "-n", "client.rgw", "user", "create", *user, "--access-key", access, "--secret-key", secret
        )

    def _do(self, program: str, *arguments: str) -> str:
        settings = ["-c", str(self._home / "ceph.conf")]
        found = subprocess.run([program, *settings, *arguments], capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, f"{program} {arguments}: {found.stderr}"
        return found.stdout

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, "-f", "-c", str(self._home / "ceph.conf"), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def reset(self) -> None:
        import boto3  # which takes a seventh of a second, in each process of the tests

        s3 = boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        for bucket in s3.list_buckets()["Buckets"]:
            name = bucket["Name"]
            for upload in s3.list_multipart_uploads(Bucket=name).get("Uploads", ()):
                s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=name):
                for each in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    s3.delete_object(Bucket=name, Key=each["Key"], VersionId=each["VersionId"])
            s3.delete_bucket(Bucket=name)

    def end(self) -> None:
        """Stop for good: the cluster too, which keeps all that was stored while radosgw alone is stopped."""
        self.stop()
        for each in self._daemons:
            each.kill()
            each.wait()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._home)
