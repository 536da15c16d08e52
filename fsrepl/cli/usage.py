"""fsrepl du: the space of versions."""

from __future__ import annotations

from typing import Annotated

import typer

from fsrepl.cli import completion
from fsrepl.cli.common import Json, open_site, print_json, print_table, size_text, tell


def register(app: typer.Typer) -> None:
    app.command()(du)


def du(
    where: Annotated[
        str,
        typer.Argument(
            metavar="REGION[/BUCKET]", help="A bucket, or all buckets of a region.", autocompletion=completion.buckets
        ),
    ],
    json: Json = False,
) -> None:
    """Show the bytes of objects and of their noncurrent versions, by storage class."""
    from fsrepl.commands import reader, usage

    site = open_site()
    where = where.rstrip("/")
    addresses = [site.bucket(where).address] if "/" in where else site.buckets_of(where)
    with reader.reader(site) as journal:
        document = usage.usage(site, journal, addresses)
    if json:
        print_json(document)
        return
    rows = [
        [
            each["StorageClass"], size_text(each["Current"]), f"{each['Objects']:,}",
            size_text(each["Noncurrent"]), f"{each['NoncurrentVersions']:,}",
        ]
        for each in document["Classes"]
    ]  # fmt: skip
    if rows:
        print_table(rows, ["CLASS", "CURRENT", "OBJECTS", "NONCURRENT", "VERSIONS"], right=(1, 2, 3, 4))
    else:
        tell(f"{where} holds nothing")
