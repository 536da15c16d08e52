"""A scan finds whatever differs from the record, and nothing else: every tree against every record of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fsrepl.capture import scan as scans
from fsrepl.capture import schedule
from fsrepl.capture.scan import advance
from fsrepl.model import keys
from fsrepl.model.view import view_of
from fsrepl.region import change_queue
from fsrepl.region.change_queue import CLOSED, GONE, ChangeQueue
from fsrepl.region.scan_queue import Scan, Trouble
from fsrepl.settings import Capture
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World

KEYS = [b"a", b"b", b"d/a", b"d/b", b"d/e/a", b"f/a"]
FILES = ("absent", "file", "link")
RECORDS = ("unknown", "as it is", "older", "racy", "unseen", "behind", "marker")


@dataclass
class Records:
    """ScannedRows, in memory: the current version of each key."""

    found: dict[bytes, Object] = field(default_factory=dict)

    def objects_between(
        self, address: str, directory: bytes, after: bytes | None, last: bytes | None, limit: int
    ) -> dict[bytes, Object]:
        found = {keys.split(key)[1]: known for key, known in self.found.items() if keys.split(key)[0] == directory}
        wanted = [n for n in sorted(found) if (after is None or n > after) and (last is None or n <= last)]
        return {name: found[name] for name in wanted[:limit]}

    def directories(self, address: str, *, below: bytes = b"") -> list[bytes]:
        found = {keys.split(key)[0] for key in self.found}
        return [each for each in found if not below or each == below or each.startswith(below + b"/")]


class BlindFs(UnsyncedFs):
    """A directory that cannot be opened, by path."""

    blind: dict[bytes, int]

    def __init__(self) -> None:
        self.blind = {}

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        if path in self.blind:
            raise OSError(self.blind[path], os.strerror(self.blind[path]))
        return super().open_dir(at, path, cross=cross)


@pytest.fixture
def bucket(memory: Path) -> Iterator[OpenBucket]:
    with (
        World(memory, fs=BlindFs(), buckets=(SOURCE,), replicate=False) as world,
        world.engine.site.bucket(SOURCE).open() as opened,
    ):
        yield opened


def path_of(bucket: OpenBucket, key: bytes) -> Path:
    return bucket.bucket.path / os.fsdecode(key)


def make(bucket: OpenBucket, key: bytes, file: str) -> None:
    path = path_of(bucket, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    if file == "file":
        path.write_bytes(b"data")
    elif file == "link":
        path.symlink_to("nowhere")


def record(bucket: OpenBucket, key: bytes, how: str) -> Object:
    """A record of a key; of a file that is not there, one of another file."""
    path = path_of(bucket, key)
    found = os.stat(path if path.is_file() else bucket.bucket.path)
    view = view_of(found, "0" if how == "behind" else "1", racy=how == "racy")
    if how == "older":
        view = view_of(os.stat(bucket.bucket.path / ".fsrepl"), "1")
    return Object("1", 1, how == "marker", b"", None if how in ("unseen", "marker") else view)


def scan(
    bucket: OpenBucket, records: Records, *, stale: tuple[bytes, ...] = (), top: bytes = b"", budget_s: float = 60.0
) -> tuple[dict[bytes, bool], Trouble]:
    """The queued keys, and whether each is gone; and what could not be read."""
    changes, trouble = ChangeQueue(lambda: None, Capture()), Trouble()
    under_way = Scan(SOURCE, top)
    while not advance(under_way, bucket, records, changes, None, trouble, stale.__contains__, budget_s):
        pass
    changes.flush_settling(SOURCE)
    return {change.key: bool(change.flags & GONE) for change in changes.take(1000)}, trouble


def expected(file: str, how: str) -> bool | None:
    """Whether a key is queued as gone; None where it is not queued."""
    if file == "file":
        return None if how == "as it is" else False
    return None if how in ("unknown", "marker") else True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), budget_s=st.sampled_from([0.0, 60.0]), at_once=st.sampled_from([1, 2, 3, 4096]))
def test_every_difference_is_found_and_nothing_else(
    bucket: OpenBucket, data: st.DataObject, budget_s: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: new, changed, half known and missing files are captured, in one step of the scan, a step for each directory
    or several for a directory of many names; a file that is as recorded is left alone, so that a scan of a quiet bucket
    queues nothing."""
    monkeypatch.setattr(scans, "NAMES_AT_ONCE", at_once)
    states = {key: (data.draw(st.sampled_from(FILES)), data.draw(st.sampled_from(RECORDS))) for key in KEYS}
    for key, (file, _) in states.items():
        if file != "absent":
            make(bucket, key, file)
    try:
        records = Records({key: record(bucket, key, how) for key, (_, how) in states.items() if how != "unknown"})
        found, trouble = scan(bucket, records, budget_s=budget_s)
        assert found == {key: gone for key, each in states.items() if (gone := expected(*each)) is not None}
        skipped = {keys.join(directory, name) for directory, names in trouble.skipped.items() for name in names}
        assert skipped == {key for key, (file, _) in states.items() if file == "link"}
    finally:
        for path in bucket.bucket.path.iterdir():
            if path.name != ".fsrepl":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EXDEV, errno.EIO])
@pytest.mark.parametrize("top", [b"", b"d"])
def test_files_that_cannot_be_seen_are_not_gone(bucket: OpenBucket, number: int, top: bytes) -> None:
    """G1: below another mount, or in a directory that cannot be read, and in those below it."""
    records = Records()
    for key in KEYS:
        make(bucket, key, "file")
        records.found[key] = record(bucket, key, "as it is")
    assert isinstance(bucket.fs, BlindFs)
    bucket.fs.blind[b"d"] = number
    found, trouble = scan(bucket, records, top=top)
    assert found == {}
    assert trouble.of(b"d")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP])
def test_files_of_a_directory_that_vanishes_meanwhile_are_gone(bucket: OpenBucket, number: int) -> None:
    """G1: removed, or replaced by a file or a link, after its parent was listed."""
    records = Records()
    for key in KEYS:
        make(bucket, key, "file")
        records.found[key] = record(bucket, key, "as it is")
    assert isinstance(bucket.fs, BlindFs)
    bucket.fs.blind |= {b"d": number, b"d/e": number}
    found, trouble = scan(bucket, records)
    assert found == {b"d/a": True, b"d/b": True, b"d/e/a": True}
    assert not trouble.of(b"d")


def test_a_missing_file_whose_view_is_stale_is_not_gone(bucket: OpenBucket) -> None:
    """Section 7: the daemon has not made that file yet."""
    records = Records({b"a": record(bucket, b"a", "older"), b"x/b": record(bucket, b"x/b", "older")})
    assert scan(bucket, records, stale=(b"a", b"x/b"))[0] == {}
    assert scan(bucket, records)[0] == {b"a": True, b"x/b": True}


def test_a_changed_mode_is_a_change_also_where_the_ctime_tells_nothing(bucket: OpenBucket) -> None:
    """Section 7: while the stored version that a view is a link to is being removed, its ctime is not compared."""
    make(bucket, b"a", "file")
    known = record(bucket, b"a", "as it is")
    assert known.view is not None
    records = Records({b"a": replace(known, view=replace(known.view, ctime_ns=0))})
    assert scan(bucket, records)[0] == {}
    path_of(bucket, b"a").chmod(0o600)
    assert scan(bucket, records)[0] == {b"a": False}


def test_a_directory_of_many_names_is_compared_in_steps(bucket: OpenBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: live changes get their turn between the steps, and each step reads a part of the record alone; what is
    gone is found also where a name before it is new."""
    monkeypatch.setattr(scans, "NAMES_AT_ONCE", 4)
    records = Records()
    for number in range(20):
        key = b"d/%02d" % number
        if number % 3:
            make(bucket, key, "file")
        if number % 2:
            records.found[key] = record(bucket, key, "as it is" if number % 3 else "older")
    changes, trouble, under_way = ChangeQueue(lambda: None, Capture()), Trouble(), Scan(SOURCE)
    steps = 1
    while not advance(under_way, bucket, records, changes, None, trouble, lambda key: False, 0.0):
        steps += 1
    assert steps >= 5
    found = {change.key: bool(change.flags & GONE) for change in changes.take(100)}
    numbers = {int(key.rpartition(b"/")[2]): gone for key, gone in found.items()}
    assert numbers == {n: not n % 3 for n in range(20) if (n % 3 and not n % 2) or (n % 2 and not n % 3)}


def test_a_scan_waits_while_the_queue_is_full(bucket: OpenBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: what a scan finds is queued as fast as it is captured."""
    monkeypatch.setattr(scans, "NAMES_AT_ONCE", 4)
    monkeypatch.setattr(change_queue, "KEYS_MAX", 20)
    for number in range(100):
        make(bucket, b"d/%02d" % number, "file")
    changes, trouble, under_way = ChangeQueue(lambda: None, Capture()), Trouble(), Scan(SOURCE)
    taken: list[bytes] = []
    done = False
    while not done:
        done = advance(under_way, bucket, Records(), changes, None, trouble, lambda key: False, 60.0)
        assert len(changes) < 20
        taken += [change.key for change in changes.take(100)]
    assert sorted(taken) == [b"d/%02d" % number for number in range(100)]


def test_events_that_find_no_room_lead_to_a_scan(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: the events of a burst are dropped above a number, and `wait` waits for the scan that finds their files."""
    monkeypatch.setattr(change_queue, "KEYS_MAX", 8)
    with World(memory / "world") as world:
        changes = world.region().changes
        for number in range(30):
            name = b"f%02d" % number
            world.write(name.decode(), b"x")
            changes.event(SOURCE, name, name, CLOSED, 0.0, world.engine.epoch)
        assert changes.count(SOURCE) == 8
        assert changes.is_lost(SOURCE, world.engine.epoch + 1)
        assert not changes.is_lost(DESTINATION)
        schedule.follow_events(world.region())
        assert changes.is_lost(SOURCE), "a scan began before there is room for what it finds"
        world.flush_settling()
        assert world.engine.run_until_idle()
        assert not changes.is_lost(SOURCE)
        assert len(world.history(SOURCE)) == 30
        assert world.tree(SOURCE) == world.tree(DESTINATION)
