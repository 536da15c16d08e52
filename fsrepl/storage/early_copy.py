"""Content for a version that is still being captured elsewhere, in .fsrepl/tmp of a bucket that will receive it.

It survives a crash, so that no byte of it need cross again. The draft of the version takes over as much as there is,
and verifies all of it: see replicate/large_draft.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from fsrepl.model.blockmap import Block
from fsrepl.model.delta import Span
from fsrepl.storage import staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs
from fsrepl.storage.large_file import Base, LargeFile

_PART_BYTES = 8 << 20
"""The bytes that are copied before it is asked whether the copy is still wanted."""


class EarlyCopy:
    """One such content: a background worker puts it together, and another one takes it over or removes it.

    wake: called when it is stopped, so that the worker does not wait for more blocks.
    """

    def __init__(self, key: bytes, wake: Callable[[], None] = lambda: None) -> None:
        self.key, self._wake = key, wake
        self.until_s: float | None = None
        """The monotonic time when it is removed; None while the newer version is being captured."""
        self.crossed_bytes = 0
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._begun = self._stopped = self._abandoned = False
        self._name = staging.early_name(key)
        self._file: LargeFile | None = None
        """Until it is taken over or closed."""
        self._is_there = False
        """Whether its file is there, and was not taken over."""

    # -- while it is captured

    @contextlib.contextmanager
    def making(self, bucket: OpenBucket, *, leaves_cache: bool) -> Iterator[bool]:
        """While its content is given; False where it is not wanted, or a crash left a part of it: the draft goes on
        with that, which it verifies. Raises OSError."""
        with self._guard:
            self._begun = not self._stopped
        try:
            if not self._begun or staging.is_there(bucket, self._name):
                yield False
                return
            fd, self._is_there = bucket.fs.create(bucket.tmp, self._name), True
            bucket.fs.lock(fd)
            self._file = LargeFile(bucket, self.key, self._name, fd)
            self._file.leaves_cache = leaves_cache
            yield True
        except BaseException:
            self._close(bucket.fs)  # it is of no use now; after a crash, or the end of the process, it is
            raise
        finally:
            with self._guard:
                self._over.set()
                if self._abandoned:
                    self._close(bucket.fs)

    @property
    def file(self) -> LargeFile:
        assert self._file is not None, "it is being made"
        return self._file

    def is_wanted(self) -> bool:
        return not self._stopped

    def follow(self, parts: Iterable[Sequence[Block]], base: Base, size: int) -> Iterator[Span]:
        """See LargeFile.follow. It ends where it is stopped."""
        for span in self.file.follow(parts, base, size):
            if self._stopped:
                return
            yield span

    @property
    def compares(self) -> bool:
        return self.file.compares

    def differing(self, at: int, data: bytes) -> list[Span]:
        return self.file.differing(at, data)

    def copy(self, fd: int, at: int, count: int) -> int:
        """Copy a part of an open local file, to the same offset; how many bytes were copied, none once it is
        stopped."""
        if self._stopped:
            return 0
        copied = self.file.copy(fd, at, min(count, _PART_BYTES))
        self.crossed_bytes += copied
        return copied

    def end_at(self, size: int) -> None:
        """Extend the content to a size; bytes not copied are zeros."""
        self.file.end_at(size)

    def forget(self) -> None:
        self.stop()

    # -- its end

    def stop(self) -> None:
        """Copy no more."""
        with self._guard:
            self._stopped = True
            if not self._begun:
                self._over.set()
        self._wake()

    def take_over(self, bucket: OpenBucket, name: bytes) -> LargeFile | None:
        """Give the file a lasting name; the caller closes it. None where there is none, or that name is taken. Raises
        OSError."""
        self.stop()
        self._over.wait()
        is_useless = self._file is None or not self._file.final
        if is_useless or staging.is_there(bucket, name) or not staging.is_there(bucket, self._name):
            self.remove(bucket)
            return None
        bucket.fs.rename(bucket.tmp, self._name, bucket.tmp, name)
        file, self._file, self._is_there = self.file, None, False
        file.bucket, file.name = bucket, name
        return file

    def remove(self, bucket: OpenBucket) -> None:
        """Stop, and remove the file, unless it was taken over. Raises OSError."""
        self.stop()
        self._over.wait()
        self._close(bucket.fs, wait=True)
        if self._is_there:
            self._is_there = False
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
        file, self._file = self._file, None
        if file is not None:
            file.end_reading(wait=wait)
            fs.close(file.fd)
