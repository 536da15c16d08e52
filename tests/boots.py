"""A start of the machine that is another one, as after a power cut, for a site whose daemon is not running."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from fsrepl.storage import boot


def note_another_boot(journal: Path) -> int:
    """Have a journal be of another start of the machine than this one, its notes included (repair/settled.py); the
    number of facts that were changed. None in one that was being made."""
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'fact'").fetchone():
            return 0
        this = boot.boot_id()
        changed = db.execute("UPDATE fact SET value = replace(value, ?1, 'another') WHERE instr(value, ?1)", (this,))
        return changed.rowcount
