"""A bucket of an S3 service, beside `rclone copy` and `aws s3 sync` into the same one: small files, and a large one.

Buckets of the others keep no versions, as they are made by default; one more of rclone's keeps them, as ours has to,
which costs a service more. How much of the time is the service's, the least shows that puts the same small files into
such a bucket (least_puts.py).

The service is radosgw over a store in memory, as the tests start it, where it is installed (`apt-get install radosgw
ceph-mon ceph-osd`); else ministack, which is Python and slower than all its clients. What each of the three stored is
compared with the source by rclone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from costs import make_tree
from daemons import SOURCE, Daemon
from least_puts import put_all

from tests.radosgw import PROGRAMS, Radosgw
from tests.services import KEYS, Service

_BLOCK = 1 << 20


def to_s3(folder: Path, count: int, size: int) -> None:
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    is_real = all(map(shutil.which, PROGRAMS))
    log = home / "service.log"
    service = Radosgw(log) if is_real else Service(log, "ministack")
    print(f"s3: {count:,} files of 4 KiB, and one of {size >> 20} MiB, to {service.kind}")
    os.environ.update(KEYS | {"AWS_DEFAULT_REGION": "us-east-1"})
    os.environ.pop("AWS_CA_BUNDLE", None)  # rclone does not go on with it, and the service speaks HTTP
    try:
        service.start()
        _measure(home, service, count, size)
    finally:
        service.end()
        shutil.rmtree(home)


def _measure(home: Path, service: Service, count: int, size: int) -> None:
    small, large = make_tree(home / "small", count), home / "large"
    large.mkdir()
    with (large / "big").open("wb") as file:
        for _ in range(size // _BLOCK):
            file.write(os.urandom(_BLOCK))
    remote = f":s3,provider=Ceph,env_auth=true,endpoint='{service.url}',force_path_style=true:"
    aws = [str(Path(sys.executable).parent / "aws"), "--endpoint-url", service.url]
    site = Daemon(home, west=f'endpoint = "{service.url}"\n')
    try:
        for bucket in ("rclone", "aws", "versions", "least"):
            _run(*aws, "s3", "mb", f"s3://{bucket}")
        kept = ["--versioning-configuration", "Status=Enabled"]
        for bucket in ("versions", "least"):
            _run(*aws, "s3api", "put-bucket-versioning", "--bucket", bucket, *kept)
        for what, tree in ((f"{count:,} small files", small), (f"a file of {size >> 20} MiB", large)):
            source = site.path(SOURCE, tree.name)

            def ours(tree: Path = tree, source: Path = source) -> None:
                _run("cp", "-r", tree, source)
                site.fsrepl("wait")

            rclone_s = _timed(lambda tree=tree: _run("rclone", "copy", tree, f"{remote}rclone/{tree.name}"))
            kept_s = _timed(lambda tree=tree: _run("rclone", "copy", tree, f"{remote}versions/{tree.name}"))
            aws_s = _timed(
                lambda tree=tree: _run(*aws, "s3", "sync", "--only-show-errors", tree, f"s3://aws/{tree.name}")
            )
            cpu_s = site.cpu_s()
            ours_s = _timed(ours)
            print(
                f"  {what:22} rclone copy {rclone_s:7.2f} s, keeping versions {kept_s:7.2f} s   "
                f"aws s3 sync {aws_s:7.2f} s   fsrepl {ours_s:7.2f} s   {ours_s / rclone_s:5.2f} x rclone, "
                f"{ours_s / kept_s:5.2f} x keeping versions   {site.cpu_s() - cpu_s:5.2f} CPU s"
            )
            for bucket in ("rclone", "aws", "dst"):
                _run("rclone", "check", "--one-way", "--download", tree, f"{remote}{bucket}/{tree.name}")
            if tree is small:
                os.sync()
                least_s, cpu_s = put_all(tree, f"{service.url}/least")
                print(
                    f"  {'  the least with versions':22} {least_s:6.2f} s   {least_s / rclone_s:5.2f} x rclone   "
                    f"{cpu_s:5.2f} CPU s: 64 puts at once by libcurl, with the headers of fsrepl, and nothing else"
                )
                _run("rclone", "check", "--one-way", "--download", tree, f"{remote}least")
    finally:
        site.stop()


def _timed(act: Callable[[], None]) -> float:
    os.sync()
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _run(*command: object) -> None:
    arguments: Sequence[str] = list(map(str, command))
    ran = subprocess.run(arguments, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {ran.stderr}")
