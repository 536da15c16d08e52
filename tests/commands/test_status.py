"""Status of a site in which deliveries or captures wait: which, why, and the remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fsrepl.cli import status_screen
from fsrepl.commands import status
from fsrepl.daemon import live
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World


class FullFs(UnsyncedFs):
    """A region in which no file can be made while there is no room."""

    def __init__(self, region: str, number: int = errno.ENOSPC) -> None:
        super().__init__()
        self._region, self._number, self.has_room = f"/{region}/", number, True

    def create(self, at: int, name: bytes) -> int:
        if not self.has_room and self._region in os.readlink(f"/proc/self/fd/{at}"):
            raise OSError(self._number, os.strerror(self._number))
        return super().create(at, name)

    def space(self, fd: int) -> tuple[int, int]:
        free, total = super().space(fd)
        is_full = not self.has_room and self._region in os.readlink(f"/proc/self/fd/{fd}")
        return 0 if is_full else free, total


def source_status(world: World) -> dict[str, Any]:
    """The status of the source."""
    document = status.status(world.engine.site, live.status(world.engine) | {"running": True, "since": ""})
    (found,) = (bucket for bucket in document["buckets"] if bucket["bucket"] == SOURCE)
    return found


def screen(bucket: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    daemon = {"running": True, "pid": 1, "ready": True, "since": "2026-11-24T12:00:00Z"}
    status_screen.show({"daemon": daemon, "buckets": [bucket], "transfers": []})
    return capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_destination_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    """Section 5: which region is full, how many deliveries wait for room, and the remedy; nothing of it once there is
    room."""
    fs = FullFs("west", number)
    with World(tmp_path, fs=fs) as world:
        world.settle()
        fs.has_room = False
        world.write("k", b"1")
        world.write("large", bytes(world.settings.replication.large_file_bytes))
        world.settle()
        why = f"region west has no room left ({os.strerror(number).lower()}): make room there; it goes on by itself"
        assert source_status(world)["retrying"] == [{"destination": DESTINATION, "why": why, "deliveries": 2}]
        assert f"! {SOURCE} to {DESTINATION}: 2 deliveries wait: {why}" in screen(source_status(world), capsys)
        fs.has_room = True
        world.settle()
        assert "retrying" not in source_status(world)
        assert source_status(world)["pending"] == 0


def test_what_a_full_source_keeps_waiting_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5: capture pauses there; status has the number of waiting files, and the remedy."""
    fs = FullFs("east")
    with World(tmp_path, fs=fs) as world:
        world.settle()
        fs.has_room = False
        for name in "abc":
            world.write(name, b"1")
        world.settle()
        assert source_status(world)["waiting"] == 3
        shown = screen(source_status(world), capsys)
        assert "to the user; 3 files to inspect; make room there, or set keep_free in [capture] lower" in shown
        fs.has_room = True
        world.settle()
        assert "waiting" not in source_status(world)
        assert source_status(world)["objects"] == 3


def test_a_region_that_is_full_as_it_comes_up_is_named(tmp_path: Path) -> None:
    """Section 5: the bucket is offline until there is room, and the reason says where."""
    fs = FullFs("west")
    with World(tmp_path, fs=fs) as world:
        fs.has_room = False
        world.restart(fs=fs)
        world.settle()
        trouble = world.state(DESTINATION).bucket.trouble
        assert trouble.startswith("region west has no room left (no space left on device): make room there")
        fs.has_room = True
        world.settle()
        assert not world.state(DESTINATION).bucket.trouble
