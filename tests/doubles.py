"""Broken worlds: filesystems that die, fail or lose data at a chosen moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Container
from pathlib import Path
from types import FrameType
from typing import Any

import fsrepl
from fsrepl.capture.watch import NoWatches
from fsrepl.storage import fs
from fsrepl.storage.fs import MUTATIONS, Fs


class PowerCut(BaseException):
    """Not an Exception: code that cleans up after errors must not run as if the machine were still there."""


class UnsyncedFs(Fs):
    """The real filesystem without waiting for the disk, for worlds in which the power stays on."""

    def sync_file(self, fd: int) -> None:
        pass

    def sync_all(self, fd: int) -> None:
        pass


_OF_A_FILE = frozenset(
    {"write", "truncate", "set_attribute", "remove_attribute", "set_acl", "remove_acl", "chmod", "chown", "set_mtime",
     "clone", "sync_file"}
)  # fmt: skip
"""The changes whose first argument is the file."""
_OF_A_NAME = frozenset({"create", "unlink", "rename", "rename_new", "link"})
"""The changes whose arguments are a directory and a name, or two of each."""
_SYNCS = ("sync_file", "sync_all")
_LASTS = re.compile(rb"(large|capture|move)\.")
"""The names of staged files that a start keeps."""
EACH_CHANGE = bool(os.environ.get("FSREPL_LONG"))

_PROGRAM = os.path.dirname(fsrepl.__file__) + "/"
Place = tuple[str, ...]
"""A change, and the three lines of code above it, those of the filesystem's own module left out."""


def place_of(change: str) -> Place:
    """The place in the code that makes a change."""
    lines: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(lines) < 3:
        path = frame.f_code.co_filename
        if path.startswith(_PROGRAM) and path != fs.__file__:
            lines.append(f"{path.removeprefix(_PROGRAM)}:{frame.f_lineno}")
        frame = frame.f_back
    return change, *lines


class Tried(Container[Place]):
    """The places at which a case of a test is not stopped, since an earlier one was; with FSREPL_LONG=1 there are none.

    Those of all processes of a run are in one file. The case's own are added to it, and do not change where the case
    is stopped itself. Fixture `tried`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().split("\n")[:-1] if path.exists() and not EACH_CHANGE else []
        self.before: frozenset[Place] = frozenset(tuple(json.loads(line)) for line in lines)

    def __contains__(self, place: object) -> bool:
        return place in self.before

    def add(self, place: Place) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(place) + "\n")


def _stopped(but: Container[Place], change: str) -> Place:
    """The place at which a world is stopped, which is one of its case's from now on."""
    place = place_of(change)
    if isinstance(but, Tried):
        but.add(place)
    return place


class DyingFs(UnsyncedFs):
    """Another filesystem for a number of changes, then dead, also for clean-up.

    A change counts where a cut before it leaves another disk, or another journal, than the cut that counted before it.
    So of changes in a row that only .fsrepl/tmp has, the first counts. A start sweeps that folder by the names in it,
    and reads none of the files: a cut between two of these changes leaves something to be swept, as does the cut before
    the change that comes after them. Nor does a change count after one that has failed, or after a sync, since neither
    has changed anything, unless a transaction of the journal came in between. each: all of them count, as they do with
    FSREPL_LONG=1, on a disk that forgets, and in tests/journeys/test_power_cut.py. but: places at which none counts.
    place: where it died.
    """

    commits: Callable[[], int] = staticmethod(lambda: 0)
    """The number of the journal's transactions so far."""

    def __init__(
        self, calls: int, other: Fs | None = None, *, each: bool = EACH_CHANGE, but: Container[Place] = ()
    ) -> None:  # fmt: skip
        self.calls_left = calls
        self.died = False
        self.died_in = ""
        self.place: Place = ()
        self._but = but
        self._each = each or not isinstance(other or self, UnsyncedFs)  # a disk that forgets
        self._was_staged = False
        self._counted_at: int | None = None
        """The number of transactions at the change counted last, where nothing has changed since then."""
        other = other or UnsyncedFs()
        for name in MUTATIONS:
            setattr(self, name, self._counted(name, getattr(other, name)))

    def _counted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: Any, **more: object) -> object:
            is_staged = not self.died and not self._each and _is_staged(name, *args)
            if self.died or self._each or self._counts(is_staged):
                if self._but and not self.died and place_of(name) in self._but:
                    return real(*args, **more)
                if self.calls_left <= 0:
                    self.place = self.place or _stopped(self._but, name)
                    self.died = True
                    self.died_in = self.died_in or name
                    raise PowerCut(name)
                self.calls_left -= 1
                self._counted_at = self.commits()
            done = real(*args, **more)
            if name not in _SYNCS:
                self._counted_at, self._was_staged = None, is_staged
            return done

        return call

    def _counts(self, is_staged: bool) -> bool:
        return self._counted_at != self.commits() and not (self._was_staged and is_staged)


def _is_staged(change: str, *args: Any) -> bool:
    """Whether a change is of a file that only .fsrepl/tmp has, and that the next start sweeps, or of its name there."""
    if change in _OF_A_FILE:
        folder, _, file = os.fsencode(os.readlink(f"/proc/self/fd/{args[0]}")).rpartition(b"/")
        return folder.endswith(b"/.fsrepl/tmp") and not _LASTS.match(file) and os.fstat(args[0]).st_nlink == 1
    if change in _OF_A_NAME:
        folders = [os.readlink(f"/proc/self/fd/{at}") for at in args[::2]]
        return all(at.endswith("/.fsrepl/tmp") for at in folders) and not any(map(_LASTS.match, args[1::2]))
    return False


class NotingFs(UnsyncedFs):
    """Notes the place of each change, in order."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        other = UnsyncedFs()
        for name in MUTATIONS:
            setattr(self, name, self._noted(name, getattr(other, name)))

    def _noted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            self.places.append(place_of(name))
            return real(*args, **more)

        return call


class FailingFs(UnsyncedFs):
    """One change fails with an errno: the nth, or from the nth on every one. but, place: as with DyingFs."""

    def __init__(
        self, calls: int, number: int = errno.EIO, *, for_ever: bool = False, but: Container[Place] = ()
    ) -> None:
        self.calls_left, self.number, self.for_ever = calls, number, for_ever
        self.place: Place = ()
        self._but = but
        self.failed = 0
        self.failed_in = ""
        for name in MUTATIONS:
            setattr(self, name, self._counted(name, getattr(UnsyncedFs, name).__get__(self)))

    def mend(self) -> None:
        self.for_ever = False
        self.calls_left = 1 << 60

    def _counted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            lasts = self.failed and self.for_ever
            if self._but and not lasts and place_of(name) in self._but:
                return real(*args, **more)
            self.calls_left -= 1
            if self.calls_left == -1 or (self.for_ever and self.calls_left < 0):
                self.place = self.place or _stopped(self._but, name)
                self.failed += 1
                self.failed_in = self.failed_in or name
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **more)

        return call


class LookingFs(UnsyncedFs):
    """A filesystem in which the results of stat(2) are changed: see `seen`."""

    def seen(self, values: dict[str, int]) -> None:
        """Change the results of stat(2), by the names of os.stat_result."""

    def stat(self, at: int, name: bytes) -> os.stat_result:
        return self._changed(super().stat(at, name))

    def stat_fd(self, fd: int) -> os.stat_result:
        return self._changed(super().stat_fd(fd))

    def _changed(self, found: os.stat_result) -> os.stat_result:
        values = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        self.seen(values)
        whole = (values["st_mode"], values["st_ino"], *tuple(found)[2:])
        return os.stat_result(whole, values)


class CoarseFs(LookingFs):
    """File times that move in steps: of 10 ms, as before Linux 6.13, or of seconds, as on old filesystems."""

    def __init__(self, step_ns: int = 10_000_000) -> None:
        self.step_ns = step_ns

    def change_times(self, at: int) -> list[int]:
        return [found - found % self.step_ns for found in super().change_times(at)]

    def seen(self, values: dict[str, int]) -> None:
        for name in ("st_mtime_ns", "st_ctime_ns"):
            values[name] -= values[name] % self.step_ns


class HugeInodesFs(LookingFs):
    """Inode numbers from 2^63 on, as FUSE and NFS filesystems make them."""

    def seen(self, values: dict[str, int]) -> None:
        values["st_ino"] += 1 << 63


class FailingDisk:
    """The disk of the journal: one write to it fails, the nth, or from the nth on every one.

    itself: SQLite has already rolled the transaction back, as it does after some faults.
    """

    def __init__(self, code: int, *, itself: bool = False) -> None:
        self.code, self.itself = code, itself
        self.mend()

    def mend(self) -> None:
        self.writes_left, self.for_ever = 1 << 60, False
        self.failed, self.failed_in = 0, ""

    def connect(self, *args: Any, **more: Any) -> sqlite3.Connection:
        """A replacement for sqlite3.connect."""
        disk, made_of = self, more.pop("factory", sqlite3.Connection)

        class Connection(made_of):  # type: ignore[misc, valid-type]
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                disk.write(super(), statement)
                return super().execute(statement, *values)

            def executemany(self, statement: str, *values: Any) -> sqlite3.Cursor:
                disk.write(super(), statement)
                return super().executemany(statement, *values)

        return _CONNECT(*args, factory=Connection, **more)

    def write(self, connection: Any, statement: str) -> None:
        """Called before each statement; fails if it is the write that has to fail."""
        if not statement.lstrip().startswith(("BEGIN", "INSERT", "UPDATE", "DELETE", "COMMIT")):
            return
        self.writes_left -= 1
        if self.writes_left == -1 or (self.for_ever and self.writes_left < 0):
            self.failed += 1
            self.failed_in = self.failed_in or statement.strip()
            if self.itself and connection.in_transaction:
                connection.execute("ROLLBACK")
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = self.code
            raise error


_CONNECT = sqlite3.connect


class DeafWatcher(NoWatches):
    """A watcher without events: only scans find changes."""

    def __init__(self) -> None:
        self.sentinels = _AllRead()

    def watch(self, address: str, path: bytes, fd: int) -> None: ...

    def watch_barrier(self, address: str, fd: int) -> None: ...

    def watch_contents(self, address: str, tier: str, fd: int) -> bool:
        return False


class _AllRead(dict[bytes, int]):
    """A set in which every sentinel has been read already."""

    def __contains__(self, name: object) -> bool:
        return True


class FaultyFs(UnsyncedFs):
    """Inspecting one name, a file's or a directory's, fails with an errno until `mend`."""

    def __init__(self, name: bytes, number: int, *calls: str) -> None:
        self.name, self.number = name, number
        for call in calls:
            setattr(self, call, self._faulty(getattr(UnsyncedFs, call).__get__(self)))

    def mend(self) -> None:
        self.number = 0

    def _faulty(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(at: int, name: bytes, *args: object, **more: object) -> object:
            if self.number and name.rpartition(b"/")[2] == self.name:
                raise OSError(self.number, os.strerror(self.number))
            return real(at, name, *args, **more)

        return call


class BadBlockFs(UnsyncedFs):
    """Some files cannot be read, by whatever name. is_dead: the disk takes no writes any more.

    lost: what of them is, as on ext4: the block of their attributes; their content; or their inode, so that their names
    can neither be replaced nor removed.
    """

    def __init__(self, lost: str = "content") -> None:
        self.inodes: set[int] = set()
        self.is_dead = False
        self.lost = lost
        for call in ("stat", "unlink", "rename", "exchange", "link") if lost == "inode" else ():
            setattr(self, call, self._by_name(getattr(UnsyncedFs, call).__get__(self)))
        for call in ("attributes", "attribute", "attribute_names", "set_attribute") if lost == "attributes" else ():
            setattr(self, call, self._open(getattr(UnsyncedFs, call).__get__(self)))

    def open_read(self, at: int, name: bytes) -> int:
        fd = super().open_read(at, name)
        try:
            if self.lost != "attributes":
                self._check(self.stat_fd(fd))
        except OSError:
            self.close(fd)
            raise
        return fd

    def _check(self, found: os.stat_result) -> None:
        if found.st_ino in self.inodes:
            number = errno.EIO if self.lost == "content" else errno.EBADMSG
            raise OSError(number, os.strerror(number))

    def _by_name(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            for at, name in zip(args[::2], args[1::2], strict=False):
                with contextlib.suppress(FileNotFoundError):
                    self._check(os.stat(name, dir_fd=at, follow_symlinks=False))
            return real(*args, **more)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            self._check(self.stat_fd(fd))
            return real(fd, *args)

        return call

    def sync_file(self, fd: int) -> None:
        if self.is_dead:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_file(fd)


class DividedFs(UnsyncedFs):
    """No link, rename or exchange leads into or out of a directory called `sub`, as with a subvolume."""

    def rename(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        self._crosses(from_at, to_at)
        super().rename(from_at, name, to_at, new_name)

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        self._crosses(from_at, to_at)
        super().rename_new(from_at, name, to_at, new_name)

    def exchange(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        self._crosses(from_at, to_at)
        super().exchange(from_at, name, to_at, new_name)

    def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        self._crosses(from_at, to_at)
        super().link(from_at, name, to_at, new_name)

    def _crosses(self, *directories: int) -> None:
        paths = [os.readlink(f"/proc/self/fd/{fd}") for fd in directories]
        if len({"/sub" in path and "/.fsrepl/" not in path for path in paths}) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


class FullFs(Fs):
    """A filesystem of 1 GiB that is nearly full."""

    free = 60 << 20

    def space(self, fd: int) -> tuple[int, int]:
        return self.free, 1 << 30
