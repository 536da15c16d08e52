"""The table of mounts is read again after each change, and not before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsrepl.storage.mount_table import MountTable
from tests.mounts import clear, mount, only_root


def now() -> bytes:
    return Path("/proc/self/mountinfo").read_bytes()


@only_root
def test_every_mount_and_unmount_is_seen_at_once(tmp_path: Path) -> None:
    """Section 2: a mount over a directory of a bucket makes no other event."""
    table = MountTable()
    assert table.lines() == now()
    for _ in range(3):
        mount("-t", "tmpfs", "none", tmp_path)
        try:
            assert os.fsencode(tmp_path) in table.lines()
            assert table.lines() == now()
        finally:
            clear(tmp_path)
        assert os.fsencode(tmp_path) not in table.lines()


def test_an_unchanged_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle daemon asks for it each second, for each bucket."""
    table, read = MountTable(), []
    monkeypatch.setattr(table, "_read", lambda: read.append(1) or b"lines")
    found = {table.lines() for _ in range(100)}
    assert found == {b"lines"}
    assert len(read) < 10  # other tests may mount something meanwhile


def test_a_forked_process_reads_its_own() -> None:
    """A child shares descriptors with its parent, and either would take the other's changes."""
    table = MountTable()
    table.lines()
    before = table._fd
    reader, writer = os.pipe()
    if not (child := os.fork()):
        table.lines()
        os.write(writer, b"own" if table._fd != before else b"shared")
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"own"
    os.close(reader)
