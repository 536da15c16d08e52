"""Buckets: adopted as they are where there is room, and removed whole, also where that was cut short."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.errors import FsreplError, Refused
from fsrepl.model.version import Origin
from fsrepl.settings import reading
from tests.doubles import DyingFs, FailingFs, PowerCut
from tests.world import World

OTHER, ADDRESS = "east/other", "east/old"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, buckets=(OTHER,), replicate=False) as found:
        yield found


def fill(world: World, address: str = ADDRESS) -> Path:
    """A folder with files, and with what is no object."""
    top = world.path(bucket=address)
    (top / "d/e").mkdir(parents=True)
    for name in ("a", "d/b", "d/e/c"):
        (top / name).write_text(name)
    os.utime(top / "a", ns=(1_000_000_000, 1_000_000_000))
    (top / "link").symlink_to("a")
    return top


def listing(top: Path) -> dict[str, tuple[int, int, int]]:
    """All that would show that a program had changed the files of a folder."""
    found = {str(p.relative_to(top)): p.lstat() for p in top.rglob("*") if ".fsrepl" not in p.parts}
    return {name: (s.st_ino, s.st_mode, s.st_mtime_ns) for name, s in found.items() if not os.path.isdir(top / name)}


# -- adopt


def test_files_are_adopted_as_they_are(world: World) -> None:
    """Section 2: each file is the version null of its key, created at the file's own time; links are left alone."""
    top = fill(world)
    before = listing(top)
    room = world.run("bucket.adopt", bucket=ADDRESS, dry_run=True)
    assert (room["Objects"], room["Bytes"]) == (3, 9)
    assert not (top / ".fsrepl").exists(), "a dry run makes nothing"
    world.run("bucket.adopt", bucket=ADDRESS)
    history = world.history(ADDRESS)
    assert {key: [v.id for v in versions] for key, versions in history.items()} == {
        key: ["null"] for key in (b"a", b"d/b", b"d/e/c")
    }
    assert history[b"a"][0].created_ns == 1_000_000_000
    assert {v.origin for versions in history.values() for v in versions} == {Origin.ADOPTED}
    assert listing(top) == before
    assert world.refused("bucket.adopt", bucket=ADDRESS) == "BucketAlreadyOwnedByYou"
    assert world.refused("bucket.adopt", bucket="east/none") == "NoSuchBucket"


def test_where_there_is_no_room_nothing_is_adopted(world: World) -> None:
    """Section 2: adopt and versioning are refused where there is not enough space, and nothing is made."""
    top = fill(world)
    world.run("bucket.create", bucket="east/plain")
    world.write("k", b"k", "east/plain")
    leave_free(world, '"99.9%"')
    assert world.refused("bucket.adopt", bucket=ADDRESS) == "InvalidRequest"
    assert not (top / ".fsrepl").exists()
    assert world.refused("versioning.set", bucket="east/plain", status="Enabled") == "InvalidRequest"
    assert not world.path(".fsrepl/versions", "east/plain").exists()
    leave_free(world, '"0%"')
    answer = world.run("versioning.set", bucket="east/plain", status="Enabled")
    assert (answer["Objects"], answer["Bytes"]) == (1, 1)
    assert world.run("bucket.adopt", bucket=ADDRESS)["Adopted"] == 3


def leave_free(world: World, amount: str) -> None:
    text = world.settings.path.read_text().partition("[capture]\nkeep_free")[0]
    world.settings.path.write_text(f"{text}[capture]\nkeep_free = {amount}\n")
    world.settings = reading.load(world.settings.path)
    world.restart()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
@pytest.mark.parametrize(("op", "more"), [("bucket.adopt", {}), ("bucket.create", {"versioning": True})])
def test_a_store_that_another_user_owns_is_refused(world: World, op: str, more: dict[str, bool]) -> None:
    """Section 2: a store that belongs to neither the daemon nor root is refused, before anything is written into it."""
    meta = world.path(bucket=ADDRESS) / ".fsrepl"
    meta.mkdir(parents=True)
    (meta / "bucket.json").write_text('{"uuid": "theirs", "name": "old", "region": "east", "created": "never"}')
    os.chown(meta, 65534, 65534)
    assert world.refused(op, bucket=ADDRESS, **more) == "AccessDenied"
    assert [file.name for file in meta.iterdir()] == ["bucket.json"]
    assert ADDRESS not in world.engine.site.buckets


def test_an_adoption_that_was_cut_short_is_finished_by_the_next(world: World) -> None:
    """G7: whichever change the power cut comes at, the same command run again makes each file the version null,
    once."""
    for calls in itertools.count(step := 7, step):
        address = f"east/old{calls}"
        top = fill(world, address)
        before = listing(top)
        world.restart(fs=(fs := DyingFs(calls)))
        try:
            world.run("bucket.adopt", bucket=address)
        except PowerCut:
            world.restart()
            with contextlib.suppress(Refused):  # the folder is a bucket already, where the cut came at the last change
                world.run("bucket.adopt", bucket=address)
            world.settle()
        assert {key: len(versions) for key, versions in world.history(address).items()} == {
            b"a": 1,
            b"d/b": 1,
            b"d/e/c": 1,
        }
        assert listing(top) == before
        if not fs.died:
            return


# -- stores that came with their folders


def test_a_copied_store_is_adopted_by_no_second_bucket(world: World) -> None:
    """`cp -a` of a bucket's folder: two buckets of one identity would be taken for each other, and the copied rule
    would send the files of both to one place. Without the copied .fsrepl the files are adopted like any others."""
    world.write("k", b"k", OTHER)
    world.settle()
    copy = world.path(bucket=ADDRESS)
    shutil.copytree(world.path(bucket=OTHER), copy)
    before = sorted(copy.rglob("*"))
    with pytest.raises(Refused, match=f"BucketAlreadyOwnedByYou: .* is that of {OTHER}, .*remove") as refused:
        world.run("bucket.adopt", bucket=ADDRESS, dry_run=True)
    assert world.refused("bucket.adopt", bucket=ADDRESS) == refused.value.code
    assert sorted(copy.rglob("*")) == before
    (copy / "k").unlink()
    assert world.refused("bucket.create", bucket=ADDRESS) == refused.value.code
    (copy / "k").write_bytes(b"k")
    shutil.rmtree(copy / ".fsrepl")
    assert world.run("bucket.adopt", bucket=ADDRESS)["Adopted"] == 1
    assert world.engine.site.buckets[ADDRESS].uuid != world.engine.site.buckets[OTHER].uuid


def test_a_region_that_is_attached_has_no_copied_buckets(world: World) -> None:
    """The folder that bucket.json names is the bucket; a copy of it beside it is a folder with files."""
    shutil.copytree(world.path(bucket=OTHER), world.path(bucket="east/copied"))
    path = world.settings.regions["east"].path
    world.run("region.add", name="west", path=str(path.parent / "west"))
    world.run("region.forget", name="east")
    world.run("region.add", name="east", path=str(path))
    assert set(world.engine.site.buckets) == {OTHER}


def test_a_bucket_that_was_moved_keeps_its_versions(world: World) -> None:
    """G6: adopted under another name, its files are the versions that they were, and become no null versions."""
    world.write("k", b"one", OTHER)
    world.settle()
    world.write("k", b"two", OTHER)
    world.settle()
    before = world.ids(OTHER)
    world.path(bucket=OTHER).rename(world.path(bucket=ADDRESS))
    assert world.refused("bucket.adopt", bucket=ADDRESS) == "BucketAlreadyOwnedByYou"
    world.run("bucket.rm", bucket=OTHER)
    answer = world.run("bucket.adopt", bucket=ADDRESS)
    assert (answer["Adopted"], answer["Versioning"]) == (0, "Enabled")
    world.settle()
    assert world.ids(ADDRESS) == before
    assert json.loads(world.path(".fsrepl/bucket.json", ADDRESS).read_text())["name"] == "old"
    world.write("k", b"three", ADDRESS)
    world.settle()
    assert len(world.ids(ADDRESS)[b"k"]) == 3


def test_a_bucket_that_was_moved_is_adopted_as_a_tree_bucket(world: World) -> None:
    """The option holds for a folder with a store of its own too; of a bucket that is there, another command is told."""
    world.write("d/k", b"one", OTHER)
    world.settle()
    world.path("empty", OTHER).mkdir()
    world.path("link", OTHER).symlink_to("d")
    before = world.ids(OTHER)
    with pytest.raises(Refused, match=r"BucketAlreadyOwnedByYou: .*`fsrepl bucket trees east/other on`"):
        world.run("bucket.adopt", bucket=OTHER, trees=True)
    world.path(bucket=OTHER).rename(world.path(bucket=ADDRESS))
    world.run("bucket.rm", bucket=OTHER)
    world.run("bucket.adopt", bucket=ADDRESS, trees=True)
    world.settle()
    assert json.loads(world.path(".fsrepl/bucket.json", ADDRESS).read_text())["trees"] is True
    assert world.ids(ADDRESS).keys() == {b"d/", b"d/k", b"empty/", b"link"}
    assert world.ids(ADDRESS)[b"d/k"] == before[b"d/k"]


@pytest.mark.parametrize("document", ["{", "[]"])
def test_a_store_whose_identity_cannot_be_read_is_not_adopted(world: World, document: str) -> None:
    """Bad input: the message says what to do."""
    meta = fill(world) / ".fsrepl"
    meta.mkdir()
    (meta / "bucket.json").write_text(document)
    with pytest.raises(Refused, match=r"InvalidRequest: .*bucket\.json cannot be read: .*move that \.fsrepl away"):
        world.run("bucket.adopt", bucket=ADDRESS)
    assert [path.name for path in meta.iterdir()] == ["bucket.json"]


# -- rm


def test_a_bucket_with_content_is_not_removed_without_yes(world: World) -> None:
    """Section 5: neither files nor versions nor markers are removed without --yes; an empty bucket is."""
    world.write("k", b"k", OTHER)
    assert world.refused("bucket.rm", bucket=OTHER) == "BucketNotEmpty"
    world.settle()
    world.unlink("k", OTHER)
    world.settle()
    assert world.tree(OTHER) == {}
    assert world.refused("bucket.rm", bucket=OTHER) == "BucketNotEmpty"
    assert len(world.history(OTHER)[b"k"]) == 2
    world.run("bucket.rm", bucket=OTHER, purge=True)
    assert not world.path(bucket=OTHER).exists()
    assert world.engine.site.buckets == {}
    world.run("bucket.create", bucket=OTHER)
    world.run("bucket.rm", bucket=OTHER)


def test_a_removal_that_was_cut_short_is_finished_by_the_next(world: World) -> None:
    """G7: whichever change the power cut comes at, the rest is no bucket any more, and the same command removes it."""
    for calls in itertools.count():
        world.run("bucket.create", bucket=ADDRESS, versioning=True)
        for name in ("k", "d/k"):
            world.write(name, b"k", ADDRESS)
        world.settle()
        world.restart(fs=(fs := DyingFs(calls)))
        try:
            world.run("bucket.rm", bucket=ADDRESS, purge=True)
        except PowerCut:
            world.restart()
            world.settle()
            if ADDRESS in world.engine.site.buckets:
                world.run("bucket.rm", bucket=ADDRESS, purge=True)
        assert not world.path(bucket=ADDRESS).exists()
        assert ADDRESS not in world.engine.site.buckets
        if not fs.died:
            return


def test_a_bucket_is_removed_however_deep_its_directories_are(world: World) -> None:
    """Deeper than Python's stack, and than a process may have files open."""
    top = os.open(world.path(bucket=OTHER), os.O_RDONLY)
    for _ in range(1_500):
        os.mkdir("d", dir_fd=top)
        below = os.open("d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    os.close(top)
    world.run("bucket.rm", bucket=OTHER, purge=True)
    assert not world.path(bucket=OTHER).exists()


def test_another_bucket_in_its_place_is_not_removed(world: World) -> None:
    """G8: a command may remove only the bucket that the site knows."""
    world.write("k", b"k", OTHER)
    world.path(".fsrepl/bucket.json", OTHER).write_text('{"uuid": "another"}')
    with pytest.raises(FsreplError, match="another bucket"):
        world.run("bucket.rm", bucket=OTHER, purge=True)
    assert world.tree(OTHER) == {"k": b"k"}


# -- what fails


def test_a_bucket_that_cannot_be_made_leaves_nothing(world: World) -> None:
    """Section 5, nothing half done: whichever change fails, the folder is as it was, and the command works later."""
    top = fill(world)
    before = sorted(world.settings.regions["east"].path.rglob("*"))
    for calls in itertools.count():
        world.restart(fs=(fs := FailingFs(calls, errno.ENOSPC)))
        with contextlib.suppress(FsreplError):
            world.run("bucket.create", bucket="east/new", versioning=True)
        if not fs.failed:
            break
        if "east/new" not in world.engine.site.buckets:
            assert sorted(world.settings.regions["east"].path.rglob("*")) == before, calls
        else:
            world.restart()
            world.run("bucket.rm", bucket="east/new")
    world.restart(fs=FailingFs(0, errno.EROFS, for_ever=True))
    with pytest.raises(FsreplError):
        world.run("bucket.adopt", bucket=ADDRESS)
    assert not (top / ".fsrepl").exists()
