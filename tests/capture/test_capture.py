"""Which files are captured, when, and which are left alone (section 7, Capture)."""

from __future__ import annotations

import errno
import itertools
import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl.capture import look
from fsrepl.capture.look import Seen
from fsrepl.commands.documents import objects
from fsrepl.region.bucket_state import NAMES
from fsrepl.region.change_queue import CHANGED, CLOSED, GONE, WRITING, Change
from fsrepl.storage import listing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs
from tests.doubles import FailingFs, FullFs
from tests.world import DESTINATION, SOURCE, World

LARGE_BYTES = 9 << 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def writer_wait(world: World, **seconds: float) -> None:
    """Set open_quiet_s and open_max_s."""
    region = world.region()
    region.writer_wait = replace(region.writer_wait, **seconds)  # type: ignore[arg-type]


def contents(world: World, key: str) -> list[bytes]:
    """The content of each version of a key in the source, oldest first."""
    found = world.history(SOURCE).get(key.encode(), [])
    stored = world.path(f".fsrepl/versions/{key}")
    return [Path(f"{stored};{version.id}").read_bytes() for version in found if not version.marker]


def test_an_event_of_a_view_that_is_as_recorded_costs_no_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: labels and views that the daemon makes are events too. Edits, writes and removals are looked at."""
    real, looked = look.look, list[bytes]()

    def counted(bucket: OpenBucket, change: Change, *rest: Any, **more: Any) -> Seen:
        looked.append(change.key)
        return real(bucket, change, *rest, **more)

    monkeypatch.setattr(look, "look", counted)
    for key in ("still", "edited", "written", "removed"):
        world.write(key, b"x")
    world.settle()
    looked.clear()
    world.path("edited").chmod(0o600)
    world.write("written", b"more")
    world.unlink("removed")
    flags = {b"still": CHANGED | WRITING, b"edited": CHANGED, b"written": WRITING | CLOSED, b"removed": GONE}
    for key, what in flags.items():
        world.region().changes.add(SOURCE, [key], 0, what)
    world.region(DESTINATION).changes.add(DESTINATION, [b"still"], 0, WRITING)
    assert world.engine.run_until_idle()
    assert set(looked) == {b"edited", b"written", b"removed"}
    assert world.current("edited").posix == replace(world.look_of("edited")[0], acl=None)
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    world.region().changes.add(SOURCE, [b"still"], 0, WRITING | CLOSED)  # through a mapping, its times may be the same
    assert world.engine.run_until_idle()
    assert looked[-1] == b"still"


@pytest.mark.parametrize("size", [10, LARGE_BYTES])
def test_a_file_kept_open_is_taken_when_it_is_quiet(world: World, size: int) -> None:
    """Settings, open_quiet_s: a file is left alone while a program writes into it, and captured once it is quiet and
    once it is closed."""
    with world.path("log").open("wb") as file:
        file.write(b"a" * size)
        file.flush()
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert world.state().captures.deferred[b"log"].opened
        writer_wait(world, open_quiet_s=0.0)
        world.settle()
        assert contents(world, "log") == [b"a" * size]
        file.write(b"b")
    world.settle()
    assert contents(world, "log") == [b"a" * size, b"a" * size + b"b"]
    assert world.tree(DESTINATION) == world.tree(SOURCE)


def test_a_time_in_the_future_is_no_quiet(world: World) -> None:
    """Settings, open_quiet_s: writers may set any mtime, so mtime does not show how long ago they wrote."""
    with world.path("k").open("wb") as file:
        file.write(b"half")
        file.flush()
        os.utime(world.path("k"), (4e9, 4e9))
        world.settle()
        assert contents(world, "k") == []
        file.write(b"whole")
    world.settle()
    assert contents(world, "k") == [b"halfwhole"]


class RestlessFs(Fs):
    """A program appends to a file whenever its attributes are read, so that no copy of the file is ever stable."""

    path: Path | None = None

    def attribute_names(self, fd: int) -> list[str]:
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(b"+")
        return super().attribute_names(fd)


@pytest.mark.parametrize("size", [10, LARGE_BYTES])
def test_a_file_that_keeps_changing_is_captured_after_open_max_s(tmp_path: Path, size: int) -> None:
    """Settings, open_max_s: a copy of a file that changed meanwhile is discarded; after that time the copy is captured
    as it is."""
    fs = RestlessFs()
    with World(tmp_path, fs=fs) as world:
        fs.path = world.path("log")
        with fs.path.open("wb") as file:
            file.write(b"a" * size)
            file.flush()
            writer_wait(world, open_quiet_s=-1.0)
            world.settle()
            assert contents(world, "log") == []
            writer_wait(world, open_max_s=0.0)
            world.settle()
            assert contents(world, "log")[0].startswith(b"a" * size)
            assert {version.taken for version in world.of("log")} == {"changing"}
        fs.path = None
        world.settle()
        assert contents(world, "log")[-1] == world.path("log").read_bytes()
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert [v.taken for v in world.of("log")] == [v.taken for v in world.of("log", DESTINATION)]
        assert world.current("log").taken == ""
        assert world.leftovers(SOURCE) == []


def test_head_says_that_a_file_was_captured_while_a_program_had_it_open(world: World) -> None:
    """Section 9: the state of a database or an image that is never closed may be in the midst of a change."""
    with world.path("image").open("wb") as file:
        file.write(b"data")
        file.flush()
        writer_wait(world, open_quiet_s=-1.0, open_max_s=0.0)
        world.settle()
        with listing.open_bucket(world.engine.site, DESTINATION) as bucket:
            document = objects.head_document(bucket, listing.find(bucket, b"image", None))
    assert document["CapturedWhile"] == "open"


def test_a_copy_is_private(world: World) -> None:
    """G2: a write into a view never reaches the version that was captured from it."""
    world.write("k", b"one")
    world.settle()
    with world.path("k").open("r+b") as file:
        file.write(b"two")
    assert contents(world, "k") == [b"one"]


def test_a_file_that_took_long_to_copy_waits_longer(world: World) -> None:
    """Section 7: a key that keeps changing waits five times as long as its last capture took; its states are kept."""
    world.write("k", b"a" * LARGE_BYTES)
    world.settle()
    assert world.state().captures.copy_again_at_s[b"k"] > time.monotonic() - 60
    until_s = world.state().captures.copy_again_at_s[b"k"] = time.monotonic() + 60
    world.write("k", b"b" * LARGE_BYTES)
    world.look()
    world.engine.run_until_idle()
    assert len(contents(world, "k")) == 1
    assert world.state().captures.deferred[b"k"].due_s == pytest.approx(until_s, abs=0.01)
    world.state().captures.copy_again_at_s.clear()
    world.settle()
    assert len(contents(world, "k")) == 2


def test_what_is_no_object_is_counted_while_it_is_there(world: World) -> None:
    """Section 2: links, FIFOs and the like are skipped and counted; a directory in place of a file is neither."""
    world.path("fifo").parent.mkdir(exist_ok=True)
    os.mkfifo(world.path("fifo"))
    world.path("link").symlink_to("/etc/hostname")
    world.write("file", b"f")
    world.write("d/k", b"k")
    world.settle()
    assert world.state().trouble.skipped_number == 2
    world.path("fifo").unlink()
    world.write("fifo", b"a file now")
    world.path("file").unlink()
    world.path("file").mkdir()
    world.path("d").rename(world.home / "elsewhere")
    world.path("d").symlink_to(world.home / "elsewhere")
    world.settle()
    assert world.state().trouble.skipped_number == 2
    assert world.tree(DESTINATION) == {"fifo": b"a file now"}
    assert [[v.marker for v in world.history(SOURCE)[key]] for key in (b"file", b"d/k")] == [[False, True]] * 2


def test_a_directory_that_a_link_replaced_is_never_followed(world: World) -> None:
    """G9: files behind a link are neither captured nor counted as the key's own."""
    world.write("d/k", b"k")
    world.settle()
    world.path("d").rename(world.home / "elsewhere")
    (world.home / "elsewhere/secret").write_bytes(b"secret")
    world.path("d").symlink_to(world.home / "elsewhere")
    world.settle()
    assert set(world.history(SOURCE)) == {b"d/k"}
    assert world.tree(DESTINATION) == {}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_file_is_captured_once_whichever_change_fails(tmp_path: Path, number: int) -> None:
    """G7: whichever change of a batch fails, the same daemon captures the files of the batch, once each."""
    for calls in itertools.count():
        with World(tmp_path / str(calls), replicate=False) as world:
            world.write("a", b"one")
            world.write("d/b", b"one")
            world.settle()
            world.write("a", b"two")
            world.path("d/b").rename(world.path("d/c"))
            fs = FailingFs(calls, number)
            world.restart(fs=fs)
            for _ in range(4):
                world.settle()
            where = f"change {calls} failed"
            assert world.tree(SOURCE) == {"a": b"two", "d/c": b"one"}, where
            assert {k: len(v) for k, v in world.ids(SOURCE).items()} == {b"a": 2, b"d/b": 2, b"d/c": 1}, where
            world.restart()  # files that could not be removed from staging are removed at the next start
            world.settle()
            assert world.leftovers(SOURCE) == [], where
            if not fs.failed:
                return


@pytest.mark.parametrize("tail", [b"tail", b""], ids=["data-last", "hole-last"])
def test_holes_stay_holes(world: World, tail: bytes) -> None:
    """Section 7: in the store and in the other region a sparse file takes the space of its data, not of its length."""
    size = 64 << 20
    with world.path("image").open("wb") as file:
        file.write(b"head")
        file.seek(20 << 20)
        file.write(b"middle")
        file.truncate(size - len(tail))
        file.seek(0, os.SEEK_END)
        file.write(tail)
    world.settle()
    source, replica = world.path("image"), world.path("image", DESTINATION)
    (version,) = world.history(SOURCE)[b"image"]
    stored = [world.path(f".fsrepl/versions/image;{version.id}", bucket) for bucket in (SOURCE, DESTINATION)]
    wanted = source.read_bytes()
    assert len(wanted) == size
    for path in (replica, *stored):
        assert path.read_bytes() == wanted
        assert path.stat().st_blocks * 512 < 4 << 20


def test_a_copy_that_would_take_the_user_s_space_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Settings, keep_free: capture also pauses where there is space now, but the copy of a large file would take it,
    and status says so as long as it lasts."""
    fs = FullFs()
    with World(tmp_path, fs=fs) as world:
        world.write("large", b"l" * (20 << 20))
        world.write("small", b"s")
        world.settle()
        assert set(world.tree(DESTINATION)) == {"small"}
        assert "its copy takes 20 MiB" in world.state().captures.deferred[b"large"].why
        assert [key for key, _ in NAMES["uncaptured"](world.state())] == [b"large"]
        assert caplog.text.count("its copy takes 20 MiB") == 1  # and not with each try
        fs.free = 200 << 20
        world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert NAMES["uncaptured"](world.state()) == []


def test_a_long_copy_gives_up_when_the_daemon_stops(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Section 6: stopping takes seconds, however large the file being copied is. Nothing of the copy is left behind,
    and no error is logged."""
    with world.path("image").open("wb") as file:
        file.truncate(80 << 20)
    world.engine.fs.interrupted = True
    world.settle()
    assert world.history(SOURCE) == {}
    assert "not captured" not in caplog.text
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert world.leftovers(SOURCE) == []


class ReadingFs(Fs):
    """Counts the bytes of content that are read."""

    read_bytes = 0

    def chunks(self, fd: int, at: int = 0) -> Iterator[bytes]:
        for chunk in super().chunks(fd, at):
            self.read_bytes += len(chunk)
            yield chunk

    def read_all(self, fd: int, size_hint: int = 0) -> bytes:
        data = super().read_all(fd, size_hint)
        self.read_bytes += len(data)
        return data


@pytest.mark.parametrize("size", [10, 2 << 20, LARGE_BYTES])
def test_an_edit_of_metadata_reads_no_content(tmp_path: Path, size: int) -> None:
    """P16: a chmod that made an event causes no read of the file; a scan that finds the chmod reads the file, to be
    certain."""
    fs = ReadingFs()
    with World(tmp_path, fs=fs, replicate=False) as world:
        world.write("k", b"a" * size)
        world.settle()
        changes, state, now_s = world.region().changes, world.state(), time.monotonic()
        world.path("k").chmod(0o640)
        changes.event(SOURCE, b"k", b"k", CHANGED, now_s - 60, 0)
        fs.read_bytes = 0
        world.engine.run_until_idle()
        (version,) = world.history(SOURCE)[b"k"]
        assert version.posix is not None
        assert version.posix.mode == 0o640
        assert fs.read_bytes < min(size, 5_000)
        assert state.captures.deferred == {}
        with world.path("k").open("r+b") as file:
            file.write(b"b")
            changes.event(SOURCE, b"k", b"k", CHANGED, now_s - 60, 0)
        state.captures.copy_again_at_s.clear()  # a large file waits after it was copied
        world.engine.run_until_idle()
        assert len(contents(world, "k")) == 2


def test_many_files_of_some_size_do_not_fill_the_memory(world: World) -> None:
    """Section 7: the content in one batch is limited, however many files are ready at once."""
    for number in range(60):
        world.write(f"{number}", bytes([number]) * 1_000_000)
    tracemalloc.start()
    try:
        world.settle()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(world.path(f"{number}", DESTINATION).exists() for number in range(60))
    assert peak_bytes < 45_000_000


def test_a_removal_that_the_daemon_made_is_not_looked_at_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7, Capture: its own removals make events too, as when 100,000 objects expire."""
    for key in ("k", "other"):
        world.write(key, b"data")
    world.settle()
    world.remove("k")
    changes = world.region().changes
    with monkeypatch.context() as patch:
        patch.setattr(look, "look", None)
        changes.event(SOURCE, b"k", b"k", GONE, time.monotonic() - 60, 0)
        world.region().take_turn()
        assert (changes.count(SOURCE), world.state().captures.set_aside) == (0, {})
    world.unlink("other")
    for key in (b"other", b"k"):
        changes.event(SOURCE, key, key, GONE, time.monotonic() - 60, 0)
    world.write("k", b"made anew")
    changes.event(SOURCE, b"k", b"k", CLOSED, time.monotonic() - 60, 0)
    world.region().take_turn()
    assert [world.current(key).marker for key in ("k", "other")] == [False, True]
