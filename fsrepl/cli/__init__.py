"""The command line: parse, call, print. Each group of commands has a file; common.py has what all groups share.

Only the file of the requested command is imported, only that command's parser is made, and a command imports what it
needs when it is called, so that `fsrepl wait` in a script starts fast.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command_name
from typer.models import CommandInfo

import fsrepl
from fsrepl.cli import next_steps, utf8
from fsrepl.cli.common import State, printable, set_state, state
from fsrepl.errors import FsreplError


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fsrepl {fsrepl.__version__}")
        raise typer.Exit


def options(
    site: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The site's folder. Default: FSREPL_SITE, the nearest fsrepl.toml upwards, /etc/fsrepl."
        ),
    ] = None,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, help="Print more; the daemon also logs captures."
        ),
    ] = 0,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Say nothing of what was done; lists and other answers, warnings and errors are printed.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_state(State(site, verbose, quiet))
    _keep_log(verbose)


def _parser(*, is_whole: bool = True) -> typer.Typer:
    """A parser without commands; options that install completion belong to the whole one."""
    parser = typer.Typer(
        name="fsrepl",
        help="S3 cross-region replication for ordinary directories.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=is_whole,
    )
    parser.callback()(options)
    return parser


app = _parser()


def _keep_log(verbose: int) -> None:
    """Show a command's log lines with -v only: otherwise it prints its answer, and errors that begin with S3's code.

    The daemon configures its log separately.
    """
    if not verbose:
        logging.getLogger("fsrepl").addHandler(logging.NullHandler())


FILES: Mapping[str, Sequence[str]] = {
    "site": ("init", "check", "region"),
    "tiers": ("tier",),
    "daemon": ("daemon", "agent"),
    "buckets": ("bucket", "versioning"),
    "replication": ("replication",),
    "lifecycle": ("lifecycle",),
    "roles": ("role",),
    "objects": ("ls", "head", "cat", "restore", "rm", "tag"),
    "safety": ("ack", "undelete"),
    "status": ("status", "why", "events"),
    "usage": ("du",),
    "wait": ("wait", "retry"),
    "verify": ("verify", "doctor"),
    "scrub": ("scrub",),
    "console": ("console",),
}
"""The commands of each file of this folder, in the order of the help text."""


def files_of(arguments: Iterable[str]) -> list[str]:
    """The file that has the command of these arguments; all files for help or an unknown command."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "--site":
            next(rest, None)
        elif not argument.startswith("-"):
            return [file for file, commands in FILES.items() if argument in commands] or [*FILES]
    return [*FILES]


def completed(environ: Mapping[str, str]) -> list[str] | None:
    """The arguments on the line that a shell asks to complete, roughly: quotes are not looked at. None: no shell asks.

    Source: the scripts that typer installs. bash gives the words of the line, other shells the line.
    """
    if "_FSREPL_COMPLETE" not in environ:
        return None
    return (environ.get("_TYPER_COMPLETE_ARGS") or environ.get("COMP_WORDS", "")).split()[1:]


def _words(arguments: Iterable[str]) -> list[str]:
    """The words of these arguments that name the command: one, or two of a group of commands."""
    words = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--site":
            next(rest, None)
        elif not argument.startswith("-"):
            words.append(argument)
    groups = {each.name for each in app.registered_groups}
    return words[:2] if words and words[0] in groups else words[:1]


def register(files: Iterable[str]) -> None:
    """Add the commands of some files to the parser."""
    for file in files:
        importlib.import_module(f"fsrepl.cli.{file}").register(app)


_FLAGS = ("-v", "--verbose", "-q", "--quiet")


def parser_of(arguments: Sequence[str]) -> typer.Typer:
    """The parser of the one command that these arguments name, else that of all that are registered.

    typer makes the parsers of all commands that it has, half a millisecond each. Help of several commands, a name that
    is wrong, and options before the command that are not known here are left to the whole parser.
    """
    rest = [*arguments]
    while rest and (rest[0] in _FLAGS or rest[0].startswith("--site")):
        del rest[: 2 if rest[0] == "--site" else 1]
    word, below = (*rest, "", "")[:2]
    parser = _parser(is_whole=False)
    if command := _named(word, app):
        parser.registered_commands.append(command)
        return parser
    for group in app.registered_groups:
        if group.name == word and group.typer_instance and (command := _named(below, group.typer_instance)):
            narrow, narrow.typer_instance = copy.copy(group), copy.copy(group.typer_instance)
            narrow.typer_instance.registered_commands = [command]
            parser.registered_groups.append(narrow)
            return parser
    return app


def _named(word: str, parser: typer.Typer) -> CommandInfo | None:
    for command in parser.registered_commands:
        if word == (command.name or get_command_name(command.callback.__name__ if command.callback else "")):
            return command
    return None


def main() -> None:
    """The program: run a command; errors are sentences on stderr, and an exit status (design.md, section 5)."""
    sys.exit(_run())


def _run() -> int:
    utf8.use()
    try:
        line = completed(os.environ)
        register(files_of(sys.argv[1:] if line is None else line))
        parser = parser_of(sys.argv[1:]) if line is None else app
        status = parser(standalone_mode=False)  # the status of a command's typer.Exit is returned here
        return status if isinstance(status, int) else 0
    except typer.Abort:
        typer.echo("cancelled; nothing was changed", err=True)
        return 1
    except FsreplError as error:
        arguments = sys.argv[1:]
        typer.echo(printable(next_steps.said(error, arguments, _words(arguments))), err=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader closed the pipe; keep the interpreter from complaining when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Report errors of the parser, of files named on the command line, and of fsrepl's own code."""
    show, exit_code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(exit_code, int):  # a usage error, of the parser's own copy of click
        show()
        return exit_code
    if isinstance(error, OSError):
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        typer.echo(printable(f"{name}{error.strerror or error}"), err=True)
        return 1
    if state().verbose:
        raise error
    typer.echo(f"unexpected error: {type(error).__name__}: {error}; -v before the command shows where", err=True)
    return 1
