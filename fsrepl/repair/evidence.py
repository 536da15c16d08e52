"""Pure: a lost record, rebuilt from the evidence of its version."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, clock, keys
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import DeliveryRecord, Origin, Posix, Status, Version
from fsrepl.s3 import rules
from fsrepl.s3.rules import BY_DAMAGE, new_record, winners
from fsrepl.storage.bucket_documents import RuleSince
from fsrepl.storage.journal.rows import Delivery

# -- the evidence, and the version it yields: pure


class ViewEvidence(Struct, frozen=True):
    """Metadata of a view that shows a version's content. Its user may have set all of it."""

    posix: Posix
    attrs: Mapping[str, bytes]
    tags: Mapping[str, str]
    created_ns: int = 0


class Evidence(Struct, frozen=True):
    """All that is known of a version whose record is gone.

    left: the attributes that its file still has. digest: of its present content. elsewhere: its
    records in other buckets, the nearest first. seen_in: all buckets that have a file for it. known_ns, known_digest,
    deliveries: from the journal. sources: the buckets that replicate into this one. owner: of the bucket's folder.
    """

    address: str
    key: bytes
    stored: keys.StoredName
    size: int = 0
    digest: bytes = b""
    inode: Posix | None = None
    left: Mapping[str, bytes] = field(default_factory=dict)
    elsewhere: Mapping[str, Version] = field(default_factory=dict)
    seen_in: frozenset[str] = frozenset()
    known_ns: int = 0
    known_digest: bytes = b""
    deliveries: Mapping[str, Delivery] = field(default_factory=dict)
    view_evidence: ViewEvidence | None = None
    replication: Replication | None = None
    since: Mapping[str, RuleSince] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    owner: tuple[int, int] = (0, 0)


def rebuild(evidence: Evidence) -> Version:
    """The version that the evidence describes. Surviving attributes count before everything else."""
    r = evidence
    inode = r.inode or Posix(0o600, *r.owner, 0)
    origin, source = _origin(r)
    model = source if source in r.elsewhere else next(iter(r.elsewhere), "")
    other = r.elsewhere.get(model)
    version = Version(
        r.key,
        r.stored.id,
        _created_ns(r, other, inode),
        r.stored.marker,
        origin=origin,
        source=source,
        digest=b"" if r.stored.marker else other.digest if other else r.known_digest or r.digest,
        size=other.size if other else r.size,
    )
    if other is not None:
        version = _with_shortfall(_like(version, other, model, r), r.view_evidence)
    elif not version.marker:
        view_evidence = r.view_evidence or ViewEvidence(inode, attributes.own(r.left), attributes.tags(r.left))
        version = replace(version, posix=view_evidence.posix, attrs=view_evidence.attrs, tags=view_evidence.tags)
    version = replace(version, deliveries=_deliveries(r, version))
    left = {name: value for name, value in r.left.items() if name != attributes.VERSION_ID}
    try:
        return attributes.decode(r.key, r.stored, {**attributes.encode(version), **left}, inode, version.size)
    except StoreDamaged:
        return version


def _with_shortfall(version: Version, view: ViewEvidence | None) -> Version:
    """A version with what its view does not show of another bucket's record. The lost record may have said that the
    view did not take that, which must not become a removal by its user. Of a view without any attribute nothing is
    known: they were lost as the record was."""
    if view is None or not (view.attrs or view.tags):
        return version
    has = {*version.attrs, *(attributes.TAG + name for name in version.tags)}
    lacks = has.difference(view.attrs, (attributes.TAG + name for name in view.tags))
    if not lacks:
        return version
    return replace(version, shortfall=replace(version.shortfall, lacks=frozenset({*lacks, attributes.VERSION_ID})))


def _origin(r: Evidence) -> tuple[Origin, str]:
    sender = next((a for a, other in r.elsewhere.items() if r.address in other.deliveries), "")
    if sender:
        return Origin.REPLICA, sender
    if any(other.source == r.address for other in r.elsewhere.values()):
        return Origin.USER, ""
    for address, other in r.elsewhere.items():
        return Origin.REPLICA, other.source or address
    if not r.deliveries:
        for source in r.sources:
            if source in r.seen_in:  # its record there is lost as well, but it is the source all the same
                return Origin.REPLICA, source
    return Origin.USER, ""


def _created_ns(r: Evidence, other: Version | None, inode: Posix) -> int:
    by_id_ns = attributes.id_time(r.stored.id, inode)
    if other is not None:
        return other.created_ns
    if r.known_ns:
        return r.known_ns
    if r.view_evidence is not None and r.view_evidence.created_ns // 1_000_000 == by_id_ns // 1_000_000:
        return r.view_evidence.created_ns  # adds only the digits that an id has no room for
    return by_id_ns


def _like(version: Version, other: Version, address: str, r: Evidence) -> Version:
    """The metadata of another bucket's record, as far as the two records share it."""
    if version.source == address:
        recorded = other.deliveries.get(r.address) or DeliveryRecord("", Status.COMPLETED)
        version = replace(rules.replica_of(other, recorded, version.source), created_ns=other.created_ns)
        if recorded.owner and version.posix is not None:
            version = rules.given_to(version, *r.owner)
        return version
    rule = _rule(r, version, address) if other.source == r.address else None
    posix = other.posix
    if rule and rule.owner and posix is not None:
        mine = r.view_evidence.posix if r.view_evidence else r.inode
        posix = replace(posix, uid=mine.uid, gid=mine.gid, acl=mine.acl) if mine else posix
    return replace(
        version,
        storage_class="" if rule and rule.storage_class else other.storage_class,
        posix=posix,
        attrs=other.attrs,
        tags=other.tags,
        edited=other.edited,
        link=other.link,
    )


def _rule(r: Evidence, version: Version, destination: str) -> Rule | None:
    """The rule that may have sent a version to a destination: the rule that would send it now, else any that could
    have."""
    rules = r.replication.rules if r.replication else ()
    chosen = winners(rules, version.key, version.tags, marker=version.marker).get(destination)
    named = [x for x in rules if x.destination == destination and version.key.startswith(x.prefix)]
    return chosen or next(iter(named), None)


def _deliveries(r: Evidence, version: Version) -> dict[str, DeliveryRecord]:
    """By destination: COMPLETED if it has the version; else as in the journal, where it did not fail for the damage, or
    PENDING by a rule of the time."""
    rules = r.replication.rules if r.replication and version.origin is not Origin.REPLICA else ()
    chosen = winners(rules, version.key, version.tags, marker=version.marker)
    there = {a for a, v in r.elsewhere.items() if v.source == r.address} | (r.seen_in & {x.destination for x in rules})
    out = {}
    for destination in sorted({*there, *r.deliveries, *chosen}):
        delivery, rule = r.deliveries.get(destination), _rule(r, version, destination)
        if destination in there:
            status, reason = Status.COMPLETED, ""
        elif delivery is not None:
            status, reason = Status(delivery.status), delivery.reason
            if status is Status.FAILED and reason in BY_DAMAGE:  # for want of the record, which is there again
                status, reason = Status.PENDING, ""
        elif _was_in_effect(r, chosen[destination], version.created_ns):
            status, reason = Status.PENDING, ""
        else:
            continue
        job = delivery.job if delivery else ""
        recorded = new_record(rule, job) if rule else DeliveryRecord("", Status.PENDING, job=job)
        out[destination] = replace(
            recorded,
            rule=delivery.rule if delivery else recorded.rule,
            status=status,
            reason=reason,
            since_ns=delivery.since_ns if delivery and status is not Status.COMPLETED else 0,
        )
    return out


def _was_in_effect(r: Evidence, rule: Rule, created_ns: int) -> bool:
    since = r.since.get(rule.id)
    return since is not None and clock.parse(since.since) <= created_ns
