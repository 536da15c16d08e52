"""Verification of large objects: past the page cache, at a limit, and on where it was interrupted."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsrepl.cli import verify as cli
from fsrepl.commands import operations
from fsrepl.daemon import live, requests
from fsrepl.errors import NotRunning
from fsrepl.model.keys import Document
from fsrepl.region import verifications
from fsrepl.repair.verified import Verified
from fsrepl.storage import hashing
from fsrepl.storage.fs import Fs
from tests import mounts
from tests.stored import stored
from tests.verifying import verification, verify, whys
from tests.world import DESTINATION, SOURCE, World

SIZE = 3 << 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        for number in range(3):
            made.write(str(number), random.Random(number).randbytes(SIZE + number))
        made.settle()
        yield made


def read(world: World, *, resume: bool, most: int | None = None) -> int:
    """Verify, up to a number of bytes; the bytes that were read."""
    done = 0

    class Enough(Exception):
        pass

    def count(number: int) -> None:
        nonlocal done
        done += number
        if most is not None and done >= most:
            raise Enough

    with Verified(world.engine.site.state, SOURCE, None, resume=resume) as verified, verification(world) as found:
        found.hooks.read, found.hooks.verified = count, verified
        try:
            assert list(found.differences()) == []
        except Enough:
            return done
        assert found.tally.bytes == done
        assert found.tally.bytes + found.tally.known == 2 * (3 * SIZE + 3)
    return done


def test_an_interrupted_verification_goes_on(world: World) -> None:
    """Section 9: what matched is not read again; once it is complete, the next one reads everything."""
    assert read(world, resume=False, most=4 * SIZE) < 5 * SIZE
    assert read(world, resume=True) <= 3 * SIZE + 3
    assert read(world, resume=True) == 2 * (3 * SIZE + 3)
    assert list(Path(world.engine.site.state).glob("verify-*")) == []


def test_status_shows_how_far_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: verification, another process, tells the daemon; one that does not answer is no hindrance."""
    shown: list[Document] = []

    def ask(_state: str, request: requests.Request, _answer_within_s: float) -> None:
        operations.run(world.engine, request)
        shown.extend(live.status(world.engine)["transfers"])

    def refuse(*_: object) -> None:
        raise NotRunning("the daemon is not running")

    monkeypatch.setattr(cli, "state", lambda: SimpleNamespace(settings=world.settings))
    monkeypatch.setattr(verifications, "REPORTED_S", 0.0)
    for answer in (refuse, ask):
        monkeypatch.setattr(cli.control, "ask", answer)
        with verification(world) as found, cli._told_to_daemon(found, world.engine.journal) as progress:
            found.hooks.progress = progress
            assert list(found.differences()) == []
    total = 2 * (3 * SIZE + 3)
    assert {(each["source"], each["what"], each["bytes_total"]) for each in shown} == {(SOURCE, "verifying", total)}
    done = [each["bytes_done"] for each in shown]
    assert done == sorted(done)
    assert (done[0] < SIZE, done[-1]) == (True, total)
    assert live.status(world.engine)["transfers"] == []


def test_what_changed_since_is_read_again(world: World) -> None:
    """Section 9: it was said of the file as it was."""
    read(world, resume=False, most=6 * SIZE)
    for path in (stored(world, str(number), bucket) for number in range(3) for bucket in (SOURCE, DESTINATION)):
        with path.open("r+b") as file:
            file.write(b"x")
    with Verified(world.engine.site.state, SOURCE, None, resume=True) as verified, verification(world) as found:
        found.hooks.verified = verified
        assert len([d for d in found.differences() if d.problem == "DigestMismatch"]) == 6


def test_without_resume_all_is_read(world: World) -> None:
    """Section 9: nothing of an earlier one is believed unless that is asked for."""
    read(world, resume=False, most=4 * SIZE)
    assert read(world, resume=False) == 2 * (3 * SIZE + 3)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, (1 << 20) - 1, (1 << 20) + 1, (4 << 20) + 513, 9 << 20])
def test_the_digest_past_the_cache_is_that_of_the_content(tmp_path: Path, size: int) -> None:
    """Section 9: whatever part of a block the file ends with."""
    fs, path = Fs(), tmp_path / "k"
    path.write_bytes(random.Random(size).randbytes(size))
    told: list[int] = []
    with path.open("rb") as file, path.open("rb") as other:
        found = hashing.digest_past_cache(fs, file.fileno(), size, told.append)
        assert found == hashing.content(fs, other.fileno()).digest
    assert told[-1] == size
    assert sorted(told) == told


def test_the_disk_has_several_requests_at_any_time(tmp_path: Path) -> None:
    """Section 9: with one after the other it is idle between two of them, and slower than the kernel's read-ahead."""
    together = threading.Barrier(4)

    class Together(Fs):
        def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
            if at < 4 * hashing.BUFFER_BYTES:
                together.wait(20)
            return super().read_into(fd, buffer, at)

    path = tmp_path / "k"
    path.write_bytes(random.Random(1).randbytes(5 * hashing.BUFFER_BYTES))
    with path.open("rb") as file, path.open("rb") as other:
        found = hashing.digest_past_cache(Together(), file.fileno(), 5 * hashing.BUFFER_BYTES)
        assert found == hashing.content(Fs(), other.fileno()).digest


def test_the_page_cache_is_left_as_it_was(tmp_path: Path) -> None:
    """Section 9: what is read for a verification takes no place in it, and what others have there stays."""
    fs = Fs()
    for size, cached in itertools.product((5000, 9 << 20), (False, True)):
        path = tmp_path / f"{size}"
        path.write_bytes(bytes(size))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            fs.drop_cache(file.fileno())
            if fs.is_cached(file.fileno(), 0, size):
                pytest.skip("this filesystem is the page cache")
            if cached:
                file.read()
            if fs.is_cached(file.fileno(), 0, size) != cached:
                pytest.skip("this kernel does not say what is cached")
        with path.open("rb") as file:
            hashing.digest_past_cache(fs, file.fileno(), size)
            assert fs.is_cached(file.fileno(), 0, size) == cached


@mounts.only_root
def test_a_filesystem_that_cannot_read_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: it is read through the page cache, of which nothing is left."""
    fs, path, size = Fs(), tmp_path / "k", 9 << 20
    path.write_bytes(random.Random(1).randbytes(size))
    monkeypatch.setattr(Fs, "bypass_cache", lambda *_args, **_more: False)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        fs.drop_cache(file.fileno())
        was_cached = fs.is_cached(file.fileno(), 0, size)
        hashing.digest_past_cache(fs, file.fileno(), size)
        assert fs.is_cached(file.fileno(), 0, size) == was_cached


def test_a_version_that_is_being_fetched_again_is_said_to_be(tmp_path: Path) -> None:
    """Section 9: a write through a hard-linked view destroys the stored version, which the daemon restores."""
    with World(tmp_path) as world:
        world.set_sharing(west="link")
        world.write("k", b"data" * 1000)
        world.settle()
        world.away("east")
        world.write("k", b"DATA" * 1000, DESTINATION)
        world.engine.run_until_idle()
        world.settle()
        world.back("east")
        assert any(why.startswith("repairing: its stored content") for why in whys(world))
        world.settle()
        assert world.of("k", DESTINATION)[-1].digest == world.of("k")[-1].digest
        assert verify(world) == []
