"""The least that puts many small objects: one thread with libcurl, many requests at once, and nothing else.

Each request has the headers that fsrepl's have, and is signed. Nothing is recorded here, listed, or read again, so that
no program with these headers could be much faster with the same service: what it takes is the service's.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pycurl

from fsrepl.model import digests
from fsrepl.model.version import Posix, Version
from fsrepl.remote.form import form_of
from tests.services import KEYS


def put_all(top: Path, url: str, at_once: int = 64) -> tuple[float, float]:
    """Put all files below a directory as objects of a bucket: wall and CPU seconds. url: of the bucket."""
    files = iter([(top, f"{folder}/{name}") for folder in sorted(os.listdir(top)) for name in os.listdir(top / folder)])
    began, cpu_s = time.monotonic(), time.process_time()
    multi = pycurl.CurlMulti()
    idle = [_handle() for _ in range(at_once)]
    busy = 0
    while busy or len(idle) == at_once:
        while idle and (file := next(files, None)) is not None:
            _prepare(idle[-1], url, *file)
            multi.add_handle(idle.pop())
            busy += 1
        if not busy:
            break
        multi.select(1.0)
        multi.perform()
        for curl in _finished(multi):
            multi.remove_handle(curl)
            idle.append(curl)
            busy -= 1
    return time.monotonic() - began, time.process_time() - cpu_s


def _handle() -> pycurl.Curl:
    curl = pycurl.Curl()
    curl.setopt(pycurl.UPLOAD, 1)
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    curl.setopt(pycurl.AWS_SIGV4, "aws:amz:us-east-1:s3")
    curl.setopt(pycurl.USERPWD, ":".join(KEYS.values()))
    curl.setopt(pycurl.WRITEFUNCTION, len)
    return curl


def _prepare(curl: pycurl.Curl, url: str, top: Path, name: str) -> None:
    path = top / name
    data, found = path.read_bytes(), path.stat()
    posix = Posix(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns)
    version = Version(
        name.encode(), f"{found.st_ino:026}", found.st_mtime_ns, size=len(data), digest=digests.of(data),
        source="east/src", posix=posix,
    )  # fmt: skip
    md5, sha256 = hashlib.md5(data, usedforsecurity=False).digest(), hashlib.sha256(data)
    headers = {
        "Content-MD5": b64encode(md5).decode(),
        "x-amz-checksum-sha256": b64encode(sha256.digest()).decode(),
        "x-amz-content-sha256": sha256.hexdigest(),
        **{f"x-amz-meta-{name}": value for name, value in form_of(version).metadata.items()},
    }
    curl.setopt(pycurl.URL, f"{url}/{quote(name)}")
    curl.setopt(pycurl.HTTPHEADER, [*(f"{name}: {value}" for name, value in headers.items()), "Expect:", "Accept:"])
    curl.setopt(pycurl.INFILESIZE, len(data))
    curl.setopt(pycurl.READFUNCTION, io.BytesIO(data).read)


def _finished(multi: pycurl.CurlMulti) -> Iterator[pycurl.Curl]:
    """The handles whose request was answered. Exits where one was refused."""
    left = 1
    while left:
        left, done, failed = multi.info_read()
        for curl in done:
            if (status := curl.getinfo(pycurl.RESPONSE_CODE)) != 200:
                raise SystemExit(f"a put was answered {status}")
            yield curl
        for _, code, words in failed:
            raise SystemExit(f"a put failed: {code} {words}")
