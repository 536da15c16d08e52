"""What was staged while a sync failed is not trusted, also where a later sync of the same batch succeeds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fsrepl.capture import in_stager, ingest
from fsrepl.model.version import Status
from fsrepl.storage.fs import Fs
from tests.stagers import StagerHere
from tests.world import DESTINATION, SOURCE, World

CHUNK, FILES = 40, 120


class FailingDisk(Fs):
    """A disk that fails once, while more than a chunk of files is staged, and is told of once.

    Source: syncfs(2), since Linux 5.8. lost: those files, held open, since some of them have not got to the disk.
    """

    def __init__(self, bucket: str) -> None:
        self._tmp = f"/{bucket}/.fsrepl/tmp"
        self.lost: list[int] = []

    def sync_all(self, fd: int) -> None:
        folder = os.readlink(f"/proc/self/fd/{fd}") + "/.fsrepl/tmp"
        if folder.endswith(self._tmp) and not self.lost:
            files = [path for path in Path(folder).iterdir() if path.is_file()]
            if len(files) > CHUNK:
                self.lost = [os.open(path, os.O_RDONLY) for path in files]
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_all(fd)


@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_files_staged_while_a_sync_failed_are_made_again(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3, G7: the stager stages the next files of a batch while the former ones are synced."""
    monkeypatch.setattr(ingest, "STEP_S", 60.0)
    monkeypatch.setattr(in_stager, "CHUNK", CHUNK)
    disk = FailingDisk(bucket)
    with World(tmp_path, fs=disk) as world:
        world.engine.stager = StagerHere(disk)
        for i in range(FILES):
            world.write(f"{i:04}", f"content {i}".encode())
        world.settle()
        world.settle()
        assert len(disk.lost) > CHUNK
        assert not [fd for fd in disk.lost if os.fstat(fd).st_nlink]
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert {len(found) for found in world.history(SOURCE).values()} == {1}
        assert world.statuses() == {Status.COMPLETED}
    for fd in disk.lost:
        os.close(fd)
