"""The filesystem of the journal gives no answer."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from fsrepl.storage.journal.database import Journal
from tests.mounts import ext4, frozen, only_root
from tests.waiting import DEADLINE_S, until


def waits_for_a_disk(thread: threading.Thread) -> bool:
    """Source: proc(5), stat."""
    said = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return said.rpartition(")")[2].split()[0] == "D"


@pytest.mark.slow
@only_root
def test_threads_that_do_not_use_the_journal_go_on(tmp_path: Path) -> None:
    """Section 7: one thread hangs in a write, and others wait to read: the rest of the process works. SQLite's own lock
    would be waited for with the interpreter's lock held."""
    with ext4(tmp_path) as disk:
        journal, over = Journal(str(disk / "journal.db")), threading.Event()
        journal.set_fact("k", "before")
        journal.fact("k")  # what is prepared already begins with its values

        def read() -> None:
            while not over.is_set():
                journal.fact("k")

        writer = threading.Thread(target=journal.set_fact, args=("k", "after"))
        readers = [threading.Thread(target=read) for _ in range(3)]
        with frozen(disk):
            # where it fails, this process cannot thaw it
            end = subprocess.Popen(["sh", "-c", f"sleep {DEADLINE_S / 2}; fsfreeze --unfreeze '{disk}'"])
            try:
                writer.start()
                until(lambda: waits_for_a_disk(writer), "the writer hangs")
                for each in readers:
                    each.start()
                for _ in range(100):
                    time.sleep(0.001)  # any other thread may run
                assert end.poll() is None, "the process stood still until its journal answered"
                assert writer.is_alive()
            finally:
                end.kill()
                end.wait()
        writer.join(DEADLINE_S)
        over.set()
        for each in readers:
            each.join(DEADLINE_S)
        assert journal.fact("k") == "after"
        journal.close()


def test_rows_are_read_ahead_in_parts(tmp_path: Path) -> None:
    """However many there are, each comes once, also where others change the journal meanwhile."""
    journal = Journal(str(tmp_path / "journal.db"))
    with journal.transaction():
        for number in range(1000):
            journal.set_fact(f"fact {number:04}", str(number))
    found = []
    for number, (name,) in enumerate(journal.execute("SELECT name FROM fact WHERE name GLOB 'fact *' ORDER BY name")):
        found.append(name)
        journal.set_fact(f"other {number}", "x")
    assert found == [f"fact {number:04}" for number in range(1000)]
    journal.close()
