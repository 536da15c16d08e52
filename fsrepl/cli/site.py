"""fsrepl init, region, check: the site itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fsrepl.cli.common import (
    Json,
    counted,
    open_answering_site,
    perform,
    print_json,
    print_table,
    say,
    services_of,
    umask,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Usage

region = typer.Typer(help="Regions: directories, each with its own identity.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(check)
    app.add_typer(region, name="region")


def init(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="The folder for the site's settings. Default: the current one."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=PATH]", help="A region and its directory. Default: DIR/NAME. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Create a new site: its settings and its regions.

    Without --region: two regions below DIR. On a terminal, without arguments, the command asks for two folders and what
    to replicate, and can run the daemon at the end.
    """
    if directory is None and not region and not json and sys.stdin.isatty() and sys.stdout.isatty():
        from fsrepl.cli import first_steps

        raise typer.Exit(first_steps.run())
    from fsrepl.commands import sites

    regions: dict[str, str | None] = {}
    for text in region or ():
        name, equals, path = text.partition("=")
        if equals and not path:
            raise Usage(f"--region {text}: the path is missing; write NAME=PATH, or NAME alone for DIR/NAME")
        if name in regions:
            raise Usage(f"--region {name} is given twice")
        regions[name] = path or None
    answer = sites.init(directory or Path(), regions)
    if json:
        print_json(answer)
        return
    say(f"site {answer['Site']}")
    for each in answer["Regions"]:  # type: ignore[attr-defined]
        say(f"  region {each['Name']} at {each['Path']}")
        for bucket in each["Buckets"]:
            say(f"    bucket {bucket}")
    if any(each["Buckets"] for each in answer["Regions"]):  # type: ignore[attr-defined]
        say(f"next: `fsrepl --site {answer['Site']} check` names the roles that are missing")
        return
    first = answer["Regions"][0]["Name"]  # type: ignore[index]
    say(f"next: `fsrepl --site {answer['Site']} bucket create {first}/BUCKET --versioning`")


def check(json: Json = False) -> None:
    """Check the settings, documents and roles, and change nothing.

    Exit status 1, 2 or 3 where one of them is invalid.
    """
    from fsrepl.commands import check as checks

    found = open_answering_site()
    checked = checks.check(found)
    if json:
        print_json(checked.document())
    else:
        for note in checked.notes:
            warn(f"note: {note}")
        for error in checked.wrong:
            warn(str(error))
    if checked.wrong:
        raise typer.Exit(max(error.exit_code for error in checked.wrong))
    if not json:
        say(f"{found.settings.path}: good; {len(found.settings.regions)} regions, {len(found.buckets)} buckets")


@region.command("ls")
def region_ls(json: Json = False) -> None:
    """List the regions, and whether each is online."""
    from fsrepl.commands.documents import regions as documents

    site = open_answering_site()
    rows = [*documents.regions(site), *map(documents.of_service, services_of(site))]
    if json:
        print_json({"Regions": rows})
        return
    print_table(
        [(r["Name"], "online" if r["Online"] else "OFFLINE", len(r["Buckets"]), r["Path"]) for r in rows],  # type: ignore[arg-type]
        ("REGION", "STATE", "BUCKETS", "PATH"),
        right=(2,),
    )
    for row in rows:
        if row.get("Trouble"):
            warn(str(row["Trouble"]))


@region.command("add")
def region_add(
    region: Annotated[str, typer.Argument(metavar="NAME=PATH|URL")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace a lost region by a new directory, and fill it from the other regions."),
    ] = False,
    json: Json = False,
) -> None:
    """Attach a directory as a region; an S3 service (https://HOST); or a directory of another machine (ssh://HOST/DIR).

    A directory with a region's identity is attached with its buckets; any other directory becomes a new region. A
    region of this site that was moved is attached at its new path.
    """
    name, equals, path = region.partition("=")
    if not (name and equals and path):
        raise Usage(f"{region!r} is not NAME=PATH, such as eu-west-1=/mnt/eu/fsrepl")
    place = path if "://" in path else str(Path(path).absolute())
    answer = perform(requests.AddRegion(name, place, replace, umask()))
    if json:
        print_json(answer)
        return
    say(f"region {answer['Name']} at {answer['Path']}")
    for bucket in answer["Buckets"]:
        say(f"  bucket {bucket}")
    if answer.get("Trouble"):
        warn(str(answer["Trouble"]))
    if replace:
        fetched, number = answer["Fetched"], answer["Refilled"]
        if fetched:
            say(f"{counted(fetched, 'version')} came back to it from other machines and services")
        if number > fetched or not fetched:
            say(f"{counted(number - fetched, 'version')} will be sent to it; `fsrepl wait` waits for them")
        for each in answer["NotAsked"]:
            warn(f"not filled from {each}; run `fsrepl verify --repair` for that bucket later")


@region.command("forget")
def region_forget(name: Annotated[str, typer.Argument(metavar="NAME")], json: Json = False) -> None:
    """Remove a region from the site. Its directory stays unchanged, and can be attached again."""
    answer = perform(requests.ForgetRegion(name))
    print_json(answer) if json else say(f"region {name} is no longer part of this site; its files stay where they are")
