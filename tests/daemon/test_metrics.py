"""The numbers of section 3.5: as status shows them, and as Prometheus reads them."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import pytest

from fsrepl import settings
from fsrepl.commands import status
from fsrepl.daemon import exporter, metrics
from fsrepl.daemon.exporter import Exporter
from fsrepl.daemon.metrics import Daemon, Gauge
from fsrepl.errors import Usage
from fsrepl.settings import reading
from fsrepl.storage.fs import Fs
from fsrepl.storage.journal.questions import Rule
from fsrepl.storage.journal.rows import Counts
from tests.scraping import free_port, scrape
from tests.timed import METRICS, Timed, timed_world
from tests.world import SOURCE, v2


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    with timed_world(tmp_path, monkeypatch) as found:
        yield found


def shown(timed: Timed) -> dict[str, dict[str, float]]:
    """Metrics by rule, as `status --json` has them; checks that a restart and a new journal change nothing."""

    def look() -> dict[str, dict[str, float]]:
        document = status.status(timed.world.engine.site, {})
        (bucket,) = (b for b in document["buckets"] if b["bucket"] == SOURCE)
        return {rule["id"]: rule["metrics"] for rule in bucket["rules"]}

    found = look()
    for without_journal in (False, True):
        timed.world.restart(without_journal=without_journal)
        timed.settle()
        assert look() == found
    return found


def numbers(pending: int = 0, size: int = 0, latency: float = 0, failed: int = 0) -> dict[str, float]:
    return {
        "BytesPendingReplication": size,
        "ReplicationLatency": latency,
        "OperationsPendingReplication": pending,
        "OperationsFailedReplication": failed,
    }


def test_what_is_pending_is_counted_by_rule(timed: Timed) -> None:
    """3.5, G11: bytes, operations (markers too) and the greatest delay, of each rule, with metrics on or off."""
    timed.world.configure(
        {"ID": "docs", **v2("docs/", 1, markers=True, **METRICS)}, {"ID": "rest", **v2("", 0, markers=True)}
    )
    timed.world.write("docs/done", b"x")
    timed.settle()
    assert shown(timed) == {"docs": numbers(), "rest": numbers()}
    timed.world.away("west")
    timed.world.write("docs/a", b"12345")
    timed.settle()
    timed.pass_minutes(10)
    timed.world.write("docs/b", b"1234567")
    timed.world.path("docs/done").unlink()
    timed.world.write("other", b"1")
    timed.settle()
    timed.pass_minutes(0.5)
    assert shown(timed) == {"docs": numbers(3, 12, 630.0), "rest": numbers(1, 1, 30.0)}
    timed.world.back("west")
    timed.settle()
    assert shown(timed) == {"docs": numbers(), "rest": numbers()}


def test_failures_are_those_of_the_last_minute(timed: Timed) -> None:
    """3.5: a failure counts for a minute; its delivery is FAILED for longer."""
    timed.configure({})
    timed.break_role()
    timed.world.write("a", b"data")
    timed.world.write("b", b"data")
    timed.settle()
    timed.pass_minutes(0.9)
    assert shown(timed) == {"all": numbers(failed=2)}
    timed.pass_minutes(0.1)
    assert shown(timed) == {"all": numbers()}
    assert timed.world.statuses() == {"FAILED"}


def test_backfills_are_not_pending_live_and_their_failures_count(timed: Timed) -> None:
    """3.5: pending and latency are of live replication alone; failures are of both."""
    timed.world.write("old", b"data")
    timed.settle()
    timed.configure({})
    timed.pass_minutes(5)
    timed.world.away("west")
    timed.world.run("replication.backfill", source=SOURCE)
    timed.settle()
    timed.pass_minutes(5)
    assert shown(timed) == {"all": numbers()}
    timed.world.back("west")
    timed.break_role()
    timed.settle()
    assert shown(timed) == {"all": numbers(failed=1)}


def test_an_edit_is_behind_from_its_own_time_on(timed: Timed) -> None:
    """3.5: tags of an old version make the destination late by the time since they were set."""
    timed.configure({})
    timed.world.write("a", b"data")
    timed.settle()
    timed.pass_minutes(1000)
    timed.world.away("west")
    timed.world.run("tag.set", bucket=SOURCE, key=b"a", tags={"colour": "blue"})
    timed.pass_minutes(2)
    timed.settle()
    assert shown(timed) == {"all": numbers(1, 4, 120.0)}


# -- Prometheus

GAUGES = [
    Gauge("fsrepl_ready", "Ready.", True),
    Gauge("fsrepl_pending", "Pending.", 3, (("rule", 'a "b"'), ("source", "east/src"))),
    Gauge("fsrepl_pending", "Pending.", 4, (("rule", "c"), ("source", "east/src"))),
]
TEXT = """\
# HELP fsrepl_ready Ready.
# TYPE fsrepl_ready gauge
fsrepl_ready 1.0
# HELP fsrepl_pending Pending.
# TYPE fsrepl_pending gauge
fsrepl_pending{rule="a \\"b\\"",source="east/src"} 3.0
fsrepl_pending{rule="c",source="east/src"} 4.0
"""


def test_everything_that_is_exported(timed: Timed) -> None:
    """3.5: the daemon, the buckets, and each rule, also one with nothing to show."""
    timed.world.configure({"ID": "docs", **v2("docs/", 1)}, {"ID": "rest", **v2("", 0)})
    timed.world.away("west")
    timed.world.write("docs/a", b"12345")
    timed.settle()
    timed.pass_minutes(2)
    engine = timed.world.engine
    found = list(metrics.gauges(engine.site, engine.journal, Daemon(True, 7, 2)))
    assert {g.name: g.value for g in found if not g.labels} == {
        "fsrepl_ready": True, "fsrepl_watched_directories": 7, "fsrepl_events_lost": 2,
        "fsrepl_log_lines_dropped": 0,
    }  # fmt: skip
    assert {g.labels[0][1]: g.value for g in found if g.name == "fsrepl_bucket_online"} == {
        "east/src": True, "west/dst": False,
    }  # fmt: skip
    rules = {(g.name, dict(g.labels)["rule"]): g.value for g in found if dict(g.labels).get("source") == SOURCE}
    assert rules == {
        ("fsrepl_bytes_pending_replication", "docs"): 5,
        ("fsrepl_replication_latency_seconds", "docs"): 120,
        ("fsrepl_operations_pending_replication", "docs"): 1,
        ("fsrepl_operations_failed_replication", "docs"): 0,
        ("fsrepl_deliveries_failed", "docs"): 0,
        ("fsrepl_operations_replicated", "docs"): 0,
        ("fsrepl_bytes_replicated", "docs"): 0,
        ("fsrepl_large_bytes_replicated", "docs"): 0,
        ("fsrepl_large_bytes_crossed", "docs"): 0,
        ("fsrepl_bytes_pending_replication", "rest"): 0,
        ("fsrepl_replication_latency_seconds", "rest"): 0,
        ("fsrepl_operations_pending_replication", "rest"): 0,
        ("fsrepl_operations_failed_replication", "rest"): 0,
        ("fsrepl_deliveries_failed", "rest"): 0,
        ("fsrepl_operations_replicated", "rest"): 0,
        ("fsrepl_bytes_replicated", "rest"): 0,
        ("fsrepl_large_bytes_replicated", "rest"): 0,
        ("fsrepl_large_bytes_crossed", "rest"): 0,
    }


def test_an_endpoint_to_scrape() -> None:
    """Settings: [metrics] listen; it follows a reload, and is off unless asked for."""
    found = Exporter(lambda: GAUGES, Fs())
    found.configure(settings.Metrics())
    first, second = free_port(), free_port()
    found.configure(settings.Metrics(listen=("127.0.0.1", first)))
    assert scrape(first) == TEXT
    found.configure(settings.Metrics(listen=("127.0.0.1", second)))
    assert scrape(second) == TEXT
    with pytest.raises(OSError, match="refused"):
        scrape(first)
    found.close()
    with pytest.raises(OSError, match="refused"):
        scrape(second)


def test_a_port_that_is_in_use(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replication does not stop for it: the fault is logged, and the next reload tries again."""
    monkeypatch.setattr(exporter.log, "propagate", True)
    found = Exporter(lambda: GAUGES, Fs())
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        found.configure(settings.Metrics(listen=("127.0.0.1", port)))
        assert "cannot listen on 127.0.0.1" in caplog.text
    found.configure(settings.Metrics(listen=("127.0.0.1", port)))
    assert scrape(port) == TEXT
    found.close()


def test_a_text_file(tmp_path: Path) -> None:
    """Settings: [metrics] textfile; replaced in one step, readable by node_exporter, and correct until the daemon
    ends."""
    ready = True
    path = tmp_path / "fsrepl.prom"
    path.write_text("before")
    found = Exporter(lambda: [Gauge("fsrepl_ready", "Ready.", ready)], Fs())
    found.configure(settings.Metrics(textfile=path))
    ready = False
    found.close()
    assert path.read_text().endswith("fsrepl_ready 0.0\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_cannot_be_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export has no numbers rather than wrong ones, and the log says why."""
    monkeypatch.setattr(exporter.log, "propagate", True)

    def fail() -> list[Gauge]:
        raise Usage("the clock is away")

    found = Exporter(fail, Fs())
    port = free_port()
    found.configure(settings.Metrics(listen=("127.0.0.1", port)))
    assert scrape(port) == scrape(port) == ""
    found.close()
    assert caplog.text.count("the clock is away") == 1


@pytest.mark.parametrize("line", ['listen = "127.0.0.1:9750"', 'textfile = "/tmp/fsrepl.prom"'])
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Section 5: where the settings ask for metrics, `fsrepl check` and the daemon name the package to install."""
    text = '[regions.east]\npath = "/somewhere"\n'
    bare = reading.parse(text, Path("/x/fsrepl.toml"))
    asking = reading.parse(f"{text}[metrics]\n{line}\n", Path("/x/fsrepl.toml"))
    exporter.check(asking)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    exporter.check(bare)
    with pytest.raises(Usage, match=rf"/x/fsrepl.toml: \[metrics\] {line.split()[0]} needs .*pip install"):
        exporter.check(asking)


@dataclass
class Numbers:
    """DeliveryCounts, in memory. failed: by the moment since which they are counted."""

    pending: dict[Rule, Counts]
    failed: dict[int, dict[Rule, int]]

    def live_pending_counts(self, address: str) -> dict[Rule, Counts]:
        return self.pending

    def failed_counts(self, address: str, after_ns: int = 0) -> dict[Rule, int]:
        return self.failed[after_ns]


def test_what_is_counted_of_a_rule() -> None:
    """3.5: pending by number, bytes and the age of the oldest, never below zero; failures of the last minute."""
    minute_ns = 60 * 10**9
    late, early, failed = ("west/dst", "late"), ("west/dst", "early"), ("west/other", "failed")
    numbers = Numbers(
        {late: Counts(2, 10, minute_ns), early: Counts(1, 5, 9 * minute_ns)},
        {2 * minute_ns: {late: 1, failed: 7}},
    )
    assert metrics.of_bucket(numbers, "east/src", 3 * minute_ns) == {
        late: metrics.RuleMetrics(10, 120.0, 2, 1),
        early: metrics.RuleMetrics(5, 0.0, 1, 0),  # the clock was set back since
        failed: metrics.RuleMetrics(0, 0.0, 0, 7),
    }
