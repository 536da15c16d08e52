"""fsrepl console: the web console."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec.structs import replace

from fsrepl.cli.common import state
from fsrepl.errors import Usage
from fsrepl.settings import kinds


def register(app: typer.Typer) -> None:
    app.command()(console)


def console(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where browsers reach it; '' for the Unix socket alone. Default: [console] listen.",
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Show everything, change nothing.")] = False,
) -> None:
    """Show the site in a browser, and change it there.

    Runs in the foreground until Ctrl-C, and prints a link that opens the console once. Where a console of this site
    runs already, the command prints another link to it, and ends.
    """
    try:
        from fsrepl.console import server
    except ImportError as error:
        raise Usage(f"the console needs more packages ({error}); pip install 'fsrepl[console]' brings them") from error
    options, settings = state(), state().settings
    if listen is not None:
        try:
            found = kinds.listen(listen)
        except ValueError as error:
            raise Usage(f"--listen {listen} must be {error}") from error
        settings = replace(settings, console=replace(settings.console, listen=found))
    wanted = server.Options(read_only, options.verbose, options.quiet)
    raise typer.Exit(server.run(settings, wanted))
