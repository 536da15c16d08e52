"""Pure: whether the deletions of one bucket go on to its destinations, wait for a moment, or are held until a person
decides.

Counted are keys that users deleted within the last 60 s (region/deletions.py), against the keys that were current
before the first of them. A key that was written again since does not count, nor does one whose content arrived under
another key: it was renamed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from msgspec import Struct

KEYS_MIN = 1000
"""The number of keys that may always be deleted at once, even if that is all of a bucket."""
FIRST_QUIET_S, FIRST_MAX_S = 0.25, 2.0
"""The first deletions in a bucket of over KEYS_MIN keys wait until there was none for a moment: an `rm -r` may have
begun. One of 50 files a second gets over BURST_KEYS within the longest time."""
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
    keys were deleted or are about to be, the last of them just now, and that was not waited for too long.
    """

    deleted: int
    keys: int
    share: float
    coming: int = 0
    arriving: int = 0
    has_deliveries: bool = True
    is_scanning: bool = False
    is_burst: bool = False


def decide_first(waited_s: float, quiet_s: float, share: float, has_enough_keys: Callable[[], bool]) -> Decision:
    """The decision on a few deletions, up to BURST_KEYS.

    waited_s: since the first of them that is not handed over was looked at. quiet_s: since the last of them.
    has_enough_keys: whether the bucket has more than KEYS_MIN keys; asked for only where it matters.
    """
    is_over = quiet_s >= FIRST_QUIET_S or waited_s >= FIRST_MAX_S or share >= 1.0
    return Decision.RELEASE if is_over or not has_enough_keys() else Decision.WAIT


def decide(facts: Facts, renamed: Callable[[], int]) -> Decision:
    """The decision on deletions that are not handed over yet. The order of the questions is the policy.

    renamed: the number of deleted keys whose content has arrived under another key; asked for only where it matters.
    """
    most = max(KEYS_MIN, facts.share * facts.keys)
    if not facts.has_deliveries or facts.keys <= most:
        return Decision.RELEASE
    known = facts.deleted + facts.coming
    if facts.deleted <= most:
        # a million deletions are not queued at once, and take longer than the window: scans find most of them
        is_part = known > most or (facts.is_scanning and known > KEYS_MIN)
        return Decision.WAIT if facts.is_burst or is_part else Decision.RELEASE
    if facts.is_burst:  # what is said of it is the whole of it, then
        return Decision.WAIT
    if facts.is_scanning or facts.deleted - facts.arriving <= most:  # the files may arrive under other names
        return Decision.WAIT
    return Decision.HALT if facts.deleted - renamed() > most else Decision.RELEASE
