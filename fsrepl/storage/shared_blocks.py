"""Blocks that two files share, as a reflink and its origin do: there they have the same content.

A write into either moves what it changes to other blocks. Where they share all of them, the content of a clone may be
read from the other file, if that one is in the page cache and the clone is not: each inode has a cache of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from fsrepl.storage.fs import UNSUPPORTED, Fs


def have_same(fs: Fs, fd: int, other: int) -> bool:
    """Whether two open files share all their blocks now; False where the filesystem does not say.

    Data read from one of them is the content of the other, if they shared all blocks before and after the read. Raises
    OSError.
    """
    if not fs.stat_fd(fd).st_size == fs.stat_fd(other).st_size > 0:
        return False
    try:
        mine, others = list(fs.extents(fd)), list(fs.extents(other))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return mine == others or _joined(mine) == _joined(others)


def common_parts(fs: Fs, fd: int, other: int) -> Iterator[tuple[int, int]]:
    """The parts that two open files have on the same place of the disk, each with its start and its end, in order.

    None after a place of which the filesystem does not say where it lies. Neither file may be written to meanwhile.
    """
    size = min(fs.stat_fd(fd).st_size, fs.stat_fd(other).st_size)
    start = end = 0
    for at, until in _common_extents(fs.extents(fd), fs.extents(other)):
        if at > end:
            if start < end:
                yield start, end
            start = at
        end = min(until, size)
    if start < end:
        yield start, end


def _common_extents(
    extents: Iterator[tuple[int, int, int]], others: Iterator[tuple[int, int, int]]
) -> Iterator[tuple[int, int]]:
    with contextlib.suppress(OSError):
        mine, other = next(extents, None), next(others, None)
        while mine is not None and other is not None:
            mine_end, other_end = mine[0] + mine[2], other[0] + other[2]
            start, end = max(mine[0], other[0]), min(mine_end, other_end)
            if start < end and mine[1] - mine[0] == other[1] - other[0]:
                yield start, end
            if mine_end == end:
                mine = next(extents, None)
            if other_end == end:
                other = next(others, None)


def is_warmer(fs: Fs, fd: int, other: int) -> bool:
    """Whether much more of an open file than of another one is in the page cache."""
    size = fs.stat_fd(fd).st_size
    return fs.cached_bytes(fd, 0, size) > fs.cached_bytes(other, 0, size) + size // 2


def _joined(extents: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Extents without boundaries between neighbours: these may differ between files that share them."""
    found: list[tuple[int, int, int]] = []
    for at, place, size in extents:
        if found and (sum(found[-1][::2]), found[-1][1] + found[-1][2]) == (at, place):
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + size)
        else:
            found.append((at, place, size))
    return found
