"""Places that the kernel watches: each change is told, so that they need not be looked at again and again."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.daemon.attach import PROBE_S
from fsrepl.region import places
from fsrepl.region.places import Place, Places, way_to
from tests import mounts
from tests.mounts import only_root
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World

NAMES = frozenset({b"replication.json", b"versions"})
REST_S = 3600.0


@pytest.fixture
def watching() -> Iterator[Places]:
    found = Places()
    found.start()
    yield found
    found.stop()
    found.join()


class Told:
    """What a test is told of the folder `.fsrepl` of a bucket, its region, and the way there."""

    def __init__(self, watching: Places, region: Path) -> None:
        self.watching, self.region, self.event = watching, region, threading.Event()
        self.meta = region / "bucket/.fsrepl"
        self.meta.mkdir(parents=True)
        assert self.watch()
        self.event.clear()

    def watch(self) -> bool:
        there = [Place(os.fsencode(self.meta), NAMES), Place(os.fsencode(self.region)), *way_to(str(self.region))]
        return self.watching.watch("bucket", there, self.event.set)

    def of(self, change: Callable[[], object]) -> None:
        self.event.clear()
        change()
        until(self.event.is_set, "the change is told")


def _remove(path: Path) -> None:
    shutil.rmtree(path)


CHANGES: dict[str, Callable[[Told], object]] = {
    "edited in place": lambda told: (told.meta / "replication.json").write_text("{}"),
    "renamed into place": lambda told: (told.meta / ".new").rename(told.meta / "replication.json"),
    "linked": lambda told: os.link(told.meta / ".new", told.meta / "replication.json"),
    "removed": lambda told: (told.meta / "versions").unlink(),
    "opened to others": lambda told: told.meta.chmod(0o755),
    "another owner's": lambda told: os.utime(told.meta / "versions"),
    "the folder is removed": lambda told: _remove(told.meta),
    "the bucket moves": lambda told: (told.region / "bucket").rename(told.region / "moved"),
    "the region moves": lambda told: told.region.rename(told.region.with_name("moved")),
    "a directory above moves": lambda told: told.region.parent.rename(told.region.parent.with_name("moved")),
    "the region's identity": lambda told: (told.region / ".fsrepl-region.json").write_text("{}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_told(tmp_path: Path, watching: Places, what: str) -> None:
    """Sections 4 and 7: edits of documents are followed at once; G8: a root that is missing or foreign is noticed."""
    told = Told(watching, tmp_path / "disk/region")
    for name in (".new", "versions"):
        (told.meta / name).write_text("[]")
    told.watch()
    told.of(lambda: CHANGES[what](told))


def test_what_is_not_asked_for_is_not_told(tmp_path: Path, watching: Places) -> None:
    """Issue 10: the daemon's own notes in `.fsrepl`, and what is done beside a region, wake up nobody."""
    told = Told(watching, tmp_path / "disk/region")
    (told.meta / "settled").write_text("")
    (tmp_path / "disk/other").mkdir()
    (tmp_path / "disk/other").rename(tmp_path / "disk/moved")
    other = threading.Event()
    assert watching.watch("other", [Place(os.fsencode(tmp_path))], other.set)
    other.clear()
    (tmp_path / "last").write_text("")
    until(other.is_set)
    assert not told.event.is_set()


def test_a_folder_that_is_made_again_is_watched_again(tmp_path: Path, watching: Places) -> None:
    """Issue 10: no watch is lost with the folder; that it is watched anew is told, since it may have changed before."""
    told = Told(watching, tmp_path / "region")
    for _ in range(3):
        told.of(lambda: _remove(told.meta))
        assert not told.watch(), "it is not there"
        told.meta.mkdir()
        told.event.clear()
        assert told.watch()
        assert told.event.is_set()
        told.of(lambda: (told.meta / "replication.json").write_text("{}"))


def test_a_symlink_on_the_way_leads_elsewhere(tmp_path: Path, watching: Places) -> None:
    """G8: the region's path leads to another directory."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two/region").mkdir(parents=True)
    (tmp_path / "disk").symlink_to("one")
    told = Told(watching, tmp_path / "disk/region")
    (tmp_path / "next").symlink_to("two")
    told.of(lambda: (tmp_path / "next").rename(tmp_path / "disk"))


def test_two_who_watch_the_same_place(tmp_path: Path, watching: Places) -> None:
    """Issue 10: the buckets of a region share its root; one that leaves takes no watch from the other."""
    told = Told(watching, tmp_path / "region")
    other = threading.Event()
    assert watching.watch("other", [Place(os.fsencode(told.region))], other.set)
    watching.forget("bucket")
    told.event.clear()
    other.clear()
    (told.region / "new").mkdir()
    until(other.is_set)
    assert not told.event.is_set()


@pytest.mark.parametrize(("number", "is_told"), [(errno.ENOSPC, False), (errno.EACCES, True)])
def test_without_watches_nothing_is_told(
    tmp_path: Path, watching: Places, monkeypatch: pytest.MonkeyPatch, number: int, is_told: bool
) -> None:
    """Issue 10: where the kernel has no more watches, the daemon is to look by itself, and holds none in vain. A
    directory above that it may not watch is left out."""
    told = Told(watching, tmp_path / "region")
    give = places.inotify_add_watch

    def refuse(fd: int, path: bytes, mask: int) -> int:
        if path != b"/" + tmp_path.parts[1].encode():
            return give(fd, path, mask)
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(places, "inotify_add_watch", refuse)
    assert told.watch() == is_told
    assert bool(watching._watches) == is_told


@contextlib.contextmanager
def _xfs(home: Path) -> Iterator[Path]:
    image, at = home / "xfs.img", home / "xfs"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    if not shutil.which("mkfs.xfs"):
        pytest.skip("there is no mkfs.xfs")
    subprocess.run(["mkfs.xfs", "-q", image], check=True, capture_output=True)
    mounts.mount("-o", "loop", image, at)
    try:
        yield at
    finally:
        mounts.clear(at)


@contextlib.contextmanager
def _overlay(home: Path) -> Iterator[Path]:
    at = home / "overlay"
    with mounts.tmpfs(home / "layers") as layers:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        at.mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        mounts.mount("-t", "overlay", "overlay", "-o", options, at)
        try:
            yield at
        finally:
            mounts.clear(at)


FILESYSTEMS = {
    "ext4": mounts.ext4, "xfs": _xfs, "btrfs": mounts.btrfs, "overlay": _overlay,
    "tmpfs": lambda home: mounts.tmpfs(home / "tmpfs"),
}  # fmt: skip


@only_root
@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_mounts_are_told_and_not_hindered(tmp_path: Path, watching: Places, kind: str) -> None:
    """G8, section 7: a region that is being watched can be unmounted, and each change of a mount is told, also those of
    which a watch says nothing: where the filesystem is in use elsewhere, or only hidden."""
    (elsewhere := tmp_path / "elsewhere").mkdir()
    with FILESYSTEMS[kind](tmp_path) as disk:
        told = Told(watching, disk / "region")
        told.of(lambda: mounts.mount("-o", "remount,bind,ro", disk))
        told.of(lambda: mounts.mount("-o", "remount,bind,rw", disk))
        told.of(lambda: mounts.mount("-o", "remount,ro", disk))
        told.of(lambda: mounts.mount("-o", "remount,rw", disk))
        told.of(lambda: mounts.mount("-t", "tmpfs", "none", disk))
        told.of(lambda: mounts.unmount(disk))
        told.of(lambda: mounts.cover(elsewhere, disk / "region/bucket"))
        told.of(lambda: mounts.unmount(disk / "region/bucket"))
        told.of(lambda: mounts.cover(disk, elsewhere))
        told.of(lambda: mounts.unmount(disk))
        told.of(lambda: mounts.cover(elsewhere, disk))
        told.of(lambda: mounts.clear(disk))
        told.of(lambda: mounts.unmount(elsewhere))
        assert not told.watch()


# -- a region


@pytest.fixture
def resting(tmp_path: Path, watching: Places) -> Iterator[World]:
    """A world whose regions have nothing to do."""
    with World(tmp_path / "disk") as world:
        world.engine.places, world.engine.rest_s = watching, REST_S
        world.write("k", b"1")
        _rest(world)
        yield world


def _rest(world: World) -> None:
    """Turn until nothing is due: at first each place is looked at once more, as it is watched only now."""

    def is_at_rest() -> bool:
        world.settle()
        return all(_sleeps(world, region) for region in ("east", "west"))

    until(is_at_rest, "each region sleeps", pause_s=PROBE_S / 4)


def _sleeps(world: World, region: str) -> bool:
    due_s = world.engine.regions[region].next_s()
    return due_s is not None and due_s > time.monotonic() + 2 * PROBE_S


AROUND: dict[str, Callable[[World], object]] = {
    "a document": lambda world: (world.path("", SOURCE) / ".fsrepl/lifecycle.json").write_text('{"Rules": []}'),
    "a document goes": lambda world: (world.path("", SOURCE) / ".fsrepl/rules.json").unlink(),
    "the bucket moves": lambda world: world.path("", SOURCE).rename(world.path("", SOURCE).with_name("moved")),
    "the region is another": lambda world: (world.path("", SOURCE).parent / ".fsrepl-region.json").write_text("{}"),
    "the disk moves": lambda world: world.settings.path.parent.rename(world.settings.path.parent.with_name("moved")),
}


@pytest.mark.parametrize("what", AROUND)
def test_a_region_at_rest_looks_after_a_change(resting: World, what: str) -> None:
    """Issue 10: a region with nothing to do sleeps until something changes, and then looks at once."""
    AROUND[what](resting)
    until(lambda: not _sleeps(resting, "east"), "the region looks")


@pytest.mark.parametrize("case", ["no watches", "another machine's disk"])
def test_where_nothing_is_told_a_region_looks_by_itself(
    resting: World, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Issue 10: edits are followed also where the kernel does not tell of them."""
    if case == "no watches":
        monkeypatch.setattr(places, "inotify_add_watch", lambda *_: -1)
    else:
        monkeypatch.setattr(resting.engine.fs, "is_remote", lambda fd: True)
    region = resting.region()
    region.probe_now()
    due_s = region.next_s()
    assert due_s is not None
    assert due_s < time.monotonic() + REST_S / 2


def test_a_view_that_waits_in_a_bucket_that_is_away_does_not_wake_its_region(tmp_path: Path) -> None:
    """G8: however long it is due, nothing can be done for it, and the processor is left alone."""
    with World(tmp_path / "disk") as world:
        world.path("k", DESTINATION).mkdir()
        world.path("k/users", DESTINATION).write_bytes(b"in the way")
        world.write("k", b"content")
        world.settle()
        assert world.state(DESTINATION).views.stale[b"k"].conflict
        world.away("west")
        world.settle()
        world.state(DESTINATION).views.stale[b"k"].due_s = 0.0
        due_s = world.region(DESTINATION).next_s()
        assert due_s is None or due_s > 0.0
