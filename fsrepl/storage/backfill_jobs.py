"""Backfill jobs on disk: each job's request, its progress and its report.

A job is a document in its source bucket, .fsrepl/jobs/ID.json, with S3's names for its states. It is stored there and
not in the site's state, because its deliveries are on the versions beside it. The job therefore continues wherever that
disk is attached, and is removed with the bucket. An ended job has a report beside it, ID.jsonl, with a line for each
version and destination. The document's progress may lag behind the work: versions already examined have deliveries that
name the job.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import json
import os
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from fsrepl.errors import FsreplError, Refused
from fsrepl.model import clock, json_text, keys
from fsrepl.model.version import NULL, Status
from fsrepl.s3.rules import Wanted
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.documents import read_document, write_document
from fsrepl.storage.fs import GONE
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.questions import JobCounts
from fsrepl.storage.journal.rows import Counts, Delivery, Stored
from fsrepl.storage.site import Site

FOLDER = b"jobs"
KEPT_NS = 90 * 86400 * 1_000_000_000
"""The time for which an ended job can be queried; S3 keeps its own as long."""
_SLICE = 1000


class State(enum.StrEnum):
    """A job's state, in S3's terms. Preparing: it selects versions; Active: its deliveries are in progress."""

    PREPARING = "Preparing"
    ACTIVE = "Active"
    CANCELLING = "Cancelling"
    COMPLETE = "Complete"
    CANCELLED = "Cancelled"
    FAILED = "Failed"

    @property
    def has_ended(self) -> bool:
        return self in (State.COMPLETE, State.CANCELLED, State.FAILED)


class Tasks(Struct, frozen=True):
    """Counts of a job's tasks, each a version and a destination, by outcome."""

    number: int = 0
    bytes: int = 0
    succeeded: int = 0
    succeeded_bytes: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed


class Job(Struct, frozen=True):
    """One backfill. versions: how many the bucket had when the job was created. examined: how many have been examined.
    there: destinations known to have a version already. unreadable: versions whose record cannot be read. last: the
    last version examined. tasks: counted when the job ended. why: the reason of an early end."""

    id: str
    bucket: str
    created_ns: int
    statuses: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    state: State = State.PREPARING
    versions: int = 0
    examined: int = 0
    there: int = 0
    unreadable: tuple[tuple[bytes, str], ...] = ()
    last: Stored | None = None
    ended_ns: int = 0
    tasks: Tasks | None = None
    why: str = ""

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.id, frozenset(self.statuses), frozenset(self.rules))

    def is_for(self, stored: Stored) -> bool:
        """Whether a version existed when the job was created; live rules cover newer ones."""
        if stored.id == NULL or stored.created_ns != self.created_ns:
            return stored.created_ns <= self.created_ns
        return stored.id < self.id

    def has_yet_to_look_at(self, stored: Stored) -> bool:
        if self.state is not State.PREPARING or not self.is_for(stored):
            return False
        return self.last is None or self.last.order < stored.order


# -- the document


def encode(job: Job) -> dict[str, object]:
    document: dict[str, object] = {
        "JobId": job.id,
        "Bucket": job.bucket,
        "Status": str(job.state),
        "CreationTime": clock.stamp(job.created_ns),
        "ObjectReplicationStatuses": list(job.statuses),
        "Rules": list(job.rules),
        "Versions": job.versions,
        "VersionsExamined": job.examined,
        "AlreadyThere": job.there,
    }
    if job.last is not None:
        document["LastExamined"] = {
            "KeyBase64": _base64(job.last.key),
            "VersionId": job.last.id,
            "CreatedNs": job.last.created_ns,
        }
    if job.unreadable:
        document["Unreadable"] = [{"KeyBase64": _base64(key), "VersionId": i} for key, i in job.unreadable]
    if job.ended_ns:
        document["TerminationDate"] = clock.stamp(job.ended_ns)
    if job.why:
        document["StatusUpdateReason"] = job.why
    if job.tasks is not None:
        document["ProgressSummary"] = encode_tasks(job.tasks)
    return document


def encode_tasks(tasks: Tasks) -> dict[str, int]:
    return {
        "TotalNumberOfTasks": tasks.number,
        "NumberOfTasksSucceeded": tasks.succeeded,
        "NumberOfTasksFailed": tasks.failed,
        "TotalBytes": tasks.bytes,
        "BytesSucceeded": tasks.succeeded_bytes,
    }


def decode(document: dict[str, Any]) -> Job:
    """A job from its document. Raises ValueError, KeyError or TypeError for a document that encode did not write."""
    last = document.get("LastExamined")
    said = document.get("ProgressSummary")
    return Job(
        id=document["JobId"],
        bucket=document["Bucket"],
        created_ns=clock.parse(document["CreationTime"]),
        statuses=tuple(document["ObjectReplicationStatuses"]),
        rules=tuple(document["Rules"]),
        state=State(document["Status"]),
        versions=int(document["Versions"]),
        examined=int(document["VersionsExamined"]),
        there=int(document["AlreadyThere"]),
        unreadable=tuple((base64.b64decode(u["KeyBase64"]), u["VersionId"]) for u in document.get("Unreadable", ())),
        last=Stored(*keys.split(base64.b64decode(last["KeyBase64"])), last["CreatedNs"], last["VersionId"])
        if last
        else None,
        ended_ns=clock.parse(document["TerminationDate"]) if "TerminationDate" in document else 0,
        tasks=Tasks(
            said["TotalNumberOfTasks"], said["TotalBytes"], said["NumberOfTasksSucceeded"], said["BytesSucceeded"],
            said["NumberOfTasksFailed"],
        )
        if said
        else None,
        why=document.get("StatusUpdateReason", ""),
    )  # fmt: skip


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- in the bucket


@contextlib.contextmanager
def _folder(bucket: OpenBucket, *, make: bool = False) -> Iterator[int | None]:
    """The bucket's jobs folder; None where the bucket never had a job."""
    try:
        fd = bucket.fs.open_dir(bucket.meta, FOLDER)
    except OSError as error:
        if error.errno not in GONE:
            raise
        if not make:
            yield None
            return
        bucket.fs.make_dir(bucket.meta, FOLDER)
        bucket.fs.sync_file(bucket.meta)
        fd = bucket.fs.open_dir(bucket.meta, FOLDER)
    try:
        yield fd
    finally:
        bucket.fs.close(fd)


def save(bucket: OpenBucket, job: Job) -> None:
    """Save a job durably."""
    with _folder(bucket, make=True) as at:
        assert at is not None
        write_document(bucket.fs, at, _document(job.id), encode(job))


def load(bucket: OpenBucket) -> tuple[list[Job], list[str]]:
    """The jobs of a bucket, oldest first, and the names of unreadable documents."""
    found: list[Job] = []
    damaged: list[str] = []
    with _folder(bucket) as at:
        for name in bucket.fs.names(at) if at is not None else ():
            if name.startswith(b".") or not name.endswith(b".json"):
                continue
            try:
                document = read_document(bucket.fs, at or 0, name)
                if document is not None:
                    found.append(decode(document))
            except (OSError, ValueError, KeyError, TypeError):
                damaged.append(os.fsdecode(name))
    return sorted(found, key=lambda job: job.id), damaged


def sweep(bucket: OpenBucket, now_ns: int) -> None:
    """Remove jobs that ended long ago, and files left incomplete by a crash."""
    old = [j for j in load(bucket)[0] if j.state.has_ended and j.ended_ns + KEPT_NS < now_ns]
    with _folder(bucket) as at:
        if at is None:
            return
        for name in bucket.fs.names(at):
            if name.startswith(b"."):
                bucket.fs.unlink(at, name)
        for job in old:
            for each in (_report(job.id), _document(job.id)):
                with contextlib.suppress(FileNotFoundError):
                    bucket.fs.unlink(at, each)


def _document(job_id: str) -> bytes:
    return job_id.encode() + b".json"


def _report(job_id: str) -> bytes:
    return job_id.encode() + b".jsonl"


# -- the report


def begin_report(bucket: OpenBucket, job: Job) -> None:
    """Start the report of an ended job, from the beginning also where a crash interrupted it."""
    rows = [_row(job.bucket, key, version, "", "failed", "SrcObjectNotEligible") for key, version in job.unreadable]
    with _folder(bucket, make=True) as at:
        assert at is not None
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(at, _report(job.id))
    _append(bucket, job, rows)


def add_to_report(bucket: OpenBucket, job: Job, rows: list[Delivery]) -> None:
    _append(bucket, job, [_row_of(delivery) for delivery in rows])


def _append(bucket: OpenBucket, job: Job, rows: list[dict[str, str]]) -> None:
    with _folder(bucket, make=True) as at:
        assert at is not None
        fd = bucket.fs.append(at, _report(job.id))
        try:
            bucket.fs.write(fd, "".join(json.dumps(row) + "\n" for row in rows).encode())
        finally:
            bucket.fs.close(fd)


def end_report(bucket: OpenBucket, job: Job) -> None:
    """Make the report durable; the job is recorded as ended only afterwards."""
    with _folder(bucket, make=True) as at:
        assert at is not None
        fd = bucket.fs.append(at, _report(job.id))
        try:
            bucket.fs.sync_file(fd)
        finally:
            bucket.fs.close(fd)
        bucket.fs.sync_file(at)


_WORDS = {str(Status.COMPLETED): "succeeded", str(Status.FAILED): "failed", str(Status.PENDING): "pending"}


def _row_of(delivery: Delivery) -> dict[str, str]:
    return _row(
        delivery.source, delivery.key, delivery.id, delivery.destination, _WORDS[delivery.status], delivery.reason
    )


def _row(bucket: str, key: bytes, version: str, destination: str, status: str, reason: str) -> dict[str, str]:
    row = {"Bucket": bucket, "Key": keys.text(key)}
    if not keys.is_exact(key):
        row["KeyBase64"] = _base64(key)
    return row | {"VersionId": version, "Destination": destination, "Status": status, "ErrorCode": reason}


def report(bucket: OpenBucket, journal: Journal, job: Job) -> Iterator[dict[str, str]]:
    """A row for each version and destination: as written when the job ended, or the current state."""
    if not job.state.has_ended:
        last = None
        while rows := journal.backlog.job_deliveries(job.bucket, job.id, last, _SLICE):
            yield from map(_row_of, rows)
            last = rows[-1]
        return
    with _folder(bucket) as at:
        if at is None:
            return
        fd = bucket.fs.open_read(at, _report(job.id))
    with open(fd, encoding="utf-8") as file:
        for line in file:
            yield json_text.loads(line)


# -- queries


def tasks_of(backlog: JobCounts, job: Job) -> Tasks:
    """Counts of a job's tasks so far; for an ended job, the counts at its end."""
    if job.tasks is not None:
        return job.tasks
    counts = backlog.job_counts(job.bucket, job.id)
    succeeded = counts.get("COMPLETED", Counts())
    return Tasks(
        sum(c.number for c in counts.values()) + len(job.unreadable),
        sum(c.bytes for c in counts.values()),
        succeeded.number,
        succeeded.bytes,
        counts.get("FAILED", Counts()).number + len(job.unreadable),
    )


def find(site: Site, job_id: str) -> Job:
    """A job of any readable bucket. Raises Refused(NoSuchJob)."""
    for address in sorted(site.buckets):
        with contextlib.suppress(FsreplError, OSError), site.buckets[address].open() as bucket:
            for job in load(bucket)[0]:
                if job.id == job_id:
                    return job
    raise Refused("NoSuchJob", f"there is no job {job_id!r}; `fsrepl replication jobs` lists them")


def job_fact(address: str) -> str:
    """The name of the journal's fact that lists a bucket's unfinished jobs."""
    return f"jobs {address}"


def is_filling(site: Site, journal: Journal, destination: str) -> bool:
    """Whether a backfill into a bucket is running. Lifecycle keeps replicated markers meanwhile (5.5, 6)."""
    if any(journal.fact(job_fact(source)) for source in site.sources_of(destination)):
        return True
    return journal.backlog.is_backlogged(destination)
