"""The console's five steps, asked on a terminal: source, destination, prefixes, storage class, role.

Source: s3-semantics, section 7, S8 to S20. Only what can be chosen is offered; where that is nothing,
it says what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from fsrepl import arn
from fsrepl.admin import replication
from fsrepl.errors import FsreplError, Refused
from fsrepl.model import STORAGE_CLASSES, Versioning
from fsrepl.site import Site


def ask(site: Site) -> dict[str, Any]:
    """What `replication enable` needs, from its user."""
    source = _choose("Source bucket", _sources(site), "no bucket has versioning enabled; `fsrepl versioning enable`")
    existing = replication.has_configuration(site, source)
    if existing and not typer.confirm(f"{source} has a configuration. Replace it?", default=False):
        raise typer.Abort
    offered = replication.candidates(site, source)
    region = _choose(
        "Destination region",
        sorted({address.partition("/")[0] for address in offered}),
        "no bucket in another region has versioning enabled; `fsrepl bucket create REGION/BUCKET --versioning`",
    )
    destination = _choose("Destination bucket", [a for a in offered if a.startswith(region + "/")], "")
    prefixes = []
    if not typer.confirm("Replicate the whole bucket?", default=True):
        while prefix := typer.prompt("Prefix (empty: no more; a folder ends in /)", default="", show_default=False):
            prefixes.append(prefix)
    storage_class = _choose("Storage class of the replicas", ["as in the source", *STORAGE_CLASSES], "")
    role = _choose("Role", ["create a new role", *_roles(site)], "")
    return {
        "source": source,
        "destination": destination,
        "prefixes": prefixes,
        "storage_class": "" if storage_class == "as in the source" else storage_class,
        "role": "" if role == "create a new role" else role,
        "replace": existing,
    }


def _sources(site: Site) -> list[str]:
    found = []
    for address, bucket in sorted(site.buckets.items()):
        try:
            with bucket.open():
                if bucket.versioning is Versioning.ENABLED:
                    found.append(address)
        except FsreplError:
            continue
    return found


def _roles(site: Site) -> list[str]:
    folder = site.settings.roles
    names = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            arn.check_role_name(path.stem)
        except Refused:
            continue
        names.append(path.stem)
    return names


def _choose(what: str, offered: Sequence[str], otherwise: str) -> str:
    """One of a list, by number or by name. Raises Refused where there is nothing to choose."""
    if not offered:
        raise Refused("InvalidRequest", otherwise)
    typer.echo(f"\n{what}:")
    for number, each in enumerate(offered, 1):
        typer.echo(f"  {number}  {each}")
    while True:
        answer = str(typer.prompt("Choose", default="1"))
        if answer in offered:
            return answer
        if answer.isdigit() and 1 <= int(answer) <= len(offered):
            return offered[int(answer) - 1]
        typer.echo(f"a number from 1 to {len(offered)}, or a name from the list", err=True)
