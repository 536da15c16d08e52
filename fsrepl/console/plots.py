"""Plots as SVG, drawn here and coloured by the style sheet. Pure."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT = 320.0, 96.0
_LEFT, _TOP, _BOTTOM = 2.0, 4.0, 2.0

Points = Sequence[tuple[float, float]]
"""(time, value) in the order of time."""


def plot(
    points: Points, from_s: float, to_s: float, *, title: str, text: Callable[[float], str], ago: str,
    of_bytes: bool = False, unknown: Sequence[tuple[float, float]] = (),
) -> Markup:  # fmt: skip
    """An area from a time to another. text: a value in words; ago: the beginning of the axis in words. of_bytes: values
    are bytes, of which 1,024 are the next unit. unknown: times of which nothing is known, where nothing is drawn."""
    shown = [(at, max(0.0, value)) for at, value in points if from_s <= at <= to_s]
    if len(shown) < 2:
        return _framed(title, "no figures yet", Markup(""), ago, "")
    most = max(value for _, value in shown)
    unit = 1024.0 ** int(math.log(most, 1024)) if of_bytes and most >= 1 else 1.0
    top = _ceiling(most / unit) * unit
    inner = _HEIGHT - _TOP - _BOTTOM

    def place(at: float, value: float) -> str:
        x = _LEFT + (at - from_s) / (to_s - from_s) * (_WIDTH - 2 * _LEFT)
        return f"{x:.1f},{_TOP + inner * (1 - value / top):.1f}"

    drawn = Markup("")
    for part in _parts(shown, [until_s for _, until_s in unknown]):
        line = " ".join(place(*each) for each in part)
        floor = f"{place(part[-1][0], 0)} {place(part[0][0], 0)}"
        drawn += Markup('<polygon class="area" points="{} {}"/><polyline class="line" points="{}"/>').format(
            line, floor, line
        )
    is_known = not unknown or unknown[-1][1] < to_s
    now = f"{text(shown[-1][1])} now" if is_known else "not known now"
    return _framed(title, f"{now}, {text(most)} at most", drawn, ago, text(top))


def _parts(points: Points, ends: Sequence[float]) -> list[Points]:
    """Points cut at times: the first at or after each of these begins a new part."""
    cuts = sorted({bisect.bisect_left(points, (end,)) for end in ends} | {0, len(points)})
    return [points[a:b] for a, b in itertools.pairwise(cuts)]


def _framed(title: str, summary: str, drawn: Markup, ago: str, top: str) -> Markup:
    """The axes around a plot, and the whole of it in words for those who do not see it. top: its upper edge."""
    floor = _HEIGHT - _BOTTOM
    return Markup(
        '<figure class="plot"><figcaption><b>{title}</b> {summary}</figcaption>'
        '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{title}: {summary}" preserveAspectRatio="none">{drawn}'
        '<line class="axis" x1="{l}" y1="{f}" x2="{r}" y2="{f}"/></svg>'
        '<p class="axis-names"><span>{ago}</span>{top}<span>now</span></p></figure>'
    ).format(
        title=title, summary=summary, w=int(_WIDTH), h=int(_HEIGHT), drawn=drawn, l=_LEFT, r=_WIDTH - _LEFT, f=floor,
        ago=ago, top=Markup("<span>up to {}</span>").format(top) if top else "",
    )  # fmt: skip


def _ceiling(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ... that is no smaller; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value * 0.999999)
