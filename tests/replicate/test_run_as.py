"""Roles with RunAs: the files' own permissions apply, and a refusal has S3's reason."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.model.version import Status
from fsrepl.storage.fs import Fs
from tests.waiting import DEADLINE_S
from tests.world import DESTINATION, World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes others")

USER, GROUP = 65533, 65532
NONE = 0xFFFFFFFF


def run_as(world: World, uid: int | None, gid: int = GROUP) -> None:
    """Let the generated role work as a user; None: as the daemon."""
    path = next(world.settings.roles.glob("*.json"))
    role = json.loads(path.read_text())
    role.pop("RunAs", None)
    if uid is not None:
        role["RunAs"] = {"uid": uid, "gid": gid}
    path.write_text(json.dumps(role))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world in which that user has every right: the destination is theirs."""
    for above in (tmp_path, *tmp_path.parents):
        if above == Path("/tmp"):
            break
        above.chmod(0o755)
    with World(tmp_path) as made:
        run_as(made, USER)
        os.chown(made.path(bucket=DESTINATION), USER, GROUP)
        yield made


def outcome(world: World, key: str) -> tuple[Status | None, str]:
    version = world.current(key)
    return version.status, version.deliveries[DESTINATION].reason


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_the_users_rights_suffice_and_the_owner_stays(world: World) -> None:
    """G5: a file that the user may read arrives with the source's owner and mode, not the user's."""
    world.write("d/k", b"data")
    os.chown(world.path("d/k"), 1234, 4321)
    os.chmod(world.path("d"), 0o755)
    os.chown(world.path("d"), USER, GROUP)  # the replica's directory is the user's own too
    world.settle()
    assert outcome(world, "d/k") == (Status.COMPLETED, "")
    found = world.path("d/k", DESTINATION).stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 4321, 0o644)
    world.unlink("d/k")
    world.settle()
    assert outcome(world, "d/k") == (Status.COMPLETED, "")
    assert world.tree(DESTINATION) == {}


def _private(world: World) -> None:
    os.chmod(world.path("d/k"), 0o600)


def _of_a_group(world: World) -> None:
    os.chown(world.path("d/k"), 0, GROUP + 1)
    os.chmod(world.path("d/k"), 0o640)


def _shut_directory(world: World) -> None:
    os.chmod(world.path("d"), 0o700)


def _shut_bucket(world: World) -> None:
    os.chmod(world.path(), 0o700)


def _kept_out_by_acl(world: World) -> None:
    entries = ((1, 6, NONE), (2, 0, USER), (4, 4, NONE), (16, 4, NONE), (32, 4, NONE))
    os.setxattr(world.path("d/k"), "system.posix_acl_access", acl(*entries))


@pytest.mark.parametrize(
    "shut", [_private, _of_a_group, _shut_directory, _shut_bucket, _kept_out_by_acl], ids=lambda f: f.__name__[1:]
)
def test_a_file_that_the_user_may_not_read_is_not_sent(world: World, shut: Callable[[World], None]) -> None:
    """s3-semantics 6.3: EACCES on reading is SrcGetObjectNotPermitted; nothing of the file is in the destination."""
    world.write("d/k", b"data")
    shut(world)
    world.settle()
    assert outcome(world, "d/k") == (Status.FAILED, "SrcGetObjectNotPermitted")
    assert world.ids(DESTINATION) == {}


def _group_of_his(world: World) -> None:
    os.chown(world.path("d/k"), 0, GROUP)
    os.chmod(world.path("d/k"), 0o640)


def _let_in_by_acl(world: World) -> None:
    os.chmod(world.path("d/k"), 0o600)
    entries = ((1, 6, NONE), (2, 4, USER), (4, 0, NONE), (16, 4, NONE), (32, 0, NONE))
    os.setxattr(world.path("d/k"), "system.posix_acl_access", acl(*entries))


@pytest.mark.parametrize("let_in", [_group_of_his, _let_in_by_acl], ids=lambda f: f.__name__[1:])
def test_groups_and_acls_of_the_user_count(world: World, let_in: Callable[[World], None]) -> None:
    """s3-semantics 6.3: as they do for any program of that user."""
    world.write("d/k", b"data")
    let_in(world)
    world.settle()
    assert outcome(world, "d/k") == (Status.COMPLETED, "")


def test_each_version_is_judged_by_its_own_mode(world: World) -> None:
    """s3-semantics 6.3: a noncurrent version has a mode of its own, whatever the view has now."""
    world.path(bucket=DESTINATION).chmod(0o755)
    world.write("k", b"open")
    world.look()
    for _ in range(3):
        world.engine.regions["east"].turn()
    aside = world.home / "aside"
    aside.write_bytes(b"private")
    aside.chmod(0o600)
    aside.rename(world.path("k"))
    world.settle()
    private, open_ = world.of("k")
    assert (open_.status, private.status) == (Status.COMPLETED, Status.FAILED)
    assert world.tree(DESTINATION) == {"k": b"open"}


def _not_his(world: World) -> None:
    os.chown(world.path(bucket=DESTINATION), 0, 0)
    world.path(bucket=DESTINATION).chmod(0o755)


def _read_only_for_him(world: World) -> None:
    world.path(bucket=DESTINATION).chmod(0o555)


@pytest.mark.parametrize("shut", [_not_his, _read_only_for_him], ids=lambda f: f.__name__[1:])
def test_where_the_user_may_not_write_nothing_changes(world: World, shut: Callable[[World], None]) -> None:
    """s3-semantics 6.3: EACCES on writing is DstPutObjectNotPermitted, on removing DstDelObjNotPermitted."""
    world.write("there", b"1")
    world.settle()
    shut(world)
    world.write("new/deep/k", b"data")
    os.chmod(world.path("there"), 0o640)
    os.chown(world.path("there"), USER, GROUP)
    world.settle()
    assert outcome(world, "new/deep/k") == (Status.FAILED, "DstPutObjectNotPermitted")
    assert outcome(world, "there") == (Status.FAILED, "DstPutObjectNotPermitted")
    assert world.path("there", DESTINATION).stat().st_mode & 0o777 == 0o644
    world.unlink("there")
    world.settle()
    assert outcome(world, "there") == (Status.FAILED, "DstDelObjNotPermitted")
    assert world.tree(DESTINATION) == {"there": b"1"}


def test_a_sticky_directory_protects_files_of_other_users(world: World) -> None:
    """inode(7): in a directory like /tmp only the owner of the file or of the directory may replace or remove the
    file."""
    os.chown(world.path(bucket=DESTINATION), 0, 0)
    world.path(bucket=DESTINATION).chmod(0o1777)
    world.write("k", b"1")
    world.settle()
    assert outcome(world, "k") == (Status.COMPLETED, "")
    world.write("k", b"2")
    world.settle()
    assert outcome(world, "k") == (Status.FAILED, "DstPutObjectNotPermitted")
    os.chown(world.path("k", DESTINATION), USER, GROUP)
    world.settle()
    world.write("k", b"3")
    world.settle()
    assert outcome(world, "k") == (Status.COMPLETED, "")


def test_the_policy_is_checked_first(world: World) -> None:
    """s3-semantics 6.3: two checks, fsrepl's policy before the kernel's."""
    path = next(world.settings.roles.glob("*.json"))
    path.write_text(path.read_text().replace("s3:ReplicateObject", "s3:ListBucket"))
    world.write("k", b"1")
    os.chmod(world.path("k"), 0o600)
    world.settle()
    assert outcome(world, "k") == (Status.FAILED, "DstPutObjectNotPermitted")


def test_run_as_root_has_the_daemons_rights(world: World) -> None:
    """A daemon of root is such a process itself."""
    run_as(world, 0, 0)
    world.write("k", b"1")
    os.chmod(world.path("k"), 0)
    world.settle()
    assert outcome(world, "k") == (Status.COMPLETED, "")


def test_a_role_file_that_another_user_owns_is_refused(world: World) -> None:
    """G1: a user who is not root cannot choose as whom root works, or what root reads."""
    world.write("before", b"1")
    world.settle()
    os.chown(next(world.settings.roles.glob("*.json")), USER, GROUP)
    world.write("k", b"1")
    world.settle()
    assert outcome(world, "k") == (Status.FAILED, "AssumeRoleNotPermitted")


def test_only_this_thread_acts_as_the_user(tmp_path: Path) -> None:
    """setfsuid(2), nptl(7): other threads keep their rights meanwhile, and this one has its own again afterwards."""
    fs = Fs()
    tmp_path.chmod(0o700)
    fd = os.open(tmp_path, os.O_RDONLY)
    inside, done = threading.Event(), threading.Event()
    found: dict[str, bool] = {}

    def act() -> None:
        with fs.acting_as(USER, GROUP):
            found["acting"] = fs.may(fd, os.W_OK)
            inside.set()
            done.wait(DEADLINE_S)
        found["afterwards"] = fs.may(fd, os.W_OK)

    thread = threading.Thread(target=act)
    thread.start()
    assert inside.wait(DEADLINE_S)
    found["beside"] = fs.may(fd, os.W_OK)
    done.set()
    thread.join()
    os.close(fd)
    assert found == {"acting": False, "beside": True, "afterwards": True}
    groups = os.getgroups()
    with contextlib.suppress(RuntimeError), fs.acting_as(USER, GROUP):
        assert os.getgroups() == []
        raise RuntimeError("on the way")
    assert os.getgroups() == groups
    (tmp_path / "as before").touch()
