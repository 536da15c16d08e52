"""Backfill jobs by command: accepted, listed, measured and cancelled."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection

from msgspec.structs import replace

from fsrepl.commands.documents import jobs as documents
from fsrepl.commands.documents.jobs import Pace
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import Backfill
from fsrepl.daemon.worker import Worker
from fsrepl.errors import FsreplError, Refused, Usage
from fsrepl.model import keys
from fsrepl.region.backfill_state import Run
from fsrepl.replicate import backfill
from fsrepl.replicate.backfill import AN_OBJECT_BYTES
from fsrepl.s3 import rules
from fsrepl.storage import backfill_jobs
from fsrepl.storage.backfill_jobs import Job, State, Tasks
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Stored
from fsrepl.storage.site import Site

log = logging.getLogger("fsrepl")


# -- commands


def accept(engine: Engine, request: Backfill) -> dict[str, object]:
    """Save a new job for the versions that exist now. The versions to send are chosen after this returns."""
    address, region = str(request.source), engine.region_of(str(request.source))
    for status in request.statuses:
        if status not in rules.STATUSES:
            raise Usage(f"{status} is not a status to choose versions by; use {', '.join(rules.STATUSES)}")
    state = region.flush(address)
    with state.bucket.open() as bucket:
        _check_rules(bucket, request.rules)
        job_id, created_ns = state.bucket.ids.next(engine.site.now())
        versions = engine.journal.totals.versions(address)
        job = Job(
            job_id, address, created_ns, tuple(dict.fromkeys(request.statuses)), tuple(dict.fromkeys(request.rules)),
            versions=versions,
        )  # fmt: skip
        backfill_jobs.sweep(bucket, engine.site.now())
        backfill_jobs.save(bucket, job)
    backfill.begin(region, state, job)
    log.info("backfill accepted bucket=%s job=%s", address, job.id)
    return documents.job(job, Tasks())


def _check_rules(bucket: OpenBucket, rule_ids: Collection[str]) -> None:
    """Refuse a job that would send nothing: S3 uses the present configuration, and disabled rules do nothing."""
    address, replication = bucket.address, bucket.bucket.replication
    if replication is None:
        raise Refused(
            "ReplicationConfigurationNotFoundError",
            f"{address} has no replication configuration; `fsrepl replication enable {address} DST` creates one",
        )
    known = {rule.id: rule.enabled for rule in replication.rules}
    for rule_id in rule_ids:
        if rule_id not in known:
            raise Refused("InvalidRequest", f"{address} has no rule {rule_id!r}; it has {', '.join(sorted(known))}")
        if not known[rule_id]:
            raise Refused("InvalidRequest", f"rule {rule_id!r} of {address} is disabled; enable it, then backfill")
    if not any(known.values()):
        raise Refused(
            "InvalidRequest",
            f"all rules of {address} are disabled; `fsrepl replication enable {address}` enables them again",
        )


def cancel(region: Worker, address: str, job_id: str) -> dict[str, object]:
    """Stop a job. Versions that are not sent yet get their status from before the job back; replicas stay."""
    state = region.ready(address)
    run = state.backfills.jobs.get(job_id)
    if run is None:
        raise Refused("InvalidRequest", f"job {job_id} of {address} has ended")
    with state.bucket.open() as bucket:
        run.job = replace(run.job, state=State.CANCELLING)
        backfill_jobs.save(bucket, run.job)
    log.info("backfill cancelled bucket=%s job=%s", address, job_id)
    region.wake()
    return documents.job(run.job, backfill_jobs.tasks_of(region.engine.journal.backlog, run.job))


def listing(engine: Engine, address: str) -> list[dict[str, object]]:
    """The jobs of a bucket with their progress, oldest first; where the bucket is away, only running jobs."""
    region = engine.region_of(address)
    state = region.states.get(address)
    runs = dict(state.backfills.jobs) if state else {}
    found: list[Job] = []
    with contextlib.suppress(FsreplError), engine.site.bucket(address).open() as bucket:
        found = backfill_jobs.load(bucket)[0]
    known = {job.id: job for job in found} | {run.job.id: run.job for run in runs.values()}
    out = []
    for job_id in sorted(known):
        job, run = known[job_id], runs.get(job_id)
        tasks = backfill_jobs.tasks_of(engine.journal.backlog, job)
        out.append(documents.job(job, tasks, pace(run, tasks, time.monotonic()) if run else None))
    return out


def read_all(site: Site, journal: Journal, addresses: Collection[str]) -> list[dict[str, object]]:
    """The jobs of buckets from their documents, for use without a daemon."""
    found: list[Job] = []
    for address in addresses:
        with contextlib.suppress(FsreplError, OSError), site.bucket(address).open() as bucket:
            found += backfill_jobs.load(bucket)[0]
    return [documents.job(job, backfill_jobs.tasks_of(journal.backlog, job)) for job in found]


def pace(run: Run, tasks: Tasks, now_s: float) -> Pace:
    """The speed of a job, and the remaining time at that speed. While the job still chooses versions, the total is
    estimated from the versions found so far."""
    began, job = run.began_with or Tasks(), run.job
    elapsed_s = now_s - run.began_s
    number, size = tasks.ended - began.ended, tasks.succeeded_bytes - began.succeeded_bytes
    if number <= 0 or elapsed_s <= 0:
        return Pace()
    whole = _work(tasks.number, tasks.bytes)
    if job.state is State.PREPARING and job.examined:
        whole *= max(1.0, job.versions / job.examined)
    left = max(0.0, whole - _work(tasks.ended, tasks.succeeded_bytes))
    eta_s = left * elapsed_s / _work(number, size)
    return Pace(round(number / elapsed_s, 1), round(size / elapsed_s, 1), round(eta_s, 1))


def _work(number: int, size: int) -> float:
    return number * AN_OBJECT_BYTES + size


def unfinished(engine: Engine, address: str, key: bytes = b"") -> set[str]:
    """The jobs of a bucket that have not ended; with a key, only jobs that have still to examine one of its versions.

    Where the bucket has been away since the daemon started, the jobs that the journal has.
    """
    state = engine.region_of(address).states.get(address)
    if state is None or not (state.is_up or state.backfills.jobs):
        return set(engine.journal.fact(backfill_jobs.job_fact(address)).split())
    going_on = [run.job for run in list(state.backfills.jobs.values())]
    if key:
        stored = [
            Stored(*keys.split(key), created, i) for i, created, _ in engine.journal.versions.versions_of(address, key)
        ]
        going_on = [job for job in going_on if any(job.has_yet_to_look_at(each) for each in stored)]
    return {job.id for job in going_on}
