"""Keys that a tree cannot show together, and the properties of a replica: s3-semantics, 0 (14), 2.1, 9."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.commands import status, why
from fsrepl.model.version import Origin, Status
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, Json, World, at, v1, v2

FAR = "north/far"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False) as found:
        yield found


def conflicts(world: World, bucket: str = DESTINATION) -> list[str]:
    """The keys that status calls a view conflict; checks that `why` says the same of each, on both sides."""
    buckets = status.status(world.engine.site, {"running": False})["buckets"]
    found = next(b for b in buckets if b["bucket"] == bucket)
    listed = [each["Key"] for each in found.get("view_conflicts", [])]
    for key in listed:
        for address in (SOURCE, DESTINATION):
            if world.of(key, address):
                said = why.why(world.engine.site, at(address, key.encode()), None, {"running": False})
                assert any("ViewConflict" in sentence for sentence in said.sentences), (address, key)
    return listed


def in_step(world: World) -> None:
    assert world.statuses() <= {Status.COMPLETED, None}
    assert world.leftovers(SOURCE) == []


# -- a and a/b


def _file_makes_way_for_folder(world: World) -> None:
    world.write("a", b"file")
    world.settle()
    world.unlink("a")
    world.settle()
    world.write("a/b", b"below")
    world.settle()


def _folder_makes_way_for_file(world: World) -> None:
    world.write("a/b", b"below")
    world.settle()
    world.unlink("a/b")
    world.path("a").rmdir()
    world.settle()
    world.write("a", b"file")
    world.settle()


CASES: list[tuple[Callable[[World], None], str, str]] = [
    (_file_makes_way_for_folder, "a", "a/b"),
    (_folder_makes_way_for_file, "a/b", "a"),
]
by_case = pytest.mark.parametrize(("case", "shown", "hidden"), CASES, ids=["a then a/b", "a/b then a"])


@by_case
def test_without_markers_both_are_there_and_one_is_shown(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """Section 0, 14: stored, listed, COMPLETED, a ViewConflict, and no user's file is removed."""
    world.configure(v2())
    case(world)
    assert set(world.tree(SOURCE)) == {hidden}
    assert set(world.tree(DESTINATION)) == {shown}
    assert world.current(hidden).status is Status.COMPLETED
    assert world.current(hidden, DESTINATION).id == world.current(hidden).id
    assert world.current(hidden, DESTINATION).status is Status.REPLICA
    assert conflicts(world) == [hidden]
    assert conflicts(world, SOURCE) == []
    for without_journal in (False, True):
        world.restart(without_journal=without_journal)
        world.settle()
        assert set(world.tree(DESTINATION)) == {shown}
        assert [v.marker for v in world.of(shown, DESTINATION)] == [False]
        assert conflicts(world) == [hidden]
    in_step(world)


@by_case
def test_the_hidden_key_is_shown_once_the_other_is_removed(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """Section 0, 14; 9, 1: a user removes the shown file."""
    world.configure(v2())
    case(world)
    world.unlink(shown, DESTINATION)
    world.settle()
    assert set(world.tree(DESTINATION)) == {hidden}
    assert world.current(shown, DESTINATION).marker
    assert conflicts(world) == []
    assert world.leftovers(DESTINATION) == []


@by_case
def test_the_hidden_key_is_shown_after_a_removal_by_command(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """Section 0, 14: a marker, or the permanent removal of the last version."""
    world.configure(v2())
    case(world)
    world.remove(shown, DESTINATION, world.current(shown, DESTINATION).id)
    world.settle()
    assert set(world.tree(DESTINATION)) == {hidden}
    assert conflicts(world) == []


@by_case
def test_the_hidden_key_is_shown_after_a_marker_from_the_source(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """Section 0, 14: the rule is changed, and the key is deleted once more."""
    world.configure(v2())
    case(world)
    world.configure(v2(markers=True))
    world.remove(shown)
    world.settle()
    assert set(world.tree(DESTINATION)) == {hidden}
    assert conflicts(world) == []


@by_case
def test_with_markers_there_is_no_conflict(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """V1: a deleted key's view is hidden in time, one by one or all at once."""
    world.configure(v1())
    case(world)
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert set(world.tree(SOURCE)) == {hidden}
    assert conflicts(world) == []
    world.remove(hidden, version=None)
    world.settle()
    assert (world.tree(SOURCE), world.tree(DESTINATION)) == ({}, {})


@by_case
def test_with_markers_that_arrive_together_there_is_no_conflict(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """V1, after an outage: a batch with the old key's marker and the new key."""
    world.configure(v1())
    world.write("other", b"o")
    world.settle()
    world.away("west")
    case(world)
    world.back("west")
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert conflicts(world) == []
    in_step(world)


@by_case
def test_a_hidden_key_is_updated_and_deleted_like_any_other(
    world: World, case: Callable[[World], None], shown: str, hidden: str
) -> None:
    """Section 9, 1: the store is the truth."""
    world.configure(v2(markers=True))
    world.run("replication.disable", source=SOURCE)
    world.configure({**v2(), "ID": "one"})
    case(world)
    world.write(hidden, b"updated")
    world.settle()
    assert [v.digest for v in world.of(hidden, DESTINATION)] == [v.digest for v in world.of(hidden)]
    assert conflicts(world) == [hidden]
    world.configure({**v2(markers=True), "ID": "one"})
    world.unlink(hidden)
    world.settle()
    assert world.current(hidden, DESTINATION).marker
    assert conflicts(world) == []
    assert set(world.tree(DESTINATION)) == {shown}
    world.remove(hidden, DESTINATION, world.current(hidden, DESTINATION).id)
    world.settle()
    assert conflicts(world) == [hidden]
    world.unlink(shown, DESTINATION)
    world.settle()
    assert set(world.tree(DESTINATION)) == {hidden}
    assert world.tree(DESTINATION)[hidden] == b"updated"


def test_a_user_s_own_file_ends_a_conflict(world: World) -> None:
    """G1: a file that its user removes afterwards stays removed."""
    world.configure(v2())
    world.path("a", DESTINATION).mkdir()
    world.write("a", b"replica")
    world.settle()
    assert conflicts(world) == ["a"]
    world.path("a", DESTINATION).rmdir()
    world.write("a", b"theirs", DESTINATION)
    world.region(DESTINATION).flush(DESTINATION)
    world.unlink("a", DESTINATION)
    world.settle()
    assert [v.marker for v in world.of("a", DESTINATION)] == [True, False, False]
    assert world.tree(DESTINATION) == {}
    assert world.leftovers(DESTINATION) == []


# -- other obstacles


def _directory(world: World, path: Path) -> None:
    path.mkdir(parents=True)


def _full_directory(world: World, path: Path) -> None:
    path.mkdir(parents=True)
    (path / "theirs").write_bytes(b"theirs")


def _link(world: World, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/etc/passwd")


def _dangling_link(world: World, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere")


def _fifo(world: World, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def _looks(path: Path) -> tuple[int, str | list[str]]:
    mode = path.lstat().st_mode
    inside: str | list[str] = ""
    if stat.S_ISLNK(mode):
        inside = str(path.readlink())
    elif stat.S_ISDIR(mode):
        inside = sorted(os.listdir(path))
    return mode, inside


IN_THE_WAY = [
    *((obstacle, "d/k") for obstacle in (_directory, _full_directory, _link, _dangling_link, _fifo)),
    *((obstacle, "d") for obstacle in (_link, _dangling_link, _fifo)),
]


@pytest.mark.parametrize(("obstacle", "where"), IN_THE_WAY, ids=[f"{o.__name__.strip('_')}-{w}" for o, w in IN_THE_WAY])
def test_an_obstacle_stays(world: World, obstacle: Callable[[World, Path], None], where: str) -> None:
    """design.md, 5: in the store, COMPLETED, a ViewConflict; shown once a person removes the obstacle."""
    world.configure(v1())
    path = world.path(where, DESTINATION)
    obstacle(world, path)
    before = _looks(path)
    world.write("d/k", b"data")
    world.settle()
    world.restart()
    world.settle()
    assert _looks(path) == before
    assert world.current("d/k").status is Status.COMPLETED
    assert world.current("d/k", DESTINATION).origin is Origin.REPLICA
    assert conflicts(world) == ["d/k"]
    path.rename(world.home / "taken away")
    world.settle()
    assert world.path("d/k", DESTINATION).read_bytes() == b"data"
    assert conflicts(world) == []


def test_a_file_where_a_replica_must_go_becomes_a_version_first(world: World) -> None:
    """G1: whether it was captured before or not."""
    world.configure(v1())
    world.write("k", b"theirs", DESTINATION)
    world.write("k", b"ours, later")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"ours, later"} or world.current("k", DESTINATION).origin is Origin.USER
    assert {v.origin for v in world.of("k", DESTINATION)} == {Origin.USER, Origin.REPLICA}
    assert len(world.of("k", DESTINATION)) == 2


@pytest.mark.parametrize(
    "key", ["x" * 255, "x" * 219, "d" * 250 + "/k", "é" * 127, "~" + "0" * 32, "k;null", "k;deleted"]
)
def test_unusual_names_are_replicated_and_shown(world: World, key: str) -> None:
    """9, 1: a file that the store keeps under another name has its own name in the view."""
    world.configure(v1())
    world.write(key, b"data")
    world.settle()
    assert world.tree(DESTINATION) == {key: b"data"}
    world.write(key, b"other")
    world.settle()
    world.unlink(key)
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert [v.marker for v in world.of(key, DESTINATION)] == [True, False, False]


# -- 2.1


@pytest.mark.parametrize(
    ("rule", "storage_class"),
    [(v1(), ""), (v1(StorageClass="ONEZONE_IA"), "ONEZONE_IA"), (v1(StorageClass="STANDARD"), "STANDARD")],
)
def test_the_properties_of_a_replica(world: World, rule: Json, storage_class: str) -> None:
    """2.1: the same id, time, content and metadata; another class only where the rule says so."""
    world.configure(rule)
    world.drop("d/k", b"data", tags={"class": "blue"})
    os.setxattr(world.path("d/k"), "user.colour", b"\xff\x00")
    os.chmod(world.path("d/k"), 0o640)
    os.utime(world.path("d/k"), ns=(1, 1_420_070_400_123_456_789))
    world.settle()
    here, there = world.current("d/k"), world.current("d/k", DESTINATION)
    for name in ("key", "id", "created_ns", "size", "digest", "posix", "attrs", "tags"):
        assert getattr(here, name) == getattr(there, name), name
    assert (there.origin, there.source, there.deliveries) == (Origin.REPLICA, SOURCE, {})
    assert (here.storage_class or "STANDARD", there.storage_class or "STANDARD") == (
        "STANDARD",
        storage_class or "STANDARD",
    )
    assert (here.status, there.status) == (Status.COMPLETED, Status.REPLICA)
    found = world.path("d/k", DESTINATION).stat()
    assert (found.st_mode & 0o7777, found.st_mtime_ns) == (0o640, 1_420_070_400_123_456_789)
    assert os.getxattr(world.path("d/k", DESTINATION), "user.colour") == b"\xff\x00"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("override", [False, True])
def test_owner_override(world: World, override: bool) -> None:
    """1.1, 2.1: the replica belongs to the destination's owner; needs s3:ObjectOwnerOverrideToBucketOwner."""
    translation: Json = (
        {"Account": "000000000000", "AccessControlTranslation": {"Owner": "Destination"}} if override else {}
    )
    world.configure(v2(**translation))
    role = world.settings.roles / "courier-east-src.json"
    os.chown(world.path(bucket=DESTINATION), 1234, 2345)
    world.write("refused" if override else "k", b"data")
    os.chown(world.path("refused" if override else "k"), 77, 88)
    world.settle()
    if override:
        assert world.current("refused").deliveries[DESTINATION].reason == "DstPutObjectNotPermitted"
        role.write_text(
            role.read_text().replace(
                '"s3:ReplicateObject"', '"s3:ReplicateObject", "s3:ObjectOwnerOverrideToBucketOwner"'
            )
        )
        world.write("k", b"data")
        os.chown(world.path("k"), 77, 88)
        world.settle()
    there = world.path("k", DESTINATION).stat()
    assert (there.st_uid, there.st_gid) == ((1234, 2345) if override else (77, 88))
    here = world.path("k").stat()
    assert (here.st_uid, here.st_gid) == (77, 88)
    assert world.current("k").status is Status.COMPLETED


def test_an_archived_source_is_not_chosen_and_its_copy_is(world: World) -> None:
    """Section 2: GLACIER and DEEP_ARCHIVE; a user's copy is in STANDARD again."""
    world.configure(v1(StorageClass="GLACIER"))
    world.write("k", b"data")
    world.settle()
    world.configure(v1(to=SOURCE), source=DESTINATION)
    archived = world.current("k", DESTINATION)
    assert archived.storage_class == "GLACIER"
    world.write("k", b"other", DESTINATION)
    world.settle()
    assert world.current("k", DESTINATION).storage_class == ""
    world.run("object.restore", bucket=DESTINATION, key=b"k", version_id=archived.id)
    world.settle()
    assert world.current("k", DESTINATION).storage_class == ""
    assert world.ids(SOURCE)[b"k"] == world.ids(DESTINATION)[b"k"]


@pytest.mark.parametrize("without_journal", [False, True])
def test_a_view_that_may_not_be_changed_delays_no_other(world: World, without_journal: bool) -> None:
    """G7: an immutable file stays shown, across a crash too, and the rest of the bucket continues."""
    world.configure(v1())
    for key in ("k", "gone"):
        world.write(key, b"one")
    world.settle()
    shut = {world.path(key, DESTINATION).stat().st_ino for key in ("k", "gone")}

    class Immutable(UnsyncedFs):
        def _check(self, at: int, name: bytes) -> None:
            if self.stat(at, name).st_ino in shut:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        def exchange(self, at: int, name: bytes, to: int, new: bytes) -> None:
            self._check(to, new)
            super().exchange(at, name, to, new)

        def rename_new(self, at: int, name: bytes, to: int, new: bytes) -> None:
            self._check(at, name)
            super().rename_new(at, name, to, new)

    world.restart(fs=Immutable())
    world.settle()
    world.write("k", b"two")
    world.unlink("gone")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"one", "gone": b"one"}
    world.restart(fs=Immutable(), without_journal=without_journal)
    world.write("other", b"o")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"one", "gone": b"one", "other": b"o"}
    assert world.statuses() == {"COMPLETED"}
    world.restart()
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"two", "other": b"o"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert world.leftovers(DESTINATION) == []


def test_what_a_bucket_shows_since_it_was_a_tree_bucket_is_no_conflict(tmp_path: Path) -> None:
    """design.md, 5: a ViewConflict is what cannot be shown, and why says what it needs, without a daemon too."""

    def whys() -> list[str]:
        said = {"running": False}
        found = [why.why(world.engine.site, at(DESTINATION, key), None, said).sentences for key in (b"link", b"dir/")]
        return [sentence for sentences in found for sentence in sentences if "ViewConflict" in sentence]

    with World(tmp_path, trees=True) as world:
        world.link("link", "target")
        world.path("dir").mkdir()
        world.settle()
        world.run("bucket.trees", bucket=DESTINATION, on=False)
        world.settle()
        assert whys() == []
        world.unlink("link")
        world.link("link", "elsewhere")
        world.settle()
        assert whys() == [f"ViewConflict in {DESTINATION}: it is a symlink, and {DESTINATION} is no tree bucket"]
