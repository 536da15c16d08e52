"""fsrepl scrub: stored versions are read and compared with their hashes in the background."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fsrepl.cli import completion
from fsrepl.cli.common import (
    Json,
    counted,
    duration_text,
    open_answering_site,
    perform,
    print_json,
    print_table,
    say,
    size_text,
)
from fsrepl.daemon import requests
from fsrepl.model.address import Address

scrub = typer.Typer(
    help="The scrub: over the time that [scrub] every sets, all stored versions are read from the disk and compared "
    "with their hashes; damage is repaired from a good copy.",
    no_args_is_help=True,
)

OneBucket = Annotated[
    str | None,
    typer.Argument(
        metavar="[REGION/BUCKET]", help="Only this bucket. Default: all buckets.", autocompletion=completion.buckets
    ),
]


def register(app: typer.Typer) -> None:
    app.add_typer(scrub, name="scrub")


@scrub.command("status")
def status(bucket: OneBucket = None, json: Json = False) -> None:
    """Show how far each bucket's scrub is, and what the last complete one found."""
    from fsrepl.commands import reader, scrubs

    site = open_answering_site()
    with reader.reader(site) as journal:
        document = scrubs.status(site, journal, _address(bucket))
    if json:
        print_json(document)
        return
    _show(document)


@scrub.command("run")
def run(
    bucket: OneBucket = None,
    end: Annotated[bool, typer.Option("--end", help="End a run: what is left is read at the usual pace.")] = False,
    json: Json = False,
) -> None:
    """Read all stored versions now, from where the scrub is, as fast as [scrub] limit allows. Ends a pause.

    The command returns at once; without a daemon, the next one that starts does it. A pause interrupts the run, and
    `fsrepl scrub pause --end` continues it.
    """
    document = perform(requests.RunScrub(_address(bucket), on=not end))
    if json:
        print_json(document)
        return
    if end:
        say(f"the scrub has its usual pace in {counted(len(document['buckets']), 'bucket')}")
        return
    left = sum(b["current"]["bytes_total"] - b["current"]["bytes_done"] for b in document["buckets"] if "current" in b)
    pace = f" at {size_text(document['limit'])}/s" if document["limit"] else ""
    say(f"{counted(len(document['buckets']), 'bucket')}, {size_text(left)} to read{pace}; `fsrepl scrub status`")


@scrub.command("pause")
def pause(
    bucket: OneBucket = None,
    end: Annotated[bool, typer.Option("--end", help="End the pause: go on as before it, a run at once.")] = False,
    json: Json = False,
) -> None:
    """Pause the scrub until `fsrepl scrub pause --end`, or `fsrepl scrub run`, also across restarts."""
    document = perform(requests.PauseScrub(_address(bucket), on=not end))
    if json:
        print_json(document)
        return
    what = "goes on in" if end else "is paused in"
    say(f"the scrub {what} {counted(len(document['buckets']), 'bucket')}")


def _address(bucket: str | None) -> Address | None:
    return Address.parse_bucket(bucket) if bucket is not None else None


def _show(document: dict[str, Any]) -> None:
    if not document["buckets"]:
        say("no versioned buckets yet")
        return
    rows = []
    for found in document["buckets"]:
        now, last = found.get("current"), found.get("last")
        done = f"{size_text(now['bytes_done'])} of {size_text(now['bytes_total'])}" if now else "-"
        state = "paused" if found["paused"] else "running" if now and now["asked"] else "spread" if now else "waiting"
        ended = f"{last['ended'][:19]}Z" if last else "-"
        damaged = str((now or {}).get("damaged", 0) + (last or {}).get("damaged", 0))
        rows.append([found["bucket"], state, done, ended, size_text(last["bytes"]) if last else "-", damaged])
    print_table(rows, ["BUCKET", "STATE", "READ", "LAST ENDED", "LAST READ", "DAMAGED"], right=(5,))
    every = document["every_seconds"]
    limit = f", at most {size_text(document['limit'])}/s" if document["limit"] else ""
    say(
        f"each bucket in {duration_text(every)}{limit}"
        if every
        else "[scrub] every is 0: only `fsrepl scrub run` reads"
    )
