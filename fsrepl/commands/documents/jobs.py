"""Backfill jobs as JSON: `replication jobs`, `backfill`, `cancel`."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model.keys import Document
from fsrepl.storage import backfill_jobs
from fsrepl.storage.backfill_jobs import Job, Tasks


class Pace(Struct, frozen=True):
    """The average speed of a running job since this process began it; None where not known yet."""

    tasks_per_s: float | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None


def job(found: Job, tasks: Tasks, pace: Pace | None = None) -> Document:
    """A job's document without the daemon's private fields, with its progress and speed."""
    pace = pace or Pace()
    return backfill_jobs.encode(replace(found, last=None, unreadable=(), tasks=None)) | {
        "ProgressSummary": backfill_jobs.encode_tasks(tasks),
        "TasksPerSecond": pace.tasks_per_s,
        "BytesPerSecond": pace.bytes_per_s,
        "EtaSeconds": pace.eta_s,
    }
