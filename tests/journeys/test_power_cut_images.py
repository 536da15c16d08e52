"""Real power cuts: the disks of both regions are copied under a busy run, as they are at that instant, and started.

What the kernel had not written back yet is not in a copy. The two disks may be of different instants: then the source
is older than its replica, or the replica older than its source. For root, with loop devices.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attack.history import Listing, check_listings
from tests.attack.stores import Stores
from tests.boots import note_another_boot
from tests.mounts import clear_whole, mount, only_root
from tests.site import DESTINATION, SOURCE, Site

BUCKETS = (SOURCE, DESTINATION)
REGIONS = ("east", "west")
MKFS = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q")}
SIZE = 320 << 20  # xfs makes none below 300 MiB; the image is sparse
INSTANTS_S = (0.4, 0.6)


@dataclass
class Disks:
    """The disks of both regions: images that are mounted, and copies of them."""

    home: Path
    kind: str
    copies: int = 0

    def place(self, region: str) -> Path:
        return self.home / region

    def image(self, region: str, number: int) -> Path:
        """The image of a region: the one in use, 0, or a copy."""
        return self.home / f"{region}.{number}.img"

    def state(self, number: int) -> Path:
        """The state of the site, journal included, of the same instant as a copy."""
        return self.home / f"state.{number}"

    def make(self) -> None:
        for region in REGIONS:
            with self.image(region, 0).open("wb") as file:
                file.truncate(SIZE)
            subprocess.run([*MKFS[self.kind], self.image(region, 0)], check=True, capture_output=True)
            self.place(region).mkdir()

    @contextmanager
    def use(self, east: int, west: int) -> Iterator[None]:
        """Mount one image of each region, or what becomes of a copy of it; afterwards neither is mounted."""
        try:
            for region, number in zip(REGIONS, (east, west), strict=True):
                image = self._mounted(region, number)
                if not number:
                    mount("-o", "loop", image, self.place(region))
                else:  # which can be mounted here, as the image was
                    copy = ["cp", "--sparse=always", self.image(region, number), image]
                    subprocess.run(copy, check=True)
                    subprocess.run(["mount", "-o", "loop", image, self.place(region)], check=True)
            yield
        finally:
            for region, number in zip(REGIONS, (east, west), strict=True):
                clear_whole(self._mounted(region, number), self.place(region))

    def _mounted(self, region: str, number: int) -> Path:
        """What is mounted for an image: the one in use, or a copy of a copy, to be written to."""
        return self.home / f"{region}.img" if number else self.image(region, 0)

    def copy(self) -> None:
        """Copy both images as they are. Copied again where the kernel wrote meanwhile: that would be no instant."""
        self.copies += 1
        while True:
            before = self._writes()
            for region in REGIONS:
                target = self.image(region, self.copies)
                subprocess.run(["cp", "--sparse=always", "--reflink=auto", self.image(region, 0), target], check=True)
            if self._writes() == before:
                return

    def _writes(self) -> list[str]:
        """How many writes each loop device has done."""
        devices = {os.stat(self.place(region)).st_dev for region in REGIONS}
        if self.kind == "btrfs":  # whose files have device numbers of their own
            lines = Path("/proc/self/mounts").read_text().splitlines()
            sources = {line.split()[0] for line in lines if line.split()[1] in {str(self.place(r)) for r in REGIONS}}
            devices = {os.stat(source).st_rdev for source in sources}
        paths = [Path(f"/sys/dev/block/{os.major(each)}:{os.minor(each)}/stat") for each in sorted(devices)]
        return [" ".join(path.read_text().split()[4:7]) for path in paths]


class Writer:
    """A user who writes in every way, and who can be stopped for a moment."""

    def __init__(self, top: Path) -> None:
        self.top, self.chance = top, random.Random(7)
        self.may_go, self.end = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        for number in itertools.count():
            with self.may_go:
                if self.end.is_set():
                    return
                self._act(number)
            time.sleep(0.002)

    def _act(self, number: int) -> None:
        path = self.top / self.chance.choice(("", "a", "b/c")) / str(self.chance.randrange(12))
        path.parent.mkdir(parents=True, exist_ok=True)
        data = b"%d:" % number + b"." * self.chance.choice((10, 3000, 70_000))
        match self.chance.choice(("write", "write", "append", "rename", "delete", "mode")):
            case "write":
                path.write_bytes(data)
            case "append":
                with path.open("ab") as file:
                    file.write(data)
            case "rename" if path.exists():
                path.rename(path.with_name(str(self.chance.randrange(12))))
            case "delete":
                path.unlink(missing_ok=True)
            case "mode" if path.exists():
                path.chmod(self.chance.choice((0o600, 0o644)))


@only_root
@pytest.mark.slow
@pytest.mark.parametrize("kind", MKFS)
def test_disks_copied_at_any_instant_converge(memory: Path, kind: str) -> None:
    """G2, G3, G7: both disks of one instant, the source older than its replica, and the reverse: no version is lost
    that either disk still has, none is damaged, and both sides have one history in the end."""
    if not shutil.which(MKFS[kind][0]):
        pytest.skip(f"there is no {MKFS[kind][0]}")
    disks = Disks(memory, kind)
    disks.make()
    regions = {region: disks.place(region) / "region" for region in REGIONS}
    with disks.use(0, 0), Site(memory, regions=regions) as site:
        _be_busy(site, disks)
    for east, west, journal in ((1, 1, 1), (2, 2, None), (1, 2, 2), (2, 1, 1)):
        with disks.use(east, west):
            where = f"{kind}: east of instant {east}, west of {west}, journal of {journal}"
            _start(site, disks, journal, where, is_one_instant=east == west)


def _be_busy(site: Site, disks: Disks) -> None:
    """Users write and the daemon works; now and then both stand still, and the disks are copied."""
    writer = Writer(site.path())
    site.start()
    assert site.daemon is not None
    writer.thread.start()
    try:
        for pause_s in INSTANTS_S:
            time.sleep(pause_s)
            with writer.may_go:
                os.kill(site.daemon.pid, signal.SIGSTOP)
                disks.copy()
                shutil.copytree(site.root / ".fsrepl-site", disks.state(disks.copies), ignore=_sockets)
                os.kill(site.daemon.pid, signal.SIGCONT)
    finally:
        writer.end.set()
        writer.thread.join()
        site.kill()


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def _start(site: Site, disks: Disks, journal: int | None, where: str, *, is_one_instant: bool) -> None:
    """What the disks have is listed, the daemon starts, and comes to rest; then all of it is still there, once.

    By itself, or, where one disk was set back, after `fsrepl verify --repair` (docs/reference/recovery.md).
    """
    state = site.root / ".fsrepl-site"
    shutil.rmtree(state)
    shutil.copytree(disks.state(journal or 1), state)
    if journal is None:
        for path in state.glob("journal.db*"):
            path.unlink()
    else:
        assert note_another_boot(state / "journal.db")
    before = Stores(site).read(BUCKETS)
    site.start()
    try:
        if is_one_instant:
            site.wait()
        else:
            site.run("wait", "--timeout", 60, timeout_s=90)  # what a journal knows, and the source has not, is FAILED
            site.run("verify", SOURCE, "--repair", timeout_s=90)
            # a pending edit of a version that the destination has lost is FAILED, and verify compares no such version
            site.must("replication", "backfill", SOURCE, "--status", "FAILED", "--wait")
            site.wait()
        apart = {b: {(k, *row) for k, rows in site.history(b).items() for row in rows} for b in BUCKETS}
        assert apart[SOURCE] ^ apart[DESTINATION] == set(), where
        assert site.tree(SOURCE) == site.tree(DESTINATION), where
    finally:
        site.kill()
    after = Stores(site).read(BUCKETS)
    assert [str(each) for each in check_listings([after])] == [], where
    assert _names(before) - _names(after) == set(), where


def _names(listing: Listing) -> set[tuple[str, str]]:
    """Key and version id of what any of the buckets has, whole."""
    return {(each.key, each.id) for versions in listing.values() for each in versions if each.is_whole}
