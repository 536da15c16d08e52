"""Pure: the permitted change to a key's view, given the file found in its place. show.py carries it out."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

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


@dataclass(frozen=True, slots=True)
class Found:
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
