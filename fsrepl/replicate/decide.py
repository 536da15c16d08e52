"""Pure: what to do now for one delivery."""

from __future__ import annotations

from msgspec import Struct

from fsrepl.model.version import Status, Versioning
from fsrepl.s3.edit_rules import LOST_THERE

# -- one delivery


class Send(Struct, frozen=True):
    """A decision to send: the destination lacks this version, or metadata of it."""

    why: str
    with_tags: bool = True


class Settle(Struct, frozen=True):
    """A final status: COMPLETED, or FAILED with S3's reason."""

    status: Status
    why: str


class Wait(Struct, frozen=True):
    """A decision to try later: the delivery stays PENDING."""

    why: str


Action = Send | Settle | Wait


class Facts(Struct, frozen=True):
    """The facts that decide about one delivery. permission is S3's failure reason, empty where the role permits it."""

    source_configured: bool = True
    rule_enabled: bool = True
    destination_known: bool = True
    destination_offline: str = ""
    destination_missing: bool = False
    destination_versioning: Versioning = Versioning.ENABLED
    permission: str = ""
    with_tags: bool = True
    source_there: bool = True
    key_there: bool = True
    archived: bool = False
    hard_deleted: bool = False
    edit: bool = False
    """The destination has had the version: only its later metadata edits are pending."""
    replica_there: bool = True
    null_taken: bool = False
    """The version is a null version, and the destination has another null version of that key."""


def decide(facts: Facts) -> Action:
    """The next action for one delivery. The order of the questions is the policy."""
    if not facts.source_configured:
        return Settle(Status.FAILED, "SrcBucketReplicationConfigMissing")
    if not facts.rule_enabled:
        return Settle(Status.FAILED, "SrcObjectNotEligible")
    if not facts.source_there:
        return Settle(Status.FAILED, "SrcVersionNotFound" if facts.key_there else "SrcKeyNotFound")
    if facts.archived and not facts.edit:
        return Settle(Status.FAILED, "SrcObjectNotEligible")
    if not facts.destination_known:
        return Settle(Status.FAILED, "DstBucketNotFound")
    if facts.destination_offline:
        return Wait(facts.destination_offline)
    if facts.destination_missing:
        return Settle(Status.FAILED, "DstBucketNotFound")
    if facts.destination_versioning is not Versioning.ENABLED:
        return Settle(Status.FAILED, "DstBucketUnversioned")
    if facts.permission:
        return Settle(Status.FAILED, facts.permission)
    if facts.edit and not facts.replica_there:
        return Settle(Status.FAILED, LOST_THERE)
    if facts.hard_deleted and not facts.edit:
        # S3 answers batch jobs with this code; here a live delivery of a version removed there gets the same
        return Settle(Status.FAILED, "DstObjectHardDeleted")
    if facts.null_taken:
        return Settle(Status.FAILED, "SrcObjectNotEligible")
    return Send("the destination lacks this version", facts.with_tags)
