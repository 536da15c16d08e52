"""A journal is read whole before it is used; a large one beside the work."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fsrepl.storage.journal import checking, connection
from fsrepl.storage.journal.database import Journal, open_or_replace
from tests.site import SOURCE, Site
from tests.stored import damage_journal
from tests.waiting import until
from tests.world import World

DAEMON = """
import sys
from fsrepl.cli import main
from fsrepl.storage.journal import connection
connection.CHECKED_FIRST_BYTES = 0
sys.argv[1:] = ["--site", sys.argv[1], "daemon"]
main()
"""


def damage(path: Path) -> None:
    """Put a value of a wrong type into each delivery, where nothing reads it."""
    damage_journal(path, "UPDATE delivery SET reason = x'ff'", is_strict=False)


@pytest.mark.slow
def test_a_large_journal_that_is_damaged_is_made_anew_by_the_next_start(tmp_path: Path) -> None:
    """G7, section 2: the daemon works while it checks; then it ends, as after any damage that it meets, and systemd
    starts it again. Ids and history stay."""
    with Site(tmp_path) as site:
        site.start()
        site.write("k", b"one")
        site.wait()
        before = site.history(SOURCE)
        site.stop()
        journal = site.root / ".fsrepl-site" / "journal.db"
        damage(journal)
        done = subprocess.run([sys.executable, "-c", DAEMON, site.root], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "stopping: the journal is damaged (a row of the table delivery has" in done.stderr
        assert "Traceback" not in done.stderr
        assert not journal.exists()
        site.start()
        site.write("j", b"two")
        site.wait()
        site.in_step()
        assert before.items() <= site.history(SOURCE).items()


def test_a_large_journal_is_used_while_it_is_checked(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: up to what size the check comes first does not depend on how busy the machine is."""
    begun, may_end = threading.Event(), threading.Event()
    real = checking._check_kinds

    def slowly(db: sqlite3.Connection) -> None:
        begun.set()
        assert may_end.wait(20)
        real(db)

    with World(memory) as world:
        world.write("k", b"one")
        world.settle()
        world.engine.journal.close()
        path = Path(world.engine.site.state) / "journal.db"
        damage(path)
        monkeypatch.setattr(checking, "_check_kinds", slowly)
        monkeypatch.setattr(connection, "CHECKED_FIRST_BYTES", 0)
        journal = open_or_replace(str(path))
        assert not journal.is_new
        assert not journal.is_whole
        assert not begun.wait(0)
        journal.begin_check()
        assert begun.wait(20)
        journal.set_fact("written", "meanwhile")
        journal.begin_check()  # not a second one
        assert journal.damage_found is None
        assert not journal.is_whole
        may_end.set()
        found = until(lambda: journal.damage_found, "the damage is found")
        assert "another type" in str(found)
        journal.close()
        monkeypatch.undo()
        journal = open_or_replace(str(path))
        assert journal.is_new
        journal.close()
        world.restart()


def test_a_check_ends_with_the_journal(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5: a daemon that is told to stop, or a command without one, does not wait for it."""

    def endlessly(db: sqlite3.Connection) -> None:
        db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n").fetchone()

    path = str(memory / "journal.db")
    Journal(path).close()
    monkeypatch.setattr(checking, "_check_kinds", endlessly)
    monkeypatch.setattr(connection, "CHECKED_FIRST_BYTES", 0)
    journal = Journal(path)
    journal.begin_check()
    threads = journal._checked._threads if journal._checked is not None else []
    assert [thread.is_alive() for thread in threads].count(True) >= 1
    assert {os.getpriority(os.PRIO_PROCESS, each.native_id or 0) for each in threads if each.is_alive()} == {10}
    journal.close()
    assert not any(thread.is_alive() for thread in threads)
