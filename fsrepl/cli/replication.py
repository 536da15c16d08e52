"""fsrepl replication: the console's five steps, and S3's documents."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from msgspec import structs

from fsrepl.cli import backfill, completion
from fsrepl.cli.common import (
    DryRun,
    Json,
    Source,
    open_answering_site,
    open_site,
    perform,
    print_json,
    print_table,
    read_document,
    say,
    state,
    tell,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Usage
from fsrepl.model.address import Address

replication = typer.Typer(help="Replication rules of a source bucket.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    backfill.register(replication)
    app.add_typer(replication, name="replication")


@replication.command()
def enable(
    source: Annotated[
        Address | None,
        typer.Argument(
            metavar="SRC",
            help="The source, REGION/BUCKET.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ] = None,
    destination: Annotated[
        Address | None,
        typer.Argument(
            metavar="DST",
            help="The destination. Without DST, disabled rules are enabled again.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="Only keys that begin with P; a folder ends in /. Repeatable."),
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The storage class of the replicas. Default: the source's.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(metavar="NAME", help="An existing role.", autocompletion=completion.roles)
    ] = None,
    create_role: Annotated[
        bool, typer.Option("--create-role", help="Create a role for these two buckets (the default).")
    ] = False,
    id_: Annotated[str | None, typer.Option("--id", metavar="ID", help="The name of the rule.")] = None,
    no_delete_markers: Annotated[
        bool, typer.Option("--no-delete-markers", help="Do not replicate deletions (rules become V2).")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Add to the existing configuration.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the existing configuration.")] = False,
    trees: Annotated[
        bool, typer.Option("--trees", help="Directories, symlinks and hard links too: SRC and DST become tree buckets.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Replicate a bucket to another region, from now on.

    The whole bucket, or the keys that begin with a --prefix. On a terminal, without SRC and DST, the command asks step
    by step.
    """
    if role is not None and create_role:
        raise Usage("--role names an existing role and --create-role creates one; give one of the two")
    if add and replace:
        raise Usage("--add and --replace exclude each other")
    has_options = bool(prefix or storage_class or role or create_role or add or trees)
    if source is None:
        _check_may_ask(has_options=has_options or replace)
        asked, trees = _ask()
        wanted = structs.replace(asked, id=id_ or "", delete_markers=not no_delete_markers, dry_run=dry_run)
    elif destination is None and (has_options or id_ or no_delete_markers):
        raise Usage("DST is missing; with SRC alone, `enable` takes no options and enables disabled rules again")
    else:
        wanted = requests.EnableReplication(
            source,
            destination,
            prefixes=tuple(prefix or ()),
            storage_class=storage_class or "",
            role=role or "",
            id=id_ or "",
            delete_markers=not no_delete_markers,
            add=add,
            replace=replace,
            dry_run=dry_run,
        )
    answer = perform(wanted)
    warn_of_unmatched(wanted.source, answer)
    if json:
        print_json(answer)
    else:
        _print_enabled(wanted, answer)
    if trees and not dry_run:
        _make_trees(wanted, is_told=not json)
    if source is None and not dry_run:
        _offer_lifecycle(wanted.source)


def _check_may_ask(*, has_options: bool) -> None:
    """Raises Usage where no person can be asked for SRC and DST, or where options would have no effect then."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Usage("SRC and DST are missing, and there is no terminal to ask on; `fsrepl replication enable SRC DST`")
    if has_options:
        raise Usage(
            "SRC and DST are missing; name them beside the options, or give no options and answer the questions"
        )


def _ask() -> tuple[requests.EnableReplication, bool]:
    from fsrepl.cli import wizard

    return wizard.ask(open_site())


def _make_trees(wanted: requests.EnableReplication, *, is_told: bool) -> None:
    """Make the source a tree bucket, and the destination where it is no S3 service."""
    from fsrepl.commands import trees

    assert wanted.destination is not None
    for bucket in trees.plain(open_site(), (str(wanted.source), str(wanted.destination))):
        perform(requests.SetTrees(Address.parse_bucket(bucket), True))
        if is_told:
            say(f"trees of {bucket}: on")


def _offer_lifecycle(source: Address) -> None:
    """Ask, on a terminal, whether old versions of a new source are to be removed, and set the rule for that."""
    from fsrepl.cli import wizard
    from fsrepl.commands.versioning_cost import IN_WORDS, OLD_VERSIONS

    if wizard.ask_old_versions(open_site(), source):
        perform(requests.PutLifecycle(source, OLD_VERSIONS))
        say(f"old versions of {source} are removed {IN_WORDS}; `fsrepl lifecycle preview {source}` shows which")


def _print_enabled(wanted: requests.EnableReplication, answer: dict[str, Any]) -> None:
    """Print the rules and the role that a bucket has now, or would have."""
    verb = "would replicate" if wanted.dry_run else "replicates"
    for rule in answer["ReplicationConfiguration"]["Rules"]:
        (tell if wanted.dry_run else say)(f"{wanted.source} {verb} {_describe(rule)}")
    if answer.get("Role"):
        say(f"role {answer['Role']}{'' if wanted.dry_run else _role_change(answer)}")
    if not wanted.dry_run:
        say("objects from before are not replicated by the rule; `fsrepl replication backfill` sends them")
        _warn_of_missing_role(answer)


def _role_change(answer: dict[str, Any]) -> str:
    if answer["Created"]:
        return " (new)"
    return ", for this destination too" if answer["Extended"] else ""


def warn_of_unmatched(source: Address, answer: dict[str, Any]) -> None:
    if prefixes := answer.get("Unmatched"):
        warn(f"no object in {source} begins with {' or '.join(map(repr, prefixes))}; a rule waits for such objects")


def _warn_of_missing_role(answer: dict[str, Any]) -> None:
    """S3 saves a configuration whose role does not exist; people should know."""
    role = answer["ReplicationConfiguration"]["Role"].rpartition("/")[2]
    if not (state().settings.roles / f"{role}.json").exists():
        warn(f"role {role} is missing: deliveries that need it will be FAILED; `fsrepl role create {role}` creates it")


def _describe(rule: dict[str, Any]) -> str:
    from fsrepl.s3.replication import selection

    prefix, tags = selection(rule)  # type: ignore[arg-type]
    what = f"keys beginning with {prefix!r}" if prefix else "the whole bucket"
    if tags:
        what += " with " + ", ".join(f"{tag['Key']}={tag['Value']}" for tag in tags)
    to = ":".join(rule["Destination"]["Bucket"].split(":")[3:4]) + "/" + rule["Destination"]["Bucket"].split(":")[5]
    as_class = f" as {rule['Destination']['StorageClass']}" if "StorageClass" in rule["Destination"] else ""
    off = "" if rule["Status"] == "Enabled" else " (disabled)"
    return f"{what} to {to}{as_class}, rule {rule['ID']}{off}"


@replication.command("put")
def put(
    source: Source,
    file: Annotated[str, typer.Argument(metavar="FILE", help="S3's JSON, as `aws s3api` takes it; - is stdin.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Save a configuration in S3's JSON, and replace the old one."""
    document, size_bytes = read_document(file)
    answer = perform(requests.PutReplication(source, document, size_bytes, dry_run))
    warn_of_unmatched(source, answer)
    if json:
        print_json(answer)
        return
    for rule in answer["ReplicationConfiguration"]["Rules"]:
        (tell if dry_run else say)(f"{source} {'would replicate' if dry_run else 'replicates'} {_describe(rule)}")
    _warn_of_missing_role(answer)


@replication.command("get")
def get(
    source: Source,
    aws: Annotated[bool, typer.Option("--aws", help="Print ARNs in the form that AWS accepts.")] = False,
    json: Json = True,
) -> None:
    """Print the configuration in S3's JSON."""
    from fsrepl.commands.replication import configuration
    from fsrepl.s3.replication import render_aws

    document = configuration(open_site(), str(source)).document
    print_json({"ReplicationConfiguration": render_aws(document) if aws else document})


@replication.command("show")
def show(source: Source, json: Json = False) -> None:
    """Show the rules, the role and pending deliveries."""
    from fsrepl.commands import reader, status
    from fsrepl.commands.replication import configuration

    site = open_answering_site()
    document = configuration(site, str(source)).document
    said = reader.daemon_status(site.settings)
    found = next(b for b in status.status(site, said)["buckets"] if b["bucket"] == str(source))
    if json:
        print_json({"ReplicationConfiguration": document, "rules": found["rules"]})
        return
    tell(f"{source}, role {document['Role']}")
    rules: list[Any] = document["Rules"]  # type: ignore[assignment]
    for rule in rules:
        tell(f"  {_describe(rule)}")
    print_table(
        [(r["id"], r["destination"], r["status"], r["pending"], r["failed"], r["completed"]) for r in found["rules"]],
        ("RULE", "DESTINATION", "STATUS", "PENDING", "FAILED", "COMPLETED"),
        right=(3, 4, 5),
    )


@replication.command("disable")
def disable(source: Source, json: Json = False) -> None:
    """Disable all rules, and keep them. Changes made meanwhile need a backfill later."""
    answer = perform(requests.DisableReplication(source))
    print_json(answer) if json else say(f"the rules of {source} are disabled; `fsrepl replication enable {source}`")


@replication.command("rm")
def rm(source: Source, json: Json = False) -> None:
    """Remove the configuration. Replicas in the destinations stay."""
    answer = perform(requests.RemoveReplication(source))
    if json:
        print_json(answer)
    elif answer["Removed"]:
        say(f"{source} is not replicated any more")
    else:
        say(f"{source} has no replication configuration: there was none to remove")
