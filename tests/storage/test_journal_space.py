"""The journal takes no more space than what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.storage.journal import connection
from fsrepl.storage.journal.database import Journal
from tests.world import DESTINATION, SOURCE


def test_what_waited_for_long_leaves_no_space_behind(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7, journal: the pages of what is pending no longer are given back, some at a time, and no row is lost."""
    monkeypatch.setattr(connection, "_FREE_MIN_BYTES", 64 << 10)
    path = memory / "journal.db"
    journal = Journal(str(path))
    journal.bucket_id(SOURCE, "uuid")

    def put(status: Status) -> None:
        done = {DESTINATION: DeliveryRecord("rule" * 20, status)}
        with journal.transaction():
            journal.versions.add_shown(
                SOURCE, [(Version(b"d/%06d" % n, f"{n:026}", n, size=1, deliveries=done), None) for n in range(6000)]
            )

    def size() -> int:
        journal.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return path.stat().st_size

    put(Status.PENDING)
    assert not journal.give_back_space(), "nothing is free"
    journal.execute("DELETE FROM delivery WHERE id >= ?", (f"{1000:026}",))
    most = size()
    steps = 0
    while journal.give_back_space(16):
        steps += 1
    assert steps > 3
    assert size() < most * 0.8
    assert journal.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    assert journal.deliveries.count_pending(SOURCE, 1 << 62) == 1000
    assert sum(1 for _ in journal.versions.all_versions(SOURCE)) == 6000
    journal.close()
    again = Journal(str(path))
    assert again.deliveries.count_pending(SOURCE, 1 << 62) == 1000
    again.close()
