"""`du`: bytes by storage class, of current and of noncurrent versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsrepl.cli import app, register
from fsrepl.commands.usage import usage
from tests.world import DESTINATION, SOURCE, World, v1


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def classes(world: World, *buckets: str) -> dict[str, tuple[int, int, int, int]]:
    document = usage(world.engine.site, world.engine.journal, buckets)
    return {
        each["StorageClass"]: (each["Current"], each["Noncurrent"], each["Objects"], each["NoncurrentVersions"])
        for each in document["Classes"]
    }


def fill(world: World) -> None:
    """Replicas of a/ are STANDARD_IA. One object is replaced, and one is removed."""
    world.configure(v1("a/", StorageClass="STANDARD_IA"), v1("b/"))
    world.write("a/k", b"12345")
    world.write("b/k", b"123")
    world.write("b/gone", b"1234567")
    world.settle()
    world.unlink("a/k")
    world.write("a/k", b"1234567890")
    world.unlink("b/gone")
    world.settle()


def test_bytes_are_counted_by_class_and_by_current_or_not(world: World) -> None:
    """Section 5, du: markers have no bytes, and a version below a marker is noncurrent."""
    assert classes(world, SOURCE) == {}
    fill(world)
    assert classes(world, SOURCE) == {"STANDARD": (13, 12, 2, 2)}
    assert classes(world, DESTINATION) == {"STANDARD": (3, 7, 1, 1), "STANDARD_IA": (10, 5, 1, 1)}
    assert classes(world, SOURCE, DESTINATION) == {"STANDARD": (16, 19, 3, 3), "STANDARD_IA": (10, 5, 1, 1)}


def test_du_is_the_same_without_the_journal_and_where_it_lacks_the_class(world: World) -> None:
    """G11: computed from the record."""
    fill(world)
    before = classes(world, DESTINATION)
    world.restart(without_journal=True)
    world.settle()
    assert classes(world, DESTINATION) == before
    keys = [(version.key, version.id, None) for version in world.of("a/k", DESTINATION)]
    world.engine.journal.versions.set_traits(DESTINATION, keys)
    assert classes(world, DESTINATION) == before


def test_a_bucket_that_was_never_versioned_holds_its_files(world: World) -> None:
    world.run("bucket.create", bucket="east/plain")
    (world.path(bucket="east/plain") / "d").mkdir()
    (world.path(bucket="east/plain") / "d" / "k").write_bytes(b"1234")
    assert classes(world, "east/plain") == {"STANDARD": (4, 0, 1, 0)}


def test_the_command_takes_a_bucket_or_a_region(world: World) -> None:
    """Section 5: JSON is a contract; an unknown region is a usage error."""
    fill(world)
    site = str(world.engine.site.settings.path.parent)
    register(["usage"])
    run = CliRunner().invoke
    told = run(app, ["--site", site, "du", DESTINATION, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["Classes"]
    assert [(each["StorageClass"], each["Current"], each["Noncurrent"]) for each in found] == [
        ("STANDARD", 3, 7),
        ("STANDARD_IA", 10, 5),
    ]
    assert json.loads(run(app, ["--site", site, "du", "west", "--json"]).stdout)["Classes"] == found
    assert "10 B" in run(app, ["--site", site, "du", "west"]).stdout
    assert "there is no region 'north'" in str(run(app, ["--site", site, "du", "north"]).exception)
