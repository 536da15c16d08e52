"""fsrepl ls, head, cat, restore, rm, tag: objects and their versions."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Annotated

import typer

from fsrepl.cli import completion, progress
from fsrepl.cli.common import (
    Json,
    Object,
    VersionId,
    counted,
    open_site,
    perform,
    print_json,
    print_table,
    say,
    shown,
    tell,
    warn,
)
from fsrepl.cli.unrecorded import hand_to_capture
from fsrepl.daemon import requests
from fsrepl.errors import Unavailable, Usage
from fsrepl.model.address import Address

tag = typer.Typer(help="Tags of an object. A change of tags makes no new version.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    for command in (ls, head, cat, restore, rm):
        app.command()(command)
    app.add_typer(tag, name="tag")


def ls(
    address: Annotated[
        Address,
        typer.Argument(metavar="REGION/BUCKET[/PREFIX]", parser=Address.parse, autocompletion=completion.objects),
    ],
    versions: Annotated[bool, typer.Option("--versions", help="List every version and marker, newest first.")] = False,
    max_keys: Annotated[int, typer.Option(metavar="N", min=0, help="List at most N entries; 0: all.")] = 0,
    start_after: Annotated[
        str | None,
        typer.Option("--start-after", "--key-marker", metavar="KEY", help="Only keys after this one, in byte order."),
    ] = None,
    version_id_marker: Annotated[
        str, typer.Option(metavar="ID", help="With --key-marker: only entries after this version.")
    ] = "",
    json: Json = False,
) -> None:
    """List objects, in the order of their keys."""
    from fsrepl.commands import index
    from fsrepl.commands.documents import objects as documents
    from fsrepl.model import clock, keys
    from fsrepl.storage import listing

    if version_id_marker and start_after is None:
        raise Usage("--version-id-marker needs --key-marker; name the version's key there")
    page = listing.Page(os.fsencode(start_after) if start_after is not None else None, version_id_marker, max_keys)
    site = open_site()
    site.ask_regions(names=(address.region,))
    with (
        progress.bar(f"listing {shown(str(address))}"),
        listing.open_bucket(site, address.bucket) as bucket,
        index.listed(site, bucket) as known,
    ):
        found, truncated = listing.entries(bucket, address.key, versions=versions, page=page, known=known)
    if json:
        print_json(documents.list_document(found, truncated, versions=versions))
        return
    rows = []
    for entry in found:
        v = entry.version
        row = [clock.stamp(v.created_ns)[:19] + "Z", "deleted" if v.marker else v.size]
        if versions:
            row += [v.id, "latest" if entry.latest else ""]
        rows.append([*row, str(v.status or ""), keys.shown(v.key)])
    columns = ["CREATED", "SIZE", *(["VERSION", ""] if versions else []), "REPLICATION", "KEY"]
    print_table(rows, columns, right=(1,))
    if truncated:
        last = found[-1].version
        more = f" --version-id-marker {last.id}" if versions else ""
        tell(f"more: --start-after {keys.shown(last.key)}{more}")


def head(address: Object, version_id: VersionId = None, json: Json = False) -> None:
    """Show the whole record of an object."""
    from fsrepl.commands.documents import objects as documents
    from fsrepl.storage import listing

    site = open_site()
    site.ask_regions(names=(address.region,))
    with listing.open_bucket(site, address.bucket) as bucket:
        hand_to_capture(site, bucket, address.key)
        document = documents.head_document(bucket, listing.find(bucket, address.key, version_id))
    if json:
        print_json(document)
        return
    width = max(map(len, document))
    for name, value in document.items():
        if isinstance(value, dict):
            for inner, each in value.items():
                tell(f"{name:{width}}  {shown(str(inner))} = {shown(_plain(each))}")
        else:
            tell(f"{name:{width}}  {shown(str(value))}")


def _plain(value: object) -> str:
    """A nested value on one line."""
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def cat(address: Object, version_id: VersionId = None) -> None:
    """Write an object's content to standard output.

    The content is compared with its recorded hash first.
    """
    from fsrepl.storage import listing

    if sys.__stdout__ is None:
        raise Unavailable("standard output is closed, so that there is no place to write the content to")
    site = open_site()
    site.ask_regions(names=(address.region,))
    with listing.open_bucket(site, address.bucket) as bucket:
        hand_to_capture(site, bucket, address.key)
        entry = listing.find(bucket, address.key, version_id)
        chunks = listing.content(bucket, entry.version)
        with progress.bar(f"comparing {shown(str(address))} with its hash"):
            first = next(chunks, b"")
        for chunk in itertools.chain([first], chunks):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def restore(
    address: Object,
    version_id: VersionId = None,
    days: Annotated[
        int | None, typer.Option(metavar="N", help="Make archived content readable, until midnight UTC after N days.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an old version current again, as a new version; or archived content readable.

    Without --version-id: the newest version that is not a delete marker. With --days: a version of class GLACIER or
    DEEP_ARCHIVE that lies in a tier gets a copy that can be read; everything else about it stays as it is.
    """
    if days is not None:
        answer = perform(requests.RestoreArchived(address, version_id, days))
        until = str(answer["Restore"]).partition("expiry-date=")[2].strip('"')
        print_json(answer) if json else say(
            f"{shown(str(address))}: version {answer['VersionId']} can be read until {until}"
        )
        return
    answer = perform(requests.RestoreObject(address, version_id))
    if json:
        print_json(answer)
    elif answer["Changed"]:
        say(f"{shown(str(address))}: version {answer['RestoredFrom']} is current again, as {answer['VersionId']}")
    elif answer["Captured"]:
        what = f"the file's changed content was captured as version {answer['VersionId']}"
        say(f"{shown(str(address))}: {what}, which is current now")
    else:
        say(f"{shown(str(address))}: version {answer['VersionId']} is current already; nothing changed")


def rm(address: Object, version_id: VersionId = None, json: Json = False) -> None:
    """Delete an object by adding a delete marker.

    With --version-id, remove that version or marker for good.
    """
    answer = perform(requests.RemoveObject(address, version_id))
    if json:
        print_json(answer)
    elif version_id is not None:
        what = "delete marker" if answer["DeleteMarker"] else "version"
        say(f"{shown(str(address))}: {what} {version_id} is removed for good")
    elif answer.get("DeleteMarker"):
        say(f"{shown(str(address))}: deleted, marker {answer['VersionId']}; `fsrepl restore` brings the object back")
    else:
        say(f"{shown(str(address))}: deleted")
    for note in answer.get("Notes", ()):
        warn(note)


@tag.command("ls")
def tag_ls(address: Object, version_id: VersionId = None, json: Json = False) -> None:
    """List the tags of an object."""
    from fsrepl.commands.documents import objects as documents
    from fsrepl.storage import listing

    with listing.open_versioned(open_site(), address.bucket) as bucket:
        tags = listing.find(bucket, address.key, version_id).version.tags
    if json:
        print_json({"TagSet": documents.tags_document(tags)})
        return
    for name in sorted(tags):
        tell(f"{shown(name)}={shown(tags[name])}")


@tag.command("set")
def tag_set(
    address: Object,
    tags: Annotated[list[str], typer.Argument(metavar="NAME=VALUE")],
    version_id: VersionId = None,
    json: Json = False,
) -> None:
    """Set tags; other tags stay."""
    wanted = {}
    for text in tags:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Usage(f"{shown(text)} is not NAME=VALUE")
        wanted[name] = value
    answer = perform(requests.SetTags(address, version_id, wanted))
    print_json(answer) if json else say(f"{shown(str(address))}: {counted(len(answer['TagSet']), 'tag')}")


@tag.command("rm")
def tag_rm(
    address: Object,
    names: Annotated[list[str], typer.Argument(metavar="NAME")],
    version_id: VersionId = None,
    json: Json = False,
) -> None:
    """Remove tags; other tags stay."""
    answer = perform(requests.RemoveTags(address, version_id, tuple(names)))
    print_json(answer) if json else say(f"{shown(str(address))}: {counted(len(answer['TagSet']), 'tag')}")
