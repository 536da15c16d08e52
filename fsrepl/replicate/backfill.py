"""S3 Batch Replication: deliveries of versions that live rules did not choose.

A job reads the versions of its source bucket from the journal, a slice at a time. On each version that it
chooses it records a delivery to a destination: PENDING, with the job's id. Such a delivery is like any other,
except for its order (region/delivery_queue.py). When no delivery of a job is pending any more, the job writes its
report and ends. Jobs run in the source's region, one step between two rounds of all other work.

A job may be interrupted at any moment. Its document says how far it has read, and is written only after the
versions up to there are durable. After a restart the job reads the versions after that point again, and finds its
own id on them. Source: s3-semantics, 2 (the batch column), 3.3 and 6.1.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.rule import Replication
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region.backfill_state import Run
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.deliveries import wake_backlog
from fsrepl.region.region import Region
from fsrepl.replicate import settle
from fsrepl.s3 import rules
from fsrepl.storage import backfill_jobs, records, versions
from fsrepl.storage.backfill_jobs import Job, State
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_SPACE
from fsrepl.storage.journal.rows import Delivery, Outcome, Stored

log = logging.getLogger("fsrepl")


SLICE = 256
_STEP_S = 0.02
_SAVE_S = 5.0
_AGAIN_S = 1.0
_AGAIN_MAX_S = 60.0
_TRIES = 5
AN_OBJECT_BYTES = 64 << 10
"""The cost of an object besides its bytes, in bytes: the rest of a job is estimated from both."""


# -- the steps of a job


def begin(region: Region, state: BucketState, job: Job) -> None:
    """Start a job, or continue one after a restart."""
    run = state.backfills.jobs[job.id] = Run(job)
    run.began_with = backfill_jobs.tasks_of(region.engine.journal.backlog, job)
    _remember(region, state)
    region.wake()


def resume(region: Region, state: BucketState, bucket: OpenBucket) -> None:
    """Continue the jobs of a bucket that is online again and that had not ended."""
    found, damaged = backfill_jobs.load(bucket)
    for name in damaged:
        log.error("damaged bucket=%s: .fsrepl/jobs/%s cannot be read; its job does not go on", bucket.address, name)
    state.backfills.jobs.clear()
    for job in found:
        if not job.state.has_ended:
            if job.bucket != bucket.address and job.state is State.PREPARING:
                job = replace(job, state=State.ACTIVE, why="SrcBucketInvalidRegion")
            begin(region, state, replace(job, bucket=bucket.address))
    _remember(region, state)
    for destination in region.engine.journal.deliveries.pending_destinations(bucket.address):
        wake_backlog(region, bucket.address, destination, start_over=True)


def _remember(region: Region, state: BucketState) -> None:
    """Record the jobs in the journal, which can be read while the bucket is offline."""
    with region.engine.journal.transaction():
        region.engine.journal.set_fact(backfill_jobs.job_fact(state.bucket.address), " ".join(state.backfills.jobs))


def next_s(state: BucketState) -> float | None:
    """The monotonic time of a bucket's next step; None where its jobs wait for deliveries, which wake the region."""
    if state.backfills.orphaned:
        return 0.0
    due = [
        run.due_s
        for run in state.backfills.jobs.values()
        if run.job.state is not State.ACTIVE or run.reporting or run.due_s
    ]
    return min(due, default=None)


def step(region: Region, state: BucketState) -> bool:
    """Continue a bucket's jobs for a moment; whether there was anything to do."""
    until_s = time.monotonic() + _STEP_S
    busy = _fail_orphaned(region, state, until_s)
    for run in list(state.backfills.jobs.values()):
        if run.due_s > time.monotonic():
            continue
        try:
            busy |= _go_on(region, state, run, until_s)
            run.due_s = 0.0
        except (FsreplError, OSError) as error:
            _later(state, run, reason(error))
    return busy


def _fail_orphaned(region: Region, state: BucketState, until_s: float) -> bool:
    """Settle a slice of the deliveries whose rule no longer exists."""
    address, busy = state.bucket.address, False
    while state.backfills.orphaned and time.monotonic() < until_s:
        (destination, rule_id), why = next(iter(state.backfills.orphaned.items()))
        rows = region.engine.journal.backlog.of_rule(address, destination, rule_id, SLICE)
        busy = True
        if not rows:
            del state.backfills.orphaned[destination, rule_id]
            continue
        try:
            settle.settle(region, state, [Outcome(delivery, Status.FAILED, why, None) for delivery in rows])
        except (FsreplError, OSError) as error:
            log.warning("not settled bucket=%s deliveries=%d: %s", address, len(rows), error)
            return False
    return busy


def _later(state: BucketState, run: Run, why: str) -> None:
    run.faults += 1
    run.due_s = time.monotonic() + min(_AGAIN_MAX_S, _AGAIN_S * 2.0 ** min(run.faults - 1, 10))
    level = logging.WARNING if run.faults == 1 else logging.DEBUG
    log.log(level, "backfill waits bucket=%s job=%s: %s", state.bucket.address, run.job.id, why)


def _go_on(region: Region, state: BucketState, run: Run, until_s: float) -> bool:
    journal, job = region.engine.journal, run.job
    if job.state is State.PREPARING:
        _prepare(region, state, run, until_s)
        return True
    pending = journal.backlog.job_pending(job.bucket, job.id, SLICE if job.state is State.CANCELLING else 1)
    if pending and job.state is State.CANCELLING:
        with state.bucket.open() as bucket:
            _undo(region, state, bucket, pending)
        return True
    if pending:
        return False
    _report(region, state, run, until_s)
    return True


# -- choosing versions


def _prepare(region: Region, state: BucketState, run: Run, until_s: float) -> None:
    """Read the next versions, until the time is up."""
    engine, address = region.engine, state.bucket.address
    rows = engine.journal.versions.versions_after(address, run.job.last, SLICE)
    with state.bucket.open() as bucket:
        replication = bucket.bucket.replication
        looked_at = 0
        if replication is not None:
            looked_at = _look_at(_Slice(region, bucket, replication, run.job), run, rows, until_s)
        is_over = replication is None or looked_at == len(rows) < SLICE
        if is_over:
            why = "" if replication is not None else "SrcBucketReplicationConfigMissing"
            run.job = replace(run.job, state=State.ACTIVE, why=why)
        if is_over or time.monotonic() > run.saved_s + _SAVE_S:
            bucket.fs.sync_all(bucket.fd)
            backfill_jobs.save(bucket, run.job)
            run.saved_s = time.monotonic()
    if is_over:
        log.info(
            "backfill prepared bucket=%s job=%s versions=%d deliveries=%d",
            address, run.job.id, run.job.examined, backfill_jobs.tasks_of(engine.journal.backlog, run.job).number,
        )  # fmt: skip


def _look_at(slice_: _Slice, run: Run, rows: Sequence[Stored], until_s: float) -> int:
    """Read versions until the time is up; how many were read. Those are recorded even where one of them fails."""
    try:
        for number, row in enumerate(rows, 1):
            _look(slice_, run, row)
            if time.monotonic() > until_s:
                return number
        return len(rows)
    finally:
        slice_.record()
        run.job = slice_.job


def _look(slice_: _Slice, run: Run, row: Stored) -> None:
    """Read one version. A version that cannot be read at the fifth attempt is named in the report and skipped."""
    try:
        slice_.look(row)
    except StoreDamaged as error:
        slice_.skip(row, str(error))
    except OSError as error:
        if error.errno in NO_SPACE | {errno.EROFS} or run.faults + 1 < _TRIES:
            raise
        slice_.skip(row, reason(error))
    run.faults = 0


class _Slice:
    """Versions that are read together: one transaction records their deliveries."""

    def __init__(self, region: Region, bucket: OpenBucket, replication: Replication, job: Job) -> None:
        self.region, self.bucket, self.replication, self.job = region, bucket, replication, job
        self._wanted = job.wanted
        self._changed: list[Version] = []

    def look(self, row: Stored) -> None:
        """Record on a version the deliveries that the job asks for, if any. Raises StoreDamaged or OSError."""
        engine, bucket, there = self.region.engine, self.bucket, 0
        version = engine.recent.version(bucket.address, row.key, row.id) if self.job.is_for(row) else None
        if version is None and self.job.is_for(row):
            version = versions.read(bucket, row.key, row.id, marker=row.marker)
            version = version and versions.ensure_whole(version)
        if version is not None:
            asked, there = rules.ask_for(self.replication, version, self._wanted, self._is_there(version))
            if asked:
                now_ns = engine.site.now()
                since = {name: replace(recorded, since_ns=now_ns) for name, recorded in asked.items()}
                version = replace(version, deliveries={**version.deliveries, **since})
                records.write_deliveries(bucket, version)
                engine.recent.put(bucket.address, version)
            if any(recorded.job == self.job.id for recorded in version.deliveries.values()):
                self._changed.append(version)  # also deliveries that a crash kept out of the journal
        self._pass(row, there)

    def _is_there(self, version: Version) -> Callable[[str], bool]:
        return lambda destination: self.region.engine.journal.versions.has_version(destination, version)

    def skip(self, row: Stored, why: str) -> None:
        log.error(
            'backfill passes over bucket=%s key="%s" version=%s: %s',
            self.bucket.address, keys.shown(row.key), row.id, why,
        )  # fmt: skip
        self.job = replace(self.job, unreadable=(*self.job.unreadable, (row.key, row.id)))
        self._pass(row, 0)

    def _pass(self, row: Stored, there: int) -> None:
        self.job = replace(self.job, last=row, examined=self.job.examined + 1, there=self.job.there + there)

    def record(self) -> None:
        engine, address = self.region.engine, self.bucket.address
        if not self._changed:
            return
        with engine.journal.transaction():
            engine.journal.deliveries.put_all(address, self._changed)
        state = self.region.states[address]
        now_s = time.monotonic()
        for version in self._changed:
            if not version.marker:
                state.labels.add(version, now_s)
        for destination in {n for v in self._changed for n, d in v.deliveries.items() if d.job == self.job.id}:
            wake_backlog(self.region, address, destination)
        engine.notify()


# -- cancelling deliveries that were not sent


def _undo(region: Region, state: BucketState, bucket: OpenBucket, pending: Sequence[Delivery]) -> None:
    """Restore each pending delivery of a job to its status before the job; COMPLETED if its replica is there."""
    engine = region.engine
    changed: dict[tuple[bytes, str], Version] = {}
    confirmed: list[Version] = []
    gone: list[Delivery] = []
    for delivery in pending:
        at = (delivery.key, delivery.id)
        was = changed.get(at) or versions.read(bucket, delivery.key, delivery.id, marker=delivery.marker)
        recorded = was.deliveries.get(delivery.destination) if was else None
        if was is None or recorded is None:
            gone.append(delivery)
        elif not settle.is_pending(was, delivery):  # settled before a crash, but not in the journal
            confirmed.append(was)
        else:
            is_there = engine.journal.versions.has_version(delivery.destination, was)
            after = replace(recorded, status=Status.COMPLETED, before=None) if is_there else recorded.before
            changed[at] = replace(was, deliveries=_with(was, delivery.destination, after))
            if after is None:
                gone.append(delivery)
    settle.write(engine, state, bucket, settle.Settlement(changed, confirmed, gone))
    engine.notify()


def _with(version: Version, destination: str, recorded: DeliveryRecord | None) -> dict[str, DeliveryRecord]:
    others = {name: each for name, each in version.deliveries.items() if name != destination}
    return others | ({destination: recorded} if recorded else {})


# -- the end


def _report(region: Region, state: BucketState, run: Run, until_s: float) -> None:
    """Write the report of a job that has no pending deliveries, and then record that the job has ended."""
    engine, job = region.engine, run.job
    with state.bucket.open() as bucket:
        if not run.reporting:
            backfill_jobs.begin_report(bucket, job)
            run.reporting, run.reported = True, None
        while rows := engine.journal.backlog.job_deliveries(job.bucket, job.id, run.reported, SLICE):
            backfill_jobs.add_to_report(bucket, job, rows)
            run.reported = rows[-1]
            if time.monotonic() > until_s:
                return
        backfill_jobs.end_report(bucket, job)
        end = State.CANCELLED if job.state is State.CANCELLING else State.FAILED if job.why else State.COMPLETE
        tasks = backfill_jobs.tasks_of(engine.journal.backlog, job)
        job = replace(job, state=end, tasks=tasks, ended_ns=engine.site.now())
        backfill_jobs.save(bucket, job)
    del state.backfills.jobs[job.id]
    _remember(region, state)
    engine.notify()
    level = logging.WARNING if tasks.failed or job.why else logging.INFO
    log.log(
        level, "backfill ended bucket=%s job=%s state=%s succeeded=%d failed=%d%s",
        job.bucket, job.id, job.state, tasks.succeeded, tasks.failed, f" reason={job.why}" if job.why else "",
    )  # fmt: skip
