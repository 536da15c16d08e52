"""Pure: whether the deletions of one bucket go on to its destinations, wait for a moment, or are held until a person
decides.

Counted are keys that users deleted within the last 60 s, against the keys that were current before the first of them.
A key that was written again since does not count, nor does one whose content arrived under another key: it was renamed.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping

from msgspec import Struct, field

KEYS_MIN = 1000
"""So many keys may always be deleted at once, whatever share of a bucket that is."""
WINDOW_NS = 60_000_000_000
BURST_KEYS, BURST_QUIET_S = 100, 1.0
"""From so many deletions on, the decision waits until there was none for a moment: `rm -r` may be under way."""
BURST_MAX_S = 5.0
"""How long the end of a burst is waited for."""


class Decision(enum.Enum):
    RELEASE = "the deletions cross"
    WAIT = "the decision is made when what is queued now is captured"
    HALT = "too much was deleted at once"


class Facts(Struct, frozen=True):
    """deleted: keys deleted within the window; keys: current ones before that; share: of those, may go at once.

    coming, arriving: removals, and other changes, that are queued and not captured yet. has_deliveries: whether a
    destination would follow any of the deletions. is_scanning: a scan is under way, or about to begin. is_burst: many
    keys were deleted, the last of them just now, and that was not waited for too long.
    """

    deleted: int
    keys: int
    share: float
    coming: int = 0
    arriving: int = 0
    has_deliveries: bool = True
    is_scanning: bool = False
    is_burst: bool = False


def decide(facts: Facts, renamed: Callable[[], int]) -> Decision:
    """The decision on deletions that are not handed over yet. The order of the questions is the policy.

    renamed: the number of deleted keys whose content has arrived under another key; asked for only where it matters.
    """
    most = max(KEYS_MIN, facts.share * facts.keys)
    if not facts.has_deliveries or facts.keys <= most:
        return Decision.RELEASE
    if facts.deleted <= most:
        return Decision.WAIT if facts.is_burst or facts.deleted + facts.coming > most else Decision.RELEASE
    if facts.is_burst:  # what is said of it is the whole of it, then
        return Decision.WAIT
    if facts.is_scanning or facts.deleted - facts.arriving <= most:  # the files may arrive under other names
        return Decision.WAIT
    return Decision.HALT if facts.deleted - renamed() > most else Decision.RELEASE


class Deleted(Struct, frozen=True):
    """A key that a user deleted: when, what it held (empty: not known), and whether a destination is to follow."""

    at_ns: int
    digest: bytes
    has_deliveries: bool


class Deletions(Struct):
    """The keys of one bucket that users deleted within the window, in the order of their deletion."""

    keys: dict[bytes, Deleted] = field(default_factory=dict)
    keys_before: int = 0
    """The number of current keys before the first of them; 0 while they are too few for that to matter."""
    counted_ns: int = 0
    """The last deletion before that was counted."""
    renamed: int = 0
    """How many of them were found to be renamed, when that was last asked."""

    def add(self, key: bytes, deleted: Deleted, *, is_undecided: bool = False) -> None:
        """Count a key. is_undecided: deletions before it wait for a decision, and none of them is forgotten."""
        self.keys.pop(key, None)
        self.keys[key] = deleted
        if is_undecided:
            return
        while (first := next(iter(self.keys.values()))).at_ns <= deleted.at_ns - WINDOW_NS:
            del self.keys[next(iter(self.keys))]
            self.renamed = max(0, self.renamed - 1)
        if first.at_ns > self.counted_ns:
            self.keys_before = 0

    def written(self, key: bytes) -> None:
        """A key was written again: it is deleted no longer."""
        self.keys.pop(key, None)

    def clear(self) -> None:
        self.keys.clear()
        self.keys_before = self.renamed = 0

    def count_keys(self, current: int) -> None:
        """Note how many keys are current now, with all of these gone."""
        self.keys_before = current + len(self.keys)
        self.counted_ns = next(reversed(self.keys.values())).at_ns if self.keys else 0

    @property
    def since_ns(self) -> int:
        return next(iter(self.keys.values())).at_ns if self.keys else 0

    @property
    def has_deliveries(self) -> bool:
        return any(each.has_deliveries for each in self.keys.values())

    def count_renamed(self, arrived: Mapping[bytes, int]) -> int:
        """How many of them were renamed. arrived: the number of current keys, by content, made within the window."""
        gone = Counter(each.digest for each in self.keys.values() if each.digest)
        self.renamed = sum(min(number, arrived.get(digest, 0)) for digest, number in gone.items())
        return self.renamed
