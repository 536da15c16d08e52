"""fsrepl replication backfill, jobs, report, cancel: S3 Batch Replication."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from fsrepl.cli import completion, progress
from fsrepl.cli.common import (
    Json,
    Source,
    ask_daemon,
    await_daemon,
    duration_text,
    open_answering_site,
    print_json,
    print_table,
    say,
    size_text,
    umask,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import NotRunning, Usage
from fsrepl.model.address import Address

_LOOK_S, _LOOK_MAX_S = 0.02, 0.5
_PREPARED_S = 0.5
_FORMATS = ("csv", "json")
_COLUMNS = ("Bucket", "Key", "VersionId", "Destination", "Status", "ErrorCode", "KeyBase64")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id; `fsrepl replication jobs` lists them.")]
Format = Annotated[str | None, typer.Option("--format", metavar="csv|json", help="The form of the report.")]


def register(replication: typer.Typer) -> None:
    """Add these commands to `fsrepl replication`."""
    for command in (backfill, jobs, report, cancel):
        replication.command()(command)


def backfill(
    source: Source,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS", help="Only versions with this status: NONE, FAILED, COMPLETED, REPLICA. Repeatable."
        ),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only versions that this rule chooses. Repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Wait, and write the outcome of each version to FILE.")
    ] = None,
    format_: Format = None,
    json: Json = False,
) -> None:
    """Replicate versions that no live rule chose: Batch Replication.

    The command returns when the job is accepted. With --wait, exit status 0: all versions are replicated; 1: some
    failed.
    """
    from fsrepl.s3.rules import STATUSES

    for each in status or ():
        if each not in STATUSES:
            raise Usage(f"--status {each}: there are {', '.join(STATUSES)}")
    if report is None and format_ is not None:
        raise Usage("--format needs a report; name its file with --report FILE")
    form = _form(format_, report)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_replaced(report)) if report is not None else None
        job = await_daemon(requests.Backfill(source, tuple(status or ()), tuple(rule or ())))
        if not (wait or report is not None):
            print_json(job) if json else say(f"job {job['JobId']} is accepted; `fsrepl replication jobs` shows it")
            _warn_of_nothing(_prepared(source, job))
            return
        job = _wait(source, job)
        if file is not None:
            _write_report(job["JobId"], form, file)
    _tell(job, json=json)


def _form(given: str | None, file: Path | None) -> str:
    if given is None:
        return "json" if file is not None and file.suffix == ".json" else "csv"
    if given not in _FORMATS:
        raise Usage(f"--format {given}: there are {', '.join(_FORMATS)}")
    return given


def _wait(source: Address, job: dict[str, Any]) -> dict[str, Any]:
    """Wait until a job has ended; on a terminal with a bar. An interrupt does not stop the job."""
    pause_s = _LOOK_S
    try:
        with _bar() as show:
            while job["Status"] not in ("Complete", "Failed", "Cancelled"):
                show(job)
                time.sleep(pause_s)
                pause_s = min(_LOOK_MAX_S, 2 * pause_s)
                (job,) = ask_daemon(requests.ListBackfills(source, job["JobId"]))["Jobs"]
    except NotRunning as error:
        raise NotRunning(
            f"the daemon stopped; job {job['JobId']} continues when the daemon is started again"
        ) from error
    except KeyboardInterrupt:
        warn(f"job {job['JobId']} continues; `fsrepl replication cancel {job['JobId']}` stops it")
        raise
    return job


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    if not progress.is_wanted():
        yield lambda job: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[size]}"),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with progress.alone(), Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("backfill", total=None, size="", left="")

        def show(job: Mapping[str, Any]) -> None:
            counts = job["ProgressSummary"]
            eta_s, rate = job["EtaSeconds"], job["BytesPerSecond"]
            shown.update(
                task,
                description=f"backfill, {job['Status'].lower()}",
                completed=_ended(counts),
                total=counts["TotalNumberOfTasks"] or None,
                size=f"{size_text(counts['BytesSucceeded'])} of {size_text(counts['TotalBytes'])}",
                left="" if eta_s is None else f"{size_text(rate)}/s, {duration_text(eta_s)} left",
            )

        yield show


def _ended(counts: Mapping[str, int]) -> int:
    return counts["NumberOfTasksSucceeded"] + counts["NumberOfTasksFailed"]


def _prepared(source: Address, job: dict[str, Any]) -> dict[str, Any]:
    """An accepted job, after a moment in which it may have counted its versions."""
    until_s = time.monotonic() + _PREPARED_S
    with contextlib.suppress(NotRunning):
        while job["Status"] == "Preparing" and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
            (job,) = ask_daemon(requests.ListBackfills(source, job["JobId"]))["Jobs"]
    return job


def _warn_of_nothing(job: dict[str, Any]) -> None:
    """Warn where a job is known to have no versions to send."""
    if job["Status"] in ("Active", "Complete") and not (
        job["ProgressSummary"]["TotalNumberOfTasks"] or job["AlreadyThere"]
    ):
        warn(f"nothing to send: no version in {job['Bucket']} has a rule and a status that match")


def _tell(job: dict[str, Any], *, json: bool) -> None:
    counts = job["ProgressSummary"]
    _warn_of_nothing(job)
    if json:
        print_json(job)
    else:
        say(
            f"{counts['NumberOfTasksSucceeded']} sent, {size_text(counts['BytesSucceeded'])}; "
            f"already there: {job['AlreadyThere']}"
        )
    if job["Status"] != "Complete":
        warn(f"job {job['JobId']} is {job['Status']}: {job.get('StatusUpdateReason', 'it was cancelled')}")
    if counts["NumberOfTasksFailed"]:
        warn(f"{counts['NumberOfTasksFailed']} failed; `fsrepl replication report {job['JobId']}` says which and why")
    if job["Status"] != "Complete" or counts["NumberOfTasksFailed"]:
        raise typer.Exit(1)


def jobs(
    source: Annotated[
        Address | None,
        typer.Argument(
            metavar="REGION/BUCKET",
            help="Only jobs of this source.",
            parser=Address.parse_bucket,
            autocompletion=completion.buckets,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the backfills of the last 90 days."""
    from fsrepl.commands import backfills, reader

    try:
        found = ask_daemon(requests.ListBackfills(source))
    except NotRunning:
        site = open_answering_site()
        addresses = [site.bucket(str(source)).address] if source else sorted(site.buckets)
        with reader.reader(site) as journal:
            found = {"Jobs": backfills.read_all(site, journal, addresses)}
    if json:
        print_json(found)
        return
    head = ("JOB", "BUCKET", "STATUS", "CREATED", "DONE", "OF", "FAILED", "BYTES", "LEFT")
    print_table([_line(job) for job in found["Jobs"]], head, right=(4, 5, 6, 7, 8))


def _line(job: Mapping[str, Any]) -> tuple[object, ...]:
    counts, eta_s = job["ProgressSummary"], job["EtaSeconds"]
    return (
        job["JobId"], job["Bucket"], job["Status"], job["CreationTime"][:19] + "Z", _ended(counts),
        counts["TotalNumberOfTasks"], counts["NumberOfTasksFailed"], size_text(counts["TotalBytes"]),
        "" if eta_s is None else duration_text(eta_s),
    )  # fmt: skip


def report(job: JobId, format_: Format = None) -> None:
    """Print the outcome of each version of a job.

    For each destination: succeeded, failed, or still pending.
    """
    _write_report(job, _form(format_, None), sys.stdout)


def cancel(job: JobId, json: Json = False) -> None:
    """Stop a job. Replicas that it sent stay; other versions get their status from before the job back."""
    answer = ask_daemon(requests.CancelBackfill(job))
    print_json(answer) if json else say(f"job {job} is being cancelled")


# -- the report


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[IO[str]]:
    """A file for writing, renamed into place when it is complete. Raises Usage where it cannot be created."""
    if str(path) == "-":
        yield sys.stdout
        return
    try:
        fd, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise Usage(f"cannot write {path}: {error.strerror}") from error
    try:
        with open(fd, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        os.chmod(staged, 0o666 & ~umask())
        os.rename(staged, path)
    except BaseException:
        os.unlink(staged)
        raise


def _write_report(job_id: str, form: str, file: IO[str]) -> None:
    from fsrepl.commands import reader
    from fsrepl.storage import backfill_jobs

    written = 0

    def counted_rows(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
        nonlocal written
        for row in rows:
            written += 1
            yield row

    bar = progress.bar(f"reporting job {job_id}", done=lambda: written)
    site = open_answering_site()
    with contextlib.nullcontext() if file.isatty() else bar:  # on a terminal the rows themselves show how far it is
        job = backfill_jobs.find(site, job_id)
        with reader.reader(site) as journal, site.bucket(job.bucket).open() as bucket:
            rows = counted_rows(backfill_jobs.report(bucket, journal, job))
            _write_csv(rows, file) if form == "csv" else _write_json(rows, file)


def _write_csv(rows: Iterator[dict[str, str]], file: IO[str]) -> None:
    """Write a header and a line a row. Keys are escaped; where that changes a key, KeyBase64 has its bytes."""
    import base64
    import csv

    from fsrepl.model import keys

    out = csv.writer(file, lineterminator="\n")
    out.writerow(_COLUMNS)
    for row in rows:
        key = base64.b64decode(row["KeyBase64"]) if "KeyBase64" in row else row["Key"].encode()
        text = keys.shown(key)
        exact = "" if text.encode() == key else base64.b64encode(key).decode()
        out.writerow([(row | {"Key": text, "KeyBase64": exact})[column] for column in _COLUMNS])


def _write_json(rows: Iterator[dict[str, str]], file: IO[str]) -> None:
    import json

    separator = "["
    for row in rows:
        file.write(f"{separator}\n  {json.dumps(row)}")
        separator = ","
    file.write("\n]\n" if separator == "," else "[]\n")
