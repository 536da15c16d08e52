"""Content on its way to another disk: at a bounded rate, shown in status, resumed where it was cut, in nobody's way."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import schedule
from fsrepl.daemon import live
from fsrepl.lifecycle import tier_copy
from fsrepl.region.mailbox import Call
from fsrepl.settings import reading
from tests.doubles import DyingFs, FailingFs, PowerCut, UnsyncedFs
from tests.lifecycle.test_archives import add_archive
from tests.lifecycle.test_lifecycle import put, rule, run
from tests.lifecycle.test_tiers import add_tier, content, contents
from tests.region.test_workers import at_work
from tests.verifying import verify
from tests.waiting import until
from tests.world import SOURCE, World

Clock = Callable[[str], object]
SIZE = 6 << 20
DATA = random.Random(1).randbytes(SIZE - (2 << 20)) + bytes(1 << 20) + random.Random(2).randbytes(1 << 20)
"""With a hole."""


def to_class(name: str) -> dict[str, Any]:
    return rule(Filter={"ObjectSizeGreaterThan": 0}, Transitions=[{"Days": 30, "StorageClass": name}])


class WritingFs(DyingFs):
    """Counts the bytes that are written to files."""

    def __init__(self) -> None:
        super().__init__(1 << 60)
        self.written = 0
        for name in ("write", "write_at"):
            setattr(self, name, self._measured(getattr(self, name)))

    def _measured(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(fd: int, data: bytes, *more: int) -> None:
            real(fd, data, *more)
            self.written += len(data)

        return call


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_copy, "_PART_BYTES", 1 << 20)


def large(world: World, clock: Clock) -> None:
    """An object that is about to be moved; from one MiB on content is large."""
    world.settings.path.write_text(world.settings.path.read_text() + '[replication]\nlarge_file = "1MiB"\n')
    world.settings = reading.load(world.settings.path)
    world.restart()
    world.write("k", DATA)
    world.settle()
    clock("2026-06-01T00:00:01Z")


def _to_tier(world: World, clock: Clock) -> Path:
    tier = add_tier(world)
    large(world, clock)
    put(world, to_class("STANDARD_IA"))
    return tier


def _to_archive(world: World, clock: Clock) -> Path:
    tier = add_archive(world)
    large(world, clock)
    put(world, to_class("GLACIER"))
    return tier


def _back(world: World, clock: Clock) -> Path:
    tier = _to_archive(world, clock)
    run(world)
    world.settle()
    world.run("tier.rm", tier="east/GLACIER")
    world.settings = world.engine.settings
    return tier


CASES: dict[str, Callable[[World, Clock], Path]] = {"to": _to_tier, "to an archive": _to_archive, "back": _back}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_damaged", [False, True], ids=["", "damaged meanwhile"])
def test_a_large_move_goes_on_where_it_was_cut(
    memory: Path, clock: Clock, parts: None, case: str, is_damaged: bool
) -> None:
    """G2, G7: what was written is not written again; where that is not what it should be, all of it is."""
    with World(memory / "world", replicate=False) as world:
        tier = CASES[case](world, clock)
        world.restart(fs=(fs := WritingFs()))
        real, first = tier_copy._mark, fs

        def mark(*arguments: Any) -> None:
            real(*arguments)
            if first.written >= SIZE // 2:
                first.calls_left = 0

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCut):
            patch.setattr(tier_copy, "_mark", mark)
            run(world)
            world.settle()
        assert first.died
        world.restart(fs=(fs := WritingFs()))
        folder = world.path(".fsrepl/tmp") if case == "back" else tier / "src" / ".tmp"
        (left,) = folder.iterdir()
        if is_damaged:
            with left.open("r+b") as file:
                file.seek(100)
                file.write(b"damaged")
        run(world)
        for _ in range(3):
            world.settle()
        assert list(folder.glob("move.*")) == []
        assert content(world, world.current("k")) == DATA if case != "to an archive" else len(contents(tier)) == 1
        assert verify(world) == []
        assert (fs.written > SIZE * 0.8) is is_damaged


def test_a_full_disk_keeps_nothing_of_a_large_move(memory: Path, clock: Clock, parts: None) -> None:
    """The space is the user's: an unfinished copy is removed, and begun anew when there is room."""
    with World(memory / "world", replicate=False) as world:
        tier = _to_tier(world, clock)
        world.restart(fs=(fs := FailingFs(1 << 60, errno.ENOSPC)))
        real, calls = fs.write, 0

        def write(fd: int, data: bytes) -> None:
            nonlocal calls
            calls += len(data) >= 1 << 20
            if calls == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(fd, data)

        fs.write = write  # type: ignore[method-assign]
        run(world)
        world.settle()
        assert list((tier / "src" / ".tmp").iterdir()) == []
        assert "no space left" in world.state().lifecycle.placing.why
        assert world.path("k").read_bytes() == DATA
        fs.write = real  # type: ignore[method-assign]
        world.settle()
        world.settle()
        assert contents(tier) == [DATA]


class Slow(UnsyncedFs):
    """Writes to staged files in a tier hang until they are released."""

    def __init__(self) -> None:
        self.release, self.hangs = threading.Event(), threading.Event()

    def write_sparse(self, fd: int, chunks: Any, at: int = 0) -> int:
        if "tiers" in threading.current_thread().name:
            self.hangs.set()
            assert self.release.wait(60)
        return super().write_sparse(fd, chunks, at)


def test_while_content_is_moved_new_objects_are_captured_and_status_shows_the_move(
    tmp_path: Path, clock: Clock
) -> None:
    """A move is work of its own thread: what people drop meanwhile is captured, replicated, and shown."""
    with World(tmp_path / "world", fs=(fs := Slow())) as world:
        _to_tier(world, clock)
        world.restart(fs=fs)
        world.settle()
        with at_work(world):
            try:
                world.run("lifecycle.run", bucket=SOURCE)
                assert fs.hangs.wait(60)
                (told,) = live.status(world.engine)["transfers"]
                assert (told["key"], told["what"], told["bytes_total"]) == ("k", "moving", SIZE)
                world.drop("new", b"new")
                world.region().post(Call(lambda: schedule.begin(world.region(), world.state())))
                until(lambda: world.path("new", "west/dst").exists())
                assert not world.path("k").is_symlink()
            finally:
                fs.release.set()
            until(lambda: world.path("k").is_symlink())


def test_a_move_is_as_fast_as_the_limit_permits(memory: Path, clock: Clock) -> None:
    """[lifecycle] limit: each byte is counted, and the copy waits until it is paid for; a reload changes it."""
    with World(memory / "world", replicate=False) as world:
        _to_tier(world, clock)
        text = world.settings.path.read_text() + '\n[lifecycle]\nlimit = "1GiB/s"\n'
        world.settings.path.write_text(text)
        world.engine.reload(reading.load(world.settings.path))
        limiter = world.engine.moves_limiter
        assert limiter.rate == 1 << 30
        waits: list[float] = []
        real = limiter.pause
        limiter.pause = lambda stopped: waits.append(limiter.position) or real(stopped)  # type: ignore[method-assign, func-returns-value]
        run(world)
        world.settle()
        assert limiter.position == SIZE
        assert len(waits) == SIZE >> 20
        assert world.path("k").is_symlink()


def test_a_move_ends_with_the_daemon_and_goes_on_with_the_next(memory: Path, clock: Clock, parts: None) -> None:
    with World(memory / "world", replicate=False) as world:
        tier = _to_tier(world, clock)
        real = tier_copy._mark

        def mark(*arguments: Any) -> None:
            real(*arguments)
            for progress in world.engine.transfers:
                progress.stop = True

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tier_copy, "_mark", mark)
            run(world)
            world.settle()
        assert [path.name[:5] for path in (tier / "src" / ".tmp").iterdir()] == ["move."]
        world.restart(fs=(fs := WritingFs()))
        run(world)
        world.settle()
        assert contents(tier) == [DATA]
        assert fs.written < SIZE
