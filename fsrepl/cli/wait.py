"""fsrepl wait, retry: until it is there, and once more."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from fsrepl.cli import completion
from fsrepl.cli.common import (
    STARTING_S,
    Json,
    await_daemon,
    counted,
    is_terminal,
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
"""Longer than the daemon takes to notice that time is up: after that it hangs."""


def register(app: typer.Typer) -> None:
    app.command()(wait)
    app.command()(retry)


def _parse_scope(text: str) -> Address | None:
    return Address.parse(text) if text else None


def wait(
    scope: Annotated[
        Address | None,
        typer.Argument(
            metavar="REGION/BUCKET[/KEY]",
            help="Only for a source bucket, or an object; else for the whole site.",
            parser=_parse_scope,
            autocompletion=completion.objects,
        ),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", min=0, help="Seconds; without it, for ever.")] = None,
    json: Json = False,
) -> None:
    """Wait until all that was dropped before this call is there.

    Exit status 0: every file is replicated, but for those that are still open for writing; 1: some of it failed,
    cannot be captured or shown, or may lie in a region that is away, and is named; 4: time is up; 5: the daemon is
    not running.
    """
    stop = threading.Event()
    if is_terminal() and not state().quiet:
        threading.Thread(target=_progress, args=(stop,), daemon=True).start()
    try:
        within_s = None if timeout is None else timeout + _GRACE_S
        patience_s = STARTING_S if timeout is None else min(STARTING_S, timeout)
        answer = await_daemon(requests.Wait(scope, timeout), answer_within_s=within_s, patience_s=patience_s)
    finally:
        stop.set()
    for name in answer["open"]:
        warn(f"not waited for, since it is open for writing: {shown(name)}")
    for each in answer["unreadable"]:
        warn(f"not captured, since it cannot be read: {each}")
    for name in answer["mounts"]:
        warn(f"not looked into, since another filesystem is mounted there: {name}")
    for each in answer["unshown"]:
        warn(f"stored, and not shown yet: {each}")
    if answer["more"]:
        warn(f"and {answer['more']:,} more; `fsrepl status --all` names them")
    for each in dict.fromkeys(answer["away"] + answer["replicas_away"]):
        warn(f"not looked into: {each}")
    for name in answer["unruled"]:
        warn(f"no rule chose {shown(name)}; `fsrepl why` tells more")
    if answer["failed"]:
        failed = counted(answer["failed"], "delivery", "deliveries")
        warn(f"{failed} failed; `fsrepl status` shows where, `fsrepl why` the reason")
    for each in answer["trouble"]:
        warn(each)
    if answer["pending"]:
        warn(
            f"time is up; still pending: {counted(answer['pending'], 'delivery or capture', 'deliveries or captures')}"
        )
    if json:
        print_json(answer)
    if any(answer[reason] for reason in ("failed", "unreadable", "mounts", "unshown", "away")):
        raise typer.Exit(1)
    if answer["pending"]:
        raise typer.Exit(4)


def _progress(stop: threading.Event) -> None:
    """A line that tells a waiting person what is left."""
    from rich.console import Console

    from fsrepl.cli.common import open_site
    from fsrepl.commands import reader, status

    console = Console(stderr=True)
    with console.status("waiting") as line:
        while not stop.wait(_PROGRESS_S):
            found = status.status(open_site(), reader.daemon_status(state().settings))
            pending = sum(b["pending"] for b in found["buckets"])
            size = sum(b["pending_bytes"] for b in found["buckets"])
            line.update(f"waiting: {pending} deliveries, {size_text(size)}")


def retry(
    scope: Annotated[
        Address | None,
        typer.Argument(
            metavar="REGION/BUCKET[/KEY]",
            help="A source bucket, or an object.",
            parser=_parse_scope,
            autocompletion=completion.objects,
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that failed in this site.")] = False,
    json: Json = False,
) -> None:
    """Try again what FAILED or waits for its next try, at once."""
    if (scope is not None) == all_:
        raise Usage("what? name REGION/BUCKET, REGION/BUCKET/KEY, or --all")
    answer = await_daemon(requests.Retry(scope))
    print_json(answer) if json else say(f"tried again: {counted(answer['Retried'], 'delivery', 'deliveries')}")
    for why in answer.get("LeftOut", []):
        warn(f"left out: {why}")
    if "LeftOut" in answer:
        raise typer.Exit(1)
