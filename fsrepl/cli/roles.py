"""fsrepl role: the roles that replicate on people's behalf."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fsrepl.cli import completion
from fsrepl.cli.common import Json, open_site, perform, print_json, print_table, say, state, warn
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.address import Address

Name = Annotated[str, typer.Argument(metavar="NAME")]

role = typer.Typer(help="Replication roles: files in roles/, in AWS's policy grammar.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(role, name="role")


@role.command("create")
def create(
    name: Name,
    source: Annotated[
        Address,
        typer.Option(
            "--from",
            metavar="SRC",
            help="The bucket it may read.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ],
    destination: Annotated[
        list[Address],
        typer.Option(
            "--to",
            metavar="DST",
            help="A bucket it may write. Repeatable.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ],
    json: Json = False,
) -> None:
    """Make a role for these buckets and nothing else.

    Its policy is the one that the console generates.
    """
    answer = perform(requests.CreateRole(name, source, tuple(destination)))
    print_json(answer) if json else say(f"role {answer['Arn']}")


@role.command("ls")
def ls(json: Json = False) -> None:
    """List the roles, and who uses each."""
    from fsrepl.commands.documents import roles as documents

    used = _users()
    folder = state().settings.roles
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    if json:
        print_json({"Roles": documents.roles(names, used)})
        return
    print_table([(name, ", ".join(used.get(name, ()))) for name in names], ("ROLE", "USED BY"))
    for name in sorted(used.keys() - set(names)):
        warn(f"role {name}, used by {', '.join(used[name])}, is missing; `fsrepl role create` makes it")


@role.command("show")
def show(name: Name, json: Json = True) -> None:
    """Print a role's file."""
    print_json(_read(name))


@role.command("rm")
def rm(name: Name, json: Json = False) -> None:
    """Remove a role. Deliveries that need it then end FAILED, AssumeRoleNotPermitted."""
    answer = perform(requests.RemoveRole(name))
    print_json(answer) if json else say(f"role {name} is removed")
    if users := _users().get(name):
        warn(f"{', '.join(users)} still uses it: what it should replicate will be FAILED")


def _users() -> dict[str, list[str]]:
    """The buckets that each role is named in. One that cannot be read is told of."""
    used: dict[str, list[str]] = {}
    for address, bucket in sorted(open_site().buckets.items()):
        try:
            with bucket.open():
                if bucket.replication:
                    used.setdefault(bucket.replication.role, []).append(address)
        except FsreplError as error:
            warn(str(error))
    return used


def _read(name: str) -> dict[str, Any]:
    import json

    from fsrepl.s3 import arn

    arn.check_role_name(name)
    path = state().settings.roles / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise Refused("NoSuchEntity", f"there is no role {name!r} in {path.parent}") from error
    except (OSError, ValueError) as error:
        raise Refused("MalformedPolicyDocument", f"{path} cannot be read: {error}") from error
    return found
