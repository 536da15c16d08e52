"""Writes into a view that is a hard link to its stored version: no content is lost, and no version has wrong
content."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model.version import DeliveryRecord, Origin, Status, Version
from fsrepl.region.change_queue import CLOSED
from fsrepl.repair import refetch
from fsrepl.replicate.group import DeliveryGroup
from fsrepl.storage import listing, versions
from fsrepl.storage.bucket import content_digest
from tests.doubles import DyingFs, PowerCut
from tests.replicate.test_two_way import connect
from tests.stored import INLINE
from tests.world import DESTINATION, SOURCE, World, v2, worlds

WAS, IS = b"as it was replicated", b"WRITTEN IN PLACE"


def _write_into(path: Path) -> None:
    """Open the file and change it, as a program does."""
    with path.open("r+b") as file:
        file.write(IS)
        file.truncate()


def _is_linked(world: World, bucket: str, key: str = "k") -> bool:
    return any(p.samefile(world.path(key, bucket)) for p in world.path(".fsrepl/versions", bucket).rglob("*;*"))


def _served(world: World, bucket: str, key: str = "k") -> dict[str, bytes]:
    """The content of each version of a key, as a command returns it; refused ones are left out."""
    out = {}
    with world.engine.site.bucket(bucket).open() as opened:
        for version in listing.versions_of(opened, key.encode()):
            with contextlib.suppress(StoreDamaged):
                if version.marker:
                    continue
                out[version.id] = b"".join(listing.content(opened, version))
    return out


def _link(world: World, sharing: str) -> str:
    """Replicate one object. Returns the bucket whose view of it is a hard link."""
    if sharing == "link":
        world.set_sharing(east="link")
    world.write("k", WAS)
    world.settle()
    bucket = SOURCE if sharing == "link" else DESTINATION
    assert _is_linked(world, bucket)
    return bucket


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_the_written_content_is_a_version_and_the_old_one_is_restored(
    tmp_path: Path, sharing: str, restarted: bool, without_journal: bool
) -> None:
    """Section 7, View and store; G1, G2: a replica's view under "auto", a user's file under "link"."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        old = world.current("k", bucket).id
        _write_into(world.path("k", bucket))
        assert old not in _served(world, bucket)
        if restarted:
            world.restart(without_journal=without_journal)
        world.settle()
        new = world.current("k", bucket)
        assert _served(world, bucket) == {old: WAS, new.id: IS}
        assert world.path("k", bucket).read_bytes() == IS
        assert new.origin == "user"
        if bucket == DESTINATION:
            assert world.path("k").read_bytes() == WAS
            assert world.current("k").status == "COMPLETED"
        else:
            assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert world.leftovers(bucket) == []
        world.stays_quiet()


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_it_comes_back_when_its_source_does(tmp_path: Path, restarted: bool) -> None:
    """Section 7; G7: until then no command returns it; also across restarts without a journal."""
    with World(tmp_path) as world:
        bucket = _link(world, "auto")
        old = world.current("k", bucket).id
        world.away("east")
        _write_into(world.path("k", bucket))
        world.settle()
        assert list(_served(world, bucket).values()) == [IS]
        if restarted:
            world.restart(without_journal=True)
            world.settle()
        world.back("east")
        world.settle()
        assert _served(world, bucket)[old] == WAS
        assert world.path("k", bucket).read_bytes() == IS
        assert world.leftovers(bucket) == []


@pytest.mark.parametrize("act", [Path.rename, lambda path, to: os.link(path, to)], ids=["renamed", "linked"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_write_through_another_name_of_the_file(
    tmp_path: Path, sharing: str, act: Callable[[Path, Path], object]
) -> None:
    """G6, section 7: the file's record says which version it is, also under a name that was not inspected yet."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        old = world.current("k", bucket).id
        act(world.path("k", bucket), world.path("other", bucket))
        _write_into(world.path("other", bucket))
        assert old not in _served(world, bucket)
        world.settle()
        world.settle()
        assert _served(world, bucket)[old] == WAS
        assert list(_served(world, bucket, "other").values()) == [IS]
        world.stays_quiet()


@pytest.mark.parametrize("then", [Path.unlink, lambda path: path.rename(path.with_name("third"))], ids=["", "renamed"])
@pytest.mark.parametrize("act", [Path.rename, lambda path, to: os.link(path, to)], ids=["renamed", "linked"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_version_is_no_longer_reached_through_another_keys_file(
    tmp_path: Path, sharing: str, act: Callable[[Path, Path], object], then: Callable[[Path], object]
) -> None:
    """Section 7; G2: once a file has another key, a write into it destroys nothing, however soon it is gone again."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        old = world.current("k", bucket).id
        act(world.path("k", bucket), world.path("other", bucket))
        world.settle()
        _write_into(world.path("other", bucket))
        assert _served(world, bucket)[old] == WAS
        then(world.path("other", bucket))
        world.settle()
        assert _served(world, bucket)[old] == WAS
        assert world.leftovers(bucket) == []
        world.stays_quiet()


def test_a_view_that_is_left_by_another_name_takes_no_version_along(tmp_path: Path) -> None:
    """Section 7; G2: also where the other name is not inspected before the view is seen to be gone."""
    with World(tmp_path) as world:
        bucket = _link(world, "link")
        old = world.current("k", bucket).id
        world.path("k", bucket).rename(world.path("other", bucket))
        world.region(bucket).changes.add(bucket, [b"k"], world.engine.epoch, CLOSED)
        world.capture(bucket)
        _write_into(world.path("other", bucket))
        world.unlink("other", bucket)
        world.settle()
        assert _served(world, bucket) == {old: WAS}


def _is_as_before(world: World, bucket: str, before: Version) -> bool:
    [after] = [v for v in world.of("k", bucket) if v.id == before.id]
    assert (after.created_ns, after.origin, after.source) == (before.created_ns, before.origin, before.source)
    assert (after.digest, after.status) == (before.digest, before.status)
    return _served(world, bucket)[before.id] == WAS


def _strip(path: Path) -> None:
    for name in os.listxattr(path):
        os.removexattr(path, name)


def _forge(path: Path) -> None:
    """Copy all attributes of another file to this one, as root's `rsync -X` and `cp -a` do."""
    for name in os.listxattr(path):
        value = os.getxattr(path, name)
        os.setxattr(path, name, re.sub(rb"01[A-Z0-9]{24}", b"01M86BR4BYESNWRWW29YNETWES", value))


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_record_that_cannot_be_read_is_written_anew(tmp_path: Path, sharing: str) -> None:
    """Section 5: who may write to the file of a view can write nonsense on it, and the journal may be lost too."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        before = world.current("k", bucket)
        os.setxattr(world.path("k", bucket), INLINE, b"nonsense")
        world.restart(without_journal=True)
        for _ in range(3):
            world.settle()
        after = next(each for each in world.of("k", bucket) if each.id == before.id)
        assert (after.digest, after.created_ns, after.posix) == (before.digest, before.created_ns, before.posix)
        assert len(world.of("k", bucket)) == 1
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"k": WAS}


@pytest.mark.parametrize("act", ["stays", "replaced", "removed"])
@pytest.mark.parametrize("spoil", [_strip, _forge], ids=["stripped", "forged"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_record_lost_on_a_view_is_noticed_at_the_next_inspection(
    tmp_path: Path, sharing: str, spoil: Callable[[Path], object], act: str
) -> None:
    """G5, section 5: later only `verify` would find it, and the version is not current any more."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        before = world.current("k", bucket)
        spoil(world.path("k", bucket))
        if act == "replaced":
            world.drop("k", IS, bucket)
        elif act == "removed":
            world.unlink("k", bucket)
        world.settle()
        world.settle()
        assert _is_as_before(world, bucket, before)
        assert len(world.of("k", bucket)) == (1 if act == "stays" else 2)
        assert world.leftovers(bucket) == []
        world.stays_quiet()


@pytest.mark.parametrize("spoil", [_strip, _forge], ids=["stripped", "forged"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_record_lost_on_a_view_is_noticed_when_a_newer_version_comes(
    tmp_path: Path, sharing: str, spoil: Callable[[Path], object]
) -> None:
    """G5, section 5: the version is not current any more, and its view leaves it in this moment."""
    with World(tmp_path) as world:
        if sharing == "link":
            world.configure(v2(to=SOURCE, markers=True), source=DESTINATION)
        bucket = _link(world, sharing)
        before = world.current("k", bucket)
        spoil(world.path("k", bucket))
        world.drop("k", IS, DESTINATION if sharing == "link" else SOURCE)
        world.capture(DESTINATION if sharing == "link" else SOURCE)
        world.engine.run_until_idle()
        world.settle()
        world.settle()
        assert world.path("k", bucket).read_bytes() == IS
        assert _is_as_before(world, bucket, before)
        assert world.leftovers(bucket) == []
        world.stays_quiet()


@pytest.mark.parametrize("act", ["replaced", "removed"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_destroyed_version_is_noticed_by_its_own_file_alone(tmp_path: Path, sharing: str, act: str) -> None:
    """G7, section 7: written into and removed while the daemon was away, and the journal is lost."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        before = world.current("k", bucket)
        _write_into(world.path("k", bucket))
        world.unlink("k", bucket)
        if act == "replaced":
            world.write("k", b"another", bucket)
        world.restart(without_journal=True)
        world.settle()
        world.settle()
        assert _is_as_before(world, bucket, before)
        assert world.leftovers(bucket) == []


def test_a_version_that_was_destroyed_is_found_before_a_newer_one_takes_its_place(tmp_path: Path) -> None:
    """G7, section 7: the journal is lost, and the file in its place is still being written when the newer one comes."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        bucket = _link(world, "auto")
        before = world.current("k", bucket)
        _write_into(world.path("k", bucket))
        world.unlink("k", bucket)
        world.drop("k", b"newer")
        world.capture(SOURCE)
        with world.path("k", bucket).open("wb") as file:
            file.write(b"being written")
            file.flush()
            world.restart(without_journal=True)
            world.settle()
        world.settle()
        world.settle()
        assert _is_as_before(world, bucket, before)
        assert b"being written" in _served(world, bucket).values()
        assert world.statuses() == {"COMPLETED"}


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_destroyed_version_without_a_record_is_restored(tmp_path: Path, sharing: str) -> None:
    """G5, section 7: `rsync -X --inplace` writes into a file and removes every attribute."""
    with World(tmp_path) as world:
        bucket = _link(world, sharing)
        before = world.current("k", bucket)
        _write_into(world.path("k", bucket))
        _strip(world.path("k", bucket))
        world.settle()
        world.settle()
        assert _is_as_before(world, bucket, before)
        assert world.leftovers(bucket) == []


def test_a_destroyed_version_whose_view_is_another_file_with_its_content(tmp_path: Path) -> None:
    """G7, section 7: the view looks as if only edited, and the version's own file is gone."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        bucket = _link(world, "auto")
        before = world.current("k", bucket)
        _write_into(world.path("k", bucket))
        world.drop("k", WAS, bucket)
        world.settle()
        world.settle()
        assert _is_as_before(world, bucket, before)
        assert world.leftovers(bucket) == []


@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_destroyed_version_of_a_directory_that_is_a_link_now(tmp_path: Path, sharing: str) -> None:
    """G7, section 7: the deletion is captured all the same, and the version is fetched again."""
    with World(tmp_path) as world:
        if sharing == "link":
            world.set_sharing(east="link")
        bucket = SOURCE if sharing == "link" else DESTINATION
        world.write("d/k", WAS)
        world.settle()
        old = world.current("d/k", bucket).id
        _write_into(world.path("d/k", bucket))
        world.path("d", bucket).rename(world.home / "elsewhere")
        world.path("d", bucket).symlink_to(world.home / "elsewhere")
        world.settle()
        world.settle()
        assert world.current("d/k", bucket).marker
        assert _served(world, bucket, "d/k")[old] == WAS


def test_a_stale_view_that_was_touched_is_updated(tmp_path: Path) -> None:
    """G5, section 7: under "link" the inspection makes and removes a link, which is no action of its user."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        world.configure(v2(to=SOURCE, markers=True), source=DESTINATION)
        world.write("k", WAS)
        world.settle()
        path = world.path("k", DESTINATION)
        shutil.copy2(path, world.home / "copy")
        (world.home / "copy").rename(path)
        world.settle()
        with path.open("r+b"):
            world.drop("k", IS)
            world.settle()
            assert path.read_bytes() == WAS
            path.chmod(0o640)
        for _ in range(3):
            world.settle()
        assert path.read_bytes() == IS
        assert world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("act", ["replaced", "removed"])
def test_a_version_whose_file_only_looks_written_into_is_kept(tmp_path: Path, act: str) -> None:
    """G7, section 7: `touch` changes the times and no byte; no version is discarded for that."""
    with World(tmp_path) as world:
        world.set_sharing(east="link")
        world.away("west")
        world.write("k", WAS)
        world.settle()
        old = world.current("k").id
        os.utime(world.path("k"), (1, 1))
        world.drop("k", IS) if act == "replaced" else world.unlink("k")
        world.settle()
        assert _served(world, SOURCE)[old] == WAS
        assert world.state().views.overwritten == {}


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_power_cut_at_every_change(memory: Path, sharing: str) -> None:
    """G2, G7: whichever change the power cut comes at, also without the journal, both contents are versions in the
    end."""
    for calls, world in worlds(memory):
        bucket = _link(world, sharing)
        old = world.current("k", bucket).id
        _write_into(world.path("k", bucket))
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
        assert _served(world, bucket).get(old, WAS) == WAS, calls
        world.restart(without_journal=calls % 2 == 0)
        world.settle()
        assert _served(world, bucket) == {old: WAS, world.current("k", bucket).id: IS}, (calls, fs.died_in)
        assert world.leftovers(bucket) == [], calls
        if not fs.died:
            return


def _attributes(path: Path) -> dict[str, bytes]:
    """The attributes as `rsync -X` and `cp -a` read them, to write them back later."""
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def _put_back(path: Path, older: dict[str, bytes]) -> None:
    for name in os.listxattr(path):
        if name not in older:
            os.removexattr(path, name)
    for name, value in older.items():
        os.setxattr(path, name, value)


def _leave(world: World, act: str) -> None:
    if act == "replaced":
        world.drop("k", IS)
    elif act == "removed":
        world.unlink("k")
    elif act == "superseded":
        world.drop("k", IS, DESTINATION)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("act", ["stays", "replaced", "removed", "superseded"])
@pytest.mark.parametrize("home", ["tmp_path", "users_home"])
def test_an_older_record_that_its_user_restores_is_corrected(
    request: pytest.FixtureRequest, home: str, act: str, restarted: bool
) -> None:
    """G11, section 2: a record on a file that users write to does not count where the index has newer data."""
    with World(request.getfixturevalue(home)) as world:
        world.set_sharing(east="link", west="link")
        world.configure(v2(to=SOURCE, markers=True), source=DESTINATION)
        world.write("k", WAS)
        world.capture(SOURCE)
        older = _attributes(world.path("k"))
        old = world.current("k")
        assert old.status == "PENDING"
        world.settle()
        _put_back(world.path("k"), older)
        if act == "superseded":
            _leave(world, act)
            world.capture(DESTINATION)
        else:
            _leave(world, act)
        if restarted:
            world.restart()
        world.settle()
        world.settle()
        for _ in range(2):
            [after] = [v for v in world.of("k") if v.id == old.id]
            assert after.status == "COMPLETED"
            assert world.engine.journal.deliveries.count_pending(SOURCE, 1 << 62) == 0
            assert len(world.of("k")) == (1 if act == "stays" else 2)
            world.stays_quiet()
            world.restart(without_journal=True)
            world.settle()


@pytest.mark.parametrize("act", ["stays", "replaced"])
def test_an_older_record_with_the_tags_of_its_time_is_an_edit_of_tags(tmp_path: Path, act: str) -> None:
    """G5: a user who restores older attributes wants those, on both sides, also where an older record is among them."""
    with World(tmp_path) as world:
        world.set_sharing(east="link")
        world.drop("k", WAS, tags={"colour": "red"})
        world.settle()
        older = _attributes(world.path("k"))
        os.setxattr(world.path("k"), "user.fsrepl.tag.colour", b"blue")
        world.settle()
        assert world.current("k", DESTINATION).tags == {"colour": "blue"}
        _put_back(world.path("k"), older)
        world.settle()
        assert world.current("k").tags == {"colour": "red"}
        assert world.current("k", DESTINATION).tags == {"colour": "red"}
        assert world.current("k").status == "COMPLETED"
        if act == "replaced":
            world.drop("k", IS)
            world.settle()
            assert [v.status for v in world.of("k")] == ["COMPLETED", "COMPLETED"]
        world.stays_quiet()


@pytest.mark.parametrize("act", ["stays", "replaced"])
def test_a_record_removed_during_a_delivery_is_complete_afterwards(tmp_path: Path, act: str) -> None:
    """G5, G11: the outcome of the delivery does not become the whole record."""
    with World(tmp_path) as world:
        world.set_sharing(east="link")
        world.write("k", WAS)
        world.capture(SOURCE)
        before = world.current("k")
        _strip(world.path("k"))
        world.engine.run_until_idle()
        _leave(world, act)
        world.settle()
        world.settle()
        assert _is_as_before(world, SOURCE, replace(before, deliveries=_completed(before)))
        world.stays_quiet()


def _completed(version: Version) -> dict[str, DeliveryRecord]:
    return {name: replace(d, status=Status.COMPLETED) for name, d in version.deliveries.items()}


def _become(path: Path, other: Path) -> None:
    """Copy another file's content and attributes into the existing file, fsrepl's included, as `cp -a OTHER PATH`
    does."""
    path.write_bytes(other.read_bytes())
    _put_back(path, _attributes(other))


def test_a_version_overwritten_during_its_delivery_is_restored(tmp_path: Path) -> None:
    """G2, G11: its version does not get a file of its own with the copied content."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        world.write("other", IS)
        world.write("k", WAS)
        world.capture(SOURCE)
        old = world.current("k")
        world.region(DESTINATION).turn()  # it has arrived, and its outcome is not recorded yet
        assert world.current("k", DESTINATION).id == old.id
        _become(world.path("k"), world.path("other"))
        world.engine.run_until_idle()
        world.settle()
        world.settle()
        assert _served(world, SOURCE) == {old.id: WAS, world.current("k").id: IS}
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert world.statuses() == {"COMPLETED"}
        assert world.leftovers(SOURCE) == []


@pytest.mark.parametrize("act", ["replaced", "removed"])
def test_a_version_that_became_a_copy_of_an_older_one_is_repaired_at_the_start(tmp_path: Path, act: str) -> None:
    """G2, G7: the journal is lost, and the record contradicts its name; nothing else leads to that version any more."""
    with World(tmp_path) as world:
        world.set_sharing(east="link", west="link")
        world.write("k", IS)
        world.settle()
        oldest = world.home / "oldest"
        shutil.copy2(world.path("k"), oldest)
        world.drop("k", WAS)
        world.settle()
        before = world.current("k")
        _become(world.path("k"), oldest)
        _leave(world, act) if act == "removed" else world.drop("k", b"the next")
        world.restart(without_journal=True)
        world.settle()
        world.settle()
        assert _is_as_before(world, SOURCE, before)
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert world.statuses() == {"COMPLETED"}
        world.stays_quiet()


def test_an_edit_that_comes_to_a_replica_whose_record_is_lost_waits_for_it(tmp_path: Path) -> None:
    """G5: the rest of a record is not written as the whole of it."""
    with World(tmp_path) as world:
        _link(world, "auto")
        before = world.current("k", DESTINATION)
        _strip(world.path("k", DESTINATION))
        os.setxattr(world.path("k"), "user.fsrepl.tag.colour", b"blue")
        world.capture(SOURCE)
        world.flush_settling()
        world.engine.run_until_idle()
        world.settle()
        world.settle()
        after = world.current("k", DESTINATION)
        assert _is_as_before(world, DESTINATION, before)
        assert after.tags == {"colour": "blue"}
        assert world.statuses() == {"COMPLETED"}
        world.stays_quiet()


def _stored(world: World, key: str, version_id: str, bucket: str) -> os.stat_result:
    return world.path(f".fsrepl/versions/{key};{version_id}", bucket).stat()


@pytest.mark.parametrize("act", ["replaced", "removed", "superseded", "by-command"])
@pytest.mark.parametrize("sharing", ["auto", "link"])
def test_a_version_that_its_view_has_left_is_private(tmp_path: Path, sharing: str, act: str) -> None:
    """Section 2: a stored version that is no view is 0600 and the daemon's; the object's mode is on record."""
    with World(tmp_path) as world:
        if sharing == "link":
            world.set_sharing(east="link", west="link")
        bucket = DESTINATION if sharing == "auto" else SOURCE
        world.write("k", WAS)
        os.chmod(world.path("k"), 0o644)
        os.chown(world.path("k"), 77, 88)
        world.settle()
        before = world.current("k", bucket)
        assert _is_linked(world, bucket)
        if act == "by-command":
            world.remove("k", bucket)
        elif act == "superseded":
            world.drop("k", IS)
        else:
            world.drop("k", IS, bucket) if act == "replaced" else world.unlink("k", bucket)
        world.settle()
        found = _stored(world, "k", before.id, bucket)
        assert (found.st_mode & 0o7777, found.st_uid, found.st_nlink) == (0o600, os.geteuid(), 1)
        for without_journal in (False, True):
            [after] = [v for v in world.of("k", bucket) if v.id == before.id]
            assert (after.posix, after.status) == (before.posix, before.status)
            world.stays_quiet()
            world.restart(without_journal=without_journal)
            world.settle()
        world.run("object.restore", bucket=bucket, key=b"k", version_id=before.id)
        world.settle()
        assert world.path("k", bucket).read_bytes() == WAS
        assert world.look_of("k", bucket)[0] == before.posix


def test_a_replica_that_never_was_current_is_private(tmp_path: Path) -> None:
    """Section 2: it came together with a newer one, so no view shows it."""
    with World(tmp_path) as world:
        for data in (WAS, IS):
            world.drop("k", data)
            os.chmod(world.path("k"), 0o644)
            world.capture(SOURCE)
        world.settle()
        newer, older = world.of("k", DESTINATION)
        assert _is_linked(world, DESTINATION)
        assert _stored(world, "k", newer.id, DESTINATION).st_nlink == 2
        assert _stored(world, "k", older.id, DESTINATION).st_mode & 0o7777 == 0o600
        assert older.posix is not None
        assert older.posix.mode == 0o644
        world.stays_quiet()


def test_a_replica_with_an_obstacle_is_private_until_it_is_shown(tmp_path: Path) -> None:
    """Section 2: then it is the view too, as it would have been at once."""
    with World(tmp_path) as world:
        world.path("k", DESTINATION).mkdir()
        (world.path("k", DESTINATION) / "theirs").write_bytes(b"")
        world.drop("k", WAS)
        os.chmod(world.path("k"), 0o644)
        world.settle()
        replica = world.current("k", DESTINATION)
        assert _stored(world, "k", replica.id, DESTINATION).st_mode & 0o7777 == 0o600
        (world.path("k", DESTINATION) / "theirs").unlink()
        world.path("k", DESTINATION).rmdir()
        world.settle()
        assert _is_linked(world, DESTINATION)
        assert world.look_of("k", DESTINATION)[0] == replica.posix == world.current("k").posix
        world.stays_quiet()


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_write_into_a_view_is_noticed_where_a_marker_overtakes_its_capture(
    memory: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """Section 7: a user writes into a file and removes it while a marker for it is being delivered, after the delivery
    has looked at the file: the destroyed version is fetched again, also after a kill before its repair."""
    with World(memory / "w", replicate=False) as world:
        connect(world, SOURCE, DESTINATION)
        world.set_sharing(east="link", west="link")
        for key in ("k", "untouched"):
            world.drop(key, b"the first content")
        world.settle()
        first = {key: world.of(key)[-1] for key in ("k", "untouched")}
        os.truncate(world.path("k"), 4)
        for key in first:
            world.unlink(key)
            world.unlink(key, DESTINATION)
        world.capture(DESTINATION)
        monkeypatch.setattr(DeliveryGroup, "_is_unlooked_at", lambda *_: False)  # it had looked before
        if is_killed:
            monkeypatch.setattr(refetch, "fetch_due", lambda region: False)
        for _ in range(3):
            world.region(SOURCE).turn()
        assert [version.origin for version in world.of("k")] == [Origin.REPLICA, Origin.USER]
        monkeypatch.undo()
        if is_killed:
            world.restart()
        for _ in range(2):
            world.settle()
        with world.engine.site.bucket(SOURCE).open() as opened:
            for key, version in first.items():
                fd = versions.open_version(opened, key.encode(), version.id)
                assert content_digest(opened, fd) == version.digest
                opened.fs.close(fd)
        assert world.ids(SOURCE) == world.ids(DESTINATION)


@pytest.mark.slow
def test_a_write_into_a_view_is_noticed_where_a_crash_keeps_its_marker(memory: Path) -> None:
    """The same where a crash at any change comes between: the start finds the view gone, as the marker wants it."""
    for calls, world in worlds(memory, replicate=False):
        connect(world, SOURCE, DESTINATION)
        world.set_sharing(east="link", west="link")
        world.drop("k", b"the first content")
        world.settle()
        first = world.of("k")[-1]
        world.unlink("k", DESTINATION)
        fs = DyingFs(calls)
        world.restart(fs=fs)
        with contextlib.suppress(PowerCut):
            world.settle()
        if not fs.died:
            return
        if world.path("k").exists():
            os.truncate(world.path("k"), 4)
            world.unlink("k")
        world.restart(without_journal=calls % 2 == 1)
        for _ in range(3):
            world.settle()
        with world.engine.site.bucket(SOURCE).open() as opened:
            fd = versions.open_version(opened, b"k", first.id)
            assert content_digest(opened, fd) == first.digest, f"cut at {calls}, in {fs.died_in}"
            opened.fs.close(fd)


def test_a_destroyed_version_whose_record_is_rebuilt_is_fetched_again_also_after_a_kill(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 7: while no daemon ran, a user wrote into a view that is the stored file, its attributes went, another
    file took its place, and the journal was lost. The record comes from the other side at once, the content after a
    kill."""
    with World(memory / "w") as world:
        world.write("k", WAS)
        world.settle()
        before = world.of("k", DESTINATION)[-1]
        view = world.path("k", DESTINATION)
        _write_into(view)
        for name in os.listxattr(view):
            os.removexattr(view, name)
        aside = world.home / "aside"
        aside.write_bytes(b"another file")
        aside.rename(view)
        monkeypatch.setattr(refetch, "fetch_due", lambda region: False)
        world.restart(without_journal=True)
        world.settle()
        monkeypatch.undo()
        world.restart()
        for _ in range(2):
            world.settle()
        assert _served(world, DESTINATION)[before.id] == WAS
        assert world.leftovers(DESTINATION) == []


@pytest.mark.parametrize("before", [{}, {"user.note": b"old", "user.gone": b"x"}])
def test_attributes_that_were_edited_while_no_view_showed_them_are_shown_with_it(
    tmp_path: Path, before: dict[str, bytes]
) -> None:
    """The stored file was prepared to be the view, and something was in the way; the edit came before that was gone."""
    with World(tmp_path) as world:
        world.write("k", WAS)
        for name, value in before.items():
            os.setxattr(world.path("k"), name, value)
        world.write("k/in the way", b"a user's", DESTINATION)
        world.settle()
        os.setxattr(world.path("k"), "user.note", b"new")
        if before:
            os.removexattr(world.path("k"), "user.gone")
        world.settle()
        world.unlink("k/in the way", DESTINATION)
        world.path("k", DESTINATION).rmdir()
        for _ in range(2):
            world.settle()
        assert _is_linked(world, DESTINATION)
        assert world.look_of("k", DESTINATION) == world.look_of("k")
        assert world.look_of("k")[1] == {"user.note": b"new"}
        assert world.current("k", DESTINATION).edited == world.current("k").edited
        world.stays_quiet()
