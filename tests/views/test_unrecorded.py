"""Files that were changed without an event: commands that read them queue them for capture, and say so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.cli import objects as cli_objects
from fsrepl.cli import unrecorded as cli_unrecorded
from fsrepl.commands import operations
from fsrepl.daemon import requests
from fsrepl.errors import NotRunning, Unavailable
from fsrepl.model.view import View
from fsrepl.views import unrecorded
from fsrepl.views.unrecorded import Look
from tests.doubles import DeafWatcher
from tests.site import Site
from tests.verifying import repair_version, verify
from tests.world import DESTINATION, SOURCE, World, at

WAS, IS = b"as it was captured", b"WRITTEN THROUGH ANOTHER NAME"


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory) as found:
        found.write("k", WAS)
        found.settle()
        found.settle()
        yield found


@contextlib.contextmanager
def unheard(world: World) -> Iterator[None]:
    """From here on no event is received."""
    world.engine.watcher = DeafWatcher()  # type: ignore[assignment]
    try:
        yield
    finally:
        world.engine.watcher = None


def edit_elsewhere(path: Path, outside: Path) -> None:
    """Write into a file through a hard link of it that lies outside of every bucket."""
    os.link(path, outside)
    with outside.open("r+b") as file:
        file.write(IS)
        file.truncate()


@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_restore_makes_a_version_of_it_first(world: World, bucket: str) -> None:
    """G1, G6: then the file shows the requested version, also where the write destroyed that version."""
    old = world.current("k", bucket).id
    edit_elsewhere(world.path("k", bucket), world.home / "outside")
    with unheard(world):
        answer = world.run("object.restore", bucket=bucket, key=b"k", version_id=old)
    assert answer["Changed"]
    assert world.path("k", bucket).read_bytes() == WAS
    assert [v.size for v in world.of("k", bucket)] == [len(WAS), len(IS), len(WAS)]
    world.settle()
    assert verify(world) == []
    assert world.leftovers(bucket) == []


@pytest.mark.parametrize("edited", [True, False])
def test_restore_says_that_it_captured_what_is_current(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, edited: bool
) -> None:
    """Section 5: without a version id that is the newest version; it was just captured, or nothing changed."""

    monkeypatch.setattr(cli_objects, "perform", lambda request: operations.run(world.engine, request))
    if edited:
        edit_elsewhere(world.path("k", DESTINATION), world.home / "outside")
    with unheard(world):
        cli_objects.restore(at(DESTINATION, b"k"))
    current = world.current("k", DESTINATION)
    assert (len(world.of("k", DESTINATION)), current.size) == ((2, len(IS)) if edited else (1, len(WAS)))
    told = f"the file's changed content was captured as version {current.id}, which is current now"
    untold = f"version {current.id} is current already; nothing changed"
    assert capsys.readouterr().out == f"{DESTINATION}/k: {told if edited else untold}\n"


def test_restore_never_says_that_nothing_changed_while_the_file_differs(world: World) -> None:
    """Section 5: a current version that the file does not show is an error with the reason."""
    with world.path("k").open("r+b") as file:
        file.write(IS)
        file.flush()
        with unheard(world), pytest.raises(Unavailable, match=r"does not show it.*open for writing"):
            world.run("object.restore", bucket=SOURCE, key=b"k", version_id=None)


def test_rm_captures_it_first(world: World) -> None:
    """G1: content written before the removal is a version below its marker, and does not bring the key back."""
    edit_elsewhere(world.path("k"), world.home / "outside")
    with unheard(world):
        world.remove("k")
    world.settle()
    assert [(v.marker, v.size) for v in world.of("k")] == [(True, 0), (False, len(IS)), (False, len(WAS))]
    assert not world.path("k").exists()


def test_tags_are_those_of_what_the_file_holds(world: World) -> None:
    """Section 4: a tag is set on the version that users see."""
    edit_elsewhere(world.path("k"), world.home / "outside")
    with unheard(world):
        world.run("tag.set", bucket=SOURCE, key=b"k", tags={"class": "blue"})
    assert (world.current("k").size, dict(world.current("k").tags)) == (len(IS), {"class": "blue"})


@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_verify_has_it_captured(world: World, bucket: str) -> None:
    """G6, section 5: afterwards the file's content is a version, besides the repaired one."""
    old = world.current("k", bucket).id
    edit_elsewhere(world.path("k", bucket), world.home / "outside")
    with unheard(world):
        found = verify(world, repair=True)
    assert found == ([(DESTINATION, "k", "DigestMismatch", True)] if bucket == DESTINATION else [])
    assert world.path("k", bucket).read_bytes() == IS
    assert [(v.size, v.id == old) for v in world.of("k", bucket)] == [(len(IS), False), (len(WAS), True)]
    assert verify(world) == []


def test_all_names_of_a_file_are_captured_where_a_command_meets_one(world: World) -> None:
    """G6: the write came through a name outside the bucket, so no event names any in it."""
    os.link(world.path("k"), world.path("other"))
    world.settle()
    edit_elsewhere(world.path("k"), world.home / "outside")
    with unheard(world):
        world.region(SOURCE).look_at(SOURCE, [b"k"])
        world.engine.run_until_idle()
    assert world.tree(DESTINATION) == {"k": IS, "other": IS}


def test_repair_alone_has_it_captured_too(world: World) -> None:
    """Section 5: whoever requests the repair."""
    edit_elsewhere(world.path("k", DESTINATION), world.home / "outside")
    with unheard(world):
        repair_version(world, DESTINATION, b"k", world.current("k", DESTINATION).id)
        world.engine.run_until_idle()
    assert [v.size for v in world.of("k", DESTINATION)] == [len(IS), len(WAS)]


def _stat(*, mode: int = 0o100644, ino: int = 1, size: int = 2, mtime_ns: int = 3, ctime_ns: int = 4) -> os.stat_result:
    times = {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns}
    return os.stat_result((mode, ino, 0, 1, 0, 0, size, 0, 0, 0), times)


@pytest.mark.parametrize(
    ("view", "found", "look"),
    [
        (None, None, Look.RECORDED),
        (None, _stat(), Look.CHANGED),
        (View(1, 2, 3, 4, 0o644), None, Look.CHANGED),
        (View(1, 2, 3, 4, 0o644), _stat(), Look.RECORDED),
        (View(1, 2, 3, 5, 0o644), _stat(), Look.TOUCHED),
        (View(1, 2, 3, 4, 0o600), _stat(), Look.TOUCHED),
        (View(1, 2, 9, 4, 0o644), _stat(), Look.CHANGED),
        (View(7, 2, 3, 4, 0o644), _stat(), Look.CHANGED),
    ],
)
def test_how_a_file_compares_with_its_record(view: View | None, found: os.stat_result | None, look: Look) -> None:
    """Section 7, Capture: inode, size and mtime show a change of content; ctime and mode show others."""
    assert unrecorded.compare(view, found) is look


@pytest.mark.parametrize("running", [True, False], ids=["running", "no-daemon"])
def test_a_reading_command_queues_it_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], running: bool
) -> None:
    """Section 5: the printed data is from before the change, and stderr says what happens next."""
    asked: list[object] = []

    def ask(request: requests.Look, answer_within_s: float) -> dict[str, object]:
        asked.append(request)
        if not running:
            raise NotRunning("there is none")
        return operations.run(world.engine, request)

    monkeypatch.setattr(cli_unrecorded, "ask_daemon", ask)
    site = world.engine.site
    with site.bucket(SOURCE).open() as bucket:
        cli_unrecorded.hand_to_capture(site, bucket, b"k")
        assert (asked, capsys.readouterr().err) == ([], "")
        edit_elsewhere(world.path("k"), world.home / "outside")
        cli_unrecorded.hand_to_capture(site, bucket, b"k")
    assert len(asked) == 1
    ends = "it is being captured" if running else "it is captured once the daemon runs"
    assert capsys.readouterr().err.endswith(f"/k: the file has changed since it was last captured, and {ends}\n")
    world.engine.run_until_idle()  # without a scan
    assert len(world.of("k")) == 1 + running


@pytest.mark.slow
def test_every_command_hands_it_to_a_running_daemon(tmp_path: Path) -> None:
    """G6: head, cat, why and verify print what is recorded, and the change is captured long before the next scan."""
    with Site(tmp_path) as site:
        site.start()
        commands = ("head", "cat", "why", "verify")
        for command in commands:
            site.write(command, WAS)
        site.settle()
        for command in commands:
            edit_elsewhere(site.path(command), tmp_path / command)
        site.wait()
        stored = site.path(".fsrepl/versions")
        for command in commands:
            assert len(list(stored.glob(f"{command};*"))) == 1
            ran = site.must(command, SOURCE if command == "verify" else f"{SOURCE}/{command}")
            assert ("has changed since it was last captured" in ran.err) == (command != "verify")
            site.until(lambda name=command: len(list(stored.glob(f"{name};*"))) == 2, f"{command} hands it over")
