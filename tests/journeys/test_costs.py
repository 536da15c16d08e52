"""What a file costs in calls, statements and bytes: it does not vary with the machine, and may not grow unseen.

A method of Fs is one system call, or a few. `stat` includes one look of a scan at either side.
Lower a limit here whenever a change saves something.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fsrepl.daemon import agent, ssh_region, stager_process
from fsrepl.lifecycle import run
from fsrepl.model.version import Status
from fsrepl.region.change_queue import CHANGED
from tests.doubles import UnsyncedFs
from tests.hosts import FarWorld
from tests.stagers import StagerHere
from tests.waiting import DEADLINE_S
from tests.world import DESTINATION, SOURCE, World

FILES = 200
SIZE = 4096


class Counting(UnsyncedFs):
    """Counts calls by method, and the bytes that are written to files and attributes."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.written_bytes = 0
        for name, method in inspect.getmembers(UnsyncedFs, inspect.isfunction):
            if not name.startswith("_") and name not in ("released", "is_regular", "is_directory", "is_link"):
                setattr(self, name, self._counted(name, method.__get__(self)))

    def _counted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            self.calls[name] += 1
            if name in ("write", "set_attribute"):
                self.written_bytes += sum(len(each) for each in arguments if isinstance(each, bytes))
            return real(*arguments, **more)

        return call


class Cost:
    """What one journey of many files cost, by file."""

    def __init__(self, world: World, fs: Counting) -> None:
        self._world, self._fs = world, fs
        self._statements: Counter[str] = Counter()
        world.engine.journal._db.set_trace_callback(self._count)

    def _count(self, statement: str) -> None:
        words = statement.split()
        if words[0] in ("INSERT", "UPDATE", "DELETE"):
            self._statements["changed rows"] += 1
        elif words[0] == "SELECT":
            self._statements["queries"] += 1
        elif words[0] == "BEGIN":
            self._statements["transactions"] += 1

    def of(self, act: Callable[[], None]) -> tuple[dict[str, float], dict[str, float], float]:
        """Calls and journal statements a file, and bytes written a byte of content, of an act and what follows it."""
        act()
        self._fs.calls.clear()
        self._fs.written_bytes = 0
        self._statements.clear()
        self._world.settle()
        calls = {name: number / FILES for name, number in self._fs.calls.items()}
        statements = {name: number / FILES for name, number in self._statements.items()}
        return calls, statements, self._fs.written_bytes / (FILES * SIZE)


LIMITS = {
    "any": { "read_at": 1, "read_all": 1.1, "set_mtime": 1.1, "open_dir": 3.2, "open_root": 0.3, "remove_acl": 0.1,
            "remove_dir": 0.1, "is_mount": 0.1, "sync_file": 0.3},
    "new": {
        "set_attribute": 9.1, "stat_fd": 6.6, "close": 5.7, "stat": 4.5, "open_read": 3.1, "create": 2.1, "write": 2.1,
        "is_written": 2, "attribute_names": 2.1, "rename": 2, "attribute": 1.3, "acl": 1.1, "link": 1, "chmod": 1.1,
        "read_all": 1.1, "read_at": 1, "set_mtime": 1, "queries": 0.3, "changed rows": 7.1, "written": 2.4,
    },
    "moved": {
        "set_attribute": 13.1, "stat_fd": 9.5, "close": 9.6, "stat": 9.1, "open_read": 5.1, "create": 4.1,
        "write": 2.1, "is_written": 4, "attribute_names": 3.1, "rename": 4, "attribute": 4.2, "acl": 1.1, "link": 1,
        "chmod": 2.1, "rename_new": 1.1, "unlink": 1.2, "queries": 0.3, "changed rows": 13.2, "written": 2.8,
    },
    "directory": {  # a slow machine scans some of them once more, while they come
        "open_dir": 11.5, "stat_fd": 12.8, "close": 14.8, "attribute": 4.1, "acl": 3.1, "default_acl": 3.1,
        "set_attribute": 5.1, "make_dir": 3.1, "stat": 3.3, "attributes": 2.1, "create": 2.1, "rename": 2.1,
        "entries": 1.4, "is_mount": 0.4, "write": 1.1, "chmod": 1.1, "rename_new": 1.1, "open_read": 1.1,
        "open_root": 0.3, "queries": 1.3, "changed rows": 6.1, "written": 0.2,
    },
    "removed": {
        "set_attribute": 4.1, "stat_fd": 3.4, "close": 4.6, "stat": 8.1, "open_read": 2.1, "create": 2.1, "write": 0.1,
        "is_written": 2, "attribute_names": 1.1, "rename": 2, "attribute": 2.2, "chmod": 1.1, "rename_new": 1.1,
        "unlink": 1.2, "queries": 0.3, "changed rows": 6.1, "written": 0.2,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_on_a_fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes a twentieth as fast: a slow machine would take more steps, each of which opens the bucket, and
    directories would be at rest, and looked at, before all of them are there."""
    now_s = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now_s() / 20)


def check(cost: Cost, act: Callable[[], None], what: str) -> None:
    calls, statements, written = cost.of(act)
    found = {**calls, **statements, "written": written}
    limits = LIMITS["any"] | LIMITS[what]
    over = {name: (round(n, 2), limits.get(name, 0.1)) for name, n in found.items()}
    assert not {name: each for name, each in over.items() if each[0] > each[1]}, what


def test_a_small_file_costs_no_more_calls_and_bytes_than_before(memory: Path) -> None:
    fs = Counting()
    with World(memory, fs=fs) as world:
        world.write("first", b"1")
        world.settle()
        cost = Cost(world, fs)

        def add() -> None:
            for i in range(FILES):
                world.write(f"d/{i:04}", b"%4d" % i * (SIZE // 4))

        def move() -> None:
            world.path("d").rename(world.path("e"))

        def remove() -> None:
            for i in range(FILES):
                world.unlink(f"e/{i:04}")

        for what, act in {"new": add, "moved": move, "removed": remove}.items():
            check(cost, act, what)


def test_the_stager_costs_no_more_calls_and_bytes(memory: Path) -> None:
    """A burst takes the same system calls, whichever process makes them."""
    fs = Counting()
    with World(memory, fs=fs) as world:
        world.write("first", b"1")
        world.settle()
        stager = world.engine.stager = StagerHere(fs)
        cost = Cost(world, fs)

        def add() -> None:
            for i in range(FILES):
                world.write(f"d/{i:04}", b"%4d" % i * (SIZE // 4))

        check(cost, add, "new")
        assert sum(number for _, number in stager.done) == 4 * FILES


@contextlib.contextmanager
def profiled(count: Callable[[FrameType, str, Any], object]) -> Iterator[None]:
    """A context in which each call of this thread is counted.

    No garbage is collected meanwhile: that would call finalizers of what other tests have left, and Hypothesis.
    """
    gc.disable()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


class Calls:
    """Counts function calls of the interpreter, those of built-in functions included, for sys.setprofile."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            self.number += 1


CALLS = 558
"""Function calls of the interpreter a file, those of built-in functions included, for 200 of them."""


def test_a_small_file_costs_no_more_function_calls_than_before(memory: Path) -> None:
    """What a burst takes of the processor goes into calls: its time varies, and their number does not."""
    calls = Calls()
    with World(memory) as world:
        world.write("first", b"1")
        world.settle()
        for i in range(FILES):
            world.write(f"d/{i:04}", b"%4d" % i * (SIZE // 4))
        with profiled(calls):
            world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert calls.number / FILES <= CALLS


OWN_CALLS = 32
"""The same for an event of a file that is as recorded, once it is in the queue."""


def test_an_event_of_the_daemons_own_making_costs_few_function_calls(memory: Path) -> None:
    """Labels and views that the daemon makes are events too, two a file of a burst."""
    calls = Calls()
    with World(memory) as world:
        for i in range(FILES):
            world.write(f"d/{i:04}", b"data")
        world.settle()
        world.region().changes.add(SOURCE, [b"d/%04d" % i for i in range(FILES)], 0, CHANGED)
        with profiled(calls):
            assert world.engine.run_until_idle()
        assert not world.region().changes.is_queued(SOURCE, b"d/0000")
        assert calls.number / FILES <= OWN_CALLS


DAEMON_CALLS = {"new": 311, "removed": 441}
"""The same in the daemon, while the stager does its part."""


def test_a_small_file_of_a_burst_costs_the_daemon_no_more_function_calls_than_before(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two processes has a processor of its own: the daemon's part is the longer one."""
    calls = Calls()
    carry_out = stager_process.carry_out

    def uncounted(*order: Any) -> bytes:
        sys.setprofile(None)
        try:
            return carry_out(*order)
        finally:
            sys.setprofile(calls)

    monkeypatch.setattr(stager_process, "carry_out", uncounted)
    with World(memory) as world:
        world.write("first", b"1")
        world.settle()
        world.engine.stager = StagerHere(world.engine.fs)
        for i in range(FILES):
            world.write(f"d/{i:04}", b"%4d" % i * (SIZE // 4))
        found = {}
        for what in DAEMON_CALLS:
            calls.number = 0
            with profiled(calls):
                world.settle()
            assert world.statuses() == {Status.COMPLETED}
            found[what] = calls.number / FILES
            shutil.rmtree(world.path("d"), ignore_errors=True)
        assert {what: number for what, number in found.items() if number > DAEMON_CALLS[what]} == {}


FAR_CALLS = {"here": 224, "there": 224}
"""The same for a file that is sent to another machine: at the site, from its store on, and in all threads of the agent.
"""


def test_a_small_file_to_another_machine_costs_no_more_function_calls_than_before(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is packed and sent here and its outcome recorded; there it is stored and shown as any replica is."""
    # Either side waits until something arrives: on a busy machine it would take a turn of some 240 calls in each 0.2 s.
    monkeypatch.setattr(ssh_region, "_LONE_WAIT_S", DEADLINE_S)
    monkeypatch.setattr(agent, "_TURN_S", DEADLINE_S)
    counted: Counter[str] = Counter()

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call") and counted["counts"]:
            counted["here" if threading.current_thread() is threading.main_thread() else "there"] += 1

    threading.setprofile(count)
    try:
        with FarWorld(memory) as world:
            world.write("first", b"1")
            world.settle()
            world.why_away = "the network is gone"
            world.disconnect()
            for i in range(FILES):
                world.write(f"d/{i:04}", b"%4d" % i * (SIZE // 4))
            world.settle()  # all are captured
            assert Status.PENDING in world.statuses()
            world.why_away, counted["counts"] = "", 1
            with profiled(count):
                world.settle()
            counted["counts"] = 0
            assert world.statuses() == {Status.COMPLETED}
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    assert {side: n for side, most in FAR_CALLS.items() if (n := counted[side] / FILES) > most} == {}


def test_a_directory_of_a_tree_bucket_costs_no_more_calls_than_before(memory: Path) -> None:
    """With the time that it gets once it is at rest."""
    fs = Counting()
    with World(memory, fs=fs, trees=True) as world:
        world.write("first", b"1")
        world.settle()
        cost = Cost(world, fs)

        def add() -> None:
            for i in range(FILES):
                world.path(f"{i:04}").mkdir()

        check(cost, add, "directory")


LOOK_LIMITS = {"open_root": 2, "open_dir": 3, "close": 5, "stat_fd": 4, "stat": 7, "mounts": 1}
"""Calls a bucket. One of each is for the region, and one `open_root` for the site's state, which a daemon looks at
elsewhere. `stat` includes the six documents."""


def test_a_look_at_a_bucket_that_finds_nothing_costs_no_more_calls_than_before(memory: Path) -> None:
    """A daemon looks at each bucket every second: at its identity, its documents and the mounts, and at nothing that
    only work needs."""
    fs = Counting()
    with World(memory, fs=fs) as world:
        world.write("k", b"data")
        world.settle()
        for _ in range(2):  # the first look is one into .fsrepl/displaced too, which there is every ten seconds
            fs.calls.clear()
            for region in world.engine.regions.values():
                region.probe_buckets()
        found = {name: number / 2 for name, number in fs.calls.items()}
        assert {name: n for name, n in found.items() if n > LOOK_LIMITS.get(name, 0)} == {}


LIFECYCLE_LIMITS = {
    "any": {"open_dir": 0.3, "queries": 0.1, "transactions": 0.1, "sync_file": 0.1, "sync_all": 0.05},
    "expired": {
        "close": 4.4, "open_read": 3.1, "stat_fd": 2.3, "stat": 1.3, "is_written": 2, "create": 1.1, "set_attribute": 1,
        "attribute": 1.1, "rename": 1, "rename_new": 1, "unlink": 1.1, "write": 0.1, "changed rows": 2.1,
    },
    "removed": {
        "close": 1.4, "open_read": 1.1, "stat_fd": 0.3, "stat": 0.3, "attribute": 1.1, "unlink": 2.1,
        "changed rows": 2.1, "is_locked": 1,
    },
}  # fmt: skip
"""`stat` includes one look of a scan at each view that is there; `unlink` the try to remove a sidecar."""


def test_what_lifecycle_does_to_an_object_costs_no_more_than_before(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker is made and a view removed, then a version is removed for good. Queries, transactions and syncs are a
    batch's, and not an object's."""
    monkeypatch.setattr(run, "_SLICE_MAX_S", 60.0)
    clock, fs = memory / "now", Counting()
    monkeypatch.setenv("FSREPL_CLOCK", str(clock))
    clock.write_text("2026-05-01T23:00:00Z")
    with World(memory / "world", fs=fs, replicate=False) as world:
        for i in range(FILES):
            world.write(f"d/{i:04}", b"%4d" % i * (SIZE // 4))
        world.settle()
        cost = Cost(world, fs)
        acts = {
            "expired": ({"Expiration": {"Days": 1}}, "2026-05-03T01:00:00Z"),
            "removed": ({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}, "2026-05-06T01:00:00Z"),
        }
        for what, (action, now) in acts.items():
            rule = {"ID": "r", "Filter": {}, "Status": "Enabled", **action}
            world.run("lifecycle.put", bucket=SOURCE, document={"Rules": [rule]})
            world.settle()
            clock.write_text(now)
            calls, statements, _ = cost.of(lambda: None)
            limits = LIFECYCLE_LIMITS["any"] | LIFECYCLE_LIMITS[what]
            found = {name: round(number, 2) for name, number in {**calls, **statements}.items()}
            assert {name: n for name, n in found.items() if n > limits.get(name, 0.1)} == {}, what


class CountingBytes(UnsyncedFs):
    """Counts the bytes of large contents that are read, written and copied, and the calls that wait for the disk."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        self.found["read"] += (count := super().read_into(fd, buffer, at))
        return count

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        self.found["compared"] += len(data := super().read_at(fd, size, at))
        return data

    def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
        self.found["written"] += len(data)
        super().write_at(fd, data, at)

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        self.found["sent"] += (copied := super().copy(from_fd, to_fd, at, count))
        return copied

    def copy_within(self, from_fd: int, to_fd: int, from_at: int, to_at: int, count: int, *, share: bool = True) -> int:
        self.found["copied"] += (copied := super().copy_within(from_fd, to_fd, from_at, to_at, count, share=share))
        return copied

    def start_writing(self, fd: int, at: int, count: int) -> None:
        self.found["start_writing"] += 1
        super().start_writing(fd, at, count)

    def sync_file(self, fd: int) -> None:
        self.found["sync_file"] += 1
        super().sync_file(fd)

    def sync_all(self, fd: int) -> None:
        self.found["sync_all"] += 1
        super().sync_all(fd)


LARGE = 32 << 20
LARGE_LIMITS = {
    "any": {"read": 2.01, "start_writing": 9, "sync_file": 10, "sync_all": 4},
    "new": {"written": 1, "sent": 1},
    "changed": {"written": 1, "copied": 1, "sent": 0.0101, "compared": 0.7},
    "appended": {"written": 1.01, "copied": 1, "sent": 0.004, "compared": 0.02},
    "renamed": {"written": 1.01, "copied": 1.01},
}
"""Calls, and bytes a byte of content."""
_CALLS = {"start_writing", "sync_file", "sync_all"}


def test_a_large_file_costs_no_more_bytes_than_before(memory: Path) -> None:
    """Without reflinks: it is read once to be captured and once to be verified, and written once on either side."""
    fs = CountingBytes()
    with World(memory, fs=fs) as world:
        file = world.path("k")

        def change() -> None:
            with file.open("r+b") as opened:
                for page in range(0, LARGE // 4096, 100):
                    opened.seek(page * 4096)
                    opened.write(os.urandom(4096))

        def append() -> None:
            with file.open("ab") as opened:
                opened.write(os.urandom(100_000))

        acts = {
            "new": lambda: file.write_bytes(os.urandom(LARGE)),
            "changed": change,
            "appended": append,
            "renamed": lambda: file.rename(world.path("renamed")),
        }
        for what, act in acts.items():
            act()
            fs.found.clear()
            world.settle()
            assert world.tree(DESTINATION) == world.tree(SOURCE)
            found = {name: n if name in _CALLS else round(n / LARGE, 4) for name, n in fs.found.items()}
            limits = LARGE_LIMITS["any"] | LARGE_LIMITS[what]
            assert {name: n for name, n in found.items() if n > limits.get(name, 0)} == {}, what
