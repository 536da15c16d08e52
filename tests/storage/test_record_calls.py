"""The cost of a small file in attributes: calls and bytes do not vary with the machine, so an increase is noticed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.model.attributes import DELIVERIES, RECORD, STATUS, TRUSTED_RECORD, VERSION_ID
from tests import mounts
from tests.doubles import UnsyncedFs
from tests.stored import stored
from tests.world import DESTINATION, SOURCE, World

FILES = 20


class Counting(UnsyncedFs):
    """Counts the calls for attributes and opened files by name; calls that set and remove an attribute, by its name
    too."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        for name in ("set_attribute", "remove_attribute", "attribute", "attribute_names", "attributes", "open_read"):
            setattr(self, name, self._counted(name, getattr(UnsyncedFs, name).__get__(self)))

    def _counted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(fd: int, *values: object) -> object:
            self.calls[f"{name} {values[0]}" if name in ("set_attribute", "remove_attribute") else name] += 1
            return real(fd, *values)

        return call

    def taken(self) -> dict[str, float]:
        found = {name: number / FILES for name, number in self.calls.items()}
        self.calls.clear()
        return found


def _sets(*names: str) -> dict[str, float]:
    return {f"set_attribute {name}": 1.0 for name in names}


def _setting(calls: dict[str, float]) -> dict[str, float]:
    return {name: number for name, number in calls.items() if name.startswith(("set_attribute", "remove_attribute"))}


@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_attributes_are_set_once_a_file(memory: Path, sharing: str) -> None:
    """Section 2: two a version, one more once it has arrived, two a view; none is removed, or set again."""
    fs = Counting()
    with World(memory, fs=fs) as world:
        if sharing == "private":
            world.set_sharing(east=sharing, west=sharing)
            world.restart(fs=fs)
        world.settle()
        fs.taken()
        for number in range(FILES):
            world.write(f"{number}", b"%d" % number * 1000)
        world.capture(SOURCE)
        assert _setting(fs.taken()) == _sets(RECORD, DELIVERIES)
        world.settle()
        calls = fs.taken()
        replica = [VERSION_ID, STATUS, RECORD] + ([TRUSTED_RECORD] if sharing == "auto" and os.geteuid() == 0 else [])
        expected = Counter(_sets(*replica)) + Counter(_sets(DELIVERIES, VERSION_ID, STATUS))
        assert _setting(calls) == dict(expected)
        assert calls["attribute_names"] <= 1.5  # one look at each view that is marked
        world.stays_quiet()


def test_deliveries_fit_the_inode_of_ext4(memory: Path) -> None:
    """Section 2: 52 bytes are left in an inode of 256 beside the name, so their change writes no block anew."""
    with World(memory, replicate=False) as world:
        world.run("bucket.create", bucket="east/photos", versioning=True)
        world.run("bucket.create", bucket="west/photos", versioning=True)
        world.run("replication.enable", source="east/photos", destination="west/photos")
        world.write("k", b"data", "east/photos")
        world.settle()
        found = os.getxattr(stored(world, "k", "east/photos"), DELIVERIES)
        assert found == b'{"west/photos":"COMPLETED photos-to-photos"}'
        assert len(found) + len("eu-west-1") - len("west") <= 52


def test_a_removal_reads_the_record_of_the_removed_view_once(memory: Path) -> None:
    """Sections 2 and 7: a view that was the stored file is removed after one read of its record, which stays
    unchanged."""
    fs = Counting()
    with World(memory, fs=fs) as world:
        for number in range(FILES):
            world.write(f"{number}", b"%d" % number * 1000)
        world.settle()
        for number in range(FILES):
            world.unlink(f"{number}")
        world.capture(SOURCE)
        assert _setting(fs.taken()).keys() >= _sets(RECORD, DELIVERIES).keys()
        world.settle()
        calls = fs.taken()
        assert _setting(calls) == _sets(RECORD, DELIVERIES)  # the replica of the marker, and its outcome
        # the view, which is opened once; the outcome on the source's marker
        assert calls["open_read"] <= 2.5
        assert calls["attribute"] <= (2.5 if os.geteuid() == 0 else 6.5)  # the record, and what is shown of it


@mounts.only_root
def test_a_view_that_left_its_version_leaves_the_shown_record_right(tmp_path: Path) -> None:
    """Section 2: its user may write what is shown; a copy of the tree without root's attributes has that alone."""
    with World(tmp_path) as world:
        world.write("k", b"data")
        world.settle()
        file = stored(world, "k", DESTINATION)
        right = os.getxattr(file, RECORD)
        os.setxattr(world.path("k", DESTINATION), RECORD, right.replace(b"blake3", b"blake4"))
        world.settle()
        world.unlink("k")
        world.settle()
        assert not world.path("k", DESTINATION).exists()
        assert os.getxattr(file, RECORD) == right
        assert TRUSTED_RECORD in os.listxattr(file)


@mounts.only_root
def test_views_take_no_block_each_for_their_labels(tmp_path: Path) -> None:
    """Section 8: on ext4 the id is in the inode; the status is in a block that all views with that status share."""
    with (
        mounts.ext4(tmp_path, "-b", 4096, "-I", 256) as at,
        World(tmp_path / "w", regions={"east": at / "east", "west": at / "west"}) as world,
    ):
        world.set_sharing(east="private", west="private")
        world.write("first", b"")
        world.settle()
        mounts.sync(at)
        before = os.statvfs(at).f_bfree
        for number in range(100):
            world.write(f"{number}", b"")
        world.settle()
        mounts.sync(at)
        used = before - os.statvfs(at).f_bfree
        assert {world.path(f"{number}").stat().st_blocks for number in range(100)} == {8}  # each counts it
        assert 200 <= used < 240  # a block a stored version, here and there; views would be 200 more
