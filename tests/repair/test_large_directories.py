"""Directories of very many files are compared with the journal in parts, with the result of a comparison whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fsrepl.repair import reconcile
from fsrepl.storage.journal import database
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.tree_identity import tree_of
from tests.world import SOURCE, World


def rows(journal: Journal) -> dict[str, list[tuple[object, ...]]]:
    """All that the journal knows, but how the views looked."""
    whole = {
        "version": "dir, name, created, id, marker, size, traits, replica",
        "object": "dir, name, id, created, marker, digest",
        "delivery": "key, id, destination, status",
    }
    execute = journal.execute
    return {t: execute(f"SELECT bucket, {c} FROM {t} ORDER BY 1, 2, 3, 4, 5").fetchall() for t, c in whole.items()}


def make(world: World) -> None:
    """Versions, markers and null versions in one directory and at the top."""
    for round_ in range(2):
        for number in range(12):
            for directory in ("", "d/"):
                world.write(f"{directory}f{number:02}", b"%d %d" % (round_, number))
        world.settle()
    world.unlink("d/f03")
    world.unlink("f03")
    world.settle()
    world.run("replication.rm", source=SOURCE)
    world.run("versioning.set", bucket=SOURCE, status="Suspended")
    for number in range(6):
        world.write(f"d/f{number:02}", b"null %d" % number)
    world.write("d/" + "l" * 230, b"its name is stored as a digest")
    world.settle()
    for number in (1, 4):
        world.unlink(f"d/f{number:02}")
    world.settle()


def damage(world: World, chance: random.Random) -> None:
    """Rows that are missing, and files that are."""
    execute = world.engine.journal.execute
    for name in chance.sample([f"f{number:02}".encode() for number in range(12)], 3):
        for table in ("version", "object"):
            execute(f"DELETE FROM {table} WHERE name = ?", (name,))
    world.engine.journal._count()  # the journal has not lost these rows, but never had them
    stored = sorted(path for path in world.path(".fsrepl/versions").rglob("*;*") if ";01" in path.name)
    for path in chance.sample(stored, 3):
        path.unlink()
    marker = world.path(".fsrepl/versions/d/f01;null;deleted")
    if chance.random() < 0.5:  # a null version that the marker was about to replace
        marker.with_name("f01;null").write_bytes(b"")


@pytest.mark.parametrize("afresh", [False, True])
def test_parts_give_what_the_whole_gives(memory: Path, monkeypatch: pytest.MonkeyPatch, *, afresh: bool) -> None:
    """G11: after a start the journal agrees with the store, whatever of either is missing."""
    monkeypatch.setattr(reconcile, "_ROWS", 5)
    for seed in range(3):
        with World(memory / str(seed)) as world:
            make(world)
            damage(world, random.Random(seed))
            found = []
            with world.engine.site.bucket(SOURCE).open() as bucket:
                for at_once in (4096, 3):
                    monkeypatch.setattr(reconcile, "NAMES_AT_ONCE", at_once)
                    journal = database.in_memory([(SOURCE, bucket.bucket.uuid)], world.engine.journal)
                    journal.set_tree(SOURCE, tree_of(bucket))
                    before = rows(journal)
                    reconcile.reconcile(bucket, journal, afresh=afresh)
                    found.append(rows(journal))
                    journal.close()
        assert found[0] == found[1], f"seed {seed}"
        assert found[0] != before, f"seed {seed}"
