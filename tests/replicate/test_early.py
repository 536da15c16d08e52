"""An update of a large file is put together while it is captured, from the version before and what differs."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl.capture import expect
from fsrepl.model.version import Status
from fsrepl.region.bucket_state import BucketState, Phase
from fsrepl.region.expected import Expected
from fsrepl.region.mailbox import Expect, ExpectNoMore
from fsrepl.replicate import early
from fsrepl.storage import copying, early_copy, hashing, large_file
from fsrepl.storage.coming_blocks import ComingBlocks
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.fs import Fs
from fsrepl.storage.read_back import ReadBack
from tests import mounts, waiting
from tests.doubles import DyingFs, PowerCut, UnsyncedFs
from tests.replicate.test_large import (
    BLOCK_MAX,
    SIZE,
    content,
    crossed,
    in_pages,
    set_up,
    world_on,
)  # fmt: skip
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one MiB on a file is worth an early copy, and it is made in parts of a quarter of a MiB."""
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 20)
    monkeypatch.setattr(early, "_COPIED_BYTES", 256 << 10)
    monkeypatch.setattr(early_copy, "_PART_BYTES", 256 << 10)
    monkeypatch.setattr(copying, "_STARTED_BYTES", 256 << 10)
    monkeypatch.setattr(hashing, "BUFFER_BYTES", 256 << 10)


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory) as made:
        set_up(made)
        yield made


class Watching(UnsyncedFs):
    """Notes what is copied from stored files of the destination, and what crosses. It calls `then` before each part of
    the first, and before the first and the last part of a capture `at_the_start` and `at_the_end`, once."""

    def __init__(self) -> None:
        self.copied = self.crossed = 0
        self.then: Callable[[], None] = lambda: None
        self.at_the_start: Callable[[], None] = lambda: None
        self.at_the_end: Callable[[], None] = lambda: None

    def copy_within(
        self, from_fd: int, to_fd: int, from_at: int, to_at: int, count: int, *, share: bool = True
    ) -> int:  # fmt: skip
        place = os.readlink(f"/proc/self/fd/{from_fd}")
        if "/dst/.fsrepl/versions/" in place:
            self.then()
        done = super().copy_within(from_fd, to_fd, from_at, to_at, count, share=share)
        self.copied += done if "/dst/.fsrepl/versions/" in place else 0
        return done

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        done = super().copy(from_fd, to_fd, at, count)
        self.crossed += done
        return done

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/src/k"):
            if not at:
                act, self.at_the_start = self.at_the_start, lambda: None
                act()
            if at + len(buffer) >= SIZE:
                act, self.at_the_end = self.at_the_end, lambda: None
                act()
        return super().read_into(fd, buffer, at)


class DiesWhenCrossed(DyingFs):
    """Dies when so many bytes have crossed."""

    def __init__(self, most: int) -> None:
        super().__init__(1 << 60)
        real = self.copy

        def copy(from_fd: int, to_fd: int, at: int, count: int) -> int:
            nonlocal most
            if most <= 0:
                self.calls_left = 0
            done = real(from_fd, to_fd, at, count)
            most -= done
            return done

        self.copy = copy  # type: ignore[method-assign]


@contextlib.contextmanager
def followed_in_a_thread(world: World, fs: Watching, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Early copies are made by a thread of their own, from the moment in which a capture begins to read its file."""
    threads: list[threading.Thread] = []

    def in_background(
        _: object, state: BucketState, file: Expected, early: EarlyCopy, copy: Callable[[], None]
    ) -> None:  # fmt: skip
        state.replicas.early[file.source, file.key] = early
        threads.append(threading.Thread(target=copy))
        threads[-1].start()

    with monkeypatch.context() as patch:
        patch.setattr(early, "_in_background", in_background)
        fs.at_the_start = lambda: world.region(DESTINATION).turn() and None
        yield
        assert threads
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


def prepared(world: World, data: bytes) -> Watching:
    """A file that both sides have, and a new start that watches what is copied."""
    world.write("k", data)
    world.settle()
    fs = Watching()
    world.restart(fs=fs)
    world.settle()
    return fs


def open_staged() -> list[str]:
    """The open files in the destination's .fsrepl/tmp."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [place for place in found if "/dst/.fsrepl/tmp/" in place]


def with_holes(data: bytes) -> bytes:
    """Zeros where there was data, and data where there were zeros, at a few places."""
    changed = bytearray(in_pages(data))
    changed[1 << 20 : 5 << 18] = bytes(1 << 18)
    changed[-4096:] = content(4096, 7)
    return bytes(changed)


@pytest.mark.parametrize("change", [in_pages, with_holes, lambda data: data + content(100_000, 2), lambda d: d[:-9999]])
def test_an_update_is_put_together_before_it_is_a_version(
    world: World, change: Callable[[bytes], bytes]
) -> None:  # fmt: skip
    """Section 9: the version before is copied, and what differs crosses, each byte once; it is seen as a transfer."""
    before = content(SIZE - (1 << 18)) + bytes(1 << 18)
    fs = prepared(world, before)
    seen: list[tuple[int, list[object]]] = []
    fs.then = lambda: seen.append((len(world.of("k")), [t.describe(0.0) for t in world.engine.transfers]))
    world.write("k", change(before))
    world.settle()
    assert {number for number, _ in seen} == {1}
    said: Any = seen[-1][1][0]
    assert (said["source"], said["destination"], said["key"]) == (SOURCE, DESTINATION, "k")
    assert 0 <= said["bytes_done"] < said["bytes_total"] == len(change(before))
    assert world.engine.transfers == []
    assert fs.copied <= SIZE
    assert fs.crossed == crossed(world, "k")
    assert world.tree(DESTINATION) == {"k": change(before)}
    assert crossed(world, "k") <= 100_000 + (1 << 18) + 11 * 4096
    assert world.current("k").status is Status.COMPLETED
    assert world.leftovers(DESTINATION) == []
    assert open_staged() == []
    world.stays_quiet()


def test_a_delivery_takes_over_what_was_copied_so_far(world: World) -> None:
    """Section 9: the early copy ends when the delivery begins, which copies the rest; nothing crosses twice."""
    fs = prepared(world, content())
    parts = 0

    def stop() -> None:
        nonlocal parts
        if (parts := parts + 1) == 5:
            (copy,) = world.state(DESTINATION).replicas.early.values()
            copy.stop()

    fs.then = stop
    world.write("k", in_pages(content()))
    world.settle()
    assert parts > SIZE // (256 << 10)
    assert SIZE <= fs.copied <= SIZE + BLOCK_MAX  # a block that was prepared to be compared, and not compared yet
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert fs.crossed == crossed(world, "k") <= 11 * 4096


def test_nothing_of_an_early_copy_is_believed(world: World) -> None:
    """G3: what was damaged in it meanwhile is noticed, and sent."""
    fs = prepared(world, content())
    tmp = world.path(".fsrepl/tmp", DESTINATION)

    def damage() -> None:
        for path in tmp.iterdir():
            if path.is_file() and path.stat().st_size > 1 << 20:
                with path.open("r+b") as file:
                    file.seek(99_999)
                    file.write(b"rot")

    fs.then = damage
    world.write("k", in_pages(content()))
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == in_pages(content())
    assert crossed(world, "k") <= 13 * 4096


def test_it_is_put_together_while_it_is_captured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: a block crosses as soon as it is cut, before the capture has read the rest of the file."""
    fs = prepared(world, content())
    with followed_in_a_thread(world, fs, monkeypatch):
        fs.at_the_end = lambda: waiting.until(lambda: fs.crossed > 0, "a block has crossed")
        world.write("k", in_pages(content()))
        world.settle()
    assert fs.crossed == crossed(world, "k") <= 11 * 4096
    assert fs.copied <= SIZE + BLOCK_MAX
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.leftovers(DESTINATION) == []
    assert open_staged() == []


def test_a_capture_that_comes_to_nothing_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G2: a file that changed while it was captured: what was put together is removed, and the next time there is
    nothing."""
    fs = prepared(world, content())
    after, changed = in_pages(content()), in_pages(content(seed=2))

    def write() -> None:
        waiting.until(lambda: fs.crossed > 0, "a block has crossed")
        with world.path("k").open("r+b") as file:
            file.write(changed[:4096])

    with followed_in_a_thread(world, fs, monkeypatch):
        fs.at_the_end = write
        world.write("k", after)
        world.look()
        world.engine.run_until_idle()
    assert fs.crossed
    assert world.tree(DESTINATION) == {"k": content()}
    assert world.leftovers(DESTINATION) == []
    assert open_staged() == []
    seen: list[int] = []
    fs.then = lambda: seen.append(len(world.of("k")))
    world.settle()
    assert world.tree(DESTINATION) == {"k": changed[:4096] + after[4096:]}
    assert set(seen) == {2}  # copied by the delivery
    seen.clear()
    world.write("k", after)
    world.settle()
    assert set(seen) == {2}  # and now before the third version is there


def test_what_was_read_before_it_changed_is_sent_as_it_was_captured(world: World) -> None:
    """G2, G3: a block that crossed is other content than the version's, which holds; its base is not to blame."""
    fs = prepared(world, content())
    real = fs.copy

    def copy(from_fd: int, to_fd: int, at: int, count: int) -> int:
        if len(world.of("k")) == 1:
            return os.pwrite(to_fd, bytes(count), at)
        return real(from_fd, to_fd, at, count)

    fs.copy = copy  # type: ignore[method-assign]
    world.write("k", in_pages(content()))
    world.settle()
    assert world.tree(DESTINATION) == {"k": in_pages(content())}
    assert crossed(world, "k") <= 2 * 11 * 4096
    assert not world.region(DESTINATION).states[DESTINATION].damaged


def test_without_a_delivery_an_early_copy_is_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: a version that the rules send nowhere any more leaves nothing in the destination."""
    monkeypatch.setattr(early, "_KEPT_S", 0.0)
    fs = prepared(world, content())
    fs.then = lambda: world.path(".fsrepl/replication.json").unlink(missing_ok=True)
    world.write("k", in_pages(content()))
    world.settle()
    assert fs.copied == SIZE
    assert world.tree(DESTINATION) == {"k": content()}
    assert world.leftovers(DESTINATION) == []
    assert open_staged() == []


@pytest.mark.parametrize(
    ("new", "most"), [(content(SIZE, 5), SIZE), (content(SIZE // 3), 2 * BLOCK_MAX), (b"small", 0)]
)
def test_other_content_is_not_put_together_from_the_version_before(world: World, new: bytes, most: int) -> None:
    """Section 9: where little of that is in the new one, it crosses whole while it is captured; where the samples do
    not tell, it crosses once its blocks are known."""
    fs = prepared(world, content())
    world.write("k", new)
    world.settle()
    assert fs.copied <= len(new)
    assert fs.crossed <= most + len(b"small")
    assert world.tree(DESTINATION) == {"k": new}


@pytest.mark.parametrize("is_published", [True, False])
def test_a_capture_that_ended_before_its_announcement_was_read_is_not_copied_for(
    world: World, is_published: bool
) -> None:  # fmt: skip
    """Section 9: a busy destination reads both messages at once, and begins nothing; one that reads the first alone
    copies."""
    fs = prepared(world, content())
    (version,), (there_now,) = world.of("k"), world.of("k", DESTINATION)
    blocks, there = ComingBlocks(), world.region(DESTINATION)
    with world.state().bucket.open() as bucket:
        fd = bucket.open_view(b"k")
        hashing.content(bucket.fs, fd, blocks=True, coming=blocks)
        bucket.fs.close(fd)
    blocks.end()
    pending = {to: replace(each, status=Status.PENDING) for to, each in version.deliveries.items()}
    update = Expected(SOURCE, replace(version, id="", deliveries=pending), there_now.digest, blocks)
    there.post(Expect(DESTINATION, update))
    there.post(ExpectNoMore(DESTINATION, update, is_published))
    there.turn()
    assert fs.copied == 0
    assert not world.state(DESTINATION).replicas.early
    there.post(Expect(DESTINATION, update))
    there.turn()
    assert fs.copied == SIZE
    there.post(ExpectNoMore(DESTINATION, update, is_published=False))
    there.turn()
    assert not world.state(DESTINATION).replicas.early
    assert open_staged() == []


def test_an_early_copy_leaves_the_space_that_is_the_users(world: World) -> None:
    """G7: below keep_free there is no early copy; the delivery is made as ever."""
    fs = prepared(world, content())
    real = fs.space

    def space(fd: int) -> tuple[int, int]:
        free, total = real(fd)
        return (total // 20, total) if "/dst" in os.readlink(f"/proc/self/fd/{fd}") else (free, total)

    fs.space = space  # type: ignore[method-assign]
    seen: list[int] = []
    fs.then = lambda: seen.append(len(world.of("k")))
    world.write("k", in_pages(content()))
    world.settle()
    assert set(seen) == {2}
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_a_full_disk_ends_an_early_copy(world: World) -> None:
    """G7: what there is of it is removed at once, and the delivery finds out for itself."""
    fs = prepared(world, content())
    parts = 0

    def fill() -> None:
        nonlocal parts
        if (parts := parts + 1) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fs.then = fill
    world.write("k", in_pages(content()))
    world.settle()
    assert parts > 4
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.leftovers(DESTINATION) == []
    assert open_staged() == []


@mounts.only_root
@pytest.mark.parametrize("scattered", [True, False])
def test_with_reflinks_it_is_put_together_in_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scattered: bool
) -> None:  # fmt: skip
    """Section 7, G3: of the version before nothing is copied, and the clone is not read while many parts of it are
    written."""
    monkeypatch.setattr(large_file, "_FOLLOWED_MAX", 4 if scattered else 99)
    monkeypatch.setattr(early, "_CLONED_BYTES", 2 << 20)
    with mounts.btrfs(tmp_path) as at, world_on(at, tmp_path) as world:
        set_up(world)
        fs = prepared(world, content())
        paused: list[int] = []
        real = ReadBack.paused

        def pause(back: ReadBack) -> contextlib.AbstractContextManager[None]:
            paused.append(len(world.of("k")))
            return real(back)

        monkeypatch.setattr(ReadBack, "paused", pause)
        world.write("k", in_pages(content()))
        world.settle()
        assert fs.copied == 0
        assert fs.crossed == crossed(world, "k") == 11 * 4096
        assert paused == ([1, 1] if scattered else [])
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert world.leftovers(DESTINATION) == []


def test_killed_in_the_middle_what_crossed_need_not_cross_again(world: World) -> None:
    """G7, section 9: of an update that crossed to 50 % when it was captured, at most 55 % crosses afterwards."""
    size, changed = 40 << 20, 8 << 20
    world.write("k", content(size))
    world.settle()
    world.restart(fs=DiesWhenCrossed(changed // 2))
    world.write("k", content(changed, 2) + content(size)[changed:])
    with pytest.raises(PowerCut):
        world.settle()
    assert len(world.of("k")) == 1
    world.restart()
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == content(changed, 2) + content(size)[changed:]
    assert 0 < crossed(world, "k") <= changed * 0.55
    assert world.leftovers(DESTINATION) == []


def test_a_bucket_that_goes_away_is_let_go(world: World) -> None:
    """G8: a suspended bucket has no open file, so that its region can be unmounted; its file is swept later."""
    fs = prepared(world, content())

    def suspend() -> None:
        fs.then = lambda: None
        state = world.state(DESTINATION)
        world.region(DESTINATION).suspend(state, Phase.SUSPENDED, "for a test")
        assert open_staged() != []

    fs.then = suspend
    world.write("k", in_pages(content()))
    world.look()
    world.region(SOURCE).turn()
    world.region(SOURCE).turn()
    world.region(DESTINATION).turn()
    assert open_staged() == []
    for _ in range(2):
        world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.leftovers(DESTINATION) == []


def test_an_early_copy_under_way_is_waited_for_a_part_at_most(world: World) -> None:
    """Section 9: a delivery takes over a copy that another thread is at, after the part that is being copied."""
    world.settle()
    world.write("k", content())
    copies, may_go_on = threading.Event(), threading.Event()

    class Slow(Fs):
        def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
            copies.set()
            assert may_go_on.wait(20)
            return super().copy(from_fd, to_fd, at, count)

    copy = EarlyCopy(b"k")
    with world.state(DESTINATION).bucket.open() as bucket, world.path("k").open("rb") as file:
        bucket.fs = Slow()

        def make() -> None:
            with copy.making(bucket, leaves_cache=False):
                copy.file.receive(SIZE)
                at = 0
                while count := copy.copy(file.fileno(), at, SIZE):
                    at += count

        maker = threading.Thread(target=make)
        maker.start()
        assert copies.wait(20)
        copy.stop()
        may_go_on.set()
        taken = copy.take_over(bucket, b"large.0")
        maker.join()
        assert taken is not None
        assert taken.final == 256 << 10
        assert os.pread(taken.fd, SIZE, 0) == content()[: 256 << 10] + bytes(SIZE - (256 << 10))
        copy.remove(bucket)  # it is not its any more
        assert os.listdir(world.path(".fsrepl/tmp", DESTINATION)).count("large.0") == 1
        taken.end_reading()
        os.close(taken.fd)
        never = EarlyCopy(b"k")
        assert never.take_over(bucket, b"large.1") is None
        with never.making(bucket, leaves_cache=False) as is_wanted:
            assert not is_wanted
        assert not any(name.startswith("large.1") for name in os.listdir(world.path(".fsrepl/tmp", DESTINATION)))


def test_a_copy_that_is_stopped_waits_for_no_block(world: World) -> None:
    """G8: its bucket may go away while the file is still being captured."""
    blocks = ComingBlocks()
    copy, found = EarlyCopy(b"k", blocks.wake), []
    waits = threading.Thread(target=lambda: found.extend(blocks.parts(1, copy.is_wanted)))
    waits.start()
    copy.stop()
    waits.join(20)
    assert not waits.is_alive()
    assert found == []


def test_one_file_of_a_bucket_is_announced_at_a_time(world: World) -> None:
    """Section 9: many updates at once do not fill a destination with copies that nothing has been captured for."""
    for number in range(3):
        world.write(f"other{number}", content(seed=number + 3))
    fs = prepared(world, content())
    seen: list[int] = []
    fs.then = lambda: seen.append(len(world.state(DESTINATION).replicas.early))
    for key in ("k", *(f"other{number}" for number in range(3))):
        world.write(key, in_pages(world.path(key).read_bytes()))
    world.settle()
    assert max(seen) == 1
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.leftovers(DESTINATION) == []
