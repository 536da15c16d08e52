"""The answer of `fsrepl why` on one version: its rules and destinations, what happened, what is next."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from fsrepl.capture import names
from fsrepl.commands import lifecycle, reader
from fsrepl.commands.reader import Document
from fsrepl.errors import FsreplError, Refused
from fsrepl.model import clock, keys
from fsrepl.model.address import Address
from fsrepl.model.rule import Rule
from fsrepl.model.version import Origin, Status, Version
from fsrepl.s3 import rules
from fsrepl.storage import halt, listing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site
from fsrepl.views import directories, obstacles

# -- why


class Answer(Struct, frozen=True):
    """The answer about one key: the JSON, and sentences for people."""

    document: Document
    sentences: list[str]


def why(site: Site, object_: Address, version_id: str | None, said: Document) -> Answer:
    """Explain which rules chose a key's version, each delivery, and what is next. Raises Refused(NoSuchKey)."""
    address, key = object_.bucket, object_.key
    alive: Mapping[str, Any] = said.get("buckets", {}).get(address, {})
    name = keys.shown(key)
    notes = _notes(alive, name)
    with listing.open_versioned(site, address) as bucket:
        halted = halt.read(bucket.fs, bucket.meta)
        group = listing.versions_of(bucket, key)
        meant = "" if group else listing.meant(bucket, key)
        unseen = "" if group or meant else obstacles.unversioned(bucket, key)
    chosen = [v for v in group if version_id in (None, v.id)]
    if not chosen:
        if notes and version_id is None:
            return Answer(keys.key_document(key) | {"VersionId": None, "Deliveries": [], "Notes": notes}, notes)
        if group:
            raise Refused("NoSuchVersion", f"{address}/{name} has no version {version_id}")
        raise Refused("NoSuchKey", f"{address}/{name} {unseen}" if unseen else f"there is no {address}/{name}{meant}")
    version = chosen[0]
    with reader.reader(site) as journal_, listing.open_versioned(site, address) as bucket:
        if other_names := names.describe(bucket, journal_.views, version):
            notes.append(other_names)
        notes += _in_its_place(bucket, journal_, group, said)
        upcoming = lifecycle.upcoming(site, journal_, bucket, key, version.id)
        for destination in version.deliveries:
            if behind := said.get("buckets", {}).get(destination, {}).get("behind", {}).get(name):
                notes.append(f"the file in {destination} does not show this version yet: {behind}")
            with contextlib.suppress(FsreplError, OSError), listing.open_versioned(site, destination) as there:
                notes += _in_its_place(there, journal_, listing.versions_of(there, key), said)
    deliveries = [_delivery(site, address, version, destination, said, halted) for destination in version.deliveries]
    document: Document = keys.key_document(key) | {
        "VersionId": version.id,
        "DeleteMarker": version.marker,
        "ReplicationStatus": str(version.status) if version.status else None,
        "Deliveries": deliveries,
    }
    sentences = [_describe(version)] + [_sentence(d) for d in deliveries]
    if explanation := unchosen(site, address, version):
        document["Explanation"] = explanation
        sentences.append(explanation)
    if upcoming:
        of_lifecycle = ("Action", "StorageClass", "Due", "Rule", "BlockedBy")
        document["Lifecycle"] = [{name: each[name] for name in of_lifecycle} for each in upcoming]
        sentences += [_by_lifecycle(each) for each in upcoming]
    if notes:
        document["Notes"] = notes
    return Answer(document, sentences + notes)


def _by_lifecycle(action: Document) -> str:
    to = f" to {action['StorageClass']}" if action["StorageClass"] else ""
    waits = f", and waits while it is {action['BlockedBy']}" if action["BlockedBy"] else ""
    return f"lifecycle: {action['Action']}{to} by rule {action['Rule']} is due {action['Due']}{waits}"


def _notes(alive: Mapping[str, Any], name: str) -> list[str]:
    """Sentences on what the daemon knows of a key's file."""
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


def _in_its_place(
    bucket: OpenBucket, journal_: Journal, group: Sequence[Version], said: Mapping[str, Any]
) -> list[str]:
    """Why a key's view cannot show the current version, if it does not; or why a directory stays after its marker."""
    if not group:
        return []
    key = group[0].key
    if group[0].marker:
        if not (keys.is_directory(key) and directories.is_made(bucket, key[:-1])):
            return []
        return [f"the directory stays in {bucket.address} for what is in it, and goes with the last of that"]
    if needed := obstacles.needs_trees(bucket, group[0]):
        shown = journal_.versions.look_up(bucket.address, [key]).get(key)
        is_shown = shown is not None and shown.view is not None and shown.view.shown == group[0].id
        return [] if is_shown else [f"ViewConflict in {bucket.address}: {needed}"]
    known = said.get("buckets", {}).get(bucket.address, {}).get("conflicts", {})
    obstacle = obstacles.describe(bucket, key) or known.get(keys.shown(key), "")
    return [f"ViewConflict in {bucket.address}: {obstacle}"] if obstacle else []


def _describe(version: Version) -> str:
    what = "delete marker" if version.marker else "version"
    origin = f"replica from {version.source}" if version.origin is Origin.REPLICA else f"made by {version.origin}"
    return f"{what} {version.id}, {clock.stamp(version.created_ns)}, {origin}"


def _delivery(
    site: Site, address: str, version: Version, destination: str, said: Document, halted: halt.Halt | None
) -> Document:
    recorded = version.deliveries[destination]
    document: Document = {
        "Rule": recorded.rule,
        "Destination": destination,
        "Status": str(recorded.status),
        "Reason": recorded.reason,
        "Next": "",
    }
    if recorded.status is Status.FAILED:
        document["Next"] = _after_failure(site, address, version, destination)
    elif recorded.status is Status.PENDING and halted is not None and version.marker and not recorded.job:
        document["Reason"] = halted.describe(address)
        document["Next"] = "nothing happens until one of the two is done"
    elif recorded.status is Status.PENDING:
        document["Reason"], document["Next"] = _waits_for(address, version, destination, said)
    return document


def _after_failure(site: Site, address: str, version: Version, destination: str) -> str:
    """The command that sends a FAILED version. A retry is of no use where no cause can be fixed."""
    recorded, replication = version.deliveries[destination], site.buckets[address].replication
    if recorded.reason == "DstObjectHardDeleted":
        return "this version is never sent there again"
    rules = replication.rules if replication else ()
    if rules and not any((rule.id, rule.destination) == (recorded.rule, destination) for rule in rules):
        return f"`fsrepl replication backfill {address} --status FAILED` sends it by the present rules"
    return f"`fsrepl retry {address}/{keys.shown(version.key)}` once the cause is fixed"


def _waits_for(address: str, version: Version, destination: str, said: Document) -> tuple[str, str]:
    """The reason why a delivery is pending, and what is next."""
    if not said.get("running"):
        return "the daemon is not running", "`fsrepl daemon` starts it"
    if "trouble" in said:
        return str(said["trouble"]), "see the daemon's log"
    for each in said.get("blocked", []):
        if (each["source"], each["destination"]) == (address, destination):
            return str(each["why"]), f"all of {destination} is tried again in {each['seconds']:.0f} s"
    for each in said.get("retries", []):
        if (each["source"], each["destination"], each["key"], each["version"]) == (
            address, destination, keys.shown(version.key), version.id,
        ):  # fmt: skip
            return str(each["why"]), f"tried {each['attempts']} times, again in {each['seconds']:.0f} s"
    for each in said.get("transfers", []):
        here = each["source"], each["destination"], each["key"]
        if here == (address, destination, keys.shown(version.key)) and "what" not in each:
            return "the version is being copied", f"{each['bytes_done']} of {each['bytes_total']} bytes are copied"
    if job := version.deliveries[destination].job:
        return f"backfill {job}", "the version is sent when no new version waits for that destination"
    return "", "the delivery is queued"


def _sentence(recorded: Document) -> str:
    text = f"{recorded['Status']} to {recorded['Destination']} by rule {recorded['Rule']}"
    if recorded["Reason"]:
        text += f": {recorded['Reason']}"
        if help_ := remedy(recorded["Reason"]):
            text += f" ({help_})"
    return f"{text}; {recorded['Next']}" if recorded["Next"] else text


def reason_code(reason: str) -> str:
    """S3's name of a recorded reason, without the words that an S3 service added."""
    return reason.partition(" ")[0].rstrip(":")


def remedy(reason: str) -> str:
    """The remedy for a recorded reason, for a person; empty where none is known."""
    return REMEDIES.get(reason_code(reason), "")


_ROLE = "`fsrepl role show NAME` prints the role"
_BACKFILL = "`fsrepl replication backfill` sends the object again"

REMEDIES: Mapping[str, str] = {
    "AssumeRoleNotPermitted": "the role is missing or cannot be read, its trust policy does not name "
    "s3.amazonaws.com, or the daemon cannot run as its user: `fsrepl check` says which",
    "InitiateReplicationNotPermitted": "the role lacks s3:InitiateReplication, or does not trust "
    f"batchoperations.s3.amazonaws.com: {_ROLE}; mend it, then `fsrepl replication backfill` again",
    "DstBucketInvalidRegion": "the destination's region is not one of this site's any more: "
    "`fsrepl region add` attaches it",
    "DstBucketNotFound": "the destination bucket's folder is not in its region: bring it back, or make it with "
    "`fsrepl bucket create --versioning`",
    "DstBucketUnversioned": "`fsrepl versioning enable` on the destination",
    "DstPutObjectNotPermitted": "the role lacks s3:ReplicateObject there, or s3:ObjectOwnerOverrideToBucketOwner "
    f"for a rule that changes the owner, or the destination's files refuse it: {_ROLE}",
    "DstPutTaggingNotPermitted": "the role, or the key for the service, may not set tags there (s3:ReplicateTags, "
    f"s3:PutObjectVersionTagging): {_ROLE}",
    "DstMultipartInitNotPermitted": "the role lacks s3:ReplicateObject there, or s3:ObjectOwnerOverrideToBucketOwner "
    f"for a rule that changes the owner: {_ROLE}",
    "DstMultipartUploadNotPermitted": "the service takes no parts of an upload with this key: permit that there; "
    "`fsrepl doctor` says how it answers",
    "DstMultipartCompleteNotPermitted": "the service lets this key complete no upload: permit that there; "
    "`fsrepl doctor` says how it answers",
    "DstDelObjNotPermitted": f"the role lacks s3:ReplicateDelete there, or the destination's files refuse it: {_ROLE}",
    "DstObjectHardDeleted": "this version was removed for good there; write the object again to send a new version, "
    "`fsrepl restore` makes one of an old one",
    "DstVersionNotFound": "its metadata was edited, and the destination does not have this version any more: "
    f"{_BACKFILL}",
    "SrcBucketInvalidRegion": "the source's region is not one of this site's any more: `fsrepl region add`",
    "SrcBucketReplicationConfigMissing": "the source has no replication configuration any more, or the role lacks "
    "s3:GetReplicationConfiguration: `fsrepl replication show` tells; enable it again",
    "SrcGetObjectNotPermitted": "the role lacks s3:GetObjectVersionForReplication, or its user may not read the file: "
    f"{_ROLE}",
    "SrcHeadObjectNotPermitted": "the role lacks s3:ListBucket on the source, without which no marker is seen: "
    f"{_ROLE}",
    "SrcGetAclNotPermitted": f"the role lacks s3:GetObjectVersionAcl: {_ROLE}",
    "SrcGetTaggingNotPermitted": f"the role is denied s3:GetObjectVersionTagging: {_ROLE}",
    "SrcKeyNotFound": "the object was removed for good before it was copied: nothing is left to send; "
    "`fsrepl ls --versions` lists what there is",
    "SrcVersionNotFound": "this version was removed for good before it was copied: nothing is left to send; "
    "`fsrepl ls --versions` lists what there is",
    "SrcObjectNotEligible": "its rule is gone or disabled, it is archived, its stored content is damaged (it is "
    "sent by itself once that is repaired), or it is "
    f"a null version and the destination has another one: `fsrepl why` says which; {_BACKFILL} once it is eligible",
}
"""By S3's reason, for every reason that a delivery may have: its cause, and what mends it; then `fsrepl retry`."""


def unchosen(site: Site, address: str, version: Version) -> str:
    """Why no rule chose a version, or none for some destinations; else empty. Source: s3-semantics, 1.3 and 2."""
    if version.deliveries and version.origin is not Origin.USER:
        return ""  # a backfill, or an edit, goes only to the destinations that it was made for
    if version.origin is Origin.REPLICA:
        return "this version is a replica, and live rules do not replicate replicas again"
    if version.origin is Origin.LIFECYCLE:
        return "lifecycle made this version, and such versions are never replicated"
    replication = site.buckets[address].replication
    if replication is None:
        if version.deliveries:
            return ""
        return (
            f"{address} has no replication configuration; `fsrepl replication enable {address} DESTINATION` creates one"
        )
    passed_by = [rule for rule in replication.rules if rule.destination not in version.deliveries]
    if not passed_by:
        return ""
    where = " to " + " or ".join(dict.fromkeys(rule.destination for rule in passed_by)) if version.deliveries else ""
    if rules.winners(passed_by, version.key, version.tags, marker=version.marker):
        return (
            f"a rule{where} would choose this version now, and none did when it was made (a rule does not replicate a "
            f"version from before the rule, or from before its tags); `fsrepl replication backfill {address}` sends it"
        )
    return f"no rule{where} chooses this version: " + "; ".join(_mismatch(rule, version) for rule in passed_by)


def _mismatch(rule: Rule, version: Version) -> str:
    if not rule.enabled:
        return f"{rule.id} is disabled"
    if not version.key.startswith(rule.prefix):
        return f"{rule.id} needs the prefix {keys.shown(rule.prefix)!r}"
    if version.marker and rule.tags:
        return f"{rule.id} chooses by tags, and a delete marker has none"
    if not rules.matches(rule, version.key, version.tags):
        wanted = ", ".join(f"{name}={value}" for name, value in rule.tags.items())
        return f"{rule.id} needs the tags {wanted}"
    if version.marker and not rule.delete_markers:
        return f"{rule.id} does not replicate delete markers"
    return f"{rule.id} gives way to a rule of higher priority"
