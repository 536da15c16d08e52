"""What `fsrepl status` and `fsrepl why` tell: counted in the journal, which is the record's index, so that a
restart changes nothing (G11). What only the running daemon knows is added: what waits, why, and until when.
"""

from __future__ import annotations

import base64
import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsrepl import clock, control, index, journal, keys, listing, metrics, names, obstacles, plan
from fsrepl.errors import FsreplError, NotRunning, Refused
from fsrepl.journal import Journal
from fsrepl.metrics import RuleMetrics
from fsrepl.model import Origin, Rule, Status, Version
from fsrepl.rows import Counts
from fsrepl.settings import Settings
from fsrepl.site import OpenBucket, Site

Document = dict[str, Any]

_UNSHOWN_MAX = 1000
_ANSWER_S = 10.0
_COUNTED = {name: name for name in ("polled", "mounts", "unreadable", "set_aside")} | {"behind": "views_behind"}
"""The daemon's lists of which status tells the first names only, and what they are called in its document."""


def daemon_status(settings: Settings) -> Document:
    """What the daemon says of itself; {"running": False} where there is none."""
    return _said(settings, "status", {})


def daemon_of_key(settings: Settings, address: str, key: bytes) -> Document:
    """What the daemon says that concerns one key, in the same shape."""
    return _said(settings, "why", {"bucket": address, "key": base64.b64encode(key).decode()})


def _said(settings: Settings, op: str, params: Document) -> Document:
    try:
        return control.ask(settings.state, op, params, _ANSWER_S)
    except NotRunning:
        return {"running": False}
    except FsreplError as error:
        return {"running": True, "trouble": str(error)}


def with_all_names(settings: Settings, said: Document) -> Document:
    """The daemon's status with the whole of each list, of which it tells the first names only. Raises FsreplError."""
    buckets = {
        address: alive
        | {
            name: _whole(settings, address, name)
            for name, number in alive.get("counts", {}).items()
            if number > len(alive[name])
        }
        for address, alive in said.get("buckets", {}).items()
    }
    return said | {"buckets": buckets}


def _whole(settings: Settings, address: str, name: str) -> Document:
    found: Document = {}
    after: str | None = ""
    while after is not None:
        page = control.ask(settings.state, "status.page", {"bucket": address, "list": name, "after": after}, _ANSWER_S)
        found |= page["items"]
        after = page["after"]
    return found


@contextlib.contextmanager
def reader(site: Site) -> Iterator[Journal]:
    """The journal to read. What it lacks is read from the trees, into a copy of it in memory.

    It lacks everything where it is gone or cannot be read, and some buckets where a command has begun it anew: a
    command reads those that it works on. What a daemon has not read yet, it is reading just now.
    """
    found = _on_disk(site)
    unread = [b for b in site.buckets.values() if found is None or not found.tree(b.address)]
    if found is None or (unread and not control.is_locked(site.state)):
        known, found = found, journal.in_memory(((b.address, b.uuid) for b in site.buckets.values()), found)
        if known is not None:
            known.close()
        for bucket in unread:
            with contextlib.suppress(FsreplError, OSError), bucket.open() as opened:
                if opened.versions >= 0:
                    index.reconcile(opened, found, afresh=True)
    try:
        yield found
    finally:
        found.close()


def _on_disk(site: Site) -> Journal | None:
    path = os.path.join(site.state, "journal.db")
    if os.path.exists(path):
        with contextlib.suppress(sqlite3.Error):
            return Journal(path, read_only=True)
    return None


def status(site: Site, said: Document) -> Document:
    """`status --json`. said is what daemon_status answered."""
    with reader(site) as journal_:
        buckets = [_bucket(site, journal_, address, said) for address in sorted(site.buckets)]
    return {
        "daemon": {
            "running": bool(said.get("running")),
            "pid": said.get("pid"),
            "ready": bool(said.get("ready")),
            "since": said.get("since"),
            **({"trouble": said["trouble"]} if "trouble" in said else {}),
            **{name: said[name] for name in ("watched", "events_lost", "stuck") if name in said},
        },
        "buckets": buckets,
        "transfers": said.get("transfers", []),
    }


def _bucket(site: Site, journal_: Journal, address: str, said: Document) -> Document:
    bucket = site.buckets[address]
    conflicts: list[Document] = []
    with contextlib.suppress(FsreplError, OSError), bucket.open() as opened:
        conflicts = _conflicts(opened, journal_)
    alive: Mapping[str, Any] = said.get("buckets", {}).get(address, {})
    skipped = alive.get("skipped")
    objects, versions, size = journal_.object_counts(address)
    counts = journal_.delivery_counts(address)
    trouble = bucket.trouble or alive.get("trouble", "")
    pending = _sum(counts, "PENDING")
    now_ns = site.now()
    document: Document = {
        "bucket": address,
        "online": not trouble,
        "versioning": str(bucket.versioning),
        "objects": objects,
        "versions": versions,
        "bytes": size,
        "pending": pending.number,
        "pending_bytes": pending.bytes,
        "failed": _sum(counts, "FAILED").number,
        "skipped": journal_.skipped(address) if skipped is None else skipped,
        "lag_seconds": _lag(pending, now_ns),
        "rules": _rules(site, address, counts, metrics.of_bucket(journal_, address, now_ns), now_ns),
    }
    if trouble:
        document["trouble"] = trouble
    if linked := journal_.count_linked(address):
        document["linked"] = linked
    for name in ("scanning", "paused", "exposed", "unreadable"):
        if alive.get(name):
            document[name] = alive[name]
    for name in ("polled", "mounts"):
        if alive.get(name):
            document[name] = list(alive[name])
    if conflicts:
        document["view_conflicts"] = conflicts
    if behind := [{"Key": name, "Why": why} for name, why in alive.get("behind", {}).items()]:
        document["views_behind"] = behind
    if aside := [{"Key": name, "Why": why} for name, why in alive.get("set_aside", {}).items()]:
        document["set_aside"] = aside
    if counts_ := {_COUNTED[name]: n for name, n in alive.get("counts", {}).items() if n and name in _COUNTED}:
        document["counts"] = counts_
    blocked = [b for b in said.get("blocked", []) if b["source"] == address]
    if blocked:
        document["blocked"] = [{"destination": b["destination"], "why": b["why"]} for b in blocked]
    return document


def _conflicts(bucket: OpenBucket, journal_: Journal) -> list[Document]:
    """The keys whose files cannot be where they belong, and what is in the way; not more than a person would read."""
    unshown = journal_.unshown(bucket.address, _UNSHOWN_MAX)
    found = ((key, obstacles.describe(bucket, key)) for key in unshown)
    return [listing.key_document(key) | {"Reason": "ViewConflict", "Why": why} for key, why in found if why]


def _sum(counts: Mapping[tuple[str, str, str], Counts], status: str, destination: str = "", rule: str = "") -> Counts:
    found = [c for (d, r, s), c in counts.items() if s == status and destination in ("", d) and rule in ("", r)]
    oldest = min((c.oldest_ns for c in found if c.number), default=0)
    return Counts(sum(c.number for c in found), sum(c.bytes for c in found), oldest)


def _lag(pending: Counts, now_ns: int) -> float:
    """The age of the oldest that is pending, in seconds; 0 without one."""
    return round(max(0, now_ns - pending.oldest_ns) / 1e9, 3) if pending.number else 0


def _rules(
    site: Site,
    address: str,
    counts: Mapping[tuple[str, str, str], Counts],
    measured: Mapping[metrics.Rule, RuleMetrics],
    now_ns: int,
) -> list[Document]:
    """A row for each rule, and for each that is gone and still has deliveries to its name.

    What became of a rule whose document cannot be read just now is not known.
    """
    bucket = site.buckets[address]
    replication = bucket.replication
    rows: dict[tuple[str, str], str] = {}
    for rule in replication.rules if replication else ():
        rows[rule.destination, rule.id] = "Enabled" if rule.enabled else "Disabled"
    for destination, rule_id, _ in counts:
        rows.setdefault((destination, rule_id), "Unknown" if bucket.trouble else "Removed")
    out = []
    for (destination, rule_id), state in rows.items():
        pending = _sum(counts, "PENDING", destination, rule_id)
        out.append(
            {
                "id": rule_id,
                "status": state,
                "destination": destination,
                "pending": pending.number,
                "pending_bytes": pending.bytes,
                "failed": _sum(counts, "FAILED", destination, rule_id).number,
                "lag_seconds": _lag(pending, now_ns),
                "completed": _sum(counts, "COMPLETED", destination, rule_id).number,
                "metrics": measured.get((destination, rule_id), RuleMetrics()).document(),
            }
        )
    return out


# -- why


@dataclass(frozen=True, slots=True)
class Answer:
    """What `why` found out about one key: the JSON, and sentences for people."""

    document: Document
    sentences: list[str]


def why(site: Site, address: str, key: bytes, version_id: str | None, said: Document) -> Answer:
    """Which rules chose a key's version, what became of each delivery, and what is next. Raises Refused(NoSuchKey)."""
    alive: Mapping[str, Any] = said.get("buckets", {}).get(address, {})
    name = keys.shown(key)
    notes = _notes(alive, name)
    with listing.open_versioned(site, address) as bucket:
        group = listing.versions_of(bucket, key)
        notes += _conflict(bucket, group)
        unseen = "" if group else obstacles.unversioned(bucket, key)
    chosen = [v for v in group if version_id in (None, v.id)]
    if not chosen:
        if notes and version_id is None:
            return Answer(listing.key_document(key) | {"VersionId": None, "Deliveries": [], "Notes": notes}, notes)
        if group:
            raise Refused("NoSuchVersion", f"{address}/{name} has no version {version_id}")
        raise Refused("NoSuchKey", f"{address}/{name} {unseen}" if unseen else f"there is no {address}/{name}")
    version = chosen[0]
    with reader(site) as journal_, listing.open_versioned(site, address) as bucket:
        if other_names := names.describe(bucket, journal_, version):
            notes.append(other_names)
    for destination in version.deliveries:
        if behind := said.get("buckets", {}).get(destination, {}).get("behind", {}).get(name):
            notes.append(f"the file in {destination} does not show this version yet: {behind}")
        with contextlib.suppress(FsreplError, OSError), listing.open_versioned(site, destination) as bucket:
            notes += _conflict(bucket, listing.versions_of(bucket, key))
    deliveries = [_delivery(site, address, version, destination, said) for destination in version.deliveries]
    document: Document = listing.key_document(key) | {
        "VersionId": version.id,
        "DeleteMarker": version.marker,
        "ReplicationStatus": str(version.status) if version.status else None,
        "Deliveries": deliveries,
    }
    sentences = [_describe(version)] + [_sentence(d) for d in deliveries]
    if explanation := unchosen(site, address, version):
        document["Explanation"] = explanation
        sentences.append(explanation)
    if notes:
        document["Notes"] = notes
    return Answer(document, sentences + notes)


def _notes(alive: Mapping[str, Any], name: str) -> list[str]:
    """What the daemon knows of a key's file."""
    notes = []
    if waiting := alive.get("waiting", {}).get(name):
        notes.append(f"a change waits to be captured: {waiting}")
    if behind := alive.get("behind", {}).get(name):
        notes.append(f"the file does not show this version yet: {behind}")
    if unreadable := alive.get("unreadable", {}).get(name) or alive.get("set_aside", {}).get(name):
        notes.append(f"a change cannot be captured: {unreadable}")
    if alive.get("paused"):
        notes.append(str(alive["paused"]))
    return notes


def _conflict(bucket: OpenBucket, group: Sequence[Version]) -> list[str]:
    """What is in the way of a key's file, where its current version should be seen."""
    if not group or group[0].marker:
        return []
    obstacle = obstacles.describe(bucket, group[0].key)
    return [f"ViewConflict in {bucket.address}: {obstacle}"] if obstacle else []


def _describe(version: Version) -> str:
    what = "delete marker" if version.marker else "version"
    origin = f"replica from {version.source}" if version.origin is Origin.REPLICA else f"made by {version.origin}"
    return f"{what} {version.id}, {clock.stamp(version.created_ns)}, {origin}"


def _delivery(site: Site, address: str, version: Version, destination: str, said: Document) -> Document:
    delivery = version.deliveries[destination]
    document: Document = {
        "Rule": delivery.rule,
        "Destination": destination,
        "Status": str(delivery.status),
        "Reason": delivery.reason,
        "Next": "",
    }
    if delivery.status is Status.FAILED:
        document["Next"] = _after_failure(site, address, version, destination)
    elif delivery.status is Status.PENDING:
        document["Reason"], document["Next"] = _waits_for(address, version, destination, said)
    return document


def _after_failure(site: Site, address: str, version: Version, destination: str) -> str:
    """What sends a version that has failed. To retry is of no use where nothing can be mended."""
    delivery, replication = version.deliveries[destination], site.buckets[address].replication
    if delivery.reason == "DstObjectHardDeleted":
        return "this version is not sent there again"
    rules = replication.rules if replication else ()
    if rules and not any((rule.id, rule.destination) == (delivery.rule, destination) for rule in rules):
        return f"`fsrepl replication backfill {address} --status FAILED` sends it by the rules that are there now"
    return f"`fsrepl retry {address}/{keys.shown(version.key)}` once it is mended"


def _waits_for(address: str, version: Version, destination: str, said: Document) -> tuple[str, str]:
    """What a pending delivery waits for, and what is next."""
    if not said.get("running"):
        return "the daemon is not running", "`fsrepl daemon` goes on with it"
    if "trouble" in said:
        return str(said["trouble"]), "look at the daemon's log"
    for each in said.get("blocked", []):
        if (each["source"], each["destination"]) == (address, destination):
            return str(each["why"]), f"all of {destination} is tried again in {each['seconds']:.0f} s"
    for each in said.get("retries", []):
        if (each["source"], each["destination"], each["key"], each["version"]) == (
            address, destination, keys.shown(version.key), version.id,
        ):  # fmt: skip
            return str(each["why"]), f"tried {each['attempts']} times, again in {each['seconds']:.0f} s"
    for each in said.get("transfers", []):
        if (each["source"], each["destination"], each["key"]) == (address, destination, keys.shown(version.key)):
            return "it is being copied", f"{each['bytes_done']} of {each['bytes_total']} bytes are there"
    if job := version.deliveries[destination].batch:
        return f"backfill {job}", "it goes when nothing live is to be sent there"
    return "", "it is queued"


def _sentence(delivery: Document) -> str:
    text = f"{delivery['Status']} to {delivery['Destination']} by rule {delivery['Rule']}"
    if delivery["Reason"]:
        text += f": {delivery['Reason']}"
        if help_ := REMEDIES.get(delivery["Reason"]):
            text += f" ({help_})"
    return f"{text}; {delivery['Next']}" if delivery["Next"] else text


REMEDIES: Mapping[str, str] = {
    "AssumeRoleNotPermitted": "the role is missing or cannot be read, its trust policy does not name "
    "s3.amazonaws.com, or the daemon cannot run as its user",
    "InitiateReplicationNotPermitted": "the role lacks s3:InitiateReplication, or does not trust "
    "batchoperations.s3.amazonaws.com",
    "DstBucketInvalidRegion": "the destination's region is not one of this site's any more",
    "DstBucketNotFound": "the destination bucket's folder is not in its region",
    "DstBucketUnversioned": "`fsrepl versioning enable` on the destination",
    "DstPutObjectNotPermitted": "the role lacks s3:ReplicateObject there, or s3:ObjectOwnerOverrideToBucketOwner "
    "for a rule that changes the owner, or the destination's files refuse it",
    "DstMultipartInitNotPermitted": "the role lacks s3:ReplicateObject there, or s3:ObjectOwnerOverrideToBucketOwner "
    "for a rule that changes the owner",
    "DstDelObjNotPermitted": "the role lacks s3:ReplicateDelete there, or the destination's files refuse it",
    "DstObjectHardDeleted": "this version was removed for good there; write the object again to send a new version",
    "DstVersionNotFound": "its metadata was edited, and the destination does not have this version any more",
    "SrcBucketReplicationConfigMissing": "the source has no replication configuration any more, or the role lacks "
    "s3:GetReplicationConfiguration",
    "SrcGetObjectNotPermitted": "the role lacks s3:GetObjectVersionForReplication, or its user may not read the file",
    "SrcHeadObjectNotPermitted": "the role lacks s3:ListBucket on the source, without which no marker is seen",
    "SrcGetAclNotPermitted": "the role lacks s3:GetObjectVersionAcl",
    "SrcGetTaggingNotPermitted": "the role is denied s3:GetObjectVersionTagging",
    "SrcObjectNotEligible": "its rule is gone or disabled, it is archived, its stored content is damaged, or it is "
    "a null version and the destination has another one",
}


def unchosen(site: Site, address: str, version: Version) -> str:
    """Why no rule chose a version, or none to some of the destinations. Source: s3-semantics, 1.3 and 2."""
    if version.deliveries and version.origin is not Origin.USER:
        return ""  # a backfill, or an edit, goes where it was asked to go, and nowhere else
    if version.origin is Origin.REPLICA:
        return "it is a replica, and replicas are not replicated again by a live rule"
    if version.origin is Origin.LIFECYCLE:
        return "lifecycle made it, and what lifecycle makes is never replicated"
    replication = site.buckets[address].replication
    if replication is None:
        if version.deliveries:
            return ""
        return (
            f"{address} has no replication configuration; `fsrepl replication enable {address} DESTINATION` makes one"
        )
    passed_by = [rule for rule in replication.rules if rule.destination not in version.deliveries]
    if not passed_by:
        return ""
    where = " to " + " or ".join(dict.fromkeys(rule.destination for rule in passed_by)) if version.deliveries else ""
    if plan.winners(passed_by, version.key, version.tags, marker=version.marker):
        return (
            f"a rule{where} would choose it now, and none did when it was made (what was there before a rule, or got "
            f"its tags later, stays where it is); `fsrepl replication backfill {address}` sends it"
        )
    return f"no rule{where} chooses it: " + "; ".join(_mismatch(rule, version) for rule in passed_by)


def _mismatch(rule: Rule, version: Version) -> str:
    if not rule.enabled:
        return f"{rule.id} is disabled"
    if not version.key.startswith(rule.prefix):
        return f"{rule.id} wants the prefix {keys.shown(rule.prefix)!r}"
    if version.marker and rule.tags:
        return f"{rule.id} chooses by tags, which a delete marker has none of"
    if not plan.matches(rule, version.key, version.tags):
        wanted = ", ".join(f"{name}={value}" for name, value in rule.tags.items())
        return f"{rule.id} wants the tags {wanted}"
    if version.marker and not rule.delete_markers:
        return f"{rule.id} does not replicate delete markers"
    return f"{rule.id} gives way to a rule of higher priority"
