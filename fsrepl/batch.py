"""S3 Batch Replication: the same journey for versions that live rules passed over.

A job looks through its source bucket, a slice of the journal at a time, and writes on each version it
chooses that a destination is owed it: PENDING, with the job's id. From there on it is a delivery like
any other, but for its turn (queues.py). When nothing of a job is pending any more, its report is written
and it has ended. Runs in the source's region, a step between two turns of everything else.

A job may be stopped at any moment. What it has looked at stands in its document, which is written only
after the versions up to there are durable; what it has looked at since, it looks at again, and finds its own
id there. Source: s3-semantics, 2 (the batch column), 3.3 and 6.1.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fsrepl import attrs, jobs, keys, plan, records, settling, store
from fsrepl.errors import FsreplError, Refused, StoreDamaged, Usage
from fsrepl.fs import NO_SPACE, reason
from fsrepl.jobs import Job, State
from fsrepl.model import Delivery, Replication, Status, Version
from fsrepl.rows import Owed, Stored, Word
from fsrepl.site import OpenBucket

if TYPE_CHECKING:
    from fsrepl.engine import Engine
    from fsrepl.place import Place
    from fsrepl.region import Region

log = logging.getLogger("fsrepl")

SLICE = 256
_STEP_S = 0.02
_SAVE_S = 5.0
_AGAIN_S = 1.0
_AGAIN_MAX_S = 60.0
_TRIES = 5
_AN_OBJECT_BYTES = 64 << 10
"""What an object costs besides its bytes, in bytes: what is left of a job is estimated from both."""


@dataclass(slots=True)
class Run:
    """A job at work. faults: how often in a row it could not go on; due_s: when it tries again."""

    job: Job
    saved_s: float = field(default_factory=time.monotonic)
    due_s: float = 0.0
    faults: int = 0
    reported: Owed | None = None
    reporting: bool = False
    began_s: float = field(default_factory=time.monotonic)
    began_with: jobs.Tasks | None = None


# -- commands


def accept(region: Region, address: str, statuses: Sequence[str], rule_ids: Sequence[str]) -> dict[str, object]:
    """Write down a new job for the versions that are there now. What it is to send is found after this returns."""
    for status in statuses:
        if status not in plan.STATUSES:
            raise Usage(f"{status} is not a status to choose versions by; there are {', '.join(plan.STATUSES)}")
    place = region.flush(address)
    engine = region.engine
    with place.bucket.open() as bucket:
        _check_rules(bucket, rule_ids)
        job_id, created_ns = place.bucket.ids.next(engine.site.now())
        versions = engine.journal.count_versions(address)
        job = Job(
            job_id, address, created_ns, tuple(dict.fromkeys(statuses)), tuple(dict.fromkeys(rule_ids)),
            versions=versions,
        )  # fmt: skip
        jobs.sweep(bucket, engine.site.now())
        jobs.save(bucket, job)
    begin(region, place, job)
    log.info("backfill accepted bucket=%s job=%s", address, job.id)
    return jobs.describe(job, jobs.Tasks())


def _check_rules(bucket: OpenBucket, rule_ids: Collection[str]) -> None:
    """S3 runs a job by the configuration that is there, and a disabled rule does nothing: better to say so at once."""
    address, replication = bucket.address, bucket.bucket.replication
    if replication is None:
        raise Refused(
            "ReplicationConfigurationNotFoundError",
            f"{address} has no replication configuration; `fsrepl replication enable {address} DST` makes one",
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
            f"all rules of {address} are disabled; `fsrepl replication enable {address}` runs them again",
        )


def cancel(region: Region, address: str, job_id: str) -> dict[str, object]:
    """Stop a job: what it has not sent yet is again what it was before. What is done stays done."""
    place = region.place_of(address)
    run = place.jobs.get(job_id)
    if run is None:
        raise Refused("InvalidRequest", f"job {job_id} of {address} has ended")
    with place.bucket.open() as bucket:
        run.job = replace(run.job, state=State.CANCELLING)
        jobs.save(bucket, run.job)
    log.info("backfill cancelled bucket=%s job=%s", address, job_id)
    region.wake()
    return jobs.describe(run.job, jobs.tasks_of(region.engine.journal, run.job))


def listing(engine: Engine, address: str) -> list[dict[str, object]]:
    """The jobs of a bucket, the oldest first, and how far they are; where it is away, those at work."""
    region = engine.region_of(address)
    place = region.places.get(address)
    runs = dict(place.jobs) if place else {}
    found: list[Job] = []
    with contextlib.suppress(FsreplError), engine.site.bucket(address).open() as bucket:
        found = jobs.load(bucket)[0]
    known = {job.id: job for job in found} | {run.job.id: run.job for run in runs.values()}
    out = []
    for job_id in sorted(known):
        job, run = known[job_id], runs.get(job_id)
        tasks = jobs.tasks_of(engine.journal, job)
        out.append(jobs.describe(job, tasks, pace(run, tasks, time.monotonic()) if run else None))
    return out


def pace(run: Run, tasks: jobs.Tasks, now_s: float) -> jobs.Pace:
    """How fast a job is, and how long it will still take at that pace. While it looks for what to send, what it will
    find is estimated from what it has found."""
    began, job = run.began_with or jobs.Tasks(), run.job
    elapsed_s = now_s - run.began_s
    number, size = tasks.ended - began.ended, tasks.succeeded_bytes - began.succeeded_bytes
    if number <= 0 or elapsed_s <= 0:
        return jobs.Pace()
    whole = _work(tasks.number, tasks.bytes)
    if job.state is State.PREPARING and job.examined:
        whole *= max(1.0, job.versions / job.examined)
    left = max(0.0, whole - _work(tasks.ended, tasks.succeeded_bytes))
    eta_s = left * elapsed_s / _work(number, size)
    return jobs.Pace(round(number / elapsed_s, 1), round(size / elapsed_s, 1), round(eta_s, 1))


def _work(number: int, size: int) -> float:
    return number * _AN_OBJECT_BYTES + size


def unfinished(engine: Engine, address: str, key: bytes = b"") -> set[str]:
    """The jobs of a bucket that have not ended; of a key, those that have yet to look at one of its versions.

    Where the bucket was away ever since we began, those that the index remembers.
    """
    place = engine.region_of(address).places.get(address)
    if place is None or not (place.up or place.jobs):
        return set(engine.journal.fact(_fact(address)).split())
    going_on = [run.job for run in list(place.jobs.values())]
    if key:
        stored = [Stored(*keys.split(key), created, i) for i, created, _ in engine.journal.versions_of(address, key)]
        going_on = [job for job in going_on if any(job.has_yet_to_look_at(each) for each in stored)]
    return {job.id for job in going_on}


def _fact(address: str) -> str:
    return f"jobs {address}"


def is_filling(engine: Engine, destination: str) -> bool:
    """Whether a backfill into a bucket is under way. Lifecycle leaves replicated markers alone meanwhile (5.5, 6)."""
    for region in engine.regions.values():
        for place in list(region.places.values()):
            replication = place.bucket.replication
            if place.jobs and replication and any(r.destination == destination for r in replication.rules):
                return True
    return engine.journal.is_backlogged(destination)


# -- a job's way, a step at a time


def begin(region: Region, place: Place, job: Job) -> None:
    """Take a job up, new or again."""
    run = place.jobs[job.id] = Run(job)
    run.began_with = jobs.tasks_of(region.engine.journal, job)
    _remember(region, place)
    region.wake()


def resume(region: Region, place: Place, bucket: OpenBucket) -> None:
    """A bucket has come up: take up the jobs that had not ended."""
    found, damaged = jobs.load(bucket)
    for name in damaged:
        log.error("damaged bucket=%s: .fsrepl/jobs/%s cannot be read; its job does not go on", bucket.address, name)
    place.jobs.clear()
    for job in found:
        if not job.state.has_ended:
            if job.bucket != bucket.address and job.state is State.PREPARING:
                job = replace(job, state=State.ACTIVE, why="SrcBucketInvalidRegion")
            begin(region, place, replace(job, bucket=bucket.address))
    _remember(region, place)
    for destination, _ in region.engine.journal.backlog_ways(bucket.address):
        region.wake_backlog(bucket.address, destination, start_over=True)


def owe_all(region: Region, place: Place) -> None:
    """After a look at a source's rules, or when a region left the site: have its backlog sent, as far as a rule stands
    for it. The rest fails, a slice at a time; with what live replication owes, that is done at once."""
    place.lapsed.clear()
    for destination, rule_id in region.engine.journal.backlog_ways(place.bucket.address):
        why = plan.lapsed(place.bucket.replication, rule_id, destination)
        if destination.partition("/")[0] not in region.engine.regions:
            why = "DstBucketInvalidRegion"
        if why:
            place.lapsed[destination, rule_id] = why
        else:
            region.wake_backlog(place.bucket.address, destination)


def _remember(region: Region, place: Place) -> None:
    """Tell the index, which can be asked while the bucket is away."""
    with region.engine.journal.transaction():
        region.engine.journal.set_fact(_fact(place.bucket.address), " ".join(place.jobs))


def next_s(place: Place) -> float | None:
    """The monotonic time of a bucket's next step; None where its jobs wait for deliveries, which wake the region."""
    if place.lapsed:
        return 0.0
    due = [run.due_s for run in place.jobs.values() if run.job.state is not State.ACTIVE or run.reporting or run.due_s]
    return min(due, default=None)


def step(region: Region, place: Place) -> bool:
    """Go on with a bucket's jobs for a moment; whether there was anything to do."""
    until_s = time.monotonic() + _STEP_S
    busy = _fail_lapsed(region, place, until_s)
    for run in list(place.jobs.values()):
        if run.due_s > time.monotonic():
            continue
        try:
            busy |= _go_on(region, place, run, until_s)
            run.due_s = 0.0
        except (FsreplError, OSError) as error:
            _later(place, run, reason(error) if isinstance(error, OSError) else str(error))
    return busy


def _fail_lapsed(region: Region, place: Place, until_s: float) -> bool:
    """Settle a slice of what no rule stands for any more."""
    address, busy = place.bucket.address, False
    while place.lapsed and time.monotonic() < until_s:
        (destination, rule_id), why = next(iter(place.lapsed.items()))
        rows = region.engine.journal.backlog_of(address, destination, rule_id, SLICE)
        busy = True
        if not rows:
            del place.lapsed[destination, rule_id]
            continue
        try:
            settling.settle(region, place, [Word(owed, Status.FAILED, why, None) for owed in rows])
        except (FsreplError, OSError) as error:
            log.warning("not settled bucket=%s deliveries=%d: %s", address, len(rows), error)
            return False
    return busy


def _later(place: Place, run: Run, why: str) -> None:
    run.faults += 1
    run.due_s = time.monotonic() + min(_AGAIN_MAX_S, _AGAIN_S * 2.0 ** min(run.faults - 1, 10))
    level = logging.WARNING if run.faults == 1 else logging.DEBUG
    log.log(level, "backfill waits bucket=%s job=%s: %s", place.bucket.address, run.job.id, why)


def _go_on(region: Region, place: Place, run: Run, until_s: float) -> bool:
    journal, job = region.engine.journal, run.job
    if job.state is State.PREPARING:
        _prepare(region, place, run, until_s)
        return True
    pending = journal.job_pending(job.bucket, job.id, SLICE if job.state is State.CANCELLING else 1)
    if pending and job.state is State.CANCELLING:
        with place.bucket.open() as bucket:
            _undo(region, place, bucket, pending)
        return True
    if pending:
        return False
    _report(region, place, run, until_s)
    return True


# -- looking for what to send


def _prepare(region: Region, place: Place, run: Run, until_s: float) -> None:
    """Look at the next versions, until the time is up."""
    engine, address = region.engine, place.bucket.address
    rows = engine.journal.versions_after(address, run.job.last, SLICE)
    with place.bucket.open() as bucket:
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
            jobs.save(bucket, run.job)
            run.saved_s = time.monotonic()
    if is_over:
        log.info(
            "backfill prepared bucket=%s job=%s versions=%d deliveries=%d",
            address, run.job.id, run.job.examined, jobs.tasks_of(engine.journal, run.job).number,
        )  # fmt: skip


def _look_at(slice_: _Slice, run: Run, rows: Sequence[Stored], until_s: float) -> int:
    """Look at versions until the time is up; at how many. What was seen is recorded, also where one of them fails."""
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
    """One version. What cannot be read at the fifth attempt is named in the report, and the others go on."""
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
    """Versions that are looked at together: one transaction records what they owe."""

    def __init__(self, region: Region, bucket: OpenBucket, replication: Replication, job: Job) -> None:
        self.region, self.bucket, self.replication, self.job = region, bucket, replication, job
        self._wanted = job.wanted
        self._changed: list[Version] = []

    def look(self, row: Stored) -> None:
        """Write on a version what the job asks for it, if it does. Raises StoreDamaged or OSError."""
        engine, bucket, there = self.region.engine, self.bucket, 0
        version = engine.recent.version(bucket.address, row.key, row.id) if self.job.is_for(row) else None
        if version is None and self.job.is_for(row):
            version = store.read(bucket, row.key, row.id, marker=row.marker)
            version = version and store.ensure_whole(version)
        if version is not None:
            asked, there = plan.ask_for(self.replication, version, self._wanted, self._is_there(version))
            if asked:
                now_ns = engine.site.now()
                since = {name: replace(delivery, since_ns=now_ns) for name, delivery in asked.items()}
                version = replace(version, deliveries={**version.deliveries, **since})
                records.update(bucket, version, attrs.encode_deliveries(version))
                engine.recent.put(bucket.address, version)
            if any(delivery.batch == self.job.id for delivery in version.deliveries.values()):
                self._changed.append(version)  # also what a crash let us write down and not record
        self._pass(row, there)

    def _is_there(self, version: Version) -> Callable[[str], bool]:
        return lambda destination: self.region.engine.journal.has_version(destination, version)

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
            engine.journal.put_all_deliveries(address, self._changed)
        place = self.region.places[address]
        now_s = time.monotonic()
        for version in self._changed:
            if not version.marker:
                place.unmarked.add(version, now_s)
        for destination in {n for v in self._changed for n, d in v.deliveries.items() if d.batch == self.job.id}:
            self.region.wake_backlog(address, destination)
        engine.notify()


# -- undoing what was not sent


def _undo(region: Region, place: Place, bucket: OpenBucket, pending: Sequence[Owed]) -> None:
    """Make what a job still owes again what it was before it asked; or COMPLETED, where only the word of it is late."""
    engine, address = region.engine, bucket.address
    gone: list[Owed] = []
    left: list[Version] = []
    for owed in pending:
        was = store.read(bucket, owed.key, owed.id, marker=owed.marker)
        delivery = was.deliveries.get(owed.destination) if was else None
        if was is None or delivery is None:
            gone.append(owed)
            continue
        if not settling.is_owed(was, owed):  # settled before a crash, and not recorded
            left.append(was)
            continue
        is_there = engine.journal.has_version(owed.destination, was)
        after = replace(delivery, status=Status.COMPLETED, before=None) if is_there else delivery.before
        now = replace(was, deliveries=_with(was, owed.destination, after))
        changed = attrs.encode_deliveries(now)
        records.update(bucket, now, changed, attrs.DELIVERY_NAMES - changed.keys())
        engine.recent.put(address, now)
        if not now.marker:
            place.unmarked.add(now, time.monotonic())
        left.append(now)
        if after is None:
            gone.append(owed)
    with engine.journal.transaction():
        for owed in gone:
            engine.journal.drop_delivery(owed)
        engine.journal.put_all_deliveries(address, left)
    engine.notify()


def _with(version: Version, destination: str, delivery: Delivery | None) -> dict[str, Delivery]:
    others = {name: each for name, each in version.deliveries.items() if name != destination}
    return others | ({destination: delivery} if delivery else {})


# -- the end


def _report(region: Region, place: Place, run: Run, until_s: float) -> None:
    """Write the report of a job of which nothing is pending, and then that it has ended."""
    engine, job = region.engine, run.job
    with place.bucket.open() as bucket:
        if not run.reporting:
            jobs.begin_report(bucket, job)
            run.reporting, run.reported = True, None
        while rows := engine.journal.job_deliveries(job.bucket, job.id, run.reported, SLICE):
            jobs.add_to_report(bucket, job, rows)
            run.reported = rows[-1]
            if time.monotonic() > until_s:
                return
        jobs.end_report(bucket, job)
        end = State.CANCELLED if job.state is State.CANCELLING else State.FAILED if job.why else State.COMPLETE
        tasks = jobs.tasks_of(engine.journal, job)
        job = replace(job, state=end, tasks=tasks, ended_ns=engine.site.now())
        jobs.save(bucket, job)
    del place.jobs[job.id]
    _remember(region, place)
    engine.notify()
    level = logging.WARNING if tasks.failed or job.why else logging.INFO
    log.log(
        level, "backfill ended bucket=%s job=%s state=%s succeeded=%d failed=%d%s",
        job.bucket, job.id, job.state, tasks.succeeded, tasks.failed, f" reason={job.why}" if job.why else "",
    )  # fmt: skip
