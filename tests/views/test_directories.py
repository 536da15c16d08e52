"""A replica's directories give no user more access than the source's; none is changed by a name that others can
replace."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.model import access, attributes
from fsrepl.model.version import Posix, Rights
from fsrepl.region.change_queue import ARRIVED, CHANGED, DirectoryEvent
from fsrepl.repair import verify
from fsrepl.repair.compare import Problem
from tests.doubles import UnsyncedFs
from tests.storage.test_privacy import ACL_NAME, NONE, PEOPLE, acl
from tests.world import DESTINATION, SOURCE, World, v1

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives directories away")

DEFAULT = "system.posix_acl_default"
LETS_1001_IN = acl((1, 7, NONE), (2, 5, 1001), (4, 0, NONE), (16, 5, NONE), (32, 0, NONE))


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    before = os.umask(0o022)
    try:
        with World(memory) as made:
            yield made
    finally:
        os.umask(before)


def look_of(world: World, key: str, bucket: str = DESTINATION) -> Rights:
    path = world.path(key, bucket)
    found, names = path.stat(), os.listxattr(path)
    acls = (os.getxattr(path, name) if name in names else None for name in (ACL_NAME, DEFAULT))
    return Rights(found.st_mode & 0o7777, found.st_uid, found.st_gid, *acls)


def shut(world: World, key: str, bucket: str = SOURCE) -> None:
    os.chown(world.path(key, bucket), 33, 33)
    world.path(key, bucket).chmod(0o700)


def differences(world: World) -> list[tuple[bytes, Problem]]:
    with verify.Verification(world.engine.site, SOURCE, None, world.engine.journal) as found:
        return [(each.key, each.problem) for each in found.differences()]


# -- following


@pytest.mark.parametrize("downtime", [False, True], ids=["at-once", "after-downtime"])
def test_a_replicas_directory_follows_its_source(world: World, downtime: bool) -> None:
    """Section 2: mode, owner, access and default ACL, whether the daemon was running or a scan finds the change."""
    world.write("d/e/k", b"k")
    world.settle()
    shut(world, "d")
    os.setxattr(world.path("d/e"), ACL_NAME, LETS_1001_IN)
    os.setxattr(world.path("d/e"), DEFAULT, LETS_1001_IN)
    if downtime:
        world.restart()
    world.settle()
    assert look_of(world, "d") == Rights(0o700, 33, 33)
    assert look_of(world, "d/e") == look_of(world, "d/e", SOURCE)
    os.removexattr(world.path("d/e"), DEFAULT)
    os.removexattr(world.path("d/e"), ACL_NAME)
    world.path("d/e").chmod(0o2750)
    world.settle()
    assert look_of(world, "d/e") == Rights(0o2750, 0, 0)
    assert not differences(world)


def test_an_event_leads_to_it_without_a_scan(world: World) -> None:
    """Section 6: within a moment, where the kernel makes an event; the same for a change on the replica."""
    world.write("d/k", b"k")
    world.settle()
    for bucket, mode in ((SOURCE, 0o700), (DESTINATION, 0o777)):
        world.path("d", bucket).chmod(mode)
        world.region(bucket).changes.directories.append(DirectoryEvent(bucket, b"d", CHANGED, 0))
        world.engine.run_until_idle()
        assert look_of(world, "d").mode == 0o700


def test_a_directory_that_replaced_another_is_followed_though_nothing_of_it_is_sent(world: World) -> None:
    """Section 2: what a capture finds changed is passed on, where no version in the directory is sent."""
    world.configure(v1("d/sent"))
    world.write("d/sent", b"k")
    world.settle()
    assert look_of(world, "d").mode == 0o755
    world.path("d").rename(world.home / "aside")
    world.path("d").mkdir(0o700)
    (world.home / "aside/sent").rename(world.path("d/sent"))
    world.write("d/other", b"not sent")
    world.region(SOURCE).changes.directories.append(DirectoryEvent(SOURCE, b"d", ARRIVED, 0))
    assert world.engine.run_until_idle()
    assert look_of(world, "d").mode == 0o700


def test_a_region_that_was_away_catches_up(world: World) -> None:
    """G7: changes of a directory made meanwhile are found when the region is back."""
    world.write("d/k", b"k")
    world.settle()
    world.away("west")
    world.settle()
    world.path("d").chmod(0o700)
    world.settle()
    world.back("west")
    for region in world.engine.regions.values():
        region.probe_now()
    world.settle()
    assert look_of(world, "d").mode == 0o700


def test_no_new_content_is_shown_in_a_directory_that_is_wider_than_its_source(world: World) -> None:
    """Section 2: the directory is restricted before the first file is shown that was written after the source's was."""
    world.write("d/k", b"k")
    world.settle()
    modes = []

    class Watching(UnsyncedFs):
        def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            self._look(to_at, new_name)
            super().rename_new(from_at, name, to_at, new_name)

        def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            self._look(to_at, new_name)
            super().link(from_at, name, to_at, new_name)

        def _look(self, to_at: int, new_name: bytes) -> None:
            if new_name == b"new":
                modes.append(os.fstat(to_at).st_mode & 0o7777)

    world.restart(fs=Watching())
    world.engine.run_until_idle()
    world.path("d").chmod(0o700)
    world.write("d/new", b"private")
    world.capture(SOURCE)
    world.state().views.directories.clear()  # the event of the change is lost
    world.engine.run_until_idle()
    assert modes == [0o700]


@pytest.mark.parametrize("known", [True, False], ids=["seen", "never-seen"])
def test_a_directory_that_is_gone_at_the_source_is_as_it_was(world: World, known: bool) -> None:
    """Section 2: as it was when its file was captured; readable by the daemon alone where that is unknown."""
    world.away("west")
    world.path("secret/deep").mkdir(parents=True)
    shut(world, "secret")
    world.write("secret/deep/note", b"diagnosis")
    world.capture(SOURCE)
    shutil.rmtree(world.path("secret"))
    if not known:
        for stored in ("secret", "secret/deep"):
            os.removexattr(world.path(f".fsrepl/versions/{stored}"), attributes.DIRECTORY)
    world.back("west")
    for region in world.engine.regions.values():
        region.probe_now()
    world.engine.turn()
    world.flush_settling()
    world.engine.run_until_idle()  # without a scan, so that it is not known yet that the file is gone as well
    assert world.path("secret/deep/note", DESTINATION).exists()
    assert look_of(world, "secret") == (Rights(0o700, 33, 33) if known else Rights(0o700, 0, 0))
    assert look_of(world, "secret/deep").mode == (0o755 if known else 0o700)


def test_a_stale_view_gets_its_directory_as_at_the_source(world: World) -> None:
    """Section 2: also where there was an obstacle when the replica came, and the source is away since."""
    world.path("d").mkdir()
    shut(world, "d")
    world.write("d/k", b"k")
    world.path("d", DESTINATION).write_bytes(b"in the way")
    world.settle()
    world.away("east")
    world.unlink("d", DESTINATION)
    world.settle()
    assert world.path("d/k", DESTINATION).exists()
    assert look_of(world, "d") == Rights(0o700, 33, 33)


@pytest.mark.parametrize("crash", [False, True], ids=["held", "after-a-crash"])
def test_a_view_shown_late_is_in_a_directory_as_at_its_source(world: World, crash: bool) -> None:
    """Section 2: also where no delivery leads to it, and no scan has read the directory before."""
    world.write("d/other", b"o")
    world.settle()
    world.path("d/k", DESTINATION).mkdir()
    (world.path("d/k", DESTINATION) / "theirs").write_bytes(b"in the way")
    world.write("d/k", b"k")
    world.settle()
    shutil.rmtree(world.path("d/k", DESTINATION))
    shut(world, "d")
    if crash:
        world.restart()
    seen = []

    class Watching(UnsyncedFs):
        def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            if new_name == b"k":
                seen.append(os.fstat(to_at).st_mode & 0o7777)
            super().link(from_at, name, to_at, new_name)

    bucket = world.engine.site.bucket(DESTINATION)
    bucket.fs = world.engine.site.fs = Watching()
    world.region(DESTINATION).probe_buckets()
    world.flush_settling()
    world.region(DESTINATION).turn()
    assert world.tree(DESTINATION)["d/k"] == b"k"
    assert seen == [0o700]


# -- directories that are left alone


def test_a_directory_of_the_destinations_own_is_left_alone(world: World) -> None:
    """G1: its creator decides, before replicas come into it and after."""
    world.path("d", DESTINATION).mkdir()
    world.path("d", DESTINATION).chmod(0o750)
    world.write("d/k", b"k")
    world.settle()
    world.path("d").chmod(0o700)
    world.settle()
    assert look_of(world, "d").mode == 0o750
    assert not differences(world)


def test_a_directory_that_replaced_one_of_fsrepls_is_left_alone(world: World) -> None:
    """G9: a user who may write above it can put another user's directory there, with its mark, and does not become its
    owner."""
    world.write("d/k", b"k")
    world.settle()
    world.path("d", DESTINATION).rename(world.path("was-d", DESTINATION))
    theirs = world.path("d", DESTINATION)
    theirs.mkdir()
    theirs.chmod(0o770)
    os.setxattr(theirs, attributes.MADE, b"1")
    shut(world, "d")
    world.write("d/new", b"n")
    world.settle()
    assert look_of(world, "d") == Rights(0o770, 0, 0)


def test_directories_of_a_copied_tree_still_follow(world: World) -> None:
    """A region on another disk: every inode is another one, and the directories that replication made are known."""
    world.write("d/k", b"k")
    world.settle()
    top = world.path(bucket=DESTINATION)
    copy = top.with_name("copy")
    assert os.system(f"cp -a {top} {copy}") == 0
    shutil.rmtree(top)
    copy.rename(top)
    world.restart()
    world.settle()
    shut(world, "d")
    world.settle()
    assert look_of(world, "d") == Rights(0o700, 33, 33)


def test_a_directory_of_the_destinations_own_that_is_gone_does_not_count(world: World) -> None:
    """Section 2: the directory that replication makes in its place is as the source's, and follows it."""
    theirs = world.path("d", DESTINATION)
    theirs.mkdir()
    (theirs / "mine").write_bytes(b"mine")
    os.chown(theirs, 13000, 13000)
    theirs.chmod(0o700)
    world.settle()
    shutil.rmtree(theirs)
    world.settle()
    world.path("d").mkdir()
    os.chown(world.path("d"), 12000, 12000)
    world.write("d/k", b"k")
    world.settle()
    assert look_of(world, "d") == Rights(0o755, 12000, 12000)
    assert not differences(world)
    world.path("d").chmod(0o750)
    world.settle()
    assert look_of(world, "d") == Rights(0o750, 12000, 12000)


# -- several sources, and changes at the replica


def test_a_directory_of_two_sources_admits_users_whom_both_admit(memory: Path) -> None:
    """Section 2: a user whom one source excludes is excluded at the replica too, whichever source came last."""
    other = "north/src"
    with World(memory, buckets=(SOURCE, DESTINATION, other), replicate=False) as world:
        world.configure(v1())
        world.configure(v1(), source=other)
        for bucket, mode in ((SOURCE, 0o750), (other, 0o705)):
            world.path("d", bucket).mkdir()
            world.path("d", bucket).chmod(mode)
            world.write(f"d/{bucket[0]}", b"x", bucket)
            world.settle()
        assert look_of(world, "d").mode == 0o700
        world.path("d").chmod(0o755)
        world.settle()
        assert look_of(world, "d").mode == 0o705
        os.chown(world.path("d", other), 7, 0)
        world.path("d", other).chmod(0o755)
        world.path("d").chmod(0o705)
        world.settle()
        assert look_of(world, "d").mode == 0o500  # the owner of one is among the others of the other


def test_changes_on_the_replica_remove_rights_and_never_add_any(world: World) -> None:
    """Section 2: until the source's changes again; verify names added rights, and repairs them."""
    world.write("d/k", b"k")
    world.settle()
    world.path("d", DESTINATION).chmod(0o777)
    assert differences(world) == [(b"d/", Problem.METADATA)]
    world.settle()
    assert look_of(world, "d").mode == 0o755
    world.path("d", DESTINATION).chmod(0o700)
    world.settle()
    assert look_of(world, "d").mode == 0o700
    assert differences(world) == [(b"d/", Problem.METADATA)]
    world.run("verify.repair", bucket=DESTINATION, path=b"d/", version_id="", marker=False)
    assert look_of(world, "d").mode == 0o755
    assert not differences(world)


def test_where_the_owner_of_a_directory_cannot_be_set_no_user_gains_rights(world: World) -> None:
    """Section 2: also for an id that this user namespace does not have; nothing half-made is left."""
    fs = UnsyncedFs()

    def chown(fd: int, uid: int, gid: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    fs.chown = chown  # type: ignore[method-assign]
    world.restart(fs=fs)
    world.path("d").mkdir()
    os.chown(world.path("d"), 33, 33)
    world.path("d").chmod(0o750)
    world.write("d/k", b"k")
    world.settle()
    assert look_of(world, "d") == Rights(0o700, 0, 0)
    assert world.path("d/k", DESTINATION).exists()
    assert not world.leftovers(DESTINATION)
    assert not differences(world)  # it has all that it can be given
    os.chown(world.path("d", DESTINATION), 7, 7)
    assert differences(world) == [(b"d/", Problem.METADATA)]


# -- no directory is changed by its name


def test_a_directory_is_hidden_until_it_is_complete(world: World) -> None:
    """G9: no call changes a directory that was found by a name where other users may write."""
    wrong = []
    tmp = world.path(".fsrepl/tmp", DESTINATION)

    class Watching(UnsyncedFs):
        def _look(self, fd: int) -> None:
            at = os.readlink(f"/proc/self/fd/{fd}")
            if os.path.isdir(at) and "/.fsrepl/" not in at:
                wrong.append(at)

        def chown(self, fd: int, uid: int, gid: int) -> None:
            self._look(fd)
            super().chown(fd, uid, gid)

        def chmod(self, fd: int, mode: int) -> None:
            self._look(fd)
            super().chmod(fd, mode)

        def set_attribute(self, fd: int, name: str, value: bytes) -> None:
            self._look(fd)
            super().set_attribute(fd, name, value)

        def make_dir(self, at: int, name: bytes, mode: int = 0o700) -> None:
            self._look(at)
            super().make_dir(at, name, mode)

    world.restart(fs=Watching())
    world.path("d/e").mkdir(parents=True)
    os.chown(world.path("d"), 33, 33)
    world.path("d/e").chmod(0o750)
    world.write("d/e/k", b"k")
    world.settle()
    assert look_of(world, "d") == Rights(0o755, 33, 33)
    assert look_of(world, "d/e").mode == 0o750
    assert not wrong
    assert os.listdir(tmp) == ["barrier"] or not os.listdir(tmp)


def test_the_name_of_a_new_directory_is_taken_meanwhile(world: World) -> None:
    """G1: the user's file there stays as it is; the replica is put into that directory, or waits."""
    theirs = world.path("d", DESTINATION)

    class Racing(UnsyncedFs):
        def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
            if new_name == b"d" and not theirs.exists():
                theirs.mkdir(0o700)
            super().rename_new(from_at, name, to_at, new_name)

    world.restart(fs=Racing())
    world.write("d/k", b"k")
    world.settle()
    assert look_of(world, "d").mode == 0o700
    assert world.tree(DESTINATION) == {"d/k": b"k"}
    assert not world.leftovers(DESTINATION)


def test_the_store_under_another_name_is_not_written_into(world: World) -> None:
    """G9: the owner of the bucket's folder renames .fsrepl to `d` while a replica of `d/k` is about to be shown."""
    world.write("d/k", b"k")
    meta, theirs = world.path(".fsrepl", DESTINATION), world.path("d", DESTINATION)

    class Swapping(UnsyncedFs):
        def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
            if path == b"d" and os.readlink(f"/proc/self/fd/{at}") == str(theirs.parent) and meta.exists():
                meta.rename(theirs)
            return super().open_dir(at, path, cross=cross)

    world.restart(fs=Swapping())
    world.settle()
    if theirs.exists():
        theirs.rename(meta)
    assert "k" not in os.listdir(meta)
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == {"d/k": b"k"}


# -- pure


def _may(rights: Rights, uid: int, groups: tuple[int, ...]) -> set[int]:
    posix = Posix(rights.mode, rights.uid, rights.gid, 0, rights.acl)
    return {wanted for wanted in (4, 2, 1) if access.allows(posix, uid, groups, wanted)}


MANY = [
    *(Rights(mode, uid, gid) for mode in (0o755, 0o705, 0o470, 0o1777) for uid in (1, 2) for gid in (1, 2)),
    Rights(0o750, 1, 1, LETS_1001_IN),
    Rights(0o757, 2, 1, acl((1, 7, NONE), (2, 0, 1002), (4, 5, NONE), (16, 5, NONE), (32, 7, NONE))),
]


def test_the_common_rights_of_two_directories() -> None:
    """No user has a right that either of them denies."""
    for a, b in itertools.product(MANY, MANY):
        both = access.common(a, b)
        for uid, groups in PEOPLE:
            assert _may(both, uid, groups) <= _may(a, uid, groups) & _may(b, uid, groups), (a, b, uid, groups)
