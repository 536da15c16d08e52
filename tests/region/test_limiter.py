"""`limit`: every sent byte counts, and only senders wait."""

from __future__ import annotations

import itertools
import math
import os
import threading
from pathlib import Path

import pytest

from fsrepl.region.limiter import Limiter
from tests.doubles import UnsyncedFs
from tests.replicate.test_large import set_up
from tests.world import DESTINATION, SOURCE, World

RATE = 256 << 10


class Time:
    """A monotonic clock that the test moves, by a microsecond at least, as time does."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += max(seconds, 1e-6)


def test_the_rate_holds_over_time() -> None:
    """Settings, limit: in the long run no more is sent than the rate allows, and an idle hour allows no burst."""
    time = Time()
    found = Limiter(100, time)
    time.now_s += 3600
    found.sent(500)
    position = found.position
    found.sent(200)  # by another sender
    assert found.wait_s(position) == pytest.approx(5)
    time.now_s += 4
    assert found.wait_s(position) == pytest.approx(1)
    assert found.wait_s(found.position) == pytest.approx(3)
    time.now_s += 1
    assert found.wait_s(position) == 0


def test_a_new_rate_holds_for_waiting_senders() -> None:
    """Settings, limit: a sender that waits under the old limit waits under the new one, and not at all where there is
    none."""
    time = Time()
    found = Limiter(1, time)
    found.sent(3600)
    position = found.position
    found.rate = 360
    assert found.wait_s(position) == pytest.approx(10)
    found.rate = 0
    assert (found.wait_s(position), found.batch_bytes, found.chunk_bytes(8 << 20)) == (0, math.inf, 8 << 20)
    found.rate = 100
    assert found.wait_s(position) == 0


class TurnTaking(Time):
    """A clock for several threads: it moves when all of them sleep, to the moment at which the first one wakes."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._changed, self._awake, self._until = threading.Condition(), threads, list[float]()

    def sleep(self, seconds: float) -> None:
        with self._changed:
            until_s = self.now_s + max(seconds, 1e-6)  # later than now, whatever is lost in rounding
            self._until.append(until_s)
            self._rest()
            self._changed.wait_for(lambda: self.now_s >= until_s)

    def end(self) -> None:
        with self._changed:
            self._rest()

    def _rest(self) -> None:
        self._awake -= 1
        if not self._awake and self._until:
            self.now_s = min(self._until)
            self._awake = sum(each <= self.now_s for each in self._until)
            self._until = [each for each in self._until if each > self.now_s]
            self._changed.notify_all()


def assert_rate(sent: list[tuple[float, int]], rate: float) -> None:
    """Check that as much as the rate allows was sent in any ten seconds, within 5 %: pairs of a time and a size."""
    last_s = max(at_s for at_s, _ in sent)
    for from_s in (at_s for at_s, _ in sent if at_s <= last_s - 10):
        assert sum(size for at_s, size in sent if from_s <= at_s < from_s + 10) == pytest.approx(10 * rate, rel=0.05)


@pytest.mark.parametrize("rate", [256 << 10, 50 << 20])
def test_all_senders_together_keep_the_limit_in_any_ten_seconds(rate: int) -> None:
    """Settings, limit: within 5 %, from the first second on; eight workers and the queues of two regions."""
    workers, queues, sent = 8, 2, list[tuple[float, int]]()
    time = TurnTaking(workers + queues)
    found, until_s = Limiter(rate, time, time.sleep), time.now_s + 40

    def work() -> None:
        while time.now_s < until_s:
            count = found.chunk_bytes(8 << 20)
            found.claim(count, lambda: False)
            sent.append((time.now_s, count))
        time.end()

    def queue() -> None:
        position = 0.0
        while time.now_s < until_s:
            if not found.wait_s(position):
                found.sent(count := int(found.batch_bytes))
                sent.append((time.now_s, count))
                position = found.position
            time.sleep(0.01)
        time.end()

    threads = [threading.Thread(target=each) for each in [work] * workers + [queue] * queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_rate([each for each in sent if each[0] < until_s], rate)


def test_what_is_given_back_is_not_waited_for() -> None:
    """Settings, limit: a sender that claimed after another one waits for what that one sent, and no longer."""
    time = Time()
    found = Limiter(100, time)
    assert found.claim(1000, lambda: False)
    position = found.position
    found.sent(-1000)
    assert found.wait_s(position) == 0
    found.sent(100)
    assert not found.claim(50, lambda: True)
    assert found.wait_s(found.position) == pytest.approx(1)


@pytest.fixture
def paced(tmp_path: Path) -> tuple[World, Time]:
    """A limited site whose clock stands still, and in which a sleep is a failure."""

    def no_sleep(_: object) -> None:
        raise AssertionError("a region's thread slept")

    world, time = World(tmp_path), Time()
    world.engine.limiter = Limiter(RATE, time, no_sleep)
    return world, time


@pytest.mark.parametrize("remembered", [True, False])
def test_small_files_count_and_are_shown_as_they_come(paced: tuple[World, Time], *, remembered: bool) -> None:
    """Settings, limit: files still in memory count too; a file within the limit is durable and visible, the rest
    waits."""
    world, time = paced
    files, size = 30, 10_000
    for number in range(files):
        world.write(f"f{number}", os.urandom(size))
    world.capture(SOURCE)
    if not remembered:
        world.engine.recent.forget_data()
    began_s, seen = time.now_s, []
    while len(world.tree(DESTINATION)) < files:
        world.engine.run_until_idle()
        seen.append(len(world.tree(DESTINATION)))
        assert world.engine.limiter.position == size * seen[-1]
        time.now_s += 0.1
    assert time.now_s - began_s == pytest.approx(files * size / RATE, abs=0.5)
    assert all(later - earlier <= 1 + RATE / 10 / size for earlier, later in itertools.pairwise(seen))


def test_another_bucket_of_the_region_does_not_wait(paced: tuple[World, Time]) -> None:
    """Settings, limit: while one destination waits for the limit, work that sends nothing there continues, commands
    too."""
    world, _ = paced
    world.run("bucket.create", bucket="west/own", versioning=True)
    for number in range(10):
        world.write(f"f{number}", os.urandom(20_000))
    world.settle()
    assert 0 < len(world.tree(DESTINATION)) < 10
    world.write("note", b"1", "west/own")
    world.settle()
    assert len(world.of("note", "west/own")) == 1
    assert world.remove("note", "west/own")


def test_a_large_file_waits_for_the_limit_in_a_worker(paced: tuple[World, Time]) -> None:
    """Settings, limit: a copy that takes seconds at the limit waits between its chunks, and not in a region's
    thread."""
    world, time = paced

    world.engine.limiter = Limiter(RATE, time, time.sleep)
    data = os.urandom(RATE * 2)
    assert world.engine.background_bytes <= len(data) < world.engine.settings.replication.large_file_bytes
    world.write("k", data)
    world.settle()
    assert world.tree(DESTINATION) == {"k": data}
    assert time.now_s >= 1001.9  # the last piece is paid for by whoever sends next


def settle_in_time(world: World, time: Time) -> None:
    world.settle()
    for _ in range(100):
        if world.tree(DESTINATION) == world.tree(SOURCE):
            return
        time.now_s += 0.1
        world.settle()
    raise AssertionError("the destination stays behind")


def test_large_files_keep_the_limit_in_any_ten_seconds(paced: tuple[World, Time]) -> None:
    """Settings, limit: new files and an update, within 5 %, by the bytes that were copied."""
    world, time = paced
    sent: list[tuple[float, int]] = []

    class Noting(UnsyncedFs):
        def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
            copied = super().copy(from_fd, to_fd, at, count)
            sent.append((time.now_s, copied))
            return copied

    set_up(world)
    world.restart(fs=Noting())
    world.engine.limiter = Limiter(RATE, time, time.sleep)
    first = os.urandom(4 << 20)
    world.write("a", first)
    world.write("b", os.urandom(1 << 20))
    settle_in_time(world, time)
    world.write("a", first[: 1 << 20] + os.urandom(1 << 20) + first[2 << 20 :])
    settle_in_time(world, time)
    assert sum(size for _, size in sent) >= 6 << 20
    assert_rate(sent, RATE)
