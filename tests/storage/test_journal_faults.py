"""The disk of the journal is full, or faulty: fsrepl waits, and processes all changes once it works again."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.settings import reading
from tests import deeds
from tests.doubles import FailingDisk
from tests.mounts import btrfs, only_root
from tests.site import DEADLINE_S, Site
from tests.world import DESTINATION, SOURCE, World, worlds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "itself", "for_ever"),
    [(sqlite3.SQLITE_FULL, False, False), (sqlite3.SQLITE_IOERR, True, False), (sqlite3.SQLITE_FULL, False, True)],
    ids=["full", "faulty", "full-for-long"],
)
def test_a_fault_at_every_write(
    memory: Path, monkeypatch: pytest.MonkeyPatch, code: int, itself: bool, for_ever: bool
) -> None:
    """G2, G7, G11: nothing is FAILED, lost or doubled, and the journal agrees with the records once the fault is
    over."""
    disk = FailingDisk(code, itself=itself)
    monkeypatch.setattr(sqlite3, "connect", disk.connect)
    for number, world in worlds(memory):
        world.settings.path.write_text(world.settings.path.read_text() + '[replication]\nlarge_file = "64KiB"\n')
        world.settings = reading.load(world.settings.path)
        deeds.begin(world)
        deeds.act(world)
        there = world.tree(SOURCE)
        world.restart()
        disk.writes_left, disk.for_ever = number, for_ever
        world.engine.run_until_idle()
        world.flush_settling()
        world.engine.run_until_idle()
        failed, where = disk.failed, f"fault at write {number}: {disk.failed_in}"
        disk.mend()
        for _ in range(3):
            world.settle()
        assert world.tree(SOURCE) == there == world.tree(DESTINATION), where
        assert world.ids(SOURCE) == world.ids(DESTINATION), where
        assert {key: len(found) for key, found in world.ids(SOURCE).items()} == deeds.VERSIONS, where
        assert world.statuses() == {"COMPLETED"}, where
        assert world.records(SOURCE) == world.records(DESTINATION), where
        index = world.engine.journal
        assert {delivery.status for delivery in index.deliveries.select(SOURCE)} == {"COMPLETED"}, where
        assert index.totals.counts(SOURCE) == index.totals.counts(DESTINATION), where
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
        if not failed:
            return


def test_a_step_that_meets_damage_ends_the_loop_of_its_region(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2: the daemon then removes the journal and ends; nothing is taken for an unexpected error."""
    disk = FailingDisk(sqlite3.SQLITE_CORRUPT)
    monkeypatch.setattr(sqlite3, "connect", disk.connect)
    with World(memory) as world:
        world.settle()
        world.write("k", b"k")
        disk.writes_left = 0
        world.region().run()
        assert disk.failed
        assert world.engine.journal.damage_found is not None


def spoil(journal: Path) -> None:
    """Damage the first page of most tables and indexes, so that the journal can be opened, and hardly be read."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = db.execute("PRAGMA page_size").fetchone()
        roots = [
            n for (n,) in db.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name NOT IN ('bucket', 'fact')")
        ]
    with journal.open("r+b") as file:
        for number in roots:
            file.seek((number - 1) * size)
            file.write(b"\xff" * size)


def test_a_running_daemon_ends_where_it_meets_damage_and_the_next_start_mends_it(tmp_path: Path) -> None:
    """Section 2, G7: in one sentence, and so do the commands that read the journal meanwhile."""
    with Site(tmp_path) as site:
        site.start()
        site.write("k", b"one")
        site.wait()
        before = site.history(SOURCE)
        site.stop()
        site.start()
        journal = site.root / ".fsrepl-site" / "journal.db"
        spoil(journal)
        said = site.run("status", "--json")
        assert (said.code, said.err.partition(" (")[0]) == (1, "the journal is damaged")
        assert "start the daemon again" in said.err
        site.write("j", b"two")
        assert site.daemon is not None
        assert site.daemon.wait(DEADLINE_S) == 1
        site.daemon = None
        assert "stopping: the journal is damaged" in site.log.read_text()
        assert "Traceback" not in site.log.read_text()
        assert not journal.exists()
        site.start()
        site.wait()
        site.in_step()
        assert before.items() <= site.history(SOURCE).items()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts filesystems")
def test_a_daemon_whose_state_has_no_room(tmp_path: Path) -> None:
    """G7, section 5: commands say so; changes made meanwhile are processed when there is room, by the same process."""
    state = tmp_path / "state"
    with Site(tmp_path / "home", replicate=False) as site:
        (site.root / ".fsrepl-site").rename(state)
        (site.root / "fsrepl.toml").write_text(f'state = "{state}"\n' + (site.root / "fsrepl.toml").read_text())
        with small_disk(state, "8m"):
            site.must("replication", "enable", SOURCE, DESTINATION)
            site.must("replication", "enable", DESTINATION, SOURCE)
            site.start()
            site.write("changed", b"one")
            site.write("gone", b"g")
            site.wait()
            daemon = site.daemon
            fill(state / "filler")
            site.write("changed", b"two, longer")
            site.path("gone").unlink()
            for number in range(100):
                site.write(f"d{number % 7}/n{number}", b"%d" % number)
            site.write("local", b"l", DESTINATION)
            site.until(lambda: not site.bucket_status(SOURCE)["online"], "the journal's disk is full")
            assert "cannot be used: database or disk is full" in site.must("status").out
            waited = site.wait(timeout_s=1, code=4)
            assert "cannot be used: database or disk is full" in waited.err
            site.must("ls", SOURCE, "--versions")
            for command in (("rm", f"{SOURCE}/d1/n1"), ("tag", "set", f"{SOURCE}/changed", "a=b")):
                done = site.run(*command)
                assert (done.code, "cannot be used" in done.err) == (1, True), done
            (state / "filler").unlink()
            site.wait()
            site.in_step()
            assert {key: len(found) for key, found in site.history(SOURCE).items() if key[:1] != b"d"} == {
                b"changed": 2, b"gone": 2, b"local": 1
            }  # fmt: skip
            assert [key for key, found in site.history(SOURCE).items() if key[:1] == b"d" and len(found) > 1] == []
            assert site.json("verify", SOURCE)["Differences"] == []
            assert site.bucket_status(SOURCE)["online"]
            assert site.daemon is daemon
            assert site.stop() == 0
        assert "Traceback" not in site.log.read_text()


_ON_A_FULL_DISK = """
import contextlib, os, sqlite3, sys
from pathlib import Path
from fsrepl.storage.fs import Fs
from fsrepl.storage.journal.database import Journal, open_or_replace
folder = Path(sys.argv[1])
at = os.open(folder, os.O_RDONLY)
def sync():
    with contextlib.suppress(OSError):  # the disk is full
        Fs().sync_all(at)
journal = open_or_replace(str(folder / "journal.db"))
reader = Journal(str(folder / "journal.db"), read_only=True)
failed = 0
for turn in range(4):
    if turn:
        for number in range(50):
            journal.set_fact(f"more {turn} {number}", "x" * 1000)
        with (folder / "filler").open("ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 16, 4096):
                try:
                    while filler.write(os.urandom(size)) == size:
                        pass
                except OSError:
                    sync()  # what was written back needs space when it is written again
        with contextlib.suppress(sqlite3.Error):  # both write into the shared memory, and not into the log
            Journal(str(folder / "journal.db"), read_only=True).fact("0 1")
            journal.execute("PRAGMA wal_checkpoint(PASSIVE)")
    for number in range(200):
        try:
            with journal.transaction():
                journal.set_fact(f"{turn} {number}", "x" * 1000)
        except sqlite3.Error:
            failed += 1
        reader.fact("0 1")
    if turn and turn < 3:
        (folder / "filler").unlink()
        sync()
assert failed, "the disk is not full"
(folder / "filler").unlink()
journal.set_fact("last", "1")
assert reader.fact("last") == "1"
print("survived")
"""


@pytest.mark.slow
@only_root
def test_a_full_btrfs_ends_no_process(tmp_path: Path) -> None:
    """G7: the shared memory of SQLite is a mapped file, and a full copy-on-write filesystem lets nobody write to that:
    SIGBUS. A journal there gets errors, and goes on once there is room."""
    with btrfs(tmp_path) as state:
        done = subprocess.run(
            [sys.executable, "-c", _ON_A_FULL_DISK, state], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """Make a folder a small filesystem in memory, with its former content."""
    aside = place.with_name(place.name + ".aside")
    place.rename(aside)
    place.mkdir(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", place], check=True)
    try:
        shutil.copytree(aside, place, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(path: Path) -> None:
    """Use all the room that is left, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
