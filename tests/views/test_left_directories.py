"""Directories that stay for what is in them, while their own keys are deleted: S3 keeps `d/x` when `d/` goes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.commands import why
from fsrepl.model.address import Address
from fsrepl.views import unrecorded
from fsrepl.views.unrecorded import Look
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify
from tests.views.test_folders import folders, two_sides
from tests.world import DESTINATION, SOURCE, World, v2, worlds

THIRD = "north/third"
BOTH = (SOURCE, DESTINATION)


def deliver(world: World, bucket: str = SOURCE) -> None:
    """Capture what changed in one bucket, and deliver it, before any other bucket captures anything."""
    world.capture(bucket)
    world.flush_settling()
    assert world.engine.run_until_idle(), "it turns for ever"


def at_rest(world: World, key: str = "d/", buckets: Sequence[str] = BOTH, where: str = "") -> None:
    """Check that all sides are alike, and that nothing is said to wait, by the daemon or by who reads beside it."""
    assert [key for bucket in buckets for key in world.state(bucket).views.stale] == [], where
    for bucket in buckets:
        assert world.leftovers(bucket) == [], where
        assert world.tree(bucket) == world.tree(buckets[0]), where
        assert world.ids(bucket) == world.ids(buckets[0]), where
        recorded = world.engine.journal.versions.object(bucket, key.encode())
        assert recorded is not None
        with world.engine.site.bucket(bucket).open() as opened:
            assert unrecorded.look(opened, key.encode(), recorded.view) is Look.RECORDED, where


def take_away(world: World, how: str) -> None:
    """At the destination a user moves a directory away, or removes it, and nobody has captured that yet."""
    path = world.path("d", DESTINATION)
    if how == "moved":
        path.rename(world.path("gone", DESTINATION))
    else:
        shutil.rmtree(path)


@pytest.mark.parametrize("how", ["moved", "removed"])
@pytest.mark.parametrize("sharing", ["auto", "private", "link"])
def test_a_marker_meets_a_directory_that_was_made_for_a_file(tmp_path: Path, sharing: str, how: str) -> None:
    """The recorded directory is gone, and another one was made for a replica, before its marker arrives: that directory
    is not the key's view. The running daemon comes to rest, and what it says is the same after a restart."""
    with two_sides(tmp_path) as world:
        world.set_sharing(east=sharing, west=sharing)
        world.write("d/old", b"old")
        world.settle()
        take_away(world, how)
        world.write("d/new", b"new")
        deliver(world)
        world.remove("d/")
        deliver(world)
        for _ in range(2):
            world.settle()
        at_rest(world)
        assert world.current("d/", DESTINATION).marker
        assert world.tree(DESTINATION)["d/new"] == b"new"
        assert verify(world) == []
        world.stays_quiet()
        world.restart()
        world.settle()
        at_rest(world)
        world.write("d/new", b"rewritten", DESTINATION)
        world.settle()
        at_rest(world)
        assert world.tree(SOURCE)["d/new"] == b"rewritten"
        world.unlink("d/new", DESTINATION)
        for _ in range(2):
            world.settle()
        at_rest(world)
        assert not world.path("d").exists()
        assert not world.path("d", DESTINATION).exists()


def test_a_marker_meets_a_directory_that_was_made_for_a_file_and_any_crash(memory: Path) -> None:
    """G7: the same, and the daemon is killed at any change from the arrival of the marker on."""
    for calls, world in worlds(memory, trees=True):
        world.run("replication.enable", source=DESTINATION, destination=SOURCE)
        world.write("d/old", b"old")
        world.settle()
        take_away(world, "moved")
        world.write("d/new", b"new")
        deliver(world)
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.remove("d/")
            deliver(world)
            world.settle()
        world.restart(without_journal=calls % 2 == 1)
        for _ in range(3):
            world.settle()
        where = f"cut at {calls}, in {fs.died_in}"
        at_rest(world, where=where)
        assert world.tree(DESTINATION) == {"d/new": b"new", "gone/old": b"old"}, where
        assert verify(world) == [], where
        if not fs.died:
            assert world.current("d/", DESTINATION).marker
            return


def test_in_a_mesh_a_marker_meets_a_directory_that_was_made_for_a_third(tmp_path: Path) -> None:
    """One removes the directory, one moves it away, and one saves into it."""
    every = (SOURCE, DESTINATION, THIRD)
    with World(tmp_path, trees=True, buckets=every) as world:
        for bucket in every:
            others = [each for each in every if each != bucket]
            world.configure(*(v2("", number, to=to, markers=True) for number, to in enumerate(others)), source=bucket)
        world.write("d/old", b"old")
        world.settle()
        take_away(world, "moved")
        world.write("d/new", b"new", THIRD)
        world.away("east")
        deliver(world, THIRD)
        world.back("east")
        shutil.rmtree(world.path("d"))
        deliver(world, SOURCE)
        for _ in range(3):
            world.settle()
        at_rest(world, buckets=every)
        assert world.tree(THIRD) == {"d/new": b"new", "gone/old": b"old"}
        world.unlink("d/new")
        for _ in range(2):
            world.settle()
        at_rest(world, buckets=every)
        assert [*folders(world, THIRD)] == ["gone"]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_marker_meets_a_directory_that_its_user_has_just_changed(tmp_path: Path, restarts: bool) -> None:
    """The change is captured: the directory is an object again on both sides, and nothing waits for its removal."""
    with two_sides(tmp_path) as world:
        world.write("d/file", b"data")
        world.settle()
        world.path("d", DESTINATION).chmod(0o711)
        world.remove("d/")
        deliver(world)
        if restarts:
            world.restart()
        for _ in range(2):
            world.settle()
        at_rest(world)
        assert [v.marker for v in world.of("d/", SOURCE)] == [False, True, False]
        assert [folders(world, bucket)["d"][0] for bucket in BOTH] == [0o711] * 2
        assert verify(world) == []
        world.stays_quiet()


@pytest.mark.parametrize("is_reused", [False, True])
def test_a_directory_made_in_the_place_of_a_removed_one_is_no_change_of_that(tmp_path: Path, is_reused: bool) -> None:
    """A user removed it, and that was not captured when a replica arrived: it is deleted all the same, and what the new
    directory lacks is lost nowhere. is_reused: the new directory has the inode number of the old one."""
    with two_sides(tmp_path) as world:
        world.write("d/old", b"old")
        os.setxattr(world.path("d"), "user.note", b"value")
        world.settle()
        take_away(world, "moved")
        world.write("d/new", b"new")
        deliver(world)
        if is_reused:
            journal = world.engine.journal
            recorded = journal.versions.object(DESTINATION, b"d/")
            assert recorded is not None
            assert recorded.view is not None
            inode = world.path("d", DESTINATION).stat().st_ino
            journal.views.see(DESTINATION, b"d/", replace(recorded.view, ino=inode))
        for _ in range(3):
            world.settle()
        at_rest(world)
        assert [v.marker for v in world.of("d/")] == [True, False]
        assert world.tree(SOURCE) == {"d/new": b"new", "gone/old": b"old"}
        assert os.getxattr(world.path("d"), "user.note") == b"value"
        assert verify(world) == []
        world.stays_quiet()


def test_a_new_version_meets_a_directory_that_was_made_for_a_file(tmp_path: Path) -> None:
    """The recorded directory was removed by its user before: that is captured, after the version that was on its way,
    as it would be of a file."""
    with two_sides(tmp_path) as world:
        world.write("d/old", b"old")
        world.settle()
        take_away(world, "removed")
        world.path("d").chmod(0o711)
        world.write("d/new", b"new")
        deliver(world)
        for _ in range(3):
            world.settle()
        at_rest(world)
        assert [v.marker for v in world.of("d/")] == [True, False, False]
        assert folders(world, SOURCE) == folders(world, DESTINATION) == {"d": (0o711, os.geteuid(), os.getegid(), {})}


def test_a_directory_made_for_a_file_shows_its_version_where_nothing_else_is_known(tmp_path: Path) -> None:
    """G6: with the journal went the record of the directory that was there before."""
    with two_sides(tmp_path) as world:
        world.write("d/old", b"old")
        os.setxattr(world.path("d"), "user.note", b"value")
        world.settle()
        take_away(world, "removed")
        world.write("d/new", b"new")
        deliver(world)
        assert "user.note" not in os.listxattr(world.path("d", DESTINATION))
        world.restart(without_journal=True)
        for _ in range(3):
            world.settle()
        at_rest(world)
        assert folders(world, SOURCE) == folders(world, DESTINATION)
        assert os.getxattr(world.path("d", DESTINATION), "user.note") == b"value"
        assert world.tree(DESTINATION) == {"d/new": b"new"}
        world.stays_quiet()


def test_a_directory_that_stays_for_its_contents_is_no_unrecorded_change(tmp_path: Path) -> None:
    """What reads beside the daemon says nothing of it, and `why` that it stays; of one whose rights were changed the
    former says so."""
    with World(tmp_path, trees=True) as world:
        world.write("d/file", b"data")
        world.settle()
        world.remove("d/")
        for _ in range(2):
            world.settle()
        at_rest(world)
        address = replace(Address.parse_bucket(SOURCE), key=b"d/")
        notes = why.why(world.engine.site, address, None, {}).sentences
        for bucket in BOTH:
            assert f"the directory stays in {bucket} for what is in it, and goes with the last of that" in notes
        world.path("d").chmod(0o711)
        with world.engine.site.bucket(SOURCE).open() as opened:
            assert unrecorded.look(opened, b"d/", None) is Look.CHANGED


@pytest.mark.parametrize("without_journal", [False, True])
def test_a_directory_that_became_an_object_stays_when_it_is_empty(tmp_path: Path, without_journal: bool) -> None:
    """It was made for a file that was restored into it; nobody but its users removes it from then on."""
    with World(tmp_path, trees=True) as world:
        world.write("d/file", b"data")
        world.settle()
        shutil.rmtree(world.path("d"))
        for _ in range(2):
            world.settle()
        world.run("object.restore", bucket=SOURCE, key=b"d/file")
        if without_journal:
            world.restart(without_journal=True)
        for _ in range(2):
            world.settle()
        is_object = not world.current("d/").marker
        world.unlink("d/file")
        for _ in range(2):
            world.settle()
        assert world.current("d/").marker is not is_object
        assert world.path("d").exists() is is_object
        assert world.path("d", DESTINATION).exists() is is_object
