"""A real daemon that replicates to an S3 service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import KEYS, THERE, Service, current, found_in
from tests.site import SOURCE, Site


@pytest.fixture
def site(tmp_path: Path, service: Service) -> Iterator[Site]:
    """A site whose source is replicated to a service; its daemon runs."""
    service.make_bucket()
    with Site(
        tmp_path, buckets=(SOURCE,), replicate=False, settings=f'[regions.aws]\nendpoint = "{service.url}"'
    ) as site:
        site.environ |= KEYS
        site.start()
        site.must("replication", "enable", SOURCE, THERE)
        yield site


@pytest.mark.slow
def test_a_burst_arrives_whole_through_a_kill(site: Site, service: Service) -> None:
    """G7: requests are under way side by side when the daemon is killed; nothing is lost, and nothing is doubled."""
    bucket = service.client()
    wanted = {}
    for number in range(120):
        key, data = f"d{number % 7}/k{number}", os.urandom(3000)
        site.write(key, data)
        wanted[key] = data
    listed = lambda: bucket.call("list_objects_v2", Bucket="copies").get("KeyCount", 0)  # noqa: E731
    site.until(lambda: listed() > 10, "some have arrived")
    site.kill()
    site.start()
    site.wait()
    found = found_in(service.bucket())
    assert {each.key: each.data for each in found} == wanted
    assert len(found) == len(wanted)
    (rule,) = next(row for row in site.json("status")["buckets"] if row["bucket"] == SOURCE)["rules"]
    assert (rule["completed"], rule["pending"], rule["failed"]) == (120, 0, 0)


@pytest.mark.slow
def test_an_outage_is_said_and_ends_by_itself(site: Site, service: Service) -> None:
    """G7, G11: status, why, doctor and wait say what is the matter; what waited is made afterwards."""
    site.write("before", b"before")
    site.wait()
    service.stop()
    site.write("k", b"data")
    assert site.wait(timeout_s=3, code=4)
    (delivery,) = site.json("why", f"{SOURCE}/k")["Deliveries"]
    assert (delivery["Destination"], delivery["Status"]) == (THERE, "PENDING")
    assert "cannot be reached" in delivery["Reason"]
    assert site.json("status")["buckets"][0]["blocked"][0]["destination"] == THERE
    assert site.run("doctor", "--json").code == 1
    row = next(row for row in site.json("region", "ls")["Regions"] if row["Name"] == "aws")
    assert row["Online"] is False
    service.start()
    service.make_bucket()
    site.must("retry", SOURCE)
    site.wait()
    assert current(service.bucket()) == {"k": b"data"}
    assert "Enabled" in site.must("bucket", "ls").out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed")
def test_rclone_restores_the_files(site: Site, service: Service, tmp_path: Path) -> None:
    """Without fsrepl: `rclone copy --metadata` brings content, modes and times back."""
    for name, mode in (("a/one", 0o640), ("two", 0o755), ("ünï", 0o600)):
        path = site.write(name, name.encode() * 100)
        path.chmod(mode)
        os.utime(path, ns=(0, 1_650_000_000_123_456_789))
    site.write("gone", b"gone").unlink()
    site.wait()
    environ = {
        **{name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"},  # it would want https
        **KEYS, "RCLONE_CONFIG_T_TYPE": "s3", "RCLONE_CONFIG_T_PROVIDER": "Other",
        "RCLONE_CONFIG_T_ENV_AUTH": "true", "RCLONE_CONFIG_T_ENDPOINT": service.url, "RCLONE_CONFIG": "/dev/null",
    }  # fmt: skip
    listing = [
        "rclone",
        "lsf",
        "--metadata",
        "--recursive",
        "--files-only",
        "--format",
        "pM",
        "--separator",
        "\t",
        "T:copies",
    ]
    listed = subprocess.run(
        listing, env=environ | {"TZ": "UTC"}, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    told = {name: json.loads(found) for name, found in (line.split("\t") for line in listed.splitlines())}
    assert told.keys() == {"a/one", "two", "ünï"}
    assert told["a/one"]["mtime"].startswith("2022-04-15T05:20:00.123456789")
    assert [told[name]["mode"] for name in ("a/one", "two")] == ["100640", "100755"]
    assert all(found["fsrepl-version-id"] and found["uid"] == str(os.geteuid()) for found in told.values())
    back = tmp_path / "back"
    subprocess.run(["rclone", "copy", "--metadata", "T:copies", str(back)], env=environ, check=True, timeout=60)
    compared = subprocess.run(["diff", "-r", "--exclude=.fsrepl", str(site.path()), str(back)], capture_output=True)
    assert (compared.returncode, compared.stdout) == (0, b"")
    for name in ("a/one", "two", "ünï"):
        here, there = site.path(name).stat(), (back / name).stat()
        assert (there.st_mode, there.st_mtime_ns) == (here.st_mode, here.st_mtime_ns)


@pytest.mark.slow
def test_amazons_own_client_reads_what_is_there(site: Site, service: Service) -> None:
    """Without fsrepl: `aws s3api` lists versions and markers, and shows what a version is."""
    site.write("2026/cat.jpg", b"one")
    site.wait()
    site.write("2026/cat.jpg", b"two")
    site.wait()
    site.path("2026/cat.jpg").unlink()
    site.wait()

    def aws(*arguments: str) -> Any:
        environ = {n: v for n, v in os.environ.items() if n != "AWS_CA_BUNDLE"} | KEYS
        environ["AWS_DEFAULT_REGION"] = "us-east-1"
        command = [sys.executable, "-m", "awscli", "--endpoint-url", service.url, "s3api"]
        command += [*arguments, "--bucket", "copies"]
        done = subprocess.run(command, env=environ, check=True, capture_output=True, timeout=60)
        return json.loads(done.stdout)

    found = aws("list-object-versions")
    assert [(row["Key"], row["IsLatest"]) for row in found["Versions"]] == [("2026/cat.jpg", False)] * 2
    assert [(row["Key"], row["IsLatest"]) for row in found["DeleteMarkers"]] == [("2026/cat.jpg", True)]
    mine = [row for row in site.json("ls", SOURCE, "--versions")["Versions"] if row["Key"] == "2026/cat.jpg"]
    heads = [aws("head-object", "--key", row["Key"], "--version-id", row["VersionId"]) for row in found["Versions"]]
    assert {head["Metadata"]["fsrepl-version-id"] for head in heads} == {row["VersionId"] for row in mine}
    assert {head["Metadata"]["fsrepl-last-modified"] for head in heads} == {row["LastModified"] for row in mine}
