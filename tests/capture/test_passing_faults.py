"""Faults that pass by themselves: the affected keys are tried again, without an event and before the next scan."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.model.version import Status
from fsrepl.region.bucket_state import NAMES
from tests.doubles import FailingFs, FaultyFs
from tests.world import DESTINATION, SOURCE, World

PASSING = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR]


def go_on(world: World) -> None:
    """Try everything that waits for its next try, without a scan."""
    world.flush_settling()
    world.engine.run_until_idle()


@pytest.mark.parametrize(("number", "call"), [*((number, "open_read") for number in PASSING), (errno.EIO, "stat")])
def test_a_file_that_cannot_be_read_for_a_moment_is_tried_again(tmp_path: Path, number: int, call: str) -> None:
    """G6, G7: neither a deletion nor an unreadable file is concluded from the fault. `why` and `wait` name the
    reason."""
    fs = FaultyFs(b"k", number, call)
    with World(tmp_path, fs=fs) as world:
        world.write("k", b"dropped in a bad moment")
        world.settle()
        assert world.ids(SOURCE) == {}
        assert world.state().captures.unreadable == {}
        assert world.state().captures.deferred[b"k"].why == os.strerror(number).lower()
        fs.mend()
        go_on(world)
        assert world.tree(DESTINATION) == world.tree(SOURCE)
        assert world.state().captures.faults == {}


def test_tries_come_with_a_growing_delay(tmp_path: Path) -> None:
    """Section 5: a permanent fault costs little."""
    with World(tmp_path, fs=FaultyFs(b"k", errno.EIO, "open_read")) as world:
        world.write("k", b"k")
        world.settle()
        delays_s = []
        for _ in range(8):
            delays_s.append(world.state().captures.deferred[b"k"].due_s - time.monotonic())
            go_on(world)
        assert delays_s[0] < 2 < delays_s[3] < delays_s[7] <= 30


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_removal_that_finds_no_room_for_its_marker_is_tried_with_a_growing_delay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Section 5, G11: it is listed as not captured all the while, and the log does not fill with it."""
    fs = FailingFs(1 << 60, number)
    with World(tmp_path, fs=fs) as world:
        world.write("k", b"k")
        world.settle()
        world.path("k").unlink()
        fs.calls_left, fs.for_ever = 0, True
        world.settle()
        delays_s = []
        for _ in range(8):
            delays_s.append(world.state().captures.deferred[b"k"].due_s - time.monotonic())
            assert NAMES["uncaptured"](world.state()) == [(b"k", os.strerror(number).lower())]
            go_on(world)
        assert delays_s[0] < 2 < delays_s[3] < delays_s[7] <= 30
        assert caplog.text.count("not captured") < 8
        fs.mend()
        go_on(world)
        assert world.tree(DESTINATION) == {}
        assert world.state().captures.faults == {}


def test_a_directory_that_cannot_be_read_for_a_moment_is_looked_into_again(tmp_path: Path) -> None:
    """G6: its files are captured well before the next scan of the bucket."""
    fs = FaultyFs(b"d", errno.EMFILE, "open_dir")
    with World(tmp_path, fs=fs) as world:
        world.write("d/k", b"k")
        world.settle()
        state = world.state()
        assert state.trouble.unreadable == {b"d": "too many open files"}
        fs.mend()
        world.region().probe_buckets()
        assert 0 < state.scan_times.look_again_at_s < time.monotonic() + 2
        state.scan_times.look_again_at_s = 0.1
        world.region().probe_buckets()
        world.engine.run_until_idle()
        assert world.tree(DESTINATION) == {"d/k": b"k"}
        assert state.trouble.unreadable == state.trouble.passing == {}


def test_a_role_that_cannot_be_read_for_a_moment_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5: deliveries stay PENDING, and are made once the role can be read."""
    real = os.stat

    def stat(path: Any, **more: Any) -> os.stat_result:
        if isinstance(path, (str, Path)) and Path(path).parent.name == "roles":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, **more)

    with World(tmp_path) as world:
        world.write("k", b"k")
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", stat)
            world.settle()
        assert world.statuses() == {Status.PENDING}
        go_on(world)
        assert world.statuses() == {Status.COMPLETED}


def test_a_stale_view_is_no_users_write_where_a_start_cannot_inspect_it(tmp_path: Path) -> None:
    """G1, G6: a view was stale when the process ended, and cannot be inspected when the next process starts."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        with world.path("k", DESTINATION).open("r+b"):
            world.write("k", b"two")
            world.settle()
            assert world.tree(DESTINATION) == {"k": b"one"}
        fs = FaultyFs(b"k", errno.EMFILE, "stat", "open_read")
        world.restart(fs=fs)
        world.settle()
        fs.mend()
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"two"}
        assert world.ids(DESTINATION) == world.ids(SOURCE)


@contextlib.contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold a write lease, as a file server does for its client, and keep it when the kernel asks for it back."""
    fd = os.open(path, os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            pytest.skip("no write leases here")
        yield
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def test_a_file_under_a_write_lease_is_open_for_writing(tmp_path: Path) -> None:
    """Section 7: opening such a file answers EWOULDBLOCK. It is captured when it is closed, like any file open for
    writing."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        with leased(world.path("k")):
            world.settle()
            assert world.ids(SOURCE) == {}
            later = world.state().captures.deferred[b"k"]
            assert (later.opened, later.why) == (True, "the file is open for writing")
            assert world.state().captures.unreadable == {}
        go_on(world)
        assert world.tree(DESTINATION) == {"k": b"one"}


def test_a_replica_under_a_write_lease_is_not_exchanged(tmp_path: Path) -> None:
    """G1, section 7: a program has the replica open for writing. The newer version is shown when it is closed."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        with leased(world.path("k", DESTINATION)):
            world.write("k", b"two")
            world.settle()

            assert world.state(DESTINATION).views.stale[b"k"].why == "a program has the file open for writing"
        go_on(world)
        assert world.tree(DESTINATION) == {"k": b"two"}
