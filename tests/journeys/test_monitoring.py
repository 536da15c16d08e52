"""The alert rules and the board: each metric that they name is exported, and Prometheus itself takes every query."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.scraping import free_port, scrape
from tests.site import SOURCE, Site
from tests.waiting import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
RULES, BOARD = ROOT / "contrib" / "prometheus-rules.yaml", ROOT / "contrib" / "grafana-board.json"
PROGRAMS = ROOT / ".venv" / "prometheus" / "usr" / "bin"

needs_prometheus = pytest.mark.skipif(
    not (PROGRAMS / "promtool").exists(),
    reason="Debian's prometheus is not unpacked in .venv/prometheus: see tests/run",
)


def alerts() -> dict[str, str]:
    """Alert to expression. Each expression of the file is on one line."""
    text = RULES.read_text()
    found = dict(re.findall(r"- alert: (\w+)\n +expr: (.+)", text))
    assert len(found) == text.count("alert:") == text.count("expr:")
    return found


def queries() -> list[tuple[str, str]]:
    """(panel, query) of the board."""
    board = json.loads(BOARD.read_text())
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bfsrepl_[a-z_]+", expression))


@contextmanager
def exporting(home: Path) -> Iterator[tuple[Site, int]]:
    """A site with a daemon that exports, after one file was replicated."""
    port = free_port()
    with Site(home, settings=f'[metrics]\nlisten = "127.0.0.1:{port}"') as site:
        site.start()
        site.write("k", b"content")
        site.wait()
        yield site, port


def test_every_metric_that_is_named_is_exported(tmp_path: Path) -> None:
    """A rule or a panel on a metric that is renamed stays silent for ever; and each metric is on the board."""
    with exporting(tmp_path) as (_, port):
        text = scrape(port)
    exported = set(re.findall(r"^(fsrepl_[a-z_]+)[ {]", text, re.MULTILINE))
    exported -= {name for name in exported if name.endswith("_created")}
    assert (
        f'fsrepl_operations_replicated_total{{destination="west/dst",rule="src-to-dst",source="{SOURCE}"}} 1.0' in text
    )
    assert "fsrepl_bytes_replicated_total" in text
    in_alerts = set[str]().union(*map(metrics_in, alerts().values()))
    on_board = set[str]().union(*(metrics_in(query) for _, query in queries()))
    assert in_alerts - exported == set()
    assert on_board - exported == set()
    assert exported - on_board - in_alerts == set()
    labels = set(re.findall(r'(\w+)="', text))
    assert set(re.findall(r"(?:\{\{|\$labels\.)\s*(\w+)", BOARD.read_text() + RULES.read_text())) <= labels | {
        "instance"
    }


def test_every_alert_says_what_to_do() -> None:
    """A summary names what stands still, a description what to do; and a test of promtool's knows each alert."""
    text = RULES.read_text()
    for alert in alerts():
        block = text.partition(f"alert: {alert}\n")[2].partition("- alert:")[0]
        assert "summary: " in block, alert
        assert "description: " in block, alert
        assert re.search(r"severity: (warning|critical)", block), alert
        assert any(alert in path.read_text() for path in RULES.parent.glob("*.test.yaml")), alert


@needs_prometheus
def test_promtool_takes_the_rules_and_they_fire_when_they_should() -> None:
    tests = sorted(path.name for path in RULES.parent.glob("*.test.yaml"))
    for arguments in (["check", "rules", RULES.name], ["test", "rules", *tests]):
        ran = subprocess.run(
            [PROGRAMS / "promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@needs_prometheus
def test_prometheus_answers_every_query_from_the_real_exporter(tmp_path: Path) -> None:
    """Each panel has something to show, and no alert but those on a site that is well."""
    with exporting(tmp_path / "site") as (_, exporter), prometheus(tmp_path, exporter) as ask:
        until(lambda: ask("fsrepl_ready"), "Prometheus has scraped the daemon")
        until(lambda: ask("rate(fsrepl_operations_replicated_total[30s])"), "twice")
        for title, query in queries():
            query = query.replace("$bucket", ".*").replace("$__rate_interval", "30s")
            assert ask(query), f"{title}: {query}"
        firing = {alert for alert, expression in alerts().items() if ask(expression)}
        assert firing <= {"FsreplSpaceLow", "FsreplCapturePaused"}  # the machine of the test may be full


@contextmanager
def prometheus(home: Path, exporter: int) -> Iterator[Any]:
    """A Prometheus that scrapes one exporter; a function that asks it for the samples of a query."""
    port = free_port()
    (home / "prometheus.yml").write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        f"rule_files: ['{RULES}']\n"
        f"scrape_configs: [{{job_name: fsrepl, static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]}}]\n"
    )
    process = subprocess.Popen(
        [PROGRAMS / "prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/tsdb",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "GOMAXPROCS": "1"},
    )  # fmt: skip

    def ask(query: str) -> list[Any]:
        address = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(address, timeout=DEADLINE_S) as answer:
                found: list[Any] = json.load(answer)["data"]["result"]
                return found
        except urllib.error.HTTPError as error:
            if error.code == 503:  # not ready yet
                return []
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except urllib.error.URLError:
            assert process.poll() is None, "Prometheus ended"
            time.sleep(0.05)
            return []

    try:
        yield ask
    finally:
        process.kill()
        process.wait()
