"""The console's five steps, asked on a terminal: source, destination, prefixes, storage class, role.

Source: s3-semantics, section 7, S8 to S20. Only valid choices are offered; where there are none, an error names what is
missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from fsrepl.cli.common import shown
from fsrepl.commands import replication, trees, versioning_cost
from fsrepl.daemon.requests import EnableReplication
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.address import Address, region_of
from fsrepl.model.version import STORAGE_CLASSES, Versioning
from fsrepl.s3 import arn
from fsrepl.storage.site import Site

_WHOLE, _SAME_CLASS = "the whole bucket", "as in the source"


TREES = "Directories, symlinks and hard links too, as a git repository needs them (tree buckets)?"


def ask(site: Site) -> tuple[EnableReplication, bool]:
    """Ask for the arguments of `replication enable`; these, and whether its buckets are to be tree buckets."""
    source = _choose("Source bucket", _sources(site), "no bucket has versioning enabled; `fsrepl versioning enable`")
    existing = replication.has_configuration(site, source)
    if existing and not typer.confirm(f"{source} has a configuration. Replace it?", default=False):
        raise typer.Abort
    offered = replication.candidates(site, Address.parse_bucket(source))
    region = _choose(
        "Destination region",
        sorted(set(map(region_of, offered))),
        "no bucket in another region has versioning enabled; `fsrepl bucket create REGION/BUCKET --versioning`",
    )
    destination = _choose("Destination bucket", [a for a in offered if a.startswith(region + "/")], "")
    selected = _prefixes() if _choose("Replicate", [_WHOLE, "keys with certain prefixes"], "") != _WHOLE else {}
    storage_class = "" if selected else _storage_class("the replicas")
    role = _choose("Role", ["create a new role", *_roles(site)], "")
    wanted = EnableReplication(
        Address.parse_bucket(source),
        Address.parse_bucket(destination),
        prefixes=tuple(selected),
        storage_class=storage_class,
        storage_classes=selected,
        role="" if role == "create a new role" else role,
        replace=existing,
    )
    return wanted, bool(trees.plain(site, (source, destination))) and typer.confirm(f"\n{TREES}", default=False)


def ask_old_versions(site: Site, source: Address) -> bool:
    """Whether old versions of a source that has no lifecycle rules are to be removed, after saying what they take."""
    bucket = site.bucket(str(source))
    if bucket.lifecycle is not None:
        return False
    typer.echo(f"\n{versioning_cost.cost(site.settings.regions[source.region])}")
    return typer.confirm(f"Remove old versions of {source} {versioning_cost.IN_WORDS}?", default=False)


def _prefixes() -> dict[str, str]:
    """Ask for one prefix or more, each with the storage class of its replicas."""
    found: dict[str, str] = {}
    while True:
        another = "another; one again to remove it; or nothing" if found else "a folder ends in /"
        prefix = str(typer.prompt(f"\nPrefix ({another})", default="", show_default=False))
        if not prefix:
            if found:
                return found
            continue
        overlapping = [each for each in found if each.startswith(prefix) or prefix.startswith(each)]
        if prefix in found:
            del found[prefix]
        elif overlapping:
            typer.echo(f"{shown(prefix)} overlaps {shown(overlapping[0])}; each key belongs to one", err=True)
        else:
            found[prefix] = _storage_class(f"the replicas of {shown(prefix)}")
        typer.echo("\nPrefixes so far: " + (shown(", ".join(found)) or "none"))


def _storage_class(what: str) -> str:
    chosen = _choose(f"Storage class of {what}", [_SAME_CLASS, *STORAGE_CLASSES], "")
    return "" if chosen == _SAME_CLASS else chosen


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
    """Ask for one of a list: by number, by name, or by an end or beginning that only one has.

    Raises Refused where the list is empty.
    """
    if not offered:
        raise Refused("InvalidRequest", otherwise)
    typer.echo(f"\n{what}:")
    for number, each in enumerate(offered, 1):
        typer.echo(f"  {number}  {each}")
    while True:
        answer = str(typer.prompt("Choose", default="1")).strip()
        if answer in offered:
            return answer
        if answer.isdigit() and 1 <= int(answer) <= len(offered):
            return offered[int(answer) - 1]
        meant = [each for each in offered if each.endswith(f"/{answer}") or each.lower().startswith(answer.lower())]
        if answer and len(meant) == 1:
            return meant[0]
        typer.echo(f"answer with a number from 1 to {len(offered)}, or a name from the list", err=True)
