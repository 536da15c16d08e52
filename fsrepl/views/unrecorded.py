"""Whether the file that people see at a key is the one that was last recorded there.

A write through another hard link of the file, from outside the bucket, makes no event, so whoever looks at a
key for another reason asks this too, and hands the key to capture where the answer is no.
"""

from __future__ import annotations

import enum
import os
import stat

from fsrepl.model import keys
from fsrepl.model.view import View
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE


class Look(enum.Enum):
    """How a file compares with its record."""

    RECORDED = "as it was recorded"
    TOUCHED = "its attributes or other names may have changed, its content has not"
    CHANGED = "it was written, replaced, removed or made since"


def compare(view: View | None, found: os.stat_result | None) -> Look:
    """view: how the file was recorded, None where there was to be none. found: as it is, None where there is none."""
    if view is None or found is None or not stat.S_ISREG(found.st_mode):
        is_file = found is not None and stat.S_ISREG(found.st_mode)
        return Look.CHANGED if is_file or view is not None else Look.RECORDED
    if not view.has_content_of(found):
        return Look.CHANGED
    return Look.RECORDED if view.is_like(found) and view.mode == stat.S_IMODE(found.st_mode) else Look.TOUCHED


def look(bucket: OpenBucket, key: bytes, view: View | None) -> Look:
    """The same for the file at a key. One that may not be looked at counts as recorded: nobody can tell more."""
    directory, name = keys.split(key)
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
    except OSError as error:
        return compare(view, None) if error.errno in NO_FILE else Look.RECORDED
    return compare(view, found)
