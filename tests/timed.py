"""A world whose clock the test moves, and its events of replication."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fsrepl.model import clock
from fsrepl.replicate import thresholds
from fsrepl.storage.eventlog import Reader
from tests.world import Json, World, v2

MINUTE_NS = 60_000_000_000
METRICS: Json = {"Metrics": {"Status": "Enabled", "EventThreshold": {"Minutes": 15}}}
TIMED: Json = {**METRICS, "ReplicationTime": {"Status": "Enabled", "Time": {"Minutes": 15}}}


@dataclass
class Timed:
    """A world whose clock stands still until it is moved, and its events."""

    world: World
    clock_file: Path
    now_ns: int = 1_800_000_000_000_000_000

    def pass_minutes(self, minutes: float) -> None:
        self.now_ns += int(minutes * MINUTE_NS)
        self.clock_file.write_text(clock.stamp(self.now_ns))

    def configure(self, destination: Json, **rule: object) -> None:
        """One rule for everything, markers too."""
        self.world.configure({"ID": "all", **v2(markers=True, **destination), **rule})

    def break_role(self) -> None:
        for path in self.world.settings.roles.iterdir():
            path.rename(path.with_suffix(".away"))

    def settle(self) -> None:
        self.world.settle()
        while thresholds.check(self.world.engine):
            pass

    def events(self) -> list[dict[str, Any]]:
        with Reader(self.world.engine.site.state) as reader:
            return [json.loads(line) for line in reader.lines()]

    def told(self) -> list[tuple[str, str]]:
        return [(e["eventName"].removeprefix("Replication:"), e["s3"]["object"]["key"]) for e in self.events()]


@contextmanager
def timed_world(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    home.mkdir(exist_ok=True)
    clock_file = home / "clock"
    monkeypatch.setenv("FSREPL_CLOCK", str(clock_file))
    clock_file.write_text(clock.stamp(Timed.now_ns))
    with World(home / "site", replicate=False) as world:
        yield Timed(world, clock_file)
