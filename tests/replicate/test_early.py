"""Early copies: while an update of a large file is captured, its destinations copy the version that they have."""

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
from fsrepl.model.version import Status
from fsrepl.region.bucket_state import Phase
from fsrepl.region.expected import Expected
from fsrepl.region.mailbox import Expect, ExpectNoMore
from fsrepl.replicate import early
from fsrepl.storage import copying, early_copy, hashing, sharing
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.fs import Fs
from tests.doubles import UnsyncedFs
from tests.replicate.test_large import SIZE, content, crossed, in_pages, set_up
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one MiB on a file is worth an early copy, and it is made in parts of a quarter of a MiB."""
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 20)
    monkeypatch.setattr(early_copy, "_PART_BYTES", 256 << 10)
    monkeypatch.setattr(copying, "_STARTED_BYTES", 256 << 10)
    monkeypatch.setattr(hashing, "BUFFER_BYTES", 256 << 10)


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory) as made:
        set_up(made)
        yield made


class Watching(UnsyncedFs):
    """Notes what is copied from stored files of the destination, and calls `then` before each part of it, and `during`
    before each part of a capture."""

    def __init__(self) -> None:
        self.copied = 0
        self.then: Callable[[], None] = lambda: None
        self.during: Callable[[], None] = lambda: None

    def copy_within(
        self, from_fd: int, to_fd: int, from_at: int, to_at: int, count: int, *, share: bool = True
    ) -> int:  # fmt: skip
        place = os.readlink(f"/proc/self/fd/{from_fd}")
        if "/dst/.fsrepl/versions/" in place:
            self.then()
        done = super().copy_within(from_fd, to_fd, from_at, to_at, count, share=share)
        self.copied += done if "/dst/.fsrepl/versions/" in place else 0
        return done

    def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
        if "/src/.fsrepl/tmp/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.during()
        super().write_at(fd, data, at)


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
def test_the_version_before_is_copied_while_the_update_is_captured(
    world: World, change: Callable[[bytes], bytes]
) -> None:  # fmt: skip
    """Section 9: before there is a new version; and once, by the early copy or by the delivery."""
    before = content(SIZE - (1 << 18)) + bytes(1 << 18)
    fs = prepared(world, before)
    seen: list[tuple[int, list[object]]] = []
    fs.then = lambda: seen.append((len(world.of("k")), [t.describe(0.0) for t in world.engine.transfers]))
    world.write("k", change(before))
    world.settle()
    assert {number for number, _ in seen} == {1}
    said: Any = seen[-1][1][0]
    assert (said["source"], said["destination"], said["what"]) == (SOURCE, DESTINATION, "preparing")
    assert (said["key"], said["bytes_crossed"], said["bytes_total"]) == ("k", 0, SIZE)
    assert 0 < said["bytes_done"] < SIZE
    assert world.engine.transfers == []
    assert fs.copied <= SIZE
    assert world.tree(DESTINATION) == {"k": change(before)}
    assert crossed(world, "k") <= 100_000 + (1 << 18) + 11 * 4096
    assert world.current("k").status is Status.COMPLETED
    assert world.leftovers(DESTINATION) == []
    assert open_staged() == []
    world.stays_quiet()


def test_a_delivery_takes_over_what_was_copied_so_far(world: World) -> None:
    """Section 9: the early copy ends when the delivery begins, which copies the rest: nothing twice."""
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
    assert fs.copied == SIZE
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "k") <= 11 * 4096


def changed_at(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place : place + 4096] = content(4096, place)
    return bytes(changed)


def test_an_early_copy_is_used_though_an_older_version_has_some_blocks_more(world: World) -> None:
    """What was copied is not copied again from another version, for the sake of a few pages."""
    oldest, middle = content(), changed_at(content(), 1 << 20)
    fs = prepared(world, oldest)
    world.write("k", middle)
    world.settle()
    assert (fs.copied, crossed(world, "k")) == (SIZE, 4096)
    fs.copied = 0
    world.write("k", newest := changed_at(oldest, 2 << 20))
    world.settle()
    assert (fs.copied, crossed(world, "k")) == (SIZE, 2 * 4096)
    assert world.tree(DESTINATION) == {"k": newest}


def test_an_early_copy_is_not_used_where_an_older_version_has_all_of_it(world: World) -> None:
    fs = prepared(world, content())
    world.write("k", changed_at(content(), 1 << 20))
    world.settle()
    world.write("k", content())
    world.settle()
    assert crossed(world, "k") == 0
    assert fs.copied > 2 * SIZE
    assert world.tree(DESTINATION) == {"k": content()}


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


def test_a_capture_that_comes_to_nothing_leaves_nothing(world: World) -> None:
    """G2: a file that changed while it was captured: the early copy is removed, and the next time there is none."""
    fs = prepared(world, content())
    after, changed = in_pages(content()), in_pages(content(seed=2))

    def write() -> None:
        fs.during = lambda: None
        with world.path("k").open("r+b") as file:
            file.write(changed[:4096])

    fs.during = write
    world.write("k", after)
    world.look()
    world.engine.run_until_idle()
    assert fs.copied == SIZE
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


@pytest.mark.parametrize("new", [content(SIZE, 5), content(SIZE // 3), b"small"])
def test_a_file_with_other_content_is_not_announced(world: World, new: bytes) -> None:
    """Section 9: where little of the version before is in the new one, it is not copied in vain."""
    fs = prepared(world, content())
    states: list[int] = []
    fs.during = lambda: states.append(len(world.state(DESTINATION).replicas.early))
    world.write("k", new)
    world.settle()
    assert fs.copied <= len(new)
    assert not any(states)
    assert world.tree(DESTINATION) == {"k": new}


@pytest.mark.parametrize("is_published", [True, False])
def test_a_capture_that_ended_before_its_announcement_was_read_is_not_copied_for(
    world: World, is_published: bool
) -> None:  # fmt: skip
    """Section 9: a busy destination reads both messages at once, and begins nothing; one that reads the first alone
    copies."""
    fs = prepared(world, content())
    (version,) = world.of("k", DESTINATION)
    update, there = Expected(SOURCE, b"k", version.digest, (DESTINATION,)), world.region(DESTINATION)
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


def test_with_reflinks_there_is_no_early_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: a clone takes no time."""
    fs = prepared(world, content())
    monkeypatch.setattr(sharing, "can_reflink", lambda _: True)
    seen: list[int] = []
    fs.then = lambda: seen.append(len(world.of("k")))
    world.write("k", in_pages(content()))
    world.settle()
    assert 1 not in seen
    assert world.tree(DESTINATION) == world.tree(SOURCE)


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
    world.write("k", content())
    world.settle()
    (version,) = world.of("k", DESTINATION)
    copies, may_go_on = threading.Event(), threading.Event()

    class Slow(Fs):
        def copy_within(self, *args: int, share: bool = True) -> int:
            copies.set()
            assert may_go_on.wait(20)
            return super().copy_within(*args, share=share)

    copy = EarlyCopy(b"k", version.id)
    with world.state(DESTINATION).bucket.open() as bucket:
        bucket.fs = Slow()
        maker = threading.Thread(target=copy.make, args=(bucket, version, lambda _: None))
        maker.start()
        assert copies.wait(20)
        copy.stop()
        may_go_on.set()
        fd, done, _ = copy.take_over(bucket, b"large.0")
        maker.join()
        assert done == 256 << 10
        assert os.pread(fd, SIZE, 0) == content()[:done]
        copy.remove(bucket)  # it is not its any more
        assert os.listdir(world.path(".fsrepl/tmp", DESTINATION)).count("large.0") == 1
        os.close(fd)
        never = EarlyCopy(b"k", version.id)
        assert never.take_over(bucket, b"large.1") == (-1, 0, None)
        never.make(bucket, version, lambda _: None)
        assert not any(name.startswith("large.1") for name in os.listdir(world.path(".fsrepl/tmp", DESTINATION)))


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
