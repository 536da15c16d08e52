"""The stager: what it does is as if the daemon had done it, and its end, in whatever way, loses and doubles nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import in_stager as captures
from fsrepl.capture import ingest
from fsrepl.model.version import Status, Version
from fsrepl.model.view import View
from fsrepl.region import label_queue, stager
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.region.stager import Pending, Stager
from fsrepl.replicate import deliver, group
from fsrepl.replicate import in_stager as replicas
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import directories, labels, view_attributes
from tests.hosts import FarWorld
from tests.stagers import StagerHere, beside_first, real
from tests.waiting import DEADLINE_S, until
from tests.world import DESTINATION, SOURCE, World

FILES = 40


@pytest.fixture(autouse=True)
def as_on_a_fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has time for all files: a slow machine would divide them into batches that are not worth an order."""
    for module in (ingest, group, deliver):
        monkeypatch.setattr(module, "STEP_S", 60.0)


def fill(world: World, number: int = FILES, folder: str = "d") -> dict[str, bytes]:
    """Files of different contents, and some that need more than most."""
    made = {f"{folder}/{i:03}": f"{folder} {i}".encode() * 50 for i in range(number)}
    made |= {f"{folder}/empty": b"", f"{folder}/large": bytes(2 << 20)}
    for key, data in made.items():
        world.write(key, data)
    os.setxattr(world.path(f"{folder}/000"), "user.color", b"blue")
    os.setxattr(world.path(f"{folder}/001"), b"user.\xff", b"no text")
    os.setxattr(world.path(f"{folder}/002"), "user.fsrepl.tag.team", b"red")
    world.path(f"{folder}/003").chmod(0o400)
    os.utime(world.path(f"{folder}/004"), ns=(1, 123_456_789))
    return made


def check(world: World, made: dict[str, bytes]) -> None:
    """All is there, once, and nothing is left over."""
    world.settle()
    world.settle()  # what was not done is tried again
    assert world.tree(SOURCE) == world.tree(DESTINATION) == made
    assert world.statuses() == {Status.COMPLETED}
    here, there = world.history(SOURCE), world.history(DESTINATION)
    assert {len(found) for found in here.values()} == {1}
    for key, (version,) in here.items():
        (replica,) = there[key]
        same = ("id", "created_ns", "size", "digest", "posix", "attrs", "tags")
        assert [getattr(replica, name) for name in same] == [getattr(version, name) for name in same]
    for bucket in (SOURCE, DESTINATION):
        assert not [path.name for path in world.path(".fsrepl/tmp", bucket).iterdir() if path.is_file()]
    world.stays_quiet()


def test_a_burst_is_read_and_staged_by_the_stager(tmp_path: Path) -> None:
    """G3, G5: captures and replicas of many small files are made by another process, and are as those of the daemon."""
    with World(tmp_path) as world, real(world) as found:
        answers = note_answers(found)
        made = fill(world)
        world.settle()
        assert answers == {captures.READ, captures.STAGE, replicas.STAGE, replicas.RECORD}
        check(world, made)


def note_answers(found: Stager) -> set[str]:
    """The kinds of orders that are carried out from now on."""
    answers: set[str] = set()
    begin = found.begin

    def noting(what: str, *rest: object) -> Pending | None:
        pending = begin(what, *rest)  # type: ignore[arg-type]
        if pending is not None and pending.result() is not None:
            answers.add(what)
        return pending

    found.begin = noting  # type: ignore[method-assign]
    return answers


@pytest.mark.parametrize("kind", ["plain", "trees", "private", "link"])
def test_the_stager_makes_what_the_daemon_makes(tmp_path: Path, kind: str) -> None:
    """G5: whatever the kind of bucket, and the way in which view and version share their content."""
    with World(tmp_path, trees=kind == "trees") as world:
        if kind in ("private", "link"):
            world.set_sharing(east=kind, west=kind)
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        os.link(world.path("d/005"), world.path("d/other name"))
        made["d/other name"] = made["d/005"]
        world.settle()
        assert replicas.STAGE in {what for what, _ in here.done}
        if kind != "trees":
            check(world, made)
        else:
            assert world.tree(DESTINATION) == made
            assert os.path.samefile(world.path("d/005", DESTINATION), world.path("d/other name", DESTINATION))


def test_new_contents_of_known_files_are_read_by_the_stager(tmp_path: Path) -> None:
    """G1, G5: each save is a version, the same content is none, and a view in use is left alone."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)
        world.settle()
        here.done.clear()
        for i in range(FILES):
            key = f"d/{i:03}"
            world.path(key).chmod(0o600)
            made[key] = made[key] if i % 2 else made[key] + b"more"
            world.write(key, made[key])
        with world.path("d/empty").open("wb") as writer:
            writer.write(b"not yet")
            writer.flush()
            world.settle()
            assert captures.READ in {what for what, _ in here.done}
            assert {len(found) for found in world.history(SOURCE).values()} == {1, 2}
            assert world.tree(DESTINATION)["d/empty"] == b""
        made["d/empty"] = b"not yet"
        world.settle()
        assert world.tree(DESTINATION) == made
        number = {key.decode(): len(found) for key, found in world.history(DESTINATION).items()}
        assert {number[f"d/{i:03}"] for i in range(0, FILES, 2)} == {2}
        assert {number[f"d/{i:03}"] for i in range(1, FILES, 2)} == {1}


def test_views_are_labelled_as_their_outcomes_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2: each view gets its labels once, with the outcome, and the daemon looks at none of them again."""
    monkeypatch.setattr(label_queue, "_PENDING_S", 60.0)
    with World(tmp_path) as world:
        world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world, folder="sub/d")
        names = [key for key in made if not key.endswith(("/large", "/001"))]  # the daemon does all for these two
        labelled, label_view = list[bytes](), view_attributes.label_view

        def noting(bucket: OpenBucket, version: Version, *rest: object, **more: bool) -> View | None:
            labelled.append(version.key)
            return label_view(bucket, version, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(view_attributes, "label_view", noting)
        late, label_later = set[bytes](), labels._label_views

        def label_views(region: Region, state: BucketState, due: Sequence[tuple[Version, bool]]) -> None:
            late.update(version.key for version, _ in due)
            label_later(region, state, due)

        monkeypatch.setattr(labels, "_label_views", label_views)
        world.settle()
        assert sorted(labelled) == sorted(key.encode() for key in made)
        assert late.isdisjoint(name.encode() for name in names)
        for key in names:
            assert os.getxattr(world.path(key), "user.fsrepl.replication-status") == b"COMPLETED"
            version = world.current(key)
            assert os.getxattr(world.path(key), "user.fsrepl.version-id") == version.id.encode()
            known = world.engine.journal.versions.object(SOURCE, key.encode())
            assert known is not None
            assert known.view is not None
            assert known.view.is_same(world.path(key).stat())
        check(world, made)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_change_beside_the_recording_of_an_outcome_is_captured(tmp_path: Path, *, is_late: bool) -> None:
    """G1, G6: a save, an edit, a removal and a rename, just before or just after the stager labels the view."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = fill(world)

        def change() -> None:
            world.write("d/010", b"changed")
            world.path("d/011").chmod(0o640)
            world.unlink("d/012")
            world.path("d/013").rename(world.path("d/other"))

        changed = beside_first(here, replicas.RECORD, change, is_late=is_late)
        world.settle()
        assert changed
        made |= {"d/010": b"changed", "d/other": made["d/013"]}
        del made["d/012"], made["d/013"]
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == made
        assert [len(world.history(DESTINATION)[key]) for key in (b"d/010", b"d/011", b"d/012")] == [2, 1, 2]
        assert world.path("d/011", DESTINATION).stat().st_mode & 0o777 == 0o640
        assert world.statuses() == {Status.COMPLETED}
        world.stays_quiet()


@pytest.mark.parametrize("what", [captures.READ, captures.STAGE, replicas.STAGE, replicas.RECORD])
def test_what_the_stager_does_not_do_the_daemon_does(tmp_path: Path, what: str) -> None:
    """G7: a stager that is lost before it answers, at each of its orders."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        here.refuses = {what}
        check(world, fill(world))


@pytest.mark.parametrize("what", [captures.READ, captures.STAGE, replicas.STAGE, replicas.RECORD])
def test_a_killed_stager_is_started_again_and_nothing_is_lost_or_doubled(tmp_path: Path, what: str) -> None:
    """G7: kill -9 of the stager, after it got an order; what it left is removed, and the next burst is staged by a new
    one."""
    with World(tmp_path) as world, real(world) as found:
        begin, killed = found.begin, list[int]()

        def killing(kind: str, *rest: object) -> Pending | None:
            if kind != what or killed:
                return begin(kind, *rest)  # type: ignore[arg-type]
            killed.append(found.pid)
            os.kill(found.pid, signal.SIGSTOP)
            pending = begin(kind, *rest)  # type: ignore[arg-type]
            bucket = DESTINATION if what == replicas.STAGE else SOURCE
            world.path(f".fsrepl/tmp/{found.pid}.0", bucket).write_bytes(b"left behind")
            os.kill(found.pid, signal.SIGKILL)
            return pending

        found.begin = killing  # type: ignore[method-assign]
        made = fill(world)
        world.settle()
        assert killed
        found._again_at_s = 0.0
        until(lambda: found.is_ready(1 << 20), lambda: "it is started again")
        assert found.pid not in (0, *killed)
        made |= fill(world, folder="e")
        check(world, made)


def test_a_stager_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: it is killed, and its work is done without it; the daemon does not hang with it."""
    monkeypatch.setattr(stager, "_HANGS_S", 0.0)
    with World(tmp_path) as world, real(world) as found:
        pid = found.pid
        os.kill(pid, signal.SIGSTOP)
        made = fill(world)
        check(world, made)
        assert found.pid != pid


def test_a_stager_that_somebody_has_stopped_is_given_up_soon(tmp_path: Path) -> None:
    """G7: with SIGSTOP, as a debugger or a freezing shell does: a region does not stand still for a minute."""
    with World(tmp_path) as world, real(world) as found:
        os.kill(found.pid, signal.SIGSTOP)
        made, began_s = fill(world), time.monotonic()
        world.settle()
        assert time.monotonic() - began_s < stager._HANGS_S
        check(world, made)


def test_the_stager_ends_with_the_daemon_in_the_midst_of_an_order(tmp_path: Path) -> None:
    """G7: after kill -9 the next daemon meets no process that stages files and records outcomes for the one before."""
    ours, its = socket.socketpair()
    with ours, its:
        given = stager.command("fsrepl.daemon.stager_process:main"), its.fileno()
        parent = subprocess.Popen([sys.executable, "-c", _PARENT, repr(given)], pass_fds=[its.fileno()])
        its.close()
        assert stager.receive_frame(ours) == stager.READY
        parent.kill()
        parent.wait()
        ours.settimeout(DEADLINE_S)
        assert ours.recv(1) == b""  # although nobody has ended the connection


_PARENT = """
import subprocess, sys, time
command, fd = eval(sys.argv[1])
subprocess.Popen([*command, str(fd)], pass_fds=[fd])
time.sleep(600)
"""


def test_no_region_waits_long_behind_an_order_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: where the filesystem of one region hangs, and the stager with it, the orders of other regions are given up,
    and no more are given."""
    monkeypatch.setattr(stager, "_BEHIND_S", 0.0)
    with World(tmp_path) as world, real(world) as found:
        os.kill(found.pid, signal.SIGSTOP)
        made = fill(world)
        with world.engine.site.bucket(DESTINATION).open() as bucket:
            hanging = found.begin(captures.STAGE, captures.Stage([]), [bucket], FILES)
            behind = found.begin(captures.STAGE, captures.Stage([]), [bucket], FILES)
            assert hanging is not None
            assert behind is not None
            hanging.began_s -= stager._PATIENCE_S
            assert found.begin(captures.STAGE, captures.Stage([]), [bucket], FILES) is None
        assert behind.result() is None
        assert hanging.result() is None
        check(world, made)


def test_a_stager_that_hangs_does_not_keep_the_daemon_from_ending(tmp_path: Path) -> None:
    """Section 7: at the end of the daemon nobody waits for a stager that does not answer."""
    with World(tmp_path) as world, real(world) as found:
        os.kill(found.pid, signal.SIGSTOP)
        made = fill(world)
        with world.engine.site.bucket(SOURCE).open() as bucket:
            pending = found.begin(captures.STAGE, captures.Stage([]), [bucket], FILES)
        assert pending is not None
        found.is_ending = True
        assert pending.result() is None
        check(world, made)


def test_without_a_stager_all_is_done_by_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: where it cannot be started, work goes on, and the log says why."""
    monkeypatch.setattr(stager, "_STARTS", FILES)
    with World(tmp_path) as world:
        world.engine.stager = Stager([str(tmp_path / "no such program")], world.engine.fs.released)
        check(world, fill(world))
        assert "the stager was lost: no such file or directory" in caplog.text


def test_an_idle_stager_holds_nothing_in_a_region_and_ends(tmp_path: Path) -> None:
    """Section 7: an idle region can be unmounted; after some idle time there is no stager."""
    with World(tmp_path) as world, real(world) as found:
        fill(world)
        world.settle()
        fds = Path(f"/proc/{found.pid}/fd")
        assert not [each for each in map(os.readlink, fds.iterdir()) if each.startswith(str(tmp_path))]
        assert os.readlink(fds.parent / "cwd") == "/"
        assert not [name for name in os.listdir(fds.parent / "task") if name != str(found.pid)]
        found.rest(found._used_at_s + 1)
        assert found.pid
        found.rest(found._used_at_s + 3600)
        assert not found.pid
        assert not fds.exists()


def test_few_files_start_no_stager_and_are_not_sent_to_it(tmp_path: Path) -> None:
    """A single file waits for no other process."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        for i in range(stager.WORTH - 1):
            world.write(f"k{i}", b"data")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert here.done == []


def test_a_content_that_the_stager_has_no_more_is_read_again(tmp_path: Path) -> None:
    """G7: as after a restart of the stager between two orders."""
    with World(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        begin = here.begin

        def forgetful(what: str, *rest: object) -> Pending | None:
            if what == captures.STAGE:
                here._held.clear()
            return begin(what, *rest)  # type: ignore[arg-type]

        here.begin = forgetful  # type: ignore[method-assign]
        check(world, fill(world))


def test_contents_for_another_machine_are_read_once(tmp_path: Path) -> None:
    """Section 7: where a replica goes elsewhere, the daemon gets the contents that the stager has read."""
    with FarWorld(tmp_path) as world:
        here = world.engine.stager = StagerHere(world.engine.fs)
        made = {f"d/{i:03}": f"{i}".encode() * 50 for i in range(FILES)}
        for key, data in made.items():
            world.write(key, data)
        world.settle()
        assert {what for what, _ in here.done} == {captures.READ, captures.STAGE, replicas.RECORD}
        version = world.history(SOURCE)[b"d/000"][0]
        assert world.engine.recent.data(version.digest) == made["d/000"]
        assert world.tree(DESTINATION) == made
        assert world.statuses() == {Status.COMPLETED}


def test_a_directory_is_captured_before_files_that_the_stager_has_read(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the stager has taken for these: else a replica would have to make the directory without its version,
    and to change it afterwards."""

    class Slow(StagerHere):
        def begin(self, what: str, *rest: Any) -> Pending | None:
            pending = super().begin(what, *rest)
            if what == captures.READ:
                time.sleep(ingest.STEP_S)
            return pending

    made: list[bytes] = []
    monkeypatch.setattr(ingest, "STEP_S", 0.1)
    monkeypatch.setattr(directories, "_make", lambda bucket, above, path, name: made.append(path))
    with World(memory, trees=True) as world:
        world.engine.stager = stager_ = Slow(world.engine.fs)
        for number in range(FILES):
            for name in ("a", "b"):
                world.write(f"d{number:02}/{name}", b"%d %s" % (number, name.encode()))
        world.settle()
        world.settle()  # what was not done is tried again
        assert captures.READ in dict(stager_.done)
        assert made == []
        assert len(world.ids(DESTINATION)) == 3 * FILES
