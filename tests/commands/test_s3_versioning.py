"""Versioning in its three states, and the answers of commands: s3-semantics, section 4, line by line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.errors import Refused
from fsrepl.model.version import NULL, Origin, Status
from fsrepl.storage import listing
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World, v1

ENABLED, SUSPENDED = "Enabled", "Suspended"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False) as found:
        yield found


def turn(world: World, status: str, bucket: str = SOURCE) -> None:
    world.run("versioning.set", bucket=bucket, status=status)


def ids(world: World, key: str = "k") -> list[tuple[str, bool]]:
    """(id, marker) of a key, newest first; ids that are not null as "id"."""
    return [(v.id if v.id == NULL else "id", v.marker) for v in world.of(key)]


def content(world: World, key: str, version_id: str | None = None, bucket: str = SOURCE) -> bytes:
    with listing.open_versioned(world.engine.site, bucket) as opened:
        entry = listing.find(opened, key.encode(), version_id)
        return b"".join(listing.content(opened, entry.version))


def refusal(world: World, key: str, version_id: str | None = None) -> str:
    with pytest.raises(Refused) as caught:
        content(world, key, version_id)
    return caught.value.code


def listed(world: World, prefix: str = "", *, versions: bool = True, page: listing.Page | None = None) -> list[str]:
    with listing.open_versioned(world.engine.site, SOURCE) as opened:
        found, _ = listing.entries(opened, prefix.encode(), versions=versions, page=page or listing.Page())
    return [f"{e.version.key.decode()}{'!' if e.version.marker else ''}{'*' if e.latest else ''}" for e in found]


# -- the states


def test_a_bucket_is_never_versioned_then_enabled_and_suspended_and_enabled(world: World) -> None:
    """Section 4, states: never again "never"."""
    world.run("bucket.create", bucket="east/plain", versioning=False)
    bucket = world.engine.site.bucket("east/plain")
    with bucket.open():
        assert bucket.versioning == ""
    for status in (ENABLED, SUSPENDED, SUSPENDED, ENABLED, ENABLED):
        turn(world, status, "east/plain")
        assert bucket.versioning == status
    assert world.refused("versioning.set", bucket="east/plain", status="") == "MalformedXML"
    assert bucket.versioning == ENABLED


def test_a_file_from_before_versioning_is_the_null_version(world: World) -> None:
    """Section 4: kept as that version when it is overwritten; created when it was last changed."""
    world.run("bucket.create", bucket="east/plain", versioning=False)
    world.write("d/old", b"old", "east/plain")
    world.write("kept", b"kept", "east/plain")
    os.utime(world.path("d/old", "east/plain"), ns=(1, 1_420_070_400_123_456_789))
    turn(world, ENABLED, "east/plain")
    world.settle()
    [old] = world.of("d/old", "east/plain")
    assert (old.id, old.created_ns, old.origin) == (NULL, 1_420_070_400_123_456_789, Origin.ADOPTED)
    world.write("d/old", b"new", "east/plain")
    world.settle()
    assert [v.id == NULL for v in world.of("d/old", "east/plain")] == [False, True]
    assert content(world, "d/old", NULL, "east/plain") == b"old"
    assert [v.id for v in world.of("kept", "east/plain")] == [NULL]
    world.unlink("kept", "east/plain")
    world.settle()
    assert [(v.id == NULL, v.marker) for v in world.of("kept", "east/plain")] == [(False, True), (True, False)]


def test_enabled_every_write_is_a_version_and_every_delete_a_marker(world: World) -> None:
    """Section 4, column Enabled; nothing is removed; ids are unique and grow."""
    for data in (b"one", b"two", None, b"three", b"one"):
        world.unlink("k") if data is None else world.write("k", data)
        world.settle()
    assert ids(world) == [("id", False), ("id", False), ("id", True), ("id", False), ("id", False)]
    versions = world.of("k")
    assert sorted((v.id for v in versions), reverse=True) == [v.id for v in versions]
    assert [content(world, "k", v.id) for v in versions if not v.marker] == [b"one", b"three", b"two", b"one"]
    assert content(world, "k") == b"one"


def test_suspended_a_write_replaces_the_null_version_alone(world: World) -> None:
    """Section 4, column Suspended, write."""
    world.write("k", b"enabled")
    world.settle()
    turn(world, SUSPENDED)
    world.write("k", b"first")
    world.settle()
    assert ids(world) == [(NULL, False), ("id", False)]
    world.write("k", b"second")
    world.settle()
    assert ids(world) == [(NULL, False), ("id", False)]
    assert content(world, "k", NULL) == b"second"
    turn(world, ENABLED)
    world.write("k", b"again")
    world.settle()
    assert ids(world) == [("id", False), (NULL, False), ("id", False)]
    turn(world, SUSPENDED)
    world.write("k", b"third")
    world.settle()
    assert ids(world) == [(NULL, False), ("id", False), ("id", False)]
    assert [content(world, "k", v.id) for v in world.of("k")] == [b"third", b"again", b"enabled"]
    assert world.tree(SOURCE) == {"k": b"third"}


def test_suspended_a_delete_replaces_the_null_version_with_a_null_marker(world: World) -> None:
    """Section 4, column Suspended, delete; other versions stay."""
    world.write("k", b"enabled")
    world.settle()
    turn(world, SUSPENDED)
    world.write("k", b"null")
    world.settle()
    world.unlink("k")
    world.settle()
    assert ids(world) == [(NULL, True), ("id", False)]
    assert refusal(world, "k", NULL) == "MethodNotAllowed"
    world.remove("k")
    world.remove("never")
    assert ids(world) == [(NULL, True), ("id", False)]
    assert ids(world, "never") == [(NULL, True)]
    world.write("k", b"null again")
    world.settle()
    assert ids(world) == [(NULL, False), ("id", False)]
    world.remove("k", version=NULL)
    assert ids(world) == [("id", False)]
    world.settle()
    assert world.tree(SOURCE) == {"k": b"enabled"}


def test_suspended_a_null_marker_goes_over_a_version_and_can_be_removed(world: World) -> None:
    """Section 4: removing a marker by id undeletes."""
    world.write("k", b"enabled")
    world.settle()
    turn(world, SUSPENDED)
    world.unlink("k")
    world.settle()
    assert ids(world) == [(NULL, True), ("id", False)]
    assert world.remove("k", version=NULL)["DeleteMarker"] is True
    world.settle()
    assert world.tree(SOURCE) == {"k": b"enabled"}
    assert ids(world) == [("id", False)]


@pytest.mark.parametrize("restarted", [False, True])
def test_suspended_commands_replace_what_the_view_shows(world: World, restarted: bool) -> None:
    """Section 4, column Suspended: a null version has the id of the null version that it replaces, and is another
    version all the same."""
    world.write("k", b"enabled")
    world.settle()
    turn(world, SUSPENDED)
    world.write("k", b"null")
    world.settle()
    world.run("object.restore", bucket=SOURCE, key=b"k", version_id=world.of("k")[1].id)
    world.restart() if restarted else None
    world.settle()
    assert world.tree(SOURCE) == {"k": b"enabled"}
    assert ids(world) == [(NULL, False), ("id", False)]
    world.remove("k")
    world.restart() if restarted else None
    world.settle()
    assert world.tree(SOURCE) == {}
    assert ids(world) == [(NULL, True), ("id", False)]


@pytest.mark.parametrize("sharing", ["auto", "private", "link"])
def test_suspended_a_file_removed_at_once_does_not_come_back(world: World, sharing: str) -> None:
    """Section 4, column Suspended, delete: also where the file is the null version's own, just written."""
    world.set_sharing(east=sharing)
    turn(world, SUSPENDED)
    world.write("k", b"null")
    world.capture(SOURCE)
    world.remove("k")
    for _ in range(2):
        world.settle()
    assert world.tree(SOURCE) == {}
    assert ids(world) == [(NULL, True)]


@pytest.mark.parametrize("before", [SUSPENDED, ENABLED])
def test_a_file_written_just_before_a_change_of_versioning_belongs_to_the_former_state(
    world: World, before: str
) -> None:
    """design.md, 5: a command that changes settings applies to files written afterwards."""
    turn(world, SUSPENDED if before == SUSPENDED else ENABLED)
    world.write("k", b"data")
    turn(world, ENABLED if before == SUSPENDED else SUSPENDED)
    world.settle()
    assert ids(world) == [(NULL if before == SUSPENDED else "id", False)]


@pytest.fixture
def stopped_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "now").write_text("2020-01-01T00:00:00Z")
    monkeypatch.setenv("FSREPL_CLOCK", str(tmp_path / "now"))


@pytest.mark.usefixtures("stopped_clock")
def test_a_null_version_is_replaced_also_where_the_clock_does_not_advance(tmp_path: Path) -> None:
    """Section 2, a clock set back hides no save and no deletion: the id `null` does not give the order."""
    with World(tmp_path / "world", replicate=False) as world:
        turn(world, SUSPENDED)
        for key in ("removed", "deleted", "written"):
            world.write(key, b"null")
        world.settle()
        world.remove("removed")
        assert not world.path("removed").exists()
        world.path("deleted").unlink()
        world.write("written", b"null again")
        world.settle()
        assert ids(world, "removed") == ids(world, "deleted") == [(NULL, True)]
        assert (ids(world, "written"), content(world, "written")) == ([(NULL, False)], b"null again")
        turn(world, ENABLED)
        for key in ("removed", "written"):
            world.write(key, b"new")
        world.settle()
        assert ids(world, "removed") == [("id", False), (NULL, True)]
        assert ids(world, "written") == [("id", False), (NULL, False)]
        assert world.tree(SOURCE) == {"removed": b"new", "written": b"new"}
        turn(world, SUSPENDED)
        world.remove("written")
        assert ids(world, "written") == [(NULL, True), ("id", False)]
        assert not world.path("written").exists()
        world.run("object.restore", bucket=SOURCE, key=b"written", version_id=None)
        assert ids(world, "written") == [(NULL, False), ("id", False)]
        assert world.path("written").read_bytes() == b"new"


@pytest.mark.usefixtures("stopped_clock")
def test_undelete_is_newer_than_a_null_marker_also_where_the_clock_does_not_advance(tmp_path: Path) -> None:
    """Section 2: as for every other version that is made."""
    with World(tmp_path / "world", replicate=False) as world:
        turn(world, ENABLED)
        world.write("k", b"kept")
        world.settle()
        turn(world, SUSPENDED)
        world.remove("k")
        assert ids(world, "k") == [(NULL, True), ("id", False)]
        turn(world, ENABLED)
        done = world.run("bucket.undelete", address=f"{SOURCE}/", since="2000-01-01T00:00:00Z", after="")
        assert done["Restored"] == 1, done
        assert ids(world, "k") == [("id", False), (NULL, True), ("id", False)]
        assert world.tree(SOURCE) == {"k": b"kept"}


@pytest.mark.usefixtures("stopped_clock")
def test_an_adopted_version_is_followed_also_where_the_clock_does_not_advance(tmp_path: Path) -> None:
    """Section 2: a file with a time in the future is created now when it is adopted, and the next save is current."""
    with World(tmp_path / "world", replicate=False) as world:
        world.run("bucket.create", bucket="east/plain", versioning=False)
        world.write("k", b"old", "east/plain")
        turn(world, ENABLED, "east/plain")
        world.settle()
        world.write("k", b"new", "east/plain")
        world.settle()
        assert [v.id == NULL for v in world.of("k", "east/plain")] == [False, True]
        assert content(world, "k", bucket="east/plain") == b"new" == world.path("k", "east/plain").read_bytes()


def test_deliveries_of_a_replaced_null_version_are_gone(world: World) -> None:
    """G11: status counts no delivery of a version that does not exist."""
    turn(world, SUSPENDED)
    world.write("k", b"null")
    world.settle()
    turn(world, ENABLED)
    world.configure(v1())
    world.run("replication.backfill", source=SOURCE)
    world.settle()
    assert world.current("k").status is Status.COMPLETED
    assert world.tree(DESTINATION) == {"k": b"null"}
    world.run("replication.rm", source=SOURCE)
    turn(world, SUSPENDED)
    world.write("k", b"another null")
    world.settle()
    assert [v.status for v in world.of("k")] == [None]
    assert list(world.engine.journal.deliveries.select(SOURCE)) == []


# -- reads and removals


def test_answers_of_reads(world: World) -> None:
    """Section 4, reads: 404, 404 with a marker, 405 for a marker by id."""
    world.write("k", b"one")
    world.settle()
    one = world.current("k").id
    world.unlink("k")
    world.settle()
    marker = world.current("k").id
    assert refusal(world, "nothing") == "NoSuchKey"
    assert refusal(world, "nothing", one) == "NoSuchKey"
    assert refusal(world, "k") == "NoSuchKey"
    assert refusal(world, "k", marker) == "MethodNotAllowed"
    assert refusal(world, "k", NULL) == "NoSuchVersion"
    assert refusal(world, "k", "0" * 26) == "NoSuchVersion"
    assert refusal(world, "k", "../../etc/passwd") == "NoSuchVersion"
    assert content(world, "k", one) == b"one"


def test_answers_of_removals(world: World) -> None:
    """Section 4: exactly that version, permanently, and no marker."""
    for data in (b"one", b"two", b"three"):
        world.write("k", data)
        world.settle()
    three, two, one = (v.id for v in world.of("k"))
    assert world.refused("object.rm", bucket=SOURCE, key=b"k", version_id="0" * 26) == "NoSuchVersion"
    assert world.refused("object.rm", bucket=SOURCE, key=b"none", version_id=one) == "NoSuchKey"
    world.remove("k", version=two)
    assert [v.id for v in world.of("k")] == [three, one]
    assert world.tree(SOURCE) == {"k": b"three"}
    assert world.refused("object.rm", bucket=SOURCE, key=b"k", version_id=two) == "NoSuchVersion"
    world.remove("k", version=three)
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    world.remove("k", version=one)
    world.settle()
    assert (world.tree(SOURCE), world.of("k")) == ({}, [])
    assert refusal(world, "k") == "NoSuchKey"


def test_the_next_older_becomes_current_marker_or_not(world: World) -> None:
    """Section 4: permanently removing the current version."""
    world.write("k", b"one")
    world.settle()
    world.unlink("k")
    world.settle()
    world.write("k", b"two")
    world.settle()
    world.remove("k", version=world.current("k").id)
    world.settle()
    assert world.tree(SOURCE) == {}
    assert world.current("k").marker
    world.remove("k", version=world.current("k").id)
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    world.restart(without_journal=True)
    world.settle()
    assert world.tree(SOURCE) == {"k": b"one"}
    assert len(world.of("k")) == 1


def test_a_restored_version_is_a_new_one_with_all_kept(world: World) -> None:
    """Section 4, restore: it is replicated like any other write."""
    world.configure(v1())
    os.umask(0o022)
    world.write("k", b"one")
    world.path("k").chmod(0o640)
    world.settle()
    world.write("k", b"two")
    world.settle()
    two, one = world.of("k")
    answer = world.run("object.restore", bucket=SOURCE, key=b"k", version_id=one.id)
    assert answer["Changed"] is True
    assert answer["VersionId"] not in (one.id, two.id)
    world.settle()
    assert len(world.of("k")) == 3
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"k": b"one"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert world.run("object.restore", bucket=SOURCE, key=b"k", version_id=None)["Changed"] is False
    world.unlink("k")
    world.settle()
    assert world.run("object.restore", bucket=SOURCE, key=b"k", version_id=None)["Changed"] is True
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"one"}
    assert [v.marker for v in world.of("k", DESTINATION)] == [False, True, False, False, False]


def test_a_version_that_cannot_be_restored(world: World) -> None:
    """Section 4."""
    world.write("k", b"one")
    world.settle()
    world.unlink("k")
    world.settle()
    marker, one = world.of("k")
    restore = {"bucket": SOURCE, "key": b"k"}
    assert world.refused("object.restore", **restore, version_id=marker.id) == "MethodNotAllowed"
    assert world.refused("object.restore", **restore, version_id="0" * 26) == "NoSuchVersion"
    assert world.refused("object.restore", bucket=SOURCE, key=b"none", version_id=None) == "NoSuchKey"
    world.remove("k", version=one.id)
    assert world.refused("object.restore", **restore, version_id=None) == "NoSuchKey"
    assert world.tree(SOURCE) == {}


# -- lists


def test_lists_are_in_the_order_of_bytes_and_newest_first(world: World) -> None:
    """Section 4, lists: byte order, which is neither that of directories nor of letters; markers interleaved."""
    keys = [
        "a",
        "a.txt",
        "a/b",
        "a0",
        "B",
        "ab",
        "é",
        "z",
        "a b",
        "~x",
        "~" + "0" * 32,
        "x" * 240,
        "~d" + "y" * 230 + "/k",
    ]
    for key in keys:
        if key != "a":
            world.write(key, b"1")
    world.settle()
    world.unlink("B")
    world.write("z", b"2")
    world.settle()
    world.remove("a")  # beside a/b
    expected = sorted(keys, key=str.encode)
    assert listed(world, versions=False) == [f"{k}*" for k in expected if k not in ("B", "a")]
    rows = []
    for key in expected:
        rows += {"B": ["B!*", "B"], "z": ["z*", "z"], "a": ["a!*"]}.get(key, [f"{key}*"])
    assert listed(world) == rows


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", ["a/b/c", "a/b.c", "a/bc", "ab", "b"]),
        ("a", ["a/b/c", "a/b.c", "a/bc", "ab"]),
        ("a/", ["a/b/c", "a/b.c", "a/bc"]),
        ("a/b", ["a/b/c", "a/b.c", "a/bc"]),
        ("a/b/", ["a/b/c"]),
        ("a/b/c", ["a/b/c"]),
        ("a/b/c/", []),
        ("A", []),
        ("nothing/here", []),
    ],
)
def test_a_list_s_prefix_is_a_plain_string_test(world: World, prefix: str, found: list[str]) -> None:
    """Section 4, lists: no folder and no pattern."""
    for key in ("a/b/c", "a/b.c", "a/bc", "ab", "b"):
        world.write(key, b"1")
    world.settle()
    assert listed(world, prefix) == [f"{key}*" for key in sorted(found)]


@pytest.mark.parametrize("versions", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_put_together_are_the_whole_list(world: World, size: int, versions: bool) -> None:
    """Section 4, lists: a key marker, with a version id marker."""
    for data in (b"1", b"2", b"3"):
        for key in ("a", "b/c", "d"):
            world.write(key, data)
        world.settle()
    world.unlink("d")
    world.settle()
    found: list[tuple[bytes, str]] = []
    page = listing.Page(most=size)
    with listing.open_versioned(world.engine.site, SOURCE) as opened:
        whole = [
            (e.version.key, e.version.id)
            for e in listing.entries(opened, b"", versions=versions, page=listing.Page())[0]
        ]
        while True:
            part, more = listing.entries(opened, b"", versions=versions, page=page)
            assert len(part) <= size
            found += [(e.version.key, e.version.id) for e in part]
            if not more:
                break
            last = part[-1].version
            page = listing.Page(last.key, last.id if versions else "", size)
    assert found == whole
    assert len(whole) == (10 if versions else 2)


# -- tags


def test_an_edit_of_tags_makes_no_version(world: World) -> None:
    """Section 4: the named version changes in place."""
    world.write("k", b"one")
    world.settle()
    world.write("k", b"two")
    world.settle()
    two, one = (v.id for v in world.of("k"))
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "1"}, version_id=one)
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"b": "2"})
    assert [(v.id, dict(v.tags)) for v in world.of("k")] == [(two, {"b": "2"}), (one, {"a": "1"})]
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["b"], version_id=two)
    world.settle()
    assert [dict(v.tags) for v in world.of("k")] == [{}, {"a": "1"}]


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({f"k{i}": "v" for i in range(11)}, "BadRequest"),
        ({"k" * 129: "v"}, "InvalidTag"),
        ({"k": "v" * 257}, "InvalidTag"),
        ({"": "v"}, "InvalidTag"),
        ({"aws:cost": "v"}, "InvalidTag"),
        ({"AWS:cost": "v"}, "InvalidTag"),
        ({"aws": "v"}, ""),
        ({f"k{i}": "é" * 256 for i in range(10)}, ""),
        ({"é" * 128: ""}, ""),
    ],
)
def test_limits_of_tags(world: World, tags: dict[str, str], code: str) -> None:
    """Section 4: 10 tags, 128 and 256 characters; refused as a whole. What does not fit the inode is in the sidecar."""
    world.write("k", b"data")
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"kept": "1"}) if code else None
    if code:
        assert world.refused("tag.set", bucket=SOURCE, key=b"k", tags=tags) == code
        assert world.current("k").tags == {"kept": "1"}
    else:
        world.run("tag.set", bucket=SOURCE, key=b"k", tags=tags)
        assert world.current("k").tags == tags


def test_a_reserved_tag_that_came_with_the_file_hinders_no_other(world: World) -> None:
    """Section 4: as an attribute, a user may set any; then other tags are set and removed, and this one is removed."""
    world.drop("k", b"data", tags={"aws:cost": "1"})
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "1", "aws:cost": "1"})
    assert world.refused("tag.set", bucket=SOURCE, key=b"k", tags={"aws:cost": "2"}) == "InvalidTag"
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["aws:cost"])
    assert world.current("k").tags == {"a": "1"}


def test_tags_beyond_the_limits_that_came_with_the_file_are_removed(world: World) -> None:
    """Section 4: attributes bring 12 tags, one of them too long. Each is removed or changed, and none is added."""
    world.drop("k", b"data", tags={f"t{i:02}": "1" for i in range(11)} | {"long": "v" * 257})
    world.settle()
    assert len(world.current("k").tags) == 12
    assert world.refused("tag.set", bucket=SOURCE, key=b"k", tags={"new": "1"}) == "BadRequest"
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"t00": "2"})
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["t01"])
    assert len(world.current("k").tags) == 11
    assert world.refused("tag.set", bucket=SOURCE, key=b"k", tags={"new": "1"}) == "BadRequest"
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["t02", "t03"])
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"new": "1"})
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["long"])
    assert len(world.current("k").tags) == 9


def test_tags_of_markers_and_missing_versions_are_refused(world: World) -> None:
    """Section 4: a marker has none."""
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.settle()
    marker, version = world.of("k")
    tags = {"bucket": SOURCE, "key": b"k", "tags": {"a": "1"}}
    assert world.refused("tag.set", **tags) in ("MethodNotAllowed", "NoSuchKey")
    assert world.refused("tag.set", **tags, version_id=marker.id) == "MethodNotAllowed"
    assert world.refused("tag.set", **tags, version_id="0" * 26) == "NoSuchVersion"
    assert world.refused("tag.set", **{**tags, "key": b"none"}) == "NoSuchKey"
    world.run("tag.set", **tags, version_id=version.id)


# -- order


def test_a_version_that_arrives_late_is_never_current(world: World) -> None:
    """Section 0, 5; 9, 10: by creation time, not by arrival; each way round."""
    world.configure(v1())
    world.away("west")
    world.write("k", b"older")
    world.settle()
    world.back("west")
    world.write("k", b"theirs", DESTINATION)
    world.run("versioning.set", bucket=DESTINATION, status=ENABLED)
    region = world.region(DESTINATION)
    region.flush(DESTINATION)  # captured there before what is older arrives
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"theirs"}
    assert [v.origin for v in world.of("k", DESTINATION)] == [Origin.USER, Origin.REPLICA]
    world.write("k", b"newest")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"newest"}
    assert len(world.of("k", DESTINATION)) == 3


def test_a_marker_that_arrives_late_hides_nothing(world: World) -> None:
    """Section 0, 5."""
    world.configure(v1())
    world.write("k", b"one")
    world.settle()
    world.away("west")
    world.unlink("k")
    world.settle()
    world.back("west")
    world.write("k", b"theirs", DESTINATION)
    world.region(DESTINATION).flush(DESTINATION)
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"theirs"}
    assert [v.marker for v in world.of("k", DESTINATION)] == [False, True, False]


# -- a bucket that was never versioned


def test_without_versioning_a_file_is_all_there_is_of_an_object(world: World) -> None:
    """Section 4, column never versioned: `null`, replaced by a write, permanently removed by a deletion."""
    world.run("bucket.create", bucket="east/plain", versioning=False)
    keys = ["a/b", "a.txt", "k", "a/c d"]
    for key in keys:
        world.write(key, key.encode(), "east/plain")
    world.path("link", "east/plain").symlink_to("k")
    world.settle()

    def rows(prefix: str = "", *, versions: bool = True) -> list[tuple[str, str, bool]]:
        with listing.open_bucket(world.engine.site, "east/plain") as opened:
            found, _ = listing.entries(opened, prefix.encode(), versions=versions, page=listing.Page())
            return [(e.version.key.decode(), e.version.id, e.latest) for e in found]

    def read(key: str, version_id: str | None = None) -> bytes:
        with listing.open_bucket(world.engine.site, "east/plain") as opened:
            return b"".join(listing.content(opened, listing.find(opened, key.encode(), version_id).version))

    assert rows() == rows(versions=False) == [(key, NULL, True) for key in sorted(keys)]
    assert [key for key, _, _ in rows("a/")] == ["a/b", "a/c d"]
    assert read("k") == read("k", NULL) == b"k"
    world.write("k", b"again", "east/plain")
    assert read("k") == b"again"
    for key, version, code in (
        ("none", None, "NoSuchKey"),
        ("k", "0" * 26, "NoSuchVersion"),
        ("link", None, "NoSuchKey"),
    ):
        with pytest.raises(Refused, match=f"^{code}"):
            read(key, version)
    assert world.refused("object.rm", bucket="east/plain", key=b"k", version_id="0" * 26) == "NoSuchVersion"
    for key in ("k", "never", "a/b/c"):
        world.remove(key, "east/plain")
    assert [key for key, _, _ in rows()] == ["a.txt", "a/b", "a/c d"]
    for key in (".fsrepl/bucket.json", "../src/k", "a//b", ""):
        assert world.refused("object.rm", bucket="east/plain", key=key.encode(), version_id=None) == "InvalidRequest"
    assert world.path(".fsrepl/bucket.json", "east/plain").exists()
    assert not world.path(".fsrepl/versions", "east/plain").exists()


class RemovingFs(UnsyncedFs):
    """A file is removed after its directory was listed, and before it is looked at."""

    def __init__(self, name: bytes) -> None:
        self.name, self.removed = name, False

    def stat(self, at: int, name: bytes) -> os.stat_result:
        if name == self.name and not self.removed:
            self.removed = True
            os.unlink(name, dir_fd=at)
        return super().stat(at, name)


def test_a_list_without_versioning_has_all_objects_but_those_removed_meanwhile(tmp_path: Path) -> None:
    """Section 4: one file that goes while its directory is listed takes no other out of the list."""
    with World(tmp_path, fs=RemovingFs(b"gone"), replicate=False) as world:
        world.run("bucket.create", bucket="east/plain", versioning=False)
        for key in ("d/a", "d/gone", "d/z"):
            world.write(key, b"", "east/plain")
        with listing.open_bucket(world.engine.site, "east/plain") as opened:
            found, _ = listing.entries(opened, b"", versions=True, page=listing.Page())
        assert [entry.version.key for entry in found] == [b"d/a", b"d/z"]


@pytest.mark.parametrize("prefix", [".fsrepl/", ".fsrepl/b", ".fsrepl", ".fs"])
def test_documents_of_a_bucket_without_versioning_are_no_objects(world: World, prefix: str) -> None:
    """Design 2: `.fsrepl` is the one name that is never a key, whatever prefix is asked for."""
    world.run("bucket.create", bucket="east/plain", versioning=False)
    with listing.open_bucket(world.engine.site, "east/plain") as opened:
        assert listing.entries(opened, prefix.encode(), versions=True, page=listing.Page()) == ([], False)


class ForgettingFs(UnsyncedFs):
    """A directory of the store goes when it is about to be opened, as one whose last version is removed for good."""

    lost = b""

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        if self.lost and path == self.lost:
            self.lost = b""
            shutil.rmtree(path, dir_fd=at)
        return super().open_dir(at, path, cross=cross)


def test_a_list_goes_on_after_a_directory_that_is_removed_meanwhile(tmp_path: Path) -> None:
    """Section 4: it does not end there, as if nothing followed."""
    fs = ForgettingFs()
    with World(tmp_path, fs=fs, replicate=False) as world:
        for key in ("a/k", "b/k", "c/k"):
            world.write(key, b"")
        world.settle()
        fs.lost = b"b"
        assert listed(world) == ["a/k*", "c/k*"]
