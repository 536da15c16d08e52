"""The open directories of a tree: as many as may be, and of those the ones that were used last."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.storage import open_directories
from fsrepl.storage.fs import Fs
from fsrepl.storage.open_directories import Directories


class Noting(Fs):
    """Notes the paths that are opened."""

    def __init__(self) -> None:
        self.opened: list[bytes] = []

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        self.opened.append(path)
        return super().open_dir(at, path, cross=cross)


def test_a_directory_that_is_used_again_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used longest ago is closed first, however often the same one was used in a row."""
    monkeypatch.setattr(open_directories, "_open_directories_max", lambda: 8)
    names = [b"%d" % i for i in range(10)]
    for name in names:
        (tmp_path / name.decode()).mkdir()
    fs = Noting()
    top = fs.open_root(tmp_path)
    tree = Directories(fs, top)
    try:
        for name in (*names[:8], names[0], names[0], names[1], names[0]):
            tree.get(name)
        assert fs.opened == names[:8]
        tree.get(names[8])  # closes 2
        tree.forget(names[8])
        tree.get(names[8])
        tree.get(names[9])  # closes 3
        fs.opened.clear()
        for name in (names[0], names[1], names[8], names[9], *names[4:8]):
            tree.get(name)
        assert fs.opened == []
        for name in names[2:4]:
            tree.get(name)
        assert fs.opened == names[2:4]
    finally:
        tree.close()
        fs.close(top)
