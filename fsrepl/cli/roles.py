"""fsrepl role: the roles that deliveries run under."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fsrepl.cli import completion
from fsrepl.cli.common import Json, open_answering_site, perform, print_json, print_table, say, state, warn
from fsrepl.daemon import requests
from fsrepl.model.address import Address

if TYPE_CHECKING:
    from fsrepl.storage.site import Site


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
            help="The bucket that the role may read.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ],
    destination: Annotated[
        list[Address],
        typer.Option(
            "--to",
            metavar="DST",
            help="A bucket that the role may write. Repeatable.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ],
    json: Json = False,
) -> None:
    """Create a role for these buckets only.

    The role has the policy that the console generates.
    """
    answer = perform(requests.CreateRole(name, source, tuple(destination)))
    print_json(answer) if json else say(f"role {answer['Arn']}")


@role.command("ls")
def ls(json: Json = False) -> None:
    """List the roles, and the buckets that use each."""
    from fsrepl.commands.documents import roles as documents

    used, names = _users(open_answering_site()), documents.names(state().settings)
    if json:
        print_json({"Roles": documents.roles(names, used)})
        return
    print_table([(name, ", ".join(used.get(name, ()))) for name in names], ("ROLE", "USED BY"))
    for name in sorted(used.keys() - set(names)):
        warn(f"role {name}, used by {', '.join(used[name])}, is missing; `fsrepl role create` creates it")


@role.command("show")
def show(name: Name, json: Json = True) -> None:
    """Print a role's file."""
    from fsrepl.commands.documents import roles

    print_json(roles.role(state().settings, name))


@role.command("rm")
def rm(name: Name, json: Json = False) -> None:
    """Remove a role. Deliveries that need the role then end FAILED, AssumeRoleNotPermitted."""
    answer = perform(requests.RemoveRole(name))
    print_json(answer) if json else say(f"role {name} is removed")
    if users := _users(open_answering_site()).get(name):
        warn(f"{', '.join(users)} still uses role {name}: deliveries that need it will be FAILED")


def _users(site: Site) -> dict[str, list[str]]:
    """The buckets that name each role. Buckets that cannot be read are reported."""
    from fsrepl.commands.documents import roles

    used, unread = roles.users(site)
    for why in unread:
        warn(why)
    return used
