"""A copy of a stored version, made for a newer version of its key while that one is still being captured elsewhere.

The copy is a file in .fsrepl/tmp, which the next start sweeps after a crash. The draft of the newer version takes over
as much as was copied, and verifies all of it: see replicate/large_draft.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from fsrepl.model.version import Version
from fsrepl.storage import copying, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs

_PART_BYTES = 8 << 20
"""The bytes that are copied before it is asked whether the copy is still wanted."""
_REPLACES_CACHED_BYTES = 128 << 20
"""From this size on a copy replaces the version before in the page cache: other memory would be taken from what people
use, and to find it takes longer than to copy where all is in use."""


class EarlyCopy:
    """One such copy: a background worker makes it, and another one takes it over or removes it.

    key, id: the version that it is a copy of.
    """

    def __init__(self, key: bytes, version_id: str) -> None:
        self.key, self.id = key, version_id
        self.until_s: float | None = None
        """The monotonic time when it is removed; None while the newer version is being captured."""
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._begun = self._stopped = self._abandoned = False
        self._name = staging.token()
        self._fd = -1
        self._done = 0

    def make(self, bucket: OpenBucket, version: Version, progress: Callable[[int], None]) -> None:
        """Copy the version, until that is stopped. progress: called with the number of bytes done. Raises OSError."""
        with self._guard:
            if self._stopped:
                return
            self._begun = True
        try:
            self._copy(bucket, version, progress)
        finally:
            with self._guard:
                self._over.set()
                if self._abandoned:
                    self._close(bucket.fs)

    def _copy(self, bucket: OpenBucket, version: Version, progress: Callable[[int], None]) -> None:
        fs, may_share = bucket.fs, bucket.bucket.sharing != "private"
        with contextlib.ExitStack() as opened:
            opened.callback(fs.close, before := versions.open_content(bucket, version))
            self._fd = fs.create(bucket.tmp, self._name)
            fs.lock(self._fd)
            while self._done < version.size and not self._stopped:
                size = min(_PART_BYTES, version.size - self._done)
                copying.copy_part(bucket, before, self._fd, self._done, self._done, size, share=may_share)
                if version.size >= _REPLACES_CACHED_BYTES:
                    fs.drop_cache(before, self._done, size)  # nothing else of the delivery reads it
                self._done += size
                progress(self._done)

    def stop(self) -> None:
        """Copy no more."""
        with self._guard:
            self._stopped = True
            if not self._begun:
                self._over.set()

    def take_over(self, bucket: OpenBucket, name: bytes) -> tuple[int, int]:
        """Give the file a lasting name; its descriptor, which is the caller's to close, and how many bytes from its
        start are those of the version. (-1, 0) where there is none, or that name is taken. Raises OSError."""
        self.stop()
        self._over.wait()
        if not self._done or _is_there(bucket, name) or not _is_there(bucket, self._name):
            self.remove(bucket)
            return -1, 0
        bucket.fs.rename(bucket.tmp, self._name, bucket.tmp, name)
        fd, self._fd = self._fd, -1
        return fd, self._done

    def remove(self, bucket: OpenBucket) -> None:
        """Stop, and remove the file, unless it was taken over. Raises OSError."""
        self.stop()
        self._over.wait()
        if self._close(bucket.fs):
            staging.unstage(bucket, self._name)

    def abandon(self, fs: Fs) -> None:
        """Stop, and close the file as soon as that is possible, without waiting for it: its bucket may be away. The
        file is swept when that comes up again."""
        self.stop()
        with self._guard:
            self._abandoned = True
            if self._over.is_set():
                self._close(fs)

    def _close(self, fs: Fs) -> bool:
        """Close the file; False where there is none, or it was taken over."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            fs.close(fd)
        return fd >= 0


def _is_there(bucket: OpenBucket, name: bytes) -> bool:
    try:
        bucket.fs.stat(bucket.tmp, name)
    except FileNotFoundError:
        return False
    return True


def is_worthwhile(bucket: OpenBucket) -> bool:
    """Whether a copy takes long enough: a reflink takes no time."""
    return bucket.bucket.sharing == "private" or not sharing.can_reflink(bucket)
