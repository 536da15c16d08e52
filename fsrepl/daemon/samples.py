"""Samples of the backlog and of what was replicated over the last day, for plots.

The daemon takes one every ten seconds, or every minute while it has nothing to do, and keeps those of an hour in
memory; the sums of five minutes are kept for a day, also in samples.json in the site's state, which is replaced once in
five minutes and at the daemon's end, so that kill -9 loses five minutes at most. A sample says what time it covers:
plots show a gap where no daemon ran.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterable

from msgspec import Struct, convert
from msgspec.structs import asdict, astuple

from fsrepl.model import json_text
from fsrepl.storage import documents
from fsrepl.storage.fs import Fs

FILE = "samples.json"
HOUR_S, DAY_S = 3600.0, 86400.0
FINE_S, COARSE_S = 10.0, 300.0
"""The steps of the last hour, and of the last day."""
_SHARE = 100
"""Counting that took a millisecond is repeated after so many at the earliest: a backlog of millions takes longer."""
_PAUSE_MAX_S = 60.0
_NUMBER_MAX = 1000
"""Of each kind of step: a daemon that is started again and again ends each time with a short one."""
_FILE_MAX_BYTES = 1 << 20
_VALUE_MAX = 1 << 62
"""More than any time or number that was ever kept: what is greater is damage."""


class Sample(Struct, frozen=True):
    """Deliveries pending at the end of a step and completed in it, of all buckets together.

    time_s: the end, in seconds since the epoch; seconds: for how long before that the daemon looked.
    """

    time_s: float
    seconds: float
    pending: int
    completed: int = 0
    completed_bytes: int = 0

    def then(self, other: Sample) -> Sample:
        """A sample of two steps in a row: of this one, and the other after it."""
        return Sample(
            other.time_s, self.seconds + other.seconds, other.pending, self.completed + other.completed,
            self.completed_bytes + other.completed_bytes,
        )  # fmt: skip


class _Steps:
    """The samples of a span of time, in steps of one length; the last may be incomplete."""

    def __init__(self, span_s: float, step_s: float, kept: Iterable[Sample] = ()) -> None:
        self._span_s, self._step_s = span_s, step_s
        self.kept = deque(kept, maxlen=_NUMBER_MAX)
        self.last: Sample | None = None
        """The step that is going on."""

    def add(self, sample: Sample) -> bool:
        """Whether a step is complete now. Samples from after this one go: the clock was set back."""
        while self.kept and self.kept[-1].time_s > sample.time_s:
            self.kept.pop()
        while self.kept and self.kept[0].time_s < sample.time_s - self._span_s:
            self.kept.popleft()
        self.last = self.last.then(sample) if self.last is not None else sample
        is_complete = self.last.seconds >= self._step_s
        if is_complete:
            self.end()
        return is_complete

    def end(self) -> None:
        """End the step now, before its time is over."""
        if self.last is not None:
            self.kept.append(self.last)
            self.last = None

    def all(self) -> list[Sample]:
        return [*self.kept, *([self.last] if self.last is not None else [])]


class Samples:
    """The samples of a running daemon. One thread takes them; any may read them."""

    def __init__(self, earlier: Iterable[Sample] = ()) -> None:
        """earlier: those of the last day that an earlier daemon kept."""
        known = sorted(earlier, key=lambda each: each.time_s)
        self._hour, self._day = _Steps(HOUR_S, FINE_S, known), _Steps(DAY_S, COARSE_S, known)
        self._guard = threading.Lock()
        self._looked: tuple[float, int, int] | None = None
        self._due_s = float("-inf")

    def is_due(self, monotonic_s: float) -> bool:
        """Whether it is time to count what is pending."""
        return monotonic_s >= self._due_s

    def take(self, now_s: float, monotonic_s: float, pending: int, completed: tuple[int, int], took_s: float) -> bool:
        """Take a sample; whether those of the day should be saved.

        completed: number and bytes of all deliveries since the start; took_s: how long it took to count.
        """
        self._due_s = monotonic_s + min(_PAUSE_MAX_S, max(FINE_S, _SHARE * took_s))
        before, self._looked = self._looked, (monotonic_s, *completed)
        if before is None:
            return False
        seconds, number, size = (new - old for new, old in zip(self._looked, before, strict=True))
        sample = Sample(now_s, seconds, pending, int(number), int(size))
        with self._guard:
            self._hour.add(sample)
            return self._day.add(sample)

    def document(self) -> dict[str, object]:
        """{"Hour", "Day"}, each a list of samples, the oldest first."""
        with self._guard:
            return {"Hour": [*map(asdict, self._hour.all())], "Day": [*map(asdict, self._day.all())]}

    def end(self) -> None:
        """The daemon stops: what is incomplete is kept."""
        with self._guard:
            self._day.end()

    def save(self, fs: Fs, state: str) -> None:
        """Keep those of the day. Raises OSError."""
        with self._guard:
            data = json.dumps({"Samples": [*map(asdict, self._day.kept)]}, separators=(",", ":")).encode()
        fd = fs.open_root(state)
        try:
            documents.write_bytes(fs, fd, FILE.encode(), data, durable=False)
        finally:
            fs.close(fd)


def load(state: str) -> list[Sample]:
    """The samples that the last daemon kept; none where there are none, or they cannot be read."""
    try:
        with open(os.path.join(state, FILE), "rb") as file:
            found = convert(json_text.loads(file.read(_FILE_MAX_BYTES))["Samples"], list[Sample])
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [each for each in found if all(0 <= value < _VALUE_MAX for value in astuple(each))]
