"""Open directories of one tree, as many as the process can spare."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable

from fsrepl.model import keys
from fsrepl.storage.fs import Fs

_OPEN_DIRECTORIES_MAX, _OPEN_DIRECTORIES_MIN = 128, 8
"""The descriptors that a tree may keep: as many as the process can spare, but those that are in use at once."""


def _open_directories_max() -> int:
    """By the limit of open files: up to eight trees are open at once, and the rest of the daemon needs some too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    spared = (soft - 64) // 8 if soft != resource.RLIM_INFINITY else _OPEN_DIRECTORIES_MAX
    return max(_OPEN_DIRECTORIES_MIN, min(_OPEN_DIRECTORIES_MAX, spared))


class Directories:
    """Open directories of one tree, by relative path; the least recently used are closed first."""

    def __init__(self, fs: Fs, top: int, never: os.stat_result | None = None) -> None:
        """never: the status of a directory excluded from the tree, whatever name a user who may write at the top gives
        it."""
        self._fs, self._top = fs, top
        self._never = (never.st_dev, never.st_ino) if never is not None else None
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._latest = b""
        """The path that was asked for last, which is the last one in _open, if it is there."""
        self._most = 0
        """How many stay open; 0 before that was asked."""
        self.changed: set[bytes] = set()
        """Directories with changed entries since the last sync."""

    def get(self, path: bytes) -> int:
        if path not in self._open:
            self._open[path] = self._open_dir(path)
            if len(self._open) > _OPEN_DIRECTORIES_MIN:
                self._most = self._most or _open_directories_max()
                if len(self._open) > self._most:
                    self._fs.close(self._open.popitem(last=False)[1])
        elif path != self._latest:  # a batch mostly stays in one directory
            self._open.move_to_end(path)
        self._latest = path
        return self._open[path]

    def _open_dir(self, path: bytes) -> int:
        first, _, rest = path.partition(b"/")
        if rest and self._never is not None:
            return self._fs.open_dir(self.get(first), rest)
        fd = self._fs.open_dir(self._top, path)
        if self._never is not None:
            found = self._fs.stat_fd(fd)
            if (found.st_dev, found.st_ino) == self._never:
                self._fs.close(fd)
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return fd

    def get_or_make(
        self, path: bytes, make: Callable[[int, bytes, bytes], None] | None = None, *, is_new: bool = False
    ) -> int:
        """The descriptor of a directory, after creating missing ones. make: creates one, from the parent, the path and
        the name. is_new: it is mostly missing, so that it is created at once."""
        missing = []
        if is_new and path not in self._open:
            missing.append(path)
            path = keys.split(path)[0]
        while True:
            try:
                fd = self.get(path)
                break
            except FileNotFoundError:
                missing.append(path)
                path = keys.split(path)[0]
        for path in reversed(missing):
            parent, name = keys.split(path)
            with contextlib.suppress(FileExistsError):
                if make is None:
                    self._fs.make_dir(self.get(parent), name)
                else:
                    make(self.get(parent), path, name)
                self.changed.add(parent)
            fd = self.get(path)
        return fd

    def forget(self, path: bytes) -> None:
        if (fd := self._open.pop(path, None)) is not None:
            self._fs.close(fd)

    def sync(self) -> None:
        """Make all changed entries survive a power cut, with one fsync per directory."""
        for path in list(self.changed):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile; `changed` has its parent
                self._fs.sync_file(self.get(path))
            self.changed.discard(path)

    def close(self) -> None:
        while self._open:
            self._fs.close(self._open.popitem()[1])
