"""fsrepl wait, retry: wait until all is replicated; try failed deliveries again."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fsrepl.cli import completion, progress
from fsrepl.cli.common import (
    STARTING_S,
    Json,
    await_daemon,
    counted,
    print_json,
    say,
    shown,
    size_text,
    state,
    warn,
)
from fsrepl.daemon import requests
from fsrepl.errors import Usage
from fsrepl.model.address import Address

_PROGRESS_S = 0.5
_GRACE_S = 15.0
"""Longer than the daemon takes to notice a timeout: without an answer after that, the daemon hangs."""
_TIMEOUT_MAX_S = 1e9
"""30 years. A longer timeout is no limit, and is more than sockets and locks take."""


def register(app: typer.Typer) -> None:
    app.command()(wait)
    app.command()(retry)


def _parse_timeout(seconds: float | None) -> float | None:
    if seconds is not None and math.isnan(seconds):
        raise typer.BadParameter("it is not a number of seconds")
    return None if seconds is not None and seconds > _TIMEOUT_MAX_S else seconds


def wait(
    scope: Annotated[
        Address | None,
        typer.Argument(
            metavar="REGION/BUCKET[/KEY]",
            help="Only this source bucket or object. Default: the whole site.",
            parser=Address.parse,
            autocompletion=completion.objects,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, callback=_parse_timeout, help="Wait at most S seconds. Default: no limit."),
    ] = None,
    json: Json = False,
) -> None:
    """Wait until every file from before this call is replicated.

    Exit status 0: every file is replicated, except files that are still open for writing; 1: some failed, cannot be
    captured or shown, are held after a mass deletion, or may lie in a region that is away, and are named; 4: timed
    out; 5: the daemon is not running.
    """
    within_s = None if timeout is None else timeout + _GRACE_S
    patience_s = STARTING_S if timeout is None else min(STARTING_S, timeout)
    with _told():
        answer = await_daemon(requests.Wait(scope, timeout), answer_within_s=within_s, patience_s=patience_s)
    for each in answer["failures"]:
        warn(f"failed: {each}")
    for name in answer["open"]:
        warn(f"not waited for, since it is open for writing: {shown(name)}")
    for each in answer["unreadable"]:
        warn(f"not captured, since it cannot be read: {each}")
    for name in answer["mounts"]:
        warn(f"not scanned, since another filesystem is mounted there: {name}")
    for each in answer["unshown"]:
        warn(f"stored, and not shown yet: {each}")
    if answer["more"]:
        warn(f"and {answer['more']:,} more; `fsrepl status --all` names them")
    for each in dict.fromkeys(answer["away"] + answer["replicas_away"]):
        warn(f"not scanned: {each}")
    for name in answer["unruled"]:
        warn(f"no rule chose {shown(name)}; `fsrepl why` says more")
    if answer["failed"]:
        failed = counted(answer["failed"], "delivery", "deliveries")
        warn(f"{failed} failed; `fsrepl status` shows where, and `fsrepl why` gives the reason")
    for each in answer["trouble"] + answer.get("halted", []):
        warn(each)
    if answer["pending"]:
        warn(f"timed out; still pending: {counted(answer['pending'], 'delivery or capture', 'deliveries or captures')}")
    if json:
        print_json(answer)
    if any(answer.get(reason) for reason in ("failed", "unreadable", "mounts", "unshown", "away", "halted")):
        raise typer.Exit(1)
    if answer["pending"]:
        raise typer.Exit(4)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Show a waiting person what is left, on one line."""
    if not progress.is_wanted():
        yield
        return
    stop = threading.Event()
    threading.Thread(target=_tell_left, args=(stop,), daemon=True).start()
    try:
        with progress.alone():
            yield
    finally:
        stop.set()


def _tell_left(stop: threading.Event) -> None:
    from rich.console import Console

    from fsrepl.cli.common import open_site
    from fsrepl.commands import reader, status

    console = Console(stderr=True)
    with console.status("waiting") as line:
        while not stop.wait(_PROGRESS_S):
            line.update(left(status.status(open_site(), reader.daemon_status(state().settings))))


def left(found: dict[str, Any]) -> str:
    """The remaining work, by a document of `fsrepl status`: first the scans, without which no change is known."""
    scanning = [b for b in found["buckets"] if b.get("scanning")]
    pending = sum(b["pending"] for b in found["buckets"])
    size = sum(b["pending_bytes"] for b in found["buckets"])
    text = f"waiting: {counted(pending, 'delivery', 'deliveries')}, {size_text(size)}"
    if scanning:
        of, objects = len(found["buckets"]), sum(b["objects"] for b in scanning)
        return f"scanning {len(scanning)} of {counted(of, 'bucket')}, {counted(objects, 'object')} so far; {text}"
    return text


def retry(
    scope: Annotated[
        Address | None,
        typer.Argument(
            metavar="REGION/BUCKET[/KEY]",
            help="A source bucket, or an object.",
            parser=Address.parse,
            autocompletion=completion.objects,
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All failed deliveries of this site.")] = False,
    destination: Annotated[
        str,
        typer.Option(metavar="DST", help="Only failures to this bucket.", autocompletion=completion.buckets),
    ] = "",
    reason: Annotated[
        str, typer.Option(metavar="REASON", help="Only failures for this reason, as `why` gives it.")
    ] = "",
    json: Json = False,
) -> None:
    """Try deliveries again at once that FAILED or wait for their next try."""
    if (scope is not None) == all_:
        raise Usage("the scope is missing, or given twice; name either REGION/BUCKET, REGION/BUCKET/KEY, or --all")
    answer = await_daemon(requests.Retry(scope, destination=destination, reason=reason))
    print_json(answer) if json else say(f"tried again: {counted(answer['Retried'], 'delivery', 'deliveries')}")
    for why in answer.get("LeftOut", []):
        warn(f"left out: {why}")
    if "LeftOut" in answer:
        raise typer.Exit(1)
