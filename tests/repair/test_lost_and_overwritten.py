"""Files that are version and view at once, whose attributes were replaced and whose content was overwritten."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.model import attributes
from fsrepl.model.version import Status
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World

OLDER = "01M8K1ZMMT445TX2DVXVT2711T"


def write_and_strip(path: Path, other: Path) -> None:
    """A write in place, with the attributes removed by hand."""
    path.write_bytes(other.read_bytes())
    for name in os.listxattr(path):
        os.removexattr(path, name)


def write_and_label(path: Path, other: Path) -> None:
    """The same with `rsync -X` of a file from when it showed an older version: the copied record is of that version."""
    write_and_strip(path, other)
    record = {"version-id": OLDER, "blake3": "00" * 32, "last-modified": "2026-01-01T00:00:00Z", "origin": "user"}
    os.setxattr(path, attributes.RECORD, json.dumps(record).encode())
    os.setxattr(path, attributes.VERSION_ID, OLDER.encode())


def copy_onto(path: Path, other: Path) -> None:
    """`cp -a`, with fsrepl's attributes."""
    subprocess.run(["cp", "-a", other, path], check=True)


def copy_onto_and_edit(path: Path, other: Path) -> None:
    copy_onto(path, other)
    path.write_bytes(b"2nd, edited")


def leave(path: Path) -> None:
    pass


def delete(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed"))


def replace(path: Path) -> None:
    """Exchange the names of two files."""
    rename(path)
    path.write_bytes(b"3rd")


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize("then", [leave, delete, rename, replace])
@pytest.mark.parametrize("overwrite", [write_and_strip, write_and_label, copy_onto, copy_onto_and_edit])
def test_it_is_fetched_again(
    tmp_path: Path, overwrite: Callable[[Path, Path], None], then: Callable[[Path], None], without_journal: bool
) -> None:
    """G5, sharing = "link": from the region that has it complete; the written content becomes a version, as always."""
    with World(tmp_path) as world:
        world.set_sharing(east="link")
        world.write("k", b"1st")
        world.write("other", b"2nd")
        world.settle()
        before = world.ids(SOURCE)[b"k"]
        world.engine.close()
        overwrite(world.path("k"), world.path("other"))
        then(world.path("k"))
        tree = world.tree(SOURCE)
        world.restart(without_journal=without_journal)
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert world.ids(SOURCE)[b"k"][:1] == before
        assert verify(world) == []
        assert world.tree(SOURCE) == world.tree(DESTINATION) == tree


def test_its_deletion_is_noticed(tmp_path: Path) -> None:
    """G6: also where the record of the deleted version cannot be read at that moment."""
    with World(tmp_path) as world:
        world.set_sharing(east="link")
        world.write("k", b"1st")
        world.write("other", b"other")
        world.settle()
        world.engine.close()
        write_and_label(world.path("k"), world.path("k"))
        world.unlink("k")
        world.restart()
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"other": b"other"}


def test_what_its_user_put_back_is_a_good_copy(tmp_path: Path) -> None:
    """Section 7, View and store: a linked view was overwritten while no daemon ran, and its user put the content back
    as another file. That is the only whole copy, and the damaged one has another size."""
    with World(tmp_path) as world:
        world.set_sharing(east="link")
        world.write("k", b"one")
        world.capture(SOURCE)
        view, aside = world.path("k"), world.home / "aside"
        aside.write_bytes(b"one")
        view.write_bytes(b"in place")
        aside.rename(view)
        world.restart(without_journal=True)
        world.settle()
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert world.tree(DESTINATION) == {"k": b"one"}
        assert verify(world) == []
