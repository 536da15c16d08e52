"""Files of equal content are made one inode, as jdupes, rdfind and hardlink do: each version keeps its own record."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model.version import Status
from fsrepl.storage import listing
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, worlds

KEYS = ("a/1", "a/2", "b/3")
CONTENT = b"the same content " * 300


def join(*files: Path) -> None:
    """Make files names of the first of them, each in one step."""
    for file in files[1:]:
        if not file.samefile(files[0]):
            aside = file.parent / ".joining"
            os.link(files[0], aside)
            aside.replace(file)


def stored(world: World, bucket: str) -> list[Path]:
    return sorted(p for p in world.path(".fsrepl/versions", bucket).rglob("*;*") if not p.name.endswith(".json"))


def of_content(world: World, bucket: str, which: str) -> list[Path]:
    views = [path for key in KEYS if (path := world.path(key, bucket)).exists()]
    versions = [p for p in stored(world, bucket) if p.read_bytes() == CONTENT]
    return {"store": versions, "all": [*versions, *views], "all, views first": [*views, *versions]}[which]


def fill(world: World, *, tagged: bool = False, number: int = len(KEYS)) -> None:
    for key in KEYS[:number]:
        world.drop(key, CONTENT, tags={"key": key} if tagged else None)
        os.utime(world.path(key), (1e9, 1e9))
    world.write("other", b"another content")


def is_alone(path: Path, world: World, bucket: str) -> bool:
    """Whether a stored file is no other version's."""
    return sum(other.samefile(path) for other in stored(world, bucket)) == 1


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory) as found:
        yield found


@pytest.mark.parametrize("which", ["store", "all", "all, views first"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_every_version_keeps_its_record(world: World, bucket: str, which: str) -> None:
    """G2, G5, G11: the files get inodes of their own again as they are repaired, once; no listing is wrong."""
    fill(world, tagged=which == "store")  # tags on a view are its user's, and joining views joins those
    world.settle()
    before = world.ids(SOURCE), world.ids(DESTINATION)
    tags = {key: dict(world.current(key, bucket).tags) for key in KEYS}
    join(*of_content(world, bucket, which))
    with world.engine.site.bucket(bucket).open() as opened:
        found, _ = listing.entries(opened, b"", versions=True, page=listing.Page())
    assert [(e.version.key, e.version.id) for e in found] == [
        (key, versions[-1][0]) for key, versions in before[bucket == DESTINATION].items()
    ]
    world.settle()
    verify(world, repair=True)
    assert verify(world) == []
    assert all(is_alone(path, world, bucket) for path in stored(world, bucket))
    assert (world.ids(SOURCE), world.ids(DESTINATION)) == before
    assert {key: dict(world.current(key, bucket).tags) for key in KEYS} == tags
    assert world.statuses() == {Status.COMPLETED}
    world.stays_quiet()


def test_they_are_noticed_at_a_start(world: World) -> None:
    """G7, G11: where records are read again in any case, as without the journal, no version waits for a later
    repair."""
    fill(world)
    world.settle()
    before = world.ids(SOURCE)
    join(*of_content(world, SOURCE, "store"))
    world.restart(without_journal=True)
    world.settle()
    assert all(is_alone(path, world, SOURCE) for path in stored(world, SOURCE))
    assert world.ids(SOURCE) == before == world.ids(DESTINATION)
    assert verify(world) == []


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_joined_versions_are_delivered(world: World, restarted: bool) -> None:
    """G3, G7: versions that are joined before they are sent, and the outcomes of those sent before."""
    world.away("west")
    fill(world)
    world.settle()
    join(*of_content(world, SOURCE, "all"))
    if restarted:
        world.restart()
        world.settle()
    world.back("west")
    for _ in range(3):
        world.settle()
    assert world.statuses() == {Status.COMPLETED}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert verify(world) == []


def test_null_versions_are_told_apart(memory: Path) -> None:
    """G5: every key may have the id null, so the records of null versions name their keys."""
    with World(memory, replicate=False) as world:
        fill(world, tagged=True)
        for key in (*KEYS, "other"):
            world.path(key, "east/old").parent.mkdir(parents=True, exist_ok=True)
            world.path(key).rename(world.path(key, "east/old"))
        world.run("bucket.adopt", bucket="east/old")
        world.settle()
        before = {key: (v.created_ns, dict(v.tags)) for key in KEYS for v in world.of(key, "east/old")}
        join(*[p for p in stored(world, "east/old") if p.read_bytes() == CONTENT])
        world.restart(without_journal=True)
        world.settle()
        assert {key: dict(v.tags) for key in KEYS for v in world.of(key, "east/old")} == {
            key: tags for key, (_, tags) in before.items()
        }
        assert all(is_alone(path, world, "east/old") for path in stored(world, "east/old"))


def test_a_write_in_place_is_that_of_the_views_alone(world: World) -> None:
    """G1, G2: where views and versions were one file, and the bucket's versions are to have files of their own."""
    fill(world)
    world.settle()
    before = world.ids(SOURCE)
    join(*of_content(world, SOURCE, "all"))
    world.settle()
    with world.path("a/1").open("r+b") as file:
        file.write(b"EDITED")
    world.settle()
    for key in KEYS:
        assert [v.size for v in world.of(key)] == [len(CONTENT)] * 2
        assert world.of(key)[-1].id == before[key.encode()][0][0]
    assert verify(world) == []
    assert world.tree(SOURCE) == world.tree(DESTINATION)


def test_an_edit_of_one_replica_is_none_of_the_others(world: World) -> None:
    """G5: metadata for one of several joined replicas is set on that one alone."""
    fill(world)
    world.settle()
    join(*of_content(world, DESTINATION, "all"))
    world.settle()
    world.path("a/1").chmod(0o600)
    world.settle()
    world.settle()
    modes = {key: world.path(key, DESTINATION).stat().st_mode & 0o777 for key in KEYS}
    assert modes == {key: world.path(key).stat().st_mode & 0o777 for key in KEYS}
    assert world.records(SOURCE) == world.records(DESTINATION)


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_power_cut_at_every_change(memory: Path, bucket: str) -> None:
    """G2, G7: whichever change the power cut comes at, every version has its record and its content in the end."""
    for calls, world in worlds(memory):
        fill(world, number=2)
        world.settle()
        before = world.ids(SOURCE), world.ids(DESTINATION)
        join(*of_content(world, bucket, "all"))
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
            verify(world, repair=True)
        world.restart(without_journal=calls % 2 == 0)
        world.settle()
        verify(world, repair=True)
        assert (world.ids(SOURCE), world.ids(DESTINATION)) == before, (calls, fs.died_in)
        assert verify(world) == [], calls
        assert world.leftovers(bucket) == [], calls
        if not fs.died:
            return
