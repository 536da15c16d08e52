"""atime shows when users last read a file, by which they find unused files; fsrepl does not change it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from fsrepl.storage.fs import Fs
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, USER, World

LONG_AGO_NS = 1_000_000_000 * 10**9
"""So long before that a mount with relatime, too, notes the next read."""


def test_reads_by_fsrepl_leave_atime_alone(tmp_path: Path) -> None:
    """Section 7: capture, scans, a lost journal and verify read files and directories, and leave their atime
    unchanged."""
    with World(tmp_path) as world:
        world.write("d/small", b"s")
        world.write("d/large", b"l" * 3_000_000)
        world.settle()
        paths = [world.path(key, bucket) for bucket in (SOURCE, DESTINATION) for key in ("d", "d/small", "d/large")]
        for path in paths:
            os.utime(path, ns=(LONG_AGO_NS, path.stat().st_mtime_ns))
        for without_journal in (False, True):
            world.settle()
            world.restart(without_journal=without_journal)
            world.settle()
            assert verify(world) == []
            assert {path: path.stat().st_atime_ns for path in paths} == dict.fromkeys(paths, LONG_AGO_NS)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, and makes files of others")
def test_a_file_of_another_user_is_read_all_the_same(users_home: Path) -> None:
    """Only its owner may leave atime unchanged: other readers change it as any program does."""
    assert os.geteuid() == USER
    os.seteuid(0)
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "k").write_bytes(b"theirs")
        (folder / "k").chmod(0o644)
        os.seteuid(USER)
        fs = Fs()
        at = fs.open_root(folder)
        top = fs.open_dir(at, b"")
        fd = fs.open_read(top, b"k")
        assert fs.read_all(fd) == b"theirs"
        for each in (fd, top, at):
            fs.close(each)
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)
        os.seteuid(USER)
