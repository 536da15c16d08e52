"""What may be done to the file people see of a key, by what is found there. Pure: show.py carries it out."""

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
    """What stands where a key's file is shown."""

    NOTHING = "neither a file nor anything else; its directory may be missing too"
    NO_WAY = "something that is no directory is in the place of a directory on the way"
    MOUNT = "another filesystem is mounted on the way"
    TOO_LONG = "this filesystem takes no such name"
    FILE = "a regular file"
    OTHER = "something that is no regular file"


ABSENT: Mapping[int | None, Occupant] = MappingProxyType(
    {
        errno.ENOENT: Occupant.NOTHING,
        errno.ENOTDIR: Occupant.NO_WAY,
        errno.ELOOP: Occupant.NO_WAY,
        errno.EXDEV: Occupant.MOUNT,
        errno.ENAMETOOLONG: Occupant.TOO_LONG,
    }
)
"""What an error number says of a place where no file can be looked at. Any other is a fault that may pass."""


@dataclass(frozen=True, slots=True)
class Found:
    """What stands where a key's file is shown, and its status where there is anything."""

    occupant: Occupant
    status: os.stat_result | None = None


class Answer(enum.Enum):
    """What may be done to a view, so that it shows a version."""

    DONE = "nothing: it shows the version, or a marker, of which nothing is to be seen"
    MAKE = "a file is put where none is"
    CLEAR = "what is in the way is removed, if replication made it, and then a file is put there"
    REPLACE = "the file is taken out, and the version's put in its place, if it has one"
    USER_CHANGED = "the view holds what is not recorded, or was removed: that becomes a version first"
    BLOCKED = "no file can be there"


def decide_view(found: Found, expected: View | None, version: Version, *, is_shown: bool = False) -> Answer:
    """What may be done to a view. The order of the questions is the policy.

    expected: how it looked when it was recorded, None where there was none. is_shown: its content is the version's.
    """
    match found.occupant:
        case Occupant.FILE:
            if is_shown:
                return Answer.DONE
            is_recorded = expected is not None and found.status is not None and expected.is_like(found.status)
            return Answer.REPLACE if is_recorded else Answer.USER_CHANGED
        case Occupant.MOUNT if expected is not None:
            return Answer.BLOCKED  # what was there is there still, below the mount
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
