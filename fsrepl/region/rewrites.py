"""Pure: whether so much of a bucket was rewritten with content that looks encrypted that a person is told.

Malware that encrypts files in place looks like that, and so do programs that compress or encrypt on purpose. Nothing is
held back, since all earlier versions are kept. Counted are keys whose content users replaced within the last ten
minutes by content of high entropy. Where they are many, the earlier content of some of them is examined: JPEGs and
archives that are replaced by others of their kind had high entropy before, and are not reported.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

KEYS_MIN = 200
"""Fewer rewritten keys are never worth a warning."""
SHARE = 0.1
"""Of the current keys of a bucket."""
WINDOW_S = 600.0
SAMPLED = 32
"""Of so many of the keys the content before is looked at; most of it must have been of low entropy."""
_KEYS_MAX = 10_000
"""More keys are not remembered: they would be enough for a bucket of 100,000, and a warning follows before."""
_SAMPLE, _REACH = 64, 4096
_DISTINCT_MIN = 50
"""Of 64 random bytes 57 are distinct, give or take 2; of text some 25, of machine code and tables fewer than 45."""


def has_high_entropy(start: bytes) -> bool:
    """Whether content looks random, by 64 bytes taken evenly from its first 4 KiB. start: at least these, if it is
    that long; shorter content than 64 bytes never does."""
    reach = min(len(start), _REACH)
    return reach >= _SAMPLE and len(set(start[: reach - reach % _SAMPLE : reach // _SAMPLE])) >= _DISTINCT_MIN


class Rewrites(Struct):
    """The keys of one bucket that were rewritten within the window. checked: the number at which they are counted next.

    keys: by key, when, and the id of the version before.
    """

    keys: dict[bytes, tuple[float, str]] = field(default_factory=dict)
    checked: int = KEYS_MIN
    quiet_until_s: float = 0.0
    """A warning is given once in a window."""

    def add(self, key: bytes, before: str, now_s: float) -> bool:
        """Count a key; whether there are so many now that they are to be compared with the bucket."""
        first = self.keys.pop(key, None)
        self.keys[key] = (now_s, first[1] if first is not None else before)
        while self.keys and (len(self.keys) > _KEYS_MAX or next(iter(self.keys.values()))[0] < now_s - WINDOW_S):
            del self.keys[next(iter(self.keys))]
        if len(self.keys) < self.checked // 2:
            self.checked = KEYS_MIN
        return len(self.keys) >= self.checked and now_s >= self.quiet_until_s

    def is_many(self, current: int) -> bool:
        """Whether they are a large share of the current keys; if not, they are compared again when they are."""
        self.checked = min(_KEYS_MAX, max(KEYS_MIN, int(current * SHARE)))
        return len(self.keys) >= self.checked

    def sample(self) -> dict[bytes, str]:
        """Some of the keys, taken evenly, with the ids of their versions before."""
        step = max(1, len(self.keys) // SAMPLED)
        return {key: self.keys[key][1] for key in list(self.keys)[::step]}

    def is_alarming(self, before: Iterable[bool], now_s: float) -> bool:
        """Whether a person is to be told. before: of the sampled versions before, whether their entropy was high.

        Either way these keys are not asked about again.
        """
        found = list(before)
        alarming = bool(found) and sum(found) * 2 < len(found)
        if alarming:
            self.quiet_until_s = now_s + WINDOW_S
        self.keys.clear()
        self.checked = KEYS_MIN
        return alarming
