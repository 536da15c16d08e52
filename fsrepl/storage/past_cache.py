"""Large files are read and written past the page cache: memory that programs use is left to them.

It costs less, too. A page of the cache has to be found, filled and written from there, which takes several times as
long as to write directly; and where memory is short, or goes back to the host of a virtual machine, to find one takes
longer than to write it. What was written directly is not on the disk for good before a sync.
"""

from __future__ import annotations

import errno

from fsrepl.storage.fs import Fs

BLOCK_BYTES = 4096
"""The unit in which disks are read and written directly, in memory and in the file."""


class PastCache:
    """Reads an open file without leaving it in the page cache, and without removing what others have there.

    It reads directly where the filesystem can: what the cache has says nothing of the disk.
    """

    def __init__(self, fs: Fs, fd: int) -> None:
        self._fs = fs
        self._directly = fs.bypass_cache(fd)
        fs.read_ahead_never(fd)  # else the next piece seems to have been in the cache before

    def __call__(self, fd: int, buffer: memoryview, at: int) -> int:
        if self._directly:
            try:
                return self._fs.read_into(fd, buffer, at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            self._directly = self._fs.bypass_cache(fd, on=False)  # a part of a block is left, or blocks are larger
        was_cached = self._fs.is_cached(fd, at, len(buffer))
        count = self._fs.read_into(fd, buffer, at)
        if not was_cached:
            self._fs.drop_cache(fd, at, len(buffer))
        return count


class PastCacheWriter:
    """Writes into an open file without leaving that in the page cache, as far as the filesystem can.

    It writes whole blocks directly. Parts of blocks, as at the end of a file, go through the page cache.
    """

    def __init__(self, fs: Fs, fd: int) -> None:
        self._fs, self._fd = fs, fd
        self.is_direct = fs.bypass_cache(fd)

    def __call__(self, data: memoryview, at: int) -> None:
        """Write data, whose memory begins with a page."""
        whole = len(data) // BLOCK_BYTES * BLOCK_BYTES if self.is_direct and not at % BLOCK_BYTES else 0
        if whole and not self._write_directly(data[:whole], at):
            whole = 0
        if rest := data[whole:]:
            self._through_cache(rest, at + whole)

    def _write_directly(self, data: memoryview, at: int) -> bool:
        try:
            self._fs.write_at(self._fd, data, at)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.is_direct = self._fs.bypass_cache(self._fd, on=False)  # its blocks are larger
            return False
        return True

    def _through_cache(self, data: memoryview, at: int) -> None:
        if self.is_direct:
            self._fs.bypass_cache(self._fd, on=False)
        try:
            self._fs.write_at(self._fd, data, at)
            self._fs.start_writing(self._fd, at, len(data))
        finally:
            if self.is_direct:
                self._fs.bypass_cache(self._fd)
