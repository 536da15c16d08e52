"""The main journey on real xfs and btrfs with both regions on one filesystem, and a disk that is taken out and put
back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import sync
from tests.site import DESTINATION, SOURCE, Site

MAKE = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts filesystems")]


def mounted(home: Path, kind: str) -> Path:
    """A new filesystem in a file, mounted. Skips the test where this machine has no such filesystem."""
    if not shutil.which(MAKE[kind][0]):
        pytest.skip(f"{MAKE[kind][0]} is not installed here")
    image, state = home / f"{kind}.img", home / kind
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([*MAKE[kind], image], check=True, capture_output=True)
    state.mkdir()
    mount(image, state)
    return state


def mount(image: Path, state: Path) -> None:
    done = subprocess.run(["mount", "-o", "loop", image, state], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine mounts no such filesystem: {done.stderr.strip()}")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for state in MAKE:
        subprocess.run(["umount", "--lazy", tmp_path / state], capture_output=True)


def extents(path: Path) -> set[int]:
    """The numbers of the blocks that a file's content begins at. Source: filefrag(8), FIEMAP."""
    out = subprocess.run(["filefrag", "-v", path], check=True, capture_output=True, text=True).stdout
    return {int(start) for start in re.findall(r"^\s*\d+:\s+\d+\.\.\s*\d+:\s+(\d+)\.\.", out, re.MULTILINE)}


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_the_story_on_one_filesystem_with_reflinks(home: Path, kind: str) -> None:
    """G5, G10: versions share blocks with their views, replicas share none with their sources."""
    disk = mounted(home, kind)
    with Site(home / "home", regions={"east": disk / "east", "west": disk / "west"}) as site:
        site.start()
        site.write("large", os.urandom(3 << 20))
        site.write("d/small", b"small")
        site.wait()
        site.write("d/small", b"changed")
        site.path("large").rename(site.path("renamed"))
        site.wait()
        site.in_step()
        version = site.head(f"{SOURCE}/renamed")["VersionId"]
        sync(disk)
        here = extents(site.path("renamed"))
        assert here
        assert here & extents(site.stored("renamed", version)), "a version shares its blocks with its view"
        for there in (site.path("renamed", DESTINATION), site.stored("renamed", version, DESTINATION)):
            assert not here & extents(there), "a replica shares storage with its source"
        assert site.json("verify", SOURCE)["Differences"] == []
        assert site.stop() == 0


def test_a_disk_that_is_taken_out_and_put_back(home: Path) -> None:
    """G7, G8: an idle daemon holds no descriptor there; meanwhile nothing is written to the empty mount point."""
    disk = mounted(home, "ext4")
    with Site(home / "home", regions={"east": home / "home" / "east", "west": disk / "west"}) as site:
        site.start()
        site.write("k", b"one")
        site.wait()
        site.until(lambda: subprocess.run(["umount", disk], capture_output=True).returncode == 0, "it can be unmounted")
        site.write("k", b"two")
        site.wait(timeout_s=2, code=4)
        assert site.head(f"{SOURCE}/k")["ReplicationStatus"] == "PENDING"
        assert not site.bucket_status(DESTINATION)["online"]
        assert os.listdir(disk) == []
        mount(home / "ext4.img", disk)
        site.wait()
        site.in_step()
        assert {k: len(v) for k, v in site.history(DESTINATION).items()} == {b"k": 2}
