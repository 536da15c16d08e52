"""A missing region is an outage, an unreadable document is named, and both continue by themselves. Real daemon."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import program
from tests.site import DESTINATION, SOURCE, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as found:
        found.start()
        yield found


def test_wait_sees_that_a_region_is_back(site: Site) -> None:
    """Section 5, G8: the first `wait` after a region is back waits for deletions made while it was away."""
    site.write("k", b"k")
    site.wait()
    identity = site.regions["east"] / ".fsrepl-region.json"
    identity.rename(site.home / "identity")
    site.until(lambda: not site.bucket_status(SOURCE)["online"], "the source is offline")
    site.path("k").unlink()
    assert "not scanned: region east is offline" in site.wait(code=1).err, "an outage is named, and not waited for"
    assert site.tree(DESTINATION) == {"k": b"k"}
    (site.home / "identity").rename(identity)
    site.wait()
    assert site.tree(DESTINATION) == {}


@pytest.mark.slow
def test_few_open_files_are_enough(tmp_path: Path) -> None:
    """G7: with a limit of 64 work goes on, in many directories at once; the log says so once, and of no single file."""
    with Site(tmp_path) as site:
        command = ["prlimit", "--nofile=64:64", *program.new_interpreter("--site", str(site.root), "daemon")]
        with site.log.open("wb") as file:
            site.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)
        site.until(site._is_ready, "the daemon is ready")
        for number in range(300):
            site.write(f"d{number % 97}/e{number % 7}/{number}", b"%d" % number)
        site.wait()
        site.in_step()
        assert site.stop() == 0
        said = site.log.read_text()
        assert said.count("only 64 open files are allowed") == 1
        assert not re.findall(r"Traceback|ERROR|not captured|not recorded", said)


@pytest.mark.slow
def test_a_wait_says_that_the_daemon_ended(site: Site) -> None:
    """Section 5: neither a timeout nor a traceback; what was pending is not known any more."""
    identity = site.regions["west"] / ".fsrepl-region.json"
    identity.rename(site.home / "identity")
    site.until(lambda: not site.bucket_status(DESTINATION)["online"], "the destination is offline")
    site.write("k", b"k")
    site.until(lambda: site.bucket_status(SOURCE)["pending"] == 1, "it is captured")
    threads = Path(f"/proc/{site.json('status')['daemon']['pid']}/task")
    numbers = [len(list(threads.iterdir()))]  # maybe with the thread that has just answered

    def has_another() -> bool:
        numbers.append(len(list(threads.iterdir())))
        return numbers[-1] > min(numbers)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.run, "wait", "--timeout", "60")
        site.until(has_another, "the daemon has a thread for it")
        site.stop()
        assert waiting.result().code == 5
    assert "Traceback" not in site.tail(100_000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("replication.json", b'{"Rules": 3}'),
        ("versioning.json", b"[]"),
        ("versioning.json", b'{"Status": "On"}'),
        ("bucket.json", b"\xff"),
        ("bucket.json", b'{"uuid": "another"}'),
        ("rules.json", b'{"rule": {}}'),
        ("rules.json", b'{"rule": {"content": "x", "ctime_ns": "1", "since": "x"}}'),
    ],
)
def test_a_document_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """Section 5: the bucket is offline, status and doctor name the document, and commands leave it unchanged."""
    site = Site(tmp_path)
    document = site.path(f".fsrepl/{name}")
    document.write_bytes(content)
    assert not site.bucket_status(SOURCE)["online"]
    assert name in site.must("status").out
    for command in (("doctor",), ("ls", SOURCE), ("replication", "disable", SOURCE), ("rm", f"{SOURCE}/k")):
        done = site.run(*command)
        assert done.code == 1
        assert name in done.out + done.err
    assert document.read_bytes() == content


def test_wait_does_not_say_safe_where_nothing_can_be_captured(site: Site) -> None:
    """Section 5: a bucket whose document cannot be read is offline, named, and continues once the document is correct
    again."""
    document = site.path(".fsrepl/replication.json")
    good = document.read_bytes()
    document.write_bytes(b"{")
    site.until(lambda: not site.bucket_status(SOURCE)["online"], "the source is offline")
    site.write("k", b"k")
    waited = site.wait(timeout_s=1, code=4)
    assert "replication.json cannot be read" in waited.err
    assert [rule["status"] for rule in site.bucket_status(SOURCE)["rules"]] == []
    site.wait(DESTINATION)
    document.write_bytes(good)
    site.wait()
    site.in_step()
    assert site.tree(DESTINATION) == {"k": b"k"}


def test_wait_knows_the_files_of_a_bucket_without_versioning(site: Site) -> None:
    """Section 5: no rule can choose its files, and `wait` says so; an unknown key is an error."""
    site.must("bucket", "create", "east/plain")
    site.write("d/k", b"k", "east/plain")
    assert "no rule chose east/plain/d/k" in site.wait("east/plain/d/k").err
    site.refused("NoSuchKey", "wait", "east/plain/other")
    site.refused("NoSuchKey", "restore", f"{SOURCE}//k")
