"""A file is read back and hashed while it is written, so that this adds little to the time until it is complete."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

from fsrepl.storage import hashing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.past_cache import PastCache

_FOLLOWS_BYTES = 2 << 20
"""The least size of the parts in which written content is read back."""
_WRITTEN_BYTES = 8 << 20
"""The bytes that are written to the disk at once."""
_LEFT_BYTES = 64 << 20
"""The most bytes left in the page cache, since they are not on the disk yet."""
_PAGE_BYTES = 4096


class ReadBack:
    """A thread that reads a file of .fsrepl/tmp back and hashes it while it is written, in order, by others.

    What is written gets to the disk in large parts, and may leave the page cache after that, like what it was copied
    from. fd: the file, as it is written. past_cache: it is a clone, of which the page cache has nothing yet, and needs
    nothing. Used by one thread at a time.
    """

    def __init__(self, bucket: OpenBucket, name: bytes, fd: int, *, past_cache: bool = False) -> None:
        self.on_read: Callable[[int], None] | None = None
        """Called with the number of bytes read."""
        self.is_delayed = False
        """Whether it is read when all of it is written."""
        self.leaves_cache = False
        self.leaving_fd = -1
        """The file from which it is copied, where that leaves the page cache too."""
        self._fs, self._written_fd = bucket.fs, fd
        self._started = self._left = 0
        """Up to here the kernel was told to write it to the disk; its part on the disk was dropped from the page
        cache when it had come to there."""
        self._fd = bucket.fs.open_read(bucket.tmp, name)  # of its own: it may be read directly, and not be written so
        self._changed = threading.Condition()
        self._final, self._complete, self._cancelled = 0, False, False
        self.position = 0
        """All before it was read back."""
        self._read = PastCache(self._fs, self._fd) if past_cache else None
        self._found: Future[hashing.Hashed] = Future()
        thread = f"{threading.current_thread().name}-read-back"
        self._thread = threading.Thread(
            target=self._hash, name=thread, daemon=True
        )  # it may wait when the process ends
        self._thread.start()

    def _hash(self) -> None:
        try:
            found = hashing.content(self._fs, self._fd, progress=self._note, read=self._read, final=self._wait)
        except BaseException as error:
            self._fs.close(self._fd)
            self._found.set_exception(error)
        else:
            self._fs.close(self._fd)
            self._found.set_result(found)

    def follow(self, at: int) -> None:
        """All before a place is as it stays."""
        if not self.is_delayed:
            with self._changed:
                self._final = max(self._final, at)
                self._changed.notify()
        if (size := at - self._started) >= _WRITTEN_BYTES:
            self._fs.start_writing(self._written_fd, self._started, size)
            self._started = at
            self._leave_cache(at)

    def _leave_cache(self, at: int) -> None:
        """Drop from the page cache the data that is on the disk and was read back, and the data that was copied. Data
        that is not on the disk yet stays there."""
        if at - self._left < _LEFT_BYTES:
            return
        self._left = at
        if self.leaves_cache and (until := min(at, self.position) - _LEFT_BYTES) > 0:
            self._fs.drop_cache(self._written_fd, 0, until)
        if self.leaving_fd >= 0 and (until := at - _LEFT_BYTES) > 0:
            self._fs.drop_cache(self.leaving_fd, 0, until)

    def _wait(self, at: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._final >= at + _FOLLOWS_BYTES or self._complete or self._cancelled)
            self._raise_if_cancelled()
            return self._final if self._complete else self._final // _PAGE_BYTES * _PAGE_BYTES  # as direct reads need

    def _note(self, done: int) -> None:
        self._raise_if_cancelled()
        self.position = done
        if self.on_read is not None:
            self.on_read(done)

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def result(self, size: int) -> hashing.Hashed:
        """The digest of the whole file, which is complete. Raises OSError."""
        with self._changed:
            self._final, self._complete = size, True
            self._changed.notify()
        self._thread.join()
        return self._found.result()

    def cancel(self, *, wait: bool = True) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify()
        if wait:
            self._thread.join()
