"""Which directories of the store a start compares: those that may have changed since the journal had all of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from fsrepl.daemon import attach
from fsrepl.daemon.worker import Worker
from fsrepl.repair import reconcile, settled
from fsrepl.storage import boot
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Entry, Fs
from fsrepl.storage.intents import Act, Intent, write_intents
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.walk import Uncompared
from tests.site import Site
from tests.waiting import until
from tests.world import SOURCE, World

DIRECTORIES = 8


class _Reading(Fs):
    """Counts the directories of the store that are read."""

    number = 0

    def entries(self, fd: int) -> Iterator[Entry]:
        self.number += not os.readlink(f"/proc/self/fd/{fd}").endswith("/intents")
        return super().entries(fd)


@pytest.fixture
def world(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A site with some directories, of which it was just noted that the journal has all of them."""
    monkeypatch.setattr(settled, "_SLACK_NS", 0)
    with World(memory / "w", fs=_Reading()) as found:
        for number in range(DIRECTORIES):
            found.write(f"d{number}/k", b"content")
        found.settle()
        note(found)
        yield found


def note(world: World) -> None:
    with world.engine.site.bucket(SOURCE).open() as bucket:
        settled.note(bucket, world.engine.journal)
    noted_ns = os.stat(world.path(".fsrepl/settled")).st_mtime_ns
    tick = world.home / "tick"
    until(lambda: tick.write_bytes(b"") is not None and tick.stat().st_ctime_ns > noted_ns)  # times are coarse


def read(world: World, *, afresh: bool = False) -> int:
    """How many directories of the store a start reads."""
    fs = world.engine.fs
    assert isinstance(fs, _Reading)
    with world.engine.site.bucket(SOURCE).open() as bucket:
        before = fs.number
        reconcile.reconcile(bucket, world.engine.journal, afresh=afresh, later=world.state().attachment.uncompared)
        return fs.number - before


def stored(world: World, key: str) -> list[str]:
    return [version_id for version_id, _, _ in world.engine.journal.versions.versions_of(SOURCE, key.encode())]


def forget(world: World, key: str) -> str:
    """As if a kill had come between the store and the journal."""
    version = world.current(key)
    with world.engine.journal.transaction():
        world.engine.journal.versions.remove(SOURCE, key.encode(), version.id, None)
    return version.id


def compare_all(region: Worker) -> None:
    """A step takes little time, and on a busy machine it takes several."""
    while region.compare_later():
        pass


def rewrite(world: World, **changed: object) -> None:
    """Change the note."""
    found = settled._noted(SOURCE, world.engine.journal)
    assert found is not None
    settled._write(SOURCE, world.engine.journal, structs.replace(found, **changed))


def test_directories_that_did_not_change_are_not_read(world: World) -> None:
    """A start with a million objects is ready within seconds after a kill."""
    assert read(world) == 0
    world.write("d3/new", b"new")
    world.write("new/below/k", b"new")
    world.settle()
    assert read(world) == 2 + 2  # the top, d3, and what is new
    assert read(world, afresh=True) > DIRECTORIES


def test_what_the_journal_lacks_is_found_where_a_directory_changed(world: World) -> None:
    """G6, G7: a kill came between a version's name and its row, in a directory that is known, and in a new one."""
    found = ("d3/new", "new/below/k")
    for key in found:
        world.write(key, b"new")
    world.settle()
    lost = [forget(world, key) for key in found]
    read(world)
    assert [stored(world, key) for key in found] == [[version_id] for version_id in lost]


def test_a_directory_that_the_journal_does_not_know_is_found(world: World) -> None:
    """Its parent has not changed for long, as where all versions in it were removed, but not the directory."""
    version_id = forget(world, "d3/k")
    assert read(world) == 2
    assert stored(world, "d3/k") == [version_id]


def test_what_the_store_lost_is_noticed(world: World) -> None:
    (path,) = world.path(".fsrepl/versions/d3").glob("k;*")
    path.unlink()
    world.path(".fsrepl/versions/d4/").rename(world.home / "gone")
    read(world)
    assert [stored(world, f"d{number}/k") for number in (3, 4)] == [[], []]
    assert len(stored(world, "d5/k")) == 1


def test_a_tree_whose_attributes_are_lost_is_read(world: World) -> None:
    """By its first version: its directories are as they were."""
    (path,) = world.path(".fsrepl/versions/d3").glob("k;*")
    for name in os.listxattr(path):
        os.removexattr(path, name)
    assert read(world) == 1


def test_of_many_directories_some_are_looked_at_for_lost_attributes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 9: each look may be a read from the disk. Where one of them is without, all of them are looked at; what
    that leaves out is compared after the start."""
    monkeypatch.setattr(settled, "_SAMPLED", 2)
    looked, look = list[bytes](), reconcile._has_lost_record

    def noting(bucket: OpenBucket, journal: Journal, path: bytes, fd: int) -> bool:
        looked.append(path)
        return look(bucket, journal, path, fd)

    monkeypatch.setattr(reconcile, "_has_lost_record", noting)
    assert read(world) == 0
    assert len(set(looked)) == 2
    for path in world.path(".fsrepl/versions").glob("d*/k;*"):
        for name in os.listxattr(path):
            os.removexattr(path, name)
    assert read(world) == DIRECTORIES


def test_a_long_name_is_looked_at_by_the_name_that_the_store_has(world: World) -> None:
    """A bucket came not up after a kill where the first name of a directory has no room for an id behind it."""
    key = "long/" + "n" * 255
    world.write(key, b"content")
    world.settle()
    note(world)
    assert read(world) == 0
    (path,) = world.path(".fsrepl/versions/long").iterdir()
    for name in os.listxattr(path):
        os.removexattr(path, name)
    assert read(world) == 1
    assert len(stored(world, key)) == 1


def test_directories_that_intents_name_are_read(world: World) -> None:
    """A step that failed between the store and the journal left its intent."""
    with world.engine.site.bucket(SOURCE).open() as bucket:
        write_intents(bucket, [Intent(b"d3/k", "", None, Act.REMOVE)])
    assert read(world) == 1


@pytest.mark.parametrize(
    "what",
    [
        "the clock was set",
        "an older state",
        "another mark",
        "another journal",
        "a damaged note",
        "a version was renamed",
    ],
)
def test_the_note_is_believed_only_where_nothing_else_explains_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """G6: then all names are compared, as without it."""
    world.write("d3/other", b"other")
    world.settle()
    note(world)
    forget(world, "d3/k")
    assert read(world) == 0
    match what:
        case "the clock was set":
            apart_ns = boot.apart_ns() - 3600 * 10**9
            monkeypatch.setattr(boot, "apart_ns", lambda: apart_ns)
        case "an older state":
            rewrite(world, noted_ns=time.time_ns() + 10**9)
        case "another mark":
            world.path(".fsrepl/settled").write_bytes(bytes(16))
        case "another journal":
            world.engine.journal.set_settled(SOURCE, "")
        case "a damaged note":
            world.engine.journal.set_settled(SOURCE, "[1, null]")
        case _:
            (path,) = world.path(".fsrepl/versions/d3").glob("k;*")
            path.rename(path.with_name("other"))
            path.with_name("other").rename(path)
    assert read(world)
    assert len(stored(world, "d3/k")) == 1


def synced(world: World) -> None:
    """As if what was there had been synced just after the note, which comes first."""
    found = settled._noted(SOURCE, world.engine.journal)
    assert found is not None
    settled.note_synced(SOURCE, world.engine.journal, found.noted_ns)


@pytest.mark.parametrize("what", ["nothing", "not synced", "a clock behind", "another machine's times", "clock set"])
def test_after_a_power_cut_a_note_counts_from_the_last_sync(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A start with a million objects is ready within seconds after a power cut, too. How the clock was set before it is
    not known, unless the daemon saw that."""
    if what != "not synced":
        synced(world)
    world.write("d3/new", b"new")
    world.settle()
    note(world)
    if what == "clock set":
        world.region()._apart_ns -= 3600 * 10**9
        world.region().turn()
    monkeypatch.setattr(boot, "boot_id", lambda: "another start")
    match what:
        case "a clock behind":
            rewrite(world, noted_ns=time.time_ns() + 3600 * 10**9)
        case "another machine's times":
            monkeypatch.setattr(_Reading, "is_remote", lambda *_: True)
    whole = 1 + DIRECTORIES
    assert read(world) == (1 if what == "nothing" else whole)  # d3 has changed since the sync
    with world.engine.site.bucket(SOURCE).open() as bucket:
        settled.forget_outdated(bucket, world.engine.journal)
    assert world.path(".fsrepl/settled").exists() == (what == "nothing")


def test_what_is_noted_is_synced_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two batches, in the background; the note of then counts once it is done, and a failed one again."""
    monkeypatch.setattr(settled, "NOTE_S", 0.0)
    syncs: list[int] = []
    fails = [True]

    def sync_all(_fs: Fs, _fd: int) -> None:
        syncs.append(time.time_ns())
        if fails.pop():
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(_Reading, "sync_all", sync_all)
    region, attachment, journal = world.region(), world.state().attachment, world.engine.journal

    def turn() -> int:
        region.note_settled()
        region.finish_background()
        found = settled._noted(SOURCE, journal)
        assert found is not None
        return found.synced_ns

    attachment.synced_s = time.monotonic()
    with journal.transaction():
        pass
    assert (turn(), len(syncs)) == (0, 0)  # not so soon
    attachment.synced_s -= settled.SYNC_S
    assert (turn(), len(syncs)) == (0, 1)
    attachment.synced_s -= settled.SYNC_S
    fails.append(False)
    synced_ns = turn()
    assert 0 < synced_ns < syncs[1]
    attachment.synced_s -= settled.SYNC_S
    assert (turn(), len(syncs)) == (synced_ns, 2)  # no news
    assert region.look_s() > time.monotonic()


def test_it_is_noted_only_while_nothing_has_failed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that failed may have left a version in the store alone."""
    monkeypatch.setattr(settled, "NOTE_S", 0.0)
    noted: list[OpenBucket] = []
    monkeypatch.setattr(settled, "note", lambda bucket, journal: noted.append(bucket))
    region, state = world.region(), world.state()

    def number() -> int:
        noted.clear()
        with world.engine.journal.transaction():
            pass
        region.note_settled()
        return len(noted)

    assert number() == 1
    region.note_settled()
    assert len(noted) == 1  # no news
    state.attachment.is_indexed = False
    assert number() == 0
    world.restart()
    world.settle()
    region = world.region()
    assert number() == 1
    region.has_failed = True
    assert number() == 0


def test_directories_that_the_start_left_out_are_compared_afterwards(world: World) -> None:
    """G6: fsck removes files and sets no time; what it took is noticed beside other work, and what it left is watched
    and delivered as ever."""
    read(world)
    state, region = world.state(), world.region()
    assert len(state.attachment.uncompared) == 1 + DIRECTORIES
    compare_all(region)
    assert state.attachment.uncompared == []
    assert not state.scans
    version_id = forget(world, "d3/k")  # as if the directory's time did not tell
    (path,) = world.path(".fsrepl/versions/d4").glob("k;*")
    path.unlink()
    state.attachment.uncompared = [Uncompared(b"d3", b"d3"), Uncompared(b"d4", b"d4"), Uncompared(b"gone", b"gone")]
    compare_all(region)
    assert stored(world, "d3/k") == [version_id]
    assert stored(world, "d4/k") == []
    assert state.scans
    world.settle()
    assert world.tree(SOURCE)["d4/k"] == b"content"
    assert len(stored(world, "d4/k")) == 1


def test_other_work_goes_before_what_is_compared_and_does_not_end_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(attach, "_COMPARE_S", 0.0)  # one directory at a time
    read(world)
    region, left = world.region(), world.state().attachment.uncompared
    assert region.compare_later(is_idle=True)
    assert len(left) == DIRECTORIES
    assert not region.compare_later(is_idle=False)
    assert len(left) == DIRECTORIES
    region._compare_s -= attach._COMPARE_EVERY_S
    assert region.compare_later(is_idle=False)
    assert len(left) == DIRECTORIES - 1


@pytest.mark.slow
def test_a_daemon_that_was_killed_compares_all_in_the_end(tmp_path: Path) -> None:
    """The same with a real daemon: it is ready, and what was removed by hand while it ran is noticed after a kill."""
    with Site(tmp_path) as site:
        site.start()
        for number in range(3):
            site.put(f"d{number}/k", b"content")
        site.wait()
        (path,) = site.path(".fsrepl/versions/d1").glob("k;*")
        path.unlink()
        site.stop()  # which notes that the journal has all
        site.start()
        site.until(lambda: b"lost bucket=" in site.log.read_bytes(), "it is noticed")
        site.kill()


def test_a_later_note_keeps_no_time_of_a_clock_that_was_ahead(memory: Path) -> None:
    """Where the mark could not be removed when the clock was set back, as on a read-only mount."""
    with World(memory / "w") as world, world.engine.site.bucket(SOURCE).open() as bucket:
        journal = world.engine.journal
        ahead_ns = settled.note(bucket, journal) + 3600 * 10**9
        settled.note_synced(SOURCE, journal, ahead_ns)
        settled.note(bucket, journal)
        found = settled._noted(SOURCE, journal)
        assert found is not None
        assert not found.synced_ns
