"""Rules that replicate an edit of metadata, and its destinations. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from fsrepl.model import metadata
from fsrepl.model.metadata import ACL
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import DeliveryRecord, Origin, Status, Version
from fsrepl.s3 import rules

LOST_THERE = "DstVersionNotFound"
"""Why an edit failed: its destination had the version, and has it no more."""


def edit_deliveries(
    was: Version, now: Version, replication: Replication | None, *, home: str = "",
    original: Replication | None = None, but: str = "",
) -> dict[str, DeliveryRecord]:  # fmt: skip
    """The deliveries of a version after an edit: the edit is pending for each destination that has the version.

    replication: the configuration of the version's bucket, home. original: the configuration of the bucket where a
    replica was made; edits are sent back there where both sides enable it. but: a destination that already has the
    edit.

    A delivery in progress includes the edit. A delivery that FAILED before the version arrived stays FAILED. A backfill
    that only checks an arrived version may yet be cancelled, so the edit replaces it.
    """
    out = dict(was.deliveries)
    groups = metadata.changed(was, now)
    if replication is None or not groups:
        return out
    since_ns = max(metadata.stamp_of(now, group)[0] for group in groups)
    for name, asked in was.deliveries.items():
        recorded = asked.before if asked.before and not asked.settled else asked
        if name in (but, was.source) or not (recorded.edit or recorded.status is Status.COMPLETED):
            continue
        rule = _rule_now(replication, was, now, name, recorded)
        if rule is None or (was.origin is Origin.REPLICA and not rule.replica_modifications):
            continue
        if recorded.owner and not groups - {ACL}:
            continue  # owner override: the destination's owner decides on the replica's ACL
        asked_ns = since_ns if recorded.settled else recorded.since_ns
        out[name] = replace(
            recorded, rule=rule.id, status=Status.PENDING, reason="", job="", since_ns=asked_ns, edit=True
        )
    known = was.deliveries.get(was.source)
    if was.source != but and (known is None or known.settled):
        back = _rule_back(was, now, replication, original, home)
        if back is not None:
            out[was.source] = DeliveryRecord(
                back.id, Status.PENDING, tracking=back.tracking, since_ns=since_ns, edit=True
            )
    return out


def unsent_edit(
    replica: Version, original: Version, *, home: str, replication: Replication | None, there: Replication | None
) -> DeliveryRecord | None:
    """The delivery of a replica's edits that its original lacks, where both sides enable that; None without any.

    So it is where a rule was disabled when the edit was made: enabling it sends nothing after the fact, as in S3. home:
    the bucket of the replica. replication, there: the configurations of that bucket and of the original's.
    """
    known, sent = replica.deliveries.get(replica.source), original.deliveries.get(home)
    if replication is None or (known is not None and (not known.settled or known.status is Status.FAILED)):
        return None
    edited = {
        group
        for group in replica.edited
        if metadata.stamp_of(replica, group) > metadata.stamp_of(original, group)
        and metadata.stamp_of(replica, group)[1] == home  # else it came from elsewhere, by another name of the file
        and not (group == ACL and sent is not None and sent.owner)
    }
    after = metadata.merged(original, _with_owner_of(original, replica) if sent and sent.owner else replica, edited)
    back = _rule_back(replica, replica, replication, there, home) if metadata.changed(original, after) else None
    if back is None:
        return None
    since_ns = max(metadata.stamp_of(replica, group)[0] for group in edited)
    return DeliveryRecord(back.id, Status.PENDING, since_ns=since_ns, edit=True)


def _with_owner_of(original: Version, replica: Version) -> Version:
    if original.posix is None or replica.posix is None:
        return replica
    return replace(replica, posix=replace(replica.posix, uid=original.posix.uid, gid=original.posix.gid))


def _rule_now(
    replication: Replication, was: Version, now: Version, destination: str, recorded: DeliveryRecord
) -> Rule | None:
    """The rule that delivers an edit to a version's destination: the original rule, or its replacement."""
    for rule in replication.rules:
        if rule.id == recorded.rule and rule.destination == destination and rule.enabled:
            return rule
    return _winner(replication, was, now, destination)


def _rule_back(
    was: Version, now: Version, replication: Replication, original: Replication | None, home: str
) -> Rule | None:
    """The rule that sends an edit of a replica back: ReplicaModifications must be Enabled on both sides."""
    if original is None or was.origin is not Origin.REPLICA:
        return None
    back, forth = _winner(replication, was, now, was.source), _winner(original, was, now, home)
    return back if back and forth and back.replica_modifications and forth.replica_modifications else None


def _winner(replication: Replication, was: Version, now: Version, destination: str) -> Rule | None:
    """The rule to a destination that chooses a version, with the tags from before or after an edit."""
    for version in (was, now):
        chosen = rules.winners(replication.rules, version.key, version.tags, marker=False)
        if destination in chosen:
            return chosen[destination]
    return None
