"""A rule whose prefix matches no object: the command that makes the rule says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.cli import replication
from fsrepl.model.address import Address
from tests.world import DESTINATION, SOURCE, World

KEYS = ("ab/c", "abc", "d/e/f", "z")


def test_prefixes_are_looked_up_among_keys(tmp_path: Path) -> None:
    """Section 4: a prefix is compared byte for byte with the whole key; a deleted key is no object."""
    with World(tmp_path, replicate=False) as world:
        for key in (*KEYS, "gone"):
            world.write(key, b"data")
        world.settle()
        world.unlink("gone")
        world.settle()
        prefixes = {
            key[:end] + more for key in (*KEYS, "gone") for end in range(len(key) + 1) for more in ("", "/", "x")
        }
        found = {p for p in prefixes if world.engine.journal.versions.has_object(SOURCE, p.encode())}
        assert found == {p for p in prefixes if any(key.startswith(p) for key in KEYS)}


def test_a_prefix_that_nothing_begins_with_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5, S6: it may be a typing mistake. For an empty bucket there is no such message."""
    with World(tmp_path, replicate=False) as world:
        enabled = dict[str, object](source=SOURCE, destination=DESTINATION, prefixes=["d/", "D/", "ab"])
        assert "Unmatched" not in world.run("replication.enable", **enabled)
        for key in KEYS:
            world.write(key, b"data")
        world.settle()
        answer = world.run("replication.enable", **enabled, replace=True)
        assert answer["Unmatched"] == ["D/"]
        replication.warn_of_unmatched(Address.parse_bucket(SOURCE), answer)
        assert f"no object in {SOURCE} begins with 'D/'; a rule waits for such objects" in capsys.readouterr().err
