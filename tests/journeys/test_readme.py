"""The commands and settings of the README and of the reference pages work as they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsrepl.settings import reading

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
README = ROOT / "README.md"
PAGES = (README, REFERENCE / "setting-up.md", REFERENCE / "recovery.md")
"""The pages with commands to be run, which go on where the one before ended."""
_TESTED = re.compile(r"<!-- tested: (?P<name>[^>]+) -->\n```bash\n(?P<script>.*?)```", re.DOTALL)

_SETTINGS = re.compile(r"```toml\n(.*?)```", re.DOTALL)


@pytest.mark.slow(10)
@pytest.mark.skipif(not shutil.which("getfattr"), reason="getfattr is not installed here")
def test_the_commands_of_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    """First steps, undoing, a lost site (G6), a removed store, a dead disk (G7), and plain files in the end."""
    blocks = {m["name"]: m["script"] for page in PAGES for m in _TESTED.finditer(page.read_text())}
    assert list(blocks) == [
        "first steps",
        "undoing",
        "lifecycle",
        "site lost",
        "store removed",
        "dead disk",
        "uninstall",
    ]
    script = "set -eux -o pipefail\n" + "\n".join(f"echo '== {name}'\n{text}" for name, text in blocks.items())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = tmp_path / "home"
    home.mkdir()
    environ = {**os.environ, "PATH": path, "NO_COLOR": "1", "HOME": str(home)}
    done = subprocess.run(
        ["bash", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    log = tmp_path / "site" / "daemon.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    parts = dict(re.findall(r"^== ([a-z ]+)\n(.*?)(?=^== |\Z)", done.stdout, re.DOTALL | re.MULTILINE))
    assert "safe" in parts["first steps"]
    assert 'user.fsrepl.replication-status="REPLICA"' in parts["first steps"]
    assert "purr" in parts["undoing"]
    assert "nothing was due" in parts["lifecycle"]
    assert "us-east-1/photos" in parts["site lost"]
    assert "no differences" in parts["store removed"]
    assert "purr" in parts["dead disk"]
    assert parts["uninstall"].strip().endswith("purr")


def test_the_settings_of_the_readme_are_settings(tmp_path: Path) -> None:
    """Section 4: the settings for events and metrics are valid as they stand."""
    (text,) = _SETTINGS.findall((REFERENCE / "operations.md").read_text())
    found = reading.parse(f'[regions.east]\npath = "east"\n{text}', tmp_path / "fsrepl.toml", os.path.realpath)
    assert found.events.command == ("/usr/local/bin/page-me",)
    assert found.events.webhook.startswith("https://")
    assert found.metrics.listen == ("127.0.0.1", 9750)
    assert found.metrics.textfile == Path("/var/lib/node_exporter/fsrepl.prom")


def test_the_readme_is_for_newcomers_and_leads_to_the_rest() -> None:
    """At most 150 lines; and no link of it, or of a reference page, leads to nowhere."""
    assert len(README.read_text().splitlines()) <= 150
    linked = {(README.parent / target).resolve() for target in _links(README)}
    assert {page.resolve() for page in REFERENCE.glob("*.md")} <= linked
    for page in (README, *REFERENCE.glob("*.md")):
        for target in _links(page):
            assert (page.parent / target).resolve().exists(), f"{page.name}: {target}"


def _links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
