"""The control socket: a running daemon is never taken for absent, and answers any number of callers."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl import errors
from fsrepl.daemon import control, main
from fsrepl.daemon.requests import GetStatus, PutReplication, Request, Wait
from fsrepl.errors import FsreplError, NotRunning, Refused, TimedOut, Usage
from fsrepl.model.address import Address
from tests.waiting import DEADLINE_S


@contextlib.contextmanager
def serving(state: Path, handle: control.Handler, commands_max: int = 8) -> Iterator[control.Server]:
    server = control.Server(state, handle, commands_max)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def listening(state: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server that accepts connections and handles the first of them as the test says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = os.open(state, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{here}/{control.SOCKET}")
    listener.listen(8)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)
        listener.close()
        os.close(here)
        (state / control.SOCKET).unlink(missing_ok=True)


def test_an_answer_of_any_length_is_read(tmp_path: Path) -> None:
    """Section 5: requests are limited in length, answers are not."""
    with serving(tmp_path, lambda request, alive: {"names": "x" * (9 << 20)}):
        assert len(control.ask(tmp_path, GetStatus())["names"]) == 9 << 20


@pytest.mark.parametrize("answer", [b"", b'{"ok": {', b"no JSON\n", b"[]\n", b"{}\n"])
def test_an_answer_that_cannot_be_read_comes_from_a_daemon_that_runs(tmp_path: Path, answer: bytes) -> None:
    """Section 5: whatever is wrong with an answer, exit status 5 is for an absent daemon only."""
    with listening(tmp_path, lambda connection: connection.sendall(answer)):
        with pytest.raises(FsreplError, match="the daemon runs, and its answer to status cannot be read") as raised:
            control.ask(tmp_path, GetStatus())
        assert not isinstance(raised.value, NotRunning)


def test_a_daemon_that_ends_before_it_answers_is_not_running(tmp_path: Path) -> None:
    """Section 5: exit status 5."""
    with (
        listening(tmp_path, lambda connection: (tmp_path / control.SOCKET).rename(tmp_path / "gone")),
        pytest.raises(NotRunning, match="ended before it answered"),
    ):
        control.ask(tmp_path, GetStatus())
    (tmp_path / "gone").unlink()


def test_a_caller_without_descriptors_does_not_say_that_the_daemon_is_absent(tmp_path: Path) -> None:
    """Section 5: a fault of the caller's own process is reported as such."""
    with serving(tmp_path, lambda request, alive: {}):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir("/proc/self/fd")))
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(used)]  # descriptors that were free below
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 2, hard))
        try:
            with pytest.raises(FsreplError, match="could not be asked: too many open files"):
                control.ask(tmp_path, GetStatus())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)


def test_a_request_that_is_too_long_is_the_callers_fault(tmp_path: Path) -> None:
    """Section 5: exit status 2, and no daemon is looked for."""
    with pytest.raises(Usage, match="too long"):
        control.ask(tmp_path, PutReplication(Address("east", "src"), "x" * (9 << 20)))


def test_a_queue_of_callers_that_is_full_is_waited_for(tmp_path: Path) -> None:
    """Section 5: a daemon that is slow to accept connections is late, not absent."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = os.open(tmp_path, os.O_RDONLY)
    path = f"/proc/self/fd/{here}/{control.SOCKET}"
    listener.bind(path)
    listener.listen(0)
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    waiting.connect(path)
    with pytest.raises(TimedOut, match=r"did not answer status within 0\.05 s"):
        control.ask(tmp_path, GetStatus(), 0.05)
    for each in (waiting, listener):
        each.close()
    os.close(here)


def test_a_caller_is_seen_through_a_descriptor_of_any_number(tmp_path: Path) -> None:
    """Section 5: select(2) takes no descriptor from 1,024 on, and a daemon with many open files has such."""
    seen: list[bool] = []

    def handle(request: Request, alive: control.Alive) -> dict[str, object]:
        seen.append(alive())
        return {}

    with serving(tmp_path, handle):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        try:
            control.ask(tmp_path, Wait())
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen == [True]


def test_callers_over_the_limit_are_refused(tmp_path: Path) -> None:
    """Section 5: with S3's code for it, whatever they ask; new callers are served once others have ended."""
    entered, leave = threading.Semaphore(0), threading.Event()

    def handle(request: Request, alive: control.Alive) -> dict[str, object]:
        entered.release()
        leave.wait(DEADLINE_S)
        return {}

    with serving(tmp_path, handle, commands_max=2):
        callers = [threading.Thread(target=control.ask, args=(tmp_path, Wait())) for _ in range(2)]
        for caller in callers:
            caller.start()
        assert all(entered.acquire(timeout=DEADLINE_S) for _ in callers)
        for request in (GetStatus(), PutReplication(Address("east", "src"), "x" * (1 << 20))):
            with pytest.raises(Refused, match="SlowDown: the daemon is busy with 2 commands") as raised:
                control.ask(tmp_path, request)
            assert raised.value.exit_code == 3
        leave.set()
        for caller in callers:
            caller.join(DEADLINE_S)
        until_served(tmp_path)


def until_served(state: Path) -> None:
    """A thread frees its place only after its caller has the answer."""
    for _ in range(1000):
        with contextlib.suppress(Refused):
            control.ask(state, GetStatus())
            return
    raise AssertionError("nobody is heard any more")


@pytest.mark.parametrize(("descriptors", "heard", "waiting"), [(1 << 20, 1024, 768), (1024, 512, 384), (16, 8, 6)])
def test_waiting_commands_leave_room_for_reading_ones(descriptors: int, heard: int, waiting: int) -> None:
    """Section 5: `status` and `doctor` answer however many commands wait, and regions have descriptors left."""
    assert main.commands_max(descriptors) == (heard, waiting)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"op": "object.freeze", "params": {}}', "knows no operation 'object.freeze'"),
        (b'{"op": "object.rm", "params": {"address": "east/src/k", "bypass": true}}', "knows no 'bypass' of object.rm"),
        (b'{"op": "object.rm", "params": {}}', "needs 'address' for object.rm"),
        (b'{"op": "object.rm", "params": {"address": 7}}', "cannot read 'address' of object.rm: it is 7"),
    ],
)
def test_a_command_of_another_version_gets_one_sentence(tmp_path: Path, line: bytes, said: str) -> None:
    """Section 5: exit status 2, the remedy, and nothing in the daemon's log; the daemon carries out nothing."""
    with serving(tmp_path, lambda request, alive: pytest.fail("it was done")):
        answer = exchange(tmp_path, line + b"\n")
    assert answer["error"]["kind"] == "Usage"
    assert f"the daemon {said}" in answer["error"]["message"]
    assert "restart it if it is of another version of fsrepl" in answer["error"]["message"]


@pytest.mark.parametrize(
    "line", [b"no JSON", b"[]", b"{}", b'{"op": "status"}', b'{"op": "status", "params": 3}', b"\xff"]
)
def test_an_invalid_request_is_answered(tmp_path: Path, line: bytes) -> None:
    """Section 5: whatever the client sends."""
    with serving(tmp_path, lambda request, alive: {}):
        answer = exchange(tmp_path, line + b"\n")
    assert answer["error"]["message"].startswith("the daemon was asked something it does not understand")


def exchange(state: Path, line: bytes) -> dict[str, Any]:
    """What the daemon answers to a line."""
    here = os.open(state, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, connection.makefile("rb") as answer:
        connection.connect(f"/proc/self/fd/{here}/{control.SOCKET}")
        os.close(here)
        connection.sendall(line)
        found: dict[str, Any] = json.loads(answer.readline())
        return found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.Away("offline"), errors.Away),
        (errors.Unreachable("offline"), errors.Unreachable),
        (errors.TierAway("offline"), errors.TierAway),
        (errors.DocumentInvalid("no JSON"), errors.DocumentInvalid),
        (errors.Disowned("another user's"), errors.Unavailable),
        (errors.ContentDamaged("no match", "01"), errors.StoreDamaged),
        (errors.Refused("NoSuchKey", "there is no k"), errors.Refused),
        (errors.Usage("two scopes"), errors.Usage),
    ],
)
def test_an_error_is_raised_as_what_it_was(error: errors.FsreplError, kind: type[errors.FsreplError]) -> None:
    """Section 5: message, exit status and next step are those of a command that does it itself."""
    raised = control.raised(control.error_document(error)["error"])  # type: ignore[arg-type]
    assert (type(raised), str(raised), raised.exit_code) == (kind, str(error), error.exit_code)


@pytest.mark.parametrize("kind", [None, "os", "reason", "Nothing"])
def test_an_error_of_another_version_has_its_message(kind: str | None) -> None:
    """Section 5: whatever the daemon calls it."""
    raised = control.raised({"kind": kind, "message": "odd"})
    assert (type(raised), str(raised)) == (errors.FsreplError, "odd")
