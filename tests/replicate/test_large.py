"""Large objects: of each only what the destination lacks crosses, an interrupted one goes on, and all is verified.

Counted in bytes, never in time.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from fsrepl.capture import expect
from fsrepl.model import blockmap, digests
from fsrepl.model.version import Status
from fsrepl.replicate import large_draft, sending
from fsrepl.settings import reading
from fsrepl.storage import boot, copying, early_copy, hashing, read_back, staging
from fsrepl.storage.fs import Fs
from tests import mounts
from tests.doubles import EACH_CHANGE, DyingFs, FailingFs, Place, PowerCut, UnsyncedFs
from tests.forgetful import ForgetfulFs
from tests.stored import stored
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, worlds

SIZE = 4 << 20
BLOCK_MAX = 256 << 10
LOST: list[dict[str, Any]] = [{}, {"names": False}, {"files": False}, {"region": "east"}, {"region": "west"}]
"""What a power cut loses of what was not synced."""


def content(size: int = SIZE, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def world_on(at: Path, tmp_path: Path) -> World:
    """A site in tmp_path, with both regions on the filesystem that is mounted at a place."""
    return World(tmp_path / "world", regions={"east": at / "east", "west": at / "west"})


def set_up(world: World) -> None:
    """From one MiB on a file is large."""
    world.settings.path.write_text(world.settings.path.read_text() + '[replication]\nlarge_file = "1MiB"\n')
    world.settings = reading.load(world.settings.path)
    world.restart()


@pytest.fixture
def world(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(sending, "_CHUNK", 256 << 10)
    monkeypatch.setattr(copying, "_STARTED_BYTES", 256 << 10)
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 20)
    monkeypatch.setattr(early_copy, "_PART_BYTES", 256 << 10)
    with World(memory) as made:
        set_up(made)
        yield made


def capture(world: World) -> None:
    """Take in what was done in the source, large files included, and deliver nothing of it yet."""
    world.capture(SOURCE)
    world.region(SOURCE).turn()


def crossed(world: World, key: str) -> int:
    """The bytes of a key's current version that crossed, as its record says."""
    found = world.current(key).deliveries[DESTINATION].crossed_bytes
    assert found is not None
    return found


def in_pages(data: bytes) -> bytes:
    """One page in each hundred is other content."""
    changed = bytearray(data)
    for page in range(0, len(data) // 4096, 100):
        changed[page * 4096 : (page + 1) * 4096] = content(4096, page)
    return bytes(changed)


EDITS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "appended": (lambda data: data + content(100_000, 2), 100_000 + 4096),
    "inserted at the front": (lambda data: content(100_000, 2) + data, 100_000 + 2 * BLOCK_MAX),
    "removed at the front": (lambda data: data[777_777:], 2 * BLOCK_MAX),
    "one percent in place": (in_pages, 11 * 4096),
    "cut short": (lambda data: data[: SIZE // 2 + 1], 4096),
    "two halves exchanged": (lambda data: data[SIZE // 2 :] + data[: SIZE // 2], 4 * BLOCK_MAX),
    "zeros in the middle": (lambda data: data[: 1 << 20] + bytes(1 << 20) + data[2 << 20 :], 2 * BLOCK_MAX + (1 << 20)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_update_sends_what_changed(world: World, edit: str) -> None:
    """Section 9: unchanged ranges come from the version that the destination has, wherever they lie in it."""
    change, most = EDITS[edit]
    before = content()
    world.write("k", before)
    world.settle()
    assert crossed(world, "k") == SIZE
    world.write("k", change(before))
    world.settle()
    assert world.tree(DESTINATION) == {"k": change(before)}
    assert crossed(world, "k") <= most
    ((large, sent),) = world.engine.journal.crossed(SOURCE).values()
    assert (large, sent) == (SIZE + len(change(before)), SIZE + crossed(world, "k"))
    assert world.current("k").status is Status.COMPLETED
    world.stays_quiet()


@mounts.only_root
def test_an_update_by_reflinks_sends_what_changed(tmp_path: Path) -> None:
    """Section 9: where the filesystem can, the replica is a clone of the version before, and takes little space."""
    with (
        mounts.btrfs(tmp_path) as at,
        world_on(at, tmp_path) as world,
    ):
        set_up(world)
        before = content()
        for name in ("appended", "inserted at the front", "one percent in place", "cut short"):
            change, most = EDITS[name]
            world.write("k", before)
            world.settle()
            world.write("k", change(before))
            world.settle()
            assert world.tree(DESTINATION) == {"k": change(before)}, name
            assert crossed(world, "k") <= most, name
        with world.path("k").open("wb") as file:  # a hole where the version before has data, and one at the end
            file.write(before[: 1 << 20])
            file.seek(2 << 20)
            file.write(before[2 << 20 : 3 << 20])
            file.truncate(SIZE)
        world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert crossed(world, "k") <= 4 * BLOCK_MAX
        assert world.path("k", DESTINATION).stat().st_blocks * 512 <= 3 << 20
        assert verify(world) == []


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_content_that_is_there_under_any_key_does_not_cross(world: World, how: str) -> None:
    """Section 9: it is taken from the version that the destination has, and verified like any other."""
    world.write("k", content())
    world.settle()
    if how == "renamed":
        world.path("k").rename(world.path("other"))
    else:
        shutil.copy(world.path("k"), world.path("other"))
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "other") == 0


def test_a_file_that_was_renamed_and_edited_sends_what_changed(world: World) -> None:
    """Section 9: blocks come from the content that the destination has the most of it in, whatever its key and size."""
    for number in range(3, 6):
        world.write(f"other{number}", content(SIZE, number))
    world.write("k", content())
    world.settle()
    world.path("k").rename(world.path("renamed"))
    world.write("renamed", content(100_000, 2) + content())
    world.write("dump-2", content()[: SIZE // 2] + content(50_000, 9) + content()[SIZE // 2 :])
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "renamed") <= 100_000 + 2 * BLOCK_MAX
    assert crossed(world, "dump-2") <= 50_000 + 2 * BLOCK_MAX
    world.write("foreign", content(SIZE + 1, 8))
    world.settle()
    assert crossed(world, "foreign") == SIZE + 1
    world.remove("renamed", DESTINATION, world.of("renamed", DESTINATION)[-1].id)  # its map is left
    world.write("again", content(100_000, 2) + content() + b"x")
    world.settle()
    assert world.tree(DESTINATION).pop("again") == content(100_000, 2) + content() + b"x"
    assert crossed(world, "again") <= 100_000 + 4 * BLOCK_MAX


def test_a_file_that_outgrows_its_block_size_sends_what_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Section 9: at 2 GiB, and at each doubling after that, blocks become larger, and share none with those before."""
    monkeypatch.setattr(blockmap, "_BLOCKS_MAX", SIZE // (64 << 10))
    world.write("k", content())
    world.settle()
    for size in (SIZE + 50_000, SIZE * 5 // 2, SIZE - 1):
        before = world.path("k").stat().st_size
        world.write("k", content(size))
        world.settle()
        assert world.path("k", DESTINATION).read_bytes() == content(size)
        assert crossed(world, "k") <= max(0, size - before) + 8 * BLOCK_MAX


def test_without_block_maps_all_is_as_with_them(world: World) -> None:
    """Section 9: a map says what the content says; one that is lost, or damaged, is made again."""
    before = content()
    world.write("k", before)
    world.settle()
    for bucket, harm in ((SOURCE, shutil.rmtree), (DESTINATION, _overwrite)):
        harm(world.path(".fsrepl/blocks", bucket))
    world.write("k", before + b"more")
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "k") <= 4096
    assert [len(list(world.path(".fsrepl/blocks", bucket).iterdir())) for bucket in (SOURCE, DESTINATION)] == [1, 2]


def _overwrite(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))


def test_holes_do_not_cross(world: World) -> None:
    """Section 7: they are neither read nor sent, and take no space in the replica."""
    with world.path("k").open("wb") as file:
        file.write(content(1 << 20))
        file.seek(64 << 20)
        file.write(content(1 << 20, 2))
        file.truncate(128 << 20)
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "k") == 2 << 20
    assert world.path("k", DESTINATION).stat().st_blocks * 512 <= 3 << 20


# -- interrupted


class DiesInTheMiddle(DyingFs):
    """Dies at the nth call of one kind."""

    def __init__(self, call: str, number: int) -> None:
        super().__init__(1 << 60)
        real = getattr(self, call)

        def count(*args: object, **more: object) -> object:
            nonlocal number
            number -= 1
            if number < 0:
                self.calls_left = 0
            return real(*args, **more)

        setattr(self, call, count)


def test_an_interrupted_transfer_goes_on(world: World) -> None:
    """G7: after a kill in the middle of a large object, the next start sends what is missing, and nothing twice."""
    world.write("k", content())
    capture(world)
    world.restart(fs=DiesInTheMiddle("copy", 8))
    with pytest.raises(PowerCut):
        world.settle()
    assert world.tree(DESTINATION) == {}
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "k") <= SIZE // 2 + BLOCK_MAX
    assert world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("size", [4 << 20, 40 << 20])
def test_killed_at_half_the_rest_is_little_more_than_half(world: World, size: int) -> None:
    """Section 9: of a file that was killed at 50 %, at most 55 % crosses afterwards."""
    data = content(size)
    world.write("k", data)
    capture(world)

    fs, sent = DyingFs(1 << 60), 0
    real = fs.copy

    def copy(from_fd: int, to_fd: int, at: int, count: int) -> int:
        nonlocal sent
        if sent >= size // 2:
            fs.calls_left = 0
        copied = real(from_fd, to_fd, at, min(count, size // 2 - sent))
        sent += copied
        return copied

    fs.copy = copy  # type: ignore[method-assign]
    world.restart(fs=fs)
    with pytest.raises(PowerCut):
        world.settle()
    world.restart()
    world.settle()
    assert world.path("k", DESTINATION).read_bytes() == data
    assert size // 2 <= crossed(world, "k") <= size * 0.55


def test_an_interrupted_update_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: what an update lacks comes from the version before, as it would have without the interruption."""
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 40)  # it is the delivery that copies
    world.write("k", content())
    world.settle()
    world.write("k", EDITS["one percent in place"][0](content()))
    capture(world)
    world.restart(fs=DiesInTheMiddle("copy_within", 12))
    with pytest.raises(PowerCut):
        world.settle()
    assert world.tree(DESTINATION) == {"k": content()}
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert crossed(world, "k") <= 11 * 4096
    assert world.leftovers(DESTINATION) == []


def test_what_was_sent_is_read_back_while_the_rest_is_sent(world: World) -> None:
    """G3: reading a large replica back adds little to the time until it is complete."""

    class Waiting(UnsyncedFs):
        is_read = threading.Event()

        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            if "/dst/" in os.readlink(f"/proc/self/fd/{fd}"):
                self.is_read.set()
            return super().read_into(fd, buffer, at)

        def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
            assert at < SIZE * 3 // 4 or self.is_read.wait(20)
            return super().copy(from_fd, to_fd, at, count)

    world.restart(fs=Waiting())
    world.write("k", content())
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_what_a_capture_writes_is_what_it_hashes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G2: the file is read once, since it may be written to through a mapping, which no time tells of. It is written
    while the rest is read."""
    monkeypatch.setattr(hashing, "BUFFER_BYTES", 256 << 10)

    class Waiting(UnsyncedFs):
        has_begun = threading.Event()
        read = 0

        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            assert at < SIZE * 3 // 4 or self.has_begun.wait(20)
            self.read += (count := super().read_into(fd, buffer, at))
            return count

        def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
            assert "/capture." in os.readlink(f"/proc/self/fd/{fd}")
            self.has_begun.set()
            super().write_at(fd, data, at)

    world.restart(fs=(fs := Waiting()))
    world.write("k", content())
    capture(world)
    assert world.current("k").digest == digests.of(content())
    assert fs.read == SIZE


@mounts.only_root
@pytest.mark.parametrize("size", [SIZE, SIZE // 4])
def test_a_large_replica_leaves_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Section 9: what people have there stays, their own large file included. A smaller replica stays, and one that is
    updated."""
    monkeypatch.setattr(sending, "_CHUNK", 256 << 10)
    monkeypatch.setattr(large_draft, "_LEAVES_CACHE_BYTES", SIZE)
    monkeypatch.setattr(read_back, "_LEFT_BYTES", 512 << 10)
    monkeypatch.setattr(read_back, "_WRITTEN_BYTES", 256 << 10)

    class Dropping(Fs):
        def __init__(self) -> None:
            self.parts: list[int] = []

        def drop_cache(self, fd: int, at: int = 0, count: int = 0) -> None:
            self.parts.append(count)
            super().drop_cache(fd, at, count)

    with (
        mounts.ext4(tmp_path) as at,
        world_on(at, tmp_path) as world,
    ):
        set_up(world)
        world.restart(fs=(fs := Dropping()))
        world.write("k", content(size))
        fs.parts.clear()
        world.settle()
        assert world.tree(DESTINATION) == {"k": content(size)}
        leaves = size == SIZE
        assert fs.parts == [*sorted(fs.parts[:-1]), 0] if leaves else not fs.parts
        world.write("new", content(size, 2))
        world.settle()

        def is_cached(bucket: str) -> bool:
            with world.path("new", bucket).open("rb") as file:
                return fs.cached_bytes(file.fileno(), 0, size) >= size

        assert is_cached(SOURCE)
        assert is_cached(DESTINATION) == (not leaves)
        world.write("new", content(size, 2) + b"more")
        world.settle()
        assert world.path("new", DESTINATION).stat().st_size == size + 4
        assert is_cached(DESTINATION)  # without reflinks, a further update would be copied from this one


@mounts.only_root
def test_an_update_replaces_the_version_before_in_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Section 9: without reflinks it is a whole copy on both sides, for which nothing else has to leave. That of the
    source is in no page cache: its view is."""
    monkeypatch.setattr(copying, "_STARTED_BYTES", 256 << 10)
    monkeypatch.setattr(early_copy, "_REPLACES_CACHED_BYTES", SIZE)
    monkeypatch.setattr(read_back, "_WRITTEN_BYTES", 256 << 10)
    monkeypatch.setattr(large_draft, "_COPIED_BYTES", 128 << 10)
    monkeypatch.setattr(read_back, "_LEFT_BYTES", 512 << 10)
    with (
        mounts.ext4(tmp_path) as at,
        world_on(at, tmp_path) as world,
    ):
        set_up(world)
        world.restart(fs=(fs := Fs()))
        world.write("k", content())
        world.settle()
        monkeypatch.setattr(large_draft, "_LEAVES_CACHE_BYTES", SIZE)
        world.write("k", content() + b"more")
        world.settle()
        world.state().captures.copy_again_at_s.clear()
        world.settle()
        assert world.path("k", DESTINATION).stat().st_size == SIZE + 4
        for bucket in (SOURCE, DESTINATION):
            cached: list[int] = []
            for version in world.of("k", bucket):
                with Path(f"{world.path('.fsrepl/versions/k', bucket)};{version.id}").open("rb") as file:
                    cached.append(fs.cached_bytes(file.fileno(), 0, SIZE))
            before, now = sorted(cached)
            assert before <= SIZE // 2, bucket
            # the kernel may drop some clean pages at any time
            assert now >= SIZE * 3 // 4 if bucket == DESTINATION else now <= SIZE // 2, bucket


@mounts.only_root
def test_a_clone_with_scattered_changes_is_read_back_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """G3: it is read from the disk, and each write would wait for a read."""
    monkeypatch.setattr(large_draft, "_FOLLOWED_MAX", 4)

    class Noting(UnsyncedFs):
        copied_after = read = 0

        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            self.read += "/large." in os.readlink(f"/proc/self/fd/{fd}")
            return super().read_into(fd, buffer, at)

        def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
            self.copied_after += self.read > 0
            return super().copy(from_fd, to_fd, at, count)

    with (
        mounts.btrfs(tmp_path) as at,
        world_on(at, tmp_path) as world,
    ):
        set_up(world)
        world.restart(fs=(fs := Noting()))
        world.write("k", content())
        world.settle()
        fs.read = fs.copied_after = 0
        world.state().captures.copy_again_at_s.clear()
        world.write("k", in_pages(content()))
        world.settle()
        assert world.tree(DESTINATION) == {"k": in_pages(content())}
        assert crossed(world, "k") == 11 * 4096
        assert fs.read
        assert not fs.copied_after


def test_what_is_copied_from_the_version_before_is_read_back_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """G3: to verify an update adds little to the time until it is complete, although little of it is sent."""
    monkeypatch.setattr(large_draft, "_COPIED_BYTES", 256 << 10)
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 40)  # none is copied early, which is read back by the delivery
    in_time: list[bool] = []

    class Waiting(UnsyncedFs):
        is_read = threading.Event()

        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            if "/dst/" in os.readlink(f"/proc/self/fd/{fd}"):
                self.is_read.set()
            return super().read_into(fd, buffer, at)

        def copy_within(self, *args: int, share: bool = True) -> int:
            if "/dst/" in os.readlink(f"/proc/self/fd/{args[1]}") and SIZE * 3 // 4 <= args[3] < SIZE * 7 // 8:
                in_time.append(self.is_read.wait(20))
            return super().copy_within(*args, share=share)

    world.write("k", content())
    world.settle()
    world.write("k", content() + b"more")
    capture(world)
    world.restart(fs=Waiting())
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert in_time
    assert all(in_time)


def test_a_file_that_is_cut_short_during_its_capture_is_captured_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """G2: nothing is made of what was read before, neither then nor, where the file never rests, at last."""

    class Cutting(UnsyncedFs):
        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            if at >= SIZE // 2:
                os.truncate(world.path("k"), SIZE // 4)
            return super().read_into(fd, buffer, at)

    monkeypatch.setattr(hashing, "BUFFER_BYTES", 256 << 10)
    world.restart(fs=Cutting())
    region = world.region()
    region.writer_wait = structs.replace(region.writer_wait, open_quiet_s=-1.0, open_max_s=0.0)
    with world.path("k").open("w+b", buffering=0) as file:
        file.write(content())
        world.settle()
    world.settle()
    for version in world.of("k"):
        data = Path(f"{world.path('.fsrepl/versions/k')};{version.id}").read_bytes()
        assert (data, version.digest) == (content()[: SIZE // 4], digests.of(data))
    assert world.tree(DESTINATION) == {"k": content()[: SIZE // 4]}


def test_nothing_of_an_interrupted_transfer_is_believed(world: World) -> None:
    """G3: what the earlier try left is compared block by block; what power cut or disk made of it is sent again. What
    crossed is that of the try that completed the transfer."""
    world.write("k", content())
    capture(world)
    world.restart(fs=DiesInTheMiddle("copy", 8))
    with pytest.raises(PowerCut):
        world.settle()
    (left,) = world.path(".fsrepl/tmp", DESTINATION).glob("large.*")
    with left.open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert 0 < crossed(world, "k") <= SIZE // 2 + 2 * BLOCK_MAX


def test_an_interrupted_capture_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: what was copied before is compared with the file, and not written again."""
    world.write("k", content(SIZE * 2))
    monkeypatch.setattr(hashing, "BUFFER_BYTES", 256 << 10)
    world.restart(fs=DiesInTheMiddle("write_at", 20))
    with pytest.raises(PowerCut):
        world.settle()
    assert [name.partition(".")[0] for name in world.leftovers(SOURCE)] == ["tmp/capture"]
    fs = Counting()
    world.restart(fs=fs)
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert fs.written <= SIZE * 2 - (4 << 20)
    assert world.leftovers(SOURCE) == []


class Counting(UnsyncedFs):
    """Counts the bytes that are written to copies of large files."""

    written = 0

    def copy_within(self, *args: int, share: bool = True) -> int:
        copied = super().copy_within(*args, share=share)
        self.written += copied
        return copied

    def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
        self.written += len(data)
        super().write_at(fd, data, at)


def test_a_file_that_changed_since_is_captured_as_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G2: what an interrupted capture left is no state of the file, and becomes none."""
    world.write("k", content(SIZE * 2))
    monkeypatch.setattr(hashing, "BUFFER_BYTES", 256 << 10)
    world.restart(fs=DiesInTheMiddle("write_at", 20))
    with pytest.raises(PowerCut):
        world.settle()
    world.write("k", content(SIZE, 2) + bytes(1 << 20))
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == {"k": content(SIZE, 2) + bytes(1 << 20)}
    assert [len(versions) for versions in world.history(SOURCE).values()] == [1]


def test_a_full_disk_is_found_before_anything_is_copied(world: World) -> None:
    """G7: a capture reserves the space for its copy first; it waits, keeps nothing, and is made once there is room."""

    class Full(Counting):
        full = True

        def reserve(self, fd: int, at: int, count: int) -> bool:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().reserve(fd, at, count)

    fs = Full()
    world.restart(fs=fs)
    world.write("k", content())
    world.settle()
    assert world.history(SOURCE) == {}
    assert world.leftovers(SOURCE) == []
    assert fs.written == 0
    fs.full = False
    world.settle()
    assert fs.written == SIZE
    assert world.tree(DESTINATION) == world.tree(SOURCE)


@mounts.only_root
def test_a_file_that_never_rests_is_captured_from_a_reflink(tmp_path: Path) -> None:
    """G2: where the filesystem can, a version of a file that changes during its capture is its state at one moment."""
    with (
        mounts.btrfs(tmp_path) as at,
        world_on(at, tmp_path) as world,
        world.path("image").open("w+b", buffering=0) as file,
    ):
        set_up(world)

        class Restless(UnsyncedFs):
            changes = 0

            def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
                self.changes += 1
                for place in (0, SIZE - 8):
                    file.seek(place)
                    file.write(self.changes.to_bytes(8, "big"))
                return super().read_into(fd, buffer, at)

        file.write(bytes(8) + content(SIZE - 16) + bytes(8))
        fs = Restless()
        world.restart(fs=fs)
        region = world.region()
        region.writer_wait = structs.replace(region.writer_wait, open_quiet_s=-1.0, open_max_s=0.0)
        world.settle()
        assert fs.changes
        version = world.of("image")[0]
        stored_bytes = Path(f"{world.path('.fsrepl/versions/image')};{version.id}").read_bytes()
        assert stored_bytes[:8] == stored_bytes[-8:]
        assert version.taken == "changing"


def test_what_is_no_longer_wanted_is_swept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2: an unfinished copy that nobody went on with for a week is gone after a start."""
    left = world.path(".fsrepl/tmp", DESTINATION) / ("large." + "0" * 32)
    other = world.path(".fsrepl/tmp", DESTINATION) / "1.2"
    for path in (left, other):
        path.write_bytes(b"part")
    world.restart()
    world.settle()
    assert (left.exists(), other.exists()) == (True, False)
    monkeypatch.setattr(staging, "_LASTING_S", -1.0)
    world.restart()
    world.settle()
    assert world.leftovers(DESTINATION) == []


def test_a_full_disk_is_found_before_anything_is_sent(world: World) -> None:
    """G7: the delivery waits, takes no space meanwhile, and is made once there is room."""
    world.write("k", content())
    capture(world)
    fs = FullFs()
    world.restart(fs=fs)
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert world.current("k").status is Status.PENDING
    assert world.leftovers(DESTINATION) == []
    assert fs.copied == 0
    fs.full = False
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)


class FullFs(UnsyncedFs):
    """Nothing more can be reserved while the disk is full."""

    full, copied = True, 0

    def reserve(self, fd: int, at: int, count: int) -> bool:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().reserve(fd, at, count)

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        self.copied += not self.full
        return super().copy(from_fd, to_fd, at, count)


# -- the version that is built upon


def test_a_damaged_block_is_not_built_upon(world: World) -> None:
    """G3: a version that rotted in the destination: the block is sent, and that version mended."""
    world.set_sharing(west="private")
    before = content()
    world.write("k", before)
    world.settle()
    rotten = stored(world, "k", DESTINATION)
    with rotten.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"rot")
    world.write("k", before + b"more")
    world.settle()
    assert world.tree(DESTINATION) == {"k": before + b"more"}
    assert crossed(world, "k") <= 2 * 4096
    assert stored(world, "k", DESTINATION).read_bytes() == before + b"more"
    assert rotten.read_bytes() == before


def test_a_version_that_vanishes_while_it_is_built_upon(world: World) -> None:
    """G7: an older version that lifecycle or a person removes meanwhile breaks no delivery of a newer one."""
    before = content()
    world.write("k", before)
    world.settle()
    base = stored(world, "k", DESTINATION)
    world.write("k", content(1 << 20, 3))
    world.settle()

    class Removing(UnsyncedFs):
        def copy_within(self, *args: int, share: bool = True) -> int:
            base.unlink(missing_ok=True)
            return super().copy_within(*args, share=share)

    world.write("k", content(100_000, 2) + before)
    capture(world)
    world.restart(fs=Removing())
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert not base.exists()


@pytest.mark.parametrize("edit", ["one percent in place", "inserted at the front"])
def test_a_version_that_cannot_be_read_is_not_waited_for(world: World, edit: str) -> None:
    """G7: a bad sector in the version that is built upon: those blocks are sent, and the delivery is made."""

    class BadSector(UnsyncedFs):
        def copy_within(self, *args: int, share: bool = True) -> int:
            if "/dst/" in os.readlink(f"/proc/self/fd/{args[0]}"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().copy_within(*args, share=share)

    world.write("k", content())
    world.settle()
    world.write("k", EDITS[edit][0](content()))
    capture(world)
    world.restart(fs=BadSector())
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.current("k").status is Status.COMPLETED


def test_a_source_that_rotted_is_not_delivered(world: World) -> None:
    """Section 5: FAILED, and nothing of it is left in the destination."""
    world.write("k", content())
    capture(world)
    with stored(world, "k").open("r+b") as file:
        file.write(b"rot")
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert world.current("k").deliveries[DESTINATION].reason == "SrcObjectNotEligible"
    assert world.leftovers(DESTINATION) == []


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, errno.EIO])
def test_a_cut_or_a_fault_at_every_step_of_a_delta(
    memory: Path, error: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2, G4, G7: the old version or the new one, whole, at last the new one; a cut loses what was not synced.

    And again where the version before is copied during the capture, which makes most changes at the same places.
    """
    boots = map(str, itertools.count())
    monkeypatch.setattr(boot, "boot_id", lambda: next(boots))
    before = content(5 << 18)
    places = _stop_at_every_step(memory / "late", error, before, content(50_000, 2) + before)
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 20)
    but = set() if EACH_CHANGE else places
    own = _stop_at_every_step(memory / "early", error, before, in_pages(before), but)
    assert {line for place in own for line in place if line.startswith("storage/early_copy.py")}


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, errno.EIO, errno.ENOSPC])
def test_a_cut_or_a_fault_at_every_step_of_a_new_file(
    memory: Path, error: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2, G3, G7: none or the whole file, which crosses while it is captured; a cut loses what was not synced."""
    boots = map(str, itertools.count())
    monkeypatch.setattr(boot, "boot_id", lambda: next(boots))
    monkeypatch.setattr(expect, "_WORTH_BYTES", 1 << 20)
    monkeypatch.setattr(early_copy, "_PART_BYTES", 256 << 10)
    places = _stop_at_every_step(memory, error, None, content(5 << 18))
    assert {line for place in places for line in place if line.startswith("storage/early_copy.py")}


def _stop_at_every_step(
    home: Path, error: int | None, before: bytes | None, after: bytes, but: Container[Place] = ()
) -> set[Place]:
    """Deliver an update again and again, each time with a cut, or the error, at a later step; at which places. but:
    those of no concern."""
    home.mkdir(exist_ok=True)
    places: set[Place] = set()
    for calls, world in worlds(home):
        set_up(world)
        if before is not None:
            world.write("k", before)
            world.settle()
        world.write("k", after)
        disk = ForgetfulFs(world.home / "attic")
        fs = DyingFs(calls, disk, but=but) if error is None else FailingFs(calls, error, but=but)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
        if isinstance(fs, FailingFs):
            fs.mend()
            for _ in range(2):
                world.settle()  # what a fault put off waits for a next try
            assert world.tree(DESTINATION) == {"k": after}, f"step {calls}, {fs.failed_in}"
        else:
            disk.forget(**LOST[calls % len(LOST)])
        assert world.tree(DESTINATION).get("k") in (before, after), f"step {calls}"
        world.restart()
        world.settle()
        assert world.tree(DESTINATION) == {"k": after}, f"step {calls}"
        assert world.leftovers(DESTINATION) == [], f"step {calls}"
        assert world.current("k").status is Status.COMPLETED, f"step {calls}"
        assert verify(world) == [], f"step {calls}"
        if not (fs.failed if isinstance(fs, FailingFs) else fs.died):
            break
        places.add(fs.place)
    return places
