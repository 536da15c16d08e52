"""Whether two files share all their blocks, as a reflink and what it was made of do: then they have the same content.

So the content of a clone may be read from the other file, where that one is in the page cache and the clone is not:
each inode has a cache of its own. A write into either moves what it changes to other blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from fsrepl.storage.fs import UNSUPPORTED, Fs


def have_same(fs: Fs, fd: int, other: int) -> bool:
    """Whether two open files share all their blocks now; False where the filesystem does not say.

    What was read of one of them while they shared all before and after is the content of the other. Raises OSError.
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
