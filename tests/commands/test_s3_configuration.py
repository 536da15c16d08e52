"""Configurations and roles on a running site: s3-semantics, 1.1, 1.4, 1.5, 6.1, 6.2, and S6 to S21 of section 7."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands import replication as commands_replication
from fsrepl.errors import Refused, Unavailable
from fsrepl.model.version import Status, Versioning
from fsrepl.s3 import arn, replication
from tests.world import DESTINATION, SOURCE, Json, World, v1, v2

FAR, NEAR = "north/far", "east/near"
NOT_FOUND = "ReplicationConfigurationNotFoundError"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False, buckets=(SOURCE, DESTINATION, FAR, NEAR)) as found:
        found.run("bucket.create", bucket="west/plain", versioning=False)
        yield found


def put(world: World, *rules: Json, source: str = SOURCE, role: str = arn.role_arn("any")) -> Json:
    return world.run("replication.put", source=source, document={"Role": role, "Rules": list(rules)})


def saved(world: World, source: str = SOURCE) -> Json | None:
    """The configuration as it is on disk."""
    path = world.path(".fsrepl/replication.json", source)
    return json.loads(path.read_text())["ReplicationConfiguration"] if path.exists() else None


def everything(world: World) -> dict[str, str]:
    """All documents of the site, which a refusal must leave unchanged."""
    found = [*world.home.glob("*/*/.fsrepl/*.json"), *world.settings.roles.glob("*")]
    return {str(path): path.read_text() for path in found}


# -- refusals change nothing


REFUSED: dict[str, tuple[list[Json], str]] = {
    "destination missing": ([v1(to="west/none")], "InvalidRequest"),
    "destination without versioning": ([v1(to="west/plain")], "InvalidRequest"),
    "destination is the source": ([v1(to=SOURCE)], "InvalidRequest"),
    "destination is no ARN": ([v1() | {"Destination": {"Bucket": "west/dst"}}], "InvalidArgument"),
    "two destinations in V1": ([v1("a"), v1("b", to=FAR)], "InvalidRequest"),
    "overlapping prefixes in V1": ([v1("x"), v1("x/y")], "InvalidRequest"),
    "no rules": ([], "MalformedXML"),
    "a word in the wrong case": ([v1(status="enabled")], "MalformedXML"),
    "V1 and V2": ([v1("a"), v2("b")], "InvalidRequest"),
    "priority twice": ([v2("a", 1), v2("b", 1, to=FAR)], "InvalidRequest"),
    "markers with tags": ([v2(tags={"a": "1"}, markers=True)], "InvalidRequest"),
    "existing objects": ([v2() | {"ExistingObjectReplication": {"Status": "Enabled"}}], "MalformedXML"),
    "another's account": (
        [v2(Account="123456789012", AccessControlTranslation={"Owner": "Destination"})],
        "InvalidArgument",
    ),
    "KMS": ([v2() | {"SourceSelectionCriteria": {"SseKmsEncryptedObjects": {"Status": "Enabled"}}}], "InvalidRequest"),
}


@pytest.mark.parametrize("configured", [False, True], ids=["", "over another"])
@pytest.mark.parametrize(("rules", "code"), REFUSED.values(), ids=list(REFUSED))
def test_a_refused_document_changes_nothing(world: World, rules: list[Json], code: str, configured: bool) -> None:
    """1.4, one of each kind; the whole table is in test_config.py."""
    if configured:
        world.configure({**v1("kept/"), "ID": "kept"})
    world.settle()
    before = everything(world)
    document = {"Role": arn.role_arn("any"), "Rules": rules}
    assert world.refused("replication.put", source=SOURCE, document=document) == code
    world.settle()
    assert everything(world) == before
    world.write("kept/k", b"data")
    world.settle()
    assert set(world.tree(DESTINATION)) == ({"kept/k"} if configured else set())


@pytest.mark.parametrize("operation", ["disable", "enable", "backfill"])
def test_without_a_configuration(world: World, operation: str) -> None:
    """1.4: the replication configuration was not found."""
    assert world.refused(f"replication.{operation}", source=SOURCE) == NOT_FOUND
    with pytest.raises(Refused, match=f"^{NOT_FOUND}"):
        commands_replication.configuration(world.engine.site, SOURCE)


def test_the_removal_of_no_configuration_succeeds(world: World) -> None:
    """1: DELETE answers 204 whether or not there is one; a bucket has to be there."""
    before = everything(world)
    assert world.run("replication.rm", source=SOURCE) == {"Bucket": SOURCE, "Removed": False}
    assert everything(world) == before
    world.configure(v1())
    assert world.run("replication.rm", source=SOURCE) == {"Bucket": SOURCE, "Removed": True}
    assert saved(world) is None
    assert world.refused("replication.rm", source="east/none") == "NoSuchBucket"


@pytest.mark.parametrize("state", [Versioning.OFF, Versioning.SUSPENDED])
def test_both_buckets_must_be_versioned_when_it_is_put(world: World, state: Versioning) -> None:
    """S6, 1.4."""
    source, destination = ("west/plain", FAR) if state is Versioning.OFF else (DESTINATION, FAR)
    if state is Versioning.SUSPENDED:
        world.run("versioning.set", bucket=source, status=state)
    for pair in ((source, destination), (destination, source)):
        document = {"Role": arn.role_arn("any"), "Rules": [v1(to=pair[1])]}
        assert world.refused("replication.put", source=pair[0], document=document) == "InvalidRequest"
        assert world.refused("replication.enable", source=pair[0], destination=pair[1]) == "InvalidRequest"
    assert not world.settings.roles.exists() or os.listdir(world.settings.roles) == []


def test_versioning_of_a_configured_source_is_not_suspended(world: World) -> None:
    """Section 0, 11: also with a disabled configuration; once it is removed, versioning may be suspended."""
    world.configure(v1())
    suspend = {"bucket": SOURCE, "status": "Suspended"}
    assert world.refused("versioning.set", **suspend) == "InvalidBucketState"
    world.run("replication.disable", source=SOURCE)
    assert world.refused("versioning.set", **suspend) == "InvalidBucketState"
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    world.run("replication.rm", source=SOURCE)
    world.run("versioning.set", **suspend)


# -- documents


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_put_replaces_the_whole_document(world: World, wrapped: bool) -> None:
    """1: with or without the wrapper of `aws s3api`; S3's own output is accepted."""
    first = {**v2("a/", 3, StorageClass="GLACIER_IR", to=FAR), "ID": "first"}
    put(world, first)
    second = {**v2("", 1, markers=True), "ID": "second"}
    document: Any = {"Role": arn.role_arn("any"), "Rules": [second]}
    world.run(
        "replication.put", source=SOURCE, document={"ReplicationConfiguration": document} if wrapped else document
    )
    assert saved(world) == document
    printed = replication.render_aws(commands_replication.configuration(world.engine.site, SOURCE).document)
    assert printed["Rules"][0]["Destination"]["Bucket"] == "arn:aws:s3:::dst"
    world.run("replication.rm", source=SOURCE)
    assert saved(world) is None
    world.run("replication.put", source=SOURCE, document={"ReplicationConfiguration": printed})
    assert saved(world) == document


def test_a_bucket_s_name_alone_must_be_one_region_s(world: World) -> None:
    """design.md, 4."""
    rule = v1() | {"Destination": {"Bucket": "arn:aws:s3:::dst"}}
    put(world, rule)
    assert saved(world)["Rules"][0]["Destination"]["Bucket"] == "arn:aws:s3:west::dst"  # type: ignore[index]
    world.run("bucket.create", bucket="north/dst", versioning=True)
    document = {"Role": arn.role_arn("any"), "Rules": [rule]}
    assert world.refused("replication.put", source=SOURCE, document=document) == "InvalidArgument"
    world.configure(v1())
    world.write("k", b"data")
    world.settle()
    assert (set(world.tree(DESTINATION)), set(world.tree("north/dst"))) == ({"k"}, set())


def test_rules_without_a_name_get_one(world: World) -> None:
    """1.1, ID: unique, and the same when it is put again."""
    rules = [v2("a", 1), v2("b", 2) | {"ID": ""}, v2("c", 3) | {"ID": "mine"}]
    put(world, *copy.deepcopy(rules))
    names = [rule["ID"] for rule in saved(world)["Rules"]]  # type: ignore[index]
    assert len(set(names)) == 3
    assert all(names)
    assert names[2] == "mine"
    put(world, *copy.deepcopy(rules))
    assert [rule["ID"] for rule in saved(world)["Rules"]] == names  # type: ignore[index]


@pytest.mark.parametrize(
    "role", ["arn:aws:iam::000000000000:role/nobody-has-this", "arn:aws:iam::123456789012:role/a/b/x"]
)
def test_whether_the_role_is_there_shows_when_copying(world: World, role: str) -> None:
    """1.4, not checked at PUT; S20."""
    put(world, v1(), role=role)
    world.write("k", b"data")
    world.settle()
    assert world.current("k").deliveries[DESTINATION].reason == "AssumeRoleNotPermitted"


# -- edited by hand


def edit(world: World, text: str) -> None:
    path = world.path(".fsrepl/replication.json")
    path.with_name("new").write_text(text)
    path.with_name("new").rename(path)


def test_an_edited_document_is_in_effect_at_once(world: World) -> None:
    """design.md, 4."""
    world.configure({**v1("a/"), "ID": "one"})
    world.settle()
    document = saved(world)
    assert document
    document["Rules"][0]["Prefix"] = "b/"
    edit(world, json.dumps(document))
    for key in ("a/k", "b/k"):
        world.write(key, b"data")
    world.settle()
    assert set(world.tree(DESTINATION)) == {"b/k"}
    world.path(".fsrepl/replication.json").unlink()
    world.write("b/later", b"data")
    world.settle()
    assert set(world.tree(DESTINATION)) == {"b/k"}
    assert world.refused("replication.disable", source=SOURCE) == NOT_FOUND


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"Rules": []}', json.dumps({"Role": arn.role_arn("r"), "Rules": [v1("x"), v1("x/y")]})],
)
def test_an_invalid_document_takes_its_bucket_alone_offline(world: World, text: str) -> None:
    """design.md, 5: it is named, nothing is captured or lost, and the bucket continues by itself once the document is
    valid."""
    world.configure(v1())
    world.configure(v1(to=SOURCE), source=FAR)
    world.write("before", b"data")
    world.settle()
    good = world.path(".fsrepl/replication.json").read_text()
    edit(world, text)
    world.write("meanwhile", b"data")
    world.write("k", b"data", FAR)
    world.settle()
    bucket = world.engine.site.buckets[SOURCE]
    assert "replication.json" in bucket.trouble or "not valid" in bucket.trouble
    assert world.current("k", FAR).status is Status.PENDING
    with pytest.raises(Unavailable):
        world.run("replication.disable", source=SOURCE)
    edit(world, good)
    world.settle()
    assert bucket.trouble == ""
    assert set(world.tree(DESTINATION)) == {"before", "meanwhile"}
    assert set(world.tree(SOURCE)) == {"before", "meanwhile", "k"}


# -- enable: the console's five steps


def enable(world: World, *, source: str = SOURCE, destination: str = DESTINATION, **more: object) -> Json:
    return world.run("replication.enable", source=source, destination=destination, **more)


def test_enable_writes_role_and_rule_at_once(world: World) -> None:
    """S9 to S21: V1, the whole bucket, the generated role with its exact policy."""
    answer = enable(world)
    assert answer["Role"] == "replication_role_for_src_to_dst"
    assert saved(world) == {
        "Role": "arn:aws:iam::000000000000:role/service-role/replication_role_for_src_to_dst",
        "Rules": [
            {
                "ID": "src-to-dst",
                "Prefix": "",
                "Status": "Enabled",
                "Destination": {"Bucket": "arn:aws:s3:west::dst"},
            }
        ],
    }
    role = json.loads((world.settings.roles / "replication_role_for_src_to_dst.json").read_text())
    statements = role["Policy"]["Statement"]
    assert {s["Effect"] for s in statements} == {"Allow"}
    granted = {resource: set(s["Action"]) for s in statements for resource in s["Resource"]}
    assert granted == {
        "arn:aws:s3:east::src": {"s3:GetReplicationConfiguration", "s3:ListBucket"},
        "arn:aws:s3:east::src/*": {
            "s3:GetObjectVersionForReplication", "s3:GetObjectVersionAcl", "s3:GetObjectVersionTagging",
            "s3:GetObjectRetention", "s3:GetObjectLegalHold", "s3:InitiateReplication",
        },
        "arn:aws:s3:west::dst/*": {"s3:ReplicateObject", "s3:ReplicateDelete", "s3:ReplicateTags"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("destination", "word"),
    [("west/none", "west/none"), ("west/plain", "west/plain"), (NEAR, "another region"), (SOURCE, "source")],
)
def test_enable_says_what_is_wrong_with_a_destination_and_what_could_be_chosen(
    world: World, destination: str, word: str
) -> None:
    """S6, S10, S11: a destination in the same region is refused by this command."""
    with pytest.raises(Refused, match=r"^InvalidRequest") as caught:
        enable(world, destination=destination)
    assert word in str(caught.value)
    assert f"{FAR}, {DESTINATION}" in str(caught.value) or destination == "west/plain"
    assert saved(world) is None
    assert not world.settings.roles.exists() or os.listdir(world.settings.roles) == []


def test_a_region_pair_of_the_same_region_can_be_put(world: World) -> None:
    """1.4, last sentence: SRR; the replica shares no storage with its source (G10)."""
    world.configure(v1(to=NEAR))
    world.write("k", b"x" * 5000)
    world.settle()
    assert world.tree(NEAR) == world.tree(SOURCE)
    assert world.path("k", NEAR).stat().st_ino != world.path("k").stat().st_ino


def test_enable_dry_run_and_refusals_leave_nothing(world: World) -> None:
    """S17: if any part fails, no part stays."""
    enable(world, dry_run=True)
    assert saved(world) is None
    assert (
        world.refused("replication.enable", source=SOURCE, destination=DESTINATION, prefixes=["a", "a/b"])
        == "InvalidRequest"
    )
    assert (
        world.refused("replication.enable", source=SOURCE, destination=DESTINATION, storage_class="ICE")
        == "MalformedXML"
    )
    assert saved(world) is None
    assert not world.settings.roles.exists() or os.listdir(world.settings.roles) == []
    enable(world)
    before = everything(world)
    assert world.refused("replication.enable", source=SOURCE, destination=FAR) == "InvalidRequest"
    enable(world, destination=FAR, replace=True, dry_run=True)
    enable(world, destination=FAR, add=True, dry_run=True)
    assert everything(world) == before


def test_a_role_for_a_pair_can_always_be_generated(world: World) -> None:
    """S18: the generated policy names these two buckets, however often --add has given such a role other
    destinations."""
    names = set()
    for _ in range(4):
        name = str(enable(world, replace=True)["Role"])
        text = (world.settings.roles / f"{name}.json").read_text()
        assert ("west::dst/*" in text, "north::far" in text) == (True, False)
        names.add(name)
        enable(world, destination=FAR, add=True)
    assert len(names) == 4


@pytest.mark.parametrize("theirs", [False, True], ids=["as it was made", "as somebody has changed it"])
def test_a_destination_joins_a_generated_role_and_no_other(world: World, theirs: bool) -> None:
    """Section 5, --add: a role that a person has written, or changed under a name of its own, keeps its permissions."""
    world.run("role.create", name="courier", source=SOURCE, destinations=[DESTINATION])
    file = world.settings.roles / "courier.json"
    if theirs:
        file.write_text(file.read_text().replace('          "s3:ReplicateDelete",\n', ""))
    before = file.read_text()
    enable(world, role="courier")
    answer = enable(world, destination=FAR, add=True)
    assert (answer["Role"], answer["Created"], answer["Extended"]) == ("courier", False, not theirs)
    assert (file.read_text() == before) == theirs
    world.write("k", b"data")
    world.settle()
    assert "k" in world.tree(DESTINATION)
    assert ("k" in world.tree(FAR)) == (not theirs)


def test_enable_add_and_replace(world: World) -> None:
    """S13; design.md, 5: prefixes stay V1; another destination makes it V2 with markers, and joins the role."""
    enable(world, prefixes=["a/"], id="first")
    enable(world, prefixes=["b/"], id="second", add=True, storage_class="STANDARD_IA")
    rules = saved(world)["Rules"]  # type: ignore[index]
    assert [(r["ID"], r["Prefix"], r["Destination"].get("StorageClass")) for r in rules] == [
        ("first", "a/", None), ("second", "b/", "STANDARD_IA"),
    ]  # fmt: skip
    enable(world, destination=FAR, id="third", add=True)
    rules = saved(world)["Rules"]  # type: ignore[index]
    assert all("Filter" in r and r["DeleteMarkerReplication"] == {"Status": "Enabled"} for r in rules)
    assert len({r["Priority"] for r in rules}) == 3
    for key in ("a/k", "b/k", "c/k"):
        world.write(key, b"data")
    world.settle()
    assert set(world.tree(DESTINATION)) == {"a/k", "b/k"}
    assert set(world.tree(FAR)) == {"a/k", "b/k", "c/k"}
    for key in ("a/k", "b/k"):
        world.unlink(key)
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert set(world.tree(FAR)) == {"c/k"}
    enable(world, destination=FAR, replace=True)
    [rule] = saved(world)["Rules"]  # type: ignore[index]
    assert (rule["Prefix"], rule["Destination"]["Bucket"]) == ("", "arn:aws:s3:north::far")
    world.write("d", b"data")
    world.settle()
    assert (set(world.tree(DESTINATION)), set(world.tree(FAR))) == (set(), {"c/k", "d"})


def test_disable_keeps_the_rules_and_enable_runs_them_again(world: World) -> None:
    """S9; 1.5."""
    enable(world, prefixes=["a/", "b/"])
    before = saved(world)
    world.run("replication.disable", source=SOURCE)
    assert [r["Status"] for r in saved(world)["Rules"]] == ["Disabled"] * 2  # type: ignore[index]
    world.run("replication.enable", source=SOURCE)
    assert saved(world) == before


def test_rules_can_be_disabled_while_their_destination_is_away(world: World) -> None:
    """1.5: by a command that has never seen the destination, too."""
    enable(world)
    world.away("west")
    world.restart()
    world.run("replication.disable", source=SOURCE)
    world.run("replication.enable", source=SOURCE)
    document = saved(world)
    world.run("replication.put", source=SOURCE, document=document)
    world.run("replication.rm", source=SOURCE)
    with pytest.raises(Unavailable):
        world.run("replication.put", source=SOURCE, document=document)
    with pytest.raises((Unavailable, Refused)):
        enable(world)
    assert saved(world) is None


# -- 6.2: generated roles


def test_names_are_cut_at_64_and_pairs_that_collide_share_none(world: World) -> None:
    """Section 0, 15: no role is shared by accident, and each is for its pair alone."""
    long = "a" * 40
    for bucket in (f"east/{long}-one", f"west/{long}-one", f"west/{long}-two", f"north/{long}-one"):
        world.run("bucket.create", bucket=bucket, versioning=True)
    names = []
    for source, destination in (
        (f"east/{long}-one", f"west/{long}-two"),
        (f"west/{long}-one", f"east/{long}-one"),
        (f"north/{long}-one", f"west/{long}-one"),
    ):
        names.append(str(enable(world, source=source, destination=destination)["Role"]))
        world.write("k-" + source.partition("/")[0], b"data", source)
    assert names[0] == f"replication_role_for_{long}-one_to_{long}-two"[:64]
    assert len(set(names)) == 3
    assert {len(name) for name in names} == {64}
    world.settle()
    assert set(world.tree(f"west/{long}-two")) == {"k-east"}
    assert set(world.tree(f"east/{long}-one")) == {"k-east", "k-west"}
    assert world.statuses(f"north/{long}-one") == {Status.COMPLETED}


def test_an_existing_role_of_another_policy_is_not_overwritten(world: World) -> None:
    """6.2, our choice."""
    world.settings.roles.mkdir(exist_ok=True)
    path = world.settings.roles / "replication_role_for_src_to_dst.json"
    world.run("role.create", name=path.stem, source=NEAR, destinations=[FAR])
    before = path.read_text()
    answer = enable(world)
    assert answer["Role"] != path.stem
    assert path.read_text() == before
    world.write("k", b"data")
    world.settle()
    assert set(world.tree(DESTINATION)) == {"k"}


def test_an_existing_role_is_taken_as_it_is(world: World) -> None:
    """S16, S20: missing permissions show when copying."""
    world.run("role.create", name="mine", source=SOURCE, destinations=[FAR])
    before = (world.settings.roles / "mine.json").read_text()
    enable(world, role="mine")
    assert os.listdir(world.settings.roles) == ["mine.json"]
    assert (world.settings.roles / "mine.json").read_text() == before
    world.write("k", b"data")
    world.settle()
    assert world.current("k").deliveries[DESTINATION].reason == "DstPutObjectNotPermitted"


# -- 6.1: permissions, through a site. test_roles.py has them all


def policy(world: World, *statements: tuple[str, str, str]) -> None:
    """Give the role of the source this policy alone: (effect, action, resource) each."""
    path = world.settings.roles / "courier-east-src.json"
    role = json.loads(path.read_text())
    role["Policy"]["Statement"] = [{"Effect": e, "Action": a, "Resource": r} for e, a, r in statements]
    path.write_text(json.dumps(role))


ALLOWED = ("Allow", "s3:*", "*")
ANY = "arn:aws:s3:::"


@pytest.mark.parametrize(
    ("statements", "reason", "tagged"),
    [
        ([ALLOWED], "", True),
        ([("Allow", "*", "*")], "", True),
        (
            [("Allow", "s3:*", ANY + "src"), ("Allow", "s3:*", ANY + "src/*"), ("Allow", "s3:*", ANY + "dst/*")],
            "",
            True,
        ),
        ([("Allow", "s3:*", "arn:aws:s3:*::*")], "", True),
        (
            [("Allow", "s3:*", "arn:aws:s3:east::src*"), ("Allow", "s3:Replicate*", "arn:aws:s3:west::dst/k?y")],
            "",
            True,
        ),
        ([("Allow", "s3:*", "arn:aws:s3:east::*")], "DstPutObjectNotPermitted", True),
        ([("Allow", "s3:*", "arn:aws:s3:west::*")], "SrcBucketReplicationConfigMissing", True),
        ([ALLOWED, ("Deny", "s3:ReplicateObject", "*")], "DstPutObjectNotPermitted", True),
        ([ALLOWED, ("Deny", "s3:Replicate*", ANY + "dst/other*")], "", True),
        ([("Deny", "s3:GetObjectVersion*", ANY + "src/*"), ALLOWED], "SrcGetObjectNotPermitted", True),
        ([ALLOWED, ("Deny", "s3:GetObjectVersionTagging", "*")], "SrcGetTaggingNotPermitted", True),
        ([ALLOWED, ("Deny", "s3:ReplicateTags", "*")], "", False),
        (
            [
                ("Allow", "s3:GetReplicationConfiguration", "*"),
                ("Allow", "s3:GetObjectVersion", "*"),
                ("Allow", "s3:ReplicateObject", "*"),
            ],
            "",
            False,
        ),
        ([], "SrcBucketReplicationConfigMissing", True),
    ],
)
def test_what_a_policy_permits(world: World, statements: list[tuple[str, str, str]], reason: str, tagged: bool) -> None:
    """6.1: an explicit deny wins, then an allow counts; tags that may not be read are left out, denied ones fail the
    delivery."""
    world.configure(v1())
    policy(world, *statements)
    world.drop("key", b"data", tags={"class": "blue"})
    world.settle()
    recorded = world.current("key").deliveries[DESTINATION]
    assert recorded.reason == reason
    assert (recorded.status is Status.COMPLETED) is (reason == "")
    if not reason:
        assert world.current("key", DESTINATION).tags == ({"class": "blue"} if tagged else {})
    assert world.current("key").tags == {"class": "blue"}


def _unreadable(text: str) -> str:
    return text[: len(text) // 2]


def _of_another_name(text: str) -> str:
    return text.replace('"RoleName": "courier-east-src"', '"RoleName": "other"')


def _with_a_condition(text: str) -> str:
    return text.replace('"Effect": "Allow",', '"Effect": "Allow", "Condition": {},', 1)


@pytest.mark.parametrize(
    "change", [_unreadable, _of_another_name, _with_a_condition], ids=lambda f: f.__name__.strip("_")
)
def test_a_role_that_is_only_partly_understood_permits_nothing(world: World, change: Callable[[str], str]) -> None:
    """6.3: half of a policy is no policy."""
    world.configure(v1())
    path = world.settings.roles / "courier-east-src.json"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    world.write("k", b"data")
    world.settle()
    assert world.current("k").deliveries[DESTINATION].reason == "AssumeRoleNotPermitted"
    path.write_text(text)
    world.write("k", b"other")
    world.settle()
    assert world.current("k").status is Status.COMPLETED
