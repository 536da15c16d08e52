"""Events and metrics with a real daemon, its commands and its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.model import clock
from tests.daemon.test_hooks import Receiver
from tests.site import DESTINATION, SOURCE, Site
from tests.timed import METRICS, TIMED
from tests.waiting import DEADLINE_S
from tests.world import v2

NOW_NS = 1_800_000_000_000_000_000


class EventSite:
    """A site with a clock that the test sets, a program and a webhook that receive events, and a file of metrics."""

    def __init__(self, home: Path, receiver: Receiver) -> None:
        self.home, self.receiver = home, receiver
        self.clock = home / "clock"
        self.pass_minutes(0)
        self.told = home / "told"
        self.metrics = home / "fsrepl.prom"
        self.site = Site(home, replicate=False)
        self.site.environ["FSREPL_CLOCK"] = str(self.clock)
        with (self.site.root / "fsrepl.toml").open("a") as file:
            file.write(self.settings())
        self.site.must("role", "create", "courier", "--from", SOURCE, "--to", DESTINATION)

    def settings(self) -> str:
        command = json.dumps(["sh", "-c", 'cat >> "$0"', str(self.told)])
        told = f'[events]\ncommand = {command}\nwebhook = "{self.receiver.url}"\n'
        return f'\n{told}[metrics]\ntextfile = "{self.metrics}"\n'

    def pass_minutes(self, minutes: float) -> None:
        moved = self.clock.with_name("clock.new")
        moved.write_text(clock.stamp(int(NOW_NS + minutes * 60_000_000_000)))
        moved.rename(self.clock)

    def configure(self, destination: dict[str, object]) -> None:
        rule = {"ID": "all", **v2(**destination)}  # type: ignore[arg-type]
        document = {"Role": "arn:aws:iam::000000000000:role/service-role/courier", "Rules": [rule]}
        self.site.must("replication", "put", SOURCE, "-", stdin=json.dumps(document).encode())

    def break_role(self) -> None:
        (self.site.root / "roles" / "courier.json").rename(self.site.root / "roles" / "away")

    def events(self) -> list[str]:
        return [names(line) for line in self.site.must("events").out.splitlines()]

    def posted(self) -> list[str]:
        return _once(body for _, _, body in self.receiver.posts)

    def given_to_program(self) -> list[str]:
        return _once(self.told.read_text().splitlines())


def names(line: str | bytes) -> str:
    event: dict[str, Any] = json.loads(line)
    return f"{event['eventName'].partition(':')[2]} {event['s3']['object']['key']}"


def _once(lines: Iterable[str | bytes]) -> list[str]:
    """The names of events that were sent. One that a kill interrupted is sent again, the same in every byte."""
    return [names(line) for line in dict.fromkeys(lines)]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[EventSite]:
    with Receiver() as receiver:
        found = EventSite(tmp_path, receiver)
        with found.site:
            yield found


def test_events_reach_the_log_the_program_and_the_webhook(told: EventSite) -> None:
    """3.2 to 3.6, G11: a failure, a missed threshold and its end: printed by `events`, sent to program and webhook, and
    counted."""
    site = told.site
    told.configure(TIMED)
    site.start()
    os.rename(site.regions["west"], site.root / "gone")
    site.write("late file", b"12345")
    site.until(lambda: site.bucket_status(SOURCE)["pending"] == 1, "it is captured")
    told.pass_minutes(14)
    (rule,) = site.bucket_status(SOURCE)["rules"]
    assert rule["metrics"] == {
        "BytesPendingReplication": 5, "ReplicationLatency": 840.0,
        "OperationsPendingReplication": 1, "OperationsFailedReplication": 0,
    }  # fmt: skip
    assert told.events() == []
    told.pass_minutes(15)
    site.until(told.events, "it is told that it is late")
    site.kill()
    site.start()
    os.rename(site.root / "gone", site.regions["west"])
    site.wait()
    expected = ["OperationMissedThreshold late+file", "OperationReplicatedAfterThreshold late+file"]
    assert told.events() == expected
    told.break_role()
    site.write("refused", b"x")
    site.wait(code=1)
    expected.append("OperationFailedReplication refused")
    assert told.events() == expected
    site.until(lambda: told.posted()[-1:] == expected[-1:], "the address is told")
    site.until(lambda: told.given_to_program()[-1:] == expected[-1:], "the program is told")
    assert told.posted() == told.given_to_program() == expected
    (rule,) = site.bucket_status(SOURCE)["rules"]
    assert rule["metrics"]["OperationsFailedReplication"] == 1
    assert site.stop() == 0
    text = told.metrics.read_text()
    assert "fsrepl_ready 0.0" in text
    assert 'fsrepl_deliveries_failed{destination="west/dst",rule="all",source="east/src"} 1.0' in text
    site.start()
    assert told.events() == expected


def test_following_events(told: EventSite) -> None:
    """`events -f` prints the existing events, then each new one as it comes."""
    site = told.site
    told.configure(METRICS)
    site.start()
    told.break_role()
    site.write("a", b"x")
    site.wait(code=1)
    following = subprocess.Popen(
        [sys.executable, "-m", "fsrepl", "--site", str(site.root), "events", "-f"], stdout=subprocess.PIPE
    )
    assert following.stdout is not None
    try:
        assert names(following.stdout.readline()) == "OperationFailedReplication a"
        site.write("b", b"x")
        assert names(following.stdout.readline()) == "OperationFailedReplication b"
        following.send_signal(signal.SIGINT)
        assert following.wait(DEADLINE_S) == 130
    finally:
        following.kill()
        following.stdout.close()
        following.wait()


def test_a_reload_changes_who_receives_events(told: EventSite) -> None:
    """SIGHUP: new receivers get the events from then on; invalid settings are refused, and the former ones stay."""
    site = told.site
    told.configure(METRICS)
    site.start()
    told.break_role()
    path = site.root / "fsrepl.toml"
    other = told.home / "other"
    path.write_text(path.read_text().replace(str(told.told), str(other)).replace("fsrepl.prom", "other.prom"))
    assert site.daemon is not None
    site.daemon.send_signal(signal.SIGHUP)
    site.until(lambda: (told.home / "other.prom").exists(), "the settings are read again")
    site.write("a", b"x")
    site.wait(code=1)
    site.until(lambda: other.exists() and other.read_text().endswith("\n"), "the other program is told")
    assert not told.told.exists()


def test_check_notes_a_program_that_does_not_exist(tmp_path: Path) -> None:
    """`fsrepl check`: it is a note only, since replication does not need the program."""
    site = Site(tmp_path, replicate=False, settings='[events]\ncommand = ["no-such-program"]')
    done = site.run("check")
    assert done.code == 0
    assert "no program 'no-such-program'" in done.err
