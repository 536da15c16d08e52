"""Names of one file in a tree bucket have one metadata, whatever arrives late, twice or never."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.model import metadata
from fsrepl.model.version import Posix, Version
from fsrepl.model.view import view_of
from fsrepl.region.region import Region
from fsrepl.replicate.group import DeliveryGroup
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views.link_groups import LinkGroups
from tests.doubles import DyingFs, PowerCut
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, v2, worlds


def write(world: World, key: str) -> None:
    world.write(key, b"content")


def link(world: World, key: str) -> None:
    world.link(key, "target")


made_by = pytest.mark.parametrize("make", [write, link])


def hard_link(world: World, key: str, other: str) -> None:
    os.link(world.path(key), world.path(other), follow_symlinks=False)


def touch(world: World, key: str, mtime_ns: int, bucket: str = SOURCE) -> None:
    os.utime(world.path(key, bucket), ns=(0, mtime_ns), follow_symlinks=False)


def times(world: World, bucket: str) -> dict[str, int]:
    return {key: world.path(key, bucket).lstat().st_mtime_ns for key in [*world.tree(bucket), *world.links(bucket)]}


def edited_there(world: World) -> list[bytes]:
    """Keys whose record says that a user edited the replica."""
    return [
        key
        for key, found in world.history(DESTINATION).items()
        if any(stamp.endswith(DESTINATION) for version in found for stamp in version.edited.values())
    ]


def told_apart(world: World, bucket: str) -> list[bytes]:
    """Keys whose record has another time than their view."""
    current = {key: found[-1] for key, found in world.history(bucket).items() if not found[-1].marker}
    return [
        key
        for key, version in current.items()
        if version.posix and world.path(os.fsdecode(key), bucket).lstat().st_mtime_ns != version.posix.mtime_ns
    ]


def hold(monkeypatch: pytest.MonkeyPatch, key: bytes, *, markers: bool = False) -> Callable[[], None]:
    """Keep the deliveries of a key back, or only those of its markers, until the function is called that this
    returns."""
    real = DeliveryGroup.prepare

    def prepare(self: DeliveryGroup, delivery: Delivery) -> None:
        if delivery.key == key and delivery.marker >= markers:
            self.region.try_later([delivery], "held")
        else:
            real(self, delivery)

    monkeypatch.setattr(DeliveryGroup, "prepare", prepare)
    return lambda: monkeypatch.setattr(DeliveryGroup, "prepare", real)


@made_by
def test_an_edit_that_arrives_by_one_name_is_no_users_edit_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[World, str], None]
) -> None:
    """G5: it is recorded for both names, so a look at the other one makes no edit that would outdo the source's."""
    with World(tmp_path, trees=True) as world:
        make(world, "a")
        hard_link(world, "a", "b")
        world.settle()
        let_go = hold(monkeypatch, b"b")
        touch(world, "a", 1_000)
        world.settle()
        touch(world, "a", 2_000)
        world.capture(SOURCE)
        world.restart(without_journal=True)  # so that each view is looked at
        world.look()
        world.engine.run_until_idle()
        let_go()
        for _ in range(2):
            world.settle()
        assert edited_there(world) == []
        assert times(world, DESTINATION) == times(world, SOURCE) == {"a": 2_000, "b": 2_000}
        assert world.records(DESTINATION) == world.records(SOURCE)


@made_by
def test_names_of_one_file_have_the_same_stamp_of_an_edit(tmp_path: Path, make: Callable[[World, str], None]) -> None:
    """One edit has one time, at the source and at a replica, where users edit too."""
    with World(tmp_path, trees=True) as world:
        make(world, "a")
        hard_link(world, "a", "b")
        world.settle()
        for bucket, mtime_ns in ((SOURCE, 1_000), (DESTINATION, 2_000)):
            touch(world, "b", mtime_ns, bucket)
            world.settle()
            a, b = world.current("a", bucket), world.current("b", bucket)
            assert a.edited == b.edited != {}
            assert a.posix == b.posix
            assert a.edited["posix"].endswith(bucket)


def test_a_view_that_was_shown_and_removed_in_one_batch_is_not_on_record(tmp_path: Path) -> None:
    """Else what is made in its place later would be expected to replace it, and never be shown."""
    with World(tmp_path, trees=True) as world, world.state().bucket.open() as bucket:
        engine = world.engine
        links = LinkGroups(engine.journal, bucket, engine.syncer, engine.recent)
        world.write("a", b"content")
        view = view_of(world.path("a").stat(), "1")
        version = Version(b"a", "1", 1)
        links.showed(version, None, view)
        assert links.latest_of([(version, None)]) == [(version, view)]
        links.showed(Version(b"a", "2", 2, marker=True), view, None)
        assert links.latest_of([(version, None)]) == [(version, None)]


@made_by
def test_a_name_that_comes_late_has_the_later_metadata_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[World, str], None]
) -> None:
    """It was captured before the file was edited, and is gone before that was captured for it: neither its arrival nor
    that of its version once more undoes the edit."""
    with World(tmp_path, trees=True) as world:
        make(world, "a")
        hard_link(world, "a", "b")
        let_go = hold(monkeypatch, b"b")
        world.settle()
        touch(world, "a", 1_000)
        world.unlink("b")
        world.settle()
        let_go()
        hold(monkeypatch, b"b", markers=True)
        with monkeypatch.context() as patch:
            patch.setattr(Region, "report_outcomes", lambda *given: None)  # a crash keeps them from being recorded
            world.settle()
        assert times(world, DESTINATION) == {"a": 1_000, "b": 1_000}
        world.restart()
        world.settle()
        assert times(world, DESTINATION) == {"a": 1_000, "b": 1_000}
        assert told_apart(world, DESTINATION) == edited_there(world) == []


def test_an_edit_that_came_by_another_name_is_no_edit_of_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where edits of replicas are sent back, `verify` asks for none of a name that was gone before the source captured
    the edit for it."""
    with World(tmp_path, trees=True) as world:
        both_ways = {"SourceSelectionCriteria": {"ReplicaModifications": {"Status": "Enabled"}}}
        for source, to in ((SOURCE, DESTINATION), (DESTINATION, SOURCE)):
            world.configure({**v2(to=to, markers=True), **both_ways}, source=source)
        write(world, "a")
        hard_link(world, "a", "b")
        let_go = hold(monkeypatch, b"b")
        world.settle()
        touch(world, "a", 1_000)
        world.unlink("b")
        world.settle()
        let_go()
        let_go = hold(monkeypatch, b"b", markers=True)
        world.settle()
        assert times(world, DESTINATION) == {"a": 1_000, "b": 1_000}
        let_go()
        world.settle()
        assert times(world, DESTINATION) == times(world, SOURCE) == {"a": 1_000}
        assert verify(world) == []


@made_by
def test_a_power_cut_anywhere_makes_no_edit_of_a_file_with_several_names(
    memory: Path, make: Callable[[World, str], None]
) -> None:
    """G5, G7: while names of an edited file come and go, one of them replaced by another file of the same content."""
    for calls, world in worlds(memory, trees=True):
        for key in ("a", "other"):
            make(world, key)
        hard_link(world, "a", "b")
        world.settle()
        fs = DyingFs(4 * calls + (make is link))
        world.restart(fs=fs)
        touch(world, "a", 1_000)
        hard_link(world, "a", "c")
        world.unlink("a")
        hard_link(world, "other", "a")
        with contextlib.suppress(PowerCut):
            world.settle()
        touch(world, "b", 2_000)
        world.unlink("other")
        world.restart()
        for _ in range(2):
            world.settle()
        cut = f"cut at {fs.died_in}, {4 * calls}"
        assert times(world, DESTINATION) == times(world, SOURCE), cut
        assert told_apart(world, DESTINATION) == edited_there(world) == [], cut
        if not fs.died:
            return


def test_a_version_takes_what_is_later_of_another_name_of_its_file() -> None:
    """Pure: by the time of the edit, else by that of the version; tags are each key's own."""
    first = Version(b"a", "1", 100, posix=Posix(0o600, 7, 7, 1), tags={"x": "y"})
    second = Version(b"b", "2", 200, posix=Posix(0o644, 7, 7, 1), attrs={"user.note": b"x"})
    taken = metadata.of_one_file(first, second, SOURCE)
    assert (taken.posix, taken.attrs, taken.tags) == (second.posix, second.attrs, first.tags)
    assert taken.edited == {"posix": f"200 {SOURCE}", "attrs": f"200 {SOURCE}"}
    assert metadata.of_one_file(second, first, SOURCE) == second
    edited = replace(first, edited={"posix": f"300 {SOURCE}"})
    assert metadata.of_one_file(edited, second, SOURCE).posix == edited.posix
    assert metadata.of_one_file(second, edited, SOURCE).posix == edited.posix
    assert metadata.of_one_file(second, edited, SOURCE).attrs == second.attrs


def test_an_edit_has_the_stamp_of_the_name_that_has_it_on_record() -> None:
    """Pure: only where that is later, and the same."""
    was = Version(b"a", "1", 100, posix=Posix(0o600, 7, 7, 1))
    now = replace(was, posix=Posix(0o644, 7, 7, 1))
    other = replace(now, key=b"b", edited={"posix": f"300 {DESTINATION}"})
    assert metadata.stamps_of_one_file(was, now, [other], SOURCE) == {"posix": f"300 {DESTINATION}"}
    assert metadata.stamps_of_one_file(was, now, [], SOURCE) == {}
    differs = replace(other, posix=Posix(0o640, 7, 7, 1))
    assert metadata.stamps_of_one_file(was, now, [differs], SOURCE) == {}
    later = replace(was, edited={"posix": f"400 {SOURCE}"})
    assert metadata.stamps_of_one_file(later, now, [other], SOURCE) == {}
