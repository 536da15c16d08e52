"""Filesystems that tests mount and unmount. For root only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts filesystems")


def mount(*arguments: object) -> None:
    """As mount(8); the test is skipped where that is not allowed."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def cover(other: Path, place: Path) -> None:
    """Mount a directory of the same filesystem over another."""
    mount("--bind", other, place)


def unmount(place: Path) -> None:
    subprocess.run(["umount", place], check=True)


def clear(place: Path) -> None:
    """Unmount the filesystem there, if there is one, even while it is in use."""
    subprocess.run(["umount", "--lazy", place], capture_output=True)


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
