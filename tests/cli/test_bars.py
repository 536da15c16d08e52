"""Every command that may take over two seconds shows a bar on a terminal meanwhile; the others are named, with why."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from fsrepl import cli
from fsrepl.cli import common, progress
from fsrepl.cli import tiers as cli_tiers
from fsrepl.cli import wait as cli_wait
from fsrepl.commands import doctor_facts, usage
from fsrepl.commands import lifecycle as lifecycles
from fsrepl.commands import status as statuses
from fsrepl.daemon import control, requests
from fsrepl.errors import Unavailable
from fsrepl.storage import backfill_jobs, listing
from tests.waiting import DEADLINE_S
from tests.world import DESTINATION, SOURCE, World

KEY = f"{SOURCE}/k"
SINCE = ("--since", "2026-01-01")

ASKING = {
    "region add": (["region", "add", "north=north"], "attaching the region north"),
    "region forget": (["region", "forget", "west"], "forgetting the region west"),
    "tier add": (["tier", "add", "east/GLACIER=cold"], "attaching the tier"),
    "tier rm": (["tier", "rm", "east/GLACIER"], "removing the tier"),
    "bucket create": (["bucket", "create", "east/new"], "creating east/new"),
    "bucket adopt": (["bucket", "adopt", "east/new", "--yes"], "measuring east/new"),
    "bucket rm": (["bucket", "rm", SOURCE, "--yes"], f"removing {SOURCE}"),
    "bucket trees": (["bucket", "trees", SOURCE, "on"], f"setting trees of {SOURCE}"),
    "versioning enable": (["versioning", "enable", SOURCE], f"versioning of {SOURCE}"),
    "versioning suspend": (["versioning", "suspend", DESTINATION], f"versioning of {DESTINATION}"),
    "replication enable": (["replication", "enable", SOURCE, DESTINATION], f"the replication of {SOURCE}"),
    "replication put": (["replication", "put", SOURCE, "-"], f"saving the replication of {SOURCE}"),
    "replication disable": (["replication", "disable", SOURCE], f"disabling the rules of {SOURCE}"),
    "replication rm": (["replication", "rm", SOURCE], f"removing the replication of {SOURCE}"),
    "replication backfill": (["replication", "backfill", SOURCE], f"asking for a backfill {SOURCE}"),
    "replication jobs": (["replication", "jobs"], "waiting for the site"),
    "replication cancel": (["replication", "cancel", "1"], "waiting for the site"),
    "lifecycle put": (["lifecycle", "put", SOURCE, "-"], f"saving the lifecycle rules of {SOURCE}"),
    "lifecycle rm": (["lifecycle", "rm", SOURCE], "waiting for the site"),
    "lifecycle run": (["lifecycle", "run", SOURCE], f"carrying out what is due in {SOURCE}"),
    "role create": (["role", "create", "r", "--from", SOURCE, "--to", DESTINATION], "waiting for the site"),
    "role rm": (["role", "rm", "r"], "waiting for the site"),
    "restore": (["restore", KEY], f"restoring {KEY}"),
    "rm": (["rm", KEY], f"deleting {KEY}"),
    "tag set": (["tag", "set", KEY, "a=1"], "waiting for the site"),
    "tag rm": (["tag", "rm", KEY, "a"], "waiting for the site"),
    "ack": (["ack", SOURCE], f"letting deletions cross {SOURCE}"),
    "undelete": (["undelete", SOURCE, *SINCE], f"bringing back {SOURCE}"),
    "retry": (["retry", SOURCE], f"trying again {SOURCE}"),
    "scrub run": (["scrub", "run"], "waiting for the site"),
    "scrub pause": (["scrub", "pause"], "waiting for the site"),
}
"""Commands that ask the daemon: their arguments, and what the bar says."""

READING: dict[str, tuple[list[str], str, tuple[Any, str]]] = {
    "ls": (["ls", SOURCE], f"listing {SOURCE}", (listing, "entries")),
    "cat": (["cat", KEY], f"comparing {KEY} with its hash", (listing, "content")),
    "du": (["du", "east"], "adding up east", (usage, "usage")),
    "lifecycle preview": (["lifecycle", "preview", SOURCE], f"looking at {SOURCE}", (lifecycles, "preview")),
    "replication report": (["replication", "report", "1"], "reporting job 1", (backfill_jobs, "find")),
    "status": (["status"], "looking at the buckets", (statuses, "status")),
    "doctor": (["doctor"], "looking at the buckets", (doctor_facts, "facts")),
}
"""Commands that read by themselves: also the function that takes long."""

OTHERWISE = {
    "wait": "its own line, test_what_wait_says",
    "verify": "its own bar, of bytes",
    "init": "makes a few files; its questions and its job are commands of this table",
    "daemon": "runs until it is stopped; status and wait say how far its scans are",
    "agent": "runs until its connection ends; the daemon at the other end says how it is",
    "console": "runs until it is stopped",
    "events": "prints as it reads",
    **dict.fromkeys(
        ("check", "region ls", "tier ls", "bucket ls", "versioning show", "replication show", "replication get",
         "lifecycle get", "role ls", "role show", "scrub status"),
        "reads documents of buckets; a region that hangs is waited for by a limited time",
    ),
    **dict.fromkeys(("head", "tag ls", "why"), "reads what is recorded of one key"),
}  # fmt: skip
"""Commands without a bar, and why."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all commands."""
    below = getattr(command, "commands", None)
    if not below:
        yield " ".join(path)
    for name, each in (below or {}).items():
        yield from commands(each, (*path, name))


def test_every_command_is_in_the_table() -> None:
    """A new command needs a bar, or a reason why it needs none."""
    app = typer.Typer()
    app.callback()(lambda: None)
    before, cli.app = cli.app, app
    try:
        cli.register(cli.FILES)
    finally:
        cli.app = before
    assert set(commands(get_command(app))) == {*ASKING, *READING, *OTHERWISE}


class Terminal:
    """A terminal as stderr; what was shown on it is read in a thread."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        self.file = io.TextIOWrapper(io.FileIO(os.dup(self._slave), "w"), write_through=True)
        self.text, self._changed, self._ended = "", threading.Condition(), False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended:
            if select.select([self._master], [], [], 0.02)[0]:
                data = os.read(self._master, 65536).decode()
                with self._changed:
                    self.text += data
                    self._changed.notify_all()

    def shows(self, text: str) -> None:
        """Wait until a text is shown."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.text, DEADLINE_S), (text, self.text)

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self.file.close()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    found = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(progress, "_AFTER_S", 0)
    monkeypatch.setattr(progress, "_LOOK_S", 0.01)
    yield found
    found.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bars")
    with World(home) as world:
        for number in range(5):
            world.write(f"d/{number}", b"x")
        world.write("k", b"x")
        world.settle()
        for number in range(5):
            world.unlink(f"d/{number}")
        world.settle()
    return home


def run(home: Path, arguments: list[str], terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command up to its error, if any."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    cli.register(cli.files_of(arguments))
    monkeypatch.setattr(sys, "stderr", terminal.file)  # not in a fixture: pytest sets it again after those
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    common.set_state(common.State(home))
    with contextlib.suppress(Unavailable, typer.Exit):
        app(arguments, standalone_mode=False)


@pytest.mark.parametrize("command", ASKING)
def test_a_command_that_waits_for_the_daemon_says_so(
    command: str, home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, text = ASKING[command]

    def answer(*_arguments: object) -> dict[str, Any]:
        terminal.shows(text)
        raise Unavailable("shown")

    monkeypatch.setattr(control, "ask", answer)
    run(home, arguments, terminal, monkeypatch)
    assert text in terminal.text


@pytest.mark.parametrize("command", READING)
def test_a_command_that_reads_for_long_says_so(
    command: str, home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, text, (module, name) = READING[command]

    def read(*_arguments: object, **_more: object) -> Iterator[Any]:
        terminal.shows(text)
        raise Unavailable("shown")
        yield

    found: Callable[..., Any] = read if command in ("cat", "lifecycle preview") else lambda *a, **b: next(read(*a, **b))
    monkeypatch.setattr(module, name, found)
    run(home, arguments, terminal, monkeypatch)
    assert text in terminal.text


@pytest.mark.parametrize("command", ["bucket rm", "lifecycle run", "retry"])
def test_an_operation_that_counts_itself_says_how_far_it_is(
    command: str, home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is asked meanwhile, by the text of the request."""
    asked = []

    def answer(state: Path, request: requests.Request, within_s: float | None = None) -> dict[str, Any]:
        if isinstance(request, requests.GetProgress):
            asked.append(request.of)
            return {"Done": 1234, "Total": 5000}
        terminal.shows("1,234/5,000")
        raise Unavailable("shown")

    monkeypatch.setattr(control, "ask", answer)
    run(home, ASKING[command][0], terminal, monkeypatch)
    assert {*asked} == {f"{command} {SOURCE}"}


def test_emptying_a_tier_says_how_much_is_back(home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was there at first; the command ends when the tier is removed."""
    left = iter([5, 5, 2, 2, 0])

    def answer(state: Path, request: requests.Request, within_s: float | None = None) -> dict[str, Any]:
        assert isinstance(request, requests.RemoveTier)
        if (number := next(left)) == 0:
            terminal.shows("3/5")
        return {"Tier": request.tier, "Removed": not number, "Versions": number, "Bytes": 0}

    monkeypatch.setattr(control, "ask", answer)
    monkeypatch.setattr(cli_tiers, "_LOOK_S", 0.01)
    run(home, ["tier", "rm", "east/GLACIER", "--wait"], terminal, monkeypatch)
    assert "3/5" in terminal.text


def test_undelete_says_how_many_are_back(home: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that were deleted since, as the journal counts them."""
    answers = iter([{"After": "d/2", "Restored": 3}, {"After": None, "Restored": 2}])

    def answer(state: Path, request: requests.Request, within_s: float | None = None) -> dict[str, Any]:
        assert isinstance(request, requests.Undelete)
        found = next(answers)
        if found["After"] is None:
            terminal.shows("3/5")
        return {"Left": [], "Halted": False, **found}

    monkeypatch.setattr(control, "ask", answer)
    run(home, ["undelete", SOURCE, *SINCE], terminal, monkeypatch)
    assert "3/5" in terminal.text


def test_what_wait_says() -> None:
    """What is left, and that nothing is known yet of a bucket that is being scanned."""
    bucket = {"pending": 1, "pending_bytes": 5, "objects": 7, "scanning": False}
    assert cli_wait.left({"buckets": [bucket, bucket]}) == "waiting: 2 deliveries, 10 B"
    scanning = {**bucket, "scanning": True, "objects": 12_345}
    assert cli_wait.left({"buckets": [bucket, scanning]}) == (
        "scanning 1 of 2 buckets, 12,345 objects so far; waiting: 2 deliveries, 10 B"
    )
