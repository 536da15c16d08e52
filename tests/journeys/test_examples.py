"""fsrepl accepts the files in examples/, and its scripts work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsrepl.s3 import lifecycle, replication, roles
from fsrepl.settings import reading
from tests.site import Site

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("replication/*.json")), ids=lambda p: p.stem)
def test_a_configuration_is_accepted(path: Path) -> None:
    """s3-semantics, 1: each is valid as it stands, and is returned as it was put."""
    document = json.loads(path.read_text())
    found = replication.read_replication(document, source="us-east-1/photos", named=lambda _: [])
    assert {"ReplicationConfiguration": found.document} == document


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("lifecycle/*.json")), ids=lambda p: p.stem)
def test_a_lifecycle_is_accepted(path: Path) -> None:
    """s3-semantics, 5.1: each is valid as it stands, and is returned as it was put."""
    document = json.loads(path.read_text())
    assert lifecycle.read_lifecycle(document).document == document


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("roles/*.json")), ids=lambda p: p.stem)
def test_a_role_is_accepted(path: Path) -> None:
    """s3-semantics, 6."""
    assert roles.parse_role(json.loads(path.read_text()), path.stem).name == path.stem


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_settings_are_accepted(path: Path) -> None:
    """design, 4."""
    assert reading.load(path).regions


@pytest.mark.slow(15)
def test_the_demo_does_the_main_job(tmp_path: Path) -> None:
    """The README's first command, on a smaller tree: exit status 0, and the site stays behind."""
    tree = tmp_path / "tree"
    shutil.copytree(Path(json.__file__).parent, tree / "json", ignore=shutil.ignore_patterns("__pycache__"))
    for i in range(150):
        (tree / f"module_{i:03}.py").write_text(f"number = {i}\n")
    command = [sys.executable, EXAMPLES / "demo.py", tmp_path / "demo", "--tree", tree]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all the same" in done.stdout
    assert (tmp_path / "demo" / "eu-west-1" / "library-copy" / "json_moved" / "decoder.py").exists()


@pytest.mark.slow
def test_a_wal_segment_is_safe_when_the_command_returns(tmp_path: Path) -> None:
    """design, 6: archive_command; a second call with the same segment succeeds, one with another content is refused."""
    with Site(tmp_path) as site:
        site.start()
        wrapper = tmp_path / "bin"
        wrapper.mkdir()
        (wrapper / "fsrepl").write_text(f'#!/bin/sh\nexec {sys.executable} -m fsrepl --site {site.root} "$@"\n')
        (wrapper / "fsrepl").chmod(0o755)
        segment = tmp_path / "segment"
        segment.write_bytes(b"wal" * 5000)

        def archive() -> int:
            command = [EXAMPLES / "archive-wal", site.path(), "east/src", segment, "000000010000000000000001"]
            return subprocess.run(command, env={"PATH": f"{wrapper}:/usr/bin:/bin"}, capture_output=True).returncode

        assert archive() == 0
        assert site.tree("west/dst") == {"000000010000000000000001": b"wal" * 5000}
        assert archive() == 0
        segment.write_bytes(b"other")
        assert archive() == 1
