"""Events for other programs: to a command and to a webhook, each once and in order, and without delay for
replication."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fsrepl.daemon import hooks
from fsrepl.daemon.hooks import Command, EventSender, Hooks, NotTaken, Target, Webhook
from fsrepl.s3.events import Record
from fsrepl.settings import Events
from fsrepl.storage.eventlog import EventLog
from fsrepl.storage.fs import Fs
from tests.waiting import DEADLINE_S, until


def record(number: int) -> Record:
    return {"n": number, "responseElements": {"x-amz-request-id": f"{number:016X}"}}


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(Fs(), str(tmp_path), 1 << 20)


@pytest.fixture
def hooked(log: EventLog) -> Iterator[Hooks]:
    found = Hooks(log)
    yield found
    found.close()


class Receiver:
    """A server on this machine to which events are posted. statuses: its answers; the last one is repeated."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses) or [204]
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append((self.path, dict(self.headers), body))
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", receiver.url + "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def numbers(self) -> list[int]:
        return [json.loads(body)["n"] for _, _, body in self.posts]

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def lines(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()] if path.exists() else []


def position(log: EventLog) -> int:
    """The last event that the program has accepted."""
    return int((Path(log.state) / "events.command.told").read_text().strip() or "0", 16)


# -- a program


def test_a_program_gets_each_event_on_its_standard_input(log: EventLog, hooked: Hooks, tmp_path: Path) -> None:
    """3.4: one line each, in order; events from before the program was configured are not sent."""
    out = tmp_path / "out"
    log.append([record(0)])
    hooked.configure(Events(command=("sh", "-c", 'cat >> "$0"', str(out))))
    log.append([record(1), record(2)])
    until(lambda: lines(out) == [1, 2])
    log.append([record(3)])
    until(lambda: lines(out) == [1, 2, 3])


def test_events_of_a_pause_are_sent_later(log: EventLog, hooked: Hooks, tmp_path: Path) -> None:
    """G7: the program receives the events that follow, after a stop and after another program was configured, without
    repeats."""
    first, second = tmp_path / "first", tmp_path / "second"
    hooked.configure(Events(command=("sh", "-c", 'cat >> "$0"', str(first))))
    log.append([record(1)])
    until(lambda: position(log) == 1)
    hooked.close()
    log.append([record(2)])
    again = Hooks(log)
    again.configure(Events(command=("sh", "-c", 'cat >> "$0"', str(first))))
    until(lambda: position(log) == 2)
    again.configure(Events(command=("sh", "-c", 'cat >> "$0"', str(second))))
    log.append([record(3)])
    until(lambda: position(log) == 3)
    again.configure(Events())
    log.append([record(4)])
    again.configure(Events(command=("sh", "-c", 'cat >> "$0"', str(second))))
    log.append([record(5)])
    until(lambda: position(log) == 5)
    again.close()
    assert (lines(first), lines(second)) == ([1, 2], [3, 5])


def test_an_event_that_a_program_keeps_refusing_is_skipped(
    log: EventLog, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing hook is logged now and then, not each time, and does not block the events after it for ever."""
    monkeypatch.setattr(logging.getLogger("fsrepl"), "propagate", True)
    out = tmp_path / "out"
    log.append([record(0)])
    sender = EventSender(log, Command(("sh", "-c", 'cat >> "$0"; exit 3', str(out))), pause_s=0.001)
    log.append([record(1), record(2)])
    until(lambda: lines(out) == [1] * 5 + [2] * 5)
    sender.stop()
    assert [r.getMessage() for r in caplog.records] == ["events: not sent to the command: exit status 3"]


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    """It has its own process group, which is ended with it, at its time limit or when the daemon stops."""
    pids = tmp_path / "pids"
    arguments = ("sh", "-c", 'echo $$ >> "$0"; sleep 1000 & echo $! >> "$0"; wait', str(pids))
    with pytest.raises(NotTaken, match="not done after"):
        Command(arguments, timeout_s=0.5).send(b"{}")
    until(lambda: _alive(pids) == [])  # the signal is sent; its process group is ended by the kernel, a moment later
    pids.unlink()
    command = Command(arguments)
    failures: list[NotTaken] = []

    def send() -> None:
        try:
            command.send(b"{}")
        except NotTaken as error:
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    command.stop()
    thread.join(DEADLINE_S)
    assert [str(error) for error in failures] == ["SIGTERM"]
    until(lambda: _alive(pids) == [])
    with pytest.raises(NotTaken, match="stopping"):
        command.send(b"{}")


def _alive(pids: Path) -> list[int]:
    out = []
    for pid in map(int, pids.read_text().split()):
        try:
            os.kill(pid, 0)
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (ProcessLookupError, FileNotFoundError):
            continue
        if stat.rpartition(")")[2].split()[0] != "Z":
            out.append(pid)
    return out


def test_a_program_that_ignores_the_request_to_end(tmp_path: Path) -> None:
    """Such a program is killed."""
    started = tmp_path / "started"
    command = Command(
        ("sh", "-c", 'trap "" TERM; echo $$ > "$0"; while :; do sleep 1; done', str(started)), timeout_s=0.5
    )
    with pytest.raises(NotTaken):
        command.send(b"{}")
    until(lambda: _alive(started) == [])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("/does/not/exist",), "no such file"),
        (("/",), "permission denied"),
        (("sh", "-c", f"kill -{signal.SIGKILL} $$"), "SIGKILL"),
        (("false",), "exit status 1"),
    ],
)
def test_a_program_that_cannot_take_an_event(arguments: tuple[str, ...], why: str) -> None:
    """Whatever is wrong with the program is reported in a short sentence."""
    with pytest.raises(NotTaken, match=why):
        Command(arguments).send(b"{}")


def test_a_program_that_does_not_read(log: EventLog) -> None:
    """A program that does not read its standard input has not failed."""
    Command(("true",)).send(b"x" * 60_000)


def test_settings_that_name_no_program() -> None:
    """`fsrepl check` reports a program that does not exist."""
    assert "no program 'no-such-program'" in hooks.check(Events(command=("no-such-program", "x")))
    assert hooks.check(Events(command=("sh",))) == hooks.check(Events()) == ""


# -- a webhook


def test_each_event_is_posted(log: EventLog, hooked: Hooks) -> None:
    """3.4: as JSON, one at a time, in order."""
    with Receiver() as receiver:
        hooked.configure(Events(webhook=receiver.url + "/hook?x=1"))
        log.append([record(1), record(2), record(3)])
        until(lambda: receiver.numbers == [1, 2, 3])
        path, headers, body = receiver.posts[0]
        assert (path, headers["Content-Type"]) == ("/hook?x=1", "application/json")
        assert headers["User-Agent"].startswith("fsrepl/")
        assert body == json.dumps(record(1), separators=(",", ":")).encode() + b"\n"
        hooked.close()


@pytest.mark.parametrize(
    ("answers", "posts"),
    [
        ((503, 429, 500, 204), [1, 1, 1, 1, 2]),
        ((400, 400, 400, 400, 400, 204), [1, 1, 1, 1, 1, 2]),
        ((302, 204), [1, 1, 2]),
        ((500,) * 8 + (200,), [1] * 9 + [2]),
    ],
    ids=["passing-trouble", "refused", "redirect", "long-trouble"],
)
def test_a_webhook_that_refuses_an_event(log: EventLog, answers: tuple[int, ...], posts: list[int]) -> None:
    """Temporary faults are waited out; an event that is refused is tried a few times; a redirect is not followed."""
    with Receiver(*answers) as receiver:
        sender = EventSender(log, Webhook(receiver.url), pause_s=0.001)
        log.append([record(1), record(2)])
        until(lambda: receiver.numbers == posts)
        assert {path for path, _, _ in receiver.posts} == {"/"}
        sender.stop()


class Counted(Webhook):
    tries = 0

    def send(self, line: bytes) -> None:
        self.tries += 1
        super().send(line)


def test_a_webhook_that_is_not_reachable_yet(log: EventLog) -> None:
    """Events wait in their file until the server answers, also over a restart."""
    with Receiver() as receiver:
        url = receiver.url
    nobody = Counted(url)
    sender = EventSender(log, nobody, pause_s=0.001)
    log.append([record(1), record(2)])
    until(lambda: nobody.tries >= 3)
    sender.stop()
    with Receiver() as receiver:
        sender = EventSender(log, Webhook(receiver.url), pause_s=0.001)
        until(lambda: receiver.numbers == [1, 2])
        sender.stop()


def test_a_webhook_that_never_answers() -> None:
    """The request ends at its time limit."""
    with Receiver() as receiver:
        receiver.server.shutdown()  # the socket listens, and no connection is accepted
        with pytest.raises(NotTaken) as refusal:
            Webhook(receiver.url, timeout_s=0.2).send(b"{}")
    assert not refusal.value.lasting


# -- all targets


class Recorder:
    """A target that accepts every event, once the test allows it."""

    name = "recorder"

    def __init__(self) -> None:
        self.told: list[int] = []
        self.let = threading.Event()

    def send(self, line: bytes) -> None:
        if not self.let.wait(DEADLINE_S):
            raise NotTaken("never let", lasting=False)
        self.told.append(json.loads(line)["n"])

    def stop(self) -> None:
        self.let.set()


def test_a_slow_target_delays_nothing_else(tmp_path: Path) -> None:
    """The files are the queue, and bounded: writing continues, and events that the files no longer have are lost to the
    slow target."""
    log = EventLog(Fs(), str(tmp_path), 2000)
    target: Target = Recorder()
    assert isinstance(target, Recorder)
    sender = EventSender(log, target)
    for number in range(300):
        log.append([record(number)])
    target.let.set()
    until(lambda: bool(target.told) and target.told[-1] == 299)
    sender.stop()
    assert target.told == sorted(set(target.told))
    assert 40 < len(target.told) < 300


def test_a_position_that_is_no_longer_in_the_files(tmp_path: Path) -> None:
    """A target that was away for too long gets all events that are left."""
    log = EventLog(Fs(), str(tmp_path), 300)
    first = Recorder()
    first.let.set()
    sender = EventSender(log, first)
    log.append([record(0)])
    until(lambda: first.told == [0])
    sender.stop()
    for number in range(1, 30):
        log.append([record(number)])
    second = Recorder()
    second.let.set()
    sender = EventSender(log, second)
    until(lambda: bool(second.told) and second.told[-1] == 29)
    sender.stop()
    assert second.told == list(range(30 - len(second.told), 30))
