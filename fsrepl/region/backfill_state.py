"""The unfinished backfills of a source, and their deliveries that no rule covers any more."""

from __future__ import annotations

import time

from msgspec import Struct, field

from fsrepl.storage import backfill_jobs
from fsrepl.storage.backfill_jobs import Job
from fsrepl.storage.journal.rows import Delivery


class Run(Struct):
    """A job at work. faults: number of failures in a row; due_s: time of the next try."""

    job: Job
    saved_s: float = field(default_factory=time.monotonic)
    due_s: float = 0.0
    faults: int = 0
    reported: Delivery | None = None
    reporting: bool = False
    began_s: float = field(default_factory=time.monotonic)
    began_with: backfill_jobs.Tasks | None = None


class BackfillState(Struct, eq=False):
    """Changed by replicate/backfill.py, and by the commands that begin and cancel jobs."""

    jobs: dict[str, Run] = field(default_factory=dict)
    """Unfinished backfills from here, by id."""
    orphaned: dict[tuple[str, str], str] = field(default_factory=dict)
    """Destination and rule of backfill deliveries that no rule covers any more, and S3's reason."""
