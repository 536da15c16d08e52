"""Contents of a bucket that share blocks with a new one under any key, as after a rename with an edit, or of a dump
that has another name each night.

The 16 smallest block digests of each content are kept in memory, as a fair sample of all: contents that share a fifth
of their blocks have one of the 16 in common in 97 of 100 cases. The digests are read from the bucket's block maps when
they are first needed. A match is a hint only: the two contents are then compared by their whole maps.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, defaultdict
from collections.abc import Callable

from fsrepl.model import blockmap
from fsrepl.model.blockmap import BlockMap, Cutter
from fsrepl.storage import blocks as maps
from fsrepl.storage.bucket import OpenBucket

_SAMPLE = 16
_CONTENTS_MAX = 4096
"""Of so many contents, the latest ones, samples are kept: at most some ten MiB."""
_FOUND_MAX = 4
NEAR_MAX = 16
"""The contents of about the same size that are compared with a sample from within a new one."""
_SOME = 10
"""A content is like another one where more than this part of a sample is in both."""
_PARTS, _PART_BLOCKS = 8, 16
"""The parts of a content that a sample from within it is of, and the average blocks in each."""


class Alike:
    """The samples of one bucket. Used by its background workers."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sampled: dict[bytes, tuple[int, frozenset[int]]] = {}
        """By digest: the size of the content, and its sample."""
        self._having: defaultdict[int, set[bytes]] = defaultdict(set)

    def sizes(self, bucket: OpenBucket, blocks: BlockMap) -> list[int]:
        """The sizes in bytes of the contents that share the most blocks with a content."""
        with self._guard:
            self._read(bucket)
            sample = sample_of(blocks)
            common = Counter(digest for each in sample for digest in self._having.get(each, ()))
            common.pop(blocks.digest, None)
            return list(dict.fromkeys(self._sampled[digest][0] for digest, _ in common.most_common(_FOUND_MAX)))

    def are_there(self, bucket: OpenBucket, sample: frozenset[int], size: int) -> bool:
        """Whether a content of about a size has some of the blocks of a sample, which is of another one."""
        with self._guard:
            self._read(bucket)
            near = heapq.nsmallest(NEAR_MAX, self._sampled, key=lambda digest: abs(self._sampled[digest][0] - size))
        found = (maps.read(bucket, digest) for digest in near)
        return any(len(sample & each.short_digests()) * _SOME > len(sample) for each in found if each is not None)

    def _read(self, bucket: OpenBucket) -> None:
        """Read the maps that came since the last time, and forget those that went."""
        kept = set(maps.latest(bucket, _CONTENTS_MAX))
        for digest in self._sampled.keys() - kept:
            _, sample = self._sampled.pop(digest)
            for each in sample:
                self._having[each].discard(digest)
                if not self._having[each]:
                    del self._having[each]
        for digest in kept - self._sampled.keys():
            found = maps.read(bucket, digest)
            sample = sample_of(found) if found is not None else frozenset[int]()
            self._sampled[digest] = found.size if found is not None else 0, sample
            for each in sample:
                self._having[each].add(digest)


def sample_within(read: Callable[[int, int], bytes], size: int) -> frozenset[int]:
    """The digests of blocks in a few parts of a content of that size, shortened to eight bytes each. read: gives the
    bytes at a place, so many."""
    average, found = blockmap.average_of(size), set[int]()
    length = _PART_BLOCKS * average
    for at in range(0, size, max(length, size // _PARTS)):
        data = read(at, length)
        if data.count(0) < len(data):  # else it may be a hole
            cutter = Cutter(average)
            cutter.data(data)
            found |= cutter.map(b"").short_digests()  # the first and the last one may be other blocks
    return frozenset(found)


def sample_of(blocks: BlockMap) -> frozenset[int]:
    """The smallest digests of a content's blocks, shortened to eight bytes each."""
    return frozenset(heapq.nsmallest(_SAMPLE, blocks.short_digests()))
