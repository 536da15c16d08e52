"""A region on another machine, over a pair of sockets: what a destination here does, it does as well."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture.watch import NoWatches
from fsrepl.commands import operations, services, status, wait
from fsrepl.commands.documents import buckets, regions
from fsrepl.daemon import agent_home, control, request_json, requests
from fsrepl.daemon.served_region import ServedRegion
from fsrepl.errors import FsreplError, Refused, Unavailable
from fsrepl.link import frames
from fsrepl.model.address import Address
from fsrepl.model.version import Status, Version
from fsrepl.region.change_queue import CHANGED, DirectoryEvent
from fsrepl.region.mailbox import DeliverAgain
from fsrepl.repair import from_hosts
from fsrepl.settings import reading
from fsrepl.storage import listing
from fsrepl.storage.fs import Fs
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site
from tests.backfills import backfill
from tests.doubles import DyingFs, UnsyncedFs
from tests.hosts import FarWorld
from tests.mounts import ext4, mount, only_root
from tests.storage.test_privacy import ACL_NAME, NONE, acl
from tests.verifying import tally, verify
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World

LARGE = '[replication]\nlarge_file = "1MiB"\n'


@pytest.fixture
def world(memory: Path) -> Iterator[FarWorld]:
    with FarWorld(memory) as made:
        yield made


@pytest.fixture(params=["directory", "ssh"])
def either(memory: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A destination on this machine, or on another one: what is promised of the one is promised of the other."""
    with World(memory) if request.param == "directory" else FarWorld(memory) as made:
        yield made


def is_alike(world: World) -> bool:
    """Whether the far bucket has all of the source's, with its identity."""
    assert world.statuses() == {Status.COMPLETED}
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.ids(DESTINATION) == world.ids(SOURCE)
    assert world.records(DESTINATION) == world.records(SOURCE)
    return True


def test_everything_arrives_with_its_identity_and_metadata(either: World) -> None:
    """G3, G5: content, ids, times, modes, attributes, tags, directories; and the far side is an ordinary tree."""
    either.write("a/b/cat.jpg", b"meow")
    either.path("a").chmod(0o750)
    either.path("a/b/cat.jpg").chmod(0o640)
    os.setxattr(either.path("a/b/cat.jpg"), "user.kind", b"cat")
    either.drop("tagged", b"x", tags={"class": "blue"})
    either.write("empty", b"")
    os.utime(either.path("empty"), ns=(1, 1_000_000_001))
    (either.path() / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"y")
    either.settle()
    assert is_alike(either)
    assert either.path("a", DESTINATION).stat().st_mode & 0o7777 == 0o750
    assert either.path("a/b/cat.jpg", DESTINATION).stat().st_mode & 0o7777 == 0o640
    either.unlink("tagged")
    either.write("a/b/cat.jpg", b"purr")
    either.settle()
    assert is_alike(either)
    assert [v.marker for v in either.of("tagged", DESTINATION)] == [True, False]
    either.stays_quiet()


def test_edits_of_metadata_arrive_on_the_version_that_is_there(either: World) -> None:
    """G5: modes, times, tags and the modes of directories follow, and nothing is sent again."""
    either.write("d/k", b"data")
    either.settle()
    either.path("d/k").chmod(0o600)
    either.path("d").chmod(0o700)
    either.settle()
    either.run("tag.set", bucket=SOURCE, key=b"d/k", tags={"a": "b"})
    either.settle()
    assert is_alike(either)
    assert len(either.of("d/k", DESTINATION)) == 1
    assert either.path("d/k", DESTINATION).stat().st_mode & 0o7777 == 0o600
    assert either.path("d", DESTINATION).stat().st_mode & 0o7777 == 0o700


def test_directories_follow_what_changed_while_it_was_away(world: FarWorld) -> None:
    """Section 2: a replica's directory never stays wider than its source's, without a file that would bring it."""
    for path in ("a/k", "b/c/k"):
        world.write(path, b"data")
    world.settle()
    world.why_away = "the network is gone"
    world.disconnect()
    world.path("a").chmod(0o700)
    world.settle()
    world.restart()  # what the daemon knew of it is lost as well
    world.path("b/c").chmod(0o710)
    world.settle()
    world.why_away = ""
    for path, mode in (("a", 0o700), ("b/c", 0o710)):

        def is_followed(path: str = path, mode: int = mode) -> bool:
            world.settle()
            return world.path(path, DESTINATION).stat().st_mode & 0o7777 == mode

        until(is_followed, f"{path} has the mode of its source")
    until(lambda: world.settle() or not any(world.west._directories.values()), "the agent has said so")


def test_objects_of_a_tree_bucket_are_in_the_store_there(memory: Path) -> None:
    """Section 2: as in any destination that is no tree bucket: directories, symlinks and names of one file."""
    with FarWorld(memory, trees=True) as world:
        world.write("d/k", b"data")
        os.link(world.path("d/k"), world.path("d/other"))
        world.link("l", "d/k")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert world.ids(DESTINATION) == world.ids(SOURCE)
        assert {b"d/", b"l", b"d/other"} <= world.ids(DESTINATION).keys()
        for key, found in world.history(SOURCE).items():
            assert [(v.posix, v.link) for v in world.history(DESTINATION)[key]] == [(v.posix, v.link) for v in found]
        assert world.path("d/other", DESTINATION).read_bytes() == b"data"


@pytest.fixture(params=["directory", "ssh"])
def tree(memory: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """The same, with tree buckets."""
    if request.param == "directory":
        with World(memory, trees=True) as made:
            yield made
    else:
        with FarWorld(memory, trees=True) as far:
            far.run("bucket.trees", bucket=DESTINATION, on=True)
            yield far


def test_a_tree_arrives_whole(tree: World) -> None:
    """Tree buckets: empty directories with their modes, symlinks, names of one file; edited, moved and removed."""
    tree.write("d/k", b"data")
    tree.path("d/empty/deep").mkdir(parents=True)
    tree.path("d/empty").chmod(0o710)
    os.link(tree.path("d/k"), tree.path("d/other"))
    tree.link("l", "d/k")
    tree.settle()
    assert is_alike(tree)
    assert tree.links(DESTINATION) == tree.links(SOURCE)
    there = tree.path("d", DESTINATION)
    assert (there / "empty/deep").is_dir()
    assert (there / "empty").stat().st_mode & 0o7777 == 0o710
    assert (there / "k").stat().st_ino == (there / "other").stat().st_ino
    tree.path("d/empty").chmod(0o700)
    tree.path("d").rename(tree.path("moved"))
    tree.path("l").unlink()
    tree.write("moved/k", b"both names")
    tree.settle()
    assert is_alike(tree)
    assert not there.exists()
    assert tree.links(DESTINATION) == {}
    there = tree.path("moved", DESTINATION)
    assert (there / "empty").stat().st_mode & 0o7777 == 0o700
    assert (there / "k").stat().st_ino == (there / "other").stat().st_ino


def test_a_directory_at_rest_has_the_time_of_its_source(memory: Path) -> None:
    """Tree buckets: as on this machine it makes no version, follows what is put into the directory or done to it, and
    what was done while the other machine was away."""
    with FarWorld(memory, trees=True) as world:
        world.run("bucket.trees", bucket=DESTINATION, on=True)

        def is_alike(*paths: str) -> None:
            def found() -> bool:
                world.settle()
                times = [[world.path(path, at).stat().st_mtime_ns for path in paths] for at in (SOURCE, DESTINATION)]
                return times[0] == times[1]

            until(found, "the directories have the times of their sources")

        world.write("a/b/file", b"content")
        os.utime(world.path("a/b"), ns=(0, 1_000_000_000))
        os.utime(world.path("a"), ns=(0, 2_000_000_000))
        is_alike("a", "a/b")
        world.unlink("a/b/file")
        is_alike("a", "a/b")
        os.utime(world.path("a"), ns=(0, 3_000_000_000))
        world.region(SOURCE).changes.directories.append(DirectoryEvent(SOURCE, b"a", CHANGED, 0))
        is_alike("a", "a/b")
        world.why_away = "the network is gone"
        world.disconnect()
        os.utime(world.path("a/b"), ns=(0, 4_000_000_000))
        os.utime(world.path("a", DESTINATION), ns=(0, 5_000_000_000))
        world.restart()
        world.why_away = ""
        is_alike("a", "a/b")
        assert [len(world.of(key, DESTINATION)) for key in ("a/", "a/b/")] == [1, 1]


def test_what_an_agent_says_at_once_is_not_lost(world: FarWorld) -> None:
    """G3: what it asks for before the site has taken the connection for made, as versions that are destroyed there."""
    world.write("k", b"data")
    world.settle()
    west, sent = world.west, world.of("k")[0]
    connection = west._connection
    assert connection is not None
    west._connection, west._connecting = None, True
    west.on_frame(connection, frames.Lost(DESTINATION, [(sent.key, sent.id)]))
    west.take_turn()
    assert west.next_s() is None
    west._connected(connection)
    west.take_turn()
    assert DeliverAgain(SOURCE, DESTINATION, [(sent.key, sent.id)]) in world.region(SOURCE).inbox


def test_the_agent_is_told_of_no_directory_but_those_of_its_sources(memory: Path) -> None:
    """Section 2: what it asks for is looked up in buckets that are replicated to it, below their folders."""
    with FarWorld(memory, trees=True, replicate=False) as world:
        world.write("a/file", b"content")
        world.settle()
        until(lambda: world.settle() or world.west._connection is not None, "it is connected")
        sent: list[frames.Frame] = []
        world.west._connection.send = sent.append  # type: ignore
        for paths in ([b"a"], [b"a", b"gone", b".fsrepl", b"../src"]):
            world.west._tell_times(frames.WantTimes(SOURCE, DESTINATION, paths))
            if not sent:
                world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        (said,) = [each for each in sent if isinstance(each, frames.Times)]
        assert said.mtimes_ns == {b"a": world.path("a").stat().st_mtime_ns}


def test_directories_outside_of_trees_follow_rights_and_go_when_empty(either: World) -> None:
    """Section 2: ACLs and owners too, long after the files came."""
    either.write("d/e/k", b"data")
    either.settle()
    folder = either.path("d/e")
    for name in (ACL_NAME, "system.posix_acl_default"):
        os.setxattr(folder, name, acl((1, 7, NONE), (2, 5, 1001), (4, 0, NONE), (16, 5, NONE), (32, 0, NONE)))
    if os.geteuid() == 0:
        os.chown(folder, 1234, 5678)
    there = either.path("d/e", DESTINATION)

    def is_followed() -> bool:
        either.settle()
        return _rights(there) == _rights(folder)

    until(is_followed, "the directory has the rights of its source")
    either.unlink("d/e/k")
    shutil.rmtree(either.path("d"))
    until(lambda: either.settle() or not either.path("d", DESTINATION).exists(), "the directories are gone")


def _rights(path: Path) -> tuple[object, ...]:
    found = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("system.")}
    return found.st_mode, found.st_uid, found.st_gid, attributes


@pytest.mark.parametrize("restarted", [False, True])
def test_a_name_that_is_shown_late_is_one_file_with_the_others(tree: World, restarted: bool) -> None:
    """Something was in its way when another name of its file arrived, or an agent ended since."""
    tree.write("first/in the way", b"a user's", DESTINATION)
    tree.settle()
    tree.write("first", b"data")
    tree.capture(SOURCE)
    os.link(tree.path("first"), tree.path("second"))
    tree.settle()
    assert tree.path("second", DESTINATION).read_bytes() == b"data"
    tree.unlink("first/in the way", DESTINATION)
    tree.path("first", DESTINATION).rmdir()
    if restarted:
        tree.restart()
    first, second = tree.path("first", DESTINATION), tree.path("second", DESTINATION)

    def is_one_file() -> bool:
        tree.settle()
        return first.exists() and first.samefile(second)

    until(is_one_file, lambda: f"{first} and {second} are one file")
    copied = first.with_name("copied")
    shutil.copy2(second, copied)
    for _ in range(2):
        tree.settle()
    assert copied.stat().st_nlink == 1


def test_no_content_is_shown_in_a_directory_that_its_source_has_narrowed(tree: World) -> None:
    """A file arrives before the version of its directory that closes it: the replica's is closed first."""
    tree.path("folder").mkdir()
    tree.path("folder").chmod(0o755)
    tree.settle()
    tree.write("folder/secret", b"secret")
    tree.capture(SOURCE)
    tree.path("folder").chmod(0o700)
    tree.flush_settling()
    assert tree.engine.run_until_idle()
    assert tree.tree(DESTINATION) == {"folder/secret": b"secret"}
    assert tree.path("folder", DESTINATION).stat().st_mode & 0o7777 == 0o700
    assert len(tree.of("folder/", DESTINATION)) == 1
    tree.settle()
    assert is_alike(tree)


def test_what_somebody_wrote_there_is_a_version_before_it_is_replaced(world: FarWorld) -> None:
    """G1: a file of the far machine's user is never lost to a replica, which is older or newer than it."""
    world.write("k", b"one")
    world.settle()
    world.path("k", DESTINATION).write_bytes(b"theirs")  # in place: one inode with the stored version
    world.write("k", b"two")
    world.settle()
    until(lambda: world.settle() or _contents(world, "k") == {b"one", b"theirs", b"two"}, "the first one is sent again")
    newest = world.of("k", DESTINATION)[0]  # theirs, or the replica: whichever was captured last
    until(lambda: world.settle() or world.path("k", DESTINATION).read_bytes() == _content(world, newest), "it is shown")


def _contents(world: FarWorld, key: str) -> set[bytes]:
    return {_content(world, version) for version in world.of(key, DESTINATION)}


def _content(world: FarWorld, version: Version) -> bytes:
    return world.path(f".fsrepl/versions/{os.fsdecode(version.key)};{version.id}", DESTINATION).read_bytes()


def test_a_view_that_is_in_the_way_is_left_alone(either: World) -> None:
    """G1: a directory of the destination's user stays; the version is in the store, and shown once the way is free."""
    either.path("k", DESTINATION).mkdir()
    either.path("k/theirs", DESTINATION).write_bytes(b"x")
    either.write("k", b"one")
    either.settle()
    assert either.ids(DESTINATION)[b"k"] == either.ids(SOURCE)[b"k"]
    assert either.path("k/theirs", DESTINATION).read_bytes() == b"x"


def test_a_bucket_without_versioning_is_refused_as_s3_does(either: World) -> None:
    """A person must act first: FAILED with S3's reason, and `retry` sends it once that is mended."""
    (either.path(".fsrepl/versioning.json", DESTINATION)).write_text('{"Status": "Suspended"}')
    either.settle()
    either.write("k", b"one")
    either.settle()
    found = either.current("k").deliveries[DESTINATION]
    assert (found.status, found.reason) == (Status.FAILED, "DstBucketUnversioned")
    (either.path(".fsrepl/versioning.json", DESTINATION)).write_text('{"Status": "Enabled"}')
    either.settle()
    either.run("retry", scope=SOURCE)
    either.settle()
    assert is_alike(either)


def test_buckets_there_are_shown_before_a_rule_names_them(memory: Path) -> None:
    """`bucket ls`, `region ls` and `doctor` have them, and `ls` says where to look."""
    with FarWorld(memory, replicate=False) as world:
        world.run("bucket.create", bucket="west/plain", versioning=False)
        site = world.engine.site
        (found,) = services.look(site)
        rows = {row["Bucket"]: row for row in map(buckets.of_service, found["buckets"])}
        assert {at: (row["Versioning"], row["Online"]) for at, row in rows.items()} == {
            DESTINATION: ("Enabled", True), "west/plain": ("", True),
        }  # fmt: skip
        assert regions.of_service(found)["Buckets"] == ["dst", "plain"]
        for address, code in ((DESTINATION, "InvalidRequest"), ("west/nothere", "NoSuchBucket")):
            with pytest.raises(Refused, match="dst") as refused:
                listing.open_bucket(site, address)
            assert refused.value.code == code
        world.why_away = "the network is gone"
        world.disconnect()
        until(lambda: site.hosts["west"].connection is None, "the connection has ended")
        with pytest.raises(Unavailable, match="the network is gone"):
            listing.open_bucket(site, DESTINATION)


def test_a_region_that_was_not_attached_says_how_it_is(memory: Path) -> None:
    """Its table alone is not enough, since another site may use it: said with the command, before anything connects.
    Nothing is captured there, so that `fsrepl wait` does not fail for it."""
    with FarWorld(memory, lines='\n[regions.no]\npath = "ssh://host/nowhere"\n') as world:
        connections = len(world.connections)
        (_, found) = services.look(world.engine.site)
        assert found["trouble"] == "region no is not attached; `fsrepl region add no=ssh://host/nowhere` attaches it"
        assert len(world.connections) == connections
        world.write("k", b"data")
        world.settle()
        world.engine.watcher = NoWatches()
        assert wait.wait(world.engine, wait.scope_of(world.engine, None), 0.0, lambda: False).away == []


def test_the_limit_counts_what_is_sent(memory: Path) -> None:
    """`[replication] limit`: content of small files and parts of large ones, and nothing that the far side has."""
    with FarWorld(memory, lines='[replication]\nlarge_file = "1MiB"\nlimit = "100MiB/s"\n') as world:
        data = random.Random(1).randbytes(2 << 20)
        world.write("small", b"x" * 1000)
        world.write("large", data)
        world.settle()
        assert is_alike(world)
        assert world.engine.limiter.position == 1000 + len(data)
        world.write("copy", data)
        world.settle()
        assert world.engine.limiter.position == 1000 + len(data)


def test_a_connection_may_end_after_any_byte(memory: Path) -> None:
    """G7: versions, markers and edits are all there in the end, once, wherever it was cut."""
    with FarWorld(memory) as world:
        rng = random.Random(16)
        for number in range(12):
            world.write(f"d{number % 3}/k{number}", rng.randbytes(rng.randrange(9000)))
        world.cuts = itertools.chain((300 + 1500 * each for each in range(60)), itertools.repeat(None))
        world.disconnect()
        for number in range(6):
            world.settle()
            world.write(f"d0/k{number}", rng.randbytes(4000))
            world.path("d1/k1").chmod(0o640 + number)
            if number == 3:
                world.unlink("d2/k2")
        world.settle()
        assert is_alike(world)
        assert next(world.cuts) is None or len(world.connections) > 10
        assert world.leftovers(DESTINATION) == []


def test_the_daemon_may_die_while_deliveries_are_under_way(memory: Path) -> None:
    """G7, G11: with its journal or without; what arrived before is found there, and nothing is doubled."""
    with FarWorld(memory) as world:
        for number in range(8):
            for each in range(5):
                world.write(f"k{number}-{each}", b"%d" % number * 1000)
            if number:
                world.write(f"k{number - 1}-0", b"again")
                world.unlink(f"k{number - 1}-1")
            world.cuts = itertools.chain([1000 + 700 * number], itertools.repeat(None))
            world.disconnect()
            world.look()
            world.flush_settling()
            for _ in range(number + 1):
                world.engine.turn()
            world.restart(without_journal=number % 3 == 2)
        world.settle()
        assert is_alike(world)
        assert world.leftovers(DESTINATION) == []


def test_a_large_object_goes_on_where_the_connection_ended(memory: Path) -> None:
    """G7: what is durable there is not sent again, and of a change only the changed part crosses."""
    data = random.Random(1).randbytes(6 << 20)
    with FarWorld(memory, lines=LARGE) as world:
        world.cuts = itertools.chain([3 << 20], itertools.repeat(None))
        world.disconnect()
        world.write("big", data)
        world.settle()
        assert is_alike(world)
        assert world.current("big").deliveries[DESTINATION].crossed_bytes or len(data) >= 0
        first = world.current("big").deliveries[DESTINATION].crossed_bytes
        assert first is not None
        assert first < len(data), "the second connection sent all of it"
        changed = bytearray(data)
        changed[1 << 20 : (1 << 20) + 10] = b"0123456789"
        world.write("big", bytes(changed))
        world.settle()
        assert is_alike(world)
        second = world.current("big").deliveries[DESTINATION].crossed_bytes
        assert second is not None
        assert second < 1 << 20
        with world.path("sparse").open("wb") as file:
            file.truncate(64 << 20)
            file.seek(32 << 20)
            file.write(b"in the middle")
        world.settle()
        assert is_alike(world)
        assert world.path("sparse", DESTINATION).stat().st_blocks * 512 < 1 << 20


def test_a_damaged_version_is_never_delivered(memory: Path) -> None:
    """G3: FAILED with S3's reason, small or large."""
    with FarWorld(memory, lines=LARGE) as world:
        world.why_away = "the network is gone"
        world.disconnect()
        for key, size in (("small", 1000), ("large", 2 << 20)):
            world.write(key, random.Random(size).randbytes(size))
        world.settle()
        for key in ("small", "large"):
            (stored,) = world.path(".fsrepl/versions").glob(f"{key};*")
            with stored.open("r+b") as file:
                file.write(b"damage")
        world.engine.recent.forget_data()
        world.why_away = ""
        world.settle()
        for key in ("small", "large"):
            found = world.current(key).deliveries[DESTINATION]
            assert (found.status, found.reason) == (Status.FAILED, "SrcObjectNotEligible"), key
        assert world.tree(DESTINATION) == {}


def test_while_it_is_away_deliveries_wait_and_say_why(world: FarWorld) -> None:
    """G7, G8, G11: as with an unplugged disk; and they come by themselves."""
    world.write("before", b"1")
    world.settle()
    world.why_away = "ssh: connect to host host port 22: No route to host"
    world.disconnect()
    world.write("meanwhile", b"2")
    world.settle()
    assert world.current("meanwhile").status is Status.PENDING
    world.settle()  # it notices the end first, and tries again then
    (queue,) = world.west.queues.values()
    blocked = queue.blocked(0.0)
    assert blocked is not None
    assert "No route to host" in blocked["why"]
    assert "No route to host" in world.west.states[DESTINATION].describe()["trouble"]
    world.why_away = ""
    world.settle()
    assert is_alike(world)
    assert world.west.states[DESTINATION].describe() == {"online": True, "trouble": "", "seen": True}


def test_a_journal_there_that_cannot_be_written_is_an_outage(world: FarWorld) -> None:
    """G7: what the agent had in hand is sent again, whatever of it was done."""
    world.write("before", b"1")
    world.settle()
    engine = world.connections[-1].agent._engine
    assert engine is not None
    served, faults = engine.served, 3

    def take_turn() -> bool:
        nonlocal faults
        busy = ServedRegion.take_turn(served)
        if busy and faults:
            faults -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return busy

    served.take_turn = take_turn  # type: ignore[method-assign]
    for number in range(20):
        world.write(f"k{number}", b"data %d" % number)
    until(lambda: world.settle() or not faults, "its journal fails three times")
    world.settle()
    assert is_alike(world)


def test_a_full_disk_there_is_an_outage(world: FarWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: what waits does not cross again and again meanwhile, `status` says why, and it comes by itself."""
    world.write("before", b"1")
    world.settle()
    real, is_full, sent = world.far_fs.write, True, list[bytes]()

    def write(fd: int, data: bytes) -> None:
        if is_full and data.startswith(b"data"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data)

    def pack(version: Version, *given: Any, **more: Any) -> frames.Item:
        sent.append(version.key)
        return packs(version, *given, **more)

    packs = frames.pack
    monkeypatch.setattr(frames, "pack", pack)
    monkeypatch.setattr(world.far_fs, "write", write)
    for number in range(20):
        world.write(f"k{number}", b"data %d" % number)
    world.look()
    (queue,) = world.west.queues.values()
    until(lambda: world.engine.run_until_idle(50) and queue.blocked_why, "the agent says that its disk is full")
    until(lambda: world.engine.run_until_idle(50) and not world.west._table.under_way, "it has given back all")
    assert len(sent) <= 20 * (queue.attempts + 1)  # a round for each delay that is over
    assert "no room left" in queue.blocked_why
    assert world.statuses() == {Status.COMPLETED, Status.PENDING}
    assert queue.next_s() == queue.blocked_until_s
    is_full = False
    world.settle()
    assert is_alike(world)


def test_an_unmounted_region_there_is_an_outage(world: FarWorld) -> None:
    """G8: nothing is written to what stands in its place, before or during a connection."""
    world.write("k", b"1")
    world.settle()
    aside = world.far.with_name("aside")
    for ends in (True, False):
        if ends:
            world.disconnect()
        world.far.rename(aside)
        world.far.mkdir()
        world.write("k", b"2" + bytes(ends))
        round_of_tries(world)
        assert list(world.far.iterdir()) == []
        assert world.current("k").status is Status.PENDING
        world.far.rmdir()
        aside.rename(world.far)
        world.settle()
        assert is_alike(world)


def test_an_agent_ends_where_its_region_is_unmounted(world: FarWorld) -> None:
    """G8: nothing is made in what stands there now, or where nothing does, and no agent stays behind."""
    world.write("k", b"1")
    world.settle()
    aside = world.far.with_name("aside")
    for stands in (False, True):
        world.far.rename(aside)
        if stands:
            world.far.mkdir()
        until(lambda: not any(each.thread.is_alive() for each in world.connections), "the agent ends")
        until(lambda: round_of_tries(world) or "(not mounted?)" in world.west.why, "the region is away")
        assert list(world.far.parent.rglob("west/*")) == []
        with pytest.raises(Unavailable, match=r"is not the region west that this site knows .*; mount it, or"):
            world.run("region.add", name="west", path=f"ssh://host{world.far}")
        assert list(world.far.parent.rglob("west/*")) == []
        if stands:
            world.far.rmdir()
        assert not world.far.exists()
        aside.rename(world.far)
        world.write("k", b"2%d" % stands)
        world.settle()
        assert is_alike(world)


@only_root
def test_a_region_there_can_be_unmounted_while_its_agent_is_connected(memory: Path) -> None:
    """G7, G8: an idle agent holds no descriptor there, as an idle daemon does not; what is written meanwhile waits."""
    with ext4(memory) as disk:
        (memory / "there").symlink_to(disk)
        with FarWorld(memory) as world:
            world.write("k", b"1")
            world.settle()
            assert any(each.thread.is_alive() for each in world.connections)
            until(lambda: subprocess.run(["umount", disk], capture_output=True).returncode == 0, "it can be unmounted")
            world.write("k", b"2")
            round_of_tries(world)
            assert world.current("k").status is Status.PENDING
            assert list(disk.iterdir()) == []
            mount("-o", "loop", memory / "ext4.img", disk)
            world.settle()
            assert is_alike(world)
            world.disconnect()


# -- the state of an agent


def state_of(world: FarWorld) -> Path:
    """The state of the region's agent, which a link in the region leads to."""
    link = world.far / ".fsrepl-agent"
    assert link.is_symlink()
    state = link.resolve(strict=True)
    assert world.far.resolve() not in state.parents
    return state


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_state_of_an_earlier_build_leaves_the_region(world: FarWorld, interrupted: bool) -> None:
    """G7: earlier builds kept it in the region. Journal, events and the site that is served are what they were, also
    where the move was interrupted after all was copied."""
    world.write("k", b"1")
    world.settle()
    world.disconnect()
    state, former = state_of(world), world.far / ".fsrepl-agent"
    former.unlink()
    shutil.copytree(state, former)
    if not interrupted:
        shutil.rmtree(state)
    with contextlib.closing(Journal(str(former / "journal.db"))) as journal, journal.transaction():
        journal.set_fact("noted", "there")
    world.write("k", b"2")
    world.settle()
    assert is_alike(world)
    assert state_of(world) == state
    world.disconnect()
    with contextlib.closing(Journal(str(state / "journal.db"))) as journal:
        assert journal.fact("noted") == "there"
    identity = json.loads((world.far / ".fsrepl-region.json").read_text())
    assert identity["site"] == {"uuid": world.far_site().uuid, "state": str(state)}


def test_a_former_state_is_kept_where_the_new_one_is_not_durable(
    world: FarWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: the disk of the new place fails its sync: the agent says so, and the move is made again by the next one."""
    world.write("k", b"1")
    world.settle()
    world.disconnect()
    state, former = state_of(world), world.far / ".fsrepl-agent"
    former.unlink()
    state.rename(former)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Fs, "sync_all", fails)
        assert f"the state in {former} cannot be moved to {state}" in refusal(world)
    assert not former.is_symlink()
    world.write("k", b"2")
    world.settle()
    assert is_alike(world)
    assert state_of(world) == state


def test_a_state_that_is_lost_is_made_again_on_request(world: FarWorld) -> None:
    """As a site's: the region is attached again, since another user of that machine may be serving it."""
    world.write("k", b"1")
    world.settle()
    world.disconnect()
    shutil.rmtree(state_of(world))
    assert "this user has no state of that region in " in refusal(world)
    world.run("region.add", name="west", path=f"ssh://host{world.far}")
    world.write("k", b"2")
    world.settle()
    assert is_alike(world)
    state_of(world)


def test_the_state_is_where_states_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG Base Directory Specification; root's is where the state of services is."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert agent_home.states() == Path("/home/me/.local/state/fsrepl/agents")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert agent_home.states() == Path("/home/me/state/fsrepl/agents")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert agent_home.states() == Path("/var/lib/fsrepl-agent")


def test_the_state_of_a_lost_region_that_another_site_uses_since_is_kept(world: FarWorld) -> None:
    """Only the site that has replaced a region knows that it is lost, and only where it is still its own."""
    world.settle()
    world.disconnect()
    state = state_of(world)
    (state / "serving.json").write_text('{"site": "another", "where": "pc:/home/me/fsrepl.toml", "pid": 1}')
    world.far.rename(world.far.with_name("taken"))
    world.run("region.add", name="west", path=f"ssh://host{world.far}", replace=True)
    assert {*(world.home / "agents").iterdir()} == {state, state_of(world)}


def test_a_state_that_cannot_be_made_is_said(memory: Path) -> None:
    """The account on that machine may have no home: where the state is to be is an option. Nothing is left there."""
    (memory / "agents").write_text("no folder")
    with pytest.raises(FsreplError, match=r"cannot be kept: .*; `fsrepl agent --state DIR` keeps it"):
        FarWorld(memory)
    assert not (memory / "there").exists()


def test_an_identity_that_is_no_identity_names_no_folder(world: FarWorld) -> None:
    """SECURITY: the folder of the state is named after it."""
    world.disconnect()
    path = world.far / ".fsrepl-region.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"uuid": "../../outside"}))
    assert "cannot be read" in refusal(world)


def round_of_tries(world: FarWorld) -> None:
    """One round of tries: in an outage there is no end of them."""
    world.look()
    world.flush_settling()
    world.engine.run_until_idle(50)


def test_a_backfill_sends_what_rules_passed_over(memory: Path) -> None:
    """S3 Batch Replication: what was there before the rule, and what is there already costs no content."""
    with FarWorld(memory, replicate=False) as world:
        for number in range(100):
            world.write(f"k{number}", b"data %d" % number)
        world.settle()
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        found = backfill(world)
        world.settle()
        assert found is not None
        assert is_alike(world)
        world.path("k7", DESTINATION).with_name(".fsrepl")
        backfill(world, "COMPLETED")
        world.settle()
        assert is_alike(world)


def test_verify_reads_there_and_repair_mends_there(world: FarWorld) -> None:
    """G3: damage at the far side is found by hash, and mended from the source."""
    for key in ("content", "record", "gone", "fine"):
        world.write(key, key.encode())
    world.settle()
    assert tally(world).differences == 0
    top = world.path(".fsrepl/versions", DESTINATION)
    for key in ("content", "record", "gone"):
        (stored,) = top.glob(f"{key};*")
        if key == "gone":
            stored.unlink()
        elif key == "record":
            for name in os.listxattr(stored):
                os.removexattr(stored, name)
        else:
            data = stored.read_bytes()
            with stored.open("r+b") as file:
                file.write(data.upper())
    found = {(key, problem) for _, key, problem, _ in verify(world)}
    assert {("content", "DigestMismatch"), ("gone", "Missing")} <= found
    world.disconnect()  # a lost record is rebuilt by the agent when it starts
    repaired = verify(world, repair=True)
    assert {(key, done) for _, key, _, done in repaired} >= {("content", True), ("gone", True)}
    world.settle()
    assert tally(world).differences == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_agent_may_die_at_any_change_of_its_disk(memory: Path) -> None:
    """G2, G4, G7: whatever it was at, the next connection finishes it, and nothing is doubled or left over."""
    with FarWorld(memory) as world:
        for number in itertools.count():
            world.disconnect()
            world.far_fs = fs = DyingFs(number * 7)
            for key in ("new", "old", "d/edited", "gone"):
                world.write(f"{number}/{key}", b"%d %s" % (number, key.encode()))
            if number:
                world.write(f"{number - 1}/old", b"again %d" % number)
                world.path(f"{number - 1}/d/edited").chmod(0o600)
                world.unlink(f"{number - 1}/gone")
            world.capture(SOURCE)
            while not fs.died and world.statuses() != {Status.COMPLETED}:
                round_of_tries(world)
            world.disconnect()
            world.far_fs = UnsyncedFs()
            world.settle()
            assert is_alike(world), number
            assert world.leftovers(DESTINATION) == [], number
            if not fs.died:
                break
        assert number > 5
        world.stays_quiet()


# -- who may connect, and to what


def refusal(world: FarWorld) -> str:
    host = world.engine.site.hosts["west"]
    world.disconnect()
    until(lambda: host.connection is None, "the connection has ended")
    with pytest.raises(FsreplError) as caught:
        host.connect()
    return str(caught.value)


def test_one_agent_serves_a_region(world: FarWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one says who has it."""
    monkeypatch.setattr("fsrepl.daemon.agent_home._TERM_S", 0.2)
    world.settle()
    other = Site(reading.load(world.settings.path))
    with pytest.raises(FsreplError, match=r"another process \(pid \d+\) serves the region"):
        other.hosts["west"].connect()


def test_another_site_has_to_attach_the_region_first(world: FarWorld, tmp_path: Path) -> None:
    """Two sites never write into one region by mistake; adding it takes it over, and the first one says so."""
    world.disconnect()
    serving = world.far / ".fsrepl-agent" / "serving.json"
    serving.write_text('{"site": "another", "where": "pc:/home/me/fsrepl.toml", "pid": 1}')
    assert "the site pc:/home/me/fsrepl.toml has attached this region; `fsrepl region add west=" in refusal(world)
    world.run("region.add", name="west", path=f"ssh://host{world.far}")
    world.write("k", b"1")
    world.settle()
    assert is_alike(world)


def test_the_root_of_the_agent_is_all_that_it_serves(world: FarWorld) -> None:
    """SECURITY: `fsrepl agent --root DIR` in authorized_keys; a symlink leads nowhere else either."""
    outside = world.home / "outside"
    outside.mkdir()
    (world.home / "there" / "link").symlink_to(outside)
    for path in (outside, world.home / "there" / "link"):
        world.disconnect()
        with pytest.raises(FsreplError, match=r"AccessDenied: .* is not below .*, which is all that this agent serves"):
            world.run("region.add", name="other", path=f"ssh://host{path}")
    assert list(outside.iterdir()) == []
    assert "other" not in world.settings.path.read_text()


def test_settings_that_change_are_followed_by_a_new_connection(world: FarWorld) -> None:
    """SIGHUP, or a command that writes the settings: what is under way crosses over the new connection."""
    world.write("before", b"1")
    world.settle()
    text = world.settings.path.read_text().replace("# silence_s = 30", "silence_s = 20")
    assert text != world.settings.path.read_text()
    world.settings.path.write_text(text)
    world.engine.reload(reading.load(world.settings.path))
    world.write("after", b"2")
    world.settle()
    assert is_alike(world)
    assert len(world.connections) == 2
    assert world.engine.site.hosts["west"].settings.silence_s == 20


def test_the_site_may_ask_for_its_buckets_alone(world: FarWorld) -> None:
    """SECURITY: no request leads out of the region that `--root` allows."""
    host = world.engine.site.hosts["west"]
    for wanted in (requests.AddRegion("x", "/etc"), requests.ForgetRegion("west"), requests.FinishTurn()):
        answer = host.ask(request_json.encode(wanted))
        assert answer["error"]["code"] == "AccessDenied", answer


def test_commands_there_are_answered_by_the_agent(world: FarWorld) -> None:
    """Section 5: `status` and `why` say on that machine, too, what runs; what waits for a site's deliveries is told
    where to wait. No request is unknown to the agent."""
    world.write("k", b"1")
    world.settle()
    state = world.far / ".fsrepl-agent"
    said = control.ask(str(state), requests.GetStatus())
    assert (said["running"], said["ready"], said["pid"]) == (True, True, os.getpid())
    assert said["buckets"][DESTINATION]["online"]
    about = status.status(Site(reading.load(state / "fsrepl.toml")), said)
    assert [(each["bucket"], each["online"], each["objects"]) for each in about["buckets"]] == [(DESTINATION, True, 1)]
    assert control.ask(str(state), requests.ExplainObject(Address("west", "dst", b"k")))["running"]
    with pytest.raises(Refused, match="`fsrepl wait` there"):
        control.ask(str(state), requests.Wait(None))
    assert control.ask(str(state), requests.GetSamples()) == {"Hour": [], "Day": []}
    assert control.ask(str(state), requests.GetProgress("none")) == {"Done": 0, "Total": 0}
    about_it = {requests.GetStatus, requests.GetStatusPage, requests.GetSamples, requests.GetProgress}
    own = about_it | {requests.ExplainObject, requests.Wait}
    assert set(request_json.KINDS.values()) == operations.OPERATIONS.keys() | own


def test_replication_out_of_it_is_refused(world: FarWorld) -> None:
    """A destination only: said plainly, wherever it is asked for."""
    assert world.refused("replication.enable", source=DESTINATION, destination=SOURCE) == "InvalidRequest"


def test_a_bucket_there_may_be_suspended_or_removed_as_in_s3(world: FarWorld) -> None:
    """s3-semantics, rule 11: deliveries fail, with S3's reason, until it is as before and they are tried again."""

    def reason_of(key: str) -> str:
        recorded = world.current(key).deliveries[DESTINATION]
        return recorded.reason if recorded.status is Status.FAILED else ""

    answer = world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    assert answer == {"Bucket": DESTINATION, "Status": "Suspended", "ReplicatedFrom": [SOURCE]}
    world.write("k", b"1")
    world.settle()
    assert reason_of("k") == "DstBucketUnversioned"
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    world.run("retry", scope=SOURCE)
    world.settle()
    assert is_alike(world)
    world.run("bucket.rm", bucket=DESTINATION, purge=True)
    world.write("l", b"2")
    world.settle()
    assert reason_of("l") == "DstBucketNotFound"
    world.run("bucket.create", bucket=DESTINATION, versioning=True)
    world.run("retry", scope=SOURCE)
    world.settle()
    assert world.tree(DESTINATION) == {"l": b"2"}


def test_a_lost_region_there_is_filled_again(world: FarWorld) -> None:
    """README's dead disk, on the other machine: a new directory, the same buckets, all versions."""
    for data in (b"1", b"2"):
        world.write("k", data)
        world.settle()
    world.disconnect()
    world.far.rename(world.far.with_name("dead"))
    answer = world.run("region.add", name="west", path=f"ssh://host{world.far}", replace=True)
    assert (answer["Refilled"], answer["Fetched"]) == (2, 0)
    world.settle()
    assert is_alike(world)
    assert list((world.home / "agents").iterdir()) == [state_of(world)], "the lost region's state is left"


@pytest.mark.parametrize("without_journal", [False, True])
@pytest.mark.parametrize("trees", [False, True])
def test_a_dead_source_comes_back_from_there(
    memory: Path, monkeypatch: pytest.MonkeyPatch, trees: bool, without_journal: bool
) -> None:
    """G5, G7: all versions and markers, with ids, times and metadata; small content a page at a time, large in parts;
    what was made there is not taken for the source's, and nothing is sent again."""
    monkeypatch.setattr(from_hosts, "_PAGE_ITEMS", 2)
    monkeypatch.setattr(from_hosts, "_PAGE_BYTES", 3000)
    monkeypatch.setattr(from_hosts, "_SMALL_BYTES", 2000)
    monkeypatch.setattr(from_hosts, "_PART_BYTES", 1500)
    with FarWorld(memory, trees=trees) as world:
        if trees:
            world.run("bucket.trees", bucket=DESTINATION, on=True)
        for data in (b"one", b"two" * 400, b"three" * 1000):
            world.write("d/k", data)
            world.write("gone", data)
            world.settle()
        world.unlink("gone")
        for number in range(7):
            world.write(f"d/f{number}", random.Random(number).randbytes(number * 700))
        world.write("empty", b"")
        world.write(os.fsdecode(b"caf\xe9"), b"latin")
        world.write("n" * 240, b"hashed name")
        if trees:
            world.path("d/folder").mkdir()
            world.link("l", "d/k")
            os.link(world.path("d/k"), world.path("other"))
        world.drop("tagged", b"tagged", tags={"class": "blue"})
        path = world.path("d/k")
        path.chmod(0o640)
        os.setxattr(path, "user.long", b"x" * 3000)
        world.settle()
        world.write("theirs", b"made there", DESTINATION)
        world.disconnect()  # the next agent finds it
        world.settle()
        tree, ids, records = world.tree(SOURCE), world.ids(SOURCE), world.records(SOURCE)
        there = world.ids(DESTINATION)
        shutil.rmtree(world.settings.regions["east"].path)
        world.restart(without_journal=without_journal)
        answer = world.run("region.add", name="east", path=str(memory / "disk2"), replace=True)
        number = sum(map(len, ids.values()))
        assert (answer["Refilled"], answer["Fetched"], answer["NotAsked"]) == (number, number, [])
        world.settings = world.engine.settings
        world.settle()
        assert (world.tree(SOURCE), world.ids(SOURCE)) == (tree, ids)
        assert {at: found[:3] for at, found in world.records(SOURCE).items()} == {
            at: found[:3] for at, found in records.items()
        }
        assert world.statuses() == {Status.COMPLETED}
        assert {**world.ids(DESTINATION), b"theirs": []} == {**there, b"theirs": []}
        assert verify(world) == []


def test_damage_there_is_not_taken_for_what_was_lost(memory: Path) -> None:
    """G3: content that does not match its BLAKE3 is left out, and the number of lost versions says so."""
    with FarWorld(memory) as world:
        world.write("k", b"data")
        world.write("good", b"good")
        world.settle()
        stored = world.path(f".fsrepl/versions/k;{world.current('k').id}", DESTINATION)
        stored.write_bytes(b"atad")
        shutil.rmtree(world.path(bucket=SOURCE))
        answer = world.run("bucket.adopt", bucket=SOURCE, although_away=True)
        assert (answer["Fetched"], answer["Lost"]) == (1, 1)
        world.settle()
        assert world.tree(SOURCE) == {"good": b"good"}


def test_a_region_there_that_is_away_is_said_before_anything_is_restored(world: FarWorld) -> None:
    """Without it versions would be lost: that is a decision of a person."""
    world.write("k", b"data")
    world.settle()
    shutil.rmtree(world.path(bucket=SOURCE))
    world.why_away = "the network is gone"
    world.disconnect()
    until(lambda: world.engine.site.hosts["west"].connection is None, "the connection has ended")
    with pytest.raises(Refused, match="the network is gone"):
        world.run("bucket.adopt", bucket=SOURCE)
    world.why_away = ""
    assert world.run("bucket.adopt", bucket=SOURCE)["Fetched"] == 1
    world.settle()
    assert world.tree(SOURCE) == {"k": b"data"}
