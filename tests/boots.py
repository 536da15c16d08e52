"""Before a power cut, and after it: what is noted as synced, and a start of the machine that is another one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from fsrepl.repair import settled
from fsrepl.storage import boot
from tests.world import DESTINATION, SOURCE, World


def note_synced(world: World, addresses: Iterable[str] = (SOURCE, DESTINATION)) -> None:
    """Note that all which is in these buckets is synced, and in the journal."""
    for address in addresses:
        with world.engine.site.bucket(address).open() as bucket:
            noted_ns = settled.note(bucket, world.engine.journal)
        settled.note_synced(address, world.engine.journal, noted_ns)


def note_another_boot(journal: Path) -> int:
    """Have a journal be of another start of the machine than this one, its notes included (repair/settled.py), while no
    daemon runs; the number of facts that were changed. None in one that was being made."""
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'fact'").fetchone():
            return 0
        this = boot.boot_id()
        changed = db.execute("UPDATE fact SET value = replace(value, ?1, 'another') WHERE instr(value, ?1)", (this,))
        return changed.rowcount
