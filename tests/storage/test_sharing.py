"""Whether files share blocks is found by one trial, the same for all that ask."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fsrepl.commands.versioning import measure
from fsrepl.storage import sharing
from fsrepl.storage.hashing import SMALL_BYTES
from tests import mounts
from tests.doubles import UnsyncedFs
from tests.world import SOURCE, World


class NfsFs(UnsyncedFs):
    """As NFS 4.2: files share blocks, and have names."""

    def create_unnamed(self, at: int) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def clone(self, to_fd: int, from_fd: int) -> None:
        os.pwrite(to_fd, os.pread(from_fd, SMALL_BYTES, 0), 0)


class FullFs(UnsyncedFs):
    """No room for the files of a trial."""

    def write(self, fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def room_and_answer(world: World, fs: UnsyncedFs) -> tuple[int, bool]:
    """What adopting a folder with a large file is said to need, and whether a bucket there can share blocks."""
    folder = world.path(bucket="east/folder")
    folder.mkdir()
    (folder / "large").write_bytes(b"x" * SMALL_BYTES)
    top = os.open(folder, os.O_RDONLY)
    try:
        needed = measure(fs, top, world.settings, "east").needed
    finally:
        os.close(top)
    assert os.listdir(folder) == ["large"]
    with world.engine.site.bucket(SOURCE).open() as bucket:
        answer = sharing.can_reflink(bucket)
    assert world.leftovers(SOURCE) == []
    return needed, answer


def test_a_filesystem_without_unnamed_files_shares_blocks_too(tmp_path: Path) -> None:
    """NFS 4.2 and ocfs2: adopting a folder needs no space for large files, and a bucket's versions take none."""
    fs = NfsFs()
    with World(tmp_path, fs=fs, replicate=False) as world:
        needed, answer = room_and_answer(world, fs)
        assert needed < SMALL_BYTES
        assert answer


@mounts.only_root
@pytest.mark.parametrize("kind", ["btrfs", "tmpfs"])
def test_the_trial_tells_what_the_filesystem_does(tmp_path: Path, kind: str) -> None:
    fs = UnsyncedFs()
    with (
        mounts.btrfs(tmp_path) if kind == "btrfs" else mounts.tmpfs(tmp_path / "tmpfs") as at,
        World(tmp_path / "site", fs=fs, replicate=False, regions={"east": at / "east"}) as world,
    ):
        needed, answer = room_and_answer(world, fs)
        assert answer == (kind == "btrfs")
        assert (needed < SMALL_BYTES) == answer


def test_without_a_trial_space_is_needed(tmp_path: Path) -> None:
    """On a full disk nobody knows: more is said to be needed, and a bucket asks again later."""
    with World(tmp_path, replicate=False) as world:
        folder = world.path(bucket="east/folder")
        folder.mkdir()
        (folder / "large").write_bytes(b"x" * SMALL_BYTES)
        top = os.open(folder, os.O_RDONLY)
        try:
            assert measure(FullFs(), top, world.settings, "east").needed > SMALL_BYTES
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                sharing.shares_blocks(FullFs(), top)
        finally:
            os.close(top)
        assert os.listdir(folder) == ["large"]
