"""Pure: the permitted change to a key's view, given the file found in its place, and to a stored file that was a view.

show.py and hardlinks.py carry these out.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from msgspec import Struct

from fsrepl.model.version import Version
from fsrepl.model.view import View


class Occupant(enum.Enum):
    """The kind of entry in the place of a key's view."""

    NOTHING = "neither a file nor anything else; its directory may be missing too"
    NO_WAY = "a parent on the path is not a directory"
    MOUNT = "another filesystem is mounted on the path"
    TOO_LONG = "the name is too long for this filesystem"
    FILE = "a regular file"
    OTHER = "an entry that is no regular file"


ABSENT: Mapping[int | None, Occupant] = MappingProxyType(
    {
        errno.ENOENT: Occupant.NOTHING,
        errno.ENOTDIR: Occupant.NO_WAY,
        errno.ELOOP: Occupant.NO_WAY,
        errno.EXDEV: Occupant.MOUNT,
        errno.ENAMETOOLONG: Occupant.TOO_LONG,
    }
)
"""The occupant that an error number implies. Any other error may pass."""


class Found(Struct, frozen=True):
    """The entry in the place of a key's view, with its status where there is one."""

    occupant: Occupant
    status: os.stat_result | None = None


class Answer(enum.Enum):
    """The permitted change to a view, so that it shows a version."""

    DONE = "nothing: the view shows the version, or is absent for a marker"
    MAKE = "a file is put where none is"
    CLEAR = "the obstacle is removed, if replication made it, and then a file is put there"
    REPLACE = "the file is taken out, and the version's file replaces it, if there is one"
    USER_CHANGED = "the view was removed, or its content is not recorded: that becomes a version first"
    BLOCKED = "no file can be there"


def decide_view(found: Found, expected: View | None, version: Version, *, is_shown: bool = False) -> Answer:
    """The permitted change to a view. The order of the questions is the policy.

    expected: the view as recorded, None where there was none. is_shown: its content is the version's.
    """
    match found.occupant:
        case Occupant.FILE:
            if is_shown:
                return Answer.DONE
            is_recorded = expected is not None and found.status is not None and expected.is_like(found.status)
            return Answer.REPLACE if is_recorded else Answer.USER_CHANGED
        case Occupant.MOUNT if expected is not None:
            return Answer.BLOCKED  # the recorded file still exists below the mount
        case Occupant.OTHER if expected and found.status and expected.is_link and expected.has_content_of(found.status):
            return Answer.BLOCKED  # the recorded symlink, of a bucket that is no tree bucket any more
        case _ if version.marker:
            return Answer.DONE
        case Occupant.MOUNT | Occupant.TOO_LONG:
            return Answer.BLOCKED
        case _ if expected is not None:
            return Answer.USER_CHANGED  # its user removed or replaced it, or a directory above it
        case Occupant.NO_WAY:
            return Answer.BLOCKED
        case Occupant.OTHER:
            return Answer.CLEAR
        case Occupant.NOTHING:
            return Answer.MAKE


class Leaving(Struct, frozen=True):
    """A stored version's file that may have been a key's view, beside the file that is the view now.

    view: as recorded, None where that is unknown. stored: the file of the version that it showed, None where there is
    none. now: the file in the view's place, None where it is gone. is_named: that file has names besides the view's
    and the daemon's. is_same: its content is that of the current version.
    """

    view: View | None
    stored: os.stat_result | None
    now: os.stat_result | None
    is_named: bool = False
    is_same: bool = False

    @property
    def has_left(self) -> bool:
        """Whether the view is no longer the file that was recorded."""
        return self.now is None or self.view is None or self.now.st_ino != self.view.ino


class Left(enum.Enum):
    """The permitted change to a stored version's file, once its view has left it."""

    IS_VIEW = "nothing: it is the view, and the version is separated only if its record is lost"
    SEPARATE = "the version is separated from it: people can still change it, or have changed it"
    COMPARE = "it is made private if its content is the version's and it has no other name"
    MAKE_PRIVATE = "it is made private"
    OTHER = "nothing: but the view may be the file of another version, with the same content"
    NOTHING = "nothing: it never was the view"


def decide_left(leaving: Leaving, may_link: Callable[[], bool]) -> Left:
    """The permitted change to a stored file that a view may have left. The order of the questions is the policy.

    may_link: whether views and versions are to share files here; asked only where it matters.
    """
    view, stored, now = leaving.view, leaving.stored, leaving.now
    if stored is not None and now is not None and os.path.samestat(stored, now):
        return Left.SEPARATE if leaving.is_same and not may_link() else Left.IS_VIEW
    if stored is not None and leaving.has_left:
        if view is None:  # as after the loss of the journal
            return Left.COMPARE
        if stored.st_ino == view.ino:
            if stored.st_nlink > 1 or not view.has_content_of(stored):
                return Left.SEPARATE
            return Left.COMPARE if view.racy else Left.MAKE_PRIVATE  # a write may have left the same times
    return Left.OTHER if leaving.is_named else Left.NOTHING
