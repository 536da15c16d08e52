"""Replication roles: may this role do that to this version? And the role we generate.

A role is a file in AWS's grammar: who may use it, and what it may do to which buckets and keys. An
explicit Deny wins, then an Allow counts, and what nothing allows is refused; the filesystem's own
permissions come after that. Pure. Source: s3-semantics, section 6; design.md, section 5.
"""

from __future__ import annotations

import copy
import enum
import fnmatch
import functools
import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Never, Required, TypedDict, TypeVar

from fsrepl.arn import bucket_arn, check_role_name
from fsrepl.errors import Refused
from fsrepl.model import Role, Statement
from fsrepl.shape import conform, quoted

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

# -- the form of a role's file, in the words of IAM's policy grammar

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


# -- the role we generate

_GENERATED = "replication_role_for_"


def generated_name(source_bucket: str, destination_bucket: str) -> str:
    """The console's name for the role of a pair, cut where the console cuts it. Source: s3-semantics, 6.2."""
    return f"{_GENERATED}{source_bucket}_to_{destination_bucket}"[:NAME_MAX]


def distinct_name(name: str, pair: tuple[str, str]) -> str:
    """The same for a pair of addresses whose name is another pair's already: it ends in a digest of the two."""
    digest = hashlib.sha256(" ".join(pair).encode()).hexdigest()[:8]
    return f"{name[: NAME_MAX - 9]}-{digest}"


def generate(name: str, source: str, destinations: Collection[str], *, owner_override: bool = False) -> RoleDocument:
    """The role file of a source and its destinations: what s3-semantics, 6.1 lists, on these buckets and nothing else.

    With owner_override it may also give replicas to the owner of the destination. Raises Refused for a
    name that IAM would not have.
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
    """Whether we made a role's file: its name tells, or it says what `generate` does and nothing else.

    One that a person wrote, or changed, under a name of their own is theirs. Raises Refused(MalformedPolicyDocument).
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
    """A role's file that permits what `generate` permits between these two; what it names already stays as it is.

    Nothing is added for what other words permit, such as s3:*. Raises Refused(MalformedPolicyDocument).
    """
    role = copy.deepcopy(conform(document, RoleDocument, MALFORMED))
    before = parse_role(document, role["RoleName"])
    generated = generate(role["RoleName"], source, [destination], owner_override=owner_override)
    statements = _listed(role["Policy"]["Statement"])
    for wanted in _listed(generated["Policy"]["Statement"]):
        actions, resources = set(_listed(wanted["Action"])), _listed(wanted["Resource"])
        alike = [s for s in statements if s["Effect"] == "Allow" and actions & set(_listed(s["Action"]))]
        named = any(set(resources) <= set(_listed(s["Resource"])) for s in alike)
        if named or all(may(before, action, each) is Verdict.ALLOWED for action in actions for each in resources):
            continue
        same = next((s for s in alike if actions == set(_listed(s["Action"]))), None)
        if same is None:
            statements.append(wanted)
        else:
            same["Resource"] = [*_listed(same["Resource"]), *resources]
    if len(statements) > 1:  # a single one may stand without its list, and then stays so
        role["Policy"]["Statement"] = statements
    return role


# -- a role as its file has it


_ACTION = re.compile(r"\*|[A-Za-z0-9-]+:[A-Za-z0-9*?]+")
_RESOURCE = re.compile(r"\*|arn(:[^:]*){4}:.+", re.DOTALL)


def parse_role(document: object, name: str) -> Role:
    """The role in the file NAME.json. Raises Refused(MalformedPolicyDocument) for what is not understood whole."""
    of = f"role {name}"
    written = conform(document, RoleDocument, MALFORMED, of)
    if written["RoleName"] != name:
        raise Refused(MALFORMED, f"{of}: RoleName is {quoted(written['RoleName'])}; it must be the name of the file")
    run_as = written.get("RunAs")
    for field, number in (run_as or {}).items():
        if number not in range(2**32 - 1):  # the last one means "leave it" to chown(2)
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
        if _named(tuple(_listed(statement["Action"])), "sts:AssumeRole"):
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


# -- what a role permits


class Verdict(enum.Enum):
    ALLOWED = "allowed"
    NOT_ALLOWED = "not allowed"
    DENIED = "denied"


def may(role: Role, action: str, resource: str) -> Verdict:
    """Whether a role's policy permits an action on one bucket or object, given by its ARN."""
    verdict = Verdict.NOT_ALLOWED
    for statement in role.statements:
        if _named(statement.actions, action) and any(p.fullmatch(resource) for p in _patterns(statement.resources)):
            if not statement.allow:
                return Verdict.DENIED
            verdict = Verdict.ALLOWED
    return verdict


@functools.lru_cache(maxsize=1024)
def _named(actions: tuple[str, ...], action: str) -> bool:
    """Whether an action is among those of a statement, which know *, ? and no case."""
    return any(_glob(pattern.lower()).fullmatch(action.lower()) for pattern in actions)


@functools.lru_cache(maxsize=1024)
def _patterns(resources: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(map(_arn_pattern, resources))


def _arn_pattern(resource: str) -> re.Pattern[str]:
    """What a Resource stands for. Wildcards stay within their part of an ARN, and the last part is all the rest.

    S3's own ARNs name no region: such a Resource means the bucket of that name in each.
    """
    if resource == "*":
        return _glob(resource)
    arn, partition, service, region, account, last = resource.split(":", 5)
    head = re.escape(f"{arn}:{partition}:{service}:{region or '*'}:{account}:")
    return re.compile(head.replace(r"\*", "[^:]*").replace(r"\?", "[^:]") + _glob(last).pattern)


def _glob(pattern: str) -> re.Pattern[str]:
    """* and ? as IAM has them: fnmatch's, whose stars are not tried in all ways, without its brackets."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


@dataclass(frozen=True, slots=True)
class Permission:
    """What a role says to one delivery: S3's failure reason, empty where it may go; and whether its tags may too."""

    reason: str = ""
    with_tags: bool = True


def permission_to_send(
    role: Role | None,
    *,
    source: str,
    destination: str,
    key: str,
    marker: bool,
    tags: bool,
    acl: bool,
    owner_override: bool,
    batch: bool,
    large: bool = False,
) -> Permission:
    """May this role send this version, or marker, from one bucket to another? The first refusal is the reason.

    role is None where there is none. tags, acl: whether the version has any; large: whether it goes in
    parts, whose refusals have names of their own. Source: s3-semantics, 6.1, with 3.3 for the reasons. S3
    does not say what the failure of a configuration that cannot be read is called, nor that of a marker
    that cannot be listed; here they are SrcBucketReplicationConfigMissing and SrcHeadObjectNotPermitted.
    """
    if role is None or REPLICATOR not in role.trusted:
        return Permission("AssumeRoleNotPermitted")
    if _is_blind_to_keys(role):
        key = "*"  # whichever: the answer for one is that for all, and is remembered
    return _permission(role, source, destination, key, marker, tags, acl, owner_override, batch, large)


@functools.lru_cache(maxsize=64)
def _is_blind_to_keys(role: Role) -> bool:
    """Whether a role never tells one object of a bucket from another: every resource is *, a bucket, or BUCKET/*."""
    return all(
        resource == "*" or _WHOLE_BUCKET.fullmatch(resource)
        for statement in role.statements
        for resource in statement.resources
    )


_WHOLE_BUCKET = re.compile(r"[^*?/]+(/\*)?")


@functools.lru_cache(maxsize=1024)
def _permission(
    role: Role,
    source: str,
    destination: str,
    key: str,
    marker: bool,
    tags: bool,
    acl: bool,
    owner_override: bool,
    batch: bool,
    large: bool,
) -> Permission:
    bucket, original, replica = bucket_arn(source), f"{bucket_arn(source)}/{key}", f"{bucket_arn(destination)}/{key}"

    def allowed(action: str, resource: str) -> bool:
        return may(role, action, resource) is Verdict.ALLOWED

    if not allowed("s3:GetReplicationConfiguration", bucket):
        return Permission("SrcBucketReplicationConfigMissing")
    if batch and not (BATCH in role.trusted and allowed("s3:InitiateReplication", original)):
        return Permission("InitiateReplicationNotPermitted")
    if marker:  # it has no data, tags or ACL
        if not allowed("s3:ListBucket", bucket):
            return Permission("SrcHeadObjectNotPermitted")
        return Permission("" if allowed("s3:ReplicateDelete", replica) else "DstDelObjNotPermitted")

    read = may(role, "s3:GetObjectVersionForReplication", original)
    if read is Verdict.NOT_ALLOWED:  # what roles of 2017 have in its place
        read = may(role, "s3:GetObjectVersion", original)
    if read is not Verdict.ALLOWED:
        return Permission("SrcGetObjectNotPermitted")
    if acl and not owner_override and not allowed("s3:GetObjectVersionAcl", original):
        return Permission("SrcGetAclNotPermitted")
    read_tags = may(role, "s3:GetObjectVersionTagging", original) if tags else Verdict.ALLOWED
    if read_tags is Verdict.DENIED:
        return Permission("SrcGetTaggingNotPermitted")

    needed = ["s3:ReplicateObject", *([OWNER_OVERRIDE] if owner_override else [])]
    if not all(allowed(action, replica) for action in needed):
        return Permission("DstMultipartInitNotPermitted" if large else "DstPutObjectNotPermitted")
    with_tags = not tags or (read_tags is Verdict.ALLOWED and allowed("s3:ReplicateTags", replica))
    return Permission(with_tags=with_tags)
