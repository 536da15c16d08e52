"""Which directories are another mount: the kernel's answer counts, and never device numbers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fsrepl.capture import schedule
from fsrepl.cli import buckets
from fsrepl.cli import verify as verify_command
from fsrepl.commands import why
from fsrepl.commands.documents import differences
from fsrepl.repair.verify import Verification
from tests.mounts import btrfs, clear, cover, mount, only_root, subvolume, tmpfs, unmount
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, at

pytestmark = only_root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def on_btrfs(tmp_path: Path) -> Iterator[World]:
    """The source lies on a btrfs."""
    with btrfs(tmp_path) as at, World(tmp_path / "site", regions={"east": at / "east"}) as made:
        yield made


def in_step(world: World) -> None:
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.ids(DESTINATION) == world.ids(SOURCE)
    assert verify(world) == []


def test_a_subvolume_is_looked_into(on_btrfs: World, caplog: pytest.LogCaptureFixture) -> None:
    """Section 2, G8: it is part of its user's tree; a directory that becomes a subvolume loses nothing, and nothing is
    logged again."""
    world = on_btrfs
    world.write("proj/a", b"one")
    world.settle()
    world.path("proj").rename(world.path("proj.old"))
    subvolume("create", world.path("proj"))
    shutil.copytree(world.path("proj.old"), world.path("proj"), dirs_exist_ok=True)
    shutil.rmtree(world.path("proj.old"))
    world.write("proj/new", b"new")
    world.write("proj/large", bytes(range(256)) * 5000)
    world.settle()
    assert set(world.tree(DESTINATION)) == {"proj/a", "proj/new", "proj/large"}
    assert len(world.of("proj/a")) == 1
    in_step(world)
    subvolume("snapshot", "-r", world.path("proj"), world.path("before"))
    world.write("proj/a", b"two!")
    world.settle()
    assert world.tree(DESTINATION)["before/a"] == b"one"
    in_step(world)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        schedule.start_due(world.region(), world.state())
        assert not world.state().scans
        world.stays_quiet()
    assert not caplog.records
    subvolume("delete", world.path("before"))
    world.settle()
    assert set(world.tree(DESTINATION)) == {"proj/a", "proj/new", "proj/large"}
    in_step(world)


@pytest.mark.parametrize("sharing", ["private", "link"])
def test_the_same_inode_number_in_a_subvolume_is_no_other_name(on_btrfs: World, sharing: str) -> None:
    """G2: each subvolume has its own inode numbers; a view with the number of its stored version has not destroyed that
    version."""
    world = on_btrfs
    world.set_sharing(east=sharing)
    world.settle()
    subvolume("create", world.path("proj"))
    numbers = {path.stat().st_ino for path in world.path(".fsrepl").rglob("*")}
    number = 0
    while number <= max(numbers) + 20:  # one file for each number that a stored version may get next
        world.write(f"proj/{number}", b"one")
        number = world.path(f"proj/{number}").stat().st_ino
    world.settle()
    for path in world.path("proj").iterdir():
        path.write_bytes(b"two, longer")  # also where files are not written into: here no view is the stored file
    world.settle()
    world.settle()
    assert not world.state().views.overwritten
    assert all(len(versions) == 2 for versions in world.history(SOURCE).values())
    in_step(world)


def test_a_file_that_another_is_mounted_over_is_not_gone_and_not_changed(world: World) -> None:
    """Section 2, G8: the covered file counts; a device in its place is no deletion either."""
    world.write("k", b"one")
    world.write("device", b"two")
    world.settle()
    other = world.home / "other"
    other.write_bytes(b"somebody else's")
    place = world.state()
    try:
        cover(other, world.path("k"))
        cover(Path("/dev/null"), world.path("device"))
        schedule.start_due(world.region(), place)
        world.engine.run_until_idle()
        assert set(place.captures.unreadable) == {b"k", b"device"}
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"one", "device": b"two"}
        assert len(world.of("k")) == len(world.of("device")) == 1
        notes = why.why(world.engine.site, at(SOURCE, b"k"), None, {}).document["Notes"]
        assert notes == [f"ViewConflict in {SOURCE}: k, another mount, is in the way"]
    finally:
        for name in ("k", "device"):
            clear(world.path(name))
    schedule.start_due(world.region(), place)
    world.engine.run_until_idle()
    assert not place.captures.unreadable
    in_step(world)


def test_a_mount_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Section 2: it is reported, and not at every scan; the same for unreadable directories."""
    world.write("m/k", b"one")
    world.settle()
    (world.home / "other").mkdir()
    cover(world.home / "other", world.path("m"))
    try:
        for _ in range(3):
            world.settle()
        assert [r.message for r in caplog.records if r.message.startswith("not looked into")] == [
            f'not looked into bucket={SOURCE} directory="m": another mount'
        ]
        unmount(world.path("m"))
    finally:
        clear(world.path("m"))
    world.settle()
    assert world.tree(DESTINATION) == {"m/k": b"one"}


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """An overlay over two filesystems: its files have other device numbers than its directories."""
    with tmpfs(tmp_path / "lower") as lower, tmpfs(tmp_path / "upper") as upper:
        for name in ("upper", "work"):
            (upper / name).mkdir()
        (lower / "east" / "src" / "d").mkdir(parents=True)
        for name in ("a", "d/b"):
            (lower / "east" / "src" / name).write_bytes(b"below")
        at = tmp_path / "overlay"
        at.mkdir()
        mount("-t", "overlay", "none", "-o", f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work", at)
        if (at / "east/src/a").stat().st_dev == (at / "east/src").stat().st_dev:
            clear(at)
            pytest.skip("device numbers are alike on an overlay here")
        try:
            yield at
        finally:
            clear(at)


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_an_overlay_over_different_filesystems(tmp_path: Path, overlay: Path, sharing: str) -> None:
    """Section 2, G6: everything is adopted, captured and replicated; meanwhile writes move files to another layer."""
    buckets = ("east/other", DESTINATION)
    with World(tmp_path / "site", regions={"east": overlay / "east"}, buckets=buckets, replicate=False) as world:
        world.set_sharing(east=sharing)
        answer = world.run("bucket.adopt", bucket=SOURCE)
        assert (answer["Objects"], answer["Adopted"], answer["Left"]) == (2, 2, 0)
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        world.settle()
        world.unlink("a")
        for key in ("a", "new", "d/new"):
            world.write(key, key.encode())
        if sharing == "link":  # no file may be written into then
            world.unlink("d/b")
        with world.path("d/b").open("ab") as file:
            file.write(b", and more")
        world.settle()
        below = b", and more" if sharing == "link" else b"below, and more"
        assert world.tree(DESTINATION) == {"a": b"a", "new": b"new", "d/new": b"d/new", "d/b": below}
        world.path("d/b").chmod(0o600)
        world.unlink("a")
        world.settle()
        assert not world.state().captures.unreadable
        assert set(world.tree(DESTINATION)) == {"new", "d/new", "d/b"}
        assert world.look_of("d/b", DESTINATION)[0].mode == 0o600
        assert verify(world) == []
        world.stays_quiet()


def test_verify_names_what_another_mount_covers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Section 2, 5: covered keys are neither a difference nor pending, and `wait` does not wait for them."""
    for key in ("m/n/a", "m/n/b", "file", "free"):
        world.write(key, b"data")
    world.settle()
    (world.home / "other").mkdir()
    (world.home / "another").write_bytes(b"other")
    cover(world.home / "other", world.path("m/n"))
    cover(world.home / "another", world.path("file"))
    try:
        with Verification(world.engine.site, SOURCE, None, world.engine.journal) as found:
            assert list(found.differences()) == []
        assert (found.tally.mounted, found.tally.pending) == ({(SOURCE, b"file"): 1, (SOURCE, b"m/n/"): 2}, 0)
        mounted = [{"Bucket": SOURCE, "Path": "file", "Keys": 1}, {"Bucket": SOURCE, "Path": "m/n/", "Keys": 2}]
        assert differences.totals(found.tally)["Mounted"] == mounted
        verify_command.tell_uncompared(found.tally)
        said = capsys.readouterr().err
        assert f"2 files of {SOURCE} not compared: another filesystem is mounted at m/n/" in said
    finally:
        clear(world.path("m/n"))
        clear(world.path("file"))


def test_files_that_cannot_be_adopted_are_named_and_exit_with_1(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Section 5, exit status: files under another mount are not versions."""
    for key in ("a", "m/b", "open"):
        world.write(key, b"data", "east/old")
    (world.home / "other").mkdir()
    cover(world.home / "other", world.path("m", "east/old"))
    try:
        with world.path("open", "east/old").open("ab"):
            answer = world.run("bucket.adopt", bucket="east/old")
        assert (answer["Adopted"], answer["Left"], answer["Waiting"]) == (1, 1, ["open"])
        with pytest.raises(typer.Exit) as ended:
            buckets.tell_left(answer)
        assert ended.value.exit_code == 1
        assert "not adopted: m/: another filesystem is mounted there" in capsys.readouterr().err
    finally:
        clear(world.path("m", "east/old"))
    world.settle()
    assert set(world.history("east/old")) == {b"a", b"m/b", b"open"}
