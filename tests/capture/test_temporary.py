"""Which names are temporary: names that programs give, and none that people give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl import settings, temporary
from fsrepl.region import change_queue
from fsrepl.settings import reading
from fsrepl.temporary import TABLE, Temporary
from tests.world import SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.program)
def test_what_programs_write_first_is_temporary(row: Temporary) -> None:
    """Settings, temporary: each row of the table matches its own pattern, and the default that is made of all
    patterns."""
    for patterns in ((row.pattern,), settings.Capture().temporary):
        assert change_queue.temporary_pattern(patterns).match(row.example.encode())
    assert row.source


@pytest.mark.parametrize(
    "name",
    [
        "cat.jpg", "Makefile", "file0001", "00000042", "20261129", "cafebabe", "photo.backup", "README", ".bashrc",
        ".gitignore", "000000010000000000000001", "film.mkv.aria", "sedan.txt", "tmpdata.csv", "XXL.jpeg", "tmp", "nfs",
    ],
)  # fmt: skip
def test_ordinary_names_are_not_temporary(name: str) -> None:
    """Section 6: a file is in the other region a moment after it was dropped."""
    assert not change_queue.temporary_pattern(settings.Capture().temporary).match(name.encode())


def test_a_file_with_a_control_file_is_not_taken_while_it_is_open(world: World) -> None:
    """G1, P2: aria2 writes under the final name; half a download makes no version, however long it takes."""
    world.settings.path.write_text(
        world.settings.path.read_text() + "\n[capture]\nopen_quiet_s = 0\nopen_max_s = 0\ntemporary_settle_s = 0\n"
    )
    world.settings = reading.load(world.settings.path)
    world.restart()
    control = world.path("film.mkv" + temporary.CONTROL_FILES[0].decode())
    control.write_bytes(b"which pieces are there")
    with world.path("film.mkv").open("wb") as file:
        file.write(b"half")
        file.flush()
        world.settle()
        assert b"film.mkv" not in world.history(SOURCE)
        assert "has a temporary name" in world.state().captures.deferred[b"film.mkv"].why
        file.write(b" and half")
    control.unlink()
    world.settle()
    assert world.tree("west/dst") == {"film.mkv": b"half and half"}
