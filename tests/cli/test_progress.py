"""The bar of a long request: on a terminal, once it takes long, and never in the way of the request."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from fsrepl.cli import common, progress
from tests.waiting import DEADLINE_S

PROGRAM = """
from fsrepl.cli import common, progress
progress._AFTER_S, progress._LOOK_S = {after}, 0.01
with progress.bar("adopting east/src", 10, lambda: {done}):
    input()
print("done")
"""


def shown(after: float, done: str, wanted: str, **environment: str) -> tuple[str, str]:
    """What a program shows on its terminal until a text comes, or the request ends; and what it prints."""
    master, slave = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(after=after, done=done)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=slave, text=True, env={**environ, "TERM": "xterm", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(slave)
    text, until_s = "", time.monotonic() + DEADLINE_S
    while wanted and wanted not in text:
        assert time.monotonic() < until_s, text
        if select.select([master], [], [], 0.1)[0]:
            text += os.read(master, 65536).decode()
    out, _ = process.communicate("\n", timeout=DEADLINE_S)
    while select.select([master], [], [], 0)[0]:
        try:
            text += os.read(master, 65536).decode()
        except OSError:
            break
    os.close(master)
    return text, out


def test_a_request_that_takes_long_shows_how_far_it_is() -> None:
    text, out = shown(0, "7", "7/10")
    assert "adopting east/src" in text
    assert out == "done\n"


def test_without_colours_the_bar_stays() -> None:
    """NO_COLOR: a person who wants no colours waits as long."""
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    assert coloured.search(shown(0, "7", "7/10")[0])
    text, _ = shown(0, "7", "7/10", NO_COLOR="1")
    assert "adopting east/src" in text
    assert not coloured.search(text)


def test_without_colours_an_answer_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR: the signs of `fsrepl doctor` too; empty, it counts as not set."""
    for value, wanted in (("1", "x"), ("", "\x1b[31m\x1b[22mx\x1b[0m")):
        monkeypatch.setenv("NO_COLOR", value)
        assert common.coloured("x", fg="red") == wanted


def test_a_bar_that_cannot_be_filled_stops_nothing() -> None:
    """The journal may be missing, or be another process's just then."""
    text, out = shown(0, "1 / 0", "adopting")
    assert "Traceback" not in text
    assert out == "done\n"


def test_a_short_request_shows_nothing() -> None:
    assert shown(60, "7", "") == ("", "done\n")


def test_without_a_terminal_nothing_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_AFTER_S", 0)
    with progress.bar("adopting", 1, lambda: 1):
        pass
    assert capsys.readouterr() == ("", "")
