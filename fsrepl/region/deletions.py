"""Pure: the keys of one bucket that users deleted within the last minute, counted. region/brake.py decides by that.

The last of them are known by their keys. Of those before, which a million deletions leave, each is three numbers of
64 bits: its time, and the beginnings of the hashes of its key and of what it held.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from msgspec import Struct, field

WINDOW_NS = 60_000_000_000
KEYS_MAX = 10_000
"""The most deletions that are known by their keys, some 4 MB."""
_PASS_ON = 1_000
"""The deletions that become numbers at a time."""


class Deleted(Struct, frozen=True):
    """A key that a user deleted: when, the hash of its content (empty: not known), and whether a destination is to
    follow."""

    at_ns: int
    digest: bytes
    has_deliveries: bool


def _start(digest: bytes) -> int:
    """The first 8 of 32 bytes of a BLAKE3; 0 where it is not known."""
    return int.from_bytes(digest[:8], "big")


class _Numbers(Struct):
    """Deletions as numbers, in the order of their time."""

    at_ns: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    has_deliveries: bool = False

    def add(self, key: bytes, deleted: Deleted) -> None:
        self.at_ns.append(deleted.at_ns)
        self.keys.append(hash(key))
        self.digests.append(_start(deleted.digest))
        self.has_deliveries |= deleted.has_deliveries

    def remove(self, key: bytes, at_ns: int) -> bool:
        """Remove the deletion of a key at a moment; whether there is one."""
        start, end = bisect_left(self.at_ns, at_ns), bisect_right(self.at_ns, at_ns)
        try:
            at = self.keys.index(hash(key), start, end)
        except ValueError:
            return False
        self._cut(at, at + 1)
        return True

    def forget(self, until_ns: int) -> int:
        """Remove the deletions up to a moment; how many there were."""
        number = bisect_right(self.at_ns, until_ns)
        self._cut(0, number)
        return number

    def _cut(self, start: int, end: int) -> None:
        for column in (self.at_ns, self.keys, self.digests):
            del column[start:end]


class Deletions(Struct):
    keys: dict[bytes, Deleted] = field(default_factory=dict)
    """The last of them, in the order of their deletion."""
    before: deque[_Numbers] = field(default_factory=deque)
    """The numbers of the deletions before these."""
    number_before: int = 0
    keys_before: int = 0
    """The number of current keys before the first of them; 0 while they are too few for that to matter."""
    counted_ns: int = 0
    """The last deletion before that was counted."""
    renamed: int = 0
    """How many of them were found to be renamed, when that was last asked."""

    @property
    def number(self) -> int:
        return len(self.keys) + self.number_before

    def add(self, key: bytes, deleted: Deleted, *, is_undecided: bool = False) -> None:
        """Count a key. is_undecided: deletions before it wait for a decision, and none of them is forgotten."""
        self.keys.pop(key, None)
        self.keys[key] = deleted
        if not is_undecided:
            self._forget(deleted.at_ns - WINDOW_NS)
            if self.since_ns > self.counted_ns:
                self.keys_before = 0
        if len(self.keys) >= KEYS_MAX + _PASS_ON:
            self._pass_on()

    def _forget(self, until_ns: int) -> None:
        """Forget the deletions up to a moment."""
        number = self.number
        while self.before:
            first = self.before[0]
            self.number_before -= first.forget(until_ns)
            if first.at_ns:
                break
            self.before.popleft()
        while self.keys and not self.before and next(iter(self.keys.values())).at_ns <= until_ns:
            del self.keys[next(iter(self.keys))]
        self.renamed = max(0, self.renamed - (number - self.number))

    def _pass_on(self) -> None:
        numbers = _Numbers()
        for key in list(self.keys)[:_PASS_ON]:
            numbers.add(key, self.keys.pop(key))
        self.before.append(numbers)
        self.number_before += len(numbers.at_ns)

    def written(self, key: bytes, deleted_ns: int) -> None:
        """A key was written again: it is deleted no longer. deleted_ns: when its marker was made; 0 without one."""
        if key in self.keys:
            del self.keys[key]
            return
        if not self.before:
            return
        at = bisect_left(self.before, deleted_ns, key=lambda numbers: numbers.at_ns[-1])
        while at < len(self.before) and self.before[at].at_ns[0] <= deleted_ns:
            if self.before[at].remove(key, deleted_ns):
                self.number_before -= 1
                if not self.before[at].at_ns:
                    del self.before[at]
                return
            at += 1

    def clear(self) -> None:
        self.keys.clear()
        self.before.clear()
        self.number_before = self.keys_before = self.renamed = 0

    def count_keys(self, current: int) -> None:
        """Note how many keys are current now, with all of these gone."""
        self.keys_before = current + self.number
        self.counted_ns = self._last_ns

    @property
    def since_ns(self) -> int:
        if self.before:
            return self.before[0].at_ns[0]
        return next(iter(self.keys.values())).at_ns if self.keys else 0

    @property
    def _last_ns(self) -> int:
        if self.keys:
            return next(reversed(self.keys.values())).at_ns
        return self.before[-1].at_ns[-1] if self.before else 0

    @property
    def has_deliveries(self) -> bool:
        return any(each.has_deliveries for each in self.before) or any(
            each.has_deliveries for each in self.keys.values()
        )

    def count_renamed(self, arrived: Iterable[bytes]) -> int:
        """How many of them were renamed. arrived: the content of each current key that was made within the window."""
        came = Counter(map(_start, arrived))
        self.renamed = 0
        for digest in self._digests() if came else ():
            if digest and came[digest] > 0:
                came[digest] -= 1
                self.renamed += 1
        return self.renamed

    def _digests(self) -> Iterator[int]:
        for numbers in self.before:
            yield from numbers.digests
        for deleted in self.keys.values():
            yield _start(deleted.digest)
