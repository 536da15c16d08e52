"""A command starts fast: it loads its own file, and no module that it does not use."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from fsrepl.cli import FILES, files_of
from fsrepl.commands import sites
from tests.world import SOURCE, World

HEAVY = ("asyncio", "http", "prometheus_client", "pydantic", "rich", "sqlite3", "watchdog")
"""What takes as long to load as all else that `fsrepl --help` needs."""


DAEMON = ("fsrepl.daemon.engine", "fsrepl.region.region", "secrets")
"""What only a process loads that moves content, and what needs OpenSSL for a number."""


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


def loaded(*arguments: str, before: str = "") -> set[str]:
    """The modules that a command has loaded when it ends. before: what the process runs first."""
    script = (
        f"import atexit, sys; sys.argv = {['fsrepl', *arguments]}\n{before}\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "from fsrepl.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {*done.stderr.splitlines()[-1].split()}


def test_a_command_loads_nothing_that_it_does_not_use() -> None:
    """Section 5: scripts call `fsrepl wait` and `fsrepl ls` again and again."""
    found = loaded("role", "ls", "--help")
    assert found & {*HEAVY} == set()
    assert [file for file in FILES if f"fsrepl.cli.{file}" in found] == ["roles"]


@pytest.mark.parametrize("command", [["ls", SOURCE], ["head", f"{SOURCE}/k"], ["status", "--json"], ["init", "{}"]])
def test_a_command_that_moves_nothing_loads_no_part_of_the_daemon(command: list[str], tmp_path: Path) -> None:
    """Section 5: these answer before a person notices, and no watcher, engine or screen takes its time in them."""
    with World(tmp_path / "site") as world:
        world.write("k", b"data")
        world.settle()
        site = str(world.engine.settings.path.parent)
        found = loaded("--site", site, *(each.format(tmp_path / "another") for each in command))
    assert "fsrepl.storage.fs" in found
    assert found & ({*HEAVY, *DAEMON} - {"sqlite3"}) == set()


@pytest.mark.parametrize("command", [["versioning", "enable", SOURCE], ["rm", f"{SOURCE}/k"]])
def test_what_the_daemon_carries_out_is_not_loaded_by_the_command(command: list[str], tmp_path: Path) -> None:
    """Section 5: the operations are loaded in the daemon already; the command sends a request and prints the answer."""
    sites.init(tmp_path, {"east": None})
    answers = "from fsrepl.daemon import control; control.ask = lambda *about: {}"
    found = loaded("--site", str(tmp_path), *command, "--json", before=answers)
    assert "fsrepl.daemon.control" in found
    assert [name for name in found if name.startswith(("fsrepl.commands.", "fsrepl.views.", "fsrepl.region."))] == []
