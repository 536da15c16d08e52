"""fsrepl tier: storage classes with directories of their own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fsrepl.cli import progress
from fsrepl.cli.common import (
    Json,
    ask_daemon,
    counted,
    open_answering_site,
    perform,
    print_json,
    print_table,
    say,
    size_text,
    umask,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Usage

_LOOK_S = 0.5

tier = typer.Typer(
    help="Tiers: storage classes of a region whose content lies in another directory.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(tier, name="tier")


@tier.command("add")
def add(
    tier: Annotated[
        str, typer.Argument(metavar="REGION/CLASS=PATH", help="Such as eu-west-1/STANDARD_IA=/mnt/hdd/eu.")
    ],
    compress: Annotated[
        str, typer.Option(metavar="zstd|none", help="For GLACIER and DEEP_ARCHIVE: compress what is put there.")
    ] = "",
    json: Json = False,
) -> None:
    """Give a storage class a directory, mostly on another disk.

    Versions of that class are moved there, those that have the class already and those that lifecycle rules or
    replication give it later. Content of GLACIER and DEEP_ARCHIVE is archived there: `fsrepl restore --days` makes it
    readable for some days.
    """
    name, equals, path = tier.partition("=")
    if not (name and equals and path):
        raise Usage(f"{tier!r} is not REGION/CLASS=PATH, such as eu-west-1/STANDARD_IA=/mnt/hdd/eu-west-1")
    answer = perform(requests.AddTier(name, str(Path(path).absolute()), compress, umask()))
    print_json(answer) if json else say(f"tier {answer['Tier']} at {answer['Path']}")


@tier.command("ls")
def ls(json: Json = False) -> None:
    """List the tiers, whether each is online, what lies there, and what is to be moved there."""
    from fsrepl.commands import reader
    from fsrepl.commands.documents.tiers import tiers

    site = open_answering_site()
    with reader.reader(site) as journal:
        rows: list[dict[str, Any]] = tiers(site, journal)
    if json:
        print_json({"Tiers": rows})
        return
    print_table(
        [(r["Tier"], _state(r), r["Versions"], size_text(r["Bytes"]), r["Waiting"], r["Path"]) for r in rows],
        ("TIER", "STATE", "VERSIONS", "BYTES", "WAITING", "PATH"),
        right=(2, 3, 4),
    )
    for row in rows:
        if row.get("Trouble"):
            warn(str(row["Trouble"]))


def _state(row: dict[str, Any]) -> str:
    if not row["Online"]:
        return "OFFLINE"
    return "draining" if row["Draining"] else "online"


@tier.command("rm")
def rm(
    tier: Annotated[str, typer.Argument(metavar="REGION/CLASS")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is empty, and remove it then.")] = False,
    json: Json = False,
) -> None:
    """Remove a tier that is empty. A tier with content is emptied first: the daemon moves its content back."""
    answer = perform(requests.RemoveTier(tier))
    if wait and not answer["Removed"]:
        answer = _empty(tier, answer["Versions"])
    if json:
        print_json(answer)
    elif answer["Removed"]:
        say(f"tier {tier} is removed; the class is a label again")
    else:
        say(
            f"{counted(answer['Versions'], 'version')} of {tier} will be moved back into the region; `fsrepl tier ls` "
            "shows how many are left; give the command again once there is none, or with --wait"
        )


def _empty(tier: str, versions: int) -> dict[str, Any]:
    """Wait until a tier is empty and removed; its last answer. Raises NotRunning: nothing is moved without a daemon."""
    left = versions
    with progress.bar(f"emptying {tier}", versions, lambda: versions - left):
        while True:
            answer = ask_daemon(requests.RemoveTier(tier))
            if answer["Removed"]:
                return answer
            left = answer["Versions"]
            time.sleep(_LOOK_S)
