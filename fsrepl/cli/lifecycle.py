"""fsrepl lifecycle: rules stored, printed, previewed and run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fsrepl.cli import progress
from fsrepl.cli.common import (
    Bucket,
    Json,
    counted,
    open_answering_site,
    open_site,
    perform,
    print_json,
    print_table,
    read_document,
    say,
    shown,
    tell,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Usage

lifecycle = typer.Typer(
    help="Lifecycle of a bucket: which versions expire, change storage class or are removed for good, and when.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    app.add_typer(lifecycle, name="lifecycle")


@lifecycle.command("put")
def put(
    bucket: Bucket,
    file: Annotated[str, typer.Argument(metavar="FILE", help="S3's JSON, as `aws s3api` takes it; - is stdin.")],
    json: Json = False,
) -> None:
    """Save a configuration in S3's JSON, and replace the old one.

    The rules apply to existing versions as well as to new ones; `fsrepl lifecycle preview` lists what is due.
    """
    document, _ = read_document(file)
    answer = perform(requests.PutLifecycle(bucket, document))
    print_json(answer) if json else say(f"{bucket} has {_counted(answer)}; `fsrepl lifecycle preview {bucket}`")


def _counted(document: dict[str, Any]) -> str:
    off = sum(rule["Status"] == "Disabled" for rule in document["Rules"])
    return counted(len(document["Rules"]), "lifecycle rule") + (f", {off:,} of them disabled" if off else "")


@lifecycle.command("get")
def get(bucket: Bucket, json: Json = True) -> None:
    """Print the configuration in S3's JSON."""
    from fsrepl.commands.lifecycle import configuration

    print_json(configuration(open_site(), str(bucket)).document)


@lifecycle.command("rm")
def rm(bucket: Bucket, json: Json = False) -> None:
    """Remove the configuration. No version expires, changes its storage class or is removed any more."""
    answer = perform(requests.RemoveLifecycle(bucket))
    if json:
        print_json(answer)
    elif answer["Removed"]:
        say(f"{bucket} has no lifecycle configuration any more")
    else:
        say(f"{bucket} has no lifecycle configuration: there was none to remove")


@lifecycle.command("run")
def run(bucket: Bucket, json: Json = False) -> None:
    """Carry out at once what is due, without waiting for midnight UTC.

    A version that is not replicated yet stays, and so does a file that is being changed.
    """
    answer = perform(requests.RunLifecycle(bucket))
    if json:
        print_json(answer)
        return
    done = [f"{name} {number:,}" for name, number in answer["Done"].items() if number]
    say(f"{bucket}: {counted(answer['Judged'], 'key')} judged; {', '.join(done) or 'nothing was due'}")
    if answer["Blocked"]:
        say(f"{counted(answer['Blocked'], 'version')} kept until replicated")
    for key in answer["Busy"]:
        warn(f"{key} has changed, is being changed, or cannot be written: it waits for the next run")


@lifecycle.command("preview")
def preview(
    bucket: Bucket,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="As of this time: 2027-01-31, or 2027-01-31T10:00:00Z. Default: now."),
    ] = None,
    json: Json = False,
) -> None:
    """List what is due, since when, by which rule, and what delays it. Changes nothing."""
    from fsrepl.commands import lifecycle as commands
    from fsrepl.commands import reader

    site = open_answering_site()
    site.look()
    at_ns = site.now() if at is None else _moment(at)
    with progress.bar(f"looking at {bucket}"), reader.reader(site) as journal:
        items = list(commands.preview(site, journal, str(bucket), at_ns))
    if json:
        print_json({"Items": items})
        return
    print_table(
        [
            (
                shown(str(item["Key"])),
                item["VersionId"],
                f"{item['Action']} {item['StorageClass'] or ''}".rstrip(),
                item["Due"],
                item["Rule"],
                item["BlockedBy"] or "",
            )
            for item in items
        ],
        ("KEY", "VERSION", "ACTION", "DUE SINCE", "RULE", "WAITS FOR"),
    )
    if not items:
        tell("nothing is due")


def _moment(text: str) -> int:
    from fsrepl.model import clock

    try:
        return clock.moment(text)
    except ValueError as error:
        raise Usage(f"--at: {error}") from error
