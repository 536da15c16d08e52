"""fsrepl status, why, events: the state of the site, of one key, and what happened."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from fsrepl.cli import progress
from fsrepl.cli.common import (
    Json,
    Object,
    VersionId,
    open_answering_site,
    print_json,
    shown,
    state,
    tell,
)
from fsrepl.cli.unrecorded import hand_to_capture

_FOLLOW_S = 0.2
_REFRESH_S = 1.0


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(why)
    app.command()(events)


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep running, and refresh each second.")] = False,
    every_name: Annotated[
        bool, typer.Option("--all", help="Name every file that waits or cannot be read, not only the first few.")
    ] = False,
    json: Json = False,
) -> None:
    """Show daemon, buckets, rules, lag, transfers and failures."""
    from fsrepl.commands import reader
    from fsrepl.commands import status as statuses

    site = open_answering_site()

    def now(*, again: bool = True) -> dict[str, Any]:
        site.load_identities()
        if again:  # regions may go offline and come back
            site.ask_regions()
        said = reader.daemon_status(site.settings)
        return statuses.status(site, reader.with_all_names(site.settings, said) if every_name else said)

    if watch and sys.stdout.isatty() and not json:
        from fsrepl.cli import status_screen

        status_screen.watch(now, _REFRESH_S)
    with progress.bar("looking at the buckets"):
        document = now(again=False)
    _show(document, json=json, every_name=every_name)
    while watch:  # into a file or a program: one screen after another
        sys.stdout.flush()
        time.sleep(_REFRESH_S)
        _show(now(), json=json, every_name=every_name)


def _show(document: dict[str, Any], *, json: bool, every_name: bool) -> None:
    if json:
        print_json(document)
    else:
        from fsrepl.cli import status_screen

        status_screen.show(document, every_name=every_name)


def why(address: Object, version_id: VersionId = None, json: Json = False) -> None:
    """Explain which rule chose a key, what happened, and what is next."""
    from fsrepl.commands import reader
    from fsrepl.commands import why as explanation
    from fsrepl.storage import listing

    site = open_answering_site()
    with listing.open_versioned(site, address.bucket) as bucket:
        hand_to_capture(site, bucket, address.key)
    answer = explanation.why(site, address, version_id, reader.daemon_of_key(site.settings, address))
    if json:
        print_json(answer.document)
        return
    tell(shown(str(address)))
    for sentence in answer.sentences:
        tell(f"  {shown(sentence)}")


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep running, and print new events.")] = False,
    json: Json = False,
) -> None:
    """Print S3's events of replication and lifecycle, a JSON object a line.

    The oldest event is first; the output is the same with --json.
    """
    from fsrepl.storage.eventlog import Reader

    with Reader(str(state().settings.state)) as reader:
        while True:
            for line in reader.lines():
                typer.echo(line.decode())
            if not follow:
                return
            time.sleep(_FOLLOW_S)
