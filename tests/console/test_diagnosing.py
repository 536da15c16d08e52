"""The doctor's page waits for no look at the trees."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fsrepl.commands.doctor import Finding, Level
from fsrepl.console import diagnosing
from fsrepl.console.access import Access
from fsrepl.console.diagnosing import Diagnoses
from fsrepl.console.gateway import Gateway, Watch
from fsrepl.console.handlers import doctor
from fsrepl.console.handlers.visit import Visit
from fsrepl.errors import Unavailable
from tests.waiting import DEADLINE_S
from tests.world import SOURCE, World

GOOD, BAD = Finding(Level.OK, "watches", "", "enough"), Finding(Level.ERROR, "bucket", "a/<b>", "broken", "mend it")


class Slow:
    """A look that ends when it is let go, as of a million objects, or of a disk that hangs."""

    def __init__(self) -> None:
        self.go, self.number = threading.Semaphore(0), 0
        self.found: Sequence[Finding] | Exception = [GOOD, BAD]

    def __call__(self) -> Sequence[Finding]:
        self.number += 1
        assert self.go.acquire(timeout=DEADLINE_S)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_the_page_is_there_before_the_findings(tmp_path: Path) -> None:
    """It says since when is being looked, fills in by itself, and has the findings of the last look meanwhile."""
    with World(tmp_path) as world:
        gateway, slow = Gateway(world.settings), Slow()
        gateway.diagnoses = Diagnoses(slow)
        visit = Visit(gateway, Watch(gateway), Access(time.monotonic).by_socket, "/doctor")

        def page() -> str:
            return bytes(doctor.doctor(visit).body).decode()

        assert "being looked at since" in page()
        assert 'data-live="/doctor/live"' in page()
        assert slow.number == 1  # one look for both
        assert "broken" not in doctor.live(visit)
        slow.go.release()
        gateway.diagnoses.ask(again=False, wait_s=DEADLINE_S)
        for shown in (page(), doctor.live(visit)):
            assert "1 error and 0 warnings" in shown
            assert "a/&lt;b&gt;" in shown
            assert "As of 20" in shown
            assert "being looked at" not in shown
        assert slow.number == 1  # it is fresh
        again = Visit(gateway, visit.watch, visit.session, "/doctor?again=1", {"again": "1"})
        shown = bytes(doctor.doctor(again).body).decode()
        assert ("being looked at since" in shown, "broken" in shown) == (True, True)
        slow.found = Unavailable("the disk is `away`")
        slow.go.release()
        gateway.diagnoses.ask(again=False, wait_s=DEADLINE_S)
        assert "Nothing was found out: the disk is <code>away</code>" in page()


def test_an_expensive_look_is_good_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes a twentieth of the time at most, however often the page is loaded."""
    slow = Slow()
    diagnoses = Diagnoses(slow)
    slow.go.release()
    looked = diagnoses.ask(again=False, wait_s=DEADLINE_S).looked
    assert looked is not None
    now_s = looked.ended_s
    monkeypatch.setattr(diagnosing.time, "time", lambda: now_s)
    for took_s, later_s, looks in ((0.1, 1.9, 0), (0.1, 2.1, 1), (5.0, 99.0, 0), (5.0, 101.0, 1), (5.0, -3600.0, 1)):
        diagnoses._looked = diagnosing.Looked([GOOD], looked.ended_s, took_s)
        now_s, before = looked.ended_s + later_s, slow.number
        slow.go.release()
        diagnoses.ask(again=False, wait_s=DEADLINE_S)
        assert slow.number - before == looks, (took_s, later_s)
        if not looks:
            slow.go.acquire()


def test_the_doctor_knows_what_current_and_other_versions_take(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        totals = world.engine.journal.totals
        world.write("a", b"12345")
        world.write("b", b"123")
        world.settle()
        assert totals.held_bytes(SOURCE) == (8, 0)
        world.write("a", b"1")
        world.unlink("b")
        world.settle()
        assert totals.held_bytes(SOURCE) == (1, 8)
