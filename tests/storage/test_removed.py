"""removed.jsonl: the versions that were removed for good."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsrepl.storage.documents import Removed, read_removed, removed_line
from fsrepl.storage.fs import Fs

ID = "01KB7Z3V5N8Q0R2T4W6Y8A1C3E"


@pytest.mark.parametrize(
    "key", [b"d/plain name.jpg", b'"quoted"', b"back\\slash", "grüße".encode(), b"\xff\xfe", b"line\nend", b"", b"{}"]
)
def test_every_key_is_read_as_it_was_written(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "removed.jsonl").write_bytes(removed_line(key, ID) + removed_line(key, "null") + b'{"key": "cut sh')
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert read_removed(Fs(), fd, Removed()).ids == {(key, ID), (key, "null")}
    finally:
        os.close(fd)


def test_lines_are_read_once_and_a_shorter_file_is_read_anew(tmp_path: Path) -> None:
    """As after a store was set back: what the file does not name any more was not removed."""
    file, fd = tmp_path / "removed.jsonl", os.open(tmp_path, os.O_RDONLY)
    try:
        file.write_bytes(removed_line(b"a", ID))
        first = read_removed(Fs(), fd, Removed())
        with file.open("ab") as opened:
            opened.write(removed_line(b"b", ID))
        second = read_removed(Fs(), fd, first)
        assert second.ids == {(b"a", ID), (b"b", ID)}
        assert second.ids is first.ids
        file.write_bytes(removed_line(b"c", ID))
        assert read_removed(Fs(), fd, second).ids == {(b"c", ID)}
    finally:
        os.close(fd)
