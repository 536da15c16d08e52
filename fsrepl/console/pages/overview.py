"""The overview: regions, buckets, rules, problems and their remedies, plots, transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from msgspec import Struct

from fsrepl.commands.notes import Kind, notes_of
from fsrepl.commands.reader import Document, Record
from fsrepl.console.pages import backlog
from fsrepl.console.pages.rendering import Frame, render, shown, url

_NAMES_MAX = 5
_SILENT = frozenset({Kind.SKIPPED, Kind.MOVING})
"""Notes that are no problem."""


class Remedy(Struct, frozen=True):
    """A button that repairs something (a form to `action`), or a link to the page for that."""

    label: str
    action: str
    is_form: bool = True


class Problem(Struct, frozen=True):
    text: str
    remedies: tuple[Remedy, ...] = ()


def page(frame: Frame, live: str) -> str:
    """The whole page around its live part."""
    return render("overview.html", frame, live=Markup(live))


def counting(frame: Frame) -> str:
    """The part of the page before the site was looked at for the first time."""
    return render("_counting.html", frame)


def live(frame: Frame, status: Document, regions: Sequence[Document], record: Record, now_s: float) -> str:
    """The part that is sent again when something changed."""
    return render(
        "_overview.html", frame,
        daemon=status["daemon"],
        regions=regions,
        buckets=status["buckets"],
        known={bucket["bucket"] for bucket in status["buckets"]},
        rules=[(bucket, rule) for bucket in status["buckets"] for rule in bucket["rules"]],
        transfers=status["transfers"],
        problems=problems(status),
        plots=backlog.plots_of(record, now_s),
        not_known=backlog.not_known(record.day, now_s),
    )  # fmt: skip


def problems(status: Document) -> list[Problem]:
    """The problems, each with its remedies."""
    found: dict[str, Problem] = {}
    daemon = status["daemon"]
    if not daemon["running"]:
        found[""] = Problem("The daemon is not running: nothing is captured or replicated. `fsrepl daemon` starts it.")
    elif "trouble" in daemon:
        found[""] = Problem(shown(daemon["trouble"]))
    for region in daemon.get("stuck") or ():
        found[region] = Problem(f"No progress in region {region}: its filesystem hangs.")
    tiers = [tier["Trouble"] for tier in status.get("tiers", ()) if tier.get("Trouble")]
    for text in (*status.get("unattached", ()), *tiers):
        found[text] = Problem(shown(text))
    for tier in status.get("tiers", ()):
        if tier.get("Trouble"):
            found[tier["Tier"]] = Problem(shown(tier["Trouble"]))
    for bucket in status["buckets"]:
        for note in notes_of(bucket, _NAMES_MAX):
            if note.kind not in _SILENT:  # a region that is away is named once, however many buckets it has
                found.setdefault(note.text, Problem(shown(note.text), _remedies(note.kind, bucket)))
    return list(found.values())


def _remedies(kind: Kind, bucket: dict[str, Any]) -> tuple[Remedy, ...]:
    address = bucket["bucket"]
    match kind:
        case Kind.HALTED:
            since = bucket["halted"]["since"]
            return (
                Remedy("Bring the files back", url("/undelete", bucket=address, since=since), is_form=False),
                Remedy("Let the deletions cross", url("/acknowledge", bucket=address), is_form=False),
            )
        case Kind.WAITING:
            return (Remedy("Try again now", url("/retry", bucket=address)),)
        case Kind.FAILED:
            return (
                Remedy("Show failures", url("/deliveries", bucket=address, status="FAILED"), is_form=False),
                Remedy("Retry all", url("/retry", bucket=address)),
            )
        case _:
            return ()
