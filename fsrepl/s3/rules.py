"""Rules that choose a version, once when it is made, and the deliveries that follow. Pure: no I/O, no clock.

Source: s3-semantics, 1.3, 2 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model import metadata
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import NO_SHORTFALL, NULL, DeliveryRecord, Origin, Status, Version
from fsrepl.settings import ARCHIVES


def matches(rule: Rule, key: bytes, tags: Mapping[str, str]) -> bool:
    """Whether a rule's filter matches an object: by a plain string prefix of the key, and by every tag of the
    filter."""
    if not key.startswith(rule.prefix):
        return False
    return not rule.tags or all(tags.get(name) == value for name, value in rule.tags.items())


def winners(rules: Collection[Rule], key: bytes, tags: Mapping[str, str], *, marker: bool) -> dict[str, Rule]:
    """The deciding rule for each destination: the matching rule with the highest priority.

    A marker has no tags, so rules with tags do not match. If the deciding rule does not copy markers, no lower rule
    does so instead.
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
    """The deliveries of a new version, fixed when it is made.

    in_effect: the ids of the rules in effect when the file was written, where a scan found the file later. Replicas,
    versions made by lifecycle, and archived objects have no deliveries.
    """
    if replication is None or version.origin not in (Origin.USER, Origin.ADOPTED):
        return {}
    if version.storage_class in ARCHIVES:
        return {}
    rules = replication.rules if in_effect is None else [r for r in replication.rules if r.id in in_effect]
    chosen = winners(rules, version.key, version.tags, marker=version.marker)
    return {name: new_record(rule) for name, rule in chosen.items()}


def new_record(rule: Rule, job: str = "") -> DeliveryRecord:
    return DeliveryRecord(rule.id, Status.PENDING, "", rule.storage_class, rule.owner, job, rule.tracking)


def orphaned(replication: Replication | None, rule_id: str, destination: str) -> str:
    """The reason why a pending delivery lost its rule, as S3 names it; empty where the rule still runs.

    No delivery stays PENDING for ever: the deliveries of a removed rule fail at once. Source: s3-semantics, 1.5.
    """
    if replication is None:
        return "SrcBucketReplicationConfigMissing"
    for rule in replication.rules:
        if rule.id == rule_id and rule.enabled and rule.destination == destination:
            return ""
    return "SrcObjectNotEligible"


BY_DAMAGE = frozenset({"SrcObjectNotEligible", "SrcVersionNotFound", "SrcKeyNotFound"})
"""S3's reasons for deliveries that failed since the stored version is damaged or missing. S3 has them for other causes
too."""


def has_failed_by_damage(replication: Replication | None, version: Version, destination: str) -> bool:
    """Whether a delivery failed since the content or the record of its version is damaged: nothing else explains it."""
    recorded = version.deliveries.get(destination)
    if recorded is None or recorded.status is not Status.FAILED or recorded.reason not in BY_DAMAGE:
        return False
    is_archived = version.storage_class in ARCHIVES and not recorded.edit
    return not (is_archived or version.id == NULL or orphaned(replication, recorded.rule, destination))


def renewed(recorded: DeliveryRecord) -> DeliveryRecord:
    """A delivery to be made again as a live one, because of an edit, a person's request or a lost replica."""
    return replace(recorded, status=Status.PENDING, reason="", job="", before=None)


# -- backfills

NONE = "NONE"
"""S3 Batch Replication's name for a version that no rule has chosen yet."""
STATUSES = (NONE, str(Status.FAILED), str(Status.COMPLETED), str(Status.REPLICA))


class Wanted(Struct, frozen=True):
    """The scope of one backfill: destinations of these rules (none: of all), versions of these statuses (none: of any).
    job is its id."""

    job: str
    statuses: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()


def statuses_for(version: Version, destination: str) -> set[str]:
    """The statuses that match a version when a backfill selects by status for a destination.

    The version's delivery there has the status. S3 knows only a status of the whole version. Where there is no delivery
    yet, the status that S3 would show also counts: COMPLETED elsewhere, for an added destination. A replica always
    counts as REPLICA.
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
    """The deliveries of one version that a backfill requests, by destination, and how many destinations already have
    it.

    is_there: whether a destination has the version, according to the index. The question arises for a COMPLETED
    delivery, unless the job selects COMPLETED by name; those are checked again. The deciding rule is the same as for a
    new version, and it must be in the job's scope. Source: s3-semantics, 2, the batch column.
    """
    if version.origin is Origin.LIFECYCLE or version.storage_class in ARCHIVES:
        return {}, 0
    asked: dict[str, DeliveryRecord] = {}
    there = 0
    for destination, rule in winners(replication.rules, version.key, version.tags, marker=version.marker).items():
        before = version.deliveries.get(destination)
        if wanted.rules and rule.id not in wanted.rules:
            continue
        if before is not None and (before.status is Status.PENDING or before.job == wanted.job):
            continue  # delivery in progress, or already processed by this job before an interruption
        if wanted.statuses and wanted.statuses.isdisjoint(statuses_for(version, destination)):
            continue
        if not wanted.statuses and before and before.status is Status.COMPLETED and is_there(destination):
            there += 1
            continue
        asked[destination] = replace(new_record(rule, wanted.job), before=before and replace(before, before=None))
    return asked, there


def replica_of(version: Version, recorded: DeliveryRecord, source: str) -> Version:
    """The replica of a version: equal except for its class and owner where the rule sets them."""
    return replace(
        version,
        origin=Origin.REPLICA,
        source=source,
        deliveries={},
        storage_class=recorded.storage_class or version.storage_class,
        shortfall=NO_SHORTFALL,
        place=None,
    )


def brought_back(replica: Version, replication: Replication | None, sender: str) -> Version:
    """A replica that comes back to the bucket where its version was made, and which has lost it: the version is that
    bucket's own again, which it delivered to the sender. replication: the bucket's. Pure."""
    rules = replication.rules if replication is not None else ()
    rule = winners(rules, replica.key, replica.tags, marker=replica.marker).get(sender)
    recorded = new_record(rule) if rule is not None else DeliveryRecord("", Status.PENDING)
    delivered = replace(recorded, status=Status.COMPLETED, since_ns=0)
    return replace(replica, origin=Origin.USER, source="", deliveries={sender: delivered})


def given_to(replica: Version, uid: int, gid: int) -> Version:
    """A replica after owner override: it belongs to the destination bucket's owner, and has no ACL."""
    replica = metadata.without(replica, metadata.ACL)
    return replace(replica, posix=replace(replica.posix, uid=uid, gid=gid)) if replica.posix else replica
