"""A daemon that is not root: files that their owner may not read, files of other users, and owners that cannot be
set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.capture import schedule
from fsrepl.cli import common
from fsrepl.commands import status
from fsrepl.daemon import requests
from fsrepl.errors import Refused
from fsrepl.model.version import Posix, Status
from fsrepl.region.change_queue import ARRIVED, CHANGED, GONE, MOVED, WRITING, DirectoryEvent
from fsrepl.storage import listing
from tests.world import DESTINATION, SOURCE, USER, Json, World, at, v2

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, and makes files of others")

SHARINGS = {"linked": {}, "private": {"west": "private"}, "all-linked": {"east": "link", "west": "link"}}


@pytest.fixture(params=SHARINGS)
def world(users_home: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with World(users_home) as made:
        with made.settings.path.open("a") as settings:  # without leases a file must be left alone first
            settings.write("\n[capture]\nopen_quiet_s = 0.001\n")
        made.set_sharing(**SHARINGS[request.param])
        yield made


def as_root(made: Path, data: bytes, posix: Posix, to: Path) -> None:
    """Move a file of another user into the bucket."""
    os.seteuid(0)
    try:
        made.write_bytes(data)
        os.chown(made, posix.uid, posix.gid)
        made.chmod(posix.mode)
        made.rename(to)
    finally:
        os.seteuid(USER)


MODES = (0o600, 0o444, 0o400, 0o000, 0o640, 0o200, 0o4755, 0o400, 0o644)


def test_modes_without_rights_of_the_owner(world: World) -> None:
    """Section 2: whatever the mode is, the store is the daemon's; each edit is replicated, and each later one after
    it."""
    world.write("d/k", b"data")
    os.setxattr(world.path("d/k"), "user.colour", b"blue")
    world.settle()
    for mode in MODES:
        world.path("d/k").chmod(mode)
        world.run("tag.set", bucket=SOURCE, key=b"d/k", tags={"mode": f"{mode:o}"})
        world.settle()
        assert world.path("d/k", DESTINATION).stat().st_mode & 0o7777 == mode
        assert world.records(SOURCE) == world.records(DESTINATION), oct(mode)
        replica = world.current("d/k", DESTINATION)
        assert (replica.attrs, replica.tags) == ({"user.colour": b"blue"}, {"mode": f"{mode:o}"})
    assert len(world.of("d/k")) == 1
    assert world.statuses() == {Status.COMPLETED}
    assert world.look_of("d/k", DESTINATION)[1] == {"user.colour": b"blue", "user.fsrepl.tag.mode": b"644"}
    world.stays_quiet()


def test_a_replica_without_rights_of_the_owner(world: World) -> None:
    """Section 2: this is an edit like any other; content and record stay readable for the daemon, also after a
    restart."""
    world.write("k", b"data")
    world.settle()
    for mode in MODES:
        world.path("k", DESTINATION).chmod(mode)
        world.restart(without_journal=mode == 0o400)
        world.settle()
        replica = world.current("k", DESTINATION)
        assert replica.posix is not None
        assert replica.posix.mode == mode
        assert world.statuses(DESTINATION) == {Status.REPLICA}
    world.drop("k", b"newer")
    world.settle()
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert world.tree(DESTINATION) == {"k": b"newer"}
    world.stays_quiet()


def test_files_of_others(world: World) -> None:
    """Section 2: the record has their owner, the view belongs to the daemon and gives no user more access; nothing is
    taken for an edit."""
    as_root(world.home / "theirs", b"data", Posix(0o2664, 77, 88, 0), world.path("k"))
    world.settle()
    found = world.path("k", DESTINATION).stat()
    assert (found.st_uid, found.st_mode & 0o7777) == (USER, 0o644)
    assert world.records(SOURCE) == world.records(DESTINATION)
    version = world.current("k", DESTINATION)
    assert version.posix is not None
    assert (version.posix.uid, version.posix.gid, version.posix.mode) == (77, 88, 0o2664)
    for without_journal in (False, True):
        world.restart(without_journal=without_journal)
        world.settle()
        assert world.records(SOURCE) == world.records(DESTINATION)
    world.stays_quiet()


def test_a_file_that_the_daemon_may_not_read_is_named_and_not_deleted(world: World) -> None:
    """Section 2, G8: it makes neither a version nor a marker."""
    world.write("k", b"data")
    world.settle()
    as_root(world.home / "theirs", b"secret", Posix(0o600, 77, 88, 0), world.path("k"))
    world.settle()
    assert b"k" in world.state().captures.unreadable
    assert len(world.of("k")) == 1
    assert world.tree(DESTINATION) == {"k": b"data"}
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "1"})  # which that file does not delay
    world.settle()
    assert world.current("k", DESTINATION).tags == {"a": "1"}
    world.path("k").unlink()
    world.settle()
    assert world.tree(DESTINATION) == {}


def test_a_file_without_a_lease_is_waited_for(users_home: Path) -> None:
    """Section 5, wait: only files known to be open for writing are not waited for; without leases only events show
    that."""
    with World(users_home) as world:
        as_root(world.home / "theirs", b"data", Posix(0o644, 77, 88, 0), world.path("k"))
        world.settle()
        assert not world.state().captures.deferred[b"k"].opened
        assert "that cannot be detected here" in world.state().captures.deferred[b"k"].why
        world.region().changes.add(SOURCE, [b"k"], 0, WRITING)
        world.engine.run_until_idle()
        assert world.state().captures.deferred[b"k"].opened
        world.region().writer_wait = replace(world.region().writer_wait, open_quiet_s=0.0)
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"data"}


def events(world: World, *found: tuple[bytes, int]) -> None:
    """The events that the watcher would report for directories."""
    region = world.region()
    region.changes.directories.extend(DirectoryEvent(SOURCE, path, flags, 0) for path, flags in found)
    schedule.follow_events(region)
    world.flush_settling()
    world.engine.run_until_idle()


def test_a_directory_that_may_be_read_again_is_looked_into(world: World) -> None:
    """G6, section 5: changes where the daemon could not read are found as soon as it can."""
    world.write("d/old", b"old")
    world.settle()
    top = world.path("d")
    world.write("d/new", b"new")
    world.write("d/sub/k", b"k")
    top.chmod(0)
    try:
        world.region().changes.add(SOURCE, [b"d/new"], 0, ARRIVED)
        events(world, (b"d/sub", ARRIVED))
        assert set(world.state().captures.unreadable) == {b"d/new"}
        assert set(world.state().trouble.unreadable) == {b"d/sub"}
    finally:
        top.chmod(0o755)
    events(world, (b"d", CHANGED))
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert not world.state().captures.unreadable
    assert not world.state().trouble.unreadable


def test_an_unreadable_directory_that_is_moved_out_is_not_named_any_more(world: World) -> None:
    """Section 5, wait: it is named only while it is there."""
    as_root(world.home / "theirs", b"secret", Posix(0o600, 77, 88, 0), world.path("k"))
    world.path("d").mkdir()
    world.path("k").rename(world.path("d/k"))
    world.settle()
    assert set(world.state().captures.unreadable) == {b"d/k"}
    world.path("d").rename(world.home / "out")
    events(world, (b"d", GONE | MOVED))
    assert not world.state().captures.unreadable


def test_edits_on_both_sides_of_an_unreadable_file(users_home: Path) -> None:
    """s3-semantics 2.2: with replica modification sync, also in the other direction."""

    def rule(to: str) -> Json:
        made = v2(to=to, markers=True)
        made["SourceSelectionCriteria"] = {"ReplicaModifications": {"Status": "Enabled"}}
        return made

    with World(users_home, replicate=False) as world:
        world.configure(rule(DESTINATION), source=SOURCE)
        world.configure(rule(SOURCE), source=DESTINATION)
        world.write("k", b"data")
        world.settle()
        for number, mode in enumerate(MODES):
            world.path("k", (SOURCE, DESTINATION)[number % 2]).chmod(mode)
            world.settle()
            assert world.path("k").stat().st_mode == world.path("k", DESTINATION).stat().st_mode
            assert world.records(SOURCE) == world.records(DESTINATION)
        world.stays_quiet()


def test_a_role_that_runs_as_another_user(users_home: Path) -> None:
    """s3-semantics 6.3: the daemon cannot change its user: AssumeRoleNotPermitted; as itself it works."""
    with World(users_home) as world:
        role = next(world.settings.roles.glob("*.json"))
        text = role.read_text()
        for uid, gid, expected in ((USER, USER, ""), (USER + 1, USER, "x"), (USER, USER + 1, "x"), (0, 0, "x")):
            role.write_text(text.replace('"RoleName"', f'"RunAs": {{"uid": {uid}, "gid": {gid}}}, "RoleName"'))
            world.write("k", b"%d %d" % (uid, gid))
            world.settle()
            reason = world.current("k").deliveries[DESTINATION].reason
            assert reason == ("AssumeRoleNotPermitted" if expected else "")


def test_root_sees_what_a_users_daemon_sees_and_leaves_nothing_of_its_own(world: World) -> None:
    """Section 8: the socket obeys the daemon's user and root. Without a daemon, files that root makes would exclude
    that user, so root is told to run the command as that user."""
    world.write("k", b"k")
    world.settle()
    common.set_state(common.State(world.home))
    os.seteuid(0)
    try:
        site = common.open_site()
        for bucket in (SOURCE, DESTINATION):
            with listing.open_bucket(site, bucket) as opened:
                entry = listing.find(opened, b"k", None)
                assert b"".join(listing.content(opened, entry.version)) == b"k"
        shown = status.status(site, {"running": False})["buckets"]
        assert [(each["bucket"], each["online"], each["objects"]) for each in shown] == [
            (SOURCE, True, 1),
            (DESTINATION, True, 1),
        ]
        with pytest.raises(Refused, match=f"^AccessDenied: this site belongs to uid {USER}"):
            common.perform(requests.CreateBucket(at("east/new")))
    finally:
        os.seteuid(USER)
        common.set_state(common.State())
    assert {path.lstat().st_uid for path in world.home.rglob("*")} == {USER}
