"""A file is read back and hashed while it is written, so that this adds little to the time until it is complete."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fsrepl.storage import hashing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.past_cache import PastCache

_FOLLOWS_BYTES = 2 << 20
"""The least size of the parts in which written content is read back."""
_PAGE_BYTES = 4096


class ReadBack:
    """A thread that reads a file of .fsrepl/tmp back and hashes it while it is written, in order, by others.

    on_read: called with the number of bytes read. past_cache: the file is a clone, of which the page cache has nothing
    yet, and needs nothing.
    """

    def __init__(
        self, bucket: OpenBucket, name: bytes, on_read: Callable[[int], None] | None, *, past_cache: bool = False
    ) -> None:
        self._fs, self._on_read = bucket.fs, on_read
        self._fd = bucket.fs.open_read(bucket.tmp, name)  # of its own: it may be read directly, and not be written so
        self._changed = threading.Condition()
        self._final, self._complete, self._cancelled = 0, False, False
        self.position = 0
        """All before it was read back."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{threading.current_thread().name}-read-back")
        self._read = PastCache(self._fs, self._fd) if past_cache else None
        self._found = self._thread.submit(self._hash)

    def _hash(self) -> hashing.Hashed:
        try:
            return hashing.content(self._fs, self._fd, progress=self._note, read=self._read, final=self._wait)
        finally:
            self._fs.close(self._fd)

    def follow(self, at: int) -> None:
        """All before a place is as it stays."""
        with self._changed:
            self._final = max(self._final, at)
            self._changed.notify()

    def _wait(self, at: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._final >= at + _FOLLOWS_BYTES or self._complete or self._cancelled)
            self._raise_if_cancelled()
            return self._final if self._complete else self._final // _PAGE_BYTES * _PAGE_BYTES  # as direct reads need

    def _note(self, done: int) -> None:
        self._raise_if_cancelled()
        self.position = done
        if self._on_read is not None:
            self._on_read(done)

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def result(self, size: int) -> hashing.Hashed:
        """The digest of the whole file, which is complete. Raises OSError."""
        with self._changed:
            self._final, self._complete = size, True
            self._changed.notify()
        with self._thread:
            return self._found.result()

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify()
        self._thread.shutdown()
