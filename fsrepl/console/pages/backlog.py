"""Backlog and throughput of the last hour and day: the plots, and the times that no sample covers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from markupsafe import Markup

from fsrepl.commands.reader import Record
from fsrepl.console import plots
from fsrepl.daemon.samples import DAY_S, HOUR_S, Sample
from fsrepl.model.amounts import size_text

_GAP_S = 120.0
"""Between two samples the daemon pauses for less."""
_NAMED = 4
"""How many gaps are named, the last ones."""

Gaps = list[tuple[float, float]]


def plots_of(record: Record, now_s: float) -> list[Markup]:
    """Pending, replicated and throughput of the hour; then those of the day."""
    return [
        *_plots(record.hour, "Last hour", "1 h ago", now_s - HOUR_S, now_s),
        *_plots(_even(record.day), "Last day", "24 h ago", now_s - DAY_S, now_s),
    ]


def _even(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples without a short one at the end, whose rate would stand out: it is a part of the one before it."""
    if len(samples) < 2:
        return samples
    *others, before, last = samples
    is_next = last.time_s - last.seconds - before.time_s < _GAP_S
    return [*others, before.then(last)] if is_next and last.seconds < before.seconds / 2 else samples


def _plots(samples: Sequence[Sample], name: str, ago: str, from_s: float, now_s: float) -> list[Markup]:
    gaps = unknown(samples, from_s, now_s)

    def plot(what: str, value: Callable[[Sample], float], text: Callable[[float], str], *, of_bytes: bool) -> Markup:
        return plots.plot(
            points(samples, value), from_s, now_s, title=f"{name}, {what}:", text=text, ago=ago, of_bytes=of_bytes,
            unknown=gaps,
        )  # fmt: skip

    return [
        plot("pending", lambda s: float(s.pending), lambda v: f"{v:,.0f}", of_bytes=False),
        plot("replicated", lambda s: 60 * _rate(s, s.completed), lambda v: f"{v:,.0f}/min", of_bytes=False),
        plot("throughput", lambda s: _rate(s, s.completed_bytes), lambda v: f"{size_text(v)}/s", of_bytes=True),
    ]


def _rate(sample: Sample, number: int) -> float:
    """The rate of a number in the sample's step, in 1/s."""
    return number / sample.seconds if sample.seconds > 0 else 0.0


def points(samples: Sequence[Sample], value: Callable[[Sample], float]) -> list[tuple[float, float]]:
    """(time, value) of each sample; the first after a gap also at the beginning of its step."""
    found: list[tuple[float, float]] = []
    known_s = float("-inf")
    for sample in samples:
        began_s = sample.time_s - sample.seconds
        if began_s - known_s > _GAP_S:
            found.append((began_s, value(sample)))
        found.append((sample.time_s, value(sample)))
        known_s = sample.time_s
    return found


def unknown(samples: Sequence[Sample], from_s: float, to_s: float) -> Gaps:
    """The parts of a time in which no daemon looked."""
    found: Gaps = []
    known_s = from_s
    for sample in samples:
        if sample.time_s <= from_s:
            continue
        if (began_s := sample.time_s - sample.seconds) - known_s > _GAP_S:
            found.append((known_s, began_s))
        known_s = max(known_s, sample.time_s)
    return [*found, (known_s, to_s)] if to_s - known_s > _GAP_S else found


def not_known(samples: Sequence[Sample], now_s: float) -> str:
    """Of which parts of the last day nothing is known, in a sentence; empty where all of it is."""
    gaps = unknown(samples, now_s - DAY_S, now_s)
    if not any(sample.time_s > now_s - DAY_S for sample in samples):
        return "There are no figures of the last day: the daemon takes them while it runs."
    if not gaps:
        return ""
    said = [_span(a, b, now_s) for a, b in gaps[-_NAMED:]]
    more = len(gaps) - len(said)
    also = f", and {more:,} times before" if more else ""
    return f"The daemon takes these figures while it runs; there are none {', '.join(said)}{also} (UTC)."


def _span(from_s: float, to_s: float, now_s: float) -> str:
    if from_s <= now_s - DAY_S:
        return f"until {_time(to_s)}"
    return f"since {_time(from_s)}" if to_s >= now_s else f"from {_time(from_s)} to {_time(to_s)}"


def _time(time_s: float) -> str:
    return time.strftime("%d %b %H:%M", time.gmtime(time_s))
