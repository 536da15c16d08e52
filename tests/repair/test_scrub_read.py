"""The scrub reads a large version in parts, by its block map, which decides nothing by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from fsrepl.model import blockmap, scrub
from fsrepl.repair import scrub_read
from tests.doubles import UnsyncedFs
from tests.repair.test_scrub import Days, days, scrub_unlimited, told, turn
from tests.replicate.test_large import SIZE, content
from tests.stored import stored
from tests.world import DESTINATION, SOURCE, World

__all__ = ["days"]
PART = 1 << 20
CONTENT = content()[: 2 << 20] + bytes(1 << 20) + content()[: 1 << 20]
"""With a hole."""


class Counting(UnsyncedFs):
    """Counts what is read of stored files of the source, and calls `then` before each read of them."""

    def __init__(self) -> None:
        self.count = 0
        self.then: Callable[[], None] = lambda: None

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        done = super().read_into(fd, buffer, at)
        if f"/{SOURCE}/.fsrepl/versions/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.count += done
            self.then()
        return done


@pytest.fixture
def world(tmp_path: Path, days: Days, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(scrub, "BATCH_BYTES", PART)
    monkeypatch.setattr(scrub_read, "_RUN_BYTES", 256 << 10)
    with World(tmp_path / "world") as made:
        scrub_unlimited(made)
        made.path("k").parent.mkdir(exist_ok=True)
        with made.path("k").open("wb") as file:
            file.write(CONTENT[: 2 << 20])
            file.seek(1 << 20, os.SEEK_CUR)
            file.write(CONTENT[3 << 20 :])
        made.settle()
        made.restart(fs=Counting())
        made.settle()
        yield made


def counting(world: World) -> Counting:
    fs = world.state(SOURCE).bucket.fs
    assert isinstance(fs, Counting)
    return fs


def test_a_large_version_is_read_evenly_over_the_time_and_nothing_twice(world: World, days: Days) -> None:
    """Settings, scrub; G11: also where each part has a daemon of its own; holes are not read."""
    seen = []
    for day in range(31):
        days.move(day)
        turn(world)
        seen.append(told(world)["current"]["bytes_done"])
        fs = Counting()
        fs.count = counting(world).count
        world.restart(fs=fs)
        world.settle()
    *seen, _ = seen  # the last day begins another pass
    assert len({each for each in seen if 0 < each < SIZE}) >= 2
    assert seen == sorted(seen)
    assert told(world)["last"] | {"began": "", "ended": ""} == {
        "began": "", "ended": "", "checked": 1, "bytes": SIZE, "damaged": 0,
    }  # fmt: skip
    assert SIZE - (1 << 20) <= counting(world).count <= SIZE - (1 << 20) + 64 * 4096


def test_a_pause_leaves_a_large_version_where_it_is(world: World) -> None:
    """Section 5: at once, however large it is; the scrub goes on there."""
    reads = 0

    def pause() -> None:
        nonlocal reads
        if (reads := reads + 1) == 3:
            progress = world.state(SOURCE).scrub.progress
            assert progress is not None
            world.run("scrub.pause", bucket=SOURCE)
            assert progress.stop

    counting(world).then = pause
    world.run("scrub.run", bucket=SOURCE)
    turn(world)
    assert reads == 3
    assert told(world)["paused"]
    assert 0 < told(world)["current"]["bytes_done"] < SIZE // 2
    world.run("scrub.pause", bucket=SOURCE, on=False)
    turn(world)
    assert told(world)["last"]["bytes"] == SIZE
    assert counting(world).count <= SIZE - (1 << 20) + 64 * 4096


@pytest.mark.parametrize("at", [0, 5 << 19, SIZE - 1])
def test_damage_in_any_part_is_found_and_repaired(world: World, at: int, caplog: pytest.LogCaptureFixture) -> None:
    """Section 9: in data, in a hole, and in the last byte."""
    with stored(world, "k").open("r+b") as file:
        file.seek(at)
        file.write(b"\1")
    world.run("scrub.run", bucket=SOURCE)
    turn(world)
    assert told(world)["last"]["damaged"] == 1
    assert caplog.text.count("scrub found damage") == 1
    assert stored(world, "k").read_bytes() == CONTENT
    assert stored(world, "k", DESTINATION).read_bytes() == CONTENT
    world.stays_quiet()


@pytest.mark.parametrize("damage", ["lost", "wrong"])
def test_a_map_decides_nothing(world: World, damage: str) -> None:
    """G2: where it is lost or wrong, the content's own hash decides, and the map is made again."""
    (path,) = world.path(".fsrepl/blocks").iterdir()
    right = path.read_bytes()
    found = blockmap.decode(right)
    assert found is not None
    path.unlink()
    if damage == "wrong":
        packed = bytes([*found.packed[:-1], found.packed[-1] ^ 1])
        path.write_bytes(structs.replace(found, packed=packed).encode())
    world.run("scrub.run", bucket=SOURCE)
    turn(world)
    assert told(world)["last"] | {"began": "", "ended": ""} == {
        "began": "", "ended": "", "checked": 1, "bytes": SIZE, "damaged": 0,
    }  # fmt: skip
    assert path.read_bytes() == right
