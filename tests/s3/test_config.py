"""Names, ARNs and replication settings: s3-semantics, section 1, row by row, with S3's code for each fault."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrepl.errors import Refused
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import STORAGE_CLASSES, Versioning
from fsrepl.s3 import arn, replication
from fsrepl.s3.schema import ReplicationRule
from fsrepl.settings import REGION_NAME

ROLE = "arn:aws:iam::000000000000:role/service-role/courier"
ENABLED, DISABLED = {"Status": "Enabled"}, {"Status": "Disabled"}
MINUTES = {"Minutes": 15}

Json = dict[str, Any]


class World:
    """Buckets by address, as parse_replication asks about them."""

    def __init__(self, *more: str) -> None:
        addresses = ("east/src", "west/dst", "north/far", *more)
        self.states: dict[str, Versioning] = dict.fromkeys(addresses, Versioning.ENABLED)

    def named(self, name: str) -> list[str]:
        return sorted(address for address in self.states if address.endswith(f"/{name}"))

    def versioning(self, address: str) -> Versioning | None:
        return self.states.get(address)

    def account(self, address: str) -> str:
        return arn.ACCOUNT


def to(bucket: str = "arn:aws:s3:west::dst", **more: object) -> Json:
    return {"Bucket": bucket, **more}


def v1(prefix: str = "", **more: object) -> Json:
    return {"ID": "one", "Prefix": prefix, "Status": "Enabled", "Destination": to(), **more}


def v2(**more: object) -> Json:
    return {
        "ID": "one",
        "Priority": 1,
        "Filter": {},
        "Status": "Enabled",
        "DeleteMarkerReplication": DISABLED,
        "Destination": to(),
        **more,
    }


def without(document: Json, *names: str) -> Json:
    return {name: value for name, value in document.items() if name not in names}


def several(rule: Callable[..., Json], *changes: Json) -> Json:
    """A configuration of rules that differ only in their ids and these changes."""
    return configuration(*(rule(**{"ID": f"rule-{i}", **change}) for i, change in enumerate(changes)))


def configuration(*rules: Json, role: str = ROLE) -> Json:
    return {"Role": role, "Rules": list(rules)}


def parse(document: object, world: World | None = None, size_bytes: int = 0) -> Replication:
    return replication.parse_replication(document, source="east/src", buckets=world or World(), size_bytes=size_bytes)


def rule_of(written: Json) -> Rule:
    [rule] = parse(configuration(written)).rules
    return rule


def refusal(document: object, world: World | None = None, size_bytes: int = 0) -> str:
    with pytest.raises(Refused) as caught:
        parse(document, world, size_bytes)
    return str(caught.value)


# -- names and addresses


@pytest.mark.parametrize("name", ["abc", "my.bucket-2026", "0" * 63, "1.2.3", "1.2.3.4.5", "xn-a", "olx-s3"])
def test_names_that_s3_gives_to_buckets(name: str) -> None:
    arn.check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "ab", "a" * 64, "Photos", "a_b", "a b", "a/b", "ümlaut", "abc\n", ".abc", "abc-", "-abc", "a..b", "a-.b"),
        *("192.168.5.4", "xn--abc", "sthree-abc", "amzn-s3-demo-abc"),
        *("abc-s3alias", "abc--ol-s3", "abc.mrap", "abc--x-s3", "abc--table-s3"),
    ],
)
def test_names_that_s3_does_not_give_to_buckets(name: str) -> None:
    with pytest.raises(Refused, match=r"^InvalidBucketName: .*cannot name a bucket: ") as caught:
        arn.check_bucket_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["us-east-1", "eu_2", "Home", "1", "a.b"])
def test_names_of_regions(name: str) -> None:
    assert REGION_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a:b", "a b", "é", "a\n"])
def test_names_that_regions_cannot_have(name: str) -> None:
    assert REGION_NAME.fullmatch(name) is None


def test_bucket_arns_name_the_region_or_a_bucket_that_one_region_has() -> None:
    """design.md, section 4."""
    named = World("north/dst").named
    assert arn.bucket_arn("west/dst") == "arn:aws:s3:west::dst"
    assert arn.bucket_arn("west/dst", aws=True) == "arn:aws:s3:::dst"
    assert arn.parse_bucket_arn("arn:aws:s3:west::dst", named) == "west/dst"
    assert arn.parse_bucket_arn("arn:aws:s3:::far", named) == "north/far"
    assert arn.parse_bucket_arn("arn:aws-cn:s3:::far", named) == "north/far"
    with pytest.raises(Refused, match=r"^InvalidRequest: .*no region has a bucket nowhere"):
        arn.parse_bucket_arn("arn:aws:s3:::nowhere", named)
    with pytest.raises(Refused, match=r"^InvalidArgument: .*arn:aws:s3:north::dst or arn:aws:s3:west::dst"):
        arn.parse_bucket_arn("arn:aws:s3:::dst", named)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dst",
        "west/dst",
        "arn:aws:s3:west:dst",
        "arn:aws:s3:west::dst/key",
        "arn:aws:s3:west:1:dst",
        "arn:aws:s3:w::D",
    ],
)
def test_other_bucket_arns_are_invalid(text: str) -> None:
    with pytest.raises(Refused, match=r"^InvalidArgument: Invalid bucket ARN"):
        arn.parse_bucket_arn(text, lambda name: [f"west/{name}"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (arn.role_arn("courier"), "courier"),
        ("arn:aws:iam::123456789012:role/s3-replication-role", "s3-replication-role"),
        ("arn:aws-us-gov:iam::123456789012:role/a/b/c/x@y=z", "x@y=z"),
        ("courier", None),
        ("arn:aws:iam::123456789012:user/courier", None),
        ("arn:aws:iam::12:role/courier", None),
        ("arn:aws:iam::123456789012:role/", None),
        ("arn:aws:iam::123456789012:role/../" + "x" * 65, None),
    ],
)
def test_of_a_role_arn_the_last_part_counts(text: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(Refused, match=r"^InvalidArgument: Invalid Role"):
            arn.parse_role_arn(text)
    else:
        assert arn.parse_role_arn(text) == name


# -- 1.1 and 1.2: the meaning of rules


def test_a_v1_rule_copies_markers_and_has_no_priority() -> None:
    assert rule_of(v1("Tax")) == Rule("one", True, b"Tax", "west/dst", priority=0, v2=False, delete_markers=True)


def test_a_v2_rule_states_all_its_settings() -> None:
    tags = [{"Key": "class", "Value": "blue"}, {"Key": "empty", "Value": ""}]
    written = v2(
        Priority=7,
        Filter={"And": {"Prefix": "a/", "Tags": tags}},
        Status="Disabled",
        SourceSelectionCriteria={"ReplicaModifications": ENABLED},
        Destination=to(
            StorageClass="GLACIER_IR",
            Account=arn.ACCOUNT,
            AccessControlTranslation={"Owner": "Destination"},
            Metrics={"Status": "Enabled", "EventThreshold": MINUTES},
            ReplicationTime={"Status": "Enabled", "Time": MINUTES},
        ),
    )
    assert rule_of(written) == Rule(
        id="one",
        enabled=False,
        prefix=b"a/",
        destination="west/dst",
        tags={"class": "blue", "empty": ""},
        priority=7,
        v2=True,
        delete_markers=False,
        replica_modifications=True,
        storage_class="GLACIER_IR",
        owner="Destination",
        metrics=True,
        replication_time=True,
    )


@pytest.mark.parametrize(
    ("filter_", "prefix", "tags"),
    [
        ({}, b"", {}),
        ({"Prefix": ""}, b"", {}),
        ({"Prefix": "a"}, b"a", {}),
        ({"Prefix": "ü"}, b"\xc3\xbc", {}),
        ({"Prefix": "not utf-8: \udcff"}, b"not utf-8: \xff", {}),
        ({"Tag": {"Key": "k", "Value": "v"}}, b"", {"k": "v"}),
        ({"And": {"Prefix": "", "Tags": [{"Key": "k", "Value": "v"}]}}, b"", {"k": "v"}),
        ({"And": {"Tags": [{"Key": "k", "Value": "v"}, {"Key": "K", "Value": "v"}]}}, b"", {"k": "v", "K": "v"}),
    ],
)
def test_filters(filter_: Json, prefix: bytes, tags: Json) -> None:
    rule = rule_of(v2(Filter=filter_))
    assert (rule.prefix, rule.tags, rule.v2) == (prefix, tags, True)


@pytest.mark.parametrize("storage_class", STORAGE_CLASSES)
def test_every_storage_class_may_be_a_destinations(storage_class: str) -> None:
    """s3-semantics, 1.1: GLACIER was refused in 2017 and is not today."""
    assert rule_of(v1(Destination=to(StorageClass=storage_class))).storage_class == storage_class


@pytest.mark.parametrize(
    "written",
    [
        v1(Destination=to("arn:aws:s3:east::near")),  # the same region: `enable` refuses it, `put` does not
        v1(Destination=to(Metrics=ENABLED)),
        v1(Destination=to(Account=arn.ACCOUNT)),
        v1(SourceSelectionCriteria={"SseKmsEncryptedObjects": DISABLED}),
        v1(
            SourceSelectionCriteria={"SseKmsEncryptedObjects": DISABLED},
            Destination=to(EncryptionConfiguration={"ReplicaKmsKeyID": "arn:aws:kms:west:0:key/1"}),
        ),
        v2(Priority=0, DeleteMarkerReplication=ENABLED),
        v2(Priority=2**31 - 1, Filter={"Prefix": "p" * 1024}, ID="i" * 255),
        v2(Destination=to(Metrics=DISABLED, ReplicationTime={"Status": "Disabled", "Time": MINUTES})),
    ],
)
def test_what_is_accepted(written: Json) -> None:
    assert parse(configuration(written), World("east/near")).document["Rules"] == [written]


def test_disabled_rules_and_overlapping_filters_are_accepted() -> None:
    alike = several(v2, {"Priority": 1}, {"Priority": 2}, {"Priority": 3, "Destination": to("arn:aws:s3:north::far")})
    assert len(parse(alike).rules) == 3
    beside = several(v1, {"Prefix": "a/"}, {"Prefix": "b"}, {"Prefix": "a-"})
    assert [rule.prefix for rule in parse(beside).rules] == [b"a/", b"b", b"a-"]


def test_the_document_is_what_aws_prints_and_what_goes_to_disk() -> None:
    """design.md, section 4: with or without the wrapper, destinations with their region, an id in every rule."""
    written = without(v2(Destination=to("arn:aws:s3:::dst")), "ID")
    printed = {"ReplicationConfiguration": {"Rules": [written], "Role": ROLE}}
    before = copy.deepcopy(printed)
    found = parse(printed)
    assert found.role == "courier"
    assert found.document == configuration(v2(ID="src-to-dst"))
    assert '"Rules": [{"ID": ' in json.dumps(found.document)
    assert replication.read_replication(found.document, source="east/src", named=lambda name: []) == found
    assert replication.render_aws(found.document)["Rules"][0]["Destination"] == {"Bucket": "arn:aws:s3:::dst"}
    assert printed == before


def test_made_up_ids_are_unique_and_the_same_each_time() -> None:
    rules = [
        without(v1("a"), "ID"),
        v1("b", ID="src-to-dst"),
        v1("c", ID=""),
        v1("d", ID="src-to-dst-2"),
        without(v1("e"), "ID"),
    ]
    ids = [rule.id for rule in parse(configuration(*rules)).rules]
    assert ids == ["src-to-dst-3", "src-to-dst", "src-to-dst-4", "src-to-dst-2", "src-to-dst-5"]
    other = without(v2(Priority=2, Destination=to("arn:aws:s3:north::dst")), "ID")
    found = parse(configuration(without(v2(), "ID"), other), World("north/dst"))
    assert [rule.id for rule in found.rules] == ["src-to-dst", "src-to-dst-2"]


# -- 1.4: validation errors, in the order of its table

OWNER: Json = {"AccessControlTranslation": {"Owner": "Destination"}}
RTC: Json = {"Status": "Enabled", "Time": MINUTES}
KMS: Json = {"SseKmsEncryptedObjects": ENABLED}
KEY: Json = {"EncryptionConfiguration": {"ReplicaKmsKeyID": "arn:aws:kms:west:0:key/1"}}
TAG: Json = {"Key": "k", "Value": "v"}

FAULTS: list[tuple[object, str]] = [
    (configuration(v1(Destination=to("arn:aws:s3:west::gone"))), "InvalidRequest: .*must exist.* west/gone"),
    (configuration(v1(Destination=to("arn:aws:s3:::gone"))), "InvalidRequest: .*must exist.* gone"),
    (configuration(v1(Destination=to("arn:aws:s3:east::src"))), "InvalidRequest: .*cannot be the same.* east/src"),
    (configuration(v1(Destination=to("dst"))), "InvalidArgument: .*Invalid bucket ARN"),
    (
        several(v1, {"Prefix": "a"}, {"Prefix": "b", "Destination": to("arn:aws:s3:north::far")}),
        "InvalidRequest: Number of distinct destination bucket ARNs cannot exceed 1.*north/far and west/dst",
    ),
    (several(v1, {"Prefix": "x/y"}, {"Prefix": "w"}, {"Prefix": "x"}), 'InvalidRequest: .*overlapping.* "x" and "x/y"'),
    (several(v1, {"Prefix": "x"}, {"Prefix": "x", "Status": "Disabled"}), "InvalidRequest: .*overlapping"),
    (several(v1, {"Prefix": "x"}, {"Prefix": ""}), "InvalidRequest: .*overlapping"),
    # the schema
    ({"Rules": [v1()]}, 'MalformedXML: the document lacks "Role"'),
    ({"Role": ROLE}, 'MalformedXML: the document lacks "Rules"'),
    (configuration(), "MalformedXML: Rules is empty"),
    (configuration(without(v1(), "Status")), r'MalformedXML: Rules\[0\] lacks "Status"'),
    (configuration(without(v1(), "Destination")), r'MalformedXML: Rules\[0\] lacks "Destination"'),
    (configuration(v1(Destination={})), r'MalformedXML: Rules\[0\].Destination lacks "Bucket"'),
    (configuration(v1(Status="enabled")), r'MalformedXML: Rules\[0\].Status must be "Enabled" or "Disabled", not "en'),
    (configuration(v1(Filter={})), 'MalformedXML: rule "one": it has both Prefix and Filter'),
    (configuration(without(v1(), "Prefix")), "MalformedXML: .*neither Prefix nor Filter"),
    (configuration(without(v1(ID=""), "Prefix")), r"MalformedXML: Rules\[0\]: .*neither"),
    (configuration(v2(Filter={"Prefix": "a", "Tag": TAG})), "MalformedXML: .*Filter.And"),
    (configuration(v2(Filter={"Tag": TAG, "And": {}})), "MalformedXML: .*Filter.And"),
    (configuration(v2(Filter={"And": {}})), "MalformedXML: .*needs two predicates"),
    (configuration(v2(Filter={"And": {"Prefix": "a"}})), "MalformedXML: .*needs two predicates"),
    (configuration(v2(Filter={"And": {"Tags": [TAG]}})), "MalformedXML: .*needs two predicates"),
    (configuration(v2(Filter={"Tag": {"Key": "", "Value": ""}})), "MalformedXML: .*Key of a tag is empty"),
    (configuration(v2(Filter={"Tag": {"Key": "k"}})), r'MalformedXML: Rules\[0\].Filter.Tag lacks "Value"'),
    (configuration(v2(ExistingObjectReplication=ENABLED)), r"MalformedXML: Rules\[0\].Existing.*withdrawn.*backfill"),
    (configuration(v1(Destination=to(StorageClass="COLD"))), 'MalformedXML: .*StorageClass "COLD" is none of STANDARD'),
    (configuration(v1(Destination=to(AccessControlTranslation={"Owner": "Me"}))), 'MalformedXML: .*must be "Dest'),
    (configuration(v1(Destination=to(ReplicationTime=ENABLED))), 'MalformedXML: .*ReplicationTime lacks "Time"'),
    (configuration(v1(prefix="\ud800")), "MalformedXML: .*is no text"),
    # unknown fields and wrong types, anywhere
    (configuration(v1(Prefx="a")), r'MalformedXML: Rules\[0\] has an unknown field "Prefx"; did you mean "Prefix"'),
    (configuration(v1(status="Enabled")), 'MalformedXML: .*"status"; did you mean "Status"'),
    ({**configuration(v1()), "Comment": ""}, "MalformedXML: the document has an unknown field .*known are Role, Rules"),
    (configuration(v1(Destination=to(Class="COLD"))), "MalformedXML: .*Destination has an unknown field"),
    (configuration(v2(Filter={"Prefix": "a", "\x1b[2J": 1})), r'MalformedXML: .*unknown field "\\u001b'),
    ({"ReplicationConfiguration": configuration(v1()), "Rules": []}, "MalformedXML: .*unknown field"),
    ([configuration(v1())], "MalformedXML: the document must be an object"),
    (None, "MalformedXML: the document must be an object, not null"),
    ({"Role": ROLE, "Rules": v1()}, "MalformedXML: Rules must be a list"),
    (configuration(v1(), "rule"), r"MalformedXML: Rules\[1\] must be an object"),  # type: ignore[arg-type]
    (configuration(v1(prefix=None)), r"MalformedXML: Rules\[0\].Prefix must be a string, not null"),  # type: ignore[arg-type]
    (configuration(v2(Priority="1")), r'MalformedXML: Rules\[0\].Priority must be a whole number, not "1"'),
    (configuration(v2(Priority=True)), r"MalformedXML: Rules\[0\].Priority must be a whole number, not true"),
    (configuration(v2(Priority=1.5)), r"MalformedXML: Rules\[0\].Priority must be a whole number, not 1.5"),
    # the rest of the table
    (configuration(v1(), role="courier"), "InvalidArgument: Invalid Role specified in replication configuration"),
    (several(v1, *({"Prefix": f"{i:04}"} for i in range(1001))), "MalformedXML: .*1,000 rules, and this has 1,001"),
    (configuration(v1(ID="i" * 256)), "InvalidArgument: .*ID length should not exceed allowed limit of 255"),
    (configuration(v1(ID="é")), "InvalidArgument: .*ASCII"),
    (configuration(v1(ID="a\nb")), r'InvalidArgument: rule "a\\nb": .*ASCII'),
    (configuration(v1("a"), v1("b")), 'InvalidArgument: Rule Id must be unique, and "one"'),
    (configuration(v1("p" * 1025)), "InvalidArgument: .*cannot be longer than maximum allowed key length of 1024"),
    (configuration(v2(Filter={"Prefix": "é" * 513})), "InvalidArgument: .*1024; it has 1026"),
    (configuration(without(v2(), "Priority")), "InvalidRequest: .*Priority must be specified for this version"),
    (configuration(without(v2(), "DeleteMarkerReplication")), "InvalidRequest: .*DeleteMarkerReplication must be spec"),
    (configuration(v1(Priority=1)), "InvalidRequest: .*Priority cannot be used for this version"),
    (configuration(v1(DeleteMarkerReplication=ENABLED)), "InvalidRequest: .*DeleteMarkerReplication cannot be used"),
    (
        configuration(v1(SourceSelectionCriteria={"ReplicaModifications": ENABLED})),
        "InvalidRequest: .*ReplicaModifications cannot be used",
    ),
    (configuration(v1(Destination=to(ReplicationTime=RTC))), "InvalidRequest: .*ReplicationTime cannot be used"),
    (configuration(v1(), v2(ID="two")), "InvalidRequest: some rules have a Prefix of their own and others a Filter"),
    (configuration(v2(Priority=-1)), "InvalidRequest: .*Priority must be between 0 and 2147483647"),
    (configuration(v2(Priority=2**31)), "InvalidRequest: .*Priority must be between 0 and 2147483647"),
    (several(v2, {"Priority": 0}, {"Priority": 0}), "InvalidRequest: Found duplicate priority 0"),
    (
        several(v2, {"Priority": 5}, {"Priority": 5, "Destination": to("arn:aws:s3:north::far")}),
        "InvalidRequest: Found duplicate priority 5",
    ),
    (
        configuration(v2(Filter={"Tag": TAG}, DeleteMarkerReplication=ENABLED)),
        "InvalidRequest: .*not supported if any Tag filter",
    ),
    (configuration(v2(Filter={"And": {"Tags": [TAG, TAG]}})), 'InvalidRequest: .*Duplicate Tag Keys.*"k"'),
    (configuration(v1(Destination=to(**OWNER))), "InvalidRequest: .*Account must be specified"),
    (configuration(v1(Destination=to(**OWNER, Account=""))), "InvalidArgument: .*Account is empty"),
    (configuration(v1(Destination=to(Account="111122223333"))), "InvalidArgument: .*111122223333.* does not own west/"),
    (configuration(v1(SourceSelectionCriteria=KMS)), "InvalidRequest: .*ReplicaKmsKeyID must be specified"),
    (configuration(v1(Destination=to(**KEY))), "InvalidRequest: .*SseKmsEncryptedObjects must be specified"),
    (configuration(v1(SourceSelectionCriteria=KMS, Destination=to(**KEY))), "InvalidRequest: .*fsrepl has no KMS"),
    (configuration(v1(SourceSelectionCriteria={})), "InvalidRequest: .*SourceSelectionCriteria cannot be empty"),
    (configuration(v2(Destination=to(ReplicationTime=RTC))), "InvalidRequest: .*both ReplicationTime and Metrics"),
    (
        configuration(v2(Destination=to(ReplicationTime=RTC, Metrics=DISABLED))),
        "InvalidRequest: .*both ReplicationTime and Metrics.*same Status",
    ),
    (configuration(v2(Destination=to(ReplicationTime=RTC, Metrics=ENABLED))), "InvalidArgument: .*event threshold"),
    (
        configuration(v2(Destination=to(Metrics={"Status": "Enabled", "EventThreshold": {"Minutes": 5}}))),
        "InvalidArgument: .*Minutes must be 15, not 5",
    ),
    (
        configuration(v2(Destination=to(Metrics=ENABLED, ReplicationTime={**RTC, "Time": {"Minutes": 0}}))),
        "InvalidArgument: .*Minutes must be 15, not 0",
    ),
]


@pytest.mark.parametrize(("document", "expected"), FAULTS, ids=[expected for _, expected in FAULTS])
def test_every_fault_has_its_code_and_says_where(document: object, expected: str) -> None:
    message = refusal(document)
    assert re.match(expected, message)
    assert message.isprintable()


def test_a_configuration_has_2_mb_at_most() -> None:
    document = configuration(v1())
    assert parse(document, size_bytes=2 << 20).rules
    assert refusal(document, size_bytes=(2 << 20) + 1).startswith("InvalidRequest: ")


@pytest.mark.parametrize(("state", "how"), [(Versioning.OFF, "off"), (Versioning.SUSPENDED, "suspended")])
@pytest.mark.parametrize("address", ["east/src", "west/dst"])
def test_both_buckets_must_be_versioned(address: str, state: Versioning, how: str) -> None:
    world = World()
    world.states[address] = state
    message = refusal(configuration(v1()), world)
    assert message.startswith("InvalidRequest: ")
    assert f"that of {address} is {how}" in message
    assert f"`fsrepl versioning enable {address}`" in message
    assert ('rule "one"' in message) is (address == "west/dst")


def test_a_source_must_be_there() -> None:
    world = World()
    del world.states["east/src"]
    assert refusal(configuration(v1()), world).startswith("NoSuchBucket: ")


def test_a_saved_configuration_is_read_whatever_the_state_of_its_buckets_is() -> None:
    """A destination that is gone or suspended fails each object (3.2); an invalid document is refused."""
    saved = configuration(v1(Destination=to("arn:aws:s3:west::gone", Account="111122223333")))
    found = replication.read_replication(saved, source="east/src", named=lambda name: [])
    assert found.rules[0].destination == "west/gone"
    with pytest.raises(Refused, match=r"InvalidRequest: .*overlapping"):
        replication.read_replication(several(v1, {}, {}), source="east/src", named=lambda name: [])


# -- enable, add, disable


def written_by_enable(destination: str = "west/dst", **more: Any) -> Json:
    return dict(replication.enable_document(destination, role="courier", **more))


def test_enable_writes_v1_for_the_whole_bucket() -> None:
    """s3-semantics, section 7: S12, S21, and no field that V1 lacks."""
    assert written_by_enable() == configuration(without(v1(), "ID"))
    assert [rule.id for rule in parse(written_by_enable()).rules] == ["src-to-dst"]


def test_enable_writes_a_rule_a_prefix_with_its_class_and_a_number() -> None:
    """S13, S14."""
    found = written_by_enable(prefixes=["Tax", "logs/"], storage_class="STANDARD_IA", rule_id="mine")
    destination = to(StorageClass="STANDARD_IA")
    assert found["Rules"] == [
        v1("Tax", ID="mine", Destination=destination),
        v1("logs/", ID="mine-2", Destination=destination),
    ]
    assert refusal(written_by_enable(prefixes=["a", "a/b"])).startswith("InvalidRequest: Found overlapping")


def test_enable_without_markers_is_v2() -> None:
    found = written_by_enable(prefixes=["a", "a/b"], delete_markers=False, rule_id="x")
    assert found["Rules"] == [
        v2(ID="x", Priority=1, Filter={"Prefix": "a"}),
        v2(ID="x-2", Priority=2, Filter={"Prefix": "a/b"}),
    ]
    assert [rule.delete_markers for rule in parse(found).rules] == [False, False]


def added(first: Json, *more: Json) -> Replication:
    found = parse(first)
    for each in more:
        found = parse(replication.add_rules(found.document, each["Rules"]))
    return found


def test_adding_a_prefix_to_the_same_destination_stays_v1() -> None:
    found = added(written_by_enable(prefixes=["a"]), written_by_enable(prefixes=["b"]))
    assert found.document == configuration(v1("a", ID="src-to-dst"), v1("b", ID="src-to-dst-2"))


def test_adding_a_prefix_that_overlaps_is_refused() -> None:
    with pytest.raises(Refused, match=r"^InvalidRequest: Found overlapping"):
        added(written_by_enable(), written_by_enable(prefixes=["b"]))


def test_adding_a_destination_makes_all_rules_v2_with_markers() -> None:
    """design.md, section 5."""
    first = written_by_enable(prefixes=["a", "b"], rule_id="first")
    found = added(first, written_by_enable("north/far", storage_class="GLACIER"), written_by_enable(prefixes=["b/c"]))
    far = to("arn:aws:s3:north::far", StorageClass="GLACIER")
    assert found.document["Rules"] == [
        v2(ID="first", Priority=1, Filter={"Prefix": "a"}, DeleteMarkerReplication=ENABLED),
        v2(ID="first-2", Priority=2, Filter={"Prefix": "b"}, DeleteMarkerReplication=ENABLED),
        v2(ID="src-to-far", Priority=3, Filter={"Prefix": ""}, DeleteMarkerReplication=ENABLED, Destination=far),
        v2(ID="src-to-dst", Priority=4, Filter={"Prefix": "b/c"}, DeleteMarkerReplication=ENABLED),
    ]


def test_adding_to_v2_leaves_its_rules_unchanged() -> None:
    old = v2(Priority=40, Filter={"Tag": TAG})
    found = added(configuration(old), written_by_enable(prefixes=["a"]), written_by_enable(delete_markers=False))
    assert found.document["Rules"] == [
        old,
        v2(ID="src-to-dst", Priority=41, Filter={"Prefix": "a"}, DeleteMarkerReplication=ENABLED),
        v2(ID="src-to-dst-2", Priority=42, Filter={"Prefix": ""}),
    ]


def test_adding_without_markers_keeps_those_of_v1() -> None:
    found = added(written_by_enable(prefixes=["a"]), written_by_enable(prefixes=["b"], delete_markers=False))
    assert [(rule.v2, rule.delete_markers, rule.priority) for rule in found.rules] == [
        (True, True, 1),
        (True, False, 2),
    ]


def test_disabling_and_enabling_again_is_the_same_configuration() -> None:
    before = parse(several(v1, {"Prefix": "a"}, {"Prefix": "b"}))
    disabled = replication.set_status(before.document, "Disabled")
    assert [rule.enabled for rule in parse(disabled).rules] == [False, False]
    assert parse(replication.set_status(disabled, "Enabled")) == before


def test_effective_content_is_what_chooses_versions() -> None:
    """A rule with another name, form or class continues; with another prefix, or after a pause, it begins anew."""
    content = replication.effective_content
    base = rule_of(v2(Filter={"And": {"Prefix": "a\udcff", "Tags": [TAG, {"Key": "a", "Value": ""}]}}))
    same = rule_of(
        v2(
            ID="other",
            Priority=9,
            Filter={"And": {"Prefix": "a\udcff", "Tags": [{"Key": "a", "Value": ""}, TAG]}},
            Destination=to(StorageClass="GLACIER"),
        )
    )
    assert content(base) == content(same)
    assert content(rule_of(v1("x"))) == content(rule_of(v2(Filter={"Prefix": "x"})))
    changes: list[Json] = [
        {"Status": "Disabled"},
        {"Filter": {"Prefix": "a"}},
        {"Destination": to("arn:aws:s3:north::far")},
    ]
    contents = {content(rule_of(v2(**change))) for change in changes} | {content(base), content(rule_of(v2()))}
    assert len(contents) == 5
    assert all(text.encode() for text in contents)


# -- versioning documents


@pytest.mark.parametrize("state", Versioning)
def test_versioning_documents_come_back(state: Versioning) -> None:
    document = replication.versioning_document(state)
    assert replication.parse_versioning(document) is state
    assert replication.parse_versioning({"VersioningConfiguration": document}) is state
    assert replication.parse_versioning({**document, "MFADelete": "Disabled"}) is state


@pytest.mark.parametrize(
    "document", [{"Status": "enabled"}, {"Status": ""}, {"State": "Enabled"}, [], {"MFADelete": "Enabled"}]
)
def test_other_versioning_documents_are_malformed(document: object) -> None:
    with pytest.raises(Refused, match=r"^MalformedXML: "):
        replication.parse_versioning(document)


# -- any configuration

PREFIXES = st.text(st.characters(codec="utf-8"), max_size=8)
PLACES = st.sampled_from(["west/dst", "north/far"])
TAGS = st.dictionaries(st.text(min_size=1, max_size=3), st.text(max_size=3), max_size=3)
IDS = st.none() | st.just("") | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)


@st.composite
def v1_documents(draw: st.DrawFn) -> Json:
    prefixes = [p for p in draw(st.lists(PREFIXES, min_size=1, unique=True)) if p] or [""]
    apart = [p for p in prefixes if not any(p != other and p.startswith(other) for other in prefixes)]
    bucket = arn.bucket_arn(draw(PLACES))
    return configuration(
        *(
            {"Prefix": prefix, "Status": draw(st.sampled_from(["Enabled", "Disabled"])), "Destination": to(bucket)}
            for prefix in apart
        )
    )


def filter_of(prefix: str, tags: dict[str, str]) -> Json:
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    if not listed:
        return {"Prefix": prefix} if prefix else {}
    return {"Tag": listed[0]} if not prefix and len(listed) == 1 else {"And": {"Prefix": prefix, "Tags": listed}}


@st.composite
def v2_documents(draw: st.DrawFn) -> Json:
    rules, ids = [], set()
    for priority in draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True)):
        tags = draw(TAGS)
        markers = "Disabled" if tags else draw(st.sampled_from(["Enabled", "Disabled"]))
        rule = without(
            v2(
                Priority=priority,
                Filter=filter_of(draw(PREFIXES), tags),
                DeleteMarkerReplication={"Status": markers},
                Destination=to(arn.bucket_arn(draw(PLACES), aws=draw(st.booleans()))),
            ),
            "ID",
        )
        rule_id = draw(IDS)
        if rule_id is not None and rule_id not in ids:
            rule["ID"] = rule_id
            ids.add(rule_id or None)
        rules.append(rule)
    return configuration(*rules)


@given(v1_documents() | v2_documents(), st.booleans())
def test_what_is_accepted_comes_back_from_disk_and_from_s3(document: Json, wrapped: bool) -> None:
    """Saved, read again, printed for AWS and put again, a configuration is the same; so is each of its fields."""
    found = parse({"ReplicationConfiguration": document} if wrapped else document)
    on_disk = json.loads(json.dumps(found.document))
    assert replication.read_replication(on_disk, source="east/src", named=lambda name: []) == found
    assert parse(replication.render_aws(on_disk)) == found
    assert len({rule.id for rule in found.rules}) == len(document["Rules"])
    for given_rule, rule in zip(document["Rules"], on_disk["Rules"], strict=True):
        assert without(rule, "ID", "Destination") == without(given_rule, "ID", "Destination")
        assert rule["ID"] == (given_rule.get("ID") or rule["ID"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["Status", "Prefix", "Tag", "And", "x"]), inner),
)


@given(JSON, st.sampled_from(["", "Role", "Rules", *ReplicationRule.__annotations__]))
def test_any_json_in_any_place_is_read_or_refused(value: object, place: str) -> None:
    whole = configuration(v2())
    document = {**whole, place: value} if place in whole else configuration(v2(**{place: value})) if place else value
    message = ""
    try:
        parse(document)
    except Refused as refused:
        message = str(refused)
    assert message == "" or message.isprintable()
