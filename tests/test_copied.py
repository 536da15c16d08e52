"""A world that is copied is the same as one that is made."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests import copied
from tests.world import SOURCE, World

_OWN = re.compile(
    rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z|(?<=_ns\": )\d+|(?<=;)[0-9A-Z]{26}"
)
"""What each site has of its own."""


def files(world: World) -> dict[str, tuple[int, bytes]]:
    found = (path for path in world.home.rglob("*") if "journal.db" not in path.name)
    contents = {
        path: b"" if path.is_dir() else path.read_bytes().replace(os.fsencode(world.home), b"HOME") for path in found
    }
    return {
        _OWN.sub(b"", os.fsencode(p.relative_to(world.home))).decode(): (p.stat().st_mode, _OWN.sub(b"", data))
        for p, data in contents.items()
    }


def rows(world: World) -> dict[str, list[Any]]:
    """The journal's rows, without inodes, times and uuids; of the signature of a tree and the course of a scrub nothing
    is left then."""
    world.engine.journal.execute("PRAGMA wal_checkpoint")
    with sqlite3.connect(Path(world.engine.site.state) / "journal.db") as journal:
        return {
            "fact": journal.execute("SELECT name, value FROM fact WHERE name NOT GLOB '[ts][rc]* *'").fetchall(),
            "bucket": journal.execute("SELECT id, address, scanned > 0, skipped FROM bucket").fetchall(),
            "object": journal.execute("SELECT bucket, name, size, mode, digest FROM object").fetchall(),
            "delivery": journal.execute("SELECT bucket, key, destination, status FROM delivery").fetchall(),
        }


@pytest.mark.parametrize("more", [{}, {"replicate": False}, {"trees": True}, {"buckets": ("east/one", "north/two")}])
def test_a_copy_is_as_a_site_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Files, modes and documents, the buckets that are up, and the journal after the first file."""
    more = {"replicate": "buckets" not in more, **more}
    bucket = more.get("buckets", (SOURCE,))[0]
    monkeypatch.setattr(World, "_made", {})
    with World(tmp_path / "made", **more) as made, World(tmp_path / "copy", **more) as copy:
        assert len(World._made) == 1
        assert files(copy) == files(made)
        up = [
            {a: s.phase for region in w.engine.regions.values() for a, s in region.states.items()} for w in (made, copy)
        ]
        assert up[0] == up[1]
        assert not set(made.engine.site.identities.buckets.values()) & set(copy.engine.site.identities.buckets.values())
        for world in (made, copy):
            world.write("k", b"content", bucket)
            world.settle()
        assert files(copy) == files(made)
        assert rows(copy) == rows(made)


def test_a_folder_that_gives_something_to_what_is_made_in_it_is_not_copied_into(tmp_path: Path) -> None:
    """Files, a group or a default ACL there would be in the copy, and not in a site that is made."""
    assert copied.is_plain(tmp_path)
    (tmp_path / "file").touch()
    assert not copied.is_plain(tmp_path)
    assert copied.is_plain(tmp_path / "home")
    tmp_path.chmod(0o2755)
    assert not copied.is_plain(tmp_path / "home")
    (tmp_path / "home").mkdir()
    assert (tmp_path / "home").stat().st_mode & 0o2000
    assert not copied.is_plain(tmp_path / "home")
    (tmp_path / "home").chmod(0o755)
    assert copied.is_plain(tmp_path / "home")
