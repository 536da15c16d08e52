"""Filesystems that tests mount and unmount. For root only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fsrepl.storage.fs import Fs
from tests.waiting import until

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts filesystems")


def mount(*arguments: object) -> None:
    """As mount(8); the test is skipped where that is not allowed."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def sync(place: Path) -> None:
    """Write back what waits in memory for the filesystem of a place. os.sync() would wait for all disks."""
    at = os.open(place, os.O_RDONLY)
    try:
        Fs().sync_all(at)
    finally:
        os.close(at)


def cover(other: Path, place: Path) -> None:
    """Mount a directory of the same filesystem over another."""
    mount("--bind", other, place)


def unmount(place: Path) -> None:
    subprocess.run(["umount", place], check=True)


def clear(place: Path) -> None:
    """Unmount the filesystem there, if there is one, even while it is in use."""
    subprocess.run(["umount", "--lazy", place], capture_output=True)


def clear_whole(image: Path, place: Path) -> None:
    """Unmount an image, once nothing uses it any more, in other mount namespaces neither. While its filesystem goes on,
    a copy of it with the same UUID is refused (xfs), or is no filesystem of its own (btrfs)."""
    try:
        until(
            lambda: not os.path.ismount(place) or not subprocess.run(["umount", place], capture_output=True).returncode
        )
    finally:
        clear(place)
    until(lambda: not _loop_devices(image), lambda: f"no process uses {_loop_devices(image)}")


def _loop_devices(image: Path) -> str:
    return subprocess.run(["losetup", "--associated", image], check=True, capture_output=True, text=True).stdout


def own_mounts(home: Path, *options: str) -> list[str]:
    """The beginning of a command that runs with mounts of its own, for a test that uses the folder.

    options: of unshare(1). Disks of other tests, which would stay in use there until the command ends, are left out.
    """
    return ["unshare", "--mount", *options, "sh", "-c", _LEAVE_DISKS, "sh", str(home)]


_LEAVE_DISKS = """
awk -v home="$1/" '
    $1 ~ "^/dev/loop" && $2 != "/" && index(home, $2 "/") != 1 && index($2 "/", home) != 1 { print $2 }
' /proc/self/mounts | xargs --no-run-if-empty umount --lazy
shift
exec "$@"
"""


@contextmanager
def btrfs(home: Path) -> Iterator[Path]:
    """A btrfs of its own; the test is skipped where there are no tools for it."""
    if not shutil.which("mkfs.btrfs") or not shutil.which("btrfs"):
        pytest.skip("there is no mkfs.btrfs")
    image, at = home / "btrfs.img", home / "btrfs"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    mount("-o", "loop", image, at)
    try:
        yield at
    finally:
        clear(at)


def subvolume(*arguments: object) -> None:
    """btrfs subvolume ..."""
    subprocess.run(["btrfs", "subvolume", *map(str, arguments)], check=True, capture_output=True)


@contextmanager
def tmpfs(at: Path) -> Iterator[Path]:
    at.mkdir()
    mount("-t", "tmpfs", "none", at)
    try:
        yield at
    finally:
        clear(at)


@contextmanager
def ext4(home: Path, *options: object) -> Iterator[Path]:
    """An ext4 of its own, made with these options of mkfs.ext4."""
    image, at = home / "ext4.img", home / "ext4"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", *map(str, options), image], check=True, capture_output=True)
    mount("-o", "loop", image, at)
    try:
        yield at
    finally:
        clear(at)


@contextmanager
def frozen(at: Path) -> Iterator[None]:
    """Have a filesystem answer no call that changes anything. Source: ioctl_fsfreeze(2)."""
    fd = os.open(at, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, _THAW, 0)
    finally:
        os.close(fd)


_FREEZE, _THAW = 0xC0045877, 0xC0045878
_INIT = 26
"""The opcode of a FUSE filesystem's first request. Source: linux/fuse.h."""


@contextmanager
def hanging(at: Path) -> Iterator[None]:
    """Cover a directory with a FUSE filesystem that answers no call.

    The test is skipped where there is no FUSE.
    """
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"there is no FUSE: {error.strerror}")
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"hanging", os.fsencode(at), b"fuse", 0, options):
        os.close(fd)
        pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        _begin(fd)
        yield
    finally:
        clear(at)
        os.close(fd)  # which ends all calls with an error


def _begin(fd: int) -> None:
    """Answer the first request of a FUSE filesystem, so that others are made. These stay in the kernel: a process whose
    request was taken and not answered could not even be killed."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
    _, opcode, unique = struct.unpack_from("=IIQ", os.read(fd, 1 << 20))
    assert opcode == _INIT
    answer = struct.pack("=IIIIHHIIHHI7I", 7, 31, 0, 0, 12, 9, 1 << 17, 1, 32, 0, 0, *[0] * 7)
    os.write(fd, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
