"""Every journey, with every fault, at every change of the disk: in the end all is as without the fault.

CI tries one fault at each place in the code that makes a change in any journey; FSREPL_LONG=1 tries each fault at each
change:

    FSREPL_LONG=1 .venv/bin/python -m pytest -q tests/journeys/test_every_step.py
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fsrepl.errors import FsreplError
from fsrepl.storage.fs import Fs
from tests import deeds
from tests.doubles import DyingFs, FailingFs, NotingFs, Place, PowerCut
from tests.lifecycle.test_lifecycle import days, old_versions, put
from tests.lifecycle.test_tiers import OLD, add_tier
from tests.replicate.test_large import content, set_up
from tests.verifying import repair_version
from tests.world import DESTINATION, SOURCE, World

ALL = bool(os.environ.get("FSREPL_LONG"))
CHANGES_LEAST = 9
"""In CI at least so many changes of each journey are tried, with every fault."""
PLAIN = "east/plain"
START, LATER = "2026-05-01T10:00:00Z", "2026-06-01T00:00:01Z"

Clock = Callable[[str], object]


@dataclass(frozen=True)
class Journey:
    """prepare: what comes before, the acts of users included. command: a command that is then given, if any.

    Its faults are those of the daemon: a command that failed is given again.
    """

    prepare: Callable[[World, Clock], object]
    command: Callable[[World, Clock], object] | None = None
    trees: bool = False
    finish: Callable[[World], object] | None = None
    """What is done anyway some time later."""


def _acts(world: World, clock: Clock) -> None:
    deeds.begin(world)
    deeds.act(world)


def _tree_objects(world: World, clock: Clock) -> None:
    world.path("changed").mkdir(mode=0o755)
    world.write("removed/file", b"content")
    world.path("renamed/below").mkdir(parents=True)
    world.link("link", "removed/file")
    world.link("gone", "removed/file")
    world.settle()
    world.path("changed").chmod(0o700)
    shutil.rmtree(world.path("removed"))
    world.path("renamed").rename(world.path("renamed-now"))
    world.path("made/below").mkdir(parents=True, mode=0o750)
    world.link("link", "changed")
    world.link("made/below/link", "../elsewhere")
    world.unlink("gone")


def _tree_changes(world: World, clock: Clock) -> None:
    """Names of one file, of which one goes, one is added and one is written through; what becomes an object of another
    kind; directories that were deleted and still hold something, of which one is changed and one emptied."""
    _hard_links(world, clock)
    for name in ("file", "remains/file", "emptied/file", "was-a-directory/file"):
        world.write(name, name.encode())
    world.link("was-a-link", "file")
    world.settle()
    for key in ("remains/", "emptied/"):
        world.remove(key)
    world.settle()
    world.path("three").write_bytes(b"written through one name")
    world.unlink("file")
    world.path("file").mkdir()
    shutil.rmtree(world.path("was-a-directory"))
    world.link("was-a-directory", "elsewhere")
    world.unlink("was-a-link")
    world.write("was-a-link/file", b"below")
    world.path("remains").chmod(0o711)
    world.unlink("emptied/file")


def _hard_links(world: World, clock: Clock) -> None:
    world.write("one", b"content")
    world.write("other", b"other")
    os.link(world.path("one"), world.path("two"))
    world.settle()
    os.link(world.path("one"), world.path("three"))
    world.unlink("two")
    aside = world.home / "aside"
    os.link(world.path("one"), aside)
    aside.rename(world.path("other"))


def _delta(world: World, clock: Clock) -> None:
    set_up(world)
    world.write("k", content(1 << 20))
    world.settle()
    world.write("k", content(30_000, 2) + content(1 << 20))


def _two_versions(world: World, *keys: str) -> None:
    for data in (b"one" * 2000, b"two, longer" * 2000):
        for key in keys:
            world.write(key, data)
        world.settle()


def _old(world: World, clock: Clock) -> None:
    _two_versions(world, "k", "d/k")
    put(world, old_versions())


def _expired(world: World, clock: Clock) -> None:
    _two_versions(world, "k", "d/k")
    put(world, days(2))


def _tiered(world: World, clock: Clock) -> None:
    add_tier(world)
    _two_versions(world, "k", "d/k")
    put(world, OLD)


def _time_passes(world: World, clock: Clock) -> None:
    """The daemon carries out what is due by itself."""
    clock(LATER)


def _midnight(world: World) -> None:
    world.run("lifecycle.run", bucket=SOURCE)
    world.settle()


def _deleted(world: World, clock: Clock) -> None:
    _two_versions(world, "k", "d/k")
    shutil.rmtree(world.path("d"))
    world.settle()


def _unreplicated(world: World, clock: Clock) -> None:
    world.run("replication.disable", source=SOURCE)
    _two_versions(world, "k", "d/k")
    world.run("replication.enable", source=SOURCE)


def _suspended(world: World, clock: Clock) -> None:
    """Null versions and null markers, which replace one another, beside versions of before."""
    for key in ("k", "d/k", "gone"):
        world.write(key, b"versioned")
    world.settle()
    world.run("replication.rm", source=SOURCE)
    world.run("versioning.set", bucket=SOURCE, status="Suspended")
    for key in ("k", "d/k", "null"):
        world.write(key, b"null")
    world.settle()
    world.write("k", b"another null")
    for key in ("d/k", "gone"):
        world.unlink(key)


def _plain(world: World, clock: Clock) -> None:
    for key in ("a", "d/b", "d/e/c"):
        world.write(key, key.encode(), PLAIN)


def _damaged(world: World, clock: Clock) -> None:
    _two_versions(world, "k", "d/k")
    stored = world.path(f".fsrepl/versions/d/k;{world.of('d/k')[1].id}", DESTINATION)
    with stored.open("r+b") as file:
        file.write(b"rot")


def _edited(world: World, clock: Clock) -> None:
    """Metadata of both versions of a key, and of a replica, as attributes and as modes."""
    _two_versions(world, "k", "d/k")
    world.path("k").chmod(0o600)
    os.setxattr(world.path("k"), "user.colour", b"blue")
    world.path("d/k").chmod(0o640)
    os.setxattr(world.path("d/k", DESTINATION), "user.there", b"green")


def _overwritten(world: World, clock: Clock) -> None:
    """Stored versions are the views' own files, and are written into: their content is fetched again."""
    world.set_sharing(east="link")
    _two_versions(world, "k")
    world.drop("d/k", b"one")
    world.settle()
    for key in ("k", "d/k"):
        with world.path(key).open("r+b") as file:
            file.write(b"overwritten")


JOURNEYS = {
    "acts": Journey(_acts),
    "trees": Journey(_tree_objects, trees=True),
    "tree-changes": Journey(_tree_changes, trees=True),
    "hard-links": Journey(_hard_links),
    "delta": Journey(_delta),
    "expiry": Journey(_expired, _time_passes, finish=_midnight),
    "old-versions": Journey(_old, _time_passes, finish=_midnight),
    "tiers": Journey(_tiered, _time_passes, finish=_midnight),
    "restore": Journey(
        _deleted, lambda world, clock: world.run("object.restore", bucket=SOURCE, key=b"d/k", version_id=None)
    ),
    "undelete": Journey(
        _deleted, lambda world, clock: world.run("bucket.undelete", address=f"{SOURCE}/", since=START, after=b"")
    ),
    "rm": Journey(
        lambda world, clock: _two_versions(world, "k", "d/k"), lambda world, clock: world.remove("d/k")
    ),
    "backfill": Journey(
        _unreplicated,
        lambda world, clock: world.run("replication.backfill", source=SOURCE, statuses=("NONE",), rules=()),
    ),
    "edits": Journey(_edited),
    "suspended": Journey(_suspended),
    "fetch": Journey(_overwritten),
    "repair": Journey(
        _damaged,
        lambda world, clock: repair_version(world, DESTINATION, b"d/k", world.of("d/k")[1].id),
    ),
    "adopt": Journey(_plain, lambda world, clock: world.run("bucket.adopt", bucket=PLAIN)),
}  # fmt: skip

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EINTR", "EMFILE")
FAULTS = ("crash", *ERRORS)
CRASHED_AGAIN = 2
"""After so many of the changes at which a journey crashes, CI crashes its recovery too, again and again."""


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_with_any_fault_at_any_change_ends_as_without(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """G1, G2, G7: a crash, with and without the journal, or an error, once and until it is mended."""
    monkeypatch.setenv("FSREPL_CLOCK", str(tmp_path / "now"))
    without = _without_fault(memory, (tmp_path / "now").write_text)[name]
    run = _Run(JOURNEYS[name], memory, (tmp_path / "now").write_text, without.end)
    for fault, change in _rounds(without):
        found, where = run.with_fault(fault, change)
        assert found == without.end, f"{name}: {where}"


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_recovery_that_crashes_at_any_change_ends_as_without(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """G1, G2, G7: after a crash the recovery crashes again, each time at a later change, with and without the journal,
    until it gets through."""
    monkeypatch.setenv("FSREPL_CLOCK", str(tmp_path / "now"))
    without = _without_fault(memory, (tmp_path / "now").write_text)[name]
    run = _Run(JOURNEYS[name], memory, (tmp_path / "now").write_text, without.end)
    for change in _tried(len(without.places), 0.4, CRASHED_AGAIN):
        found, where = run.with_fault("crash", change, again=True)
        assert found == without.end, f"{name}: {where}"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_crash_of_an_ordinary_user_ends_as_without(
    users_memory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """G1, G2, G7: as any other user than root, with and without the journal."""
    monkeypatch.setenv("FSREPL_CLOCK", str(users_memory / "now"))
    run = _Run(JOURNEYS[name], users_memory, (users_memory / "now").write_text)
    places = run.without_fault()
    for change in _tried(len(places), 0.6, 1):
        found, where = run.with_fault("crash", change)
        assert found == run.wanted, f"{name}: {where}"


@dataclass(frozen=True)
class _Faultless:
    """A journey without a fault.

    places: of its changes. own: the first change at each place that no journey above it in the table comes to. end: see
    `_end`.
    """

    places: list[Place]
    own: list[int]
    end: dict[str, Any]


_known: dict[str, _Faultless] = {}


def _without_fault(home: Path, clock: Clock) -> dict[str, _Faultless]:
    """All journeys without a fault, made once in each process of the tests: that takes half a second."""
    if not _known:
        seen: set[Place] = set()
        found: dict[str, _Faultless] = {}
        for name, journey in JOURNEYS.items():
            run = _Run(journey, home, clock)
            places = run.without_fault()
            first = {place: at for at, place in reversed([*enumerate(places)])}
            found[name] = _Faultless(places, sorted(first[place] for place in first.keys() - seen), run.wanted)
            seen |= first.keys()
        _known.update(found)
    return _known


def _rounds(without: _Faultless) -> Iterator[tuple[str, int]]:
    """Which fault is tried at which change: each at all of them; or at each of the journey's own places one, which is a
    crash in every third, and at some changes more where those places are few."""
    changes = len(without.places)
    if ALL:
        yield from itertools.product(FAULTS, range(changes))
        return
    others = [at for at in range(changes) if at not in without.own]
    more = max(0, CHANGES_LEAST - len(without.own))
    errors = itertools.cycle(ERRORS)
    for number, change in enumerate([*without.own, *(others[len(others) * each // more] for each in range(more))]):
        yield next(errors) if number % 3 else "crash", change


def _tried(changes: int, shift: float, number: int) -> Iterator[int]:
    """Which changes a crash is tried at: all of them, or some."""
    if ALL:
        yield from range(changes)
    else:
        yield from sorted({int(changes * (each + shift) / number) for each in range(number)})


class _Run:
    """One journey, travelled again and again in new worlds."""

    def __init__(self, journey: Journey, home: Path, clock: Clock, wanted: dict[str, Any] | None = None) -> None:
        self.journey, self.home, self.clock = journey, home, clock
        self.numbers = itertools.count()
        self.wanted = wanted or {}

    @contextlib.contextmanager
    def _world(self, fs: Fs) -> Iterator[World]:
        """A world in which all is prepared, with a disk on which the fault is still to come."""
        self.clock(START)
        home = self.home / str(next(self.numbers))
        try:
            with World(home, trees=self.journey.trees) as world:
                self.journey.prepare(world, self.clock)
                world.restart(fs=fs)
                if self.journey.command:
                    world.settle()
                yield world
        finally:
            shutil.rmtree(home)

    def _travel(self, world: World) -> None:
        if self.journey.command:
            self.journey.command(world, self.clock)
        for _ in range(2):
            world.settle()

    def without_fault(self) -> list[Place]:
        """The places of the changes that the journey makes; `wanted` is now what is there in the end."""
        fs = NotingFs()
        with self._world(fs) as world:
            fs.places.clear()
            self._travel(world)
            places = fs.places.copy()
            self.wanted = _end(world)
            return places

    def with_fault(self, fault: str, change: int, *, again: bool = False) -> tuple[dict[str, Any], str]:
        """What is there in the end, and where the fault was. again: the recovery from a crash crashes too."""
        is_crash, for_ever = fault == "crash", change % 2 == 1
        fs: Any = DyingFs(1 << 60, each=True) if is_crash else FailingFs(1 << 60, getattr(errno, fault))
        with self._world(fs) as world:
            fs.calls_left = change
            if not is_crash:
                fs.for_ever = for_ever
            failed = False
            try:
                self._travel(world)
            except PowerCut:
                failed = True
            except (FsreplError, OSError):
                failed = True
                if not self.journey.command:
                    raise  # only a command may fail, never the loop
            if is_crash:
                where = f"crash at change {change} of {fs.died_in}"
                if again:
                    where += f", and then at {_crash_again(world, change % 5)}"
                world.restart(without_journal=for_ever)
            else:
                where = f"{fault} at change {change}, {fs.failed_in}{', until mended' if for_ever else ''}"
                fs.mend()
            for _ in range(3):
                world.settle()
            if fault == "EACCES":  # which a person must mend: FAILED, until `fsrepl retry`
                world.run("retry", scope=SOURCE)
                world.settle()
            if self.journey.finish:
                self.journey.finish(world)
            found = _end(world)
            if failed and self.journey.command and found != self.wanted:
                with contextlib.suppress(FsreplError):  # refused where it is done already
                    self._travel(world)
                found = _end(world)
            return found, where


def _crash_again(world: World, change: int) -> str:
    """Start a crashed site with a disk that dies at a change, then at a later one, and so on; where that was."""
    died: list[str] = []
    while True:
        fs = DyingFs(change, each=True)
        world.restart(fs=fs, without_journal=len(died) % 3 == 1)
        with contextlib.suppress(PowerCut):
            world.settle()
        if not fs.died:
            return ", ".join(died)
        died.append(f"{change} ({fs.died_in})")
        change += 1 + change // 4


def _end(world: World) -> dict[str, Any]:
    """All that a user would notice in the end, without values that differ in each run. Starts the daemon anew: what
    is in the way of a tidy end is swept then."""
    world.restart()
    world.settle()
    out: dict[str, Any] = {}
    for bucket, known in sorted(world.engine.site.buckets.items()):
        try:
            known.open().close()
        except FsreplError as error:
            out[bucket] = {"trouble": str(error)}
            continue
        if not known.versioning:
            out[bucket] = {"trouble": "it is not versioned"}
            continue
        tree = world.tree(bucket)
        out[bucket] = {
            "tree": tree,
            "modes": {key: oct(world.path(key, bucket).stat().st_mode) for key in tree},
            "links": world.links(bucket),
            "directories": _directories(world, bucket) if known.trees else {},
            "names": _names(world, bucket, tree) if known.trees else [],
            "versions": {
                key: [
                    (v.marker, v.digest.hex()[:8], str(v.origin), str(v.status), v.storage_class, v.place is not None)
                    for v in versions
                ]
                for key, versions in world.history(bucket).items()
            },
            "leftovers": world.leftovers(bucket),
        }
    out["one history"] = world.ids(SOURCE) == world.ids(DESTINATION)
    return out


def _directories(world: World, bucket: str) -> dict[str, str]:
    top = world.path(bucket=bucket)
    found = (path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())
    named = {str(path.relative_to(top)): oct(path.stat().st_mode) for path in found}
    return {name: mode for name, mode in sorted(named.items()) if not name.startswith(".fsrepl")}


def _names(world: World, bucket: str, tree: Iterable[str]) -> list[list[str]]:
    """The names of each file that has several."""
    files: dict[int, list[str]] = {}
    for key in sorted(tree):
        files.setdefault(world.path(key, bucket).stat().st_ino, []).append(key)
    return [names for names in files.values() if len(names) > 1]
