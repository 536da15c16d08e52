"""A walk of a tree: every directory below an open one, each read once, for all code that goes through a tree.

A directory is opened by its path from the open one, so that one descriptor is open at a time, however deep the tree is.
Links are not followed and other mounts are not entered: see Fs.open_dir. What is left of a walk is a list of paths, so
that it can be continued later, when the tree is open again. Memory does not grow with the size of a directory, except
where names are sorted.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

from msgspec import Struct, field

from fsrepl.model import keys
from fsrepl.storage.fs import GONE, Entry, FileType, Fs

T = TypeVar("T")
VANISHED = GONE | {errno.ELOOP}
"""Errors of opening a directory that was just listed, when it is removed or replaced: by a file, or by a link."""

Failed = Callable[[bytes, OSError], None]
"""Called with the path of a directory that cannot be read. Directories found in it by then are still walked."""


def leave_out(path: bytes, error: OSError) -> None:
    """For `failed`: a directory that cannot be read counts as absent."""


class Directory(Struct, frozen=True):
    """One directory of a walk, open until the walk goes on. entries: can be read once."""

    path: bytes
    fd: int
    entries: Iterator[Entry]

    def files(self, *, trees: bool = False) -> list[bytes]:
        """The names of the regular files. trees: and of the symlinks, objects of a tree bucket."""
        kinds = (FileType.REGULAR, FileType.LINK) if trees else (FileType.REGULAR,)
        return [name for name, kind in self.entries if kind in kinds]


class Uncompared(Struct, frozen=True):
    """A directory of the store that is still to be compared with the journal, and that of the keys whose versions it
    has."""

    path: bytes
    directory: bytes


class Walk(Struct):
    """The rest of a walk. todo: the directories to read, the last first, relative to the top of the tree.

    but: a name at the top of the tree that is left out.
    """

    todo: list[bytes] = field(default_factory=lambda: [b""])
    but: bytes = b""

    @contextlib.contextmanager
    def step(self, fs: Fs, top: int) -> Iterator[Directory]:
        """Read the next directory. Raises OSError, also while its entries are read; the walk can go on then.

        The directories that were found by then are walked too; those among entries left unread are not.
        """
        path = self.todo.pop()
        fd = fs.open_dir(top, path)
        entries = self._entries(fs, path, fd)
        try:
            yield Directory(path, fd, entries)
        finally:
            entries.close()
            fs.close(fd)

    def _entries(self, fs: Fs, path: bytes, fd: int) -> Generator[Entry, None, None]:
        but, directory = b"" if path else self.but, FileType.DIRECTORY
        for entry in fs.entries(fd):
            if but and entry[0] == but:
                continue
            if entry[1] is directory:
                self.todo.append(keys.join(path, entry[0]))
            yield entry


def directories(
    fs: Fs, top: int, start: bytes = b"", *, but: bytes = b"", failed: Failed | None = None
) -> Iterator[Directory]:
    """A directory below an open one, and all directories below that, each before those in it. but: see Walk.

    Those removed meanwhile are left out. failed: called for each other one that cannot be read; else its OSError is
    raised.
    """
    walk = Walk([start], but)
    while walk.todo:
        path = walk.todo[-1]
        try:
            with walk.step(fs, top) as directory:
                entries = _readable(directory, failed)
                yield Directory(path, directory.fd, entries)
                for _ in entries:
                    pass
        except OSError as error:
            _report(path, error, failed)


def _readable(directory: Directory, failed: Failed | None) -> Iterator[Entry]:
    try:
        yield from directory.entries
    except OSError as error:
        _report(directory.path, error, failed)


def _report(path: bytes, error: OSError, failed: Failed | None) -> None:
    if error.errno in VANISHED:
        return
    if failed is None:
        raise error
    failed(path, error)


def in_key_order(
    fs: Fs,
    top: int,
    start: bytes,
    read: Callable[[Directory], Iterable[tuple[bytes, T]]],
    enters: Callable[[bytes], bool] = lambda path: True,
    failed: Failed | None = None,
) -> Iterator[T]:
    """The items of a directory and of all below it, in the order of keys, byte by byte.

    read: the items of one directory, each with its key; called when the walk arrives there. enters: whether to walk
    a directory below. A directory sorts as its path and a slash: `a-b` precedes `a/b`. failed: see directories.
    """
    todo: list[tuple[bytes, T | None]] = [(start + b"/", None)]
    while todo:
        key, found = todo.pop()
        if found is not None:
            yield found
            continue
        walk = Walk([key[:-1]])
        listed: list[tuple[bytes, T | None]] = []
        try:
            with walk.step(fs, top) as directory:
                listed += read(directory)
        except OSError as error:
            _report(key[:-1], error, failed)
        listed += [(path + b"/", None) for path in walk.todo if enters(path)]
        todo += sorted(listed, key=lambda each: each[0], reverse=True)


def remove_below(fs: Fs, top: int, *, but: bytes = b"", removed: Callable[[int], None] = lambda number: None) -> None:
    """Remove all that is below an open directory, except one name at the top. Raises OSError.

    removed: called after each file with 1.
    """
    paths = []
    for directory in directories(fs, top, but=but):
        paths.append(directory.path)
        for name, kind in list(directory.entries):
            if kind is not FileType.DIRECTORY:
                with contextlib.suppress(FileNotFoundError):
                    fs.unlink(directory.fd, name)
                removed(1)
    # in reverse a directory follows those in it, and those of one parent stand together
    for parent, below in itertools.groupby(reversed(paths[1:]), key=lambda path: keys.split(path)[0]):
        fd = fs.open_dir(top, parent)
        try:
            for path in below:
                with contextlib.suppress(FileNotFoundError):
                    fs.remove_dir(fd, keys.split(path)[1])
        finally:
            fs.close(fd)
