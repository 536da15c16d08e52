"""The recorded state of a view."""

from __future__ import annotations

import os
import stat

from msgspec import Struct

from fsrepl.model.version import PERMISSIONS, recorded_mode


class View(Struct, frozen=True):
    """The inode and times of a view when it was last known to show a version.

    racy: the view had changed so recently that a later change may have left the same times. ctime_ns is 0 while the
    stored version it is a hard link to is being removed, since the removal changes the ctime. mode: see recorded_mode.
    A directory's size and mtime, which change with its entries, are 0 here; so a directory is like its record only
    while nothing in it was made or removed.
    """

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int = 0
    racy: bool = False
    shown: str = ""
    """The id of the version shown; empty where that was a null version that another one replaced."""

    @property
    def is_link(self) -> bool:
        """Whether it is a symlink: an object of a tree bucket, or a file whose content lies in a tier."""
        return stat.S_ISLNK(self.mode)

    def is_like(self, found: os.stat_result) -> bool:
        return self.has_content_of(found) and self.ctime_ns in (0, found.st_ctime_ns)

    def is_same(self, found: os.stat_result) -> bool:
        """Whether the file matches in all that a stat result tells, its mode included."""
        return self.is_like(found) and self.mode == recorded_mode(found.st_mode)

    def has_content_of(self, found: os.stat_result) -> bool:
        """Whether the file matches in all but ctime, which a rename or an attribute changes; a directory: whether it
        is the same one."""
        if self.mode > PERMISSIONS and stat.S_ISDIR(self.mode):
            return self.ino == found.st_ino and stat.S_ISDIR(found.st_mode)
        return self.ino == found.st_ino and self.size == found.st_size and self.mtime_ns == found.st_mtime_ns


def view_of(found: os.stat_result, shown: str, *, racy: bool = False) -> View:
    mode = recorded_mode(found.st_mode)
    if mode > PERMISSIONS and stat.S_ISDIR(mode):
        return View(found.st_ino, 0, 0, found.st_ctime_ns, mode, racy, shown)
    return View(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, mode, racy, shown)
