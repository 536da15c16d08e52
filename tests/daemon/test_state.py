"""The site's own state: what is shown from it without a daemon, who may use it, and other processes that do."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsrepl.commands import operations, status
from fsrepl.daemon import control, main, requests
from fsrepl.daemon.lock import FILE, Lock
from fsrepl.errors import Refused, Unavailable, Usage
from fsrepl.model.address import Address
from fsrepl.region.bucket_state import Phase
from fsrepl.storage.journal import checking, database
from fsrepl.storage.site import Site
from tests.waiting import DEADLINE_S, until
from tests.world import SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def skipped(world: World) -> int:
    shown = status.status(Site(world.settings), {"running": False})
    return next(b["skipped"] for b in shown["buckets"] if b["bucket"] == SOURCE)


def test_what_is_skipped_is_counted_without_the_daemon_too(world: World) -> None:
    """G11: links and FIFOs are no objects; their number is shown before and after a restart."""
    world.path("link").symlink_to("/etc/passwd")
    world.path("d").mkdir()
    os.mkfifo(world.path("d/fifo"))
    world.settle()
    world.look()
    assert skipped(world) == 2
    world.restart()
    assert skipped(world) == 2
    world.path("link").unlink()
    world.settle()
    world.look()
    assert skipped(world) == 1


def test_a_program_that_locks_the_journal_is_waited_for(world: World) -> None:
    """G7: such as one that copies the journal. Changes meanwhile are recorded when it has finished."""
    other = sqlite3.connect(world.settings.state / "journal.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    let_go = threading.Timer(0.3, other.execute, ("ROLLBACK",))
    let_go.start()
    world.write("k", b"k")
    world.settle()
    let_go.join()
    other.close()
    assert world.tree("west/dst") == {"k": b"k"}


def test_a_locked_journal_is_not_taken_for_a_damaged_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that cannot be opened is replaced by a new one; never a journal that another program uses."""
    monkeypatch.setattr(checking, "LOCKED_MAX_S", 0.01)
    path = world.settings.state / "journal.db"
    world.engine.journal.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="locked by another program"):
        database.open_or_replace(str(path))
    other.close()
    world.restart()
    assert not world.engine.journal.is_new


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_a_user_who_may_not_use_the_state_gets_an_error(world: World) -> None:
    """Section 2: the state is the daemon's own. That is no damage, and needs no repair."""
    for path in (world.home, *world.home.parents):
        if path == Path("/tmp"):
            break
        path.chmod(0o755)
    os.seteuid(65533)
    try:
        with pytest.raises(Refused, match="AccessDenied"):
            Site(world.settings)
        with pytest.raises(Refused, match="AccessDenied"), Lock(world.settings.state) as lock:
            lock.acquire()
    finally:
        os.seteuid(0)


def test_a_journal_that_a_command_has_begun_anew_hides_no_bucket(world: World) -> None:
    """G11: it knows the buckets that the command worked on; for the others, status counts the versions in the trees."""
    world.write("k", b"k")
    world.settle()
    before = counts(world)
    world.engine.close()
    for file in world.settings.state.glob("journal.db*"):
        file.unlink()
    with operations.local_engine(world.settings) as engine:
        operations.run(engine, requests.RemoveObject(Address("west", "dst", b"k")))
    assert before == {SOURCE: (1, 1), "west/dst": (1, 1)}
    assert counts(world) == {SOURCE: (1, 1), "west/dst": (0, 1)}


def counts(world: World) -> dict[str, tuple[int, int]]:
    shown = status.status(Site(world.settings), {"running": False})
    return {each["bucket"]: (each["objects"], each["versions"]) for each in shown["buckets"]}


def test_a_daemon_waits_for_a_command_that_is_at_work(tmp_path: Path) -> None:
    """Section 5: a command without a daemon holds the site's lock for a moment; a service that starts at that moment
    must not fail for it. Only another daemon makes it fail."""
    command, daemon = Lock(tmp_path), Lock(tmp_path)
    command.acquire()
    starting = threading.Thread(target=daemon.acquire)
    starting.start()
    starting.join(0.2)
    assert starting.is_alive()
    command.release()
    starting.join(DEADLINE_S)
    assert not starting.is_alive()
    with pytest.raises(Usage, match=r"another process .* holds this site's lock"):
        command.acquire(0.0)
    server = control.Server(tmp_path, lambda request, alive: {})
    with pytest.raises(Usage, match="this site has a running daemon already"):
        command.acquire()
    server.close()
    daemon.release()


def test_a_deleted_lock_lets_no_second_daemon_in(tmp_path: Path) -> None:
    """Section 2: a site has one daemon, whichever files a cleaner of old files removes."""
    daemon, other = Lock(tmp_path), Lock(tmp_path)
    daemon.acquire()
    server = control.Server(tmp_path, lambda request, alive: {})
    (tmp_path / FILE).unlink()
    with pytest.raises(Usage, match="this site has a running daemon already"):
        other.acquire()
    daemon.keep()
    assert not other.try_acquire()
    server.close()
    daemon.release()


def test_a_lock_is_not_kept_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    """Section 2: a state folder that comes back finds its name free."""
    state = tmp_path / "state"
    with Lock(state) as lock:
        lock.acquire()
        state.rename(tmp_path / "away")
        lock.keep()
        assert not state.exists()
        (tmp_path / "away").rename(state)
        lock.keep()
        assert not Lock(state).try_acquire()


def test_a_deleted_socket_is_there_again(tmp_path: Path) -> None:
    """Section 5: commands reach a running daemon, even where its socket was deleted."""
    server = control.Server(tmp_path, lambda request, alive: {"heard": request.op})
    for stranger in (None, b"a file"):
        (tmp_path / control.SOCKET).unlink()
        if stranger is not None:
            (tmp_path / control.SOCKET).write_bytes(stranger)
        until((tmp_path / control.SOCKET).is_socket, "the socket is there again")
        assert control.ask(tmp_path, requests.GetStatus()) == {"heard": "status"}
        assert (tmp_path / control.SOCKET).stat().st_mode & 0o777 == 0o600
    server.close()
    assert not (tmp_path / control.SOCKET).exists()


def test_a_long_first_scan_says_how_far_it_is(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is not ready yet tells systemd, and now and then the log, what is left; it does not look dead."""
    told: list[str] = []
    monkeypatch.setattr(main.systemd, "notify", told.append)
    monkeypatch.setattr(main.log, "propagate", True)
    caplog.set_level("INFO", "fsrepl")
    world.settle()
    world.engine.region_of(SOURCE).states[SOURCE].phase = Phase.SCANNING
    daemon = SimpleNamespace(engine=world.engine, watcher=SimpleNamespace(watched=3), _tell_s=0.0)
    for _ in range(2):
        main.Daemon._tell_scans(daemon)  # type: ignore[arg-type]
    assert told == [told[0]] * 2
    assert "STATUS=scanning, 1 of 2 buckets left; watching 3 directories" in told[0]
    assert [record.getMessage() for record in caplog.records if "scanning" in record.getMessage()] == [
        "scanning buckets_left=1 of=2 watching=3 directories"
    ]
