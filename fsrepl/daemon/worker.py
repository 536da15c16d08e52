"""The loop of one region."""

from __future__ import annotations

BATCH = 512
MARKED_S = 1.0
JOURNAL_MAX_S, JOURNAL_WELL_S = 15.0, 60.0
"""The longest wait for a journal that cannot be used; after how long without a fault waits are short again."""
FLUSH_S = 2.0
FLUSH_TURNS_MAX = 2000
