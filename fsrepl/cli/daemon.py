"""fsrepl daemon: the command that systemd starts."""

from __future__ import annotations

import typer

from fsrepl.cli.common import state


def register(app: typer.Typer) -> None:
    app.command()(daemon)


def daemon() -> None:
    """Watch the regions and replicate, in the foreground.

    SIGTERM stops the daemon within seconds; SIGHUP makes it read the settings again.
    """
    from fsrepl.commands import operations, wait
    from fsrepl.daemon import main

    options, commands = state(), main.Commands(operations.run, wait.answer)
    raise typer.Exit(main.run(options.settings, commands, verbose=options.verbose, quiet=options.quiet))
