"""No file that fsrepl stages, stores or shows is readable by more users than its source, at any moment."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.model import access
from fsrepl.model.version import Posix
from fsrepl.storage.fs import MUTATIONS, Fs
from tests.world import DESTINATION, SOURCE, World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")

NONE = 0xFFFFFFFF
ACL_NAME = "system.posix_acl_access"
PEOPLE = [*itertools.product((1, 2, 1001, 1002), ((), (1,), (2,), (3,), (1, 3)))]
"""(uid, groups) of those who might read."""


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def posix_of(path: Path) -> Posix:
    found = path.stat()
    raw = os.getxattr(path, ACL_NAME) if ACL_NAME in os.listxattr(path) else None
    return Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, 0, raw)


def readers(posix: Posix) -> set[tuple[int, tuple[int, ...]]]:
    return {(uid, groups) for uid, groups in PEOPLE if access.allows(posix, uid, groups, access.READ)}


class Watching(Fs):
    """After every change that fsrepl makes: which users could read the files in the destination?"""

    def __init__(self) -> None:
        self.top: Path | None = None
        self.seen: set[tuple[int, tuple[int, ...]]] = set()
        self.special = 0
        for name in MUTATIONS:
            setattr(self, name, self._watched(getattr(Fs, name).__get__(self)))

    def _watched(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            try:
                return real(*args, **more)
            finally:
                self._look()

        return call

    def _look(self) -> None:
        for path in self.top.rglob("*") if self.top else ():
            if path.is_file() and path.suffix not in (".json", ".jsonl", ".new"):
                posix = posix_of(path)
                self.seen |= readers(posix)
                if posix.uid == 0:
                    self.special |= posix.mode & 0o6000


@pytest.fixture(params=["auto", "private"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    before = os.umask(0)
    try:
        with World(tmp_path) as made:
            if request.param != "auto":
                made.set_sharing(west=request.param)
            yield made
    finally:
        os.umask(before)


def watch(world: World) -> Watching:
    fs = Watching()
    world.restart(fs=fs)
    fs.top = world.path(bucket=DESTINATION)
    fs._look()
    return fs


LETS_1001_IN = acl((1, 6, NONE), (2, 4, 1001), (4, 0, NONE), (16, 4, NONE), (32, 0, NONE))
KEEPS_1002_OUT = acl((1, 6, NONE), (2, 0, 1002), (4, 4, NONE), (16, 4, NONE), (32, 4, NONE))

STATES: dict[str, Posix] = {
    "private": Posix(0o600, 1, 1, 0),
    "group": Posix(0o640, 1, 1, 0),
    "other-group": Posix(0o640, 1, 2, 0),
    "other-owner": Posix(0o400, 2, 1, 0),
    "not-the-group": Posix(0o604, 1, 3, 0),
    "public-setuid": Posix(0o4755, 1, 1, 0),
    "acl": Posix(0o640, 1, 1, 0, LETS_1001_IN),
    "acl-of-another": Posix(0o644, 2, 2, 0, KEEPS_1002_OUT),
}


def put(path: Path, posix: Posix) -> None:
    os.chown(path, posix.uid, posix.gid)
    if posix.acl is not None:
        os.setxattr(path, ACL_NAME, posix.acl)
    elif ACL_NAME in os.listxattr(path):
        os.removexattr(path, ACL_NAME)
    path.chmod(posix.mode)


@pytest.mark.parametrize("state", STATES)
def test_a_new_replica(world: World, state: str) -> None:
    """Section 2: staged, stored and shown, whatever the umask; a default ACL of the destination changes nothing."""
    default = acl((1, 7, NONE), (2, 7, 1002), (4, 7, NONE), (16, 7, NONE), (32, 7, NONE))
    for directory in (world.path(bucket=DESTINATION), *world.path(".fsrepl", DESTINATION).rglob("*")):
        if directory.is_dir():
            os.setxattr(directory, "system.posix_acl_default", default)
    world.path("k").write_bytes(b"data")
    put(world.path("k"), STATES[state])
    fs = watch(world)
    world.settle()
    assert posix_of(world.path("k", DESTINATION)) == STATES[state]
    assert fs.seen <= readers(STATES[state])
    assert not fs.special


@pytest.mark.parametrize(("before", "after"), [*itertools.permutations(STATES, 2)])
def test_an_edit_of_mode_owner_and_acl(world: World, before: str, after: str) -> None:
    """Section 2: between an old state and a new one no user has access whom both of them exclude."""
    world.path("k").write_bytes(b"data")
    put(world.path("k"), STATES[before])
    world.settle()
    assert posix_of(world.path("k", DESTINATION)) == STATES[before]
    put(world.path("k"), STATES[after])
    fs = watch(world)
    world.settle()
    assert posix_of(world.path("k", DESTINATION)) == STATES[after]
    assert fs.seen <= readers(STATES[before]) | readers(STATES[after])
    assert not fs.special


class Unprivileged(Watching):
    """A daemon that cannot set an owner."""

    def chown(self, fd: int, uid: int, gid: int) -> None:
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (uid, gid):
            raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("state", STATES)
def test_where_the_owner_cannot_be_set(world: World, state: str) -> None:
    """Section 2: no setuid, no setgid, the group gets the others' bits; the record has the true values, and this is no
    edit."""
    world.path("k").write_bytes(b"data")
    put(world.path("k"), STATES[state])
    fs = Unprivileged()
    world.restart(fs=fs)
    fs.top = world.path(bucket=DESTINATION)
    fs.chown = Unprivileged.chown.__get__(fs)  # type: ignore[method-assign]
    world.settle()
    found = posix_of(world.path("k", DESTINATION))
    assert (found.mode, found.uid, found.acl) == (access.without_owner(STATES[state]), 0, None)
    assert fs.seen <= readers(STATES[state])
    on_record = world.current("k", DESTINATION).posix
    assert on_record is not None
    assert replace(on_record, mtime_ns=0) == STATES[state]
    world.stays_quiet()
    # its user edits the mode there: that alone is the edit
    world.path("k", DESTINATION).chmod(0o602)
    world.settle()
    edited = world.current("k", DESTINATION)
    assert edited.posix == replace(on_record, mode=0o602)
    assert set(edited.edited) == {"posix"}
    # and the source's next edit wins
    put(world.path("k"), replace(STATES["group"], uid=5))
    world.settle()
    assert world.path("k", DESTINATION).stat().st_mode & 0o7777 == 0o600
    assert world.records(SOURCE) == world.records(DESTINATION)
    world.stays_quiet()


def test_directories_that_a_replica_needs(world: World) -> None:
    """Section 2: with the source's mode and owner, and never more open than these in between."""
    directory = world.path("d/e")
    directory.mkdir(parents=True)
    for each in (directory.parent, directory):
        os.chown(each, 1, 1)
        each.chmod(0o750)
    (directory / "k").write_bytes(b"data")
    world.settle()
    for name in ("d", "d/e"):
        found = world.path(name, DESTINATION).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1, 1, 0o750)
    fs = Unprivileged()
    world.restart(fs=fs)
    fs.chown = Unprivileged.chown.__get__(fs)  # type: ignore[method-assign]
    other = world.path("other")
    other.mkdir()
    os.chown(other, 1, 1)
    other.chmod(0o2750)
    (other / "k").write_bytes(b"data")
    world.settle()
    assert world.path("other", DESTINATION).stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("umask", [0, 0o077], ids=["open", "shut"])
def test_state_and_store_are_the_daemons_own(tmp_path: Path, umask: int) -> None:
    """Section 2: `.fsrepl` and all below it, and the state, whatever the umask of their creator is."""
    tmp_path.chmod(0o755)
    before = os.umask(umask)
    try:
        with World(tmp_path / "site") as world:
            world.path("k").touch(0o666)
            world.path("k").chmod(0o666)
            world.settle()
            state = Path(world.engine.site.state)
            for path in (state, *state.rglob("*")):
                assert path.lstat().st_mode & 0o077 == 0, path
            for bucket in (SOURCE, DESTINATION):
                meta = world.path(".fsrepl", bucket)
                for path in (meta, *meta.rglob("*")):
                    assert path.is_file() or path.stat().st_mode & 0o777 == 0o700, path
            assert world.tree(DESTINATION) == {"k": b""}
    finally:
        os.umask(before)
