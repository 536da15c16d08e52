"""`du`: bytes by storage class, of current and of noncurrent versions."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsrepl.cli import app, register
from fsrepl.commands.usage import disk_usage, usage
from fsrepl.commands.versioning_cost import cost
from fsrepl.settings import RegionSettings
from fsrepl.storage.extents import Blocks, Extent
from tests.mounts import btrfs, only_root
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


def on_disk(world: World, *buckets: str) -> dict[str, int]:
    return disk_usage(world.engine.site, world.engine.journal, buckets, lambda number: None).document()


def two_versions(world: World, size: int = 2 << 20) -> None:
    """A large object, in two versions of other content each."""
    for _ in range(2):
        world.write("k", os.urandom(size))
        world.settle()


@pytest.mark.parametrize(("sharing", "copies"), [("private", 2), ("link", 1)])
def test_hard_links_are_counted_once(world: World, sharing: str, copies: int) -> None:
    """`du --disk`: what is on the disk, what sharing saves, and what the removal of old versions would free."""
    world.set_sharing(east=sharing)
    two_versions(world)
    size, found = 2 << 20, on_disk(world, SOURCE)
    assert found["Used"] == pytest.approx((1 + copies) * size, rel=0.05)
    assert found["Shared"] == pytest.approx((2 - copies) * size, rel=0.05)
    assert found["FreedWithoutNoncurrent"] == pytest.approx(size, rel=0.05)
    before = found["Used"]
    world.remove("k", version=world.of("k")[1].id)
    assert before - on_disk(world, SOURCE)["Used"] == found["FreedWithoutNoncurrent"]


@only_root
def test_reflinks_are_counted_once(tmp_path: Path) -> None:
    """The version shares its blocks with the view, and nothing with the version before."""
    with btrfs(tmp_path) as disk, World(tmp_path / "world", regions={"east": disk / "east"}) as world:
        two_versions(world)
        subprocess.run(["sync", "-f", disk], check=True)
        size, found = 2 << 20, on_disk(world, SOURCE)
        assert found["Used"] == pytest.approx(2 * size, rel=0.1)
        assert found["Shared"] == pytest.approx(size, rel=0.1)
        assert found["FreedWithoutNoncurrent"] == pytest.approx(size, rel=0.1)


def test_extents_that_overlap_are_counted_once() -> None:
    """By position on the disk, of each disk; a file with two names once; what is not shared as it is."""
    blocks, inodes = Blocks(), itertools.count(1)

    def file(size: int, *shared: tuple[int, int], device: int = 1, inode: int = 0) -> None:
        found = os.stat_result(
            (0o100644, inode or next(inodes), device, 1, 0, 0, size, 0, 0, 0), {"st_blocks": size // 512}
        )
        blocks.add(found, [Extent(*each) for each in shared])

    file(8192, (0, 4096), (8192, 4096))
    file(8192, (0, 8192))
    file(4096, (8192, 4096))
    assert (blocks.allocated, blocks.used) == (20480, 12288)
    file(4096, (0, 4096), device=2)
    file(4096, inode=99)
    file(4096, inode=99)
    assert (blocks.allocated, blocks.used) == (32768, 20480)


@pytest.mark.parametrize(
    ("sharing", "said"), [("link", "are one"), ("private", "is stored twice"), ("auto", "a lifecycle rule removes it")]
)
def test_what_versioning_costs_is_said(tmp_path: Path, sharing: str, said: str) -> None:
    assert said in cost(RegionSettings("east", tmp_path, sharing))
