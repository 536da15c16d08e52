"""S3's events of replication and lifecycle: their types and their records. Pure: no I/O, no clock.

A record is an element of Records in an S3 notification, version 2.2. Its x-amz-request-id is derived from its contents,
so that a repeated event has the same id. Source: s3-semantics, 3.4; S3 User Guide, "Event message structure".
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote_plus

from fsrepl.model.address import Address
from fsrepl.model.rule import Rule
from fsrepl.model.version import THRESHOLD_NS, Result, Status, Tracking, Version
from fsrepl.s3 import arn

Record = dict[str, object]
_PLAIN_KEY = re.compile(rb"[A-Za-z0-9_.~/-]*")
"""A key that is quoted as it is, as most are."""


class Name(enum.StrEnum):
    """Types of events, without the `s3:` prefix of subscriptions."""

    FAILED = "Replication:OperationFailedReplication"
    MISSED = "Replication:OperationMissedThreshold"
    LATE = "Replication:OperationReplicatedAfterThreshold"
    UNTRACKED = "Replication:OperationNotTracked"
    HALTED = "Replication:DeletionsHalted"
    """fsrepl's own: so much was deleted at once that the markers are held until a person decides."""
    DAMAGED = "Scrub:ContentDamaged"
    """fsrepl's own: stored content no longer matched its BLAKE3."""
    REWRITTEN = "Capture:ContentRewritten"
    """fsrepl's own: many files were rewritten at once with content that looks encrypted."""
    EXPIRED = "LifecycleExpiration:Delete"
    MARKED = "LifecycleExpiration:DeleteMarkerCreated"
    MOVED = "LifecycleTransition"


def tracking(frozen: Tracking, rule: Rule | None) -> Tracking:
    """The tracking of a delivery: as its rule requires now, and by time if the delivery began so.

    A removed rule leaves the tracking that it required when the version was made.
    """
    if rule is None:
        return frozen
    required = rule.tracking
    if required is Tracking.TIME and frozen is not Tracking.TIME:
        return Tracking.METRICS
    return required


def is_timed(result: Result) -> bool:
    """Whether a threshold applies: Replication Time Control excludes markers and backfills (s3-semantics, 3.6)."""
    return result.tracking is Tracking.TIME and not result.marker and not result.job


def of_result(result: Result, now_ns: int) -> Name | None:
    """The event of a delivery's outcome, if any."""
    if result.status is Status.FAILED:
        return Name.FAILED if result.tracking else None
    if not is_timed(result) or now_ns - result.asked_ns < THRESHOLD_NS:
        return None
    return Name.LATE if result.status is Status.COMPLETED else Name.MISSED


def records(results: Iterable[Result], now_ns: int) -> Iterator[Record]:
    """Records for the outcomes that are events."""
    for result in results:
        name = of_result(result, now_ns)
        if name is not None:
            yield record(name, result, now_ns)


def record(name: Name, result: Result, now_ns: int) -> Record:
    """One event as S3 writes it, except that its ETag is the BLAKE3 and its ARNs name the region."""
    stored = _object(result.key, result.version, result.size_bytes, result.digest, result.asked_ns)
    told: Record = {
        "replicationRuleId": result.rule,
        "destinationBucket": arn.bucket_arn(result.destination),
        "s3Operation": result.operation,
        "requestTime": time(result.asked_ns),
    }
    if name is Name.FAILED:
        told["failureReason"] = result.reason
    if name in (Name.MISSED, Name.LATE):
        told["threshold"] = f"PT{THRESHOLD_NS // 60_000_000_000}M"
    if name is Name.LATE:
        told["replicationTime"] = time(now_ns)
    return _record(name, identify(name, result), result.source, stored, now_ns) | {"replicationEventData": told}


def of_lifecycle(name: Name, bucket: str, version: Version, now_ns: int) -> Record:
    """The record of a lifecycle action on a version: a marker made, a version or marker removed, or a class changed."""
    identity = _digest(version.key, str(name), bucket, version.id, str(version.created_ns), version.storage_class)
    stored = _object(version.key, version.id, version.size, version.digest, now_ns)
    found = _record(name, identity, bucket, stored, now_ns)
    if name is Name.MOVED:
        found["lifecycleEventData"] = {"transitionEventData": {"destinationStorageClass": version.storage_class}}
    return found


def of_halt(bucket: str, halt: Record, now_ns: int) -> Record:
    """The record of a bucket whose deletions are held. halt: since when, and how much was deleted."""
    identity = _digest(b"", str(Name.HALTED), bucket, str(halt["since"]))
    return _record(Name.HALTED, identity, bucket, {}, now_ns) | {"haltEventData": dict(halt)}


def of_damage(bucket: str, version: Version, damaged_bytes: int, now_ns: int, *, repaired: bool) -> Record:
    """The record of a version whose stored content was found damaged, and whether a good copy replaced it."""
    identity = _digest(version.key, str(Name.DAMAGED), bucket, version.id, str(now_ns))
    stored = _object(version.key, version.id, version.size, version.digest, now_ns)
    told = {"damagedBytes": damaged_bytes, "repaired": repaired}
    return _record(Name.DAMAGED, identity, bucket, stored, now_ns) | {"scrubEventData": told}


def of_rewrites(bucket: str, keys: int, now_ns: int) -> Record:
    """The record of a bucket in which so many keys were rewritten with content that looks encrypted."""
    identity = _digest(b"", str(Name.REWRITTEN), bucket, str(now_ns))
    return _record(Name.REWRITTEN, identity, bucket, {}, now_ns) | {"rewriteEventData": {"keys": keys}}


def _object(key: bytes, version_id: str, size_bytes: int, digest: bytes, at_ns: int) -> Record:
    spelled = key.decode() if _PLAIN_KEY.fullmatch(key) else quote_plus(key, safe="/")
    stored: Record = {"key": spelled, "size": size_bytes}
    if digest:
        stored["eTag"] = digest.hex()
    return stored | {"versionId": version_id, "sequencer": sequencer(at_ns)}


def _record(name: Name, identity: str, bucket: str, stored: Record, now_ns: int) -> Record:
    region, described = _bucket(bucket)
    return {
        "eventVersion": "2.2",
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": time(now_ns),
        "eventName": str(name),
        "userIdentity": {"principalId": "s3.amazonaws.com"},
        "requestParameters": {"sourceIPAddress": "s3.amazonaws.com"},
        "responseElements": {"x-amz-request-id": identity[:16], "x-amz-id-2": identity},
        "s3": {
            "s3SchemaVersion": "1.0",
            # S3 puts the subscription's name here; fsrepl sends every event of a type.
            "configurationId": f"s3:{name}",
            "bucket": described,
            "object": stored,
        },
    }


def record_id(record: Record) -> str:
    """The x-amz-request-id of a record."""
    answer = record["responseElements"]
    assert isinstance(answer, dict)
    return str(answer["x-amz-request-id"])


@lru_cache(maxsize=256)
def _bucket(address: str) -> tuple[str, Record]:
    """The region of a bucket, and its part of a record."""
    source = Address.parse_bucket(address)
    described: Record = {
        "name": source.name,
        "ownerIdentity": {"principalId": arn.ACCOUNT},
        "arn": arn.bucket_arn(address),
    }
    return source.region, described


def identify(name: Name, result: Result) -> str:
    """An event's id, 64 hex digits, equal for the same event of the same operation."""
    return _digest(result.key, str(name), result.source, result.destination, result.version, str(result.asked_ns))


def _digest(key: bytes, *of: str) -> str:
    return hashlib.sha256("\0".join(of).encode() + b"\0" + key).hexdigest().upper()


def sequencer(asked_ns: int) -> str:
    """A text that orders the operations of one key: seconds and nanoseconds in hexadecimal, as long as S3's."""
    seconds, rest = divmod(asked_ns, 1_000_000_000)
    return f"{seconds:010X}{rest:08X}"


@lru_cache(maxsize=256)  # the records of a batch have one time
def time(ns: int) -> str:
    """A time in the form of S3's events: 2024-09-05T21:04:32.527Z."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"
