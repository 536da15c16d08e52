"""Replication roles: their documents, parsed, and the role that fsrepl generates. Pure.

A role is a file in AWS's grammar: the services that may use it, and their permissions on buckets and keys. An explicit
Deny wins, then an Allow counts, and anything else is refused. The filesystem's permissions apply in addition. Source:
s3-semantics, section 6; design.md, section 5.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Literal, Never, Required, TypedDict, TypeVar

from fsrepl.errors import Refused
from fsrepl.model.rule import Role, Statement
from fsrepl.s3 import policy
from fsrepl.s3.arn import bucket_arn, check_role_name
from fsrepl.s3.conform import conform, quoted
from fsrepl.s3.policy import Verdict

T = TypeVar("T")

NAME_MAX = 64
MALFORMED = "MalformedPolicyDocument"
REPLICATOR = "s3.amazonaws.com"
BATCH = "batchoperations.s3.amazonaws.com"

ON_SOURCE = ("s3:GetReplicationConfiguration", "s3:ListBucket")
ON_SOURCE_OBJECTS = (
    "s3:GetObjectVersionForReplication",
    "s3:GetObjectVersionAcl",
    "s3:GetObjectVersionTagging",
    "s3:GetObjectRetention",
    "s3:GetObjectLegalHold",
    "s3:InitiateReplication",
)
ON_DESTINATION_OBJECTS = ("s3:ReplicateObject", "s3:ReplicateDelete", "s3:ReplicateTags")
OWNER_OVERRIDE = "s3:ObjectOwnerOverrideToBucketOwner"

# -- the form of a role's file, in IAM's policy grammar

VERSION: Literal["2012-10-17"] = "2012-10-17"

PolicyVersion = Literal["2012-10-17", "2008-10-17"]
Effect = Literal["Allow", "Deny"]
Unsupported = Annotated[Never, "fsrepl's policies have Effect, Action and Resource only (Principal for trust)"]


class Principal(TypedDict, total=False):
    Service: Required[str | list[str]]


class TrustStatement(TypedDict, total=False):
    Sid: str
    Effect: Required[Effect]
    Principal: Required[Principal]
    NotPrincipal: Unsupported
    Action: Required[str | list[str]]
    NotAction: Unsupported
    Condition: Unsupported


class TrustPolicy(TypedDict, total=False):
    Version: PolicyVersion
    Id: str
    Statement: Required[TrustStatement | list[TrustStatement]]


class PolicyStatement(TypedDict, total=False):
    Sid: str
    Effect: Required[Effect]
    Action: Required[str | list[str]]
    NotAction: Unsupported
    Resource: Required[str | list[str]]
    NotResource: Unsupported
    Condition: Unsupported


class Policy(TypedDict, total=False):
    Version: PolicyVersion
    Id: str
    Statement: Required[PolicyStatement | list[PolicyStatement]]


class RunAs(TypedDict, total=False):
    uid: Required[int]
    gid: Required[int]


class RoleDocument(TypedDict, total=False):
    RoleName: Required[str]
    AssumeRolePolicyDocument: Required[TrustPolicy]
    Policy: Required[Policy]
    RunAs: RunAs


# -- the generated role

_GENERATED = "replication_role_for_"


def generated_name(source_bucket: str, destination_bucket: str) -> str:
    """The console's name for the role of two buckets, truncated as in the console. Source: s3-semantics, 6.2."""
    return f"{_GENERATED}{source_bucket}_to_{destination_bucket}"[:NAME_MAX]


def distinct_name(name: str, pair: tuple[str, str]) -> str:
    """A generated role's name for two addresses where another pair has that name: it ends in a digest of the two."""
    digest = hashlib.sha256(" ".join(pair).encode()).hexdigest()[:8]
    return f"{name[: NAME_MAX - 9]}-{digest}"


def generate(name: str, source: str, destinations: Collection[str], *, owner_override: bool = False) -> RoleDocument:
    """The role file for a source and its destinations: the permissions of s3-semantics, 6.1, on these buckets only.

    With owner_override the role may also give replicas to the owner of the destination. Raises Refused for a name that
    IAM would not accept.
    """
    check_role_name(name)
    to = [*ON_DESTINATION_OBJECTS, *([OWNER_OVERRIDE] if owner_override else [])]
    return {
        "RoleName": name,
        "AssumeRolePolicyDocument": {
            "Version": VERSION,
            "Statement": [
                {"Effect": "Allow", "Principal": {"Service": [REPLICATOR, BATCH]}, "Action": "sts:AssumeRole"}
            ],
        },
        "Policy": {
            "Version": VERSION,
            "Statement": [
                {"Effect": "Allow", "Action": list(ON_SOURCE), "Resource": [bucket_arn(source)]},
                {"Effect": "Allow", "Action": list(ON_SOURCE_OBJECTS), "Resource": [bucket_arn(source) + "/*"]},
                {"Effect": "Allow", "Action": to, "Resource": [bucket_arn(each) + "/*" for each in destinations]},
            ],
        },
    }


def is_generated(document: object, source: str) -> bool:
    """Whether fsrepl generated a role's file: its name shows it, or its content is exactly what `generate` returns.

    A role written or changed by a person under another name belongs to that person. Raises
    Refused(MalformedPolicyDocument).
    """
    role = conform(document, RoleDocument, MALFORMED)
    if role["RoleName"].startswith(_GENERATED):
        return True
    statements = _listed(role["Policy"]["Statement"])
    resources = _listed(statements[-1]["Resource"]) if statements else []
    objects = [re.fullmatch(r"arn:aws:s3:([^:]+)::(.+)/\*", each) for each in resources]
    destinations = [f"{found[1]}/{found[2]}" for found in objects if found]
    return any(
        document == generate(role["RoleName"], source, destinations, owner_override=override)
        for override in (False, True)
    )


def add_destination(document: object, source: str, destination: str, *, owner_override: bool = False) -> RoleDocument:
    """A role's file with the permissions of `generate` for two buckets added; existing statements stay as they are.

    Permissions already granted in another form, such as s3:*, are not added. Raises Refused(MalformedPolicyDocument).
    """
    role = copy.deepcopy(conform(document, RoleDocument, MALFORMED))
    before = parse_role(document, role["RoleName"])
    generated = generate(role["RoleName"], source, [destination], owner_override=owner_override)
    statements = _listed(role["Policy"]["Statement"])
    for wanted in _listed(generated["Policy"]["Statement"]):
        actions, resources = set(_listed(wanted["Action"])), _listed(wanted["Resource"])
        alike = [s for s in statements if s["Effect"] == "Allow" and actions & set(_listed(s["Action"]))]
        named = any(set(resources) <= set(_listed(s["Resource"])) for s in alike)
        if named or all(
            policy.may(before, action, each) is Verdict.ALLOWED for action in actions for each in resources
        ):
            continue
        same = next((s for s in alike if actions == set(_listed(s["Action"]))), None)
        if same is None:
            statements.append(wanted)
        else:
            same["Resource"] = [*_listed(same["Resource"]), *resources]
    if len(statements) > 1:  # a single statement may lack its list, and then stays so
        role["Policy"]["Statement"] = statements
    return role


# -- parsing a role's file


_ACTION = re.compile(r"\*|[A-Za-z0-9-]+:[A-Za-z0-9*?]+")
_RESOURCE = re.compile(r"\*|arn(:[^:]*){4}:.+", re.DOTALL)


def parse_role(document: object, name: str) -> Role:
    """The role in the file NAME.json. Raises Refused(MalformedPolicyDocument) where any part is not understood."""
    of = f"role {name}"
    written = conform(document, RoleDocument, MALFORMED, of)
    if written["RoleName"] != name:
        raise Refused(MALFORMED, f"{of}: RoleName is {quoted(written['RoleName'])}; it must be the name of the file")
    run_as = written.get("RunAs")
    for field, number in (run_as or {}).items():
        if number not in range(2**32 - 1):  # the greatest number means "unchanged" to chown(2)
            raise Refused(MALFORMED, f"{of}: RunAs.{field} {number} is no id of a user or group")
    return Role(
        name,
        _trusted(_listed(written["AssumeRolePolicyDocument"]["Statement"]), of),
        tuple(_statement(each, of) for each in _listed(written["Policy"]["Statement"])),
        run_as["uid"] if run_as else None,
        run_as["gid"] if run_as else None,
    )


def _trusted(statements: Iterable[TrustStatement], of: str) -> frozenset[str]:
    """The services that may use a role."""
    said: dict[Effect, set[str]] = {"Allow": set(), "Deny": set()}
    for statement in statements:
        services = _listed(statement["Principal"]["Service"])
        if any("*" in service for service in services):
            raise Refused(MALFORMED, f"{of}: Principal.Service must name services, such as {REPLICATOR}")
        if policy.is_named(tuple(_listed(statement["Action"])), "sts:AssumeRole"):
            said[statement["Effect"]].update(services)
    return frozenset(said["Allow"] - said["Deny"])


def _statement(written: PolicyStatement, of: str) -> Statement:
    actions, resources = _listed(written["Action"]), _listed(written["Resource"])
    for action in actions:
        if not _ACTION.fullmatch(action):
            raise Refused(MALFORMED, f"{of}: Action {quoted(action)} must be SERVICE:NAME, such as s3:ReplicateObject")
    for resource in resources:
        if not _RESOURCE.fullmatch(resource):
            raise Refused(MALFORMED, f"{of}: Resource {quoted(resource)} must be arn:aws:s3:REGION::BUCKET[/KEY] or *")
        if "${" in resource:
            raise Refused(MALFORMED, f"{of}: Resource {quoted(resource)} has a variable, and fsrepl knows none")
    return Statement(written["Effect"] == "Allow", tuple(actions), tuple(resources))


def _listed(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]
