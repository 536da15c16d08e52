"""Roles as files of the site: generated for a pair of buckets, written, undone, removed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import CreateRole
from fsrepl.errors import Refused
from fsrepl.model import json_text
from fsrepl.model.address import Address
from fsrepl.s3 import arn, roles
from fsrepl.storage.documents import open_directory, remove_document, write_bytes, write_document


def _role_path(engine: Engine, name: str) -> Path:
    """The path of a role's file. Raises Refused(ValidationError) for a name that leads to another folder."""
    arn.check_role_name(name)
    return engine.settings.roles / f"{name}.json"


def read_role(engine: Engine, name: str) -> dict[str, object] | None:
    try:
        found = json_text.loads(_role_path(engine, name).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refused(
            "MalformedPolicyDocument", f"role {name}: {_role_path(engine, name)} cannot be read: {error}"
        ) from error
    return found if isinstance(found, dict) else {}


def generated_role(engine: Engine, source: str, destination: str) -> tuple[str, roles.RoleDocument | None]:
    """The name of the role for a pair of buckets, and its document where the role does not exist yet.

    The name is cut at 64 characters, as the console cuts it. A role of that name for another pair, or with further
    destinations, is never shared: the new name then ends in a digest. Source: s3-semantics, 6.2.
    """
    name = candidate = roles.generated_name(Address.parse_bucket(source).name, Address.parse_bucket(destination).name)
    for number in itertools.count():
        document = roles.generate(candidate, source, [destination])
        found = read_role(engine, candidate)
        if found is None or found == document:
            return candidate, document if found is None else None
        candidate = roles.distinct_name(name, (source, destination + f" {number}" * bool(number)))
    raise AssertionError


def role_with(engine: Engine, name: str, source: str, destination: str) -> roles.RoleDocument | None:
    """A generated role's document with a further destination; None where it has that already, or is not generated."""
    found = read_role(engine, name)
    if found is None or not roles.is_generated(found, source):
        return None
    with_it = roles.add_destination(found, source, destination)
    return None if with_it == found else with_it


def write_role(engine: Engine, name: str, document: roles.RoleDocument | None) -> Callable[[], None]:
    """Write a role's file, where there is a document; the function that undoes this."""
    if document is None:
        return lambda: None
    path = _role_path(engine, name)
    file = path.name.encode()
    before = path.read_bytes() if path.exists() else None
    with open_directory(engine.fs, path.parent.parent) as above, contextlib.suppress(FileExistsError):
        engine.fs.make_dir(above, path.parent.name.encode(), 0o755)
    with open_directory(engine.fs, path.parent) as at:
        write_document(engine.fs, at, file, document, mode=0o644)

    def undo() -> None:
        with open_directory(engine.fs, path.parent) as at:
            if before is None:
                remove_document(engine.fs, at, file)
            else:
                write_bytes(engine.fs, at, file, before, mode=0o644)

    return undo


def create_role(engine: Engine, request: CreateRole) -> dict[str, object]:
    """Create a role with the generated policy, under a name of the user's choice."""
    name, source = request.name, str(request.source)
    destinations = [str(destination) for destination in request.destinations]
    for address in (source, *destinations):
        engine.site.bucket(address)
    document = roles.generate(name, source, destinations)
    roles.parse_role(document, name)
    found = read_role(engine, name)
    if found is not None and found != document:
        raise Refused("EntityAlreadyExists", f"role {name} exists already with another policy; remove it first")
    write_role(engine, name, document if found is None else None)
    return {"RoleName": name, "Arn": arn.role_arn(name)}


def remove_role(engine: Engine, name: str) -> dict[str, object]:
    path = _role_path(engine, name)
    if not path.exists():
        raise Refused("NoSuchEntity", f"there is no role {name!r}")
    with open_directory(engine.fs, path.parent) as at:
        remove_document(engine.fs, at, path.name.encode())
    return {"RoleName": name}
