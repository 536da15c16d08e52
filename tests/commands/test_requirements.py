"""A region is refused where its filesystem lacks a feature, and the message names that feature."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from fsrepl.commands import requirements, sites
from fsrepl.errors import Usage
from fsrepl.storage.fs import Fs
from tests import mounts
from tests.doubles import FailingFs, UnsyncedFs
from tests.world import DESTINATION, SOURCE, World

LACKS = {
    "create": (errno.ENAMETOOLONG, "names of 255 bytes"),
    "set_attribute": (errno.ENOTSUP, "user attributes"),
    "rename_new": (errno.EINVAL, "RENAME_NOREPLACE"),
    "exchange": (errno.EINVAL, "RENAME_EXCHANGE"),
    "sync_file": (errno.EINVAL, "fsync"),
}


@pytest.mark.parametrize("verb", LACKS)
def test_what_a_filesystem_lacks_is_named_before_a_region_is_taken(tmp_path: Path, verb: str) -> None:
    """Section 5: such as RENAME_EXCHANGE (NFS) or long names (eCryptfs). Nothing is left behind."""
    number, named = LACKS[verb]

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    fs = Fs()
    setattr(fs, verb, refuse)
    with pytest.raises(Usage, match=named) as refused:
        sites.init(tmp_path / "site", {"east": str(tmp_path / "east")}, fs=fs)
    assert "region east at" in str(refused.value)
    assert os.strerror(number).lower() in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fold", "named"),
    [(str.casefold, "upper and lower case"), (partial(unicodedata.normalize, "NFC"), "two ways to write an accent")],
)
def test_a_filesystem_that_takes_two_keys_for_one_name_is_refused(
    tmp_path: Path, fold: Callable[[str], str], named: str
) -> None:
    """G1, G6: as ext4 with case folding does, or ZFS with normalized names: `a` would be written over `A`."""

    class Folding(Fs):
        def stat(self, at: int, name: bytes, /) -> os.stat_result:
            names = {fold(each.decode()): each for each in self.names(at)}
            return super().stat(at, names.get(fold(name.decode()), name))

    with pytest.raises(Usage, match="does not keep names as they are") as refused:
        sites.init(tmp_path / "site", {"east": str(tmp_path / "east")}, fs=Folding())
    assert named in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_attributes_are_tried_on_a_file_that_has_a_name(tmp_path: Path) -> None:
    """Section 5: mergerfs answers ESTALE for a file without a name, and supports attributes otherwise."""

    class Mergerfs(UnsyncedFs):
        def set_attribute(self, fd: int, name: str, value: bytes) -> None:
            if not self.stat_fd(fd).st_nlink:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            super().set_attribute(fd, name, value)

    at = os.open(tmp_path, os.O_RDONLY)
    requirements.require(Mergerfs(), at, "region east")
    os.close(at)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_blocks(home: Path) -> Iterator[Path]:
    """An ext4 as mkfs makes it on a device below 512 MiB: blocks of 1 KiB, which hold all attributes of a file."""
    image, at = home / "ext4.img", home / "ext4"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "1024", image], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("there is no mkfs.ext4")
    mounts.mount("-o", "loop", image, at)
    try:
        yield at
    finally:
        mounts.clear(at)


@mounts.only_root
@pytest.mark.parametrize("sharing", ["auto", "private", "link"])
def test_what_does_not_fit_in_968_bytes_of_attributes_goes_to_the_sidecar(tmp_path: Path, sharing: str) -> None:
    """G5, G7: on the smallest ext4, records and metadata arrive complete, in every sharing mode; nothing is rebuilt."""
    with small_blocks(tmp_path) as at, World(at / "w") as world:
        world.set_sharing(east=sharing, west=sharing)
        for name in ("plain", "tagged", "full"):
            world.write(name, name.encode())
        os.setxattr(world.path("tagged"), "user.note", b"n" * 300)
        os.setxattr(world.path("tagged"), "user.fsrepl.tag.class", b"t" * 100)
        with contextlib.suppress(OSError):  # until the attributes are full
            for number in range(100):
                os.setxattr(world.path("full"), f"user.x{number}", b"x" * 40)
        assert len(os.listxattr(world.path("full"))) < 30
        world.settle()
        world.settle()
        assert world.statuses() == {"COMPLETED"}
        assert world.records(SOURCE) == world.records(DESTINATION)
        for name in ("plain", "tagged", "full"):
            assert world.look_of(name) == world.look_of(name, DESTINATION)
        ids = world.ids(SOURCE)
        world.restart(without_journal=True)
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION) == ids
        world.stays_quiet()


def test_a_full_view_has_not_lost_its_attributes(
    memory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: a view that is also the stored file and has no room for labels is not taken for one that lost its
    attributes."""
    whole = UnsyncedFs.set_attribute

    def set_attribute(fs: UnsyncedFs, fd: int, name: str, value: bytes) -> None:
        if "fsrepl" in name and b"full" in b"".join(fs.attributes(fd).values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(fs, fd, name, value)

    monkeypatch.setattr(UnsyncedFs, "set_attribute", set_attribute)
    with World(memory / "w") as world:
        world.set_sharing(east="link", west="link")
        world.write("k", b"k")
        os.setxattr(world.path("k"), "user.note", b"full")
        world.settle()
        assert world.statuses() == {"COMPLETED"}
        caplog.clear()
        world.restart(without_journal=True)
        world.settle()
        assert not [line for line in caplog.messages if line.startswith("rebuilt")]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_where_there_are_no_hard_links_replicas_are_copies(memory: Path, number: int) -> None:
    """G3, G4: as on some FUSE filesystems; no step waits for a link."""

    class Linkless(UnsyncedFs):
        def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            raise OSError(number, os.strerror(number))

    with World(memory / "w", fs=Linkless()) as world:
        for data in (b"one", b"another"):
            world.drop("k", data)
            world.settle()
        assert world.tree(DESTINATION) == {"k": b"another"}
        assert world.statuses() == {"COMPLETED"}
        world.unlink("k")
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert world.leftovers(DESTINATION) == []


def test_a_probe_that_cannot_be_removed_is_no_object(memory: Path) -> None:
    """G7: a fault at any change either refuses the folder, or leaves nothing in it that would be adopted."""
    for calls in itertools.count():
        top = memory / str(calls)
        top.mkdir()
        fs = FailingFs(calls)
        at = os.open(top, os.O_RDONLY)
        try:
            requirements.require(fs, at, "folder")
        except Usage:
            requirements.require(UnsyncedFs(), at, "folder")
        finally:
            os.close(at)
        assert os.listdir(top) == [], f"EIO at change {calls}, {fs.failed_in}"
        if not fs.failed:
            return
