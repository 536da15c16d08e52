"""A bucket whose .fsrepl was removed, as by `rsync --delete` or `git clean -fdx`, is adopted as the bucket it was."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.errors import Refused, Unavailable
from fsrepl.model.version import Status
from fsrepl.storage import remembered
from tests.doubles import DyingFs, PowerCut, Tried
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, v2, worlds


def fill(world: World) -> None:
    """Two versions of a key, one that was deleted, one with a long name, one that was removed for good."""
    world.drop("d/k", b"one", tags={"class": "blue"})
    world.write("gone", b"soon gone")
    world.write("x" * 240, b"long")
    world.write("d/wrong", b"not to be kept")
    world.settle()
    world.write("d/wrong", b"right")
    world.drop("d/k", b"two")
    world.unlink("gone")
    world.settle()
    for bucket in (SOURCE, DESTINATION):
        world.remove("d/wrong", bucket, world.of("d/wrong", bucket)[-1].id)
    world.settle()


def lose(world: World, bucket: str, what: str = "") -> None:
    path = world.path(".fsrepl", bucket) / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    world.look()


def adopt(world: World, bucket: str) -> dict[str, object]:
    return world.run("bucket.adopt", bucket=bucket)


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory) as found:
        fill(found)
        yield found


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("what", ["", "bucket.json", "versions"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_it_has_its_former_identity_rules_and_history(world: World, bucket: str, what: str, restarted: bool) -> None:
    """G5, G7, G8: identity, rule, ids and history are the former ones; nothing is doubled, and nothing is sent
    again."""
    identity = json.loads(world.path(".fsrepl/bucket.json", bucket).read_text())
    rules = world.engine.site.buckets[SOURCE].replication
    before = world.ids(SOURCE), world.ids(DESTINATION), world.tree(SOURCE), world.tree(DESTINATION)
    tags = dict(world.of("d/k", bucket)[-1].tags)
    lose(world, bucket, what)
    if restarted:
        world.restart()
    world.settle()
    with pytest.raises(Unavailable, match=f"fsrepl bucket adopt {bucket}"):
        world.run("object.restore", bucket=bucket, key=b"d/k", version_id=None)
    answer = adopt(world, bucket)
    assert (answer["Healed"], answer["Lost"]) == (True, 0)
    world.settle()
    assert json.loads(world.path(".fsrepl/bucket.json", bucket).read_text()) == identity
    assert (world.ids(SOURCE), world.ids(DESTINATION), world.tree(SOURCE), world.tree(DESTINATION)) == before
    assert world.engine.site.buckets[SOURCE].replication == rules
    assert world.statuses() == {Status.COMPLETED}
    assert dict(world.of("d/k", bucket)[-1].tags) == tags
    assert verify(world) == []
    world.write("d/new", b"new")
    world.settle()
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    world.stays_quiet()


def test_what_people_did_to_the_files_meanwhile(world: World) -> None:
    """G1: a file that differs from its replica is a new version; a file removed together with .fsrepl counts as deleted
    by a user."""
    before = world.ids(SOURCE)
    lose(world, SOURCE)
    world.write("d/k", b"mirrored")
    world.write("fresh", b"fresh")
    world.unlink("d/wrong")
    adopt(world, SOURCE)
    world.settle()
    after = world.ids(SOURCE)
    assert after == world.ids(DESTINATION)
    assert after[b"d/k"][:2] == before[b"d/k"]
    assert [v.marker for v in world.of("d/wrong")] == [True, False]
    assert world.tree(DESTINATION) == {"d/k": b"mirrored", "fresh": b"fresh", "x" * 240: b"long"}


def test_directories_of_a_tree_bucket_that_are_there_are_not_missing(memory: Path) -> None:
    """G1: neither announced as deletions nor put back; one that is gone is. Asked for, any bucket becomes one."""
    with World(memory, trees=True) as world:
        world.write("d/k", b"k")
        for name in ("empty", "removed"):
            world.path(name).mkdir()
        world.path("link").symlink_to("d")
        world.settle()
        before = world.ids(SOURCE)
        lose(world, SOURCE)
        told = world.run("bucket.adopt", bucket=SOURCE, dry_run=True)
        assert (told["Objects"], told["PutBack"], told["Deleted"], told["DeletedAt"]) == (2, 0, 0, {})
        world.path("removed").rmdir()
        told = world.run("bucket.adopt", bucket=SOURCE, dry_run=True)
        assert (told["PutBack"], told["Deleted"], told["DeletedAt"]) == (0, 1, {DESTINATION: 1})
        adopt(world, SOURCE)
        world.settle()
        assert [v.marker for v in world.of("removed/", DESTINATION)] == [True, False]
        assert {key: ids for key, ids in world.ids(SOURCE).items() if key != b"removed/"} == {
            key: ids for key, ids in before.items() if key != b"removed/"
        }


def test_a_bucket_is_restored_as_a_tree_bucket(world: World) -> None:
    """The option of `bucket adopt` holds for a bucket that has lost its .fsrepl too."""
    world.path("empty").mkdir()
    lose(world, SOURCE)
    world.run("bucket.adopt", bucket=SOURCE, trees=True)
    world.settle()
    assert json.loads(world.path(".fsrepl/bucket.json", SOURCE).read_text())["trees"] is True
    assert b"empty/" in world.ids(SOURCE)


def lose_folder(world: World, bucket: str, how: str) -> None:
    """Remove the folder, or replace it by an empty one, or by one with files that are no objects of the bucket."""
    shutil.rmtree(world.path("", bucket))
    if how != "gone":
        world.path("", bucket).mkdir()
    if how == "others":
        world.write("other", b"other", bucket)
    world.settle()


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("how", ["gone", "empty", "others"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_a_folder_that_was_lost_is_filled_again(world: World, bucket: str, how: str, restarted: bool) -> None:
    """G8: no user deleted the files: they are put back, no marker is made, and nothing is replicated."""
    before, trees = (world.ids(SOURCE), world.ids(DESTINATION)), (world.tree(SOURCE), world.tree(DESTINATION))
    lose_folder(world, bucket, how)
    if restarted:
        world.restart()
        world.settle()
    told = world.run("bucket.adopt", bucket=bucket, dry_run=True)
    assert (told["PutBack"], told["Deleted"], told["DeletedAt"]) == (3, 0, {})
    assert world.path("", bucket).exists() == (how != "gone")
    answer = adopt(world, bucket)
    assert (answer["Healed"], answer["Lost"], answer["PutBack"]) == (True, 0, 3)
    world.settle()
    for n, each in enumerate((SOURCE, DESTINATION)):
        assert {k: v for k, v in world.ids(each).items() if k != b"other"} == before[n]
        assert {k: v for k, v in world.tree(each).items() if k != "other"} == trees[n]
    assert world.statuses() == {Status.COMPLETED}
    assert verify(world) == []
    world.stays_quiet()


def test_the_number_of_deletions_is_announced_first(world: World) -> None:
    """G1: some files are left, so the others were deleted, here and where the rule replicates markers."""
    lose(world, SOURCE)
    world.unlink("d/wrong")
    world.unlink("d/k")
    told = world.run("bucket.adopt", bucket=SOURCE, dry_run=True)
    assert (told["PutBack"], told["Deleted"], told["DeletedAt"]) == (0, 2, {DESTINATION: 2})
    assert adopt(world, SOURCE)["PutBack"] == 0
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"x" * 240: b"long"}


def test_deletions_that_are_not_replicated_are_announced_as_local(world: World) -> None:
    world.configure(v2(markers=False))
    world.settle()
    lose(world, SOURCE)
    world.unlink("d/k")
    told = world.run("bucket.adopt", bucket=SOURCE, dry_run=True)
    assert (told["Deleted"], told["DeletedAt"]) == (1, {})
    adopt(world, SOURCE)
    world.settle()
    assert "d/k" not in world.tree(SOURCE)
    assert world.tree(DESTINATION)["d/k"] == b"two"


def test_where_only_replicas_come_in_nothing_is_deleted(world: World) -> None:
    """G1: files missing at a destination are put back, also where other files are left."""
    before = world.ids(DESTINATION)
    lose(world, DESTINATION)
    world.unlink("d/k", DESTINATION)
    told = world.run("bucket.adopt", bucket=DESTINATION, dry_run=True)
    assert (told["PutBack"], told["Deleted"]) == (1, 0)
    assert adopt(world, DESTINATION)["PutBack"] == 1
    world.settle()
    assert world.ids(DESTINATION) == before
    assert world.tree(DESTINATION) == world.tree(SOURCE)
    assert verify(world) == []


def test_a_bucket_that_is_away_is_named_first(world: World) -> None:
    """G8: versions that only this bucket has would not come back."""
    lose_folder(world, SOURCE, "gone")
    assert world.run("bucket.adopt", bucket=SOURCE, dry_run=True)["NotAsked"] == []
    world.away("west")
    (away,) = world.run("bucket.adopt", bucket=SOURCE, dry_run=True)["NotAsked"]  # type: ignore[misc]
    assert "west" in away
    world.back("west")


def test_without_a_bucket_that_is_away_adopt_needs_yes(world: World) -> None:
    """G8: nothing is changed before, and once the region is back everything is restored."""
    before = world.ids(SOURCE)
    lose(world, SOURCE)
    world.away("west")
    with pytest.raises(
        Refused, match=r"^InvalidRequest: .* lost: region west is offline: .* Attach it first, .* --yes"
    ):
        adopt(world, SOURCE)
    assert not world.path(".fsrepl").exists()
    world.back("west")
    assert adopt(world, SOURCE)["Lost"] == 0
    world.settle()
    assert world.ids(SOURCE) == before
    lose(world, SOURCE)
    world.away("west")
    assert world.run("bucket.adopt", bucket=SOURCE, although_away=True)["Lost"] == 2
    world.back("west")


def test_without_a_journal_nothing_is_deleted(world: World) -> None:
    """G8: without a journal it is unknown which files were deleted."""
    tree = world.tree(DESTINATION)
    lose(world, SOURCE)
    world.unlink("d/k")
    world.restart(without_journal=True)
    assert adopt(world, SOURCE)["PutBack"] == 1
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == tree


def test_a_version_that_was_not_sent_is_taken_from_its_file(world: World) -> None:
    """G7: under the id that the journal has, and its delivery is still pending; versions that exist nowhere else are
    reported."""
    world.away("west")
    world.write("late", b"once")
    world.settle()
    world.write("late", b"late")
    world.settle()
    current = world.current("late").id
    lose(world, SOURCE)
    world.back("west")
    answer = adopt(world, SOURCE)
    assert (answer["Kept"], answer["Lost"]) == (1, 1)
    world.settle()
    assert [v.id for v in world.of("late")] == [v.id for v in world.of("late", DESTINATION)] == [current]
    assert world.tree(DESTINATION) == world.tree(SOURCE)


@pytest.mark.parametrize("journal", [True, False], ids=["journal", "no-journal"])
def test_without_copies_of_the_documents(world: World, journal: bool) -> None:
    """G7: the journal still knows the versioning and the rules; without the journal, the replicas know the
    versioning."""
    before, tree = world.ids(DESTINATION), world.tree(SOURCE)
    lose(world, SOURCE)
    remembered.forget(world.engine.site, SOURCE)
    if not journal:
        world.restart(without_journal=True)
    adopt(world, SOURCE)
    world.settle()
    assert (world.engine.site.buckets[SOURCE].replication is not None) == journal
    assert world.tree(DESTINATION) == world.tree(SOURCE) == tree
    if journal:
        assert world.ids(SOURCE) == before
        assert verify(world) == []


def test_a_bucket_in_order_is_not_made_again(world: World) -> None:
    """Section 5: adopt refuses an intact bucket."""
    assert world.refused("bucket.adopt", bucket=SOURCE) == "BucketAlreadyOwnedByYou"


def test_a_rule_that_was_removed_stays_removed(world: World) -> None:
    """Section 4: the site's notes have the bucket's latest documents."""
    world.run("replication.rm", source=SOURCE)
    world.settle()
    world.engine.region_of(SOURCE).probe_buckets()
    lose(world, SOURCE)
    adopt(world, SOURCE)
    assert world.engine.site.buckets[SOURCE].replication is None


def test_documents_that_go_one_by_one_are_not_forgotten(world: World) -> None:
    """G8: a user removes .fsrepl, file by file, while the daemon scans."""
    for name in ("versions", "versioning.json", "replication.json"):
        path = world.path(".fsrepl") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        for _ in range(3):
            world.look()
    lose(world, SOURCE)
    adopt(world, SOURCE)
    world.settle()
    assert world.engine.site.buckets[SOURCE].replication is not None
    assert verify(world) == []


def test_a_region_on_a_new_disk_follows_its_rules(memory: Path) -> None:
    """README, a dead disk: `region add --replace` brings back versioning and replication of its buckets."""
    with World(memory) as world:
        fill(world)
        world.run("bucket.create", bucket="east/plain", versioning=True)
        world.run("versioning.set", bucket="east/plain", status="Suspended")
        rules = world.engine.site.buckets[SOURCE].replication
        world.engine.region_of(SOURCE).probe_buckets()
        world.away("east")
        world.run("region.add", name="east", path=str(memory / "new"), replace=True)
        assert world.engine.site.buckets[SOURCE].replication == rules
        assert str(world.engine.site.buckets["east/plain"].versioning) == "Suspended"


def test_git_ignores_the_store(world: World) -> None:
    """Also in a bucket that an earlier build has made."""
    ignore = world.path(".fsrepl/.gitignore")
    assert ignore.read_text() == "*\n"
    ignore.unlink()
    world.restart()
    world.settle()
    assert ignore.read_text() == "*\n"


@pytest.mark.slow
@pytest.mark.parametrize("folder", [False, True], ids=["store", "folder"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_power_cut_at_every_change(memory: Path, bucket: str, folder: bool, tried: Callable[..., Tried]) -> None:
    """G7: whichever change the power cut comes at, the command run again continues."""
    others = tried()
    for calls, world in worlds(memory):
        fill(world)
        before = world.ids(SOURCE), world.ids(DESTINATION)
        lose_folder(world, bucket, "gone") if folder else lose(world, bucket)
        fs = DyingFs(6 * calls, but=others)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            adopt(world, bucket)
            world.settle()
        world.restart()
        world.settle()
        with contextlib.suppress(Exception):
            adopt(world, bucket)
        world.settle()
        assert (world.ids(SOURCE), world.ids(DESTINATION)) == before, (calls, fs.died_in)
        assert verify(world) == [], calls
        assert world.leftovers(bucket) == [], calls
        if not fs.died:
            return
