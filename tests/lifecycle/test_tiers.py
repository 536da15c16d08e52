"""Storage classes with a directory of their own: content moves there, and comes back, and is read wherever it lies."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands import status
from fsrepl.commands.documents.tiers import tiers
from fsrepl.commands.notes import notes_of
from fsrepl.daemon import live
from fsrepl.errors import Unavailable, Usage
from fsrepl.model.version import STORAGE_CLASSES
from fsrepl.settings import TIERS
from fsrepl.storage import listing
from tests.doubles import FailingFs
from tests.lifecycle.test_lifecycle import LATER, days, put, rule, run
from tests.mounts import btrfs, only_root
from tests.verifying import verification, verify
from tests.world import DESTINATION, SOURCE, USER, World, v2

Json = dict[str, Any]
ONE = b"one" * 2000
NO_IDENTITY = "no [.]fsrepl-tier[.]json"
Clock = Callable[[str], object]
OLD = rule(
    Filter={"ObjectSizeGreaterThan": 0},
    NoncurrentVersionTransitions=[{"NoncurrentDays": 30, "StorageClass": "STANDARD_IA"}],
)
DEEP = rule(
    Filter={"ObjectSizeGreaterThan": 0},
    NoncurrentVersionTransitions=[{"NoncurrentDays": 30, "StorageClass": "GLACIER_IR"}],
)


def add_tier(world: World, tier: str = "east/STANDARD_IA") -> Path:
    """A tier of a region, on the same disk for once."""
    path = world.home / "tiers" / tier.replace("/", "-")
    world.run("tier.add", tier=tier, path=str(path))
    world.settings = world.engine.settings
    return path


def contents(tier: Path, bucket: str = "src") -> list[bytes]:
    """What lies in a bucket's part of a tier."""
    folder = tier / bucket
    return sorted(path.read_bytes() for path in folder.iterdir() if path.is_file()) if folder.exists() else []


def stored(world: World, key: str = "k", bucket: str = SOURCE) -> list[int]:
    """The sizes of the files of a key in the version store, oldest version first; without their sidecars."""
    folder = world.path(".fsrepl/versions", bucket)
    found = sorted(path for path in folder.rglob(f"{Path(key).name};*") if path.suffix != ".json")
    return [path.stat().st_size for path in found]


def content(world: World, version: object, bucket: str = SOURCE) -> bytes:
    with world.engine.site.bucket(bucket).open() as opened:
        return b"".join(listing.content(opened, version))  # type: ignore[arg-type]


def two_versions(world: World, key: str = "k") -> None:
    for data in (ONE, b"two, longer" * 2000):
        world.write(key, data)
        world.settle()


def moved(world: World, clock: Clock, *rules: Json) -> None:
    """Two versions of a key, of which the old one was moved by a transition."""
    two_versions(world)
    put(world, *(rules or (OLD,)))
    clock(LATER)
    assert run(world) == {"NoncurrentVersionTransition": 1}
    world.settle()


def test_a_transition_moves_content_to_the_disk_of_its_class(world: World, clock: Clock) -> None:
    """The store keeps the record, the tier the content; nothing that a reader is told differs but the class."""
    tier = add_tier(world)
    two_versions(world)
    before = world.of("k")
    moved_before = world.history(DESTINATION)
    put(world, OLD)
    clock(LATER)
    assert run(world) == {"NoncurrentVersionTransition": 1}
    world.settle()
    assert contents(tier) == [ONE]
    assert stored(world) == [0, 22000]
    new, old = world.of("k")
    assert new == before[0]
    assert (old.storage_class, old.size, old.digest, old.posix) == (
        "STANDARD_IA", 6000, before[1].digest, before[1].posix,
    )  # fmt: skip
    assert content(world, old) == ONE
    assert world.history(DESTINATION) == moved_before
    assert verify(world) == []
    world.stays_quiet()


def test_without_a_directory_a_class_is_a_label(world: World, clock: Clock) -> None:
    moved(world, clock)
    assert world.of("k")[1].storage_class == "STANDARD_IA"
    assert stored(world) == [6000, 22000]


def test_a_tier_that_is_added_later_is_filled(world: World, clock: Clock) -> None:
    moved(world, clock)
    tier = add_tier(world)
    world.settle()
    assert (contents(tier), stored(world)) == ([ONE], [0, 22000])


def test_a_tier_is_removed_only_once_nothing_of_ours_is_left_in_it(world: World, clock: Clock) -> None:
    """G7: content that a crash left while it was moved back is swept first, and its disk is free."""
    tier = add_tier(world)
    moved(world, clock)
    (there,) = [path for path in (tier / "src").iterdir() if path.is_file()]
    os.link(there, kept := world.home / "kept")
    world.run("tier.rm", tier="east/STANDARD_IA")
    world.settle()
    os.link(kept, there)  # as if the daemon had died before it was removed
    answer = world.run("tier.rm", tier="east/STANDARD_IA")
    assert (answer["Removed"], answer["Versions"]) == (False, 1)
    world.settle()
    assert contents(tier) == []
    assert world.run("tier.rm", tier="east/STANDARD_IA")["Removed"]


def test_a_tier_is_emptied_before_it_is_removed(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    answer = world.run("tier.rm", tier="east/STANDARD_IA")
    assert (answer["Removed"], answer["Versions"], answer["Bytes"]) == (False, 1, 6000)
    world.settle()
    assert (contents(tier), stored(world)) == ([], [6000, 22000])
    assert world.of("k")[1].storage_class == "STANDARD_IA"
    assert world.run("tier.rm", tier="east/STANDARD_IA")["Removed"]
    assert "classes" not in world.settings.path.read_text()
    world.settings = world.engine.settings
    world.restart(without_journal=True)
    world.settle()
    assert content(world, world.of("k")[1]) == ONE


def test_from_one_tier_to_another(world: World, clock: Clock) -> None:
    first, second = add_tier(world), add_tier(world, "east/GLACIER_IR")
    moved(world, clock)
    put(world, DEEP)
    assert run(world) == {"NoncurrentVersionTransition": 1}
    world.settle()
    assert (contents(first), contents(second)) == ([], [ONE])
    assert content(world, world.of("k")[1]) == ONE


def test_a_restored_version_is_current_again_and_lies_in_the_region(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    old = world.of("k")[1]
    world.run("object.restore", bucket=SOURCE, key=b"k", version_id=old.id)
    assert world.tree(SOURCE) == {"k": ONE}
    world.settle()
    assert stored(world) == [0, 22000, 6000]
    assert (world.current("k").storage_class, world.current("k").place) == ("", None)
    assert contents(tier) == [ONE]
    assert world.tree(DESTINATION) == {"k": ONE}


def test_a_version_that_becomes_current_again_is_shown(world: World, clock: Clock) -> None:
    """G4: the newer version is removed for good, and what lies in the tier is what people see."""
    add_tier(world)
    moved(world, clock)
    world.remove("k", version=world.current("k").id)
    assert world.path("k").read_bytes() == ONE
    world.settle()
    assert [v.size for v in world.of("k")] == [6000]
    assert world.path("k").read_bytes() == ONE


@pytest.mark.parametrize("how", ["command", "lifecycle", "away"])
def test_what_is_removed_for_good_leaves_the_tier(world: World, clock: Clock, how: str) -> None:
    """Content in a tier that is away goes when the tier is back."""
    tier = add_tier(world)
    moved(world, clock)
    if how == "lifecycle":
        put(world, rule(NoncurrentVersionExpiration={"NoncurrentDays": 1}))
        assert run(world) == {"NoncurrentVersionExpiration": 1}
    else:
        if how == "away":
            tier.rename(tier.with_name("away"))
        world.remove("k", version=world.of("k")[1].id)
    if how == "away":
        tier.with_name("away").rename(tier)
        world.restart()
    world.settle()
    assert contents(tier) == []
    assert stored(world) == [22000]


# -- current versions: views that are symlinks


IA = rule(Filter={"ObjectSizeGreaterThan": 0}, Transitions=[{"Days": 30, "StorageClass": "STANDARD_IA"}])


def placed(world: World, clock: Clock, key: str = "d/k") -> Path:
    """A current version in a tier; its view."""
    world.write(key, ONE)
    os.utime(world.path(key), (1e9, 1e9))
    world.settle()
    put(world, IA)
    clock(LATER)
    assert run(world) == {"Transition": 1}
    world.settle()
    return world.path(key)


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_current_version_in_a_tier_is_a_symlink_that_reads_as_a_file(
    world: World, clock: Clock, sharing: str
) -> None:
    """G4: the same bytes, size and time, for `cat` and backup programs; nothing is left on the faster disk."""
    world.set_sharing(east=sharing)
    tier = add_tier(world)
    before = world.snapshot()
    view = placed(world, clock)
    assert before != world.snapshot()
    assert view.is_symlink()
    assert view.read_bytes() == ONE
    assert (view.stat().st_size, view.stat().st_mtime) == (6000, 1e9)
    assert Path(os.readlink(view)).parent == tier / "src"
    assert (contents(tier), stored(world)) == ([ONE], [0])
    (version,) = world.of("d/k")
    assert (version.size, version.storage_class) == (6000, "STANDARD_IA")
    assert content(world, version) == ONE
    assert verify(world) == []
    assert world.leftovers(SOURCE) == []
    assert world.tree(DESTINATION) == {"d/k": ONE}
    assert not world.path("d/k", DESTINATION).is_symlink()
    world.stays_quiet()
    assert world.state().trouble.skipped_number == 0


def test_a_user_replaces_the_symlink(world: World, clock: Clock) -> None:
    """What replaces it is a version as ever; the old content is private then, and stays in the tier."""
    tier = add_tier(world)
    view = placed(world, clock)
    assert next(f for f in (tier / "src").iterdir() if f.is_file()).stat().st_mode & 0o777 == 0o444
    world.drop("d/k", b"new")
    world.settle()
    assert [(v.size, v.storage_class) for v in world.of("d/k")] == [(3, ""), (6000, "STANDARD_IA")]
    assert view.read_bytes() == b"new"
    assert world.tree(DESTINATION) == {"d/k": b"new"}
    assert next(f for f in (tier / "src").iterdir() if f.is_file()).stat().st_mode & 0o777 == 0o600
    assert content(world, world.of("d/k")[1]) == ONE


def test_a_user_removes_the_symlink(world: World, clock: Clock) -> None:
    add_tier(world)
    view = placed(world, clock)
    view.unlink()
    world.settle()
    assert [v.marker for v in world.of("d/k")] == [True, False]
    assert world.tree(DESTINATION) == {}
    world.run("object.restore", bucket=SOURCE, key=b"d/k")
    world.settle()
    assert (view.is_symlink(), view.read_bytes()) == (False, ONE)


def test_a_user_renames_the_symlink(world: World, clock: Clock) -> None:
    """A new object with the content and metadata of the old one, in the region again, and a marker at the old key."""
    add_tier(world)
    view = placed(world, clock)
    was = world.current("d/k")
    view.rename(view.with_name("renamed"))
    world.settle()
    assert [v.marker for v in world.of("d/k")] == [True, False]
    new = world.current("d/renamed")
    assert (new.digest, new.posix, new.storage_class, new.place) == (was.digest, was.posix, "", None)
    assert not world.path("d/renamed").is_symlink()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/renamed": ONE}
    world.stays_quiet()


@only_root
def test_nobody_elses_symlink_is_followed(world: World, clock: Clock, tmp_path: Path) -> None:
    """G9: a symlink that a user made to a tier, or with such a name elsewhere, is no object and is left alone."""
    tier = add_tier(world)
    view = placed(world, clock)
    (secret := tmp_path / "src").mkdir()
    (secret / ("a" * 32 + ";x")).write_bytes(b"secret" * 1000)
    world.path("elsewhere").symlink_to(secret / ("a" * 32 + ";x"))
    world.path("users").symlink_to(os.readlink(view))
    os.chown(world.path("users"), USER, USER, follow_symlinks=False)
    world.path("identity").symlink_to(tier / ".fsrepl-tier.json")
    world.settle()
    assert set(world.history(SOURCE)) == {b"d/k"}
    assert world.tree(DESTINATION) == {"d/k": ONE}
    assert world.path("users").is_symlink()


@pytest.mark.parametrize("without_journal", [False, True])
def test_a_symlink_is_known_again_without_the_journal(world: World, clock: Clock, *, without_journal: bool) -> None:
    """No version and no marker comes of it, wherever the journal went."""
    add_tier(world)
    view = placed(world, clock)
    before, link = world.ids(SOURCE), os.readlink(view)
    world.restart(without_journal=without_journal)
    world.settle()
    assert (world.ids(SOURCE), os.readlink(view)) == (before, link)
    world.stays_quiet()


@pytest.mark.parametrize("without_journal", [False, True])
def test_a_view_into_a_tier_that_is_away_is_no_deletion(world: World, clock: Clock, *, without_journal: bool) -> None:
    """G8: the symlink leads nowhere, and its key is as before; a moved one waits for the tier."""
    tier = add_tier(world)
    view = placed(world, clock)
    before = world.ids(SOURCE)
    tier.rename(tier.with_name("away"))
    world.restart(without_journal=without_journal)
    world.settle()
    assert world.ids(SOURCE) == before
    view.rename(view.with_name("renamed"))
    world.settle()
    assert b"d/renamed" not in world.ids(SOURCE)
    assert "is offline" in world.state().captures.deferred[b"d/renamed"].why
    said = live.status(world.engine)
    (found,) = [each for each in status.status(world.engine.site, said)["buckets"] if each["bucket"] == SOURCE]
    (note,) = [each.text for each in notes_of(found, None) if "renamed" in each.text]
    assert note.startswith(f"{SOURCE}: not captured yet: d/renamed: tier east/STANDARD_IA is offline")
    tier.with_name("away").rename(tier)
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/renamed": ONE}


def test_a_current_version_comes_back_from_a_tier_that_is_emptied(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    view = placed(world, clock)
    world.run("tier.rm", tier="east/STANDARD_IA")
    world.settle()
    assert (view.is_symlink(), view.read_bytes(), contents(tier), stored(world)) == (False, ONE, [], [6000])
    assert view.stat().st_mtime == 1e9
    world.stays_quiet()


def test_a_current_version_moves_from_one_tier_to_another(world: World, clock: Clock) -> None:
    first, second = add_tier(world), add_tier(world, "east/GLACIER_IR")
    view = placed(world, clock)
    put(world, rule(Filter={"ObjectSizeGreaterThan": 0}, Transitions=[{"Days": 30, "StorageClass": "GLACIER_IR"}]))
    assert run(world) == {"Transition": 1}
    world.settle()
    assert (contents(first), contents(second), stored(world)) == ([], [ONE], [0])
    assert Path(os.readlink(view)).parent == second / "src"
    assert view.read_bytes() == ONE
    world.stays_quiet()


def test_what_its_owner_writes_on_a_content_is_not_believed(world: World, clock: Clock) -> None:
    """G1: the owner of an object makes its content claim to be another's, and moves the symlink: that gives nothing."""
    tier = add_tier(world)
    for key, data in {"mine/k": ONE, "other/k": b"secret" * 1000}.items():
        world.write(key, data)
    world.settle()
    put(world, IA)
    clock(LATER)
    run(world)
    world.settle()
    files = {path.read_bytes(): path for path in (tier / "src").iterdir() if path.is_file()}
    mine, other = files[ONE], files[b"secret" * 1000]
    for name in os.listxattr(other):
        os.setxattr(mine, name, os.getxattr(other, name))
    world.path("mine/k").rename(world.path("mine/moved"))
    world.settle()
    assert b"mine/moved" not in world.history(SOURCE)
    assert content(world, world.current("other/k")) == b"secret" * 1000
    world.restart()  # with a sweep
    world.settle()
    assert content(world, world.current("other/k")) == b"secret" * 1000


@only_root
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_tier_on_another_filesystem(world: World, clock: Clock, tmp_path: Path, sharing: str) -> None:
    """As it is meant: nothing can be linked, renamed or shared between the region and its tier."""
    world.set_sharing(east=sharing)
    with btrfs(tmp_path) as disk:
        world.run("tier.add", tier="east/STANDARD_IA", path=str(disk))
        world.settings = world.engine.settings
        view = placed(world, clock)
        assert (view.is_symlink(), view.read_bytes(), contents(disk)) == (True, ONE, [ONE])
        assert view.stat().st_dev != view.parent.stat().st_dev
        view.rename(view.with_name("renamed"))
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"d/renamed": ONE}
        world.run("object.restore", bucket=SOURCE, key=b"d/k")
        world.run("tier.rm", tier="east/STANDARD_IA")
        world.settle()
        assert (contents(disk), world.tree(SOURCE)) == ([], {"d/k": ONE, "d/renamed": ONE})
        assert verify(world) == []


def test_symlinks_follow_a_tier_that_is_mounted_elsewhere(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    view = placed(world, clock)
    tier.rename(tier.with_name("moved"))
    world.run("tier.add", tier="east/STANDARD_IA", path=str(tier.with_name("moved")))
    world.settle()
    assert Path(os.readlink(view)).parent == tier.with_name("moved") / "src"
    assert view.read_bytes() == ONE
    world.stays_quiet()


def test_the_class_of_a_rule_decides_where_a_replica_lies(world: World, clock: Clock) -> None:
    """The destination storage class: the replica is in the tier of its own region, and G10 holds."""
    tier = add_tier(world, "west/STANDARD_IA")
    world.configure(v2(markers=True, StorageClass="STANDARD_IA"))
    world.write("d/k", ONE)
    world.path("d/k").chmod(0o640)
    world.settle()
    world.settle()
    view = world.path("d/k", DESTINATION)
    assert view.is_symlink()
    assert (view.read_bytes(), contents(tier, "dst"), stored(world, "d/k", DESTINATION)) == (ONE, [ONE], [0])
    assert view.stat().st_mode & 0o777 == 0o440
    assert world.current("d/k").status == "COMPLETED"
    world.write("d/k", b"two" * 2000)
    world.settle()
    world.settle()
    assert view.read_bytes() == b"two" * 2000
    assert verify(world) == []
    world.path("d/k").unlink()
    world.settle()
    assert world.tree(DESTINATION) == {}
    assert not view.is_symlink()


def test_metadata_of_a_replica_in_a_tier_follows_its_source(world: World, clock: Clock) -> None:
    add_tier(world, "west/STANDARD_IA")
    world.configure(v2(markers=True, StorageClass="STANDARD_IA"))
    world.write("d/k", ONE)
    world.settle()
    world.settle()
    view = world.path("d/k", DESTINATION)
    assert view.is_symlink()
    world.path("d/k").chmod(0o600)
    os.setxattr(world.path("d/k"), "user.fsrepl.tag.a", b"b")
    world.settle()
    assert view.is_symlink()
    assert view.stat().st_mode & 0o777 == 0o400
    assert dict(world.current("d/k", DESTINATION).tags) == {"a": "b"}
    assert verify(world) == []
    world.stays_quiet()


def test_a_current_version_in_a_tier_expires(world: World, clock: Clock) -> None:
    add_tier(world)
    view = placed(world, clock)
    put(world, days(1))
    assert run(world) == {"Expiration": 1}
    assert not view.is_symlink()
    assert [v.marker for v in world.of("d/k")] == [True, False]


def test_a_store_lost_with_views_in_a_tier(world: World, clock: Clock) -> None:
    """`rm -r .fsrepl` where files are symlinks into a tier: adopt takes none of them for deleted."""
    add_tier(world)
    view = placed(world, clock)
    before = world.ids(SOURCE)
    shutil.rmtree(world.path(".fsrepl"))
    world.run("bucket.adopt", bucket=SOURCE)
    world.settle()
    assert world.ids(SOURCE) == before
    assert view.read_bytes() == ONE
    assert world.tree(DESTINATION) == {"d/k": ONE}


# -- G8: a tier that is away


def test_a_tier_that_is_away_is_an_outage_of_its_versions_alone(world: World, clock: Clock) -> None:
    """G8: listed as ever, everything else goes on, nothing is written where the tier was, and it is no damage."""
    tier = add_tier(world)
    moved(world, clock)
    before = world.ids(SOURCE)
    tier.rename(tier.with_name("away"))
    tier.mkdir()
    world.restart(without_journal=True)
    world.settle()
    assert world.ids(SOURCE) == before
    assert world.state().is_scanned
    with pytest.raises(Unavailable, match=NO_IDENTITY):
        content(world, world.of("k")[1])
    with pytest.raises(Unavailable, match=NO_IDENTITY):
        world.run("object.restore", bucket=SOURCE, key=b"k", version_id=world.of("k")[1].id)
    with verification(world) as found:
        assert list(found.differences()) == []
        assert "no .fsrepl-tier.json" in found.tally.away[SOURCE]
    world.write("other", b"goes on")
    world.settle()
    assert world.tree(DESTINATION)["other"] == b"goes on"
    assert list(tier.iterdir()) == []
    tier.rmdir()
    tier.with_name("away").rename(tier)
    world.settle()
    assert content(world, world.of("k")[1]) == ONE


def test_another_tier_in_its_place_is_an_outage(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    shutil.copytree(tier, tier.with_name("other"))
    identity = tier / ".fsrepl-tier.json"
    identity.write_text(identity.read_text().replace('"uuid": "', '"uuid": "0'))
    with pytest.raises(Unavailable, match="holds another tier"):
        content(world, world.of("k")[1])


def test_moves_wait_for_a_tier_that_is_away(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    tier.rename(tier.with_name("away"))
    moved(world, clock)
    assert stored(world) == [6000, 22000]
    assert "is offline" in world.state().lifecycle.placing.why
    document = status.status(world.engine.site, {"buckets": live.status(world.engine)["buckets"]})
    (tier_,) = document["tiers"]
    (bucket,) = [each for each in document["buckets"] if each["bucket"] == SOURCE]
    assert (tier_["Online"], tier_["Waiting"], tier_["WaitingBytes"]) == (False, 1, 6000)
    assert [(m["tier"], m["versions"], m["bytes"]) for m in bucket["moving"]] == [("east/STANDARD_IA", 1, 6000)]
    assert "is offline" in bucket["moving"][0]["why"]
    tier.with_name("away").rename(tier)
    world.settle()
    assert stored(world) == [0, 22000]
    assert world.state().lifecycle.placing.why == ""


def test_content_that_is_damaged_is_not_moved(world: World, clock: Clock) -> None:
    """Moves are verified: what no longer matches its hash is fetched again first."""
    tier = add_tier(world)
    two_versions(world)
    old = next(p for p in world.path(".fsrepl/versions").rglob("k;*") if p.stat().st_size == 6000)
    old.write_bytes(b"bad" * 2000)
    put(world, OLD)
    clock(LATER)
    run(world)
    world.engine.run_until_idle()
    world.settle()
    assert contents(tier) in ([], [ONE])
    world.state().lifecycle.placing.begin_again()
    world.settle()
    assert contents(tier) == [ONE]


def test_content_that_is_damaged_in_a_tier_is_repaired(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    damaged = next(path for path in (tier / "src").iterdir() if path.is_file())
    damaged.write_bytes(b"bad" * 2000)
    assert verify(world) == [(SOURCE, "k", "DigestMismatch", False)]
    assert verify(world, repair=True) == [(SOURCE, "k", "DigestMismatch", True)]
    world.restart()  # with a sweep
    world.settle()
    assert contents(tier) == [ONE]
    assert verify(world) == []


def test_a_full_tier_is_waited_for(world: World, clock: Clock) -> None:
    """G7: the disk is full in the midst of a transition: nothing is lost or left over, and it is done later."""
    tier = add_tier(world)
    two_versions(world)
    put(world, OLD)
    clock(LATER)
    run(world)
    fs = _FullTier(tier)
    world.restart(fs=fs)
    world.settle()
    assert fs.refused
    assert "no space" in world.state().lifecycle.placing.why
    assert (contents(tier), stored(world)) == ([], [6000, 22000])
    assert os.listdir(tier / "src" / ".tmp") == []
    fs.refused, fs.full = 0, False
    world.settle()
    assert (contents(tier), stored(world)) == ([ONE], [0, 22000])


class _FullTier(FailingFs):
    """No file can be written below a directory."""

    def __init__(self, below: Path) -> None:
        super().__init__(1 << 60)
        self.below, self.full, self.refused = str(below), True, 0
        self._write = self.write
        self.write = self._refuse  # type: ignore[method-assign]

    def _refuse(self, fd: int, data: bytes) -> None:
        if self.full and os.readlink(f"/proc/self/fd/{fd}").startswith(self.below):
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._write(fd, data)


# -- the record in the store


def test_a_record_that_needs_a_sidecar_moves_too(world: World, clock: Clock) -> None:
    """The record is in a sidecar where the file has no room for it, before the move and after it."""
    tier = add_tier(world)
    world.write("k", ONE)
    for number in range(3):
        os.setxattr(world.path("k"), f"user.long{number}", b"x" * 1200)
    world.settle()
    before = world.current("k")
    world.write("k", b"two, longer" * 2000)
    world.settle()
    put(world, OLD)
    clock(LATER)
    run(world)
    world.settle()
    assert contents(tier) == [ONE]
    after = world.of("k")[1]
    assert (after.attrs, after.size, after.digest) == (before.attrs, before.size, before.digest)
    world.run("tier.rm", tier="east/STANDARD_IA")
    world.settle()
    after = world.of("k")[1]
    assert (after.attrs, after.size, after.place) == (before.attrs, before.size, None)
    assert content(world, after) == ONE


def test_tags_of_a_version_in_a_tier_can_be_changed(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    old = world.of("k")[1]
    world.run("tag.set", bucket=SOURCE, key=b"k", version_id=old.id, tags={"a": "b"})
    world.settle()
    assert (dict(world.of("k")[1].tags), world.of("k")[1].place) == ({"a": "b"}, old.place)
    assert dict(world.of("k", DESTINATION)[1].tags) == {"a": "b"}
    world.restart(without_journal=True)
    world.settle()
    assert contents(tier) == [ONE]
    assert content(world, world.of("k")[1]) == ONE


def test_what_a_tier_holds_is_listed(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    (row,) = tiers(world.engine.site, world.engine.journal)
    assert row == {
        "Tier": "east/STANDARD_IA", "Path": str(tier), "Online": True, "Draining": False, "Versions": 1, "Bytes": 6000,
        "Waiting": 0, "WaitingBytes": 0,
    }  # fmt: skip


# -- attaching


def test_a_tier_is_attached_by_its_identity(world: World, tmp_path: Path) -> None:
    """A directory is the tier of one class of one region, and of no other."""
    tier = add_tier(world)
    with pytest.raises(Usage, match="the same directory"):
        world.run("tier.add", tier="east/GLACIER_IR", path=str(tier))
    with pytest.raises(Usage, match=NO_IDENTITY):
        world.run("tier.add", tier="east/STANDARD_IA", path=str(tmp_path / "elsewhere"))
    with pytest.raises(Usage, match="not REGION/CLASS"):
        world.run("tier.add", tier="east/STANDARD", path=str(tmp_path / "elsewhere"))
    with pytest.raises(Usage, match="lies within region east"):
        world.run("tier.add", tier="east/GLACIER_IR", path=str(world.path().parent / "below"))
    assert (world.settings.path.read_text().count("classes"), world.engine.settings.regions["east"].classes.keys()) == (
        1, {"STANDARD_IA"},
    )  # fmt: skip
    tier.rename(tmp_path / "moved")
    world.run("tier.add", tier="east/STANDARD_IA", path=str(tmp_path / "moved"))
    assert world.engine.settings.regions["east"].classes["STANDARD_IA"].path == tmp_path / "moved"


# -- what the tiers know


@pytest.mark.parametrize("without_journal", [False, True])
def test_a_record_that_was_lost_is_rebuilt_from_the_tier(world: World, clock: Clock, *, without_journal: bool) -> None:
    """A copy of the region's tree without attributes: ids, history and content stay."""
    add_tier(world)
    moved(world, clock)
    before = world.history(SOURCE)
    for path in world.path(".fsrepl/versions").rglob("*;*"):
        for name in os.listxattr(path):
            os.removexattr(path, name)
    world.restart(without_journal=without_journal)
    world.settle()
    after = world.history(SOURCE)
    assert [(v.id, v.digest, v.size, v.place) for v in after[b"k"]] == [
        (v.id, v.digest, v.size, v.place) for v in before[b"k"]
    ]
    assert content(world, world.of("k")[1]) == ONE


def test_a_lost_store_gets_its_versions_back_from_the_tier(world: World, clock: Clock) -> None:
    """`rm -r .fsrepl`: `bucket adopt` brings back what replicas have; what only the tier has comes back by itself."""
    add_tier(world)
    moved(world, clock)
    old = world.of("k")[1]
    world.remove("k", bucket=DESTINATION, version=old.id)
    shutil.rmtree(world.path(".fsrepl"))
    world.run("bucket.adopt", bucket=SOURCE)
    world.settle()
    world.settle()
    found = [v for v in world.of("k") if v.id == old.id]
    assert [(v.digest, v.size) for v in found] == [(old.digest, old.size)]
    assert content(world, found[0]) == ONE


def test_a_store_that_was_set_back_finds_its_content(world: World, clock: Clock, tmp_path: Path) -> None:
    """A snapshot of the region from before content went on to another tier: what is there now is named again."""
    first, second = add_tier(world), add_tier(world, "east/GLACIER_IR")
    moved(world, clock)
    stored_file = next(p for p in world.path(".fsrepl/versions").rglob("k;*") if p.stat().st_size == 0)
    before = {name: os.getxattr(stored_file, name) for name in os.listxattr(stored_file)}
    put(world, DEEP)
    run(world)
    world.settle()
    assert (contents(first), contents(second)) == ([], [ONE])
    for name, value in before.items():
        os.setxattr(stored_file, name, value)
    world.restart(without_journal=True)
    for _ in range(3):
        world.settle()
    assert [len(contents(tier)) for tier in (first, second)] in ([1, 0], [0, 1])
    assert content(world, world.of("k")[1]) == ONE


def test_a_tier_that_fails_delays_no_other(world: World, clock: Clock) -> None:
    """One disk is away, and what goes to the other one is moved."""
    away, there = add_tier(world), add_tier(world, "east/GLACIER_IR")
    two_versions(world, "a/k")
    two_versions(world, "b/k")
    away.rename(away.with_name("away"))
    filters = [("a/", "STANDARD_IA"), ("b/", "GLACIER_IR")]
    put(
        world,
        *(
            rule(
                Filter={"And": {"Prefix": prefix, "ObjectSizeGreaterThan": 0}},
                NoncurrentVersionTransitions=[{"NoncurrentDays": 30, "StorageClass": name}],
            )
            for prefix, name in filters
        ),
    )
    clock(LATER)
    run(world)
    world.settle()
    assert contents(there) == [ONE]
    assert "is offline" in world.state().lifecycle.placing.why
    away.with_name("away").rename(away)
    world.settle()
    assert (contents(away), world.state().lifecycle.placing.why) == ([ONE], "")


def test_a_dead_disk_whose_tier_is_alive(world: World, clock: Clock, tmp_path: Path) -> None:
    """`region add --replace`: what no replica has, and lay in a tier, is there again with its id."""
    add_tier(world)
    moved(world, clock)
    old = world.of("k")[1]
    world.remove("k", bucket=DESTINATION, version=old.id)
    world.path().parent.rename(tmp_path / "dead")
    world.run("region.add", name="east", path=str(tmp_path / "new"), replace=True)
    world.settings = world.engine.settings
    world.restart()
    for _ in range(3):
        world.settle()
    assert old.id in [v.id for v in world.of("k")]
    found = next(v for v in world.of("k") if v.id == old.id)
    assert content(world, found) == ONE


def test_a_bucket_that_is_removed_leaves_nothing_in_tiers(world: World, clock: Clock) -> None:
    tier = add_tier(world)
    moved(world, clock)
    tier.rename(tier.with_name("away"))
    with pytest.raises(Unavailable, match="is offline"):
        world.run("bucket.rm", bucket=SOURCE, purge=True)
    assert world.path().is_dir()
    tier.with_name("away").rename(tier)
    world.run("bucket.rm", bucket=SOURCE, purge=True)
    assert sorted(path.name for path in tier.iterdir()) == [".fsrepl-tier.json"]


def test_every_storage_class_but_standard_may_have_a_tier() -> None:
    assert {*TIERS, "STANDARD"} == set(STORAGE_CLASSES)
