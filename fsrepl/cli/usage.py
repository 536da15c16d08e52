"""fsrepl du: the space of versions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from fsrepl.cli import completion, progress
from fsrepl.cli.common import Json, open_site, print_json, print_table, shown, size_text, tell

_TOLD_FILES = 1000


def register(app: typer.Typer) -> None:
    app.command()(du)


def du(
    where: Annotated[
        str,
        typer.Argument(
            metavar="REGION[/BUCKET]", help="A bucket, or all buckets of a region.", autocompletion=completion.buckets
        ),
    ],
    disk: Annotated[
        bool,
        typer.Option(
            "--disk",
            help="Also look at every file: bytes on disk, what hard links and reflinks share, and what the "
            "removal of noncurrent versions would free.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show the bytes of objects and of their noncurrent versions, by storage class."""
    from fsrepl.commands import reader, usage

    site = open_site()
    where = where.rstrip("/")
    addresses = [site.bucket(where).address] if "/" in where else site.buckets_of(where)
    with reader.reader(site) as journal:
        with progress.bar(f"adding up {shown(where)}"):
            document: dict[str, Any] = dict(usage.usage(site, journal, addresses))
        if disk:
            with _counted() as note:
                document["Disk"] = usage.disk_usage(site, journal, addresses, note).document()
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
    if disk:
        _say_disk(document["Disk"])


@contextlib.contextmanager
def _counted() -> Iterator[Callable[[int], None]]:
    """Says on a terminal how many files were looked at so far."""
    if not progress.is_wanted():
        yield lambda number: None
        return
    console = Console(stderr=True)
    with progress.alone(), console.status("looking at the files") as status:

        def note(number: int) -> None:
            if number % _TOLD_FILES == 0:
                status.update(f"looking at the files: {number:,}")

        yield note


def _say_disk(found: dict[str, int]) -> None:
    tell(
        f"on disk: {size_text(found['Used'])}; hard links and reflinks save {size_text(found['Shared'])}; without "
        f"noncurrent versions {size_text(found['FreedWithoutNoncurrent'])} would be free"
    )
    if found["InTiers"]:
        tell(f"in tiers: {size_text(found['InTiers'])}")
