"""Large files that share all their blocks with a stored version are not read: renamed ones, and reflink copies."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from fsrepl.model import digests
from fsrepl.model.version import Status
from fsrepl.storage import blocks, hashing
from fsrepl.storage.fs import Fs
from tests import mounts
from tests.replicate.test_large import set_up
from tests.stored import stored
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World

SIZE = 4 << 20


def content(seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(SIZE)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """On a filesystem with reflinks; nothing is synced but by the calls that need it."""
    with mounts.btrfs(tmp_path) as at, World(at / "world", fs=Fs()) as made:
        set_up(made)
        made.restart(fs=Fs())
        yield made


def reads(world: World, monkeypatch: pytest.MonkeyPatch) -> int:
    """Settle; the bytes of large files that were hashed in the source."""
    real, found = hashing.content, 0

    def counted(fs: Fs, fd: int, **more: object) -> hashing.Hashed:
        nonlocal found
        hashed = real(fs, fd, **more)  # type: ignore[arg-type]
        found += hashed.size if "/src/" in os.readlink(f"/proc/self/fd/{fd}") else 0
        return hashed

    with monkeypatch.context() as patch:
        patch.setattr(hashing, "content", counted)
        world.settle()
    return found


@mounts.only_root
def test_what_is_renamed_or_cloned_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: a rename is a new key and a marker, made from what is stored; the replica is verified all the same."""
    data = content()[:-100]  # ends within a block
    world.write("k", data)
    assert reads(world, monkeypatch) == len(data)
    world.path("k").rename(world.path("renamed"))
    assert reads(world, monkeypatch) == 0
    subprocess.run(["cp", "--reflink=always", world.path("renamed"), world.path("cloned")], check=True)
    assert reads(world, monkeypatch) == 0
    assert world.tree(DESTINATION) == world.tree(SOURCE) == {"renamed": data, "cloned": data}
    assert world.current("cloned").digest == world.of("k")[-1].digest
    assert stored(world, "cloned").read_bytes() == data


@mounts.only_root
def test_what_differs_in_a_page_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G2: a clone that was written to since, and another file of the same size, have content of their own."""
    world.write("k", content())
    world.settle()
    subprocess.run(["cp", "--reflink=always", world.path("k"), world.path("changed")], check=True)
    with world.path("changed").open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"x")
    assert reads(world, monkeypatch) == SIZE
    world.write("other", content(2))
    assert reads(world, monkeypatch) == SIZE
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert len({version.digest for (version,) in world.history(SOURCE).values()}) == 3


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "appended": lambda data: data + content(2)[:100_000],
    "a page changed": lambda data: data[: SIZE // 2] + content(2)[:4096] + data[SIZE // 2 + 4096 :],
    "cut short": lambda data: data[: SIZE // 2 + 5],
}


@mounts.only_root
def test_of_an_update_only_what_changed_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: what lies on the disk where the version before has it is in the blocks that its map says. All of it is
    hashed for the version's BLAKE3, and the new map is as one made without the other."""
    for name, change in EDITS.items():
        before = content()[: SIZE - 1000]
        world.write("k", before)
        world.settle()
        after = change(before)
        with world.path("k").open("r+b") as file:  # in place, so that the rest stays where it is
            for at in range(0, len(after), 4096):
                if after[at : at + 4096] != before[at : at + 4096]:
                    file.seek(at)
                    file.write(after[at : at + 4096])
            file.truncate(len(after))
        cut = 0

        def of(data: memoryview, real: Any = digests.of) -> bytes:
            nonlocal cut
            cut += len(data) if isinstance(data, memoryview) else 0
            return bytes(real(data))

        with monkeypatch.context() as patch:
            patch.setattr(digests, "of", of)
            world.state().captures.copy_again_at_s.clear()
            world.settle()
        assert world.tree(DESTINATION) == {"k": after}, name
        version = world.current("k")
        assert cut <= 100_000 + 3 * (256 << 10), name
        with stored(world, "k").open("rb") as file:
            made = hashing.content(Fs(), file.fileno(), blocks=True).blocks
        with world.engine.site.bucket(SOURCE).open() as bucket:
            assert blocks.read(bucket, version.digest) == made, name
        assert verify(world) == []


@mounts.only_root
def test_a_map_that_is_wrong_delivers_nothing_wrong(world: World) -> None:
    """G3: what is not cut again is as right as the map before; the BLAKE3 of the whole does not depend on that."""
    world.write("k", content())
    world.settle()
    with world.engine.site.bucket(SOURCE).open() as bucket:
        found = blocks.read(bucket, world.current("k").digest)
        assert found is not None
        blocks.write(bucket, structs.replace(found, packed=found.packed.replace(list(found)[3].digest, b"\1" * 32)))
    with world.path("k").open("ab") as file:
        file.write(b"more")
    world.state().captures.copy_again_at_s.clear()
    world.settle()
    assert world.tree(DESTINATION) == {"k": content() + b"more"}
    assert world.current("k").status is Status.COMPLETED
    assert verify(world) == []


@mounts.only_root
def test_a_view_that_is_the_stored_file_is_no_witness(world: World) -> None:
    """Section 7: a write into such a view is noticed, although it shares all its blocks with the stored file."""
    world.set_sharing(east="link")
    world.write("k", content())
    world.settle()
    assert stored(world, "k").samefile(world.path("k"))
    with world.path("k").open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"x" * 5000)
    for _ in range(3):  # the stored file is set free, and the file captured, which was copied a moment ago
        world.settle()
        world.state().captures.copy_again_at_s.clear()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.path("k", DESTINATION).read_bytes()[SIZE // 2 :].startswith(b"x" * 5000)


class Noting(Fs):
    """Notes which files are read and sent. first: called at the first read of a view, or before the first is sent."""

    def __init__(self, first: Callable[[], None] | None = None) -> None:
        self.read, self.sent, self._first = set[str](), set[str](), first

    def _note(self, fd: int, where: set[str]) -> None:
        where.add("/".join(os.readlink(f"/proc/self/fd/{fd}").rpartition("/world/")[2].split("/")[:3]))
        first, self._first = self._first, None
        if first is not None:
            first()

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        count = super().read_into(fd, buffer, at)
        if "/src/" in os.readlink(f"/proc/self/fd/{fd}"):
            self._note(fd, self.read)
        return count

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        self._note(from_fd, self.sent)
        return super().copy(from_fd, to_fd, at, count)


@mounts.only_root
def test_a_clone_is_read_from_the_view_that_is_in_memory(world: World) -> None:
    """Section 7: what was just written is not read from the disk again, neither to hash it nor to send it."""
    fs = Noting()
    world.restart(fs=fs)
    world.write("k", content())
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert fs.read == fs.sent == {"east/src/k"}


@mounts.only_root
@pytest.mark.parametrize("when", ["captured", "sent"])
def test_a_view_that_changes_while_it_is_read_is_no_source(world: World, when: str) -> None:
    """G2, G5: the version is the clone, whole, whatever happens to the view meanwhile; the change is the next one."""

    def change() -> None:
        with world.path("k").open("r+b") as file:
            file.write(b"x" * 5000)
            file.seek(SIZE - 5000)
            file.write(b"x" * 5000)

    world.write("k", content())
    if when == "sent":
        world.capture(SOURCE)
        world.region(SOURCE).turn()
    fs = Noting(first=change)
    world.restart(fs=fs)
    world.settle()
    assert "east/src/k" in (fs.sent if when == "sent" else fs.read)
    world.state().captures.copy_again_at_s.clear()  # a large file waits after it was copied
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    for version in world.of("k"):
        data = Path(f"{world.path('.fsrepl/versions/k')};{version.id}").read_bytes()
        assert version.digest == digests.of(data)
        assert data[:5000] == content()[:5000] or data[:5000] == data[-5000:] == b"x" * 5000
    assert [v.digest for v in world.of("k")] == [v.digest for v in world.of("k", DESTINATION)]
    assert verify(world) == []


@mounts.only_root
def test_extents_of_what_is_not_written_are_not_compared(tmp_path: Path) -> None:
    """G2: reserved space of two files may be equal nowhere."""
    fs = Fs()
    with mounts.ext4(tmp_path) as at:
        with (at / "k").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
            with pytest.raises(OSError, match="not supported"):
                list(fs.extents(file.fileno()))
        with (at / "written").open("w+b") as file:
            file.write(content())
            file.flush()
            found = list(fs.extents(file.fileno()))
            assert sum(size for _, _, size in found) == SIZE
            assert found[0][0] == 0


@mounts.only_root
def test_what_is_reserved_beyond_the_end_of_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    """Section 7: xfs reserves more for a file that grows, a clone none of it; that is still read from memory."""
    fs = Fs()
    with mounts.ext4(tmp_path) as at, (at / "k").open("w+b") as file:
        file.write(content()[:-100])
        file.flush()
        before = list(fs.extents(file.fileno()))
        assert fs.reserve(file.fileno(), SIZE, SIZE)
        assert list(fs.extents(file.fileno())) == before
