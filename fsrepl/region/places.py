"""Places that the kernel watches for the daemon, which looks at them after a change, and seldom otherwise.

They are the folder of a bucket's documents, its region's root, the directories on the way there, the mounts, and the
folder of the site's state. Events are hints here too: a look goes by what it finds. No descriptor into a region stays
open, and a watch hinders no unmount. It ends with its directory or its filesystem, is told of then, and is made again
by the look that follows.

An inotify instance of its own: a burst of files delays no event of these, and the same directory may be watched for
both. Source: inotify(7); proc_pid_mounts(5): after a mount, an unmount, or a change of a mount's options, a table of
mounts has a priority event for each that has it open.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import InotifyFD, Mask, WatchDescriptor, inotify_add_watch, inotify_rm_watch

from fsrepl.errors import reason
from fsrepl.storage.mount_table import PATH as MOUNTS

log = logging.getLogger("fsrepl")

_GOES = In.IN_DELETE_SELF | In.IN_MOVE_SELF | In.IN_MASK_ADD
_ENTRY_MASK = Mask(_GOES | In.IN_DONT_FOLLOW)
_FOLDER_MASK = Mask(
    _GOES
    | In.IN_CREATE
    | In.IN_CLOSE_WRITE
    | In.IN_MOVED_FROM
    | In.IN_MOVED_TO
    | In.IN_DELETE
    | In.IN_ATTRIB
    | In.IN_ONLYDIR
)
_BUFFER_BYTES = 1 << 16
_PAUSE_S = 0.02
"""After each reading: what comes in a row, as mounts of a container do, is told once."""


class Place(NamedTuple):
    """A directory whose entries matter: those of these names, or all.

    is_entry: only whether it stays where it is matters, and a symlink is not followed. The daemon may lack the right to
    watch it: then it goes unwatched.
    """

    path: bytes
    names: frozenset[bytes] | None = None
    is_entry: bool = False


def way_to(path: str) -> Iterator[Place]:
    """The directories and symlinks that a path leads through: when one of them moves, the path leads elsewhere."""
    for whole in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        parts = os.fsencode(whole).split(b"/")
        yield from (Place(b"/".join(parts[:number]), is_entry=True) for number in range(2, len(parts) + 1))


class Places(InotifyFD):
    """See the module. Any thread may call watch and forget."""

    def __init__(self) -> None:
        super().__init__()
        self.daemon = True
        self.name = "places"
        self._guard = threading.Lock()
        self._watches: dict[int, dict[str, frozenset[bytes] | None]] = {}
        """By watch descriptor, who wants to be told, and of which names."""
        self._of: dict[str, set[int]] = {}
        self._tell: dict[str, Callable[[], None]] = {}
        self._are_mounts_changed = False
        self._mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        assert self._poller is not None
        self._poller.register(self._mounts, select.POLLPRI)

    def watch(self, whose: str, places: Iterable[Place], tell: Callable[[], None]) -> bool:
        """Call tell after each change of these places, or of a mount, instead of those watched for the same before.

        It is called at once where a place was not watched before, since that may have changed a moment ago. False where
        the kernel does not tell of all of them, as without watches: then it tells of none.
        """
        found: dict[int, frozenset[bytes] | None] = {}
        is_complete = True
        for place in places:  # without the guard: a path may lead into a filesystem that hangs
            wd = inotify_add_watch(self._inotify_fd, place.path, _ENTRY_MASK if place.is_entry else _FOLDER_MASK)
            if wd == -1:
                is_complete &= place.is_entry and ctypes.get_errno() == errno.EACCES
                continue
            names = found.get(wd, frozenset())
            more = frozenset() if place.is_entry else place.names
            found[wd] = None if names is None or more is None else names | more
        with self._guard:
            before = self._of.get(whose, set())
            if not is_complete:
                self._drop(whose, before | found.keys())
                self._of[whose] = set()
                return False
            self._drop(whose, before - found.keys())
            for known, names in found.items():
                self._watches.setdefault(known, {})[whose] = names
            self._of[whose], self._tell[whose] = set(found), tell
        if found.keys() - before:
            tell()
        return True

    def forget(self, whose: str) -> None:
        """Tell no more."""
        with self._guard:
            self._drop(whose, self._of.pop(whose, set()))
            self._tell.pop(whose, None)

    def _drop(self, whose: str, wds: Iterable[int]) -> None:
        for wd in wds:
            known = self._watches.get(wd, {})
            known.pop(whose, None)
            if not known:
                self._watches.pop(wd, None)
                inotify_rm_watch(self._inotify_fd, WatchDescriptor(wd))

    # -- the reading thread

    def run(self) -> None:
        while self.should_keep_running():
            buffer = self._read_event_buffer(_BUFFER_BYTES)
            for tell in self._concerned(buffer):
                tell()
            time.sleep(_PAUSE_S)

    def _check_inotify_fd(self) -> bool:
        assert self._poller is not None
        ready = dict(self._poller.poll())
        self._are_mounts_changed |= self._mounts in ready  # it is told to each poll once
        return self._inotify_fd in ready

    def _concerned(self, buffer: bytes) -> set[Callable[[], None]]:
        with self._guard:
            is_for_all, self._are_mounts_changed = self._are_mounts_changed, False
            concerned: set[str] = set()
            for number, mask, _cookie, name in self._parse_event_buffer(buffer):
                is_for_all |= bool(mask & In.IN_Q_OVERFLOW)
                known = self._watches.get(number, {})
                concerned.update(whose for whose, names in known.items() if not name or names is None or name in names)
                if mask & In.IN_IGNORED:
                    for whose in self._watches.pop(number, {}):
                        self._of[whose].discard(number)
            return {tell for whose, tell in self._tell.items() if is_for_all or whose in concerned}


def open_places() -> Places | None:
    """None where the kernel gives no inotify instance, or has no table of mounts: places are looked at often then."""
    try:
        return Places()
    except OSError as error:
        log.warning("no inotify instance for documents and mounts (%s): they are looked at every second", reason(error))
        return None
