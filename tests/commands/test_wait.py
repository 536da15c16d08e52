"""`wait` exits with 0 only where every file is safe: files that cannot be captured or shown are named, and make it
1."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsrepl.capture.watch import NoWatches
from fsrepl.cli import app, register
from fsrepl.cli import wait as cli_wait
from fsrepl.commands import wait as barrier
from fsrepl.model.address import Address
from fsrepl.model.version import Posix
from fsrepl.region.change_queue import CLOSED
from fsrepl.storage.fs import Fs
from tests.doubles import FullFs
from tests.journeys.test_unprivileged import as_root
from tests.mounts import clear, cover, only_root, unmount
from tests.site import Site
from tests.world import DESTINATION, SOURCE, USER, World


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a view that no step will change."""
    monkeypatch.setattr(barrier, "_SHOWN_MAX_S", 0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def wait(world: World, scope: str = "", timeout_s: float = 10.0) -> barrier.Waited:
    """`wait` in a daemon whose threads run while it waits; every barrier is a scan."""

    def turn() -> bool:
        world.flush_settling()
        world.engine.run_until_idle()
        return False

    world.engine.watcher = world.engine.watcher or NoWatches()
    named = Address.parse(scope) if scope else None
    return barrier.wait(world.engine, barrier.scope_of(world.engine, named), timeout_s, turn)


def left_out(waited: barrier.Waited) -> tuple[list[str], ...]:
    assert (waited.failed, waited.pending) == (0, 0)
    return waited.left_out


NOTHING: tuple[list[str], ...] = ([], [], [])


def test_a_view_that_is_to_be_tried_now_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little of the processor the daemon gets: its file is captured first, and then it is shown."""
    monkeypatch.setattr(barrier, "_SHOWN_MAX_S", 0.0)
    world.write("k", b"one")
    world.settle()
    os.utime(world.path("k", DESTINATION))  # nobody has noticed, so that the view is not as recorded
    world.write("k", b"two, longer")
    world.engine.watcher = NoWatches()

    def turn() -> bool:
        for region in world.engine.regions.values():
            region.turn()
        return False

    waited = barrier.wait(world.engine, barrier.scope_of(world.engine, Address.parse(f"{SOURCE}/k")), 10.0, turn)
    assert (waited.pending, waited.unshown) == (0, [])
    assert world.tree(DESTINATION) == {"k": b"two, longer"}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of others")
def test_a_file_that_cannot_be_read_is_not_safe(users_home: Path) -> None:
    """Section 5, wait: its new content is nowhere else. The same for its own key and for the site, until it can be
    read."""
    with World(users_home) as world:
        world.write("k", b"old")
        world.write("other", b"data")
        assert left_out(wait(world)) == NOTHING
        as_root(world.home / "theirs", b"new", Posix(0o600, 77, 88, 0), world.path("k"))
        as_root(world.home / "theirs", b"new", Posix(0o600, 77, 88, 0), world.path("fresh"))
        why = "permission denied"
        assert left_out(wait(world)) == ([f"{SOURCE}/fresh: {why}", f"{SOURCE}/k: {why}"], [], [])
        for key in ("k", "fresh"):
            assert left_out(wait(world, f"{SOURCE}/{key}")) == ([f"{SOURCE}/{key}: {why}"], [], [])
        assert left_out(wait(world, f"{SOURCE}/other")) == NOTHING
        for key in ("k", "fresh"):
            world.unlink(key)
            world.write(key, b"new")
        assert left_out(wait(world)) == NOTHING


def _new_unreadable(world: World, key: str) -> None:
    as_root(world.home / "theirs", b"new", Posix(0o600, 77, 88, 0), world.path(key))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of others")
@pytest.mark.parametrize("act", ["renamed", "with its directory", "removed", "moved away", "replaced", "behind a link"])
def test_a_file_that_could_not_be_read_and_is_gone_is_not_named_any_more(users_home: Path, act: str) -> None:
    """Section 5, wait: also where it never was an object, and only a scan finds that it is gone."""
    with World(users_home) as world:
        for directory in ("d", "e"):
            world.path(directory).mkdir()
        _new_unreadable(world, "d/k")
        why = "permission denied"
        assert left_out(wait(world)) == ([f"{SOURCE}/d/k: {why}"], [], [])
        if act == "renamed":
            world.path("d/k").rename(world.path("e/k2"))
        elif act == "with its directory":
            world.path("d").rename(world.path("e/d"))
        elif act == "moved away":
            world.path("d").rename(world.home / "away")
        elif act == "replaced":
            world.drop("d/k", b"readable")
        elif act == "behind a link":
            world.path("d").rename(world.path("real"))
            world.path("d").symlink_to("real")
        else:
            world.path("d/k").unlink()
        left = {"renamed": ["e/k2"], "with its directory": ["e/d/k"], "behind a link": ["real/k"]}.get(act, [])
        expected = ([f"{SOURCE}/{key}: {why}" for key in left], [], [])
        assert left_out(wait(world)) == expected
        assert [left_out(wait(world, f"{SOURCE}/{key}")) for key in left] == [expected] * len(left)
        world.restart()
        assert left_out(wait(world)) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of files")
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_file_that_can_be_read_again_is_captured_and_safe(users_home: Path, known: bool) -> None:
    """Section 5, wait: for its own key as well; its content at that moment counts."""
    with World(users_home) as world:
        if known:
            world.write("k", b"old")
            assert left_out(wait(world)) == NOTHING
        _new_unreadable(world, "k")
        expected = ([f"{SOURCE}/k: permission denied"], [], [])
        assert [left_out(wait(world, scope)) for scope in ("", f"{SOURCE}/k")] == [expected] * 2
        os.seteuid(0)
        os.chown(world.path("k"), USER, USER)
        os.seteuid(USER)
        assert left_out(wait(world, f"{SOURCE}/k")) == NOTHING
        assert world.tree(DESTINATION) == {"k": b"new"}


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads every file")
@pytest.mark.parametrize("written", [False, True], ids=["captured", "written since"])
def test_an_unreadable_file_is_safe_if_it_is_unchanged_since_its_capture(users_home: Path, written: bool) -> None:
    """Section 5, wait; G11: in repeated calls and after a restart; a file that may have been written is not safe."""
    with World(users_home) as world:
        world.write("k", b"data")
        os.utime(world.path("k"), (1, 1))
        assert left_out(wait(world)) == NOTHING
        world.settle()
        if written:
            world.path("k").write_bytes(b"tada")
            os.utime(world.path("k"), (1, 1))
            world.region().changes.add(SOURCE, [b"k"], world.engine.epoch, CLOSED)
        world.path("k").chmod(0)
        expected = ([f"{SOURCE}/k: permission denied"], [], []) if written else NOTHING
        assert [left_out(wait(world, scope)) for scope in ("", "", f"{SOURCE}/k")] == [expected] * 3
        assert world.path("k", DESTINATION).stat().st_mode & 0o7777 == 0
        world.restart()
        assert left_out(wait(world)) == expected
        world.path("k").chmod(0o600)
        assert left_out(wait(world)) == NOTHING
        assert len(world.of("k")) == 1 + written


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads every directory")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=["shut", "no-search", "no-list"])
def test_files_in_a_directory_with_half_its_rights_are_not_safe(users_home: Path, mode: int) -> None:
    """Section 5, wait: it can be listed and not entered, or the reverse; none of its files counts as deleted."""
    with World(users_home) as world:
        world.write("d/k", b"data")
        world.write("d/sub/k", b"data")
        assert left_out(wait(world)) == NOTHING
        world.path("d").chmod(mode)
        try:
            for scope in ("", SOURCE, f"{SOURCE}/d/k", f"{SOURCE}/d/sub/k"):
                assert sum(map(len, left_out(wait(world, scope)))) > 0, scope
        finally:
            world.path("d").chmod(0o755)
        world.settle()  # the replica's directory follows
        assert left_out(wait(world)) == NOTHING
        assert set(world.tree(DESTINATION)) == {"d/k", "d/sub/k"}
        assert [len(world.of(key)) for key in ("d/k", "d/sub/k")] == [1, 1]


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads every directory")
def test_a_directory_that_cannot_be_read_may_hold_files_that_are_not_safe(users_home: Path) -> None:
    """Section 5, wait: for every key below it as well."""
    with World(users_home) as world:
        world.write("d/k", b"data")
        world.write("dd/k", b"data")
        world.path("d").chmod(0)
        try:
            expected = ([f"{SOURCE}/d/: permission denied"], [], [])
            assert [left_out(wait(world, scope)) for scope in ("", SOURCE, f"{SOURCE}/d/k")] == [expected] * 3
            assert left_out(wait(world, f"{SOURCE}/dd/k")) == NOTHING
        finally:
            world.path("d").chmod(0o755)
        assert left_out(wait(world)) == NOTHING


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of others")
def test_a_file_that_could_not_be_read_is_not_safe_while_its_region_is_away(users_home: Path) -> None:
    """Section 5, wait: it is known that the file was never captured."""
    with World(users_home) as world:
        as_root(world.home / "theirs", b"new", Posix(0o600, 77, 88, 0), world.path("k"))
        world.settle()
        world.away("east")
        world.region().probe_buckets()
        waited = barrier.wait(world.engine, barrier.scope_of(world.engine, Address.parse(SOURCE)), 0.0, lambda: False)
        assert waited.pending == 1
        world.back("east")


def test_a_file_for_whose_copy_there_is_no_room_is_named_with_the_reason(tmp_path: Path) -> None:
    """Settings, keep_free: capture says why it waits, also where other files are captured."""
    with World(tmp_path, fs=FullFs()) as world:
        for name in ("large", "other", "small"):
            world.write(name, b"data" * (1 if name == "small" else 5 << 20))
        world.settle()
        for scope, who in ((SOURCE, "east/src/large, and 1 more"), (f"{SOURCE}/other", "east/src/other")):
            waited = wait(world, scope, 0.3)
            assert (waited.pending, len(waited.trouble)) == (1, 1)
            assert waited.trouble[0].startswith(f"{who}: capture waits: 60 MiB are free, its copy takes 20 MiB")
        assert wait(world, f"{SOURCE}/small").pending == 0


class _OthersFs(Fs):
    """Files of other users: whether a program writes into them cannot be detected."""

    def is_written(self, fd: int, *, closed_next: bool = False) -> bool | None:
        return None


def test_after_the_timeout_a_file_that_waits_to_be_captured_is_named_with_the_reason(tmp_path: Path) -> None:
    """Section 5, errors: what, where and why. A file that a scan finds, and which may still be written, waits half a
    minute."""
    with World(tmp_path, fs=_OthersFs()) as world:
        for name in ("a", "b"):
            world.write(name, b"data")
        for scope, who in ((SOURCE, "east/src/a, and 1 more"), (f"{SOURCE}/b", "east/src/b")):
            (why,) = wait(world, scope, 0.3).trouble
            assert why.startswith(f"{who}: the file changed lately, and may still be open for writing")


@only_root
def test_files_on_another_mount_are_not_safe(world: World) -> None:
    """Section 5, wait: the mount is not scanned, so its files are unknown."""
    other = world.home / "other"
    other.mkdir()
    (other / "k").write_bytes(b"data")
    world.write("m/below", b"one")
    world.write("mm/k", b"two")
    assert left_out(wait(world)) == NOTHING
    cover(other, world.path("m"))
    try:
        expected = ([], [f"{SOURCE}/m/"], [])
        assert [left_out(wait(world, scope)) for scope in ("", SOURCE, f"{SOURCE}/m/k")] == [expected] * 3
        assert left_out(wait(world, f"{SOURCE}/mm/k")) == NOTHING
        unmount(world.path("m"))
    finally:
        clear(world.path("m"))
    assert left_out(wait(world)) == NOTHING
    assert world.tree(DESTINATION) == {"m/below": b"one", "mm/k": b"two"}


def test_a_replica_that_is_not_shown_is_named(world: World) -> None:
    """Section 5, wait: the replica is stored, and users do not see it; also with the source alone as scope."""
    world.path("k", DESTINATION).mkdir()
    world.write("k/theirs", b"in the way", DESTINATION)
    world.write("k", b"data")
    world.write("other", b"data")
    expected = ([], [], [f"{DESTINATION}/k: k, a directory, is in the way"])
    scopes = ("", SOURCE, f"{SOURCE}/k", DESTINATION, f"{DESTINATION}/k")
    assert [left_out(wait(world, scope)) for scope in scopes] == [expected] * len(scopes)
    assert left_out(wait(world, f"{SOURCE}/other")) == NOTHING
    world.unlink("k/theirs", DESTINATION)
    world.path("k", DESTINATION).rmdir()
    assert left_out(wait(world)) == NOTHING


@pytest.mark.parametrize("act", ["a link", "another key's file", "a pipe"])
def test_an_obstacle_to_a_replica_is_named_until_it_is_gone(world: World, act: str) -> None:
    """Section 5, wait: by its key, for that key's scope as for the site; a restart forgets none."""
    way = world.path("d", DESTINATION)
    if act == "a link":
        way.symlink_to(world.home)
    elif act == "a pipe":
        os.mkfifo(way)
    else:
        way.write_bytes(b"theirs")
    world.write("d/k", b"data")
    world.write("other", b"data")
    scopes = ("", SOURCE, f"{SOURCE}/d/k", DESTINATION, f"{DESTINATION}/d/k")
    for restarted in (False, True):
        if restarted:
            world.restart()
        for scope in scopes:
            ((), (), (named,)) = map(tuple, left_out(wait(world, scope)))
            assert named.startswith(f"{DESTINATION}/d/k: "), (scope, restarted)
        assert left_out(wait(world, f"{SOURCE}/other")) == NOTHING
    way.unlink()
    assert left_out(wait(world)) == NOTHING
    assert world.path("d/k", DESTINATION).read_bytes() == b"data"


@only_root
@pytest.mark.parametrize("removed", ["at the source", "in the way"])
def test_a_replica_below_a_mount_is_named_until_one_of_the_two_is_gone(world: World, removed: str) -> None:
    """Section 5, wait: nothing is written into the filesystem mounted there."""
    other = world.home / "other"
    other.mkdir()
    world.path("m", DESTINATION).mkdir()
    cover(other, world.path("m", DESTINATION))
    try:
        world.write("m/k", b"data")
        unreadable, _, unshown = left_out(wait(world, SOURCE))
        assert (unreadable, [name.startswith(f"{DESTINATION}/m/k: ") for name in unshown]) == ([], [True])
        assert list(other.iterdir()) == []
        if removed == "at the source":
            world.unlink("m/k")
            assert left_out(wait(world, SOURCE)) == NOTHING
        else:
            unmount(world.path("m", DESTINATION))
            assert left_out(wait(world)) == NOTHING
            assert world.path("m/k", DESTINATION).read_bytes() == b"data"
    finally:
        clear(world.path("m", DESTINATION))


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of directories")
def test_a_replica_in_a_directory_without_write_permission_is_named(users_home: Path) -> None:
    """Section 5, wait: the version is stored; users see the file of the version before it until the directory may be
    written. A directory of another user: the daemon writes to its own ones whatever their mode."""
    with World(users_home) as world:
        world.write("d/k", b"old")
        assert left_out(wait(world)) == NOTHING
        _give_to(0, world.path("d", DESTINATION))
        world.drop("d/k", b"new")
        for scope in ("", f"{SOURCE}/d/k"):
            assert left_out(wait(world, scope)) == ([], [], [f"{DESTINATION}/d/k: permission denied"])
        _give_to(USER, world.path("d", DESTINATION))
        assert left_out(wait(world)) == NOTHING
        assert world.tree(DESTINATION) == {"d/k": b"new"}


def _give_to(uid: int, path: Path) -> None:
    os.seteuid(0)
    os.chown(path, uid, uid)
    os.seteuid(USER)


def test_what_failed_is_named_with_its_destination_and_reason(world: World) -> None:
    """Section 5, wait: 1 where the newest version of a key in scope is FAILED, and the key is named."""
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    for key in ("a", "b\n"):
        world.write(key, b"data")
    assert wait(world).failures == [
        f"{SOURCE}/a to {DESTINATION}: DstBucketUnversioned",
        f"{SOURCE}/b\\x0a to {DESTINATION}: DstBucketUnversioned",
    ]
    assert wait(world, f"{SOURCE}/a").failures == [f"{SOURCE}/a to {DESTINATION}: DstBucketUnversioned"]
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    world.write("a", b"newer")
    assert wait(world, f"{SOURCE}/a").failures == [], "an older version that is FAILED does not count"


def test_files_that_are_open_for_writing_are_named_and_do_not_make_the_exit_status_1(world: World) -> None:
    """Section 5, wait: a log that is always open does not make every backup script fail."""
    with world.path("log").open("wb") as log:
        log.write(b"line")
        log.flush()
        waited = wait(world)
    assert (waited.opened, left_out(waited)) == ({f"{SOURCE}/log"}, NOTHING)


register(["wait"])
ANSWER = barrier.Waited().document()


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({}, 0),
        ({"open": ["east/src/log"]}, 0),
        ({"unruled": ["east/src/k"]}, 0),
        ({"pending": 1}, 4),
        ({"failed": 1, "failures": ["east/src/k to west/dst: DstBucketUnversioned"], "pending": 1}, 1),
        ({"unreadable": ["east/src/k: permission denied"]}, 1),
        ({"mounts": ["east/src/m/"], "pending": 1}, 1),
        ({"unshown": ["west/dst/k: k, a directory, is in the way"]}, 1),
    ],
)
def test_exit_status_and_names(monkeypatch: pytest.MonkeyPatch, found: dict[str, object], code: int) -> None:
    """Section 5, wait: each name on stderr, and the JSON on stdout whatever the exit status is."""
    monkeypatch.setattr(cli_wait, "await_daemon", lambda *_args, **_more: ANSWER | found)
    ran = CliRunner().invoke(app, ["wait", "--json"])
    assert ran.exit_code == code
    assert json.loads(ran.stdout) == ANSWER | found
    for names in found.values():
        for name in names if isinstance(names, list) else ():
            assert name in ran.stderr


def test_of_very_many_the_first_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """G11: an answer stays small; it has the first names and the number of the others."""
    waited = barrier.Waited(unreadable=[f"east/src/{n}: permission denied" for n in range(5000)])
    assert (len(str(waited.document())) < 100_000, waited.document()["more"]) == (True, 4000)
    monkeypatch.setattr(cli_wait, "await_daemon", lambda *_args, **_more: waited.document())
    assert "and 4,000 more" in CliRunner().invoke(app, ["wait"]).stderr


def test_a_timeout_in_one_bucket_leaves_the_others_checked(tmp_path: Path) -> None:
    """Section 5, wait: late files are counted with the reason, and no others."""
    buckets = ("east/src", "east/quiet", "west/dst", "west/quiet")
    with Site(tmp_path, buckets=buckets, settings='[capture]\nkeep_free = "99.99%"') as site:
        site.start()
        site.write("k", b"data")
        waited = site.run("wait", "--timeout", 1.5, "--json")
        assert waited.code == 4
        assert waited.json()["pending"] == 1
        (why,) = waited.json()["trouble"]
        assert "east/src" in why
        assert "keep_free" in why
