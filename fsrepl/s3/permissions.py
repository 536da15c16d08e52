"""Pure: which permissions a delivery needs, and which of them a role lacks."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from fsrepl.model.rule import Role
from fsrepl.s3 import policy
from fsrepl.s3.arn import bucket_arn
from fsrepl.s3.policy import Verdict
from fsrepl.s3.roles import BATCH, OWNER_OVERRIDE, REPLICATOR


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
        return policy.may(role, action, resource) is Verdict.ALLOWED

    if not allowed("s3:GetReplicationConfiguration", bucket):
        return Permission("SrcBucketReplicationConfigMissing")
    if batch and not (BATCH in role.trusted and allowed("s3:InitiateReplication", original)):
        return Permission("InitiateReplicationNotPermitted")
    if marker:  # it has no data, tags or ACL
        if not allowed("s3:ListBucket", bucket):
            return Permission("SrcHeadObjectNotPermitted")
        return Permission("" if allowed("s3:ReplicateDelete", replica) else "DstDelObjNotPermitted")

    read = policy.may(role, "s3:GetObjectVersionForReplication", original)
    if read is Verdict.NOT_ALLOWED:  # what roles of 2017 have in its place
        read = policy.may(role, "s3:GetObjectVersion", original)
    if read is not Verdict.ALLOWED:
        return Permission("SrcGetObjectNotPermitted")
    if acl and not owner_override and not allowed("s3:GetObjectVersionAcl", original):
        return Permission("SrcGetAclNotPermitted")
    read_tags = policy.may(role, "s3:GetObjectVersionTagging", original) if tags else Verdict.ALLOWED
    if read_tags is Verdict.DENIED:
        return Permission("SrcGetTaggingNotPermitted")

    needed = ["s3:ReplicateObject", *([OWNER_OVERRIDE] if owner_override else [])]
    if not all(allowed(action, replica) for action in needed):
        return Permission("DstMultipartInitNotPermitted" if large else "DstPutObjectNotPermitted")
    with_tags = not tags or (read_tags is Verdict.ALLOWED and allowed("s3:ReplicateTags", replica))
    return Permission(with_tags=with_tags)
