"""The screen of `fsrepl status`: in colour on a terminal, plain text in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fsrepl.cli.common import counted, duration_text, shown, size_text
from fsrepl.commands.notes import notes_of

_PIPE_WIDTH = 10_000


_NARROW = 100
"""On a terminal with fewer columns the names of a rule stand in one column."""
_NAMES_MAX = 5
"""How many names of a kind are shown of a bucket, so that the screen stays short."""


def show(document: dict[str, Any], *, every_name: bool = False) -> None:
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # output for a program: lines are not cut off
    console.print(render(document, None if every_name else _NAMES_MAX, narrow=console.width < _NARROW))


def watch(now: Callable[[], dict[str, Any]], every_s: float) -> NoReturn:
    """Refresh the screen until interrupted."""
    with Live(refresh_per_second=4, screen=True) as live:
        while True:
            live.update(render(now(), narrow=live.console.width < _NARROW), refresh=True)
            time.sleep(every_s)


def render(
    document: dict[str, Any], names_max: int | None = _NAMES_MAX, *, narrow: bool = False
) -> RenderableType:  # fmt: skip
    """The screen. narrow: for a terminal of 80 columns: names are folded, and numbers are never cut."""
    parts: list[RenderableType] = [
        _daemon(document["daemon"]),
        _buckets(document["buckets"], document.get("unattached", [])),
    ]
    rules = [(bucket, rule) for bucket in document["buckets"] for rule in bucket["rules"]]
    if rules:
        parts += ["", _rules(rules, narrow=narrow), *_large(rules)]
    parts += [line for line in (_noncurrent(document["buckets"]), _scrub(document["buckets"])) if line is not None]
    if document["transfers"]:
        parts += ["", _transfers(document["transfers"], narrow=narrow)]
    notes = dict.fromkeys(note.text for bucket in document["buckets"] for note in notes_of(bucket, names_max))
    troubles = [tier["Trouble"] for tier in document.get("tiers", []) if tier.get("Trouble")]
    notes = dict.fromkeys([*document.get("unattached", []), *troubles, *notes])
    if notes:  # a region that is away is named once, however many buckets it has
        parts += ["", *(Text(f"! {shown(note)}", style="yellow") for note in notes)]
    return Group(*parts)


def _daemon(daemon: dict[str, Any]) -> Text:
    if not daemon["running"]:
        return Text("○ the daemon is not running; `fsrepl daemon` starts it\n", style="red")
    if "trouble" in daemon:
        return Text(f"● {shown(daemon['trouble'])}\n", style="red")
    state = "ready" if daemon["ready"] else "scanning the buckets"
    text = Text(f"● running, {state}", style="green" if daemon["ready"] else "yellow")
    text.append(
        f"   pid {daemon['pid']}   since {daemon['since'][:19]}Z   watching {daemon.get('watched', 0)} directories"
    )
    if daemon.get("events_lost"):
        text.append(f"   events were lost {daemon['events_lost']} times; scans found the changes", style="yellow")
    if daemon.get("stuck"):
        text.append(f"   no progress in {', '.join(daemon['stuck'])}: its filesystem hangs", style="red")
    text.append("\n")
    return text


_SHORT = ("STATE", "STATUS", "")
"""Columns that are left whole, beside those of numbers."""


def _table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """A table. Names are folded where the terminal is too narrow, numbers and states never."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(
            column, justify="right" if i in right else "left", no_wrap=i in right or column in _SHORT, overflow="fold"
        )
    return table


def _buckets(buckets: list[dict[str, Any]], unattached: list[str]) -> RenderableType:
    if unattached and not buckets:
        return Text("no buckets are known")
    if not buckets:
        return Text("no buckets yet; `fsrepl bucket create REGION/BUCKET --versioning` creates one")
    table = _table(
        "BUCKET", "STATE", "OBJECTS", "VERSIONS", "SIZE", "PENDING", "FAILED", "LAG", right=(2, 3, 4, 5, 6, 7)
    )
    for b in buckets:
        state = Text("online", style="green") if b["online"] else Text("OFFLINE", style="red")
        if b["online"] and b.get("scanning"):
            state = Text("scanning", style="cyan")
        elif b["online"] and not b.get("seen", True):
            state = Text("not seen yet", style="dim")  # elsewhere: the daemon looks at it
        elif b["online"] and not b["versioning"]:
            state = Text("unversioned", style="dim")
        elif b["online"] and b["versioning"] == "Suspended":
            state = Text("suspended", style="yellow")
        if b["online"] and b.get("halted"):
            state = Text("HALTED", style="red")
        table.add_row(
            Text(b["bucket"]),
            state,
            f"{b['objects']:,}",
            f"{b['versions']:,}",
            size_text(b["bytes"]),
            _number(b["pending"], "yellow"),
            _number(b["failed"], "red"),
            duration_text(b["lag_seconds"]),
        )
    return table


def _noncurrent(buckets: list[dict[str, Any]]) -> Text | None:
    """How much of all content is that of noncurrent versions; `fsrepl du` has it by bucket and class."""
    held = sum(bucket.get("noncurrent_bytes", 0) for bucket in buckets)
    if not held:
        return None
    return Text(
        f"noncurrent versions hold {size_text(held)} of {size_text(sum(b['bytes'] for b in buckets))}", style="dim"
    )


def _scrub(buckets: list[dict[str, Any]]) -> Text | None:
    """The last results of all scrubs in one line; `fsrepl scrub status` has one for each bucket."""
    found = [bucket["scrub"] for bucket in buckets if "scrub" in bucket]
    ended = [each["last"] for each in found if "last" in each]
    damaged = sum(each["damaged"] for each in ended) + sum(each.get("current", {}).get("damaged", 0) for each in found)
    if not ended and not damaged:
        return None
    parts = [f"scrub: {damaged:,} damaged"]
    if ended:
        oldest = min(each["ended"] for each in ended)[:19]
        parts.append(f"{len(ended)} of {counted(len(found), 'bucket')} complete, the oldest {oldest}Z")
    if paused := sum(each["paused"] for each in found):
        parts.append(f"paused in {counted(paused, 'bucket')}")
    return Text("; ".join(parts), style="red" if damaged else "dim")


def _large(rules: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Text]:
    """How much of the large objects crossed, by rule."""
    for bucket, rule in rules:
        if "large_bytes" in rule:
            size, crossed = size_text(rule["large_bytes"]), size_text(rule["large_bytes_crossed"])
            text = f"large objects of {bucket['bucket']} to {rule['destination']}: {size} delivered, {crossed} crossed"
            yield Text(text, style="dim")


def _number(count: int, style: str) -> Text:
    return Text(f"{count:,}", style=style if count else "")


def _rules(rules: list[tuple[dict[str, Any], dict[str, Any]]], *, narrow: bool) -> Table:
    names = ("RULE",) if narrow else ("SOURCE", "RULE", "DESTINATION")
    first = len(names) + 1
    table = _table(
        *names, "STATUS", "PENDING", "FAILED", "COMPLETED", "LAG", right=(first, first + 1, first + 2, first + 3)
    )
    for bucket, rule in rules:
        style = {"Enabled": "green", "Disabled": "dim"}.get(rule["status"], "yellow")
        source, name, destination = bucket["bucket"], shown(rule["id"]), rule["destination"]
        told = (f"{source} to {destination}, {name}",) if narrow else (source, name, destination)
        table.add_row(
            *(Text(each) for each in told),  # as Text: brackets in a name are not markup
            Text(rule["status"], style=style),
            _number(rule["pending"], "yellow"),
            _number(rule["failed"], "red"),
            f"{rule['completed']:,}",
            duration_text(rule["lag_seconds"]),
        )
    return table


def _transfers(transfers: list[dict[str, Any]], *, narrow: bool) -> Table:
    table = _table(*(("TRANSFER",) if narrow else ("TRANSFER", "TO")), "", "DONE", right=(2 if narrow else 3,))
    table.columns[-1].no_wrap = not narrow
    for t in transfers:
        key, to = shown(t["key"]) or "all versions", _doing(t)
        table.add_row(
            *(Text(each) for each in ((f"{key} to {to}",) if narrow else (key, to))),
            ProgressBar(total=max(1, t["bytes_total"]), completed=t["bytes_done"], width=10 if narrow else 30),
            f"{_share(t, 'bytes_done')} of {size_text(t['bytes_total'])}"
            + (f", {_share(t, 'bytes_verified')} verified" if "bytes_verified" in t else "")
            + _pace(t)
            + _stalled(t.get("stalled_seconds")),
        )
    return table


def _share(transfer: dict[str, Any], done: str) -> str:
    return f"{100 * transfer[done] / max(1, transfer['bytes_total']):.0f} %"


def _doing(transfer: dict[str, Any]) -> str:
    """Where a transfer goes, or what is done within its bucket."""
    if transfer["source"] != transfer["destination"]:
        return str(transfer["destination"]) + (", being prepared" if transfer.get("what") == "preparing" else "")
    done = {"scrubbing": "scrubbed", "verifying": "verified"}.get(transfer.get("what", ""), "captured")
    return f"{transfer['source']}, being {done}"


def _pace(transfer: dict[str, Any]) -> str:
    """How fast it is, and the time that is left; then the part that crosses, where the destination has the rest."""
    parts = []
    if "bytes_per_second" in transfer:
        parts.append(f"{size_text(transfer['bytes_per_second'])}/s, {duration_text(transfer['eta_seconds'])} left")
    if transfer["bytes_done"] > transfer.get("bytes_crossed", transfer["bytes_done"]):
        parts.append(f"{size_text(transfer['bytes_crossed'])} crossed")
    return "".join(f", {part}" for part in parts)


def _stalled(seconds: float | None) -> str:
    return f", no progress for {seconds:.0f} s" if seconds else ""
