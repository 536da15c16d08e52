"""Permissions that a role needs for edits of metadata, and the handling of tags, ACLs and owners without them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands import doctor_facts
from fsrepl.model.version import Status
from fsrepl.s3 import arn, roles
from tests.world import DESTINATION, SOURCE, World, v1

ROOT = os.geteuid() == 0
COMPLETED, FAILED = Status.COMPLETED, Status.FAILED
ACL_NAME = "system.posix_acl_access"
NONE = 0xFFFFFFFF
TAGGED, BARE = {"class": "x"}, dict[str, str]()


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def change_role(world: World, *, lacks: str = "", denies: str = "") -> None:
    """Change the generated role: without an action, or with a Deny of one."""
    path = next(world.settings.roles.glob("*.json"))
    document: Any = roles.generate(path.stem, SOURCE, [DESTINATION], owner_override=True)
    for statement in document["Policy"]["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != lacks]
    if denies:
        document["Policy"]["Statement"].append({"Effect": "Deny", "Action": denies, "Resource": "*"})
    path.write_text(json.dumps(document))


def outcome(world: World, key: str = "k") -> tuple[Status | None, str]:
    version = world.current(key)
    return version.status, version.deliveries[DESTINATION].reason


def tags(world: World, bucket: str = DESTINATION) -> dict[str, str]:
    return dict(world.current("k", bucket).tags)


@pytest.mark.parametrize(
    ("change", "result", "there"),
    [
        ({"lacks": "s3:GetObjectVersionTagging"}, (COMPLETED, ""), BARE),
        ({"denies": "s3:GetObjectVersionTagging"}, (FAILED, "SrcGetTaggingNotPermitted"), None),
        ({"lacks": "s3:ReplicateTags"}, (COMPLETED, ""), BARE),
        ({"denies": "s3:ReplicateTags"}, (COMPLETED, ""), BARE),
    ],
)
def test_tags_without_permission_are_left_out(
    world: World, change: dict[str, str], result: tuple[Status, str], there: dict[str, str] | None
) -> None:
    """s3-semantics 6.1: without the permission the version has no tags, a denied read is a failure; both are final."""
    change_role(world, **change)
    world.drop("k", b"data", tags=TAGGED)
    world.settle()
    assert outcome(world) == result
    assert (tags(world) if world.of("k", DESTINATION) else None) == there
    world.stays_quiet()


@pytest.mark.parametrize("edit", [{"class": "y"}, BARE])
@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"lacks": "s3:GetObjectVersionTagging"}, (COMPLETED, "")),
        ({"denies": "s3:GetObjectVersionTagging"}, (FAILED, "SrcGetTaggingNotPermitted")),
        ({"denies": "s3:ReplicateTags"}, (COMPLETED, "")),
        ({"lacks": "s3:ReplicateObject"}, (FAILED, "DstPutObjectNotPermitted")),
        ({"lacks": "s3:GetObjectVersionForReplication"}, (FAILED, "SrcGetObjectNotPermitted")),
    ],
)
def test_edits_of_tags_without_permission_are_not_sent(
    world: World, change: dict[str, str], result: tuple[Status, str], edit: dict[str, str]
) -> None:
    """s3-semantics 6.1: an edit needs the permissions of its object; the replica keeps the tags that it has."""
    world.drop("k", b"data", tags=TAGGED)
    world.settle()
    assert tags(world) == TAGGED
    change_role(world, **change)
    if edit:
        world.run("tag.set", bucket=SOURCE, key=b"k", tags=edit)
    else:
        world.run("tag.rm", bucket=SOURCE, key=b"k", names=list(TAGGED))
    world.settle()
    assert outcome(world) == result
    assert tags(world) == TAGGED
    world.stays_quiet()
    # permitted metadata is sent, with the tags still left out
    if result[0] is COMPLETED:
        world.path("k").chmod(0o600)
        world.settle()
        assert world.look_of("k", DESTINATION)[0].mode == 0o600
        assert tags(world) == TAGGED
    change_role(world)
    world.path("k").chmod(0o640)
    world.settle()
    assert outcome(world) == (COMPLETED, "")
    assert tags(world) == tags(world, SOURCE) == edit
    world.stays_quiet()


def test_acls_that_may_not_be_read(world: World) -> None:
    """s3-semantics 6.1: SrcGetAclNotPermitted, for an object with an ACL and for an edit that removes one."""
    entries = ((1, 6, NONE), (2, 4, 1001), (4, 4, NONE), (16, 4, NONE), (32, 0, NONE))
    world.write("k", b"data")
    os.setxattr(world.path("k"), ACL_NAME, acl(*entries))
    world.settle()
    assert outcome(world) == (COMPLETED, "")
    change_role(world, lacks="s3:GetObjectVersionAcl")
    os.removexattr(world.path("k"), ACL_NAME)
    world.write("other", b"data")
    os.setxattr(world.path("other"), ACL_NAME, acl(*entries))
    world.settle()
    assert outcome(world) == outcome(world, "other") == (FAILED, "SrcGetAclNotPermitted")
    assert world.look_of("k", DESTINATION)[0].acl == acl(*entries)
    world.stays_quiet()


def test_default_acls_that_may_not_be_read(tmp_path: Path) -> None:
    """6.1: the default ACL of a directory of a tree bucket is an ACL too; what has none goes without the permission."""
    entries = ((1, 7, NONE), (2, 5, 1001), (4, 5, NONE), (16, 5, NONE), (32, 0, NONE))
    with World(tmp_path, trees=True) as world:
        change_role(world, lacks="s3:GetObjectVersionAcl")
        for name in ("bare", "given"):
            world.path(name).mkdir()
        os.setxattr(world.path("given"), "system.posix_acl_default", acl(*entries))
        world.settle()
        assert outcome(world, "bare/") == (COMPLETED, "")
        assert outcome(world, "given/") == (FAILED, "SrcGetAclNotPermitted")
        assert set(world.history(DESTINATION)) == {b"bare/"}


@pytest.mark.parametrize("lacks", ["", "s3:GetObjectVersionAcl", "s3:ReplicateTags", "s3:ReplicateObject"])
def test_the_doctor_names_what_a_role_lacks_before_a_file_needs_it(world: World, lacks: str) -> None:
    """Also what only some files need: the first file with an ACL or with tags would be the first to tell."""
    change_role(world, lacks=lacks)
    found = doctor_facts.bucket(world.engine.site, SOURCE, None, 0.0)["roles"]
    words = {"": [], "s3:GetObjectVersionAcl": ["files with an ACL", "SrcGetAclNotPermitted"],
             "s3:ReplicateTags": ["tags"], "s3:ReplicateObject": ["DstPutObjectNotPermitted"]}[lacks]  # fmt: skip
    assert len(found) == bool(lacks)
    assert all(word in found[0] for word in words)


# -- owner override


def override(world: World, *, on: bool) -> None:
    more = {"Account": "000000000000", "AccessControlTranslation": {"Owner": "Destination"}} if on else {}
    role = next(world.settings.roles.glob("*.json")).stem
    document = {"Role": arn.role_arn(role), "Rules": [{**v1(**more), "ID": "r"}]}
    world.run("replication.put", source=SOURCE, document=document)


@pytest.mark.skipif(not ROOT, reason="gives files away")
@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_owner_override(world: World, sharing: str) -> None:
    """s3-semantics 1.5, 2.1: the replica belongs to the owner of its destination's folder, with the mode and no ACL,
    and stays so."""
    if sharing != "auto":
        world.set_sharing(west=sharing)
    os.chown(world.path(bucket=DESTINATION), 77, 88)
    change_role(world)
    override(world, on=True)
    world.write("k", b"data")
    path, replica = world.path("k"), world.path("k", DESTINATION)
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    world.settle()
    posix, _ = world.look_of("k", DESTINATION)
    assert (posix.uid, posix.gid, posix.mode, posix.acl) == (77, 88, 0o640, None)
    # an edit of the ACL alone is not sent, and makes no delivery
    entries = acl((1, 6, NONE), (2, 4, 1001), (4, 4, NONE), (16, 4, NONE), (32, 0, NONE))
    os.setxattr(path, ACL_NAME, entries)
    world.settle()
    assert world.current("k").posix is not None
    assert world.current("k").posix.acl == entries  # type: ignore[union-attr]
    assert world.look_of("k", DESTINATION)[0] == posix
    # a mode is sent, the owner is not
    path.chmod(0o600)
    os.chown(path, 5, 6)
    os.setxattr(path, "user.colour", b"blue")
    world.settle()
    found, own = world.look_of("k", DESTINATION)
    assert (found.uid, found.gid, found.mode, found.acl, own) == (77, 88, 0o600, None, {"user.colour": b"blue"})
    assert (replica.stat().st_uid, outcome(world)) == (77, (COMPLETED, ""))
    world.stays_quiet()


@pytest.mark.skipif(not ROOT, reason="gives files away")
def test_owner_override_is_frozen_with_the_version(world: World) -> None:
    """s3-semantics 1.5: versions from before an edit of the rule keep their owner and ACL behaviour, in both
    directions."""
    os.chown(world.path(bucket=DESTINATION), 77, 88)
    change_role(world)
    override(world, on=False)
    world.write("before", b"data")
    world.settle()
    override(world, on=True)
    world.write("during", b"data")
    world.settle()
    override(world, on=False)
    world.write("after", b"data")
    world.settle()
    for key in ("before", "during", "after"):
        os.chown(world.path(key), 5, 6)
        world.path(key).chmod(0o600)
    world.settle()
    owners = {key: world.path(key, DESTINATION).stat().st_uid for key in ("before", "during", "after")}
    assert owners == {"before": 5, "during": 77, "after": 5}
    assert {world.path(key, DESTINATION).stat().st_mode & 0o777 for key in owners} == {0o600}
    world.stays_quiet()


@pytest.mark.skipif(not ROOT, reason="gives files away")
def test_an_acl_left_out_gives_no_user_access(world: World) -> None:
    """Section 2: without its ACL the mask would become the group's rights; no user may read more than at the source."""
    change_role(world)
    override(world, on=True)
    world.write("k", b"data")
    world.path("k").chmod(0o604)
    entries = ((1, 6, NONE), (2, 6, 1001), (2, 0, 1002), (4, 0, NONE), (16, 6, NONE), (32, 4, NONE))
    os.setxattr(world.path("k"), ACL_NAME, acl(*entries))
    assert world.path("k").stat().st_mode & 0o777 == 0o664
    world.settle()
    assert world.path("k", DESTINATION).stat().st_mode & 0o777 == 0o600


def test_owner_override_needs_its_permission(world: World) -> None:
    """s3-semantics 6.1: DstPutObjectNotPermitted without s3:ObjectOwnerOverrideToBucketOwner; edits need it as well."""
    change_role(world)
    override(world, on=True)
    world.write("there", b"data")
    world.settle()
    change_role(world, lacks="s3:ObjectOwnerOverrideToBucketOwner")
    world.write("k", b"data")
    world.path("there").chmod(0o600)
    world.settle()
    assert outcome(world) == outcome(world, "there") == (FAILED, "DstPutObjectNotPermitted")
    world.stays_quiet()
