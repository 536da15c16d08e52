"""Shell completion: regions, buckets, and keys a directory at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    found = Site(tmp_path_factory.mktemp("completion"))
    found.write("2026/cat.jpg", b"c")
    found.write("2026/dog.jpg", b"d")
    return found


def offered(words: str, **environ: str) -> list[str]:
    """The program's answer to bash, which asks for the words that can end a line."""
    asked = {
        "_FSREPL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"fsrepl {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "FSREPL_SITE"}
    program = Path(sys.executable).with_name("fsrepl")
    done = subprocess.run([program], env=inherited | asked | environ, cwd="/", capture_output=True, text=True)
    assert done.stderr == ""
    return sorted(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("head e", ["east/src/"]),
        ("head east/src/2", ["east/src/2026/"]),
        ("cat east/src/2026/c", ["east/src/2026/cat.jpg"]),
        ("replication enable east/src w", ["west/dst"]),
        ("versioning show ", ["east/src", "west/dst"]),
        ("bucket ls e", ["east"]),
        ("bucket ls east/", ["east/src"]),
        ("role show x", []),
        ("head nowhere/x/y", []),
        ("hea", ["head"]),
        ("bucket cr", ["create"]),
    ],
)
def test_what_is_offered(site: Site, words: str, expected: list[str]) -> None:
    """Section 5: completion uses the site of the environment, or that of --site on the line."""
    assert offered(words, FSREPL_SITE=str(site.root)) == expected
    assert offered(f"--site {site.root} {words}") == expected


def test_nothing_is_offered_without_a_site() -> None:
    """A shell that completes in any folder gets no error."""
    for words in ("head east/src/", "versioning show ", "bucket ls ", "role show "):
        assert offered(words) == []
