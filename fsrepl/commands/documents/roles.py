"""Roles as JSON: `role ls`, `role show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fsrepl.errors import FsreplError, Refused
from fsrepl.model import json_text
from fsrepl.model.keys import Document
from fsrepl.s3 import arn
from fsrepl.settings import Settings
from fsrepl.storage.site import Site


def names(settings: Settings) -> list[str]:
    """The names of the existing roles."""
    return sorted(path.stem for path in settings.roles.glob("*.json")) if settings.roles.is_dir() else []


def roles(found: Sequence[str], used_by: Mapping[str, Sequence[str]]) -> list[Document]:
    return [{"RoleName": n, "Arn": arn.role_arn(n), "UsedBy": list(used_by.get(n, ()))} for n in found]


def role(settings: Settings, name: str) -> Document:
    """The document of a role. Raises Refused(NoSuchEntity) where it is missing."""
    arn.check_role_name(name)
    path = settings.roles / f"{name}.json"
    try:
        found: Document = json_text.loads(path.read_text())
    except FileNotFoundError as error:
        raise Refused("NoSuchEntity", f"there is no role {name!r} in {path.parent}") from error
    except (OSError, ValueError) as error:
        raise Refused("MalformedPolicyDocument", f"{path} cannot be read: {error}") from error
    return found


def users(site: Site) -> tuple[dict[str, list[str]], list[str]]:
    """The buckets that name each role; and why some buckets cannot be read."""
    used: dict[str, list[str]] = {}
    unread: list[str] = []
    for address, bucket in sorted(site.buckets.items()):
        try:
            with bucket.open():
                if bucket.replication:
                    used.setdefault(bucket.replication.role, []).append(address)
        except FsreplError as error:
            unread.append(str(error))
    return used, unread
