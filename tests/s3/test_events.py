"""S3's events of replication and lifecycle: their records, and which results are events."""

from __future__ import annotations

import json
from urllib.parse import unquote_to_bytes

import pytest
from msgspec.structs import replace

from fsrepl.model.rule import Rule
from fsrepl.model.version import THRESHOLD_NS, DeliveryRecord, Result, Status, Tracking, Version, operation
from fsrepl.s3 import events
from fsrepl.s3.events import Name

ASKED_NS = 1_725_570_239_168_000_001  # 2024-09-05T21:03:59.168000001Z
RESULT = Result(
    source="us-east-1/photos",
    key=b"2024/red flower+1.jpg",
    version="01J72ABCDEFGHJKMNPQRSTVWXY",
    destination="eu-west-1/backup",
    rule="all",
    status=Status.FAILED,
    reason="AssumeRoleNotPermitted",
    marker=False,
    size_bytes=520080,
    created_ns=ASKED_NS,
    asked_ns=ASKED_NS,
    digest=bytes(range(32)),
    operation="OBJECT_PUT",
    tracking=Tracking.TIME,
)


def test_the_record_has_s3s_shape() -> None:
    """3.4: event version 2.2, key URL-encoded, names without the s3: prefix, times in milliseconds."""
    found = json.loads(json.dumps(events.record(Name.FAILED, RESULT, ASKED_NS + 33_359_000_000)))
    ids = found.pop("responseElements")
    assert found == {
        "eventVersion": "2.2",
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2024-09-05T21:04:32.527Z",
        "eventName": "Replication:OperationFailedReplication",
        "userIdentity": {"principalId": "s3.amazonaws.com"},
        "requestParameters": {"sourceIPAddress": "s3.amazonaws.com"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "s3:Replication:OperationFailedReplication",
            "bucket": {
                "name": "photos",
                "ownerIdentity": {"principalId": "000000000000"},
                "arn": "arn:aws:s3:us-east-1::photos",
            },
            "object": {
                "key": "2024/red+flower%2B1.jpg",
                "size": 520080,
                "eTag": bytes(range(32)).hex(),
                "versionId": "01J72ABCDEFGHJKMNPQRSTVWXY",
                "sequencer": "0066DA1CBF0A037A01",
            },
        },
        "replicationEventData": {
            "replicationRuleId": "all",
            "destinationBucket": "arn:aws:s3:eu-west-1::backup",
            "s3Operation": "OBJECT_PUT",
            "requestTime": "2024-09-05T21:03:59.168Z",
            "failureReason": "AssumeRoleNotPermitted",
        },
    }
    assert len(ids["x-amz-request-id"]) == 16
    assert ids["x-amz-id-2"].startswith(ids["x-amz-request-id"])


@pytest.mark.parametrize("key", [b"a/b.txt", b"caf\xc3\xa9 \xff\n", b"a b+c%41"], ids=repr)
def test_any_key_is_encoded_exactly(key: bytes) -> None:
    """3.4: as application/x-www-form-urlencoded defines it; decoded it is the same, byte for byte."""
    stored = events.record(Name.FAILED, replace(RESULT, key=key), ASKED_NS)["s3"]["object"]["key"]  # type: ignore[index]
    assert unquote_to_bytes(stored.replace("+", " ")) == key


def test_threshold_events_have_their_times() -> None:
    """3.4: no reason where nothing failed; the threshold, and the time of the delivery."""
    late = replace(RESULT, status=Status.COMPLETED, reason="")
    told = events.record(Name.LATE, late, ASKED_NS + THRESHOLD_NS)["replicationEventData"]
    assert isinstance(told, dict)
    assert "failureReason" not in told
    assert (told["threshold"], told["replicationTime"]) == ("PT15M", "2024-09-05T21:18:59.168Z")
    missed = events.record(Name.MISSED, late, ASKED_NS + THRESHOLD_NS)["replicationEventData"]
    assert isinstance(missed, dict)
    assert "replicationTime" not in missed


def test_the_same_event_has_the_same_id() -> None:
    """3.4: sent again it is no second event; another operation, event or destination is another."""
    same = events.identify(Name.FAILED, RESULT)
    assert same == events.identify(Name.FAILED, replace(RESULT, reason="DstBucketNotFound"))
    others = {
        events.identify(Name.MISSED, RESULT),
        events.identify(Name.FAILED, replace(RESULT, asked_ns=ASKED_NS + 1)),
        events.identify(Name.FAILED, replace(RESULT, destination="eu-west-1/other")),
        events.identify(Name.FAILED, replace(RESULT, version="null")),
        events.identify(Name.FAILED, replace(RESULT, key=b"other")),
    }
    assert len(others | {same}) == 6


def test_sequencers_order_the_operations_of_a_key() -> None:
    """3.4: compared as text, the greater sequencer is the later operation."""
    moments = [0, 1, 999_999_999, 1_000_000_000, ASKED_NS, ASKED_NS + 1, 1 << 62]
    assert [events.sequencer(ns) for ns in moments] == sorted(events.sequencer(ns) for ns in moments)


LATE_NS = ASKED_NS + THRESHOLD_NS


@pytest.mark.parametrize(
    ("change", "now_ns", "expected"),
    [
        ({}, ASKED_NS, Name.FAILED),
        ({"tracking": Tracking.METRICS}, ASKED_NS, Name.FAILED),
        ({"tracking": Tracking.NONE}, LATE_NS, None),
        ({"job": True, "marker": True}, ASKED_NS, Name.FAILED),
        ({"status": Status.COMPLETED}, LATE_NS - 1, None),
        ({"status": Status.COMPLETED}, LATE_NS, Name.LATE),
        ({"status": Status.COMPLETED, "tracking": Tracking.METRICS}, LATE_NS, None),
        ({"status": Status.COMPLETED, "marker": True}, LATE_NS, None),
        ({"status": Status.COMPLETED, "job": True}, LATE_NS, None),
        ({"status": Status.PENDING}, LATE_NS - 1, None),
        ({"status": Status.PENDING}, LATE_NS, Name.MISSED),
        ({"status": Status.PENDING, "tracking": Tracking.METRICS}, LATE_NS, None),
        ({"status": Status.PENDING, "marker": True}, LATE_NS, None),
    ],
)
def test_which_results_are_events(change: dict[str, object], now_ns: int, expected: Name | None) -> None:
    """3.4, 3.6: failures need metrics; the threshold needs RTC, and leaves out markers and backfills."""
    assert events.of_result(replace(RESULT, **change), now_ns) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", Tracking)
@pytest.mark.parametrize("rule", [None, *Tracking])
def test_how_a_delivery_is_tracked(frozen: Tracking, rule: Tracking | None) -> None:
    """3.4: by its rule of now, but for lateness only as decided at the beginning; a removed rule leaves its
    settings."""
    said = None
    if rule is not None:
        said = Rule("r", True, b"", "w/d", metrics=rule is not Tracking.NONE, replication_time=rule is Tracking.TIME)
    found = events.tracking(frozen, said)
    if rule is None:
        assert found is frozen
    elif rule is Tracking.TIME:
        assert found is (Tracking.TIME if frozen is Tracking.TIME else Tracking.METRICS)
    else:
        assert found is rule


@pytest.mark.parametrize(
    ("version", "since_ns", "expected"),
    [
        (Version(b"k", "null", 5), 0, "OBJECT_PUT"),
        (Version(b"k", "null", 5, marker=True), 0, "OBJECT_DELETE"),
        (Version(b"k", "null", 5, edited={"tags": "7 e/b"}), 0, "OBJECT_PUT"),
        (Version(b"k", "null", 5, edited={"tags": "7 e/b"}), 7, "OBJECT_PUT_TAGGING"),
        (Version(b"k", "null", 5, edited={"tags": "6 e/b", "acl": "7 e/b"}), 7, "OBJECT_PUT_ACL"),
        (Version(b"k", "null", 5, edited={"tags": "7 e/b", "posix": "7 e/b"}), 7, "OBJECT_PUT"),
        (Version(b"k", "null", 5, edited={"tags": "7 e/b"}), 9, "OBJECT_PUT"),
    ],
)
def test_the_operations_of_a_delivery(version: Version, since_ns: int, expected: str) -> None:
    """3.5: versions, markers, tags and ACLs are the operations that are counted and reported."""
    assert operation(version, DeliveryRecord("r", Status.PENDING, since_ns=since_ns)) == expected


@pytest.mark.parametrize("name", [Name.EXPIRED, Name.MARKED, Name.MOVED])
def test_events_of_lifecycle(name: Name) -> None:
    """3.4: its own three events, without replicationEventData; a transition names the class. The same event has one
    id."""
    version = Version(b"a b", "01J72ABCDEFGHJKMNPQRSTVWXY", ASKED_NS, size=3, storage_class="GLACIER")
    found = json.loads(json.dumps(events.of_lifecycle(name, "us-east-1/photos", version, ASKED_NS)))
    assert (found["eventName"], found["s3"]["configurationId"]) == (str(name), f"s3:{name}")
    assert found["s3"]["object"]["key"] == "a+b"
    assert found["s3"]["object"]["versionId"] == version.id
    assert "replicationEventData" not in found
    moved = {"transitionEventData": {"destinationStorageClass": "GLACIER"}}
    assert found.get("lifecycleEventData") == (moved if name is Name.MOVED else None)
    again = events.of_lifecycle(name, "us-east-1/photos", version, ASKED_NS + 1)
    assert again["responseElements"] == found["responseElements"]
