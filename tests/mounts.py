"""Filesystems that tests mount, and take away again. Only root may."""

from __future__ import annotations

import os
import subprocess
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
    """Take away what is mounted there, if anything is, whoever uses it."""
    subprocess.run(["umount", "--lazy", place], capture_output=True)
