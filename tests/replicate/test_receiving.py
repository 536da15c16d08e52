"""A new large file crosses while it is captured; its delivery takes over what is there, and verifies all of it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import expect
from fsrepl.model import blockmap
from fsrepl.model.delta import Span, plan, rest
from fsrepl.model.version import Status
from fsrepl.region.bucket_state import Phase
from fsrepl.region.change_queue import WRITING
from fsrepl.replicate import early, large_draft, sending
from fsrepl.storage import alike, early_copy, hashing, read_back, staging
from fsrepl.storage.alike import Alike
from tests import waiting
from tests.doubles import PowerCut, UnsyncedFs
from tests.replicate.test_large import BLOCK_MAX, SIZE, DiesInTheMiddle, content, crossed, set_up
from tests.world import DESTINATION, SOURCE, World, v1, v2

PART = 256 << 10


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one MiB on a file is announced, and it crosses in parts of a quarter of a MiB."""
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 20)
    monkeypatch.setattr(early_copy, "_PART_BYTES", PART)
    monkeypatch.setattr(sending, "_CHUNK", PART)
    monkeypatch.setattr(hashing, "BUFFER_BYTES", PART)


class Watching(UnsyncedFs):
    """Notes what crosses, and calls `then` before each part of it, and `during` before each part of a capture."""

    def __init__(self) -> None:
        self.crossed = 0
        self.then: Callable[[], None] = lambda: None
        self.during: Callable[[], None] = lambda: None

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        self.then()
        done = super().copy(from_fd, to_fd, at, count)
        self.crossed += done
        return done

    def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
        if "/src/.fsrepl/tmp/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.during()
        super().write_at(fd, data, at)


@pytest.fixture
def fs() -> Watching:
    return Watching()


@pytest.fixture
def world(memory: Path, fs: Watching) -> Iterator[World]:
    with World(memory) as made:
        set_up(made)
        made.restart(fs=fs)
        made.settle()
        yield made


def open_staged(world: World) -> list[str]:
    """The open files in the destination's .fsrepl/tmp."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [place for place in found if place.startswith(str(world.path(".fsrepl/tmp", DESTINATION)))]


def seen_versions(world: World, fs: Watching) -> list[int]:
    """The number of versions that the key k had whenever a part crossed."""
    seen: list[int] = []
    fs.then = lambda: seen.append(len(world.of("k")))
    return seen


def left(world: World) -> Path:
    """The file of the destination's .fsrepl/tmp that has the content of the key k so far."""
    (found,) = world.path(".fsrepl/tmp", DESTINATION).glob("early.*")
    return found


def test_a_new_file_crosses_while_it_is_captured(world: World, fs: Watching) -> None:
    """Section 9: before there is a version of it, hidden, and each byte once; it is seen as a transfer."""
    seen: list[tuple[int, bool, list[Any]]] = []
    fs.then = lambda: seen.append(
        (len(world.of("k")), bool(world.tree(DESTINATION)), [each.describe(0.0) for each in world.engine.transfers])
    )
    world.write("k", content())
    world.settle()
    assert {(versions, shown) for versions, shown, _ in seen} == {(0, False)}
    said = seen[-1][2][0]
    assert (said["key"], said["source"], said["destination"]) == ("k", SOURCE, DESTINATION)
    assert 0 < said["bytes_done"] == said["bytes_crossed"] < said["bytes_total"] == SIZE
    assert world.engine.transfers == []
    assert fs.crossed == crossed(world, "k") == SIZE
    assert world.tree(DESTINATION) == {"k": content()}
    assert world.current("k").status is Status.COMPLETED
    assert world.leftovers(DESTINATION) == []
    assert open_staged(world) == []
    world.stays_quiet()


def test_what_crossed_is_read_back_meanwhile(world: World, fs: Watching) -> None:
    """G3: reading it back adds little to the time until it is complete."""
    is_read = threading.Event()
    real = fs.read_into

    def read_into(fd: int, buffer: memoryview, at: int) -> int:
        if "/dst/" in os.readlink(f"/proc/self/fd/{fd}"):
            is_read.set()
        return real(fd, buffer, at)

    def wait() -> None:
        assert fs.crossed < SIZE * 3 // 4 or is_read.wait(20)

    fs.read_into = read_into  # type: ignore[method-assign]
    fs.then = wait
    world.write("k", content())
    world.settle()
    assert is_read.is_set()
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_a_delivery_takes_over_what_crossed_so_far(world: World, fs: Watching) -> None:
    """Section 9: it sends the rest, each byte once, also where that begins within a block."""

    def stop() -> None:
        if fs.crossed == 5 * PART:
            for copy in world.state(DESTINATION).replicas.early.values():
                copy.stop()

    seen = seen_versions(world, fs)
    note, fs.then = fs.then, lambda: (stop(), note())  # type: ignore[assignment, func-returns-value]
    world.write("k", content())
    world.settle()
    assert (seen.count(0), seen.count(1)) == (6, SIZE // PART - 6)
    assert fs.crossed == crossed(world, "k") == SIZE
    assert world.tree(DESTINATION) == world.tree(SOURCE)


@pytest.mark.parametrize("part", [1, SIZE // PART - 1])
def test_nothing_that_crossed_early_is_believed(
    world: World, fs: Watching, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3: what was damaged in it before it was read back is noticed, and its block sent again, alone."""
    monkeypatch.setattr(read_back, "_FOLLOWS_BYTES", SIZE)  # nothing is read back before all has crossed

    def damage() -> None:
        if fs.crossed == part * PART:
            with left(world).open("r+b") as file:
                file.seek(fs.crossed - 9)
                file.write(b"rot")

    fs.then = damage
    world.write("k", content())
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == content()
    assert SIZE < crossed(world, "k") <= SIZE + 2 * BLOCK_MAX


def test_a_file_that_was_read_before_it_changed_is_sent_as_it_was_captured(world: World, fs: Watching) -> None:
    """G2, G3: what was received is other content than the version's, which holds."""
    before, after = content(), content(100_000, 2) + content()[100_000:]
    real = fs.copy

    def copy(from_fd: int, to_fd: int, at: int, count: int) -> int:
        if at == 0 and not world.of("k"):
            return os.pwrite(to_fd, before[:count], 0)
        return real(from_fd, to_fd, at, count)

    fs.copy = copy  # type: ignore[method-assign]
    world.write("k", after)
    world.settle()
    assert world.tree(DESTINATION) == {"k": after}
    assert crossed(world, "k") <= SIZE + 100_000 + 2 * BLOCK_MAX


def test_a_capture_that_comes_to_nothing_leaves_nothing(world: World, fs: Watching) -> None:
    """G2: a file that changed while it was captured: no replica, and what crossed is removed. The next time it crosses
    when it is a version."""

    def write() -> None:
        if fs.crossed == SIZE // 2:
            fs.then = lambda: None
            with world.path("k").open("r+b") as file:
                file.write(b"later")
            world.region(SOURCE).changes.add(SOURCE, [b"k"], 0, WRITING)

    fs.then = write
    world.write("k", content())
    world.look()
    world.engine.run_until_idle()
    assert fs.crossed > SIZE // 2
    assert world.tree(DESTINATION) == {}
    assert world.history(DESTINATION) == {}
    assert world.leftovers(DESTINATION) == []
    assert open_staged(world) == []
    seen = seen_versions(world, fs)
    world.settle()
    assert set(seen) == {1}
    assert world.tree(DESTINATION) == {"k": b"later" + content()[5:]}


def test_a_file_that_is_removed_meanwhile_leaves_nothing(world: World, fs: Watching) -> None:
    """G2: the same for a file that is gone when it has crossed."""
    fs.during = lambda: world.path("k").unlink(missing_ok=True)
    world.write("k", content())
    world.settle()
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert world.leftovers(DESTINATION) == []
    assert open_staged(world) == []


def test_a_capture_waits_for_no_destination(world: World, fs: Watching) -> None:
    """Section 7: a destination that does nothing does not delay it."""
    world.write("k", content())
    world.capture(SOURCE)
    world.region(SOURCE).turn()
    assert len(world.of("k")) == 1
    assert fs.crossed == 0
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_a_destination_that_is_away_gets_it_later(world: World, fs: Watching) -> None:
    """G8: nothing is written into the place where it was."""
    world.away("west")
    world.write("k", content())
    world.settle()
    assert len(world.of("k")) == 1
    assert fs.crossed == 0
    world.back("west")
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_a_destination_that_goes_away_meanwhile_is_let_go(world: World, fs: Watching) -> None:
    """G8: no open file, so that the region can be unmounted; what crossed is of use when it is back."""

    def suspend() -> None:
        if fs.crossed == SIZE // 2:
            fs.then = lambda: None
            world.region(DESTINATION).suspend(world.state(DESTINATION), Phase.SUSPENDED, "for a test")

    fs.then = suspend
    world.write("k", content())
    world.look()
    for bucket in (SOURCE, DESTINATION):
        world.region(bucket).turn()
    waiting.until(lambda: open_staged(world) == [], "all is closed")
    for _ in range(2):
        world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "k") <= SIZE // 2 + BLOCK_MAX
    assert world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("is_full", [True, False])
def test_a_full_destination_hinders_no_capture(world: World, fs: Watching, is_full: bool) -> None:
    """G7: neither where its disk is full, nor where it is below keep_free: then nothing crosses early."""
    real, parts = fs.space, 0

    def space(fd: int) -> tuple[int, int]:
        free, total = real(fd)
        return (total // 20, total) if "/dst" in os.readlink(f"/proc/self/fd/{fd}") else (free, total)

    def fill() -> None:
        nonlocal parts
        if (parts := parts + 1) >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if is_full:
        fs.then = fill
    else:
        fs.space = space  # type: ignore[method-assign]
    world.write("k", content())
    world.capture(SOURCE)
    world.engine.run_until_idle()
    assert len(world.of("k")) == 1
    assert world.tree(DESTINATION) == ({} if is_full else {"k": content()})
    assert world.leftovers(DESTINATION) == []
    assert open_staged(world) == []
    fs.then = lambda: None
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_one_disk_has_room_for_the_capture_first(world: World, fs: Watching) -> None:
    """G7: source and destination on one disk that has room for one copy: the capture gets it."""
    real, seen = fs.space, seen_versions(world, fs)
    needed = world.engine.settings.capture.keep_free

    def space(fd: int) -> tuple[int, int]:
        _, total = real(fd)
        return needed.needed(total) + SIZE * 3 // 2, total

    fs.space = space  # type: ignore[method-assign]
    world.write("k", content())
    world.settle()
    assert set(seen) == {1}
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_with_a_limit_nothing_crosses_before_it_must(world: World, fs: Watching) -> None:
    """Section 4: where a limit counts each byte, the blocks of the file are known first."""
    world.engine.limiter.rate = 1 << 40
    seen = seen_versions(world, fs)
    world.write("k", content())
    world.settle()
    assert set(seen) == {1}
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_what_crosses_early_is_counted_by_the_limit(world: World, fs: Watching) -> None:
    """Section 4: a limit that is set meanwhile is kept."""
    claimed: list[int] = []
    real = world.engine.limiter.claim

    def claim(count: int, stopped: Callable[[], bool]) -> bool:
        claimed.append(count)
        return real(count, stopped)

    world.engine.limiter.claim = claim  # type: ignore[method-assign]
    world.write("k", content())
    world.settle()
    assert fs.crossed == sum(claimed) == SIZE


def test_each_destination_gets_it_while_it_is_captured(memory: Path) -> None:
    """Section 9: each for itself, from the file that is in memory."""
    third = "south/copy"
    with World(memory, buckets=(SOURCE, DESTINATION, third)) as world:
        set_up(world)
        fs = Watching()
        world.restart(fs=fs)
        world.configure(v2(), v2(to=third, priority=2))
        world.settle()
        seen = seen_versions(world, fs)
        world.write("k", content())
        world.settle()
        assert world.tree(DESTINATION) == world.tree(third) == {"k": content()}
        assert set(seen) == {0}
        assert fs.crossed == 2 * SIZE


def test_what_no_rule_or_role_sends_does_not_cross(world: World, fs: Watching) -> None:
    """Source: s3-semantics, 6: not even hidden."""
    world.configure(v1("other/"))
    world.write("k", content())
    world.settle()
    assert fs.crossed == 0
    world.configure(v1())
    world.engine.role = lambda name: None  # type: ignore[method-assign]
    world.write("other", content(SIZE, 2))
    world.settle()
    assert fs.crossed == 0
    assert world.current("other").status is Status.FAILED


def test_a_file_with_another_name_does_not_cross_early(world: World, fs: Watching) -> None:
    """Section 9: it may be known under that."""
    seen: list[bool] = []
    fs.then = lambda: seen.append(bool(world.state(DESTINATION).replicas.early))
    world.write("k", content())
    os.link(world.path("k"), world.path("other"))
    world.settle()
    assert seen
    assert not any(seen)
    assert world.tree(DESTINATION) == world.tree(SOURCE)


# -- content that the destination has


@pytest.mark.parametrize("change", [lambda data: data, lambda data: content(90_000, 2) + data, lambda data: data[9:]])
def test_content_like_that_of_another_key_does_not_cross_early(
    world: World, fs: Watching, change: Callable[[bytes], bytes]
) -> None:  # fmt: skip
    """Section 9: what must cross of a copy, or of a dump that has another name each night, is known later."""
    for number in range(3, 6):
        world.write(f"other{number}", content(SIZE + number, number))
    world.write("before", content())
    world.settle()
    fs.crossed = 0
    world.write("k", change(content()))
    world.settle()
    assert fs.crossed <= 90_000 + 2 * BLOCK_MAX
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_files_of_one_size_cross_early_while_they_are_few(
    world: World, fs: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Section 9: a copy of one of many, or of one of which only holes are seen, would not be recognized."""
    monkeypatch.setattr(alike, "NEAR_MAX", 2)
    seen = seen_versions(world, fs)
    for number, key in enumerate(("a", "b", "c")):
        world.write(key, content(SIZE, number))
        world.settle()
    seen.clear()
    fs.crossed = 0
    world.write("k", content(SIZE, 9))
    world.settle()
    assert (set(seen), fs.crossed) == ({1}, SIZE)
    monkeypatch.setattr(alike, "NEAR_MAX", 3)
    world.write("copy", content(SIZE, 1))
    world.settle()
    assert crossed(world, "copy") == 0
    seen.clear()
    world.remove("k")
    world.write("new", content(SIZE - 9, 10))
    fs.then = lambda: seen.append(len(world.of("new")))
    world.settle()
    assert set(seen) == {0}
    for name in ("sparse", "its copy"):
        with world.path(name).open("wb") as file:
            file.truncate(32 << 20)
            file.seek(2 << 20)
            file.write(content(PART))
        world.settle()
    assert crossed(world, "its copy") == 0
    assert world.tree(DESTINATION) == world.tree(SOURCE)


@pytest.mark.parametrize("received", [2, SIZE // PART])
def test_what_the_destination_has_is_used_where_that_is_more(
    world: World, fs: Watching, monkeypatch: pytest.MonkeyPatch, received: int
) -> None:
    """Section 9: content that came there meanwhile, or was not recognized: the delivery goes on with whatever leaves
    less to be sent."""
    world.write("before", content())
    world.settle()
    monkeypatch.setattr(Alike, "are_there", lambda *_: False)
    fs.crossed = 0

    def stop() -> None:
        if fs.crossed == (received - 1) * PART:
            for copy in world.state(DESTINATION).replicas.early.values():
                copy.stop()

    fs.then = stop
    world.write("k", content() + content(50_000, 2))
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert fs.crossed == crossed(world, "k")
    assert received * PART <= fs.crossed <= received * PART + 50_000 + 2 * BLOCK_MAX


def test_samples_from_within_tell_contents_that_share_blocks(world: World, fs: Watching) -> None:
    """Section 9: those of a shifted content, but not those of another one."""
    world.write("before", content())
    world.settle()
    with world.state(DESTINATION).bucket.open() as bucket:
        found = Alike()
        for data, is_like in ((content(9_999, 2) + content(), True), (content(SIZE, 3), False), (bytes(SIZE), False)):
            sample = alike.sample_within(lambda at, count, data=data: data[at : at + count], len(data))  # type: ignore[misc]
            assert found.are_there(bucket, sample, len(data)) is is_like


# -- interrupted


def test_killed_at_half_the_rest_is_little_more_than_half(world: World) -> None:
    """G7, section 9: of a file that crossed to 50 % when it was captured, at most 55 % crosses afterwards; what a crash
    left is not believed."""
    size = 40 << 20
    world.restart(fs=DiesInTheMiddle("copy", size // PART // 2))
    world.write("k", content(size))
    with pytest.raises(PowerCut):
        world.settle()
    assert world.of("k") == []
    with left(world).open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    world.restart()
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == content(size)
    assert 0 < crossed(world, "k") <= size * 0.55
    assert world.leftovers(DESTINATION) == []


def test_what_another_one_is_at_is_left_to_it(world: World) -> None:
    """G2: a draft goes on with what a crash left, and not with what is being received now."""
    with world.state(DESTINATION).bucket.open() as bucket:
        name = staging.early_name(b"k")
        fd = bucket.fs.create(bucket.tmp, name)
        assert bucket.fs.lock(fd)
        staging.go_on_with(bucket, name, b"large.0")
        assert staging.is_there(bucket, name)
        bucket.fs.close(fd)
        staging.go_on_with(bucket, name, b"large.0")
        assert staging.is_there(bucket, b"large.0")
        bucket.fs.close(bucket.fs.create(bucket.tmp, name))
        staging.go_on_with(bucket, name, b"large.0")
        assert staging.is_there(bucket, name)


def test_without_a_delivery_what_crossed_is_removed(
    world: World, fs: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: a version that the rules send nowhere any more leaves nothing in the destination."""
    monkeypatch.setattr(early, "_KEPT_S", 0.0)
    fs.then = lambda: world.path(".fsrepl/replication.json").unlink(missing_ok=True)
    world.write("k", content())
    world.settle()
    assert fs.crossed == SIZE
    assert world.tree(DESTINATION) == {}
    assert world.leftovers(DESTINATION) == []
    assert open_staged(world) == []


# -- the parts


def test_a_received_file_leaves_the_page_cache(
    world: World, fs: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Section 9: as it gets to the disk, like any large replica."""
    monkeypatch.setattr(large_draft, "_LEAVES_CACHE_BYTES", SIZE)
    monkeypatch.setattr(read_back, "_LEFT_BYTES", PART)
    monkeypatch.setattr(read_back, "_WRITTEN_BYTES", PART)
    monkeypatch.setattr(read_back, "_FOLLOWS_BYTES", PART)
    dropped: list[tuple[int, int]] = []
    real = fs.drop_cache

    def drop_cache(fd: int, at: int = 0, size: int = 0) -> None:
        if "/dst/.fsrepl/tmp/early" in os.readlink(f"/proc/self/fd/{fd}"):
            dropped.append((len(world.of("k")), size))
        real(fd, at, size)

    def wait() -> None:
        for copy in world.state(DESTINATION).replicas.early.values():
            if (back := copy._read_back) is not None:
                waiting.until(lambda back=back, at=copy._done: back.position + 6 * PART >= at, "it is read back")  # type: ignore[misc]

    fs.drop_cache = drop_cache  # type: ignore[method-assign]
    fs.then = wait
    world.write("k", content())
    world.settle()
    assert max(size for versions, size in dropped if versions == 0) > SIZE // 4
    assert world.tree(DESTINATION) == world.tree(SOURCE)


@pytest.mark.parametrize("at", [0, 1, 64 << 10, 500_001, SIZE - 1, SIZE, SIZE + 1])
def test_the_rest_of_a_content_begins_where_the_first_part_ends(at: int) -> None:
    """Section 9: no byte twice, none left out."""
    cutter = blockmap.Cutter(64 << 10)
    cutter.data(content(SIZE // 2))
    cutter.hole(SIZE // 4)
    cutter.data(content(SIZE // 4, 2))
    blocks = cutter.map(b"0" * 32)
    found = rest(blocks, at)
    whole = plan(blocks, None)
    for some, every in ((found.missing, whole.missing), (found.holes, whole.holes)):
        assert some == [Span(max(s.at, at), s.end - max(s.at, at)) for s in every if s.end > at]
    assert found.kept == found.moved == []
