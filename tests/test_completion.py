"""What a shell offers: regions, buckets, and keys a directory at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsrepl.cli import completion
from tests.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    found = Site(tmp_path_factory.mktemp("completion"))
    found.write("2026/cat.jpg", b"c")
    found.write("2026/dog.jpg", b"d")
    return found


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("head e", ["east/src/"]),
        ("head east/src/2", ["east/src/2026/"]),
        ("cat east/src/2026/c", ["east/src/2026/cat.jpg"]),
        ("replication enable east/src w", ["west/dst"]),
        ("versioning show ", ["east/src", "west/dst"]),
        ("bucket ls e", ["east"]),
        ("role show x", []),
        ("head nowhere/x/y", []),
    ],
)
def test_what_is_offered(site: Site, words: str, offered: list[str]) -> None:
    """design, 5: shell completion, through the program as bash asks it."""
    environ = {
        **os.environ,
        "FSREPL_SITE": str(site.root),
        "_FSREPL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"fsrepl {words}",
    }
    environ["COMP_CWORD"] = str(len(f"x {words}".split(" ")) - 1)
    program = Path(sys.executable).with_name("fsrepl")
    done = subprocess.run([program], env=environ, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == offered, done.stderr


def test_nothing_is_offered_without_a_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell that completes in any folder gets no error."""
    monkeypatch.delenv("FSREPL_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (
        completion.objects("east/src/")
        == completion.buckets("")
        == completion.regions("")
        == completion.roles("")
        == []
    )
