"""A command starts fast: it loads its own file, and no module that it does not use."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import typer
from typer.main import get_command

from fsrepl.cli import FILES, files_of

HEAVY = ("asyncio", "http", "prometheus_client", "pydantic", "rich", "sqlite3", "watchdog")
"""What takes as long to load as all else that `fsrepl --help` needs."""


@pytest.mark.parametrize("file", FILES)
def test_every_command_is_found_in_its_file(file: str) -> None:
    """Section 5: a command missing from the table would be unknown, and one in another file would never be found."""
    app = typer.Typer(callback=lambda: None)
    importlib.import_module(f"fsrepl.cli.{file}").register(app)
    group = get_command(app)
    assert sorted(group.commands) == sorted(FILES[file])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["ls", "status"], ["objects"]),
        (["--site", "ls", "-q", "role", "ls"], ["roles"]),
        (["--site=ls", "status"], ["status"]),
        ([], list(FILES)),
        (["--help"], list(FILES)),
        (["statsu"], list(FILES)),
        (["--site"], list(FILES)),
    ],
)
def test_the_first_word_that_is_no_option_names_the_file(arguments: list[str], files: list[str]) -> None:
    """Section 5: where no file has the command, all files are loaded, so that help and suggestions know every
    command."""
    assert files_of(arguments) == files


def test_a_command_loads_nothing_that_it_does_not_use() -> None:
    """Section 5: scripts call `fsrepl wait` and `fsrepl ls` again and again."""
    script = (
        "import atexit, sys; sys.argv = ['fsrepl', 'role', 'ls', '--help']\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "from fsrepl.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert [name for name in loaded if name in HEAVY] == []
    assert [file for file in FILES if f"fsrepl.cli.{file}" in loaded] == ["roles"]
