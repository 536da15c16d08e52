"""Power cuts at every change while an edit of metadata is recorded, sent and applied."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsrepl.model.version import Status
from fsrepl.storage import versions
from fsrepl.storage.intents import Act, Intent, write_intents
from tests.doubles import DyingFs, PowerCut, Tried
from tests.world import DESTINATION, SOURCE, Json, World, statuses, v2


def rule(to: str) -> Json:
    made = v2(to=to, markers=True)
    made["SourceSelectionCriteria"] = {"ReplicaModifications": {"Status": "Enabled"}}
    return made


def chmod(world: World) -> None:
    world.path("k").chmod(0o600)


def touch_and_give_away(world: World) -> None:
    if os.geteuid() == 0:
        os.chown(world.path("k"), 1234, 4321)
    os.utime(world.path("k"), ns=(1, 1))


def attribute(world: World) -> None:
    os.removexattr(world.path("k"), "user.colour")


def large(world: World) -> None:
    os.setxattr(world.path("k"), "user.colour", b"x" * 3500)


def tag(world: World) -> None:
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"b": "2"})


def replica_chmod(world: World) -> None:
    world.path("k", DESTINATION).chmod(0o600)


def replica_tag(world: World) -> None:
    world.run("tag.set", bucket=DESTINATION, key=b"k", tags={"b": "2"})


def both_sides(world: World) -> None:
    world.path("k").chmod(0o640)
    os.setxattr(world.path("k", DESTINATION), "user.colour", b"red")


ONE_WAY = [chmod, touch_and_give_away, attribute, large, tag]
BACK = [replica_chmod, replica_tag, both_sides]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "sharing", "two_way", "without_journal"),
    [
        *((act, "auto", False, False) for act in ONE_WAY),
        *((act, "private", False, True) for act in ONE_WAY),
        *((act, "auto", True, lost) for act in BACK for lost in (False, True)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_power_cut_at_every_change(
    tmp_path: Path,
    memory: Path,
    act: Callable[[World], None],
    sharing: str,
    two_way: bool,
    without_journal: bool,
    tried: Callable[..., Tried],
) -> None:
    """G6, G7: after a cut at any change both sides end equal, no user's edit is lost, and no edit is invented."""
    home = tmp_path if act is large else memory  # whether an attribute is large depends on the filesystem
    expected: list[tuple[object, object]] = []
    others = tried(sharing, two_way, without_journal)
    for calls in itertools.count(-1):
        with World(home / str(calls), replicate=not two_way) as world:
            if two_way:
                world.configure(rule(DESTINATION), source=SOURCE)
                world.configure(rule(SOURCE), source=DESTINATION)
            if sharing != "auto":
                world.set_sharing(west=sharing)
            world.write("k", b"data")
            os.setxattr(world.path("k"), "user.colour", b"blue")
            os.setxattr(world.path("k"), "user.fsrepl.tag.a", b"1")
            world.settle()
            if act not in (tag, replica_tag):
                act(world)
            fs = DyingFs(calls if calls >= 0 else 1 << 40, but=others)
            world.restart(fs=fs)
            with contextlib.suppress(PowerCut):
                world.settle()  # the buckets are up, where the power lasts that long
                if act in (tag, replica_tag):
                    act(world)
                world.settle()
            world.restart(without_journal=without_journal)
            world.settle()
            if act in (tag, replica_tag):
                act(world)  # a command that did not return is run again
                world.settle()
            where = f"cut at change {calls}, in {fs.died_in}"
            found = [(world.look_of("k", b)[0].mode, world.look_of("k", b)[1]) for b in (SOURCE, DESTINATION)]
            if calls < 0:
                expected = list(found)
                assert found[0] == found[1]
                continue
            assert found == expected, where
            assert world.look_of("k") == world.look_of("k", DESTINATION), where
            source, destination = world.history(SOURCE), world.history(DESTINATION)
            a, b = source[b"k"][-1], destination[b"k"][-1]
            assert (a.posix, a.attrs, a.tags) == (b.posix, b.attrs, b.tags), where
            assert (a.id, len(source[b"k"]), len(destination[b"k"])) == (b.id, 1, 1), where
            assert (statuses(source), statuses(destination)) == ({Status.COMPLETED}, {Status.REPLICA}), where
            assert world.leftovers(SOURCE) + world.leftovers(DESTINATION) == [], where
            if not fs.died:
                world.stays_quiet()
                return


@pytest.mark.parametrize("trees", [False, True])
def test_a_view_that_was_touched_after_a_cut_keeps_that_time(tmp_path: Path, trees: bool) -> None:
    """G1, G7: an edit was under way, and a user set another time before the next start: that is the later edit."""
    with World(tmp_path, trees=trees) as world:
        if trees:
            world.link("k", "target")
        else:
            world.write("k", b"k")
        world.settle()
        known, version = world.engine.journal.versions.object(DESTINATION, b"k"), world.current("k", DESTINATION)
        assert known is not None
        assert version.posix is not None
        with world.state(DESTINATION).bucket.open() as bucket:
            write_intents(bucket, [Intent(b"k", version.id, known.view, Act.EDIT)])
            sent = replace(version, posix=replace(version.posix, mtime_ns=1_000))
            versions.write_record(bucket, replace(sent, edited={"posix": f"{version.created_ns + 1} {SOURCE}"}))
        os.utime(world.path("k", DESTINATION), ns=(0, 2_000), follow_symlinks=False)
        world.restart()
        world.settle()
        assert world.path("k", DESTINATION).lstat().st_mtime_ns == 2_000
        after = world.current("k", DESTINATION)
        assert after.posix is not None
        assert after.posix.mtime_ns == 2_000
        assert after.edited["posix"].endswith(DESTINATION)
        world.stays_quiet()
