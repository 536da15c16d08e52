"""Content on its way to a destination of any kind: it arrives complete and verified, or nothing of it is staged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.errors import Failed, Unavailable
from fsrepl.model import digests
from fsrepl.model.version import Version
from fsrepl.region.limits import Progress
from fsrepl.replicate import transfer
from fsrepl.replicate.destination import Destination, Draft, LocalTree, StagedReplica
from fsrepl.replicate.sending import Sending
from fsrepl.storage import versions
from tests.stored import stored
from tests.world import SOURCE, World


@dataclass
class Memory:
    """A destination without a filesystem. bits: a function that changes content as a faulty storage does."""

    address: str = "cloud/archive"
    bits: Callable[[bytes], bytes] = bytes
    drafts: list[bytearray] = field(default_factory=list)
    staged: dict[str, tuple[Version, bytes]] = field(default_factory=dict)
    stored: dict[tuple[bytes, str], tuple[Version, bytes]] = field(default_factory=dict)

    def has(self, key: bytes, version_id: str) -> bool:
        return (key, version_id) in self.stored

    def read(self, key: bytes, version_id: str, *, marker: bool | None = None) -> Version | None:
        return self.stored[key, version_id][0] if self.has(key, version_id) else None

    def is_whole(self, version: Version) -> bool:
        return digests.of(self.stored[version.key, version.id][1]) == version.digest

    @contextlib.contextmanager
    def draft(self, replica: Version) -> Iterator[Draft]:
        self.drafts.append(content := bytearray())
        try:
            yield _Content(self, replica, content)
        finally:
            self.drafts.remove(content)

    def stage_marker(self, replica: Version) -> StagedReplica:
        return self.keep(replica, b"")

    def keep(self, replica: Version, content: bytes) -> StagedReplica:
        self.staged[replica.id] = replica, content
        return StagedReplica(versions.Staged(replica, replica.id.encode(), sidecar=False))

    def publish(self, staged: StagedReplica) -> None:
        version = staged.stored.version
        self.stored[version.key, version.id] = self.staged.pop(version.id)

    def discard(self, staged: StagedReplica) -> None:
        self.staged.pop(staged.stored.version.id, None)


@dataclass
class _Content:
    memory: Memory
    replica: Version
    content: bytearray

    def write(self, data: bytes) -> None:
        self.content += self.memory.bits(data)

    def copy(self, fd: int, at: int, count: int) -> int:
        self.end_at(at)
        self.write(data := os.pread(fd, count, at))
        return len(data)

    def end_at(self, size: int) -> None:
        self.content += bytes(size - len(self.content))

    def is_whole(self, told: Callable[[int], None] | None = None) -> bool:
        return digests.of(bytes(self.content)) == self.replica.digest

    def stage(self) -> StagedReplica:
        return self.memory.keep(self.replica, bytes(self.content))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False) as made:
        yield made


def stage(world: World, to: Destination, key: str, progress: Progress | None = None) -> StagedReplica:
    (version,) = world.of(key)
    with world.engine.site.bucket(SOURCE).open() as source:
        return transfer.stage(
            Sending(world.engine, source), to, version, replace(version, source=SOURCE), progress=progress
        )


@pytest.mark.parametrize("hole", ["none", "first", "last"])
def test_content_arrives_whole(world: World, hole: str) -> None:
    """G3: whatever holes the file has, and visible only once it is published."""
    with world.path("k").open("wb") as file:
        if hole == "first":
            file.seek(1 << 20)
        file.write(b"data")
        if hole == "last":
            file.truncate(1 << 20)
    world.settle()
    memory = Memory()
    staged = stage(world, memory, "k")
    assert not memory.has(b"k", staged.stored.version.id)
    memory.publish(staged)
    assert memory.stored[b"k", staged.stored.version.id][1] == world.path("k").read_bytes()
    assert memory.is_whole(staged.stored.version)


def test_a_marker_is_staged_without_content(world: World) -> None:
    """G2: it has none."""
    world.write("k", b"data")
    world.settle()
    world.remove("k")
    marker = world.of("k")[0]
    memory = Memory()
    with world.engine.site.bucket(SOURCE).open() as source:
        memory.publish(transfer.stage(Sending(world.engine, source), memory, marker, marker))
    assert list(memory.stored) == [(b"k", marker.id)]


def test_a_copy_that_went_wrong_is_never_staged(world: World) -> None:
    """G3: the destination's copy is read back, and made again."""
    world.write("k", b"data")
    world.settle()
    memory = Memory(bits=lambda data: bytes(255 - byte for byte in data))
    with pytest.raises(Unavailable, match="does not match the source; it is made again"):
        stage(world, memory, "k")
    assert (memory.staged, memory.drafts) == ({}, [])


def test_a_damaged_version_is_told_from_a_copy_that_went_wrong(world: World) -> None:
    """G3: a damaged version is not tried for ever."""
    world.write("k", b"data")
    world.settle()
    with stored(world, "k").open("r+b") as file:
        file.write(b"DATA")
    memory = Memory()
    with pytest.raises(Failed, match="SrcObjectNotEligible"):
        stage(world, memory, "k")
    assert (memory.staged, memory.drafts) == ({}, [])


def test_a_copy_that_was_called_off_stops(world: World) -> None:
    """Section 7: as when the daemon ends; nothing of it stays, in a tree neither."""
    world.write("k", b"data" * 100)
    world.settle()
    progress = Progress(b"k", "", SOURCE, "west/dst", 400, stop=True)
    memory = Memory()
    with pytest.raises(Unavailable, match="its copy was stopped"):
        stage(world, memory, "k", progress)
    assert (memory.staged, memory.drafts) == ({}, [])
    with world.engine.site.bucket("west/dst").open() as there, pytest.raises(Unavailable, match="its copy was stopped"):
        stage(world, LocalTree(there), "k", progress)
    assert world.leftovers("west/dst") == []
