"""The overview: regions, buckets, rules, what is wrong and how to mend it, plots, transfers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from msgspec import Struct

from fsrepl.commands.notes import Kind, notes_of
from fsrepl.commands.reader import Document
from fsrepl.console import history, plots
from fsrepl.console.history import History, Sample
from fsrepl.console.pages.rendering import Frame, render, shown, url
from fsrepl.model.amounts import size_text

_NAMES_MAX = 5
_SILENT = frozenset({Kind.SKIPPED, Kind.MOVING})
"""Notes that are no problem."""


class Remedy(Struct, frozen=True):
    """A button that mends something (a form to `action`), or a link to where that is done."""

    label: str
    action: str
    is_form: bool = True


class Problem(Struct, frozen=True):
    text: str
    remedies: tuple[Remedy, ...] = ()


def page(frame: Frame, live: str) -> str:
    """The whole page around its live part."""
    return render("overview.html", frame, live=Markup(live))


def live(frame: Frame, status: Document | None, regions: Sequence[Document], record: History, now_s: float) -> str:
    """The part that is sent again when something changed. status None: not counted yet."""
    if status is None:
        return render("_counting.html", frame)
    return render(
        "_overview.html", frame,
        daemon=status["daemon"],
        regions=regions,
        buckets=status["buckets"],
        known={bucket["bucket"] for bucket in status["buckets"]},
        rules=[(bucket, rule) for bucket in status["buckets"] for rule in bucket["rules"]],
        transfers=status["transfers"],
        problems=problems(status),
        plots=_plots(record, now_s),
        looked=looked(record, now_s),
    )  # fmt: skip


def problems(status: Document) -> list[Problem]:
    """What is wrong, each with what mends it."""
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


def _plots(record: History, now_s: float) -> list[Markup]:
    found = []
    for samples, span_s, ago in ((record.hour, history.HOUR_S, "1 h ago"), (record.day, history.DAY_S, "24 h ago")):
        kept = list(samples)
        unknown = history.unknown(kept, now_s - span_s)
        name = "Last hour" if span_s == history.HOUR_S else "Last day"
        found += [
            plots.plot(
                _pending(kept), now_s - span_s, now_s, title=f"{name}, pending:", text=lambda v: f"{v:,.0f}", ago=ago,
                unknown=unknown,
            ),
            plots.plot(
                [(at, 60 * rate) for at, rate in history.rates(kept, "completed")], now_s - span_s, now_s,
                title=f"{name}, replicated:", text=lambda v: f"{v:,.0f}/min", ago=ago,
            ),
            plots.plot(
                history.rates(kept, "completed_bytes"), now_s - span_s, now_s, title=f"{name}, throughput:",
                text=lambda v: f"{size_text(v)}/s", ago=ago, of_bytes=True,
            ),
        ]  # fmt: skip
    return found


def looked(record: History, now_s: float) -> str:
    """Of what time the plots know nothing, in a sentence; empty where they have the whole day."""
    unknown = history.unknown(list(record.day), now_s - history.DAY_S)
    if not record.day:
        return "There are no figures yet: the console takes them while it runs."
    if not unknown:
        return ""
    before = [until_s for from_s, until_s in unknown if from_s <= now_s - history.DAY_S]
    gaps = [f"from {_time(a)} to {_time(b)}" for a, b in unknown if a > now_s - history.DAY_S]
    since = f" They begin on {_time(before[0], dated=True)} UTC." if before else ""
    without = f" It did not look {', '.join(gaps)} UTC: what was pending then is not known." if gaps else ""
    return (
        f"The console takes these figures while it runs.{since}{without} The service fsrepl-console keeps it running."
    )


def _time(time_s: float, *, dated: bool = False) -> str:
    return time.strftime("%Y-%m-%d at %H:%M" if dated else "%H:%M", time.gmtime(time_s))


def _pending(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    return [(sample.time_s, float(sample.pending)) for sample in samples]
