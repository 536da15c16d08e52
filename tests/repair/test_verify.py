"""verify compares stores and views with what they should be, and repair uses whichever copy is good."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.errors import Refused
from fsrepl.model import keys
from fsrepl.model.version import Status
from fsrepl.model.view import View
from fsrepl.repair.compare import Problem, Seen, Verdict, judge_view
from fsrepl.repair.verify import Verification
from fsrepl.storage.fs import ReadingFs
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.site import Site
from tests.doubles import DyingFs, Place, PowerCut, Tried
from tests.repair.test_rebuild import strip
from tests.stored import set_field, stored
from tests.verifying import tally, verification, verify
from tests.world import DESTINATION, SOURCE, World, v2


def rot(path: Path) -> None:
    """Change a byte without changing the times."""
    before = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rot_view(world: World, key: str, bucket: str) -> None:
    """The same for a view, with its ctime unchanged."""
    path = world.path(key, bucket)
    rot(path)
    journal = world.engine.journal
    known = journal.versions.object(bucket, key.encode())
    assert known is not None
    assert known.view is not None
    with journal.transaction():
        journal.views.see(bucket, key.encode(), replace(known.view, ctime_ns=path.stat().st_ctime_ns))


def fill(world: World) -> None:
    world.write("d/k", b"one")
    world.write("gone", b"soon gone")
    world.write("x" * 240, b"long")
    world.settle()
    (world.home / "new").write_bytes(b"two")  # not written in place, as sharing = "link" requires
    (world.home / "new").rename(world.path("d/k"))
    world.path("gone").unlink()
    world.settle()
    world.settle()  # a view whose times are too recent to be trusted is inspected once more


def everything(world: World) -> dict[str, tuple[object, ...]]:
    """All that a write or an attribute would change in the regions."""
    out: dict[str, tuple[object, ...]] = {}
    for path in sorted([*(world.home / "east").rglob("*"), *(world.home / "west").rglob("*")]):
        if path.name == "tmp":
            continue  # a staged file that is gone again
        found = path.lstat()
        out[str(path)] = (found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns)
    return out


# -- comparison


def test_the_same(tmp_path: Path) -> None:
    """Section 5: two equal sides, on each of which 5 versions and a marker were read; nothing is written."""
    with World(tmp_path) as world:
        fill(world)
        before = everything(world)
        found = tally(world)
        assert (found.checked, found.pending, found.failed, found.left) == (10, 0, 0, 0)
        assert found.bytes >= 2 * len(b"onesoon gonelongtwo")
        assert everything(world) == before


def test_pending_deliveries_and_changes_are_no_difference(tmp_path: Path) -> None:
    """Section 5: deliveries that are not done and files that are just being changed are counted separately."""
    with World(tmp_path) as world:
        world.set_sharing(east="private", west="private")
        fill(world)
        (world.home / "west").rename(tmp_path / "away")
        world.write("new", b"not there yet")
        world.settle()
        with verification(world) as found:
            assert list(found.differences()) == []
            assert found.tally.pending == 1
            assert list(found.tally.away) == [DESTINATION]
        (tmp_path / "away").rename(world.home / "west")
        world.write("d/k", b"being edited")
        world.write("d/k", b"at both ends", DESTINATION)
        world.path("new").unlink()
        assert tally(world).pending == 4  # the delivery, two files written and one removed


def test_a_version_removed_for_good_is_not_missing(tmp_path: Path) -> None:
    """s3-semantics, 2: permanent removals are never replicated, on neither side."""
    with World(tmp_path) as world:
        fill(world)
        old, new = world.history(SOURCE)[b"d/k"]
        world.run("object.rm", bucket=SOURCE, key=b"d/k", version_id=old.id)
        world.run("object.rm", bucket=DESTINATION, key=b"d/k", version_id=new.id)
        world.settle()
        assert verify(world) == []


@pytest.mark.parametrize("by_command", [False, True], ids=["unlink", "rm"])
def test_an_object_that_is_deleted_at_the_replica_alone_is_named(tmp_path: Path, *, by_command: bool) -> None:
    """Section 5: the replica has a delete marker, and its source the object. Nothing is changed by itself.

    Also where a repair was requested: the deletion is the replica's user's own, and the command that undoes it is
    printed.
    """
    with World(tmp_path) as world:
        fill(world)
        if by_command:
            world.remove("d/k", DESTINATION)
        else:
            world.unlink("d/k", DESTINATION)
        world.settle()
        named = (DESTINATION, "d/k", "ReplicaDeleted", False)
        assert verify(world) == [named]
        assert verify(world, repair=True) == [named]
        marker = world.current("d/k", DESTINATION)
        with verification(world) as found:
            (difference,) = found.differences()
        assert f"`fsrepl rm {DESTINATION}/d/k --version-id {marker.id}`" in difference.why
        world.remove("d/k", DESTINATION, marker.id)
        world.settle()
        assert world.path("d/k", DESTINATION).read_bytes() == world.path("d/k").read_bytes()
        world.unlink("d/k", DESTINATION)
        world.settle()
        world.unlink("d/k")
        world.settle()
        assert verify(world) == []


def test_a_metadata_edit_of_the_replica_is_its_own(tmp_path: Path) -> None:
    """s3-semantics, 2.2: a replica that was edited later is no difference."""
    with World(tmp_path) as world:
        fill(world)
        world.run("tag.set", bucket=DESTINATION, key=b"d/k", tags={"mine": "yes"})
        os.chmod(world.path("d/k", DESTINATION), 0o600)
        world.settle()
        assert verify(world) == []


def test_tags_that_the_role_keeps_back(tmp_path: Path) -> None:
    """s3-semantics, 6.1: without s3:ReplicateTags the version is sent without its tags, and is correct so."""
    with World(tmp_path) as world:
        role = next(world.settings.roles.glob("*.json"))
        role.write_text(role.read_text().replace("s3:ReplicateTags", "s3:GetObject"))
        world.write("k", b"one")
        os.setxattr(world.path("k"), "user.fsrepl.tag.class", b"blue")
        world.settle()
        assert [v.tags for v in world.history(DESTINATION)[b"k"]] == [{}]
        assert verify(world) == []


@pytest.mark.parametrize("bad", [DESTINATION.replace("dst", "nowhere"), "west/other"])
def test_a_destination_that_is_none(tmp_path: Path, bad: str) -> None:
    """Section 5: refused, with the possible destinations."""
    with World(tmp_path) as world:
        world.run("bucket.create", bucket="west/other", versioning=True)
        with pytest.raises(Refused, match=r"NoSuchBucket|InvalidRequest: west/other is no destination.*west/dst"):
            verification(world, bad).__enter__()


def test_a_bucket_without_versions(tmp_path: Path) -> None:
    """Section 5: a bucket with nothing to verify is refused, not called correct."""
    with World(tmp_path, replicate=False) as world:
        world.run("bucket.create", bucket="east/plain", versioning=False)
        site = Site(world.settings, ReadingFs())
        with pytest.raises(Refused, match="InvalidRequest: east/plain was never versioned"):
            Verification(site, "east/plain", None, None)


def test_the_other_side_may_be_a_source_too(tmp_path: Path) -> None:
    """Section 5: buckets that replicate to each other, and a version that one of them lost."""
    with World(tmp_path) as world:
        world.run("replication.enable", source=DESTINATION, destination=SOURCE)
        fill(world)
        world.write("theirs", b"made there", DESTINATION)
        world.settle()
        assert verify(world) == []
        stored(world, "theirs", DESTINATION).unlink()
        assert verify(world) == [(DESTINATION, "theirs", "Missing", False)]
        assert verify(world, repair=True) == [(DESTINATION, "theirs", "Missing", True)]
        assert world.ids(SOURCE) == world.ids(DESTINATION)


# -- damage, and repair

Damage = Callable[[World, str], None]


def _content(world: World, bucket: str) -> None:
    rot(stored(world, "d/k", bucket, 0))


def alone(file: Path) -> Path:
    """Make the same file no longer a name of its view: a write into that would be its user's."""
    copy = file.with_name("copy")
    shutil.copy2(file, copy)
    copy.rename(file)
    return file


def _content_of_the_current(world: World, bucket: str) -> None:
    rot(alone(stored(world, "d/k", bucket)))


def _truncated(world: World, bucket: str) -> None:
    os.truncate(alone(stored(world, keys.stored_path(b"x" * 240).decode(), bucket)), 2)


def _missing(world: World, bucket: str) -> None:
    stored(world, "d/k", bucket, 0).unlink()


def _current_missing(world: World, bucket: str) -> None:
    stored(world, "d/k", bucket).unlink()


def _marker_missing(world: World, bucket: str) -> None:
    stored(world, "gone", bucket).unlink()


def _stripped(world: World, bucket: str) -> None:
    strip(stored(world, "d/k", bucket, 0))


def _stripped_current(world: World, bucket: str) -> None:
    strip(stored(world, "d/k", bucket))


def _stripped_long(world: World, bucket: str) -> None:
    strip(stored(world, keys.stored_path(b"x" * 240).decode(), bucket))


def _stripped_marker(world: World, bucket: str) -> None:
    strip(stored(world, "gone", bucket))


def _contradicting(world: World, bucket: str) -> None:
    file = alone(stored(world, "d/k", bucket, 0))
    record_in_the_open(file)
    set_field(file, "version-id", "null")


def _unreadable_record(world: World, bucket: str) -> None:
    file = alone(stored(world, "d/k", bucket, 0))
    record_in_the_open(file)
    set_field(file, "last-modified", "yesterday")


def record_in_the_open(file: Path) -> None:
    """Without the record that holds where a stored version is, or was, a view too."""
    with contextlib.suppress(OSError):
        os.removexattr(file, "trusted.fsrepl.record")


DAMAGES: list[tuple[Damage, str]] = [
    (_content, "DigestMismatch"),
    (_content_of_the_current, "DigestMismatch"),
    (_truncated, "DigestMismatch"),
    (_missing, "Missing"),
    (_current_missing, "Missing"),
    (_marker_missing, "Missing"),
    (_stripped, "AttributesLost"),
    (_stripped_current, "AttributesLost"),
    (_stripped_long, "AttributesLost"),
    (_stripped_marker, "AttributesLost"),
    (_contradicting, "RecordDamaged"),
    (_unreadable_record, "RecordDamaged"),
]
over_all_damages = pytest.mark.parametrize(("damage", "problem"), DAMAGES, ids=lambda x: getattr(x, "__name__", ""))


@pytest.mark.parametrize("sharing", ["auto", "private"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
@over_all_damages
def test_either_side_is_repaired(tmp_path: Path, damage: Damage, problem: str, bucket: str, sharing: str) -> None:
    """Section 5: verify names the damage and writes nothing, repair uses the other side, and views stay."""
    with World(tmp_path) as world:
        world.set_sharing(east=sharing, west=sharing)
        fill(world)
        before = world.history(SOURCE), world.history(DESTINATION), world.tree(SOURCE), world.tree(DESTINATION)
        views = [world.path("d/k").stat(), world.path("d/k", DESTINATION).stat()]
        damage(world, bucket)
        there = everything(world)
        found = verify(world)
        assert [(b, p, r) for b, _, p, r in found] == [(bucket, problem, False)]
        assert everything(world) == there
        assert [(b, p, r) for b, _, p, r in verify(world, repair=True)] == [(bucket, problem, True)]
        assert verify(world) == []
        world.settle()
        after = world.history(SOURCE), world.history(DESTINATION), world.tree(SOURCE), world.tree(DESTINATION)
        assert after == before
        assert world.path("d/k").stat().st_ino == views[0].st_ino
        assert world.path("d/k").stat().st_mtime_ns == views[0].st_mtime_ns
        assert world.path("d/k", DESTINATION).read_bytes() == b"two"
        assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == []
        world.restart(without_journal=True)
        world.settle()
        assert (world.history(SOURCE), world.history(DESTINATION)) == before[:2]


def test_nothing_is_shared_across_regions(tmp_path: Path) -> None:
    """G10: repair copies content from another region."""
    with World(tmp_path) as world:
        fill(world)
        _content(world, SOURCE)
        verify(world, repair=True)
        assert stored(world, "d/k", SOURCE, 0).stat().st_ino != stored(world, "d/k", DESTINATION, 0).stat().st_ino
        assert stored(world, "d/k", SOURCE, 0).stat().st_nlink == 1


def test_no_good_copy(tmp_path: Path) -> None:
    """Section 5: a version damaged on both sides stays as it is, and is named each time."""
    with World(tmp_path) as world:
        fill(world)
        _content(world, SOURCE)
        _content(world, DESTINATION)
        there = everything(world)
        found = verify(world, repair=True)
        assert found == [(b, "d/k", "DigestMismatch", False) for b in (SOURCE, DESTINATION)]
        assert everything(world) == there


def test_the_view_has_the_good_copy(tmp_path: Path) -> None:
    """Section 5: no other copy exists yet, but the view is undamaged; it stays as it is."""
    with World(tmp_path) as world:
        (world.home / "west").rename(tmp_path / "away")
        world.write("k", b"one")
        world.settle()
        rot(stored(world, "k"))
        view = world.path("k").stat()
        assert verify(world, repair=True) == [(SOURCE, "k", "DigestMismatch", True)]
        assert world.path("k").stat().st_ctime_ns == view.st_ctime_ns
        (tmp_path / "away").rename(world.home / "west")
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"one"}


def test_a_damaged_version_fails_and_is_sent_once_repaired(tmp_path: Path) -> None:
    """Section 5: it is never delivered but FAILED; once repaired it is pending again."""
    with World(tmp_path) as world:
        (world.home / "west").rename(tmp_path / "away")
        world.write("k", b"one")
        world.settle()
        rot(stored(world, "k"))
        world.restart()
        (tmp_path / "away").rename(world.home / "west")
        world.settle()
        assert world.statuses() == {Status.FAILED}
        assert world.tree(DESTINATION) == {}
        assert verify(world) == [(SOURCE, "k", "DigestMismatch", False)]
        assert verify(world, repair=True) == [(SOURCE, "k", "DigestMismatch", True)]
        world.settle()
        assert world.tree(DESTINATION) == {"k": b"one"}
        assert world.statuses() == {Status.COMPLETED}


def test_damage_in_the_store_counts_and_not_a_copy_in_memory(tmp_path: Path) -> None:
    """Section 5: damaged while its destination was briefly away: FAILED, though its content was in memory before."""
    with World(tmp_path) as world:
        (world.home / "west").rename(tmp_path / "away")
        world.write("k", b"one")
        world.settle()
        rot(stored(world, "k"))
        (tmp_path / "away").rename(world.home / "west")
        world.settle()
        assert world.statuses() == {Status.FAILED}
        assert world.tree(DESTINATION) == {}


def test_metadata_is_brought_into_line(tmp_path: Path) -> None:
    """G5: a replica whose record differs from the one sent."""
    with World(tmp_path) as world:
        world.set_sharing(east="private", west="private")
        world.write("k", b"one")
        os.setxattr(world.path("k"), "user.colour", b"blue")
        world.settle()
        before = world.history(DESTINATION)
        os.setxattr(stored(world, "k", DESTINATION), "user.colour", b"red")
        set_field(stored(world, "k", DESTINATION), "last-modified", "2020-01-01T00:00:00.000000000Z")
        assert verify(world) == [(DESTINATION, "k", "MetadataDiffers", False)]
        assert verify(world, repair=True) == [(DESTINATION, "k", "MetadataDiffers", True)]
        assert world.history(DESTINATION) == before
        world.settle()
        assert verify(world) == []
        assert world.history(DESTINATION) == before


def test_a_replica_of_other_content(tmp_path: Path) -> None:
    """G5: it matches its own record, which differs from its source's."""
    with World(tmp_path) as world:
        world.set_sharing(east="private", west="private")
        world.write("k", b"one")
        world.settle()
        file, other = stored(world, "k", DESTINATION), tmp_path / "other"
        from blake3 import blake3

        other.write_bytes(b"two")
        file.write_bytes(b"two")
        set_field(file, "blake3", blake3(b"two").hexdigest())
        assert verify(world) == [(DESTINATION, "k", p, False) for p in ("DigestMismatch", "ViewDiffers")]
        assert verify(world, repair=True) == [(DESTINATION, "k", "DigestMismatch", True)]
        assert world.ids(SOURCE) == world.ids(DESTINATION)


def test_a_delivery_that_was_forgotten(tmp_path: Path) -> None:
    """Section 5: the destination has the version, so it is COMPLETED."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        os.removexattr(stored(world, "k"), "user.fsrepl.deliveries")
        assert verify(world) == [(SOURCE, "k", "AttributesLost", False)]
        assert verify(world, repair=True) == [(SOURCE, "k", "AttributesLost", True)]
        assert world.statuses() == {Status.COMPLETED}


# -- views


@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_a_damaged_view_of_a_replica_is_restored(tmp_path: Path, sharing: str) -> None:
    """Section 5, G1: its inode and times show that no user wrote into it, so it is restored and makes no version."""
    with World(tmp_path) as world:
        world.set_sharing(east=sharing, west=sharing)
        fill(world)
        before = world.history(DESTINATION)
        rot_view(world, "d/k", DESTINATION)
        linked = world.path("d/k", DESTINATION).stat().st_nlink > 1
        problems = ["DigestMismatch", "ViewDiffers"] if linked else ["ViewDiffers"]
        assert verify(world) == [(DESTINATION, "d/k", problem, False) for problem in problems]
        assert verify(world, repair=True) == [(DESTINATION, "d/k", problems[0], True)]
        assert world.path("d/k", DESTINATION).read_bytes() == b"two"
        world.settle()
        assert world.history(DESTINATION) == before
        assert verify(world) == []


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_the_view_of_a_source_is_never_touched(tmp_path: Path, sharing: str) -> None:
    """Section 5: it is named, each time; its stored version is repaired where it is the same file."""
    with World(tmp_path) as world:
        world.set_sharing(east=sharing, west=sharing)
        fill(world)
        before = world.history(SOURCE)
        rot_view(world, "d/k", SOURCE)
        view, bad = world.path("d/k").stat(), world.path("d/k").read_bytes()
        found = verify(world, repair=True)
        expected = [(SOURCE, "d/k", "ViewDiffers", False)]
        assert found == ([(SOURCE, "d/k", "DigestMismatch", True), *expected] if sharing == "link" else expected)
        assert world.path("d/k").read_bytes() == bad
        assert world.path("d/k").stat().st_ino == view.st_ino
        world.settle()
        assert world.history(SOURCE) == before
        assert verify(world) == expected


def test_a_replica_that_was_edited_becomes_a_version(tmp_path: Path) -> None:
    """Section 7: a write into a replica is its user's, even where it destroyed the stored version that is the same
    file."""
    with World(tmp_path) as world:
        fill(world)
        with world.path("d/k", DESTINATION).open("r+b") as file:
            file.write(b"TWO")
        assert {p for _, _, p, r in verify(world, repair=True) if r} == {"DigestMismatch"}
        world.settle()
        assert world.path("d/k", DESTINATION).read_bytes() == b"TWO"
        assert len(world.history(DESTINATION)[b"d/k"]) == 3
        assert verify(world) == []


def test_a_view_conflict_is_named(tmp_path: Path) -> None:
    """Section 5: the replica is in the store and COMPLETED, and cannot be shown."""
    with World(tmp_path) as world:
        world.path("k", DESTINATION).mkdir()
        world.write("k", b"one")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert verify(world, repair=True) == [(DESTINATION, "k", "ViewConflict", False)]
        world.path("k", DESTINATION).rmdir()
        assert tally(world).pending == 1
        world.settle()
        assert tally(world).pending == 0


# -- crashes


DAMAGES = [_content, _content_of_the_current, _missing, _stripped, _stripped_marker]


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
@pytest.mark.parametrize("damage", DAMAGES)
def test_power_cut_during_repair(memory: Path, damage: Damage, bucket: str, tried: Callable[..., Tried]) -> None:
    """G2, G7: cut at any change, a repair is done or not, and can be repeated; nothing is lost or doubled."""
    _cut_everywhere(memory, lambda world: damage(world, bucket), others=tried())


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_power_cut_while_a_view_is_restored(memory: Path, sharing: str) -> None:
    """G1, G4, G7: damaged content of a replica's view never becomes a version, and the view is never missing."""
    _cut_everywhere(memory, lambda world: rot_view(world, "d/k", DESTINATION), sharing)


def _cut_everywhere(
    home: Path, damage: Callable[[World], None], sharing: str = "auto", others: Container[Place] = ()
) -> None:
    """Repair with a power cut at each change in turn, and once more without."""
    for calls in itertools.count():
        with World(home / str(calls)) as world:
            world.set_sharing(east=sharing, west=sharing)
            fill(world)
            before = world.history(SOURCE), world.history(DESTINATION), world.tree(SOURCE), world.tree(DESTINATION)
            fs = DyingFs(1 << 60, but=others)
            world.restart(fs=fs)
            world.settle()
            damage(world)
            fs.calls_left = calls
            with contextlib.suppress(PowerCut):
                verify(world, repair=True)
            where = f"cut at change {calls}, in {fs.died_in}"
            assert (world.path("d/k").exists(), world.path("d/k", DESTINATION).exists()) == (True, True), where
            world.restart()
            verify(world, repair=True)
            world.settle()
            assert verify(world) == [], where
            after = world.history(SOURCE), world.history(DESTINATION), world.tree(SOURCE), world.tree(DESTINATION)
            assert after == before, where
            assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
            if not fs.died:
                return


# -- the rule for views, case by case

MARKER, VERSION = Object("2", 2, True, b"", None), Object("2", 2, False, b"x", None)
SHOWN = View(1, 1, 1, 1, 0o644, False, "2")


def known(view: View | None, version: str = "2", *, marker: bool = False) -> Object:
    return Object(version, 2, marker, b"x", view)


@pytest.mark.parametrize(
    ("current", "journal", "seen", "same", "as_recorded", "verdict"),
    [
        (VERSION, known(SHOWN), Seen.FILE, True, True, Verdict.FINE),
        (VERSION, None, Seen.FILE, True, False, Verdict.FINE),
        (VERSION, known(SHOWN), Seen.FILE, False, True, Verdict.DIFFERS),
        (VERSION, known(SHOWN), Seen.FILE, False, False, Verdict.PENDING),
        (VERSION, known(replace(SHOWN, shown="1")), Seen.FILE, False, True, Verdict.PENDING),
        (VERSION, known(SHOWN, "3"), Seen.FILE, False, True, Verdict.PENDING),
        (VERSION, None, Seen.FILE, False, False, Verdict.PENDING),
        (VERSION, known(SHOWN), Seen.NOTHING, False, False, Verdict.PENDING),
        (VERSION, known(None), Seen.NOTHING, False, False, Verdict.PENDING),
        (VERSION, known(None), Seen.OTHER, False, False, Verdict.CONFLICT),
        (VERSION, known(SHOWN), Seen.OTHER, False, False, Verdict.PENDING),
        (VERSION, None, Seen.OTHER, False, False, Verdict.PENDING),
        (MARKER, known(None, marker=True), Seen.NOTHING, False, False, Verdict.FINE),
        (MARKER, known(None, marker=True), Seen.OTHER, False, False, Verdict.FINE),
        (MARKER, known(replace(SHOWN, shown="1"), marker=True), Seen.FILE, False, True, Verdict.PENDING),
        (MARKER, None, Seen.FILE, True, False, Verdict.PENDING),
    ],
)
def test_which_changes_of_a_view_are_a_difference(
    current: Object, journal: Object | None, seen: Seen, same: bool, as_recorded: bool, verdict: Verdict
) -> None:
    """Section 5: only a change without a write is a difference; all others are users' changes."""
    assert judge_view(current, journal, seen, same=same, as_recorded=as_recorded) is verdict


def test_the_problems_are_a_closed_list() -> None:
    """Section 5: JSON is a contract."""
    assert sorted(Problem) == [
        "AttributesLost", "DigestMismatch", "MetadataDiffers", "Missing", "RecordDamaged", "ReplicaDeleted",
        "Unreadable", "ViewConflict", "ViewDiffers",
    ]  # fmt: skip


# -- views that share their inode with the store


@pytest.mark.parametrize("then", ["nothing", "newer", "removed", "replaced", "deleted there"])
def test_a_destroyed_version_is_fetched_again(tmp_path: Path, then: str) -> None:
    """Section 7: a write in place destroys a linked version, whatever else happens before that is noticed."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        view = world.path("k", DESTINATION)
        assert view.stat().st_nlink == 2
        view.write_bytes(b"written in place")
        match then:
            case "newer":
                world.write("k", b"two")
            case "removed":
                view.unlink()
            case "replaced":
                (tmp_path / "new").write_bytes(b"another file")
                (tmp_path / "new").rename(view)
            case "deleted there":
                world.path("k").unlink()
        world.settle()
        world.settle()
        assert verify(world) == ([(DESTINATION, "k", "ReplicaDeleted", False)] if then == "removed" else [])
        first = world.history(SOURCE)[b"k"][0]
        assert [v.digest for v in world.history(DESTINATION)[b"k"] if v.id == first.id] == [first.digest]


def test_a_record_stays_when_its_file_is_no_view_any_more(tmp_path: Path) -> None:
    """Section 2: also where the view had been made private, so that its file looks like any other of the store."""
    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        os.chmod(world.path("k", DESTINATION), 0o600)
        world.settle()
        before = world.history(DESTINATION)[b"k"]
        world.write("k", b"two")
        world.settle()
        assert world.history(DESTINATION)[b"k"][:1] == before
        assert verify(world) == []


def test_an_edit_of_a_version_that_the_destination_has_lost(tmp_path: Path) -> None:
    """Section 5: the edit fails, since there is nothing to edit; verify names the version, and --repair has it sent
    again, whole, with the edit."""
    with World(tmp_path) as world:
        world.write("d/k", b"one")
        world.settle()
        stored(world, "d/k", DESTINATION).unlink()
        world.path("d/k", DESTINATION).unlink()
        world.restart()
        world.path("d/k").chmod(0o600)
        world.settle()
        assert world.current("d/k").deliveries[DESTINATION].reason == "DstVersionNotFound"
        assert verify(world) == [(SOURCE, "d/k", "Missing", False)]
        assert verify(world, repair=True) == [(SOURCE, "d/k", "Missing", True)]
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert world.records(SOURCE) == world.records(DESTINATION)
        assert world.look_of("d/k") == world.look_of("d/k", DESTINATION)
        assert verify(world) == []
        world.stays_quiet()


@pytest.mark.parametrize("syncs", [True, False], ids=["synced", "one-way"])
def test_a_replica_edited_while_its_rule_was_disabled(tmp_path: Path, syncs: bool) -> None:
    """s3-semantics 2.2: enabling the rule sends nothing after the fact. Where edits of replicas go back, verify names
    that one, and --repair sends it; elsewhere it stays at the replica, which is right."""
    with World(tmp_path, replicate=False) as world:
        for source, to in ((SOURCE, DESTINATION), (DESTINATION, SOURCE)):
            rule = v2(to=to, markers=True)
            rule["SourceSelectionCriteria"] = {"ReplicaModifications": {"Status": "Enabled" if syncs else "Disabled"}}
            world.configure(rule, source=source)
        world.write("k", b"data")
        world.settle()
        world.run("replication.disable", source=DESTINATION)
        world.path("k", DESTINATION).chmod(0o600)
        world.settle()
        world.run("replication.enable", source=DESTINATION)
        world.settle()
        assert world.look_of("k")[0].mode == 0o644
        assert verify(world) == ([(DESTINATION, "k", "MetadataDiffers", False)] if syncs else [])
        if syncs:
            assert verify(world, repair=True) == [(DESTINATION, "k", "MetadataDiffers", True)]
            world.settle()
            assert world.look_of("k")[0].mode == 0o600
            assert world.records(SOURCE) == world.records(DESTINATION)
            assert world.statuses(DESTINATION) == {Status.REPLICA}
            assert verify(world) == []
        world.stays_quiet()


def test_metadata_of_a_version_that_a_backfill_sent_on(tmp_path: Path) -> None:
    """s3-semantics 2.2: it travels from the original alone, so an edit of one replica is no fault of another one."""
    with World(tmp_path, replicate=False, buckets=(SOURCE, DESTINATION, "north/far")) as world:
        world.configure(v2(to=DESTINATION), v2(to="north/far", priority=2), source=SOURCE)
        world.configure(v2(to=SOURCE), v2(to="north/far", priority=2), source=DESTINATION)
        world.write("k", b"data")
        world.settle()
        world.path("k", DESTINATION).chmod(0o600)
        world.settle()
        world.run("replication.backfill", source=DESTINATION, statuses=["REPLICA"])
        world.settle()
        assert {str(each.status) for each in world.current("k", DESTINATION).deliveries.values()} == {"COMPLETED"}
        with Verification(world.engine.site, DESTINATION, None, world.engine.journal) as found:
            assert list(found.differences()) == []
        assert verify(world) == []
