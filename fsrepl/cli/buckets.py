"""fsrepl bucket, versioning: buckets created, adopted and removed, and their versioning."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from fsrepl.cli import completion, progress
from fsrepl.cli.common import (
    Bucket,
    DryRun,
    Json,
    Yes,
    confirm,
    counted,
    is_terminal,
    journal_on_disk,
    open_answering_site,
    open_site,
    perform,
    print_json,
    print_table,
    say,
    services_of,
    size_text,
    state,
    tell,
    umask,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Refused, Usage
from fsrepl.model.address import Address
from fsrepl.model.amounts import kinds_text

Trees = Annotated[bool, typer.Option("--trees", help="A tree bucket: directories and symlinks are objects too.")]

bucket = typer.Typer(help="Buckets: folders in a region.", no_args_is_help=True)
versioning = typer.Typer(
    help="Versioning of a bucket; replication needs versioning on both sides.", no_args_is_help=True
)


class Switch(enum.StrEnum):
    """A setting that is on or off."""

    ON = "on"
    OFF = "off"


def register(app: typer.Typer) -> None:
    app.add_typer(bucket, name="bucket")
    app.add_typer(versioning, name="versioning")


@bucket.command("create")
def bucket_create(
    bucket: Bucket,
    versioning: Annotated[bool, typer.Option("--versioning", help="Enable versioning at once.")] = False,
    trees: Trees = False,
    json: Json = False,
) -> None:
    """Create an empty bucket."""
    answer = perform(requests.CreateBucket(bucket, versioning, umask(), trees))
    text = f"bucket {bucket}" + (", versioning Enabled" if versioning else "") + (", a tree bucket" if trees else "")
    print_json(answer) if json else say(text)
    if versioning and not json and is_terminal() and bucket.region in state().settings.regions:
        from fsrepl.commands import versioning_cost

        warn(versioning_cost.cost(open_site().settings.regions[bucket.region]))
        warn(f"This keeps it in bounds: {versioning_cost.command(str(bucket))}")


@bucket.command("adopt")
def bucket_adopt(
    bucket: Bucket, trees: Trees = False, yes: Yes = False, dry_run: DryRun = False, json: Json = False
) -> None:
    """Turn a folder with files into a versioned bucket.

    Each file becomes the version `null` of its key; the command first says how much space the versions take. A bucket
    of the site that has lost its .fsrepl or its folder is restored, with its settings and the versions that its
    replicas have; the command first says what happens to objects whose files are missing. While a region that may
    have versions of the bucket is away, restoring needs --yes.
    """
    room = perform(requests.AdoptBucket(bucket, dry_run=True, trees=trees))
    what = _is_lost(bucket, room) if "Healed" in room else _takes(bucket, room)
    if dry_run:
        print_json(room) if json else tell(what)
        return
    if yes and not json:
        say(what)
    if room.get("NotAsked") and not yes:  # no question on a terminal: what would be lost is unknown
        raise Refused("InvalidRequest", f"{what}. Attach it first, or continue without it with --yes")
    confirm(f"{what}. " + ("Restore it?" if "Healed" in room else "Adopt it?"), yes)
    with progress.bar(f"adopting {bucket}", room["Objects"] + room["Directories"], lambda: _recorded(bucket)):
        answer = perform(requests.AdoptBucket(bucket, umask=umask(), although_away=yes, trees=trees))
    if "Healed" in answer:
        print_json(answer) if json else tell_healed(bucket, answer)
        return
    what = kinds_text(answer["Adopted"] - answer["Directories"], answer["Directories"], answer["Symlinks"])
    print_json(answer) if json else say(f"bucket {bucket}: {what} adopted, versioning {answer['Versioning']}")
    tell_left(answer)


def _recorded(bucket: Address) -> int:
    """How many versions of a bucket are recorded by now."""
    with journal_on_disk() as journal:
        return journal.totals.versions(str(bucket))


def _is_lost(bucket: Address, room: dict[str, Any]) -> str:
    return (
        f"{bucket} is a bucket of this site, and has lost its .fsrepl or its folder; it is restored with its "
        f"settings, and with the versions that other buckets and its files still have. "
        f"{_takes(bucket, room)}{_missing(room)}"
    )


def _missing(room: dict[str, Any]) -> str:
    """Sentences on objects without a file in the folder: what happens to them, and which cannot be restored now."""
    away = "".join(
        f". If you continue now, versions are lost that only a missing region has: {why}" for why in room["NotAsked"]
    )
    return f"{_becomes(room)}{away}"


def _becomes(room: dict[str, Any]) -> str:
    if room["Deleted"]:
        there = [f"{counted(number, 'object')} at {name}" for name, number in room["DeletedAt"].items()]
        also = f", and {', '.join(there)}" if there else ", and none at a destination"
        return f". {counted(room['Deleted'], 'object')} with no file in it will be deleted here{also}"
    if room["PutBack"]:
        return f". {counted(room['PutBack'], 'object')} with no file in it will be put back; nothing is deleted"
    return ""


def tell_healed(bucket: Address, answer: dict[str, Any]) -> None:
    fetched, kept = counted(answer["Fetched"], "version"), counted(answer["Kept"], "version")
    say(f"bucket {bucket} is restored: {fetched} from other buckets, {kept} from its files and the journal")
    if answer["PutBack"]:
        say(f"{counted(answer['PutBack'], 'missing file')} put back; nothing is deleted")
    if answer["Lost"] and answer["NotAsked"]:
        warn(
            f"{counted(answer['Lost'], 'version')} not found, and their files are gone or changed. A region "
            f"that is away may have them: once it is back, `fsrepl verify SRC --repair` restores them"
        )
    elif answer["Lost"]:
        warn(
            f"{counted(answer['Lost'], 'version')} lost: no other bucket has them, and their files are gone or changed"
        )
    for why in answer["NotAsked"]:
        warn(f"not searched for versions: {why}")


def tell_left(answer: dict[str, Any]) -> None:
    """Name the files that have not become versions. Raises Exit(1) where some cannot."""
    for name in answer["Waiting"]:
        warn(f"{name} becomes a version once it is complete: a program may be writing into it")
    for left in answer["LeftOut"]:
        warn(f"not adopted: {left['Key']}: {left['Why']}")
    if answer["Left"]:
        if more := answer["Left"] - len(answer["LeftOut"]):
            warn(f"and {more:,} more are not adopted")
        raise typer.Exit(1)


def _takes(bucket: Address, room: dict[str, Any]) -> str:
    """A sentence on what a folder holds, and the space that its versions take."""
    found = kinds_text(room["Objects"], room["Directories"], room["Symlinks"])
    return (
        f"{bucket} holds {found}, {size_text(room['Bytes'])}; their versions take about "
        f"{size_text(room['Needed'])}, and {size_text(room['Free'])} are free"
    )


@bucket.command("trees")
def bucket_trees(
    bucket: Bucket,
    setting: Annotated[
        Switch | None, typer.Argument(metavar="[on|off]", help="Without it, the present setting is printed.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a bucket a tree bucket, or no longer one.

    In a tree bucket directories and symlinks are objects: a directory with its mode, owner, ACLs and attributes, under
    a key that ends in a slash, and a symlink, whose content is its target, and which is never followed. Turn it on at
    the destinations too, which otherwise keep such an object in their store alone. Turning it off deletes nothing: what
    is recorded stays as it is.
    """
    if setting is None:
        opened = open_site().bucket(str(bucket))
        with opened.open():
            answer: dict[str, Any] = {"Bucket": str(bucket), "Trees": opened.trees}
        print_json(answer) if json else tell("on" if opened.trees else "off")
        return
    answer = perform(requests.SetTrees(bucket, setting is Switch.ON))
    if json:
        print_json(answer)
        return
    say(f"trees of {bucket}: {setting}" + ("" if answer["Changed"] else ", as before"))
    for destination in answer["NotTrees"]:
        warn(f"{destination} is no tree bucket, and does not show such objects; `fsrepl bucket trees {destination} on`")


@bucket.command("ls")
def bucket_ls(
    where: Annotated[
        str | None,
        typer.Argument(
            metavar="REGION[/BUCKET]",
            help="Only buckets of this region, or one bucket.",
            autocompletion=completion.places,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the buckets and their settings."""
    from fsrepl.commands.documents import buckets as documents

    site = open_answering_site()
    region, _, name = (where or "").partition("/")
    if region and region not in site.destinations:
        site.bucket(f"{region}/{name}") if name else site.buckets_of(region)  # raises for an unknown one
    there = [each for service in services_of(site) if region in ("", service["name"]) for each in service["buckets"]]
    rows = [*documents.buckets(site, region), *map(documents.of_service, there)]
    if name:
        rows = [row for row in rows if row["Bucket"] == where]
        if not rows:
            raise Refused("NoSuchBucket", f"there is no bucket {name} in {region} that this site knows")
    if json:
        print_json({"Buckets": rows})
        return
    print_table(
        [
            (
                r["Bucket"],
                (r["Versioning"] or "never versioned") if r["Online"] else "OFFLINE",
                _trees_text(r),
                ", ".join(r["ReplicatesTo"]),  # type: ignore[arg-type]
                counted(r["LifecycleRules"], "rule") if r["LifecycleRules"] else "",  # type: ignore[arg-type]
                r.get("Trouble", ""),
            )
            for r in rows
        ],
        ("BUCKET", "VERSIONING", "TREES", "REPLICATES TO", "LIFECYCLE", ""),
    )


def _trees_text(row: dict[str, object]) -> str:
    """The setting as `bucket trees` prints it; empty where it is unknown, or a bucket of an S3 service has none."""
    if not row["Online"] or "Trees" not in row:
        return ""
    return str(Switch.ON if row["Trees"] else Switch.OFF)


@bucket.command("rm")
def bucket_rm(bucket: Bucket, yes: Yes = False, json: Json = False) -> None:
    """Remove a bucket. Asks first where the bucket is not empty, then removes its contents too."""
    try:
        answer = perform(requests.RemoveBucket(bucket))
    except Refused as error:
        if error.code != "BucketNotEmpty":
            raise
        if not yes:
            try:
                confirm(f"{bucket} holds objects or versions. Remove it with everything in it?", yes=False)
            except Usage:
                raise error from None
        answer = perform(requests.RemoveBucket(bucket, purge=True))
    print_json(answer) if json else say(f"bucket {bucket} is removed")


def _set(bucket: Address, status: str, json: bool) -> None:
    with progress.bar(f"versioning of {bucket}", 0, lambda: _recorded(bucket)):
        answer = perform(requests.SetVersioning(bucket, status))
    if json:
        print_json(answer)
    else:
        if answer.get("Objects"):
            say(_takes(bucket, answer))
        say(f"versioning of {bucket}: {status}")
    for source in answer.get("ReplicatedFrom", ()):
        warn(
            f"{source} is replicated to {bucket}, and its deliveries fail from now on (DstBucketUnversioned); after "
            f"`fsrepl versioning enable {bucket}`, `fsrepl retry {source}` sends them"
        )
    if "Left" in answer:
        tell_left(answer)


@versioning.command("enable")
def versioning_enable(bucket: Bucket, json: Json = False) -> None:
    """Keep every version from now on. Existing files become `null` versions."""
    _set(bucket, "Enabled", json)


@versioning.command("suspend")
def versioning_suspend(bucket: Bucket, json: Json = False) -> None:
    """Create no more versions, and keep the existing ones.

    A write replaces the version `null` of its key. Deliveries to a bucket that is suspended fail until it is enabled
    again, as in S3; a source with a replication configuration cannot be suspended.
    """
    _set(bucket, "Suspended", json)


@versioning.command("show")
def versioning_show(bucket: Bucket, json: Json = False) -> None:
    """Print the state: Enabled, Suspended, or never versioned."""
    from fsrepl.commands.documents import buckets as documents

    site = open_site()
    if bucket.region in site.destinations:
        found = documents.versioning_there(site, str(bucket), services_of(site))
    else:
        found = documents.versioning(site.bucket(str(bucket)))
    print_json(found) if json else tell(str(found.get("Status", f"{bucket} was never versioned")))
