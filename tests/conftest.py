"""What many tests stand on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where the machine has such a one that takes attributes: for worlds by the hundred."""
    try:
        path = Path(tempfile.mkdtemp(prefix="fsrepl-", dir="/dev/shm"))
    except OSError:
        yield tmp_path
        return
    try:
        yield path if _takes_attributes(path) else tmp_path
    finally:
        shutil.rmtree(path)


def _takes_attributes(path: Path) -> bool:
    try:
        os.setxattr(path, "user.fsrepl.probe", b"1")
    except OSError:
        return False
    return True
