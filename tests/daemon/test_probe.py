"""A region that hangs: each query of it has a time limit, and everything else is still reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.commands import doctor_facts, status, why
from fsrepl.commands.doctor import Level, findings
from fsrepl.errors import Unavailable
from fsrepl.storage import listing, probe
from fsrepl.storage.site import Site
from tests.doubles import UnsyncedFs
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World, at

WITHIN_S = 0.3
DEADLINE_S = 30.0


class HangingFs(UnsyncedFs):
    """One region's filesystem hangs until it is released: for calls that make a file there, or for all calls."""

    def __init__(self, at: Path, *, reading: bool) -> None:
        self._at, self._reading, self.go = str(at), reading, threading.Event()

    def open_root(self, path: str | os.PathLike[str]) -> int:
        if self._reading and os.fspath(path) == self._at:
            self.go.wait(DEADLINE_S)
        return super().open_root(path)

    def create(self, at: int, name: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{at}").startswith(self._at):
            self.go.wait(DEADLINE_S)
        return super().create(at, name)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        found.write("k", b"k")
        found.settle()
        yield found


def hanging(world: World, *, reading: bool) -> tuple[Site, HangingFs]:
    fs = HangingFs(world.settings.regions["west"].path, reading=reading)
    return Site(world.settings, fs), fs


def test_a_region_that_hangs_is_reported_by_the_daemons_doctor(world: World) -> None:
    """P: commands for diagnosis do not hang with the region, and only one thread of the daemon hangs."""
    site, fs = hanging(world, reading=False)
    threads = probe.Threads(WITHIN_S)
    for _ in range(3):
        east, west = doctor_facts.regions(site, threads.ask)
        assert (east["silent"], east["trouble"], east["errno"]) == (False, "", 0)
        assert west["silent"]
        assert "no answer" in west["trouble"]
    assert [t.name for t in threading.enumerate() if t.name.startswith("probe")] == ["probe west"]
    fs.go.set()
    until(lambda: not doctor_facts.regions(site, threads.ask)[1]["silent"], "the region that hung answers")


def test_without_a_daemon_the_doctor_leaves_behind_what_hangs(world: World) -> None:
    """Section 5: doctor ends, also where a process that makes a file in a frozen filesystem cannot be ended."""
    site, _ = hanging(world, reading=False)
    there = doctor_facts.where_it_works(site, lambda questions: probe.by_process(questions, WITHIN_S))
    found = findings(doctor_facts.facts(site, {"running": False}, there))
    errors = [(f.area, f.where) for f in found if f.level is Level.ERROR]
    assert errors == [("region", "west")]


def test_commands_that_read_pass_over_a_region_that_hangs(world: World) -> None:
    """Section 5: status, why and doctor print everything else."""
    site, _ = hanging(world, reading=True)
    site.ask_regions(WITHIN_S)
    assert site.silent == {"west"}
    said = {"running": False}
    source, destination = (b for b in status.status(site, said)["buckets"])
    assert (source["bucket"], source["online"], source["objects"]) == (SOURCE, True, 1)
    assert (destination["bucket"], destination["online"]) == (DESTINATION, False)
    assert f"no answer in {WITHIN_S:g} s" in destination["trouble"]
    assert "COMPLETED to west/dst" in " ".join(why.why(site, at(SOURCE, b"k"), None, said).sentences)
    with pytest.raises(Unavailable, match=r"region west: .* no answer"):
        listing.open_versioned(site, DESTINATION).__enter__()
    there = doctor_facts.where_it_works(site, lambda questions: probe.by_process(questions, WITHIN_S))
    found = findings(doctor_facts.facts(site, said, there))
    assert [f.where for f in found if f.level is Level.ERROR] == ["west"]


def test_a_hanging_child_delays_no_caller_of_the_command() -> None:
    """Section 5: the command's pipe is closed and the command has ended, while its child process still hangs."""
    program = (
        "from fsrepl.storage import probe; import time; print(sorted(probe.silent({'a': lambda: 0, 'b': %s}, 0.3)))"
    )
    hang = "lambda: (__import__('signal').signal(15, 1), time.sleep(20))"
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program % hang], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == ["b"]
    assert time.monotonic() - began_s < 15
