"""fsrepl daemon: the command that systemd starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsrepl.cli.common import state


def register(app: typer.Typer) -> None:
    app.command()(daemon)
    app.command()(agent)


def daemon() -> None:
    """Watch the regions and replicate, in the foreground.

    SIGTERM stops the daemon within seconds; SIGHUP makes it read the settings again.
    """
    from fsrepl.commands import operations, wait
    from fsrepl.daemon import main

    options, commands = state(), main.Commands(operations.run, wait.answer)
    raise typer.Exit(main.run(options.checked_settings, commands, verbose=options.verbose, quiet=options.quiet))


def agent(
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Serve no region outside of this directory.")
    ] = Path("/"),
    states: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Keep journals and locks in this directory, not in /var/lib/fsrepl-agent (root's) or "
            "~/.local/state/fsrepl/agents.",
        ),
    ] = None,
) -> None:
    """Serve a region of this machine to a site on another one, which starts this command over ssh.

    It speaks to the site over standard input and output, needs no site or daemon here, and ends with the connection.
    """
    from fsrepl.commands import hosts, operations
    from fsrepl.daemon import agent as process
    from fsrepl.daemon import agent_home

    commands = process.Commands(operations.run, hosts.attach)
    place = states.absolute() if states else agent_home.states()
    raise typer.Exit(process.run(root, place, commands, verbose=state().verbose))
