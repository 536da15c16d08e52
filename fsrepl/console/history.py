"""What the plots show: the site's backlog and completed deliveries, looked at now and then, over a day.

Kept in console.json in the site's state, so that a restart of the console keeps the plots. Nothing else has figures of
the past: the journal has what is so now, and the events only what a person asked to be told. So the page says since
when there are any, and while no console looked.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from fsrepl.storage import documents
from fsrepl.storage.fs import Fs
from fsrepl.storage.site import Site

FILE = "console.json"
HOUR_S, DAY_S = 3600.0, 86400.0
FINE_S, COARSE_S = 10.0, 300.0
"""The steps of the last hour, and of the last day."""
GAP_S = 3 * COARSE_S
"""Between samples so far apart no console looked: of what an earlier one saw, the steps of the day are kept."""


class Sample(Struct, frozen=True):
    """All buckets together. time_s counts from the epoch; completed and completed_bytes since a rule began."""

    time_s: float
    pending: int
    pending_bytes: int
    failed: int
    completed: int
    completed_bytes: int


def sample_of(status: dict[str, Any], time_s: float) -> Sample:
    """The sums in a document of `fsrepl status`."""
    buckets = status["buckets"]
    rules = [rule for bucket in buckets for rule in bucket["rules"]]
    return Sample(
        time_s,
        sum(bucket["pending"] for bucket in buckets),
        sum(bucket["pending_bytes"] for bucket in buckets),
        sum(bucket["failed"] for bucket in buckets),
        sum(rule["completed"] for rule in rules),
        sum(rule["completed_bytes"] for rule in rules),
    )


class History:
    """Samples of the last hour in small steps, and of the last day in larger ones."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self.hour: deque[Sample] = deque()
        self.day: deque[Sample] = deque()
        for sample in sorted(samples, key=lambda each: each.time_s):
            self.add(sample)

    def add(self, sample: Sample) -> bool:
        """Keep a sample where the last one is old enough; whether one of the day was added.

        Samples from after it go: the clock was set back.
        """
        added = False
        for kept, span_s, step_s in ((self.hour, HOUR_S, FINE_S), (self.day, DAY_S, COARSE_S)):
            while kept and kept[-1].time_s > sample.time_s:
                kept.pop()
            if not kept or sample.time_s - kept[-1].time_s >= step_s * 0.95:
                kept.append(sample)
                added = kept is self.day
            while kept[0].time_s < sample.time_s - span_s:
                kept.popleft()
        return added


def unknown(samples: Sequence[Sample], from_s: float) -> list[tuple[float, float]]:
    """Since a time, when no console looked: before the first sample, and between two that are far apart."""
    kept = [sample.time_s for sample in samples if sample.time_s >= from_s]
    times = [from_s, *kept]
    return [(a, b) for a, b in zip(times, kept, strict=False) if b - a > GAP_S]


def rates(samples: Sequence[Sample], of: str) -> list[tuple[float, float]]:
    """(time, growth a second since the sample before) of one of the counts. A count that fell, as after lifecycle or in
    a journal built anew, says nothing about deliveries, and counts as none."""
    found = []
    for before, after in zip(samples, list(samples)[1:], strict=False):
        seconds = after.time_s - before.time_s
        if seconds > 0:
            found.append((after.time_s, max(0.0, getattr(after, of) - getattr(before, of)) / seconds))
    return found


def load(state: str) -> History:
    """The kept samples; none where there are none, or they cannot be read."""
    try:
        with open(os.path.join(state, FILE), encoding="utf-8") as file:
            return History(Sample(**each) for each in json.load(file)["Samples"])
    except (OSError, ValueError, TypeError, KeyError):
        return History()


def save(site: Site, history: History) -> None:
    """Keep the samples of the day. Raises OSError."""
    document = {"Samples": [asdict(sample) for sample in history.day]}
    fs = Fs()
    fd = fs.open_root(site.state)
    try:
        documents.write_bytes(fs, fd, FILE.encode(), json.dumps(document).encode(), durable=False)
    finally:
        fs.close(fd)
