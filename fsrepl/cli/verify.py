"""fsrepl verify, doctor: differences between source and replicas, and present or coming problems."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fsrepl.cli import completion, progress
from fsrepl.cli.common import (
    Json,
    Performer,
    ask_daemon,
    coloured,
    counted,
    json_text,
    open_answering_site,
    owner,
    print_json,
    say,
    shown,
    size_text,
    state,
    warn,
)
from fsrepl.cli.unrecorded import open_journal
from fsrepl.daemon import control, requests
from fsrepl.errors import FsreplError, Usage, reason
from fsrepl.model import clock, keys
from fsrepl.model.address import Address

if TYPE_CHECKING:
    from fsrepl.commands.doctor import Finding
    from fsrepl.repair.compare import Difference
    from fsrepl.repair.verify import Verification
    from fsrepl.repair.verify_progress import Tally
    from fsrepl.storage.journal.database import Journal


_PROGRESS_S = 0.1
_SIGNS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "ok": ("✓", "green")}
_PASS_S = 60.0
_UNANSWERED_S = 30.0
"""How long a daemon that did not answer is not told how far a verification is."""
_DOCTOR_S = 10.0
"""Longer than the daemon's time limit for its regions to answer."""


def register(app: typer.Typer) -> None:
    app.command()(verify)
    app.command()(doctor)


def verify(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The source bucket, REGION/BUCKET.", autocompletion=completion.buckets)
    ],
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="DST",
            help="Only this destination. Default: all destinations.",
            autocompletion=completion.buckets,
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair differences from the copy that matches the recorded hash.")
    ] = False,
    limit: Annotated[
        str, typer.Option("--limit", metavar="RATE", help='Read no faster than this, such as "50MiB/s"; "0": no limit.')
    ] = "0",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a verification of the same that was interrupted.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare a source with its replicas, by hash.

    Content is read from the disk, past the page cache. After an interruption, --resume reads again only what was not
    read, or changed since.

    Exit status 0: no differences, or all were repaired; 1: differences are left. Pending deliveries, files that are
    being changed, and files over which another filesystem is mounted are counted separately.
    """
    from fsrepl.repair.verified import Verified
    from fsrepl.repair.verify import Verification
    from fsrepl.repair.verify_progress import Hooks
    from fsrepl.storage.fs import ReadingFs
    from fsrepl.storage.site import Site

    fs = ReadingFs()
    fs.owner = owner(state().settings)
    site = Site(state().settings, fs)
    with contextlib.ExitStack() as stack:
        performer = stack.enter_context(Performer())
        capture = _capturer(performer) if repair else _capture_by_daemon
        hooks = Hooks(_settled, capture, _repairer(performer) if repair else None, read=_paced(limit))
        hooks.is_daemon_running = _runs
        hooks.examine = _examiner(performer)
        journal = stack.enter_context(open_journal(site))
        found = stack.enter_context(Verification(site, source, destination, journal, hooks))
        hooks.progress = stack.enter_context(_told_to_daemon(found, journal))
        if progress.is_wanted():
            stack.enter_context(progress.alone())
            hooks.progress = stack.enter_context(_progress(found, journal, hooks.progress))
        hooks.verified = stack.enter_context(Verified(site.state, source, destination, resume=resume))
        if resume and not hooks.verified.resumes:
            warn("no interrupted verification of this to go on with; all is read")
        try:
            _tell(found, repair=repair, json=json)
        except KeyboardInterrupt:
            warn("interrupted; the same command with --resume goes on")
            raise
    if found.tally.left or found.tally.away:
        raise typer.Exit(1)


def doctor(json: Json = False) -> None:
    """Report present and coming problems, and what to do.

    Checks watches, queue, attributes, reflinks, rights, space, documents and roles. Exit status 1 where something does
    not work; warnings do not count.
    """
    from fsrepl.commands import doctor_facts, reader
    from fsrepl.commands.doctor import Level, findings

    site = open_answering_site()
    said = reader.daemon_status(site.settings)
    there: dict[str, object] | None = None  # where no daemon answers, this process inspects instead
    if said["running"] and "trouble" not in said:
        with contextlib.suppress(FsreplError):
            there = ask_daemon(requests.Diagnose(), answer_within_s=_DOCTOR_S)
    if there is None:  # in child processes, which begin before a bar has its thread
        there = doctor_facts.where_it_works(site)
    with progress.bar("looking at the buckets"):
        found = findings(doctor_facts.facts(site, said, there))
    if json:
        print_json({"Findings": [finding.document() for finding in found]})
    else:
        for finding in found:
            _diagnose(finding)
    if any(finding.level is Level.ERROR for finding in found):
        raise typer.Exit(1)


def _diagnose(finding: Finding) -> None:
    """Print a sign, where and what; below, what to do."""
    sign, color = _SIGNS[finding.level]
    where = f" {finding.where}" if finding.where else ""
    line = shown(f"{finding.area}{where}: {finding.what}")
    if finding.level == "ok":
        typer.echo(f"{coloured(sign, fg=color)} {line}")
        return
    typer.echo(f"{coloured(sign, fg=color, bold=True)} {line}")
    for number, text in enumerate(finding.do.splitlines()):
        typer.echo(f"    {'do: ' if not number else '    '}{shown(text)}")


def _paced(limit: str) -> Callable[[int], None]:
    """Waits after each number of bytes so long that the limit is kept. Raises Usage for a limit that is none."""
    from fsrepl.region.limiter import Limiter
    from fsrepl.settings import kinds

    try:
        limiter = Limiter(kinds.rate(limit))
    except ValueError as error:
        raise Usage(f"--limit {limit}: {error} is expected") from error

    def read(count: int) -> None:
        limiter.sent(count)
        limiter.pause(lambda: False)

    return read


def _runs() -> bool:
    try:
        ask_daemon(requests.FinishTurn(), answer_within_s=_PASS_S)
    except FsreplError:
        return False
    return True


def _settled() -> None:
    """Wait until the regions of a running daemon have finished their present work."""
    with contextlib.suppress(FsreplError):
        ask_daemon(requests.FinishTurn(), answer_within_s=_PASS_S)


def _capture_by_daemon(address: str, found: Sequence[bytes]) -> None:
    """Request the capture of keys. Without a daemon they are captured once one runs: verify itself writes nothing."""
    with contextlib.suppress(FsreplError):
        ask_daemon(requests.Capture(Address.parse_bucket(address), tuple(found)), answer_within_s=_PASS_S)


def _examiner(performer: Performer) -> Callable[[str, bytes], bytes]:
    def examine(address: str, versions: bytes) -> bytes:
        found = performer.perform(requests.Examine(Address.parse_bucket(address), versions))["Found"]
        return base64.b64decode(found)

    return examine


def _capturer(performer: Performer) -> Callable[[str, Sequence[bytes]], None]:
    def capture(address: str, found: Sequence[bytes]) -> None:
        try:
            performer.perform(requests.Capture(Address.parse_bucket(address), tuple(found)))
        except FsreplError as error:
            warn(str(error))

    return capture


def _repairer(performer: Performer) -> Callable[[Difference], None]:
    def repair(difference: Difference) -> None:
        try:
            bucket = Address.parse_bucket(difference.bucket)
            performer.perform(requests.Repair(bucket, difference.path, difference.version, difference.marker))
        except FsreplError as error:
            warn(str(error))
        except OSError as error:
            warn(f"{shown(_name(difference))} was not repaired: {reason(error)}")

    return repair


def _tell(found: Verification, *, repair: bool, json: bool) -> None:
    """Print differences as they are found, however many there are, and the totals."""
    from fsrepl.commands.documents import differences as documents

    tally = found.tally
    number = 0
    if json:
        typer.echo('{\n  "Differences": [', nl=False)
    try:
        for number, difference in enumerate(found.differences(), start=1):
            if json:
                text = textwrap.indent(json_text(documents.difference(difference)), "    ")
                typer.echo((",\n" if number > 1 else "\n") + text, nl=False)
            else:
                repaired = "; repaired" if difference.repaired else ""
                version = difference.version or "-"
                typer.echo(f"{shown(_name(difference))}  {version}  {difference.problem}: {difference.why}{repaired}")
    finally:
        if json:
            end = "\n  ]," if number else "],"
            typer.echo(end + json_text(documents.totals(tally)).removeprefix("{"))
    tell_uncompared(tally)
    if not json:
        _sum_up(tally, repair=repair)


def tell_uncompared(tally: Tally) -> None:
    """Print what could not be compared, and why."""
    for (address, path), number in tally.mounted.items():
        what = f"{counted(number, 'file')} of {address} not compared"
        warn(f"{what}: another filesystem is mounted at {shown(os.fsdecode(path))}")
    for address, why in tally.away.items():
        warn(f"{address} was not compared: {why}")


def _sum_up(tally: Tally, *, repair: bool) -> None:
    result = counted(tally.differences, "difference") if tally.differences else "no differences"
    if repair and tally.differences:
        result += f", {tally.differences - tally.left} of them repaired"
    known = f" and {size_text(tally.known)} that were read before" if tally.known else ""
    say(f"{counted(tally.checked, 'version')}, {size_text(tally.bytes)}{known}: {result}")
    if tally.pending:
        pending = counted(tally.pending, "delivery or change", "deliveries or changes")
        say(f"{pending} pending; `fsrepl wait` waits for them")
    if tally.failed:
        failed = counted(tally.failed, "delivery", "deliveries")
        say(f"{failed} failed, and not compared; `fsrepl status` and `fsrepl why` say more")
    for bucket, found in tally.dates.items():
        number, such = counted(found.number, "version"), f"{keys.shown(found.key)}, {clock.stamp(found.mtime_ns)}"
        say(
            f"{bucket}: this filesystem cannot hold the modification time of {number}, such as that of {such}; "
            "the file has the nearest time that fits, and `fsrepl head` prints the version's own"
        )
    if tally.left and not repair:
        say("--repair repairs what another copy matches")


def _name(difference: Difference) -> str:
    return f"{difference.bucket}/{os.fsdecode(difference.key)}"


def _stored_bytes(found: Verification, journal: Journal | None) -> int:
    """The bytes that are stored on both sides, as far as the journal knows them."""
    buckets = [found.source, *found.destinations]
    return sum(journal.totals.counts(bucket).bytes for bucket in buckets) if journal is not None else 0


@contextlib.contextmanager
def _told_to_daemon(found: Verification, journal: Journal | None) -> Iterator[Callable[[Tally], None]]:
    """Tells a daemon now and then how far the verification is, for `status` and the log. One that does not answer is
    left alone for a while."""
    from fsrepl.region.verifications import REPORTED_S

    source, token, total = Address.parse_bucket(found.source), secrets.token_hex(8), _stored_bytes(found, journal)
    next_s = time.monotonic() + REPORTED_S
    was_told = False

    def tell(done: int, *, is_over: bool = False) -> bool:
        request = requests.NoteVerification(source, token, done, total, is_over)
        with contextlib.suppress(FsreplError, OSError):
            control.ask(state().settings.state, request, REPORTED_S)
            return True
        return False

    def progress(tally: Tally) -> None:
        nonlocal next_s, was_told
        if time.monotonic() >= next_s:
            is_told = tell(tally.bytes + tally.known)
            was_told |= is_told
            next_s = time.monotonic() + (REPORTED_S if is_told else _UNANSWERED_S)

    try:
        yield progress
    finally:
        if was_told:
            tell(0, is_over=True)


@contextlib.contextmanager
def _progress(
    found: Verification, journal: Journal | None, then: Callable[[Tally], None]
) -> Iterator[Callable[[Tally], None]]:  # fmt: skip
    """A bar on the terminal. then: called with each tally too."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task("verifying", total=_stored_bytes(found, journal) or None)
        told_s = 0.0

        def progress(tally: Tally) -> None:
            nonlocal told_s
            then(tally)
            now_s = time.monotonic()
            if now_s - told_s >= _PROGRESS_S:
                told_s = now_s
                bar.update(task, completed=tally.bytes + tally.known, description=f"{tally.checked} versions")

        yield progress
