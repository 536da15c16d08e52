"""`limit`: every sent byte counts, and only senders wait."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest

from fsrepl.region import limiter
from fsrepl.region.limiter import Limiter
from tests.world import DESTINATION, SOURCE, World

RATE = 256 << 10


class Time:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


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


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[World, Time]:
    """A limited site whose clock stands still, and in which a sleep is a failure."""

    def no_sleep(_: object) -> None:
        raise AssertionError("a region's thread slept")

    monkeypatch.setattr(limiter.time, "sleep", no_sleep)
    world, time = World(tmp_path), Time()
    world.engine.limiter = Limiter(RATE, time)
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
        time.now_s += 0.25
    assert time.now_s - began_s == pytest.approx(files * size / RATE, abs=0.5)
    assert all(later - earlier <= 1 + RATE / 4 / size for earlier, later in itertools.pairwise(seen))


def test_another_bucket_of_the_region_does_not_wait(paced: tuple[World, Time]) -> None:
    """Settings, limit: while one destination waits for the limit, work that sends nothing there continues, commands
    too."""
    world, _ = paced
    world.run("bucket.create", bucket="west/own", versioning=True)
    for number in range(10):
        world.write(f"f{number}", os.urandom(60_000))
    world.settle()
    assert 0 < len(world.tree(DESTINATION)) < 10
    world.write("note", b"1", "west/own")
    world.settle()
    assert len(world.of("note", "west/own")) == 1
    assert world.remove("note", "west/own")


def test_a_large_file_waits_for_the_limit_in_a_worker(
    paced: tuple[World, Time], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, limit: a copy that takes seconds at the limit waits between its chunks, and not in a region's
    thread."""
    world, time = paced

    def sleep(seconds: float) -> None:
        time.now_s += seconds

    monkeypatch.setattr(limiter.time, "sleep", sleep)
    data = os.urandom(RATE * 2)
    assert world.engine.background_bytes <= len(data) < world.engine.settings.replication.large_file_bytes
    world.write("k", data)
    world.settle()
    assert world.tree(DESTINATION) == {"k": data}
    assert time.now_s >= 1002
