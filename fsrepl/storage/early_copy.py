"""Content for a version that is still being captured elsewhere, in .fsrepl/tmp of a bucket that will receive it.

It is a copy of the version before, which the next start sweeps after a crash; or of the file that is being captured,
where the key is new, which survives one, so that no byte of it need cross again. The draft of the version takes over as
much as there is, and verifies all of it: see replicate/large_draft.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from fsrepl.model.version import Version
from fsrepl.storage import copying, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs
from fsrepl.storage.read_back import ReadBack

_PART_BYTES = 8 << 20
"""The bytes that are copied before it is asked whether the copy is still wanted."""
_REPLACES_CACHED_BYTES = 128 << 20
"""From this size on a copy replaces the version before in the page cache: other memory would be taken from what people
use, and to find it takes longer than to copy where all is in use."""


class EarlyCopy:
    """One such copy: a background worker makes it, and another one takes it over or removes it.

    key, id: the version that it is a copy of. id is empty where it is one of the file that is being captured.
    """

    def __init__(self, key: bytes, version_id: str = "") -> None:
        self.key, self.id = key, version_id
        self.until_s: float | None = None
        """The monotonic time when it is removed; None while the newer version is being captured."""
        self.crossed_bytes = 0
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._begun = self._stopped = self._abandoned = self._failed = False
        self._is_made = False
        """Whether its file is there, and was not taken over."""
        self._name = staging.token() if version_id else staging.early_name(key)
        self._fd = -1
        self._fs: Fs | None = None
        self._done = 0
        self._read_back: ReadBack | None = None

    def make(self, bucket: OpenBucket, version: Version, progress: Callable[[int], None]) -> None:
        """Copy the version, until that is stopped. progress: called with the number of bytes done. Raises OSError."""
        with self._under_way(bucket.fs) as may_begin:
            if may_begin:
                self._copy(bucket, version, progress)

    @contextlib.contextmanager
    def _under_way(self, fs: Fs) -> Iterator[bool]:
        """While it is made; False where that was stopped before."""
        with self._guard:
            self._begun, self._fs = not self._stopped, fs
        try:
            yield self._begun
        except BaseException:
            self._failed = True
            if not self.id:
                self._close(fs)  # it is of no use now; after a crash, or the end of the process, it is
            raise
        finally:
            with self._guard:
                self._over.set()
                if self._abandoned:
                    self._close(fs)

    def _copy(self, bucket: OpenBucket, version: Version, progress: Callable[[int], None]) -> None:
        fs, may_share = bucket.fs, bucket.bucket.sharing != "private"
        with contextlib.ExitStack() as opened:
            opened.callback(fs.close, before := versions.open_content(bucket, version))
            self._fd, self._is_made = fs.create(bucket.tmp, self._name), True
            fs.lock(self._fd)
            while self._done < version.size and not self._stopped:
                size = min(_PART_BYTES, version.size - self._done)
                copying.copy_part(bucket, before, self._fd, self._done, self._done, size, share=may_share)
                if version.size >= _REPLACES_CACHED_BYTES:
                    fs.drop_cache(before, self._done, size)  # nothing else of the delivery reads it
                self._done += size
                progress(self._done)

    # -- the file that is being captured

    @contextlib.contextmanager
    def receiving(self, bucket: OpenBucket, size: int, leaves_cache: bool) -> Iterator[bool]:
        """While its content is given to copy and end_at; False where it is not wanted, or a crash left a part of it:
        the draft goes on with that, which it verifies. Raises OSError."""
        with self._under_way(bucket.fs) as may_begin:
            if not may_begin or staging.is_there(bucket, self._name):
                yield False
                return
            self._fd, self._is_made = bucket.fs.create(bucket.tmp, self._name), True
            bucket.fs.lock(self._fd)
            bucket.fs.truncate(self._fd, size)  # else each write makes the file longer, which takes longer
            self._read_back = ReadBack(bucket, self._name, self._fd)
            self._read_back.leaves_cache = leaves_cache
            yield True

    def copy(self, fd: int, at: int, count: int) -> int:
        """Copy a part of an open local file, to the same offset; how many bytes were copied, none once it is
        stopped."""
        if self._stopped or self._fs is None:
            return 0
        copied = self._fs.copy(fd, self._fd, at, min(count, _PART_BYTES))
        self.crossed_bytes += copied
        self.end_at(at + copied)
        return copied

    def end_at(self, size: int) -> None:
        """Extend the copy to a size; bytes not copied are zeros."""
        self._done = size
        if self._read_back is not None:
            self._read_back.follow(size)

    # -- its end

    def stop(self) -> None:
        """Copy no more."""
        with self._guard:
            self._stopped = True
            if not self._begun:
                self._over.set()

    def take_over(self, bucket: OpenBucket, name: bytes) -> tuple[int, int, ReadBack | None]:
        """Give the file a lasting name; its descriptor, which is the caller's to close, how many bytes from its start
        are copied, and what reads it back, of the file that is being captured. (-1, 0, None) where there is none, or
        that name is taken. Raises OSError."""
        self.stop()
        self._over.wait()
        is_useless = not self._done or (self._failed and not self.id)
        if is_useless or staging.is_there(bucket, name) or not staging.is_there(bucket, self._name):
            self.remove(bucket)
            return -1, 0, None
        bucket.fs.rename(bucket.tmp, self._name, bucket.tmp, name)
        fd, self._fd, self._is_made = self._fd, -1, False
        read_back, self._read_back = self._read_back, None
        return fd, self._done, read_back

    def remove(self, bucket: OpenBucket) -> None:
        """Stop, and remove the file, unless it was taken over. Raises OSError."""
        self.stop()
        self._over.wait()
        self._close(bucket.fs, wait=True)
        if self._is_made:
            self._is_made = False
            staging.unstage(bucket, self._name)

    def abandon(self, fs: Fs) -> None:
        """Stop, and close the file as soon as that is possible, without waiting for it: its bucket may be away. The
        file is swept when that comes up again."""
        self.stop()
        with self._guard:
            self._abandoned = True
            if self._over.is_set():
                self._close(fs)

    def _close(self, fs: Fs, *, wait: bool = False) -> None:
        """Close the file, where it is open, and stop reading it back. wait: until that has ended."""
        fd, self._fd = self._fd, -1
        read_back, self._read_back = self._read_back, None
        if read_back is not None:
            read_back.cancel(wait=wait)
        if fd >= 0:
            fs.close(fd)


def is_worthwhile(bucket: OpenBucket) -> bool:
    """Whether a copy takes long enough: a reflink takes no time."""
    return bucket.bucket.sharing == "private" or not sharing.can_reflink(bucket)
