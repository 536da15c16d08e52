"""Edits of metadata, one way: in place, under the same id, of each group and each kind; and no further change
afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.errors import Refused
from fsrepl.model import attributes
from fsrepl.model.metadata import ACL, ATTRS, POSIX, TAGS
from fsrepl.model.version import Origin, Status
from fsrepl.replicate.group import DeliveryGroup
from fsrepl.views.view_attributes import label_view
from tests.world import DESTINATION, SOURCE, World

ROOT = os.geteuid() == 0
ACL_NAME = "system.posix_acl_access"
NONE = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


BOB_READS = acl((1, 6, NONE), (2, 4, 1001), (4, 0, NONE), (16, 4, NONE), (32, 0, NONE))


SHARINGS = {
    "linked": {},  # a destination that only receives, on a filesystem without reflinks
    "private": {"west": "private"},
    "all-linked": {"east": "link", "west": "link"},
}


@pytest.fixture(params=SHARINGS)
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with World(tmp_path) as made:
        if SHARINGS[request.param]:
            made.set_sharing(**SHARINGS[request.param])
        yield made


# -- every kind of edit

Edit = Callable[[Path], None]


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))


def open_up(path: Path) -> None:
    path.chmod(0o666)


def close(path: Path) -> None:
    path.chmod(0o400)


def shut(path: Path) -> None:
    path.chmod(0)


def setuid(path: Path) -> None:
    path.chmod(0o6755)


def give_away(path: Path) -> None:
    os.chown(path, 1234, 4321)
    path.chmod(0o4750)


def let_bob_in(path: Path) -> None:
    os.setxattr(path, ACL_NAME, BOB_READS)


def colour(path: Path) -> None:
    os.setxattr(path, "user.colour", b"blue")


def binary(path: Path) -> None:
    os.setxattr(path, "user.binary", bytes(range(256)))


def tag_by_attribute(path: Path) -> None:
    os.setxattr(path, "user.fsrepl.tag.class", b"x")


KINDS: list[tuple[Edit, set[str]]] = [
    (touch, {POSIX}),
    (open_up, {POSIX}),
    (close, {POSIX}),
    (shut, {POSIX}),
    (setuid, {POSIX}),
    (give_away, {POSIX}),
    (let_bob_in, {POSIX, ACL}),
    (colour, {ATTRS}),
    (binary, {ATTRS}),
    (tag_by_attribute, {TAGS}),
]


@pytest.mark.skipif(not ROOT, reason="gives files away")
@pytest.mark.parametrize(("edit", "groups"), KINDS, ids=[edit.__name__ for edit, _ in KINDS])
def test_an_edit_is_replicated_as_an_edit(world: World, edit: Edit, groups: set[str]) -> None:
    """S3, S24, G5: metadata stays identical after later edits too; no version is made, and nothing changes
    afterwards."""
    world.write("d/k", b"data")
    world.settle()
    before, inode = world.ids(SOURCE), world.path("d/k", DESTINATION).stat().st_ino
    edit(world.path("d/k"))
    world.settle()
    assert world.ids(SOURCE) == world.ids(DESTINATION) == before
    assert world.records(SOURCE) == world.records(DESTINATION)
    assert world.look_of("d/k") == world.look_of("d/k", DESTINATION)
    assert set(world.current("d/k").edited) == groups
    assert (world.statuses(), world.statuses(DESTINATION)) == ({Status.COMPLETED}, {Status.REPLICA})
    assert world.path("d/k", DESTINATION).stat().st_ino == inode, "only metadata: the view is the file that it was"
    world.stays_quiet()


@pytest.mark.skipif(not ROOT, reason="gives files away")
def test_a_removed_value_is_removed_at_the_replica(world: World) -> None:
    """s3-semantics 2.2: removal of a value is a change like any other."""
    world.write("k", b"data")
    for edit in (let_bob_in, colour, tag_by_attribute, give_away):
        edit(world.path("k"))
    world.settle()
    assert world.look_of("k") == world.look_of("k", DESTINATION)
    for name in (ACL_NAME, "user.colour", "user.fsrepl.tag.class"):
        os.removexattr(world.path("k"), name)
    os.chown(world.path("k"), 0, 0)
    world.settle()
    assert world.records(SOURCE) == world.records(DESTINATION)
    posix, own = world.look_of("k", DESTINATION)
    assert (posix, own) == world.look_of("k")
    assert (posix.acl, posix.uid, own) == (None, 0, {})
    assert len(world.of("k")) == 1
    world.stays_quiet()


def test_nothing_and_the_same_again_are_no_edits(world: World) -> None:
    """s3-semantics 2.2: chmod to the same mode, another hard link, the same bytes written again in place."""
    world.write("k", b"data")
    world.settle()
    path = world.path("k")
    path.chmod(path.stat().st_mode & 0o7777)
    (world.home / "another name").hardlink_to(path)
    os.setxattr(path, "user.passing", b"by")
    os.removexattr(path, "user.passing")
    world.settle()
    assert world.current("k").edited == {}
    found = path.stat()
    with path.open("r+b") as file:
        file.write(b"data")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    world.settle()
    assert [v.edited for v in world.of("k")] == [{}]
    assert world.current("k", DESTINATION).edited == {}


def test_tags_by_command(world: World) -> None:
    """s3-semantics 4: tags are edited in place, on the record and on both views; on noncurrent versions too."""
    world.write("k", b"one")
    world.settle()
    world.drop("k", b"two")
    world.settle()
    new, old = world.of("k")
    world.run("tag.set", bucket=SOURCE, key=b"k", version_id=old.id, tags={"age": "old"})
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"age": "new", "x": "1"})
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["x"])
    world.settle()
    for bucket in (SOURCE, DESTINATION):
        assert [v.tags for v in world.of("k", bucket)] == [{"age": "new"}, {"age": "old"}]
        assert world.look_of("k", bucket)[1] == {"user.fsrepl.tag.age": b"new"}
    assert world.records(SOURCE) == world.records(DESTINATION)
    assert [v.id for v in world.of("k", DESTINATION)] == [new.id, old.id]
    world.stays_quiet()


def test_edits_while_the_daemon_was_away(world: World) -> None:
    """G6: a scan finds them, with the journal or without."""
    for key in ("a", "b", "c"):
        world.write(key, key.encode())
    world.settle()
    for without_journal in (False, True):
        world.engine.close()
        world.path("a").chmod(0o640 if without_journal else 0o600)
        os.setxattr(world.path("b"), "user.n", b"%d" % without_journal)
        world.restart(without_journal=without_journal)
        world.settle()
        assert world.records(SOURCE) == world.records(DESTINATION)
        assert world.look_of("a") == world.look_of("a", DESTINATION)
        assert world.look_of("b") == world.look_of("b", DESTINATION)
    assert {v.edited == {} for v in world.of("c")} == {True}
    assert all(len(versions) == 1 for versions in world.ids(SOURCE).values())
    world.stays_quiet()


def test_an_edit_of_a_version_that_has_not_arrived_yet(tmp_path: Path) -> None:
    """s3-semantics 3.1: a PENDING delivery includes the edit; FAILED stays so, and a retry sends the metadata of that
    moment."""
    with World(tmp_path) as world:
        world.away("west")
        world.write("pending", b"1")
        world.settle()
        world.path("pending").chmod(0o600)
        world.settle()
        assert world.statuses() == {Status.PENDING}
        world.back("west")
        world.settle()
        assert world.records(SOURCE) == world.records(DESTINATION)
        role = next(world.settings.roles.glob("*.json"))
        text = role.read_text()
        role.write_text(text.replace("s3:ReplicateObject", "s3:ListBucket"))
        world.write("failed", b"2")
        world.settle()
        role.write_text(text)
        world.path("failed").chmod(0o600)
        world.settle()
        assert world.current("failed").status is Status.FAILED
        assert world.of("failed", DESTINATION) == []
        world.run("retry", scope=f"{SOURCE}/failed")
        world.settle()
        assert world.records(SOURCE) == world.records(DESTINATION)
        world.stays_quiet()


def test_edits_of_versions_from_before_the_rule_are_not_sent(tmp_path: Path) -> None:
    """s3-semantics 2: only versions created after the configuration."""
    with World(tmp_path, replicate=False) as world:
        world.write("before", b"1")
        world.settle()
        world.run("replication.enable", source=SOURCE, destination=DESTINATION)
        world.path("before").chmod(0o600)
        world.run("tag.set", bucket=SOURCE, key=b"before", tags={"a": "1"})
        world.settle()
        version = world.current("before")
        assert (version.status, dict(version.tags)) == (None, {"a": "1"})
        assert world.ids(DESTINATION) == {}


def test_edits_while_the_rule_is_disabled_are_not_sent(world: World) -> None:
    """s3-semantics 1.5: such changes are not sent until the next edit sends all metadata."""
    world.write("k", b"1")
    world.settle()
    world.run("replication.disable", source=SOURCE)
    world.path("k").chmod(0o600)
    world.settle()
    world.run("replication.enable", source=SOURCE)
    world.settle()
    assert world.look_of("k", DESTINATION)[0].mode == 0o644
    assert world.statuses() == {Status.COMPLETED}
    os.setxattr(world.path("k"), "user.colour", b"blue")
    world.settle()
    assert world.records(SOURCE) == world.records(DESTINATION)


@pytest.mark.parametrize("how", ["removed", "recreated"])
def test_an_edit_of_a_version_that_the_destination_removed_fails(tmp_path: Path, how: str) -> None:
    """s3-semantics 3.3: DstVersionNotFound; a chmod does not bring back a replica that was permanently removed."""
    with World(tmp_path) as world:
        world.write("k", b"1")
        world.settle()
        if how == "removed":
            world.remove("k", DESTINATION, world.current("k").id)
        else:
            world.run("bucket.rm", bucket=DESTINATION, purge=True)
            world.run("bucket.create", bucket=DESTINATION, versioning=True)
        world.path("k").chmod(0o600)
        world.settle()
        assert world.current("k").deliveries[DESTINATION].reason == "DstVersionNotFound"
        assert world.ids(DESTINATION) == {}
        world.run("retry", scope=SOURCE)
        world.settle()
        assert world.statuses() == {Status.FAILED}
        world.write("k", b"2")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"2"}


def test_fsrepls_attributes_on_views_are_never_trusted(world: World) -> None:
    """Section 2: a user who may write a view may write any attribute; the record decides, and the view gets its labels
    again."""
    lies = {
        "version-id": b"01M86BR4BYESNWRWW29YNETWES", "blake3": b"00" * 32, "last-modified": b"1999-01-01T00:00:00Z",
        "replication-status": b"FAILED", "storage-class": b"GLACIER", "origin": b"lifecycle", "key": b"other",
        "deliveries": b'{"west/dst":{"rule":"r","status":"PENDING"}}', "edited": b'{"tags":"9 x"}', "posix": b"{}",
        "shortfall": b"{}", "record": b"{}", "nonsense": b"\xff",
    }  # fmt: skip
    world.write("k", b"1")
    world.settle()
    before = {bucket: world.history(bucket) for bucket in (SOURCE, DESTINATION)}
    told = {bucket: os.listxattr(world.path("k", bucket)) for bucket in (SOURCE, DESTINATION)}
    for bucket in (SOURCE, DESTINATION):
        for name, value in lies.items():
            os.setxattr(world.path("k", bucket), f"user.fsrepl.{name}", value)
    world.settle()
    for without_journal in (False, True):
        assert {bucket: world.history(bucket) for bucket in (SOURCE, DESTINATION)} == before
        world.restart(without_journal=without_journal)
        world.settle()
    for bucket in (SOURCE, DESTINATION):
        said = {
            n: os.getxattr(world.path("k", bucket), f"user.fsrepl.{n}") for n in ("version-id", "replication-status")
        }
        assert said["version-id"].decode() == world.current("k", bucket).id
        assert said["replication-status"].decode() == world.current("k", bucket).status
        records = attributes.RECORDS if world.path("k", bucket).stat().st_nlink > 1 else set()
        assert set(os.listxattr(world.path("k", bucket))) - records == set(told[bucket]) - records
    world.stays_quiet()


@pytest.mark.skipif(not ROOT, reason="only a daemon that is root could be tricked")
def test_an_owner_cannot_claim_that_a_file_is_roots(world: World) -> None:
    """G1: a bucket's user gains no mode, no owner and no key by attributes written on a view."""
    world.write("k", b"1")
    os.chown(world.path("k"), 1234, 1234)
    world.settle()
    for bucket in (SOURCE, DESTINATION):
        path = world.path("k", bucket)
        os.setxattr(path, "user.fsrepl.posix", b'{"mode":"4777","uid":0,"gid":0,"mtime_ns":1}')
        os.setxattr(path, "user.fsrepl.key", b"another")
    world.settle()
    world.drop("k", b"2")
    world.settle()
    old = world.of("k")[1]
    for bucket in (SOURCE, DESTINATION):
        world.remove("k", bucket, world.current("k", bucket).id)
        found = world.path("k", bucket).stat()
        assert (found.st_uid, found.st_mode & 0o7777, found.st_size) == (1234, 0o644, 1), bucket
        assert world.current("k", bucket).id == old.id
        assert set(world.history(bucket)) == {b"k"}


def test_a_copy_with_the_labels_of_another_file_is_a_new_file(world: World) -> None:
    """Section 2: `cp -a` and `rsync -X` copy fsrepl's attributes to new files, for which they mean nothing."""
    world.write("k", b"1")
    world.settle()
    copy = world.path("copy")
    copy.write_bytes(b"1")
    for name in os.listxattr(world.path("k")):
        os.setxattr(copy, name, os.getxattr(world.path("k"), name))
    world.settle()
    version = world.current("copy")
    assert version.id != world.current("k").id
    assert version.origin is Origin.USER
    assert os.getxattr(copy, "user.fsrepl.version-id").decode() == version.id
    world.stays_quiet()


def test_an_edit_in_the_moment_of_labelling_is_not_lost(tmp_path: Path) -> None:
    """s3-semantics 2.2: a user's change of a view between two inspections is noticed, not taken for fsrepl's own."""
    from fsrepl.storage.fs import Fs

    class Meddling(Fs):
        """A user edits a view just when fsrepl has set a label on it."""

        def __init__(self) -> None:
            self.edits: list[Callable[[], None]] = []

        def set_attribute(self, fd: int, name: str, value: bytes) -> None:
            super().set_attribute(fd, name, value)
            if self.edits and os.readlink(f"/proc/self/fd/{fd}").endswith("/src/k"):
                self.edits.pop()()

    fs = Meddling()
    with World(tmp_path, fs=fs) as world:
        path = world.path("k")
        edits: list[Callable[[], None]] = [
            lambda: path.chmod(0o600),
            lambda: os.setxattr(path, "user.colour", b"blue"),
            lambda: os.setxattr(path, "user.fsrepl.tag.a", b"1"),
            lambda: os.setxattr(path, "user.colour", b"red"),
        ]
        for number, edit in enumerate(edits):
            fs.edits = [edit]
            world.write("k", b"%d" % number)
            world.settle()
            assert not fs.edits
            world.settle()
            assert world.look_of("k") == world.look_of("k", DESTINATION), number
            assert world.records(SOURCE) == world.records(DESTINATION)
        world.stays_quiet()


# -- attributes and room


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[World]:
    """The source where attributes have room (tmpfs), the destination where they do not (ext4, 4 KiB in all)."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or not os.access(shm, os.W_OK):
        pytest.skip("there is no tmpfs")
    import shutil
    import tempfile

    top = Path(tempfile.mkdtemp(dir=shm))
    try:
        with World(tmp_path, regions={"east": top / "east", "west": tmp_path / "west"}) as made:
            yield made
    finally:
        shutil.rmtree(top)


def sidecars(world: World, bucket: str) -> int:
    return len(list(world.path(".fsrepl/versions", bucket).rglob("*;meta.json")))


@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_attributes_that_do_not_fit_go_to_a_sidecar_and_come_back(roomy: World, sharing: str) -> None:
    """Section 2: they are never dropped; an attribute for which a view has no room is no edit of it; the sidecar is
    removed when possible."""
    if sharing != "auto":
        roomy.set_sharing(west=sharing)
    values = {"user.large": os.urandom(60_000), "user.small": b"1", "user.fsrepl.tag.a": b"\xff\xfe"}
    roomy.write("k", b"data")
    for name, value in values.items():
        os.setxattr(roomy.path("k"), name, value)
    roomy.settle()
    assert roomy.look_of("k")[1] == values
    assert roomy.records(SOURCE) == roomy.records(DESTINATION)
    assert sidecars(roomy, DESTINATION) == 1
    assert roomy.current("k", DESTINATION).attrs == {"user.large": values["user.large"], "user.small": b"1"}
    assert "user.large" not in roomy.look_of("k", DESTINATION)[1]
    roomy.stays_quiet()
    # a user edits the replica, whose view lacks the large attribute, which stays on the record
    roomy.path("k", DESTINATION).chmod(0o600)
    os.setxattr(roomy.path("k", DESTINATION), "user.there", b"1")
    roomy.settle()
    assert roomy.current("k", DESTINATION).attrs.keys() == {"user.large", "user.small", "user.there"}
    roomy.restart(without_journal=True)
    roomy.settle()
    assert roomy.current("k", DESTINATION).attrs.keys() == {"user.large", "user.small", "user.there"}
    # it shrinks
    os.setxattr(roomy.path("k"), "user.large", b"not any more")
    roomy.settle()
    assert sidecars(roomy, DESTINATION) == 0
    assert roomy.current("k", DESTINATION).attrs == {"user.large": b"not any more", "user.small": b"1"}
    assert roomy.look_of("k", DESTINATION)[1] == roomy.look_of("k")[1]
    # it grows again, and is removed
    os.setxattr(roomy.path("k"), "user.large", b"x" * 65_000)
    roomy.settle()
    assert sidecars(roomy, DESTINATION) == 1
    assert roomy.current("k", DESTINATION).attrs["user.large"] == b"x" * 65_000
    os.removexattr(roomy.path("k"), "user.large")
    roomy.settle()
    assert sidecars(roomy, DESTINATION) == 0
    assert roomy.current("k", DESTINATION).attrs == {"user.small": b"1"}
    assert roomy.statuses(DESTINATION) == {Status.REPLICA}
    roomy.stays_quiet()


def test_a_source_whose_attributes_leave_no_room_for_labels(tmp_path: Path) -> None:
    """Section 2: a full view has no labels; edits of it count all the same, removals too."""
    with World(tmp_path) as world:
        world.write("k", b"data")
        path = world.path("k")
        size = next(n for n in itertools.count(4050, -10) if _takes(path, "user.full", n))
        world.settle()
        assert world.current("k").attrs["user.full"] == b"x" * size
        assert world.records(SOURCE) == world.records(DESTINATION)
        assert sidecars(world, SOURCE) == 1
        path.chmod(0o600)
        world.settle()
        assert world.current("k").attrs["user.full"] == b"x" * size
        os.removexattr(path, "user.full")
        world.settle()
        for bucket in (SOURCE, DESTINATION):
            assert world.current("k", bucket).attrs == {}
            assert sidecars(world, bucket) == 0
            assert os.getxattr(world.path("k", bucket), "user.fsrepl.version-id")
        assert world.look_of("k") == world.look_of("k", DESTINATION)
        world.stays_quiet()


def _takes(path: Path, name: str, size: int) -> bool:
    try:
        os.setxattr(path, name, b"x" * size)
    except OSError:
        return False
    return True


def test_an_edit_during_a_backfill_that_is_cancelled(tmp_path: Path) -> None:
    """s3-semantics 2: an edit of a delivered version is live; the end of a job does not end it."""
    with World(tmp_path) as world:
        world.write("k", b"data")
        world.settle()
        world.away("west")
        started = world.run("replication.backfill", source=SOURCE, statuses=["COMPLETED"])
        world.settle()
        world.path("k").chmod(0o600)
        world.settle()
        with contextlib.suppress(Refused):  # the job may have ended by that, since nothing is left for it
            world.run("replication.cancel", job=started["JobId"])
        world.settle()
        world.back("west")
        world.settle()
        world.settle()
        assert world.records(SOURCE) == world.records(DESTINATION)
        assert world.look_of("k") == world.look_of("k", DESTINATION)
        assert world.statuses() == {Status.COMPLETED}
        world.stays_quiet()


def test_other_names_of_stored_versions_change_nothing(tmp_path: Path) -> None:
    """Section 2: a backup made of hard links (`cp -al`) leaves every record as it is."""
    with World(tmp_path) as world:
        world.write("k", b"k")
        world.path("k").chmod(0o640)
        world.settle()
        before = world.history(SOURCE)
        (version,) = before[b"k"]
        os.link(world.path(f".fsrepl/versions/k;{version.id}"), tmp_path / "backup")
        assert world.history(SOURCE) == before
        world.restart()
        world.settle()
        assert world.history(SOURCE) == before


@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_an_edit_of_a_replica_while_an_update_of_it_is_under_way_is_recorded_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharing: str
) -> None:
    """The update was prepared in a batch, and the batch is written only now: the user's edit came later, and holds."""
    with World(tmp_path) as world:
        world.set_sharing(west=sharing)
        world.write("k", b"k")
        world.settle()
        real = DeliveryGroup.publish

        def publish(self: DeliveryGroup) -> None:
            if self.updates and self.destination.address == DESTINATION:
                monkeypatch.setattr(DeliveryGroup, "publish", real)
                world.path("k", DESTINATION).chmod(0o611)
            real(self)

        monkeypatch.setattr(DeliveryGroup, "publish", publish)
        world.path("k").chmod(0o600)
        world.settle()
        world.settle()
        assert world.path("k", DESTINATION).stat().st_mode & 0o7777 == 0o611
        assert world.current("k", DESTINATION).edited["posix"].endswith(DESTINATION)
        world.stays_quiet()


def test_an_edit_of_a_view_that_is_the_stored_file_too_is_no_label(tmp_path: Path) -> None:
    """The daemon's own writes change the ctime of such a view. So a label looks at the mode and owner: what it puts on
    record is what a later look takes for known."""
    with World(tmp_path) as world:
        world.write("k", b"k")
        world.settle()
        known, version = world.engine.journal.versions.object(DESTINATION, b"k"), world.current("k", DESTINATION)
        assert known is not None
        assert known.view is not None
        with world.state(DESTINATION).bucket.open() as bucket:
            assert label_view(bucket, version, known.view) is not None
            world.path("k", DESTINATION).chmod(0o611)
            assert label_view(bucket, version, known.view) is None
