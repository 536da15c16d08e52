"""Lifecycle with a real daemon, the command line, and a clock that the test sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.site import DESTINATION, SOURCE, Site

RULES = {"Rules": [{"ID": "old", "Filter": {"Prefix": "logs/"}, "Status": "Enabled", "Expiration": {"Days": 2}}]}


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    return tmp_path / "now"


@pytest.fixture
def site(tmp_path: Path, clock: Path) -> Iterator[Site]:
    clock.write_text("2026-05-01T10:00:00Z")
    with Site(tmp_path) as found:
        found.environ["FSREPL_CLOCK"] = str(clock)
        yield found


def later(clock: Path, moment: str) -> None:
    """Set the clock of a running daemon, which would read a file that is being written as no time at all."""
    moved = clock.with_name("now.new")
    moved.write_text(moment)
    moved.rename(clock)


def told(site: Site) -> list[tuple[str, str]]:
    events: list[Any] = [json.loads(line) for line in site.must("events").out.splitlines()]
    return [(each["eventName"], each["s3"]["object"]["key"]) for each in events]


@pytest.mark.slow
def test_a_day_of_a_bucket(site: Site, clock: Path) -> None:
    """S25, S26, 5.3: rules are put, previewed, and carried out after midnight by themselves; a user restores an object;
    the replica stays."""
    site.start()
    for key in ("logs/a", "keep"):
        site.put(key, key.encode())
    site.wait()
    site.refused("NoSuchLifecycleConfiguration", "lifecycle", "get", SOURCE)
    site.must("lifecycle", "put", SOURCE, "-", stdin=json.dumps(RULES).encode())
    assert site.json("lifecycle", "get", SOURCE) == RULES
    assert site.json("lifecycle", "preview", SOURCE) == {"Items": []}
    assert site.run("lifecycle", "preview", SOURCE, "--at", "tomorrow").code == 2
    (item,) = site.json("lifecycle", "preview", SOURCE, "--at", "2026-05-04")["Items"]
    assert (item["Key"], item["Due"][:10]) == ("logs/a", "2026-05-04")
    assert "is due 2026-05-04" in site.must("why", f"{SOURCE}/logs/a").out
    assert site.json("bucket", "ls")["Buckets"][0]["LifecycleRules"] == 1
    site.until(lambda: "lifecycle.json" not in site.must("doctor").out, "the document is taken as it is")
    later(clock, "2026-05-04T00:00:30Z")
    site.until(lambda: site.tree(SOURCE) == {"keep": b"keep"}, "it expired after midnight")
    assert told(site) == [("LifecycleExpiration:DeleteMarkerCreated", "logs/a")]
    site.wait()
    assert site.tree(DESTINATION) == {"keep": b"keep", "logs/a": b"logs/a"}
    site.must("restore", f"{SOURCE}/logs/a")
    assert site.tree(SOURCE) == {"keep": b"keep", "logs/a": b"logs/a"}


@pytest.mark.slow
def test_a_run_by_command_and_after_downtime(site: Site, clock: Path) -> None:
    """design, 5: `run` acts now, through the daemon and without one; a missed run is made up for later."""
    site.must("lifecycle", "put", SOURCE, "-", stdin=json.dumps(RULES).encode())
    site.start()
    site.put("logs/a", b"a")
    site.wait()
    later(clock, "2026-05-04T00:00:30Z")
    answer = site.json("lifecycle", "run", SOURCE)
    assert set(answer) == {"Bucket", "Judged", "Done", "Blocked", "Busy"}
    site.until(lambda: site.tree(SOURCE) == {}, "it is expired by one run or the other")
    site.put("logs/b", b"b")
    site.wait()
    site.stop()
    site.put("logs/c", b"c")
    later(clock, "2026-05-09T12:00:00Z")
    site.start()
    site.until(lambda: site.tree(SOURCE) == {"logs/c": b"c"}, "what was missed is made up for, and what is new stays")
    site.wait()  # until that is a version, of today
    site.stop()
    later(clock, "2026-05-14T12:00:00Z")
    assert site.json("lifecycle", "run", SOURCE)["Done"]["Expiration"] == 1
    assert site.tree(SOURCE) == {}
    site.must("lifecycle", "rm", SOURCE)
    site.refused("NoSuchLifecycleConfiguration", "lifecycle", "run", SOURCE)
