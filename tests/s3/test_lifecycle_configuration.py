"""Lifecycle configurations: s3-semantics, 5.1 and 5.6, row by row, with S3's code for each fault."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from fsrepl.errors import Refused
from fsrepl.model.lifecycle import Noncurrent, NoncurrentTransition, Term, Transition
from fsrepl.s3 import lifecycle

Json = dict[str, Any]

PRINTED = """
{
    "TransitionDefaultMinimumObjectSize": "all_storage_classes_128K",
    "Rules": [
        {
            "Expiration": {"Days": 365},
            "ID": "logs",
            "Filter": {
                "And": {
                    "Prefix": "logs/",
                    "Tags": [{"Key": "keep", "Value": "no"}],
                    "ObjectSizeGreaterThan": 500,
                    "ObjectSizeLessThan": 64000
                }
            },
            "Status": "Enabled",
            "Transitions": [
                {"Days": 30, "StorageClass": "STANDARD_IA"},
                {"Date": "2030-01-01T00:00:00+00:00", "StorageClass": "GLACIER"}
            ],
            "NoncurrentVersionTransitions": [
                {"NoncurrentDays": 30, "StorageClass": "ONEZONE_IA", "NewerNoncurrentVersions": 2}
            ],
            "NoncurrentVersionExpiration": {"NoncurrentDays": 90, "NewerNoncurrentVersions": 3}
        },
        {
            "Expiration": {"ExpiredObjectDeleteMarker": true},
            "ID": "tidy",
            "Filter": {"Prefix": ""},
            "Status": "Disabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}
        }
    ]
}
"""
"""As `aws s3api get-bucket-lifecycle-configuration` prints one."""


def rule(**more: object) -> Json:
    """A valid rule, and others like it; a value of None is left out."""
    found = {"ID": "one", "Filter": {"Prefix": "a/"}, "Status": "Enabled", "Expiration": {"Days": 1}, **more}
    return {name: value for name, value in found.items() if value is not None}


def refusal(*rules: Json, **more: object) -> Refused:
    with pytest.raises(Refused) as found:
        lifecycle.read_lifecycle({"Rules": list(rules), **more})
    assert str(found.value).startswith(found.value.code)
    return found.value


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_document_from_aws_is_accepted_and_returned_equal(wrapped: bool) -> None:
    """5.1, design 4: with or without the wrapper; neither the document nor the caller's object is changed."""
    document = json.loads(PRINTED)
    given = {"LifecycleConfiguration": document} if wrapped else document
    kept = copy.deepcopy(given)
    found = lifecycle.read_lifecycle(given)
    assert found.document == document
    assert given == kept
    assert lifecycle.read_lifecycle(found.document) == found


def test_every_field_of_a_rule_is_understood() -> None:
    """5.1: filters, and the parameters of each action."""
    logs, tidy = lifecycle.read_lifecycle(json.loads(PRINTED)).rules
    assert (logs.id, logs.enabled, logs.prefix, dict(logs.tags)) == ("logs", True, b"logs/", {"keep": "no"})
    assert (logs.larger_than, logs.smaller_than) == (500, 64000)
    assert logs.expiration == Term(365)
    in_2030 = 1_893_456_000 * 1_000_000_000
    assert logs.transitions == (Transition("STANDARD_IA", Term(30)), Transition("GLACIER", Term(date_ns=in_2030)))
    assert logs.noncurrent_transitions == (NoncurrentTransition("ONEZONE_IA", Noncurrent(30, 2)),)
    assert logs.noncurrent_expiration == Noncurrent(90, 3)
    assert (tidy.enabled, tidy.expired_markers, tidy.expiration, tidy.abort_days) == (False, True, None, 7)


def test_rules_without_a_name_get_one() -> None:
    """BC: S3 invents one; it differs from the given ones."""
    found = lifecycle.read_lifecycle({"Rules": [rule(ID=None), rule(ID="rule-1"), rule(ID="")]})
    assert [each.id for each in found.rules] == ["rule-2", "rule-1", "rule-3"]
    assert lifecycle.read_lifecycle(found.document).document == found.document


@pytest.mark.parametrize(
    ("filter_", "prefix"),
    [({}, b""), ({"Prefix": ""}, b""), ({"Prefix": "é"}, "é".encode()), ({"ObjectSizeGreaterThan": 0}, b"")],
)
def test_filters(filter_: Json, prefix: bytes) -> None:
    """5.1: a filter is empty, or one predicate, or And."""
    (found,) = lifecycle.read_lifecycle({"Rules": [rule(Filter=filter_)]}).rules
    assert found.prefix == prefix
    assert found.has_size is ("ObjectSizeGreaterThan" in filter_)


def test_a_prefix_of_the_rule_s_own_is_taken() -> None:
    """5.6: the old form, where nothing overlaps."""
    rules = [rule(Filter=None, Prefix="a/", ID="a"), rule(Filter=None, Prefix="b/", ID="b")]
    assert [each.prefix for each in lifecycle.read_lifecycle({"Rules": rules}).rules] == [b"a/", b"b/"]


@pytest.mark.parametrize("date", ["2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000Z"])
def test_dates(date: str) -> None:
    """5.1: a midnight UTC, in any notation, and returned as it was."""
    found = lifecycle.read_lifecycle({"Rules": [rule(Expiration={"Date": date})]})
    assert found.rules[0].expiration == Term(date_ns=1_767_225_600 * 1_000_000_000)
    assert found.document == {"Rules": [rule(Expiration={"Date": date})]}


GLACIER_30 = {"Days": 30, "StorageClass": "GLACIER"}
IN_2030 = {"Date": "2030-01-01", "StorageClass": "GLACIER"}
NONCURRENT_30 = {"NoncurrentDays": 30, "StorageClass": "GLACIER"}


@pytest.mark.parametrize(
    ("actions", "code", "words"),
    [
        (
            {"Expiration": {"Days": 30}, "Transitions": [GLACIER_30]}, "InvalidArgument",
            "'Days' in the Expiration action for filter '(prefix=a/)' must be greater than 'Days' in the Transition "
            "action",
        ),
        (
            {"Expiration": {"Days": 60}, "Transitions": [GLACIER_30, {**GLACIER_30, "Days": 90}]}, "InvalidArgument",
            "and is 60 where that to GLACIER has 90",
        ),
        (
            {"Expiration": {"Date": "2030-01-01T00:00:00Z"}, "Transitions": [IN_2030]}, "InvalidArgument",
            "'Date' in the Expiration action for filter '(prefix=a/)' must be greater than 'Date' in the Transition "
            "action",
        ),
        (
            {
                "Expiration": None, "NoncurrentVersionTransitions": [NONCURRENT_30],
                "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
            },
            "InvalidArgument",
            "'NoncurrentDays' in the NoncurrentVersionExpiration action for filter '(prefix=a/)' must be greater than "
            "'NoncurrentDays' in the NoncurrentVersionTransition action",
        ),
        (
            {"Expiration": {"Date": "2031-01-01"}, "Transitions": [GLACIER_30]}, "InvalidRequest",
            "Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule for filter "
            "'(prefix=a/)'",
        ),
        (
            {"Expiration": None, "Transitions": [GLACIER_30, IN_2030]}, "InvalidRequest",
            "Found mixed 'Date' and 'Days' based Transition actions in lifecycle rule for filter '(prefix=a/)'",
        ),
        (
            {"Filter": None, "Prefix": "a/", "Expiration": {"Days": 7}, "Transitions": [GLACIER_30]}, "InvalidArgument",
            "for prefix 'a/'",
        ),
    ],
)  # fmt: skip
def test_what_expires_before_it_moves_is_not_accepted_any_more(actions: Json, code: str, words: str) -> None:
    """With the code and the words of S3. What earlier builds saved is still followed: no bucket goes offline for it."""
    document = {"Rules": [rule(**actions)]}
    with pytest.raises(Refused) as refused:
        lifecycle.read_new(document)
    assert refused.value.code == code
    assert words in str(refused.value)
    assert lifecycle.read_lifecycle(document).document == document


@pytest.mark.parametrize(
    "actions",
    [
        {"Expiration": {"Days": 31}, "Transitions": [GLACIER_30]},
        {"Expiration": {"Date": "2030-01-02"}, "Transitions": [IN_2030]},
        {"Expiration": {"ExpiredObjectDeleteMarker": True}, "Transitions": [GLACIER_30]},
        {
            "Expiration": {"Days": 31}, "Transitions": [GLACIER_30], "NoncurrentVersionTransitions": [NONCURRENT_30],
            "NoncurrentVersionExpiration": {"NoncurrentDays": 31},
        },
        {"Expiration": {"Days": 1}, "NoncurrentVersionTransitions": [NONCURRENT_30]},
    ],
)  # fmt: skip
def test_what_moves_before_it_expires_is_accepted(actions: Json) -> None:
    document = {"Rules": [rule(**actions)]}
    assert lifecycle.read_new(document).document == document


def test_a_thousand_rules() -> None:
    """5.1: up to 1,000."""
    rules = [rule(ID=str(number)) for number in range(1000)]
    assert len(lifecycle.read_lifecycle({"Rules": rules}).rules) == 1000
    assert refusal(*rules, rule(ID="more")).code == "MalformedXML"


TAG = {"Key": "a", "Value": "b"}
IA = {"Days": 30, "StorageClass": "STANDARD_IA"}


@pytest.mark.parametrize(
    "wrong",
    [
        rule(Expiration=None),
        rule(Expiration=None, Transitions=[]),
        rule(Filter={"Tag": TAG}, Expiration={"ExpiredObjectDeleteMarker": True}),
        rule(Filter={"ObjectSizeLessThan": 9}, Expiration={"ExpiredObjectDeleteMarker": True}),
        rule(Filter={"Tag": TAG}, AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}),
        rule(Filter={"ObjectSizeLessThan": 9}, AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}),
        rule(
            Filter=None,
            Prefix="a",
            NoncurrentVersionExpiration={"NoncurrentDays": 1, "NewerNoncurrentVersions": 1},
        ),
        rule(Prefix="a"),
        rule(Filter={"And": {"ObjectSizeGreaterThan": 9, "ObjectSizeLessThan": 9}}),
        rule(Filter={"And": {"Tags": [TAG, TAG]}}),
        rule(Filter={"ObjectSizeGreaterThan": -1}),
        rule(Filter={"ObjectSizeLessThan": 0}),
        rule(Filter={"And": {"Prefix": "a", "Tags": [TAG]}}, Expiration={"ExpiredObjectDeleteMarker": True}),
        rule(
            Filter=None,
            Prefix="a",
            NoncurrentVersionTransitions=[
                {"NoncurrentDays": 30, "StorageClass": "GLACIER", "NewerNoncurrentVersions": 1}
            ],
        ),
    ],
    ids=lambda each: json.dumps(each)[:60],
)
def test_invalid_request(wrong: Json) -> None:
    """5.6, the first line."""
    assert refusal(wrong).code == "InvalidRequest"


def test_rules_that_do_not_go_together() -> None:
    """5.6: a prefix beside a filter; prefixes that overlap for one action, and only for one."""
    old = rule(Filter=None, Prefix="x", ID="old")
    assert refusal(rule(), old).code == "InvalidRequest"
    assert refusal(old, {**old, "Prefix": "x/y", "ID": "other"}).code == "InvalidRequest"
    other = rule(Filter=None, Prefix="x/y", ID="other", Expiration=None, Transitions=[IA])
    assert len(lifecycle.read_lifecycle({"Rules": [old, other]}).rules) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        rule(Expiration={"Days": 0}),
        rule(Expiration={"Days": -1}),
        rule(Expiration={"Date": "2026-01-01T01:00:00Z"}),
        rule(Expiration={"Date": "2026-01-01T00:00:00+01:00"}),
        rule(NoncurrentVersionExpiration={"NoncurrentDays": 0}),
        rule(NoncurrentVersionExpiration={"NoncurrentDays": 1, "NewerNoncurrentVersions": 0}),
        rule(NoncurrentVersionExpiration={"NoncurrentDays": 1, "NewerNoncurrentVersions": 101}),
        rule(Transitions=[{"Days": -1, "StorageClass": "GLACIER"}]),
        rule(Transitions=[{"Days": 29, "StorageClass": "STANDARD_IA"}]),
        rule(Transitions=[{"Days": 29, "StorageClass": "ONEZONE_IA"}]),
        rule(NoncurrentVersionTransitions=[{"NoncurrentDays": 29, "StorageClass": "STANDARD_IA"}]),
        rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 0}),
        rule(ID="x" * 256),
        rule(ID="é"),
        rule(Filter={"Prefix": "x" * 1025}),
        rule(NoncurrentVersionTransitions=[{"NoncurrentDays": -1, "StorageClass": "GLACIER"}]),
        rule(Transitions=[{"Date": "2026-01-01T12:00:00Z", "StorageClass": "GLACIER"}]),
    ],
    ids=lambda each: json.dumps(each)[:90],
)
def test_invalid_argument(wrong: Json) -> None:
    """5.6, the second line."""
    assert refusal(wrong).code == "InvalidArgument"


def test_names_are_unique() -> None:
    """5.6: InvalidArgument."""
    assert refusal(rule(), rule()).code == "InvalidArgument"


@pytest.mark.parametrize(
    "wrong",
    [
        rule(Expiration={}),
        rule(Expiration={"Days": 1, "Date": "2026-01-01"}),
        rule(Expiration={"Days": 1, "ExpiredObjectDeleteMarker": True}),
        rule(Expiration={"Date": "1 January"}),
        rule(Expiration={"Date": "2026-02-31"}),
        rule(Expiration={"Days": True}),
        rule(Expiration={"ExpiredObjectDeleteMarker": "true"}),
        rule(Status="enabled"),
        rule(Filter=None),
        rule(Filter={"Prefix": "a", "Tag": TAG}),
        rule(Filter={"And": {"Prefix": "a"}}),
        rule(Filter={"And": {}}),
        rule(Filter={"Tag": {"Key": "", "Value": ""}}),
        rule(NoncurrentVersionExpiration={"NewerNoncurrentVersions": 1}),
        rule(Transitions=[{"StorageClass": "GLACIER"}]),
        rule(Transitions=[{"Days": 1, "Date": "2026-01-01", "StorageClass": "GLACIER"}]),
        rule(Transitions=[{"Days": 1, "StorageClass": "STANDARD"}]),
        rule(Transitions=[{"Days": 1, "StorageClass": "REDUCED_REDUNDANCY"}]),
        rule(Transitions=[{"Days": 1, "StorageClass": "OUTPOSTS"}]),
        rule(Transitions=[{"Days": 1}]),
        rule(NoncurrentVersionTransitions=[{"StorageClass": "GLACIER"}]),
        rule(AbortIncompleteMultipartUpload={}),
        rule(Expiration={"Days": "1"}),
        rule(Expiration={"Days": 1.5}),
        rule(Filter={"ObjectSizeGreaterThan": "1"}),
        rule(Filter={"Tag": {"Key": "a"}}),
        rule(Status=None),
        rule(ObjectLockEnabled="Enabled"),
    ],
    ids=lambda each: json.dumps(each)[:90],
)
def test_malformed_xml(wrong: Json) -> None:
    """5.6, the third line."""
    assert refusal(wrong).code == "MalformedXML"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        (rule(Transition=IA), "Transitions"),
        (rule(Expiration={"days": 1}), "Days"),
        (rule(NoncurrentVersionExpiration={"NoncurrentDay": 1}), "NoncurrentDays"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: Json, near: str) -> None:
    """design, 4: unknown names are refused, with the nearest known one."""
    assert f'did you mean "{near}"?' in str(refusal(wrong))


@pytest.mark.parametrize("document", [{}, [], None, {"Rules": []}, {"Rules": {}}, {"Rules": [1]}, {"Role": "x"}])
def test_what_is_no_configuration(document: object) -> None:
    with pytest.raises(Refused, match=r"^MalformedXML"):
        lifecycle.read_lifecycle(document)


def test_the_minimum_size_of_a_transition() -> None:
    """BC: TransitionDefaultMinimumObjectSize, as `aws s3api` prints it."""
    assert not lifecycle.read_lifecycle({"Rules": [rule()]}).small_to_archive
    varies = {"Rules": [rule()], "TransitionDefaultMinimumObjectSize": "varies_by_storage_class"}
    assert lifecycle.read_lifecycle(varies).small_to_archive
    assert refusal(rule(), TransitionDefaultMinimumObjectSize="any").code == "MalformedXML"
