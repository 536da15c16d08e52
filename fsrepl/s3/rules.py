"""Which rules choose a version, once and for all; and what to do next for one delivery.

Pure: no I/O, no clock. Source: s3-semantics, 1.3, 2 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from fsrepl.model import metadata
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import ARCHIVED_CLASSES, NO_SHORTFALL, DeliveryRecord, Origin, Status, Version


def matches(rule: Rule, key: bytes, tags: Mapping[str, str]) -> bool:
    """Whether a rule's filter takes in an object: a plain string test of the key, and every tag it names."""
    if not key.startswith(rule.prefix):
        return False
    return not rule.tags or all(tags.get(name) == value for name, value in rule.tags.items())


def winners(rules: Collection[Rule], key: bytes, tags: Mapping[str, str], *, marker: bool) -> dict[str, Rule]:
    """Per destination the rule that decides everything: among the matching ones that with the highest priority.

    A marker has no tags, so rules with tags take no part; and if the winner does not copy markers,
    no lower rule does in its stead.
    """
    best: dict[str, Rule] = {}
    for rule in rules:
        if not rule.enabled or not matches(rule, key, tags) or (marker and rule.tags):
            continue
        known = best.get(rule.destination)
        if known is None or rule.priority > known.priority:
            best[rule.destination] = rule
    if marker:
        return {name: rule for name, rule in best.items() if rule.delete_markers}
    return best


def choose(
    replication: Replication | None, version: Version, *, in_effect: Collection[str] | None = None
) -> dict[str, DeliveryRecord]:
    """What a new version owes, frozen from now on.

    in_effect: the ids of the rules that were in effect when the file was written, where that is not
    now (found by a scan). Replicas, what lifecycle made, and archived objects owe nothing.
    """
    if replication is None or version.origin not in (Origin.USER, Origin.ADOPTED):
        return {}
    if version.storage_class in ARCHIVED_CLASSES:
        return {}
    rules = replication.rules if in_effect is None else [r for r in replication.rules if r.id in in_effect]
    chosen = winners(rules, version.key, version.tags, marker=version.marker)
    return {name: new_record(rule) for name, rule in chosen.items()}


def new_record(rule: Rule, job: str = "") -> DeliveryRecord:
    return DeliveryRecord(rule.id, Status.PENDING, "", rule.storage_class, rule.owner, job, rule.tracking)


def orphaned(replication: Replication | None, rule_id: str, destination: str) -> str:
    """Why nothing stands for a pending delivery any more: S3's reason, empty where its rule still runs.

    Nothing stays PENDING for ever: a rule that is gone fails what it owes at once. Source: s3-semantics, 1.5.
    """
    if replication is None:
        return "SrcBucketReplicationConfigMissing"
    for rule in replication.rules:
        if rule.id == rule_id and rule.enabled and rule.destination == destination:
            return ""
    return "SrcObjectNotEligible"


def renewed(recorded: DeliveryRecord) -> DeliveryRecord:
    """A delivery that is to be made once more, as a live one: an edit, a person, or a lost replica asks for it."""
    return replace(recorded, status=Status.PENDING, reason="", job="", before=None)


# -- what a backfill asks for

NONE = "NONE"
"""What S3 Batch Replication calls a version that no rule has chosen yet."""
STATUSES = (NONE, str(Status.FAILED), str(Status.COMPLETED), str(Status.REPLICA))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one backfill is to send: to the destinations of these rules (none: of all), versions of these statuses
    (none: of any). job is its id."""

    job: str
    statuses: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()


def statuses_for(version: Version, destination: str) -> set[str]:
    """What a version is called when a backfill asks whether to send it to a destination.

    By its delivery there. S3 knows a version's status only as a whole, so where there is no delivery yet, the status
    that S3 would show counts as well: COMPLETED elsewhere, for a destination that was added. A replica is one always.
    """
    recorded = version.deliveries.get(destination)
    if version.origin is Origin.REPLICA:
        return {str(Status.REPLICA)} | ({str(recorded.status)} if recorded else set())
    if recorded is not None:
        return {str(recorded.status)}
    return {NONE} | ({str(version.status)} if version.status else set())


def ask_for(
    replication: Replication, version: Version, wanted: Wanted, is_there: Callable[[str], bool]
) -> tuple[dict[str, DeliveryRecord], int]:
    """What a backfill owes of one version, by destination; and how many destinations are known to have it.

    is_there: whether a destination has it, as far as the index knows: asked where it is COMPLETED and the job is not
    for COMPLETED ones by name; those are looked at again. The rule that decides is the one that would decide for a new
    version, and it must be among the wanted ones. Source: s3-semantics, 2, the batch column.
    """
    if version.origin is Origin.LIFECYCLE or version.storage_class in ARCHIVED_CLASSES:
        return {}, 0
    asked: dict[str, DeliveryRecord] = {}
    there = 0
    for destination, rule in winners(replication.rules, version.key, version.tags, marker=version.marker).items():
        before = version.deliveries.get(destination)
        if wanted.rules and rule.id not in wanted.rules:
            continue
        if before is not None and (before.status is Status.PENDING or before.job == wanted.job):
            continue  # it is on its way, or this job was here before it was interrupted
        if wanted.statuses and wanted.statuses.isdisjoint(statuses_for(version, destination)):
            continue
        if not wanted.statuses and before and before.status is Status.COMPLETED and is_there(destination):
            there += 1
            continue
        asked[destination] = replace(new_record(rule, wanted.job), before=before and replace(before, before=None))
    return asked, there


def replica_of(version: Version, recorded: DeliveryRecord, source: str) -> Version:
    """What a version is at its destination: the same, but for class and owner where the rule says so."""
    return replace(
        version,
        origin=Origin.REPLICA,
        source=source,
        deliveries={},
        storage_class=recorded.storage_class or version.storage_class,
        shortfall=NO_SHORTFALL,
    )


def given_to(replica: Version, uid: int, gid: int) -> Version:
    """Owner override: the replica belongs to the owner of the destination bucket, and carries no ACL."""
    replica = metadata.without(replica, metadata.ACL)
    return replace(replica, posix=replace(replica.posix, uid=uid, gid=gid)) if replica.posix else replica
