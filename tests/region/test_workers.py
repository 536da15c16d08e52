"""Workers: some for each pair of regions, shared by their buckets in rotation, and never an obstacle to a stop."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import schedule
from fsrepl.commands import objects
from fsrepl.daemon import live
from fsrepl.errors import Unavailable
from fsrepl.model.version import Versioning
from fsrepl.region import receiver
from fsrepl.region.bucket_state import Damaged
from fsrepl.region.mailbox import Call
from fsrepl.region.pulse import STUCK_S, Pulse
from fsrepl.region.workers import Workers, magnitude
from fsrepl.repair import refetch
from fsrepl.storage.hashing import HOLE_BYTES
from tests.doubles import UnsyncedFs
from tests.waiting import DEADLINE_S, until
from tests.world import DESTINATION, SOURCE, World

WELL = "other/dst"


class RunAsCheck:
    """Work that hangs until it is released."""

    def __init__(self) -> None:
        self.begun, self.release = threading.Event(), threading.Event()

    def hang(self) -> None:
        self.begun.set()
        assert self.release.wait(DEADLINE_S)


def test_buckets_take_turns() -> None:
    """One bucket's large files delay no other bucket: a free worker takes the work that waited longest."""
    run_as_check, done, order = RunAsCheck(), threading.Event(), list[str]()
    workers = Workers("worker", 1)
    workers.submit("burst", run_as_check.hang)
    assert run_as_check.begun.wait(DEADLINE_S)
    for whose in ("burst", "burst", "burst", "quiet"):
        workers.submit(whose, lambda whose=whose: order.append(whose))  # type: ignore[misc]
    workers.submit("quiet", done.set)
    run_as_check.release.set()
    assert done.wait(DEADLINE_S)
    assert order[:3] == ["burst", "quiet", "burst"]
    assert workers.close(DEADLINE_S)


def test_hanging_work_does_not_delay_the_stop() -> None:
    """The daemon ends within seconds: hanging work is left behind, and waiting work is not begun."""
    run_as_check, begun = RunAsCheck(), list[int]()
    workers = Workers("worker", 1)
    workers.submit("", run_as_check.hang)
    workers.submit("", lambda: begun.append(1))
    assert run_as_check.begun.wait(DEADLINE_S)
    assert not workers.close(0.01)
    run_as_check.release.set()
    assert workers.close(DEADLINE_S)
    assert begun == []


def test_a_small_file_does_not_wait_for_the_largest() -> None:
    """A file waits for none of eight times its size or more, however many of these occupy all workers."""
    huge, large, order = [RunAsCheck() for _ in range(3)], RunAsCheck(), list[str]()
    workers = Workers("worker", 2)
    for run_as_check in huge:
        workers.submit("sparse", run_as_check.hang, 2 << 40)
    assert huge[0].begun.wait(DEADLINE_S)
    assert huge[1].begun.wait(DEADLINE_S)
    workers.submit("sparse", large.hang, 1 << 30)
    assert large.begun.wait(DEADLINE_S)
    done = threading.Event()
    workers.submit("sparse", lambda: order.append("as large"), 1 << 30)
    workers.submit("other", lambda: order.append("smaller"), 1 << 27)
    workers.submit("sparse", done.set, 1 << 27)
    assert done.wait(DEADLINE_S)
    until(lambda: order == ["smaller"])  # one thread may have been started for both, and begun with the later one
    assert not huge[2].begun.is_set()
    large.release.set()
    until(lambda: order == ["smaller", "as large"])
    for run_as_check in huge:
        run_as_check.release.set()
    assert huge[2].begun.wait(DEADLINE_S)
    assert workers.close(DEADLINE_S)


@pytest.mark.parametrize("size_bytes", [1, 7, 1 << 20, (1 << 30) - 1, 1 << 41, 1 << 60])
def test_sizes_that_differ_eightfold_are_told_apart(size_bytes: int) -> None:
    """The largest file there can be is of the 21st magnitude, so workers are never many."""
    assert magnitude(size_bytes) < magnitude(8 * size_bytes) <= 21


def test_two_requests_at_once_wake_two_workers() -> None:
    """Work never waits for other work while one more thread is allowed."""
    workers, first, gates = Workers("worker", 2), threading.Event(), (RunAsCheck(), RunAsCheck())
    workers.submit("", first.set)
    assert first.wait(DEADLINE_S)
    for run_as_check in gates:
        workers.submit("", run_as_check.hang)
    for run_as_check in gates:
        assert run_as_check.begun.wait(DEADLINE_S)
        run_as_check.release.set()
    assert workers.close(DEADLINE_S)


class HangingFs(UnsyncedFs):
    """What is copied into one region hangs, as on a frozen disk, until it is released."""

    def __init__(self, region: str) -> None:
        super().__init__()
        self._region, self.release = f"/{region}/", threading.Event()

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        if self._region in os.readlink(f"/proc/self/fd/{to_fd}"):
            assert self.release.wait(DEADLINE_S)
        return super().copy(from_fd, to_fd, at, count)


@contextlib.contextmanager
def at_work(world: World) -> Iterator[None]:
    """Start the threads of a world."""
    world.settle()
    engine = world.engine
    engine.threaded = True
    for region in engine.regions.values():
        region.start()
    try:
        yield
    finally:
        for region in engine.regions.values():
            region.stopping = True
            region.wake()
            assert region.thread is not None
            region.thread.join(DEADLINE_S)


def drop(world: World, name: str, size_bytes: int) -> None:
    """Make a file that is almost all holes, and old."""
    with world.path(name).open("wb") as file:
        file.truncate(size_bytes)
        file.write(name.encode())
    os.utime(world.path(name), (1, 1))
    world.region().post(Call(lambda: schedule.begin(world.region(), world.state())))


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[World, HangingFs]]:
    """A world replicated to two regions, with its threads; every copy into one of the regions hangs."""
    fs = HangingFs("west")
    with World(tmp_path, fs=fs, buckets=(SOURCE, DESTINATION, WELL)) as world:
        world.run("replication.enable", source=SOURCE, destination=WELL, add=True)
        with at_work(world):
            try:
                yield world, fs
            finally:
                fs.release.set()


def test_a_region_that_hangs_delays_no_other(hanging: tuple[World, HangingFs]) -> None:
    """Section 7: large objects are captured and delivered elsewhere while all copies into one region hang."""
    world, fs = hanging
    size = world.settings.replication.large_file_bytes
    names = {f"big{number}" for number in range(world.settings.replication.workers + 2)}
    for name in names:
        drop(world, name, size)
    until(lambda: len(world.engine.transfers) >= world.settings.replication.workers)
    until(lambda: {path.name for path in world.path(bucket=WELL).glob("big*")} == names)
    drop(world, "late", size)
    until(lambda: world.path("late", WELL).exists())
    assert not list(world.path(bucket=DESTINATION).glob("[a-z]*"))
    fs.release.set()
    until(lambda: len(list(world.path(bucket=DESTINATION).glob("[a-z]*"))) == len(names) + 1)


class SlowZeros(UnsyncedFs):
    """Hashing a long hole hangs, in the workers that capture or in those that deliver, until it is released."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._workers, self.release = "capture" if at == SOURCE else "deliver", threading.Event()
        self.reading = 0

    def zeros(self, count: int) -> Iterator[bytes]:
        if count >= HOLE_BYTES and self._workers in threading.current_thread().name and not self.release.is_set():
            self.reading += 1
            assert self.release.wait(DEADLINE_S)
        return super().zeros(count)


@pytest.mark.parametrize("at", [SOURCE, DESTINATION])
def test_sparse_files_delay_no_other_large_file(tmp_path: Path, at: str) -> None:
    """Section 7: hashing the holes of files of 2 TB takes minutes; another large file of the same region and direction
    is captured and delivered meanwhile, whether these are being captured or verified."""
    fs, size = SlowZeros(at), 48 << 20  # a file that is announced crosses in other workers
    with World(tmp_path, fs=fs) as world, at_work(world):
        sparse = {f"sparse{number}" for number in range(world.settings.replication.workers + 1)}
        try:
            for name in sparse:
                drop(world, name, size)
            until(lambda: fs.reading == world.settings.replication.workers)
            drop(world, "large", size // 8)
            until(lambda: world.path("large", DESTINATION).exists())
            assert fs.reading == world.settings.replication.workers
        finally:
            fs.release.set()
        until(lambda: all(world.path(name, DESTINATION).exists() for name in sparse))


@pytest.mark.parametrize("at", [SOURCE, DESTINATION])
def test_status_shows_the_progress_of_a_capture_and_a_verification(tmp_path: Path, at: str) -> None:
    """Section 5: a capture is a transfer within its bucket; a verification shows progress, too."""
    fs, size = SlowZeros(at), 48 << 20  # a file that is announced crosses in other workers
    with World(tmp_path, fs=fs) as world, at_work(world):
        try:
            drop(world, "sparse", size)
            until(lambda: fs.reading == 1)
            (told,) = live.status(world.engine)["transfers"]
            assert 0 < told.pop("bytes_done" if at == SOURCE else "bytes_verified") < size
            done = {} if at == SOURCE else {"bytes_done": size, "bytes_crossed": 4096}
            assert told == {"key": "sparse", "source": SOURCE, "destination": at, "bytes_total": size, **done}
        finally:
            fs.release.set()
        until(lambda: world.path("sparse", DESTINATION).exists() and not live.status(world.engine)["transfers"])


def test_a_repair_has_the_size_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: so that repairs of the largest files delay no others of their region either."""
    with World(tmp_path) as world:
        world.write("k", b"12345")
        world.settle()
        begun: list[dict[str, Any]] = []
        monkeypatch.setattr(world.region(), "in_background", lambda _work, _finish, **how: begun.append(how))
        world.state().damaged.append(Damaged(SOURCE, b"k", world.of("k")[0].id))
        refetch.repair_damaged(world.region())
        assert begun == [{"pool": ("repair", "east"), "whose": SOURCE, "size_bytes": 5}]


def test_a_hanging_thread_is_told_from_a_busy_one() -> None:
    """Status: a region that works for long is not shown as hanging; one that hangs is, until it works again."""
    run_as_check, spin = RunAsCheck(), threading.Event()

    def work() -> None:
        run_as_check.hang()
        while not spin.is_set():
            pass

    thread, pulse = threading.Thread(target=work, daemon=True), Pulse()
    thread.start()
    assert not pulse.look(thread, busy_since_s=0.0, now_s=1.0)
    pulse.look(thread, busy_since_s=99.0, now_s=100.0)
    assert not pulse.is_stuck, "the daemon has not looked for long"
    pulse.look(thread, busy_since_s=99.0, now_s=100.0 + STUCK_S)
    assert pulse.is_stuck
    run_as_check.release.set()
    until(lambda: pulse.look(thread, busy_since_s=99.0, now_s=101.0 + STUCK_S))
    before = time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))
    until(lambda: time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) > before + 0.01)
    pulse.look(thread, busy_since_s=99.0, now_s=103.0 + 2 * STUCK_S)
    assert not pulse.is_stuck
    spin.set()
    thread.join(DEADLINE_S)
    assert not pulse.look(thread, busy_since_s=0.0, now_s=103.0 + 9 * STUCK_S)


def test_nothing_touches_a_region_that_hangs(tmp_path: Path) -> None:
    """Section 7: another region's thread would hang too; deliveries from there wait, and continue at once."""
    with World(tmp_path) as world:
        world.write("k", b"1")
        world.capture(SOURCE)
        world.region().pulse.is_stuck = True
        world.engine.run_until_idle()
        (queue,) = world.region(DESTINATION).queues.values()
        assert "hangs" in queue.blocked_why
        assert world.tree(DESTINATION) == {}
        world.engine.look_for_stuck()
        world.engine.run_until_idle()
        assert world.tree(DESTINATION) == {"k": b"1"}


class StuckReads(UnsyncedFs):
    """Reads from one region's stores hang, until they are released."""

    def __init__(self, region: str) -> None:
        super().__init__()
        self._region, self.begun, self.release = f"/{region}/", threading.Event(), threading.Event()

    def attribute(self, fd: int, name: str) -> bytes | None:
        if f"{self._region}dst/.fsrepl/versions/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.begun.set()
            assert self.release.wait(DEADLINE_S)
        return super().attribute(fd, name)


def test_a_region_that_hangs_as_it_comes_up_does_not_lock_the_journal(tmp_path: Path) -> None:
    """Section 7: the journal is not locked while a tree is read, so that other regions work meanwhile."""
    with World(tmp_path) as world:
        world.write("k", b"1")
        world.settle()
        fs = StuckReads("west")
        world.restart(fs=fs, without_journal=True)
        hanging = threading.Thread(target=world.region(DESTINATION).probe_buckets)
        hanging.start()
        try:
            assert fs.begun.wait(DEADLINE_S)
            world.region().probe_buckets()
            world.write("new", b"2")
            world.capture(SOURCE)
            assert len(world.of("new")) == 1
            assert hanging.is_alive()
        finally:
            fs.release.set()
            hanging.join(DEADLINE_S)
        world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE)


# -- requests to a region


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Two sources; threads are told of, and what is posted to a region stays where it is until a test takes it."""
    monkeypatch.setattr(receiver, "_ANSWER_S", 0.05)
    with World(tmp_path, buckets=(SOURCE, DESTINATION, "north/src")) as world:
        world.write("k", b"k")
        world.settle()
        world.engine.threaded = True
        yield world


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("object.rm", {"bucket": SOURCE, "key": b"k"}),
        ("object.restore", {"bucket": SOURCE, "key": b"k"}),
        ("versioning.set", {"bucket": SOURCE, "status": "Suspended"}),
        ("retry", {"scope": SOURCE}),
    ],
)
def test_a_request_to_a_hanging_region_is_refused_and_never_carried_out(
    asked: World, operation: str, params: dict[str, object]
) -> None:
    """Section 7: the caller gets an error, and the request is withdrawn."""
    before = asked.records(SOURCE)
    asked.region().pulse.is_stuck = True
    with pytest.raises(Unavailable, match=r"region east does not answer \(no answer in .* nothing was done; try again"):
        asked.run(operation, **params)
    asked.region().pulse.is_stuck = False
    asked.engine.threaded = False
    asked.settle()
    assert asked.records(SOURCE) == before
    assert asked.state().bucket.versioning is Versioning.ENABLED


def test_a_request_that_a_hanging_region_had_begun_is_not_reported_as_undone(
    asked: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 7: its outcome will be known."""
    monkeypatch.setattr(receiver, "_BEGUN_S", 0.1)
    run_as_check, region = RunAsCheck(), asked.region()

    def hang() -> None:
        region.pulse.is_stuck = True
        run_as_check.hang()

    monkeypatch.setattr(region, "post", lambda call: threading.Thread(target=call.run, daemon=True).start())
    try:
        with pytest.raises(Unavailable, match="the work had begun: its outcome will be known"):
            asked.region().ask(hang)
    finally:
        run_as_check.release.set()


def test_a_region_that_is_busy_is_waited_for(asked: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: however long that is."""
    monkeypatch.setattr(receiver, "_BEGUN_S", 0.05)
    monkeypatch.setattr(asked.region(), "post", lambda call: threading.Timer(0.3, call.run).start())
    assert asked.region().ask(lambda: "done") == "done"


def test_what_fails_in_a_region_holds_nothing_open_afterwards(asked: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: an idle daemon holds no descriptor in a region, also after an error, and before garbage is looked
    for."""
    monkeypatch.setattr(asked.region(), "post", lambda call: threading.Thread(target=call.run).start())
    released: list[str] = []

    def held() -> Iterator[None]:
        try:
            yield
        finally:
            released.append("closed")

    def fail() -> None:
        steps = held()
        for _ in steps:
            raise OSError(errno.ENOSPC, "no room")

    gc.disable()
    try:
        with contextlib.suppress(OSError):
            asked.region().ask(fail)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        assert released == ["closed"]
    finally:
        gc.enable()


def test_a_retry_of_everything_leaves_out_a_region_that_hangs(asked: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5: the others are tried again, and the skipped one is named."""
    tried = []
    for region in asked.engine.regions.values():
        if region.name == "east":
            region.pulse.is_stuck = True
        else:
            monkeypatch.setattr(region, "post", lambda call: call.run())
    monkeypatch.setattr(objects, "retry_waiting", lambda _home, address, _prefix: tried.append(address) or 1)
    answer = asked.run("retry")
    assert (answer["Retried"], tried) == (2, ["north/src", DESTINATION])
    (why,) = answer["LeftOut"]  # type: ignore[misc]
    assert why.startswith("region east does not answer")
