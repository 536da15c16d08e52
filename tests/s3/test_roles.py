"""Roles: s3-semantics, section 6, row by row; generated roles, and roles that people have written."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrepl.errors import Refused
from fsrepl.model.rule import Role, Statement
from fsrepl.s3 import permissions, roles
from fsrepl.s3.permissions import Permission
from fsrepl.s3.policy import Verdict, may

Json = dict[str, Any]

SOURCE, DESTINATION = "east/src", "west/dst"
OBJECTS = {SOURCE: "arn:aws:s3:east::src/*", DESTINATION: "arn:aws:s3:west::dst/*"}


def generated(*destinations: str, **more: bool) -> Json:
    return copy.deepcopy(dict(roles.generate("courier", SOURCE, destinations or [DESTINATION], **more)))


def role_of(document: Json) -> Role:
    return roles.parse_role(document, "courier")


def allowing(*actions: str, on: str = "*") -> Statement:
    return Statement(True, actions, (on,))


def denying(*actions: str, on: str = "*") -> Statement:
    return Statement(False, actions, (on,))


def role(*statements: Statement) -> Role:
    return Role("courier", frozenset({roles.REPLICATOR}), statements)


def changed(*, lacks: str = "", denies: str = "", on: str = "*", distrusts: str = "") -> Role:
    """The generated role, changed: without an action, with a Deny, or without the trust of a service."""
    document = generated(owner_override=True)
    for statement in document["Policy"]["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != lacks]
    if denies:
        document["Policy"]["Statement"].append({"Effect": "Deny", "Action": denies, "Resource": on})
    trust = document["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]
    trust["Service"] = [service for service in trust["Service"] if service != distrusts]
    return role_of(document)


def permission(given_role: Role | None, **more: bool) -> Permission:
    facts: Any = {"marker": False, "tags": False, "acl": False, "owner_override": False, "batch": False, **more}
    return permissions.permission_to_send(given_role, source=SOURCE, destination=DESTINATION, key="a/k", **facts)


# -- 6.2: names


@pytest.mark.parametrize(
    ("source", "destination", "name"),
    [
        ("src", "dst", "replication_role_for_src_to_dst"),
        (
            "gimbal-sightings",
            "gimbal-sightings-virginia",
            "replication_role_for_gimbal-sightings_to_gimbal-sightings-virgin",
        ),
        ("s" * 63, "d" * 63, "replication_role_for_" + "s" * 43),
    ],
)
def test_generated_names_are_the_consoles(source: str, destination: str, name: str) -> None:
    assert roles.generated_name(source, destination) == name
    assert len(name) <= 64


def test_pairs_that_collide_get_names_of_their_own() -> None:
    name = roles.generated_name("s" * 63, "d" * 63)
    pairs = [("east/" + "s" * 63, "west/" + "d" * 63), ("east/" + "s" * 63, "west/e" + "d" * 62), ("a/s", "b/d")]
    names = {roles.distinct_name(name, pair) for pair in pairs}
    assert len(names) == 3
    assert all(len(each) == 64 and each.startswith(name[:55] + "-") for each in names)
    assert roles.distinct_name(name, pairs[0]) == roles.distinct_name(name, pairs[0])
    assert re.fullmatch(r"courier-[0-9a-f]{8}", roles.distinct_name("courier", pairs[0]))


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a b", "ü", "a\n"])
def test_names_that_iam_would_not_have(name: str) -> None:
    with pytest.raises(Refused, match=r"^ValidationError: "):
        roles.generate(name, SOURCE, [DESTINATION])


# -- 6.1, 6.3: what is generated


def test_the_generated_role_is_what_the_document_lists_and_nothing_else() -> None:
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": ["s3.amazonaws.com", "batchoperations.s3.amazonaws.com"]},
        "Action": "sts:AssumeRole",
    }
    on_source = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
    on_source_objects = [
        *("s3:GetObjectVersionForReplication", "s3:GetObjectVersionAcl", "s3:GetObjectVersionTagging"),
        *("s3:GetObjectRetention", "s3:GetObjectLegalHold", "s3:InitiateReplication"),
    ]
    on_destination_objects = ["s3:ReplicateObject", "s3:ReplicateDelete", "s3:ReplicateTags"]
    assert generated() == {
        "RoleName": "courier",
        "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
        "Policy": {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": on_source, "Resource": ["arn:aws:s3:east::src"]},
                {"Effect": "Allow", "Action": on_source_objects, "Resource": ["arn:aws:s3:east::src/*"]},
                {"Effect": "Allow", "Action": on_destination_objects, "Resource": ["arn:aws:s3:west::dst/*"]},
            ],
        },
    }


def test_the_generated_role_permits_everything_between_its_buckets_but_the_owner_override() -> None:
    found = role_of(generated())
    assert found.trusted == {"s3.amazonaws.com", "batchoperations.s3.amazonaws.com"}
    assert (found.uid, found.gid) == (None, None)
    for facts in ({"tags": True, "acl": True}, {"marker": True}, {"batch": True}, {"large": True}):
        assert permission(found, **facts) == Permission("", with_tags=True)
    assert permission(found, owner_override=True).reason == "DstPutObjectNotPermitted"
    assert not permission(role_of(generated(owner_override=True)), owner_override=True).reason


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        ("east/other", DESTINATION, "SrcBucketReplicationConfigMissing"),
        ("west/src", DESTINATION, "SrcBucketReplicationConfigMissing"),
        (SOURCE, "west/other", "DstPutObjectNotPermitted"),
        (SOURCE, "west/dst2", "DstPutObjectNotPermitted"),
        (SOURCE, "north/dst", "DstPutObjectNotPermitted"),
        (DESTINATION, SOURCE, "SrcBucketReplicationConfigMissing"),
    ],
)
def test_the_generated_role_is_for_no_other_buckets(source: str, destination: str, reason: str) -> None:
    found = permissions.permission_to_send(
        role_of(generated()),
        source=source,
        destination=destination,
        key="::dst/k",  # no key may pass for a bucket
        marker=False,
        tags=False,
        acl=False,
        owner_override=False,
        batch=False,
    )
    assert found.reason == reason


def test_another_destination_joins_the_statement_of_the_first() -> None:
    found = roles.add_destination(generated(), SOURCE, "north/far")
    assert found == generated(DESTINATION, "north/far")
    assert roles.add_destination(found, SOURCE, "north/far") == found
    assert roles.add_destination(found, SOURCE, DESTINATION) == found


def test_adding_a_destination_keeps_manual_changes() -> None:
    """A right that was removed stays removed; the new destination has all of its own; the given document is not
    changed."""
    edited = generated()
    edited["Policy"]["Statement"][1]["Action"].remove("s3:GetObjectVersionTagging")
    edited["Policy"]["Statement"][2] = {
        "Effect": "Allow",
        "Action": "s3:ReplicateObject",
        "Resource": OBJECTS[DESTINATION],
    }
    edited["RunAs"] = {"uid": 1000, "gid": 100}
    before = copy.deepcopy(edited)
    found = dict(roles.add_destination(edited, SOURCE, "north/far"))
    assert edited == before
    assert found["RunAs"] == edited["RunAs"]
    new = {**generated()["Policy"]["Statement"][2], "Resource": ["arn:aws:s3:north::far/*"]}
    assert found["Policy"]["Statement"] == [*before["Policy"]["Statement"], new]  # type: ignore[index]
    assert roles.add_destination(edited, SOURCE, DESTINATION) == before


@pytest.mark.parametrize(
    ("resource", "changes"), [("*", False), ("arn:aws:s3:::*", False), ("arn:aws:s3:east::*", True)]
)
def test_a_role_that_permits_it_already_stays_as_it_is(resource: str, changes: bool) -> None:
    broad = {**generated(), "Policy": {"Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": resource}}}
    found = roles.add_destination(broad, SOURCE, DESTINATION)
    assert (found != broad) is changes
    assert permission(role_of(dict(found))).reason == ""


# -- the file


def test_actions_resources_services_and_statements_may_stand_alone() -> None:
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": ["sts:AssumeRole", "sts:TagSession"],
    }
    statement = {"Sid": "all", "Effect": "Deny", "Action": "s3:*", "Resource": "*"}
    found = role_of(
        {
            "RoleName": "courier",
            "AssumeRolePolicyDocument": {"Version": "2008-10-17", "Id": "trust", "Statement": trust},
            "Policy": {"Statement": statement},
            "RunAs": {"uid": 0, "gid": 4294967294},
        }
    )
    assert found == Role("courier", frozenset({"s3.amazonaws.com"}), (denying("s3:*"),), uid=0, gid=4294967294)


@pytest.mark.parametrize(
    ("statements", "trusted"),
    [
        ([("Allow", "s3.amazonaws.com", "sts:*")], {"s3.amazonaws.com"}),
        ([("Allow", "s3.amazonaws.com", "STS:assumerole")], {"s3.amazonaws.com"}),
        ([("Allow", "s3.amazonaws.com", "sts:TagSession")], set()),
        ([("Allow", ["s3.amazonaws.com", "b"], "*"), ("Deny", "b", "*")], {"s3.amazonaws.com"}),
        ([("Allow", "s3.amazonaws.com", [])], set()),
        ([("Allow", [], "*")], set()),
        ([], set()),
    ],
)
def test_whom_a_role_trusts(statements: list[Any], trusted: set[str]) -> None:
    document = generated()
    document["AssumeRolePolicyDocument"]["Statement"] = [
        {"Effect": effect, "Principal": {"Service": service}, "Action": action}
        for effect, service, action in statements
    ]
    assert role_of(document).trusted == trusted


ALLOW = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
TRUST = {"Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "*"}


def with_policy(**more: object) -> Json:
    return {**generated(), "Policy": {"Statement": {name: v for name, v in {**ALLOW, **more}.items() if v is not None}}}


def with_trust(**more: object) -> Json:
    return {**generated(), "AssumeRolePolicyDocument": {"Statement": {**TRUST, **more}}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the document must be an object"),
        ({}, 'lacks "RoleName"'),
        ({**generated(), "RoleName": "other"}, 'RoleName is "other"; it must be the name of the file'),
        ({**generated(), "Path": "/"}, 'unknown field "Path"'),
        ({**generated(), "Policy": {}}, 'Policy lacks "Statement"'),
        ({**generated(), "Policy": {"Version": "2012-10-18", "Statement": []}}, "Policy.Version must be"),
        ({**generated(), "Policy": {"Statement": "all"}}, "Policy.Statement must be an object"),
        (with_policy(Effect="allow"), 'Policy.Statement.Effect must be "Allow" or "Deny"'),
        (with_policy(Effect=None), 'Policy.Statement lacks "Effect"'),
        (with_policy(Action=None), 'Policy.Statement lacks "Action"'),
        (with_policy(Resource=None), 'Policy.Statement lacks "Resource"'),
        (with_policy(NotAction="s3:*"), "NotAction: fsrepl's policies have"),
        (with_policy(NotResource="*"), "NotResource: fsrepl's policies have"),
        (with_policy(Condition={}), "Condition: fsrepl's policies have"),
        (with_policy(Principal="*"), 'unknown field "Principal"'),
        (with_policy(Actions=["s3:*"]), 'unknown field "Actions"; did you mean "Action"'),
        (with_policy(Action=["s3:*", 1]), r"Action\[1\] must be a string, not 1"),
        (with_policy(Action="ReplicateObject"), 'Action "ReplicateObject" must be SERVICE:NAME'),
        (with_policy(Resource="west/dst"), 'Resource "west/dst" must be arn:'),
        (with_policy(Resource="arn:aws:s3:*"), "must be arn:"),
        (with_policy(Resource="arn:aws:s3:::dst/${aws:username}"), "has a variable"),
        (with_trust(Condition={}), "Condition: fsrepl's policies have"),
        (with_trust(NotPrincipal={}), "NotPrincipal: fsrepl's policies have"),
        (with_trust(Principal="*"), "Principal must be an object"),
        (with_trust(Principal={"AWS": "*"}), 'unknown field "AWS"'),
        (with_trust(Principal={"Service": "*"}), "must name services"),
        ({**generated(), "RunAs": {"uid": 0}}, 'RunAs lacks "gid"'),
        ({**generated(), "RunAs": {"uid": "root", "gid": 0}}, "RunAs.uid must be a whole number"),
        ({**generated(), "RunAs": {"uid": -1, "gid": 0}}, "RunAs.uid -1 is no id"),
        ({**generated(), "RunAs": {"uid": 0, "gid": 2**32 - 1}}, "RunAs.gid 4294967295 is no id"),
    ],
)
def test_what_is_not_understood_whole_is_refused(document: Any, message: str) -> None:
    with pytest.raises(Refused, match=r"^MalformedPolicyDocument: role courier: .*" + message):
        role_of(document)


# -- 6.1: order of judgement, patterns


@pytest.mark.parametrize(
    ("statements", "verdict"),
    [
        ([], Verdict.NOT_ALLOWED),
        ([allowing("s3:A")], Verdict.ALLOWED),
        ([allowing("s3:B")], Verdict.NOT_ALLOWED),
        ([denying("s3:A")], Verdict.DENIED),
        ([allowing("s3:A"), denying("s3:A")], Verdict.DENIED),
        ([denying("s3:A"), allowing("s3:A")], Verdict.DENIED),
        ([allowing("s3:A"), denying("s3:B")], Verdict.ALLOWED),
        ([allowing("s3:A"), denying("s3:A", on="arn:aws:s3:west::dst/other")], Verdict.ALLOWED),
        ([Statement(True, (), ("*",)), Statement(True, ("*",), ())], Verdict.NOT_ALLOWED),
    ],
)
def test_a_deny_wins_then_an_allow_counts(statements: list[Statement], verdict: Verdict) -> None:
    assert may(role(*statements), "s3:A", "arn:aws:s3:west::dst/k") is verdict


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("s3:ReplicateObject", True),
        ("S3:replicateOBJECT", True),
        ("s3:*", True),
        ("*", True),
        ("s3:Replicate*", True),
        ("s3:ReplicateObjec?", True),
        ("s3:Replicate?", False),
        ("s3:ReplicateObject?", False),
        ("s3:Replicate", False),
        ("iam:*", False),
    ],
)
def test_action_patterns(pattern: str, matches: bool) -> None:
    found = may(role(allowing(pattern)), "s3:ReplicateObject", "arn:aws:s3:west::dst/k")
    assert found is (Verdict.ALLOWED if matches else Verdict.NOT_ALLOWED)


@pytest.mark.parametrize(
    ("pattern", "resource", "matches"),
    [
        ("*", "arn:aws:s3:west::dst/k", True),
        ("arn:aws:s3:west::dst/*", "arn:aws:s3:west::dst/k", True),
        ("arn:aws:s3:west::dst/*", "arn:aws:s3:west::dst/a/b\nc", True),
        ("arn:aws:s3:west::dst/*", "arn:aws:s3:west::dst/\udcff", True),
        ("arn:aws:s3:west::dst/*", "arn:aws:s3:west::dst", False),
        ("arn:aws:s3:west::dst/*", "arn:aws:s3:east::dst/k", False),
        ("arn:aws:s3:west::dst", "arn:aws:s3:west::dst", True),
        ("arn:aws:s3:west::dst", "arn:aws:s3:west::dst/k", False),
        ("arn:aws:s3:west::dst*", "arn:aws:s3:west::dst2/k", True),
        ("arn:aws:s3:west::dst/K", "arn:aws:s3:west::dst/k", False),
        ("arn:aws:s3:west::dst/?", "arn:aws:s3:west::dst/k", True),
        ("arn:aws:s3:west::dst/?", "arn:aws:s3:west::dst/kk", False),
        ("arn:aws:s3:west::dst/[k]", "arn:aws:s3:west::dst/k", False),
        ("arn:aws:s3:west::dst/[k]", "arn:aws:s3:west::dst/[k]", True),
        ("arn:aws:s3:west::dst/a*b*c", "arn:aws:s3:west::dst/a/b/c", True),
        ("arn:aws:s3:we?t::d.t/k", "arn:aws:s3:west::dst/k", False),
        # S3's own spelling: the bucket of that name in any region, and no key that looks like it
        ("arn:aws:s3:::dst/*", "arn:aws:s3:west::dst/k", True),
        ("arn:aws:s3:::dst/*", "arn:aws:s3:north-1::dst/k", True),
        ("arn:aws:s3:::*", "arn:aws:s3:west::dst", True),
        ("arn:aws:s3:::dst/*", "arn:aws:s3:west::other/::dst/k", False),
        ("arn:aws:s3:*::dst/*", "arn:aws:s3:west::dst/k", True),
        ("arn:aws:s3:*::dst/*", "arn:aws:s3:west::other/::dst/k", False),
        ("arn:aws:s3:w*:*:dst/*", "arn:aws:s3:west::dst/k", True),
        ("arn:*:s3:::dst/*", "arn:aws:s3:west::dst/k", True),
        ("arn:aws:kms:::dst/*", "arn:aws:s3:west::dst/k", False),
    ],
)
def test_resource_patterns(pattern: str, resource: str, matches: bool) -> None:
    found = may(role(denying("*", on=pattern)), "s3:ReplicateObject", resource)
    assert found is (Verdict.DENIED if matches else Verdict.NOT_ALLOWED)


def test_a_pattern_of_many_stars_is_matched_fast() -> None:
    pattern = "arn:aws:s3:west::dst/" + "*a" * 50 + "b"
    assert may(role(denying("*", on=pattern)), "s3:A", "arn:aws:s3:west::dst/" + "a" * 1000) is Verdict.NOT_ALLOWED


ACTIONS = st.sampled_from(["s3:ReplicateObject", "s3:replicate*", "s3:*", "*", "s3:List?ucket", "s3:ListBucket"])
RESOURCES = st.sampled_from(["*", "arn:aws:s3:::dst/*", "arn:aws:s3:west::dst/k*", "arn:aws:s3:east::src"])
STATEMENTS = st.lists(
    st.builds(
        Statement,
        st.booleans(),
        st.lists(ACTIONS, min_size=1, max_size=3).map(tuple),
        st.lists(RESOURCES, min_size=1, max_size=3).map(tuple),
    ),
    max_size=5,
)


@given(STATEMENTS, ACTIONS.filter(lambda action: "*" not in action), st.sampled_from(["dst/k", "dst/other", "src"]))
def test_no_statement_outweighs_a_deny(statements: list[Statement], action: str, place: str) -> None:
    """The verdict is that of the single statements, in any order, with DENIED before ALLOWED."""
    resource = f"arn:aws:s3:west::{place}"
    alone = [may(role(statement), action, resource) for statement in statements]
    expected = next((v for v in (Verdict.DENIED, Verdict.ALLOWED) if v in alone), Verdict.NOT_ALLOWED)
    assert may(role(*statements), action, resource) is expected
    assert may(role(*reversed(statements)), action, resource) is expected
    assert may(role(*statements, denying(action)), action, resource) is Verdict.DENIED


# -- 6.1: missing permissions, and the result of the delivery


@pytest.mark.parametrize(
    ("action", "facts", "reason"),
    [
        ("s3:GetReplicationConfiguration", {}, "SrcBucketReplicationConfigMissing"),
        ("s3:GetReplicationConfiguration", {"marker": True}, "SrcBucketReplicationConfigMissing"),
        ("s3:ListBucket", {"marker": True}, "SrcHeadObjectNotPermitted"),
        ("s3:ListBucket", {}, ""),
        ("s3:GetObjectVersionForReplication", {}, "SrcGetObjectNotPermitted"),
        ("s3:GetObjectVersionForReplication", {"marker": True}, ""),
        ("s3:GetObjectVersionAcl", {"acl": True}, "SrcGetAclNotPermitted"),
        ("s3:GetObjectVersionAcl", {}, ""),
        ("s3:GetObjectVersionAcl", {"acl": True, "owner_override": True}, ""),
        ("s3:ReplicateObject", {}, "DstPutObjectNotPermitted"),
        ("s3:ReplicateObject", {"large": True}, "DstMultipartInitNotPermitted"),
        ("s3:ReplicateObject", {"marker": True}, ""),
        ("s3:ReplicateDelete", {"marker": True}, "DstDelObjNotPermitted"),
        ("s3:ReplicateDelete", {}, ""),
        ("s3:ObjectOwnerOverrideToBucketOwner", {"owner_override": True}, "DstPutObjectNotPermitted"),
        ("s3:ObjectOwnerOverrideToBucketOwner", {}, ""),
        ("s3:InitiateReplication", {"batch": True}, "InitiateReplicationNotPermitted"),
        ("s3:InitiateReplication", {}, ""),
    ],
)
def test_what_is_missing_or_denied_is_the_reason(action: str, facts: dict[str, bool], reason: str) -> None:
    assert permission(changed(lacks=action), **facts).reason == reason
    assert permission(changed(denies=action), **facts).reason == reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Permission("", with_tags=True)),
        ({"lacks": "s3:GetObjectVersionTagging"}, Permission("", with_tags=False)),
        ({"denies": "s3:GetObjectVersionTagging"}, Permission("SrcGetTaggingNotPermitted")),
        ({"lacks": "s3:ReplicateTags"}, Permission("", with_tags=False)),
        ({"denies": "s3:ReplicateTags"}, Permission("", with_tags=False)),
        ({"denies": "s3:ReplicateTags", "on": "arn:aws:s3:west::dst/b/*"}, Permission("", with_tags=True)),
    ],
)
def test_tags_stay_behind_unless_reading_them_is_denied(changes: dict[str, str], expected: Permission) -> None:
    """The [I] notes below the table; for an object without tags none of it matters."""
    assert permission(changed(**changes), tags=True) == expected
    assert permission(changed(**changes)) == Permission("", with_tags=True)


def test_a_role_that_is_missing_or_trusts_nobody_cannot_be_assumed() -> None:
    assert permission(None).reason == "AssumeRoleNotPermitted"
    assert permission(changed(distrusts=roles.REPLICATOR)).reason == "AssumeRoleNotPermitted"
    batch = changed(distrusts=roles.BATCH)
    assert permission(batch).reason == ""
    assert permission(batch, batch=True).reason == "InitiateReplicationNotPermitted"


def test_roles_of_2017_read_with_another_action() -> None:
    """s3-semantics, 6.1: s3:GetObjectVersion, at that time. A Deny of today's action still wins."""
    others = [allowing("s3:GetReplicationConfiguration", "s3:ReplicateObject", "s3:GetObjectVersion")]
    assert permission(role(*others)).reason == ""
    denied = denying("s3:GetObjectVersionForReplication")
    assert permission(role(*others, denied)).reason == "SrcGetObjectNotPermitted"


def test_permissions_may_be_for_some_keys_only() -> None:
    """A Deny on other keys has no effect; here the key is a/k."""
    assert permission(changed(denies="s3:*", on="arn:aws:s3:::dst/a*")).reason == "DstPutObjectNotPermitted"
    assert permission(changed(denies="s3:*", on="arn:aws:s3:::dst/b*")).reason == ""
