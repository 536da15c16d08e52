"""fsrepl ack, undelete: after a mass deletion."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from fsrepl.cli import completion, progress
from fsrepl.cli.common import (
    Bucket,
    DryRun,
    Json,
    Performer,
    counted,
    journal_on_disk,
    perform,
    print_json,
    say,
    shown,
    size_text,
    tell,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Usage
from fsrepl.model import clock
from fsrepl.model.address import Address
from fsrepl.settings import kinds

_NAMED = 20
"""How many files a preview names."""


def register(app: typer.Typer) -> None:
    app.command()(ack)
    app.command()(undelete)


def ack(bucket: Bucket, json: Json = False) -> None:
    """Deliver the deletions that are held in a bucket that is HALTED: its replicas follow."""
    answer = perform(requests.Acknowledge(bucket))
    if json:
        print_json(answer)
    elif answer["Halted"]:
        say(f"{bucket}: {counted(answer['Released'], 'deletion crosses', 'deletions cross')} now")
    else:
        say(f"{bucket} is not halted; nothing is held")


def undelete(
    address: Annotated[
        Address,
        typer.Argument(metavar="REGION/BUCKET[/PREFIX]", parser=Address.parse, autocompletion=completion.objects),
    ],
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Deleted then or later: 2026-11-24T10:00:00Z, or 2h ago as 2h; `status` says when."
        ),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", hidden=True, help="Accepted, without effect: the command asks nothing.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Bring back every file that users deleted since a time, as new versions.

    Each gets the content and metadata that it had; --dry-run says first which. Files that were written again since stay
    as they are, and so does what lifecycle deleted, or what was deleted by a replicated marker. The bucket is HALTED no
    longer when every deletion that is held was taken back.
    """
    since = _moment(since)
    with Performer() as performer:
        if dry_run:
            found = _count(performer, address, since)
            what = f"{counted(found['Keys'], 'file')}, {size_text(found['Bytes'])}, deleted since {since}"
            print_json(found) if json else _preview(found, what)
            return
        answer = _restore(performer, address, since)
    if json:
        print_json(answer)
    else:
        say(f"{shown(str(address))}: {counted(answer['Restored'], 'file is', 'files are')} back")
    for each in answer["Left"]:
        warn(f"not brought back: {shown(each['Key'])}: {each['Why']}")
    if answer["Halted"]:
        warn(f"{address.bucket} is HALTED still: other deletions are held; `fsrepl ack {address.bucket}`")
    if answer["Left"]:
        raise typer.Exit(1)


def _count(performer: Performer, address: Address, since: str) -> dict[str, Any]:
    found: dict[str, Any] = {"Keys": 0, "Bytes": 0, "First": []}
    with progress.bar(f"looking at {shown(str(address))}", _most(address, since), lambda: found["Keys"]):
        for batch in _batches(performer, requests.Undelete(address, since=since, count=True)):
            found["Keys"] += batch["Keys"]
            found["Bytes"] += batch["Bytes"]
            found["First"] += batch["First"][: _NAMED - len(found["First"])]
    return found


def _restore(performer: Performer, address: Address, since: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"Restored": 0, "Left": [], "Halted": False}
    done = lambda: answer["Restored"] + len(answer["Left"])  # noqa: E731
    with progress.bar(f"bringing back {shown(str(address))}", _most(address, since), done):
        for batch in _batches(performer, requests.Undelete(address, since=since)):
            answer["Restored"] += batch["Restored"]
            answer["Left"] += batch["Left"]
            answer["Halted"] = batch["Halted"]
    return answer


def _most(address: Address, since: str) -> int:
    """The most keys that may be brought back, for a bar: lifecycle or a replica's marker may have deleted some of them.
    0 where no bar is shown, or that is unknown."""
    if not progress.is_wanted():
        return 0
    try:
        with journal_on_disk() as journal:
            since_ns = clock.within(clock.parse(since))
            return journal.totals.deleted_since(address.bucket, since_ns, address.key)
    except sqlite3.Error:
        return 0


def _batches(performer: Performer, request: requests.Undelete) -> Iterator[dict[str, Any]]:
    """The answers, a batch at a time: in between, the region goes on with what is new."""
    while True:
        batch = performer.perform(request)
        yield batch
        if batch["After"] is None:
            return
        request = replace(request, after=os.fsencode(batch["After"]))


def _preview(found: dict[str, Any], what: str) -> None:
    for each in found["First"]:
        tell(shown(each["Key"]))
    if (more := found["Keys"] - len(found["First"])) > 0:
        tell(f"and {more:,} more")
    tell(what)


def _moment(text: str) -> str:
    """A date, a time, or how long ago, as an RFC 3339 time."""
    with contextlib.suppress(ValueError):
        if not text.isdigit():  # a year, perhaps, and not so many seconds
            return clock.stamp(clock.within(clock.system_clock()() - kinds.duration(text) * 10**9))
    try:
        return clock.stamp(clock.moment(text))
    except ValueError as error:
        raise Usage(f"--since: {error}; 90m, 12h and 2d are so long ago") from error
