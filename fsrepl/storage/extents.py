"""Blocks of files on disk, each counted once however many files have it: by hard links, and by reflinks.

Source: linux/fs.h, FS_IOC_FIEMAP; Documentation/filesystems/fiemap.rst: FIEMAP_EXTENT_SHARED.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from msgspec import Struct, field

BLOCK_BYTES = 512
"""The unit of st_blocks. Source: stat(2)."""


class Extent(Struct, frozen=True):
    """A part of a file on its disk, in bytes, that other files may have too."""

    at: int
    size: int


class Blocks(Struct):
    """The blocks of some files. allocated: their sizes on disk, as `ls -s` and `du` without sharing add them up."""

    allocated: int = 0
    _whole: dict[int, set[int]] = field(default_factory=dict)
    _unshared: int = 0
    _shared: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, found: os.stat_result, shared: Sequence[Extent] = ()) -> None:
        """Add a file. shared: the extents that it may have in common with others."""
        size = found.st_blocks * BLOCK_BYTES
        self.allocated += size
        seen = self._whole.setdefault(found.st_dev, set())
        if found.st_ino in seen:
            return
        seen.add(found.st_ino)
        common = min(size, sum(each.size for each in shared))
        self._unshared += size - common
        self._shared.setdefault(found.st_dev, []).extend((each.at, each.at + each.size) for each in shared)

    @property
    def used(self) -> int:
        """Bytes on disk, each block once."""
        return self._unshared + sum(_covered(spans) for spans in self._shared.values())


def _covered(spans: list[tuple[int, int]]) -> int:
    """The length that spans cover together. They are sorted, and joined, in place."""
    spans.sort()
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    spans[:] = joined
    return sum(end - start for start, end in joined)
