"""Permissions that a delivery needs, and those that a role lacks. Pure."""

from __future__ import annotations

import functools
import re

from msgspec import Struct

from fsrepl.model.rule import Role
from fsrepl.s3 import policy
from fsrepl.s3.arn import bucket_arn
from fsrepl.s3.policy import Verdict
from fsrepl.s3.roles import BATCH, OWNER_OVERRIDE, REPLICATOR


class Permission(Struct, frozen=True):
    """A role's answer for one delivery: S3's failure reason, empty where it is permitted, and whether tags are
    included."""

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
    """Whether a role may send a version or marker from one bucket to another; the first refusal is the reason.

    role: None where the role does not exist. tags, acl: whether the version has any. large: whether it is sent in
    parts, whose refusals have separate names.

    S3 does not document the failure reason for an unreadable configuration, nor for a marker that cannot be listed.
    They are SrcBucketReplicationConfigMissing and SrcHeadObjectNotPermitted here. Source: s3-semantics, 6.1; 3.3 for
    reasons.
    """
    if role is None or REPLICATOR not in role.trusted:
        return Permission("AssumeRoleNotPermitted")
    if _is_blind_to_keys(role):
        key = "*"  # any key gives the same answer, and one key makes the cache effective
    return _permission(role, source, destination, key, marker, tags, acl, owner_override, batch, large)


@functools.lru_cache(maxsize=64)
def _is_blind_to_keys(role: Role) -> bool:
    """Whether a role treats all objects of a bucket alike: every resource is *, a bucket, or BUCKET/*."""
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
    if marker:  # a marker has no data, tags or ACL
        if not allowed("s3:ListBucket", bucket):
            return Permission("SrcHeadObjectNotPermitted")
        return Permission("" if allowed("s3:ReplicateDelete", replica) else "DstDelObjNotPermitted")

    read = policy.may(role, "s3:GetObjectVersionForReplication", original)
    if read is Verdict.NOT_ALLOWED:  # roles of 2017 have this permission instead
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
