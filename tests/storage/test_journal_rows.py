"""Rows of the journal with values of another type than their columns: the journal is rebuilt, as if it were gone."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from fsrepl.storage.journal.database import Journal, open_or_replace
from tests.stored import damage_journal
from tests.world import DESTINATION, SOURCE, World

TABLES = ("bucket", "version", "object", "delivery")
WRONG = {"INTEGER": ("text", b"\xff"), "TEXT": (b"\xff",), "BLOB": ("text", 7), "ANY": ("text",)}
KINDS = pytest.mark.parametrize("is_strict", [True, False], ids=["strict", "of an earlier build"])
"""A journal as it is made now, and one of an earlier build or of an SQLite before 3.37: fsrepl compares its values."""


def _columns(path: Path) -> list[tuple[str, str, str]]:
    """(table, column, declared type) of each column that is no part of a row's number."""
    with sqlite3.connect(path) as db:
        return [
            (table, name, kind)
            for table in TABLES
            for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})")
            if name not in ("bucket", "id") or table != "bucket"
        ]


@KINDS
def test_a_value_of_another_type_in_any_column_is_damage(memory: Path, is_strict: bool) -> None:
    """Each read of the row would fail. SQLite's own check passes over it where the table is not strict."""
    with World(memory) as world:
        world.write("d/k", b"one")
        world.settle()
        world.engine.journal.close()
        path = Path(world.engine.site.state) / "journal.db"
        whole = path.read_bytes()
        journal = open_or_replace(str(path))
        assert not journal.is_new
        journal.close()
        for table, name, kind in _columns(path):
            for value in WRONG[kind]:
                damage_journal(path, f"UPDATE OR REPLACE {table} SET {name} = ?", value, is_strict=is_strict)
                journal = open_or_replace(str(path))
                assert journal.is_new, (table, name, value)
                journal.close()
                path.write_bytes(whole)
        world.restart()


@KINDS
@pytest.mark.parametrize(
    ("table", "assignment"),
    [
        ("object", "mtime = 'text'"), ("object", "mode = -1"), ("object", "dir = 'text'"), ("object", "size = NULL"),
        ("version", "name = 7"), ("version", "created = 'text'"), ("bucket", "scanned = NULL"),
        ("delivery", "key = 'text'"), ("delivery_count", "number = 'text'"),
        ("object_count", "objects = 'text'"), ("object_count", "current_bytes = NULL"),
    ],
)  # fmt: skip
def test_the_site_goes_on(
    memory: Path, caplog: pytest.LogCaptureFixture, table: str, assignment: str, is_strict: bool
) -> None:
    """G7, section 2: everything in the journal can be rebuilt from the trees, and is, without a traceback."""
    with World(memory) as world:
        world.write("d/k", b"one")
        world.settle()
        world.engine.journal.close()
        path = Path(world.engine.site.state) / "journal.db"
        damage_journal(path, f"UPDATE OR REPLACE {table} SET {assignment}", is_strict=is_strict)
        world.restart()
        world.write("d/k", b"two")
        for _ in range(3):
            world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/k": b"two"}
        assert [len(found) for found in world.history(SOURCE).values()] == [2]
        assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert [each for each in caplog.records if each.exc_info] == []


def test_a_state_folder_may_have_any_name(tmp_path: Path) -> None:
    """SQLite is given an address where it is to read, in which these characters mean something else."""
    (folder := tmp_path / "50%25?mode=rw#").mkdir()
    path = str(folder / "journal.db")
    for is_new in (True, False):
        journal = open_or_replace(path)
        assert journal.is_new == is_new
        journal.bucket_id(SOURCE, "uuid")
        with contextlib.closing(Journal(path, read_only=True)) as reader:
            assert reader.knows(SOURCE)
        journal.close()
