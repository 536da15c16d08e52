"""A command starts fast: it loads its own file, and no module that it does not use."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from fsrepl.cli import FILES, app, files_of, parser_of, register
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


ALL, ONE = ["all"], ["ls"]


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (["ls", "region/bucket", "--json"], ONE),
        (["-v", "--quiet", "--site", "bucket", "ls", "-h"], ONE),
        (["--site=bucket", "bucket", "ls"], ["bucket", "ls"]),
        (["bucket", "create", "ls"], ["bucket", "create"]),
        (["bucket"], ALL),
        (["bucket", "lss"], ALL),
        (["bucket", "-h", "ls"], ALL),
        (["-h", "ls"], ALL),
        (["-vh", "ls"], ALL),
        (["--version", "ls"], ALL),
        (["--install-completion", "bash"], ALL),
        (["--site"], ALL),
        (["lss"], ALL),
        ([], ALL),
    ],
)
def test_the_parser_of_a_command_that_is_named_exactly_is_the_only_one_made(
    arguments: list[str], commands: list[str]
) -> None:
    """Section 5: all others are made where help shows them, and where a name or an option is not known."""
    register(FILES)
    parser = parser_of(arguments)
    if commands == ALL:
        assert parser is app
        return
    group = get_command(parser)
    for name in commands:
        assert list(group.commands) == [name]  # type: ignore[attr-defined]
        group = group.commands[name]  # type: ignore[attr-defined]


def test_each_command_is_parsed_alone_as_among_all() -> None:
    """Section 5: the same options, types and help text."""
    register(FILES)
    whole, number = get_command(app), 0
    for word, each in whole.commands.items():  # type: ignore[attr-defined]
        for below, command in getattr(each, "commands", {"": each}).items():
            words = [word, below] if below else [word]
            alone: Any = get_command(parser_of([*words, "argument"]))
            for name in words:
                alone = alone.commands[name]
            assert _described(alone) == _described(command)
            number += 1
    assert number > 50


def _described(command: Any) -> list[object]:
    params = [(type(each).__name__, each.name, each.opts, each.type.name, each.default) for each in command.params]
    return [command.name, command.help, command.hidden, command.no_args_is_help, command.context_settings, *params]


def loaded(*arguments: str, before: str = "") -> set[str]:
    """The modules that a command has loaded when it ends. before: what the process runs first."""
    script = (
        f"import atexit, sys; sys.argv = {['fsrepl', *arguments]}\n{before}\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "from fsrepl.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {*done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize(
    ("environ", "is_only_it"),
    [
        ({"COMP_WORDS": "fsrepl --site /s head e", "COMP_CWORD": "4"}, True),
        ({"_FSREPL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "fsrepl head e"}, True),
        ({"COMP_WORDS": "fsrepl hea", "COMP_CWORD": "1"}, False),
    ],
)
def test_completion_loads_the_file_of_the_command_on_the_line(environ: dict[str, str], *, is_only_it: bool) -> None:
    """A press of Tab answers fast: other files are loaded where the command is still to be completed."""
    asked = {"_FSREPL_COMPLETE": "complete_bash", "_TYPER_COMPLETE_FISH_ACTION": "get-args", **environ}
    found = loaded(before=f"import os; os.environ.update({asked})")
    assert "fsrepl.cli.objects" in found
    assert ("fsrepl.cli.buckets" not in found) is is_only_it


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
