"""Whether the file in the place of a key's view is the one last recorded there.

A write through another hard link of the file, from outside the bucket, makes no event. So code that inspects a
key for another reason checks this too, and hands a changed key to capture.
"""

from __future__ import annotations

import enum
import os

from fsrepl.model import keys
from fsrepl.model.view import View
from fsrepl.storage import placed
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE
from fsrepl.storage.view_file import look_at_file, open_view
from fsrepl.views import directories


class Look(enum.Enum):
    """Result of comparing a file with its record."""

    RECORDED = "as recorded"
    TOUCHED = "its attributes or other names may have changed, its content has not"
    CHANGED = "the file was written, replaced, removed or made since"


def compare(view: View | None, found: os.stat_result | None) -> Look:
    """Compare a view with its file. view: as recorded, None for none. found: the status of the object, None for
    none."""
    if view is None or found is None:
        return Look.CHANGED if found is not None or view is not None else Look.RECORDED
    if not view.has_content_of(found):
        return Look.CHANGED
    return Look.RECORDED if view.is_same(found) else Look.TOUCHED


def look_closely(bucket: OpenBucket, key: bytes, view: View | None) -> tuple[Look, bool | None]:
    """A look, and whether a program has the file open for writing; None where that cannot be known."""
    written = None
    if view is not None and not keys.is_directory(key):
        try:
            directory, name = keys.split(key)
            if (plain := look_at_file(bucket, bucket.views.get(directory), name)) is not None:
                return compare(view, plain.found), plain.is_written
            with open_view(bucket, key) as opened:
                found = opened.found if bucket.is_object(key, opened.found) else None
                if opened.target is not None and placed.holds_unrecorded(bucket, key, opened.target):
                    return Look.CHANGED, True
                return compare(view, found), opened.is_written()
        except OSError as error:  # BlockingIOError: another program has a lease on it
            written = True if isinstance(error, BlockingIOError) else None
    return look(bucket, key, view), written


def look(bucket: OpenBucket, key: bytes, view: View | None) -> Look:
    """Compare the view at a key with its record. A file that may not be inspected counts as recorded, and so does a
    directory that is there for what is in it."""
    try:
        found = bucket.view_status(key)
    except OSError as error:
        return compare(view, None) if error.errno in NO_FILE else Look.RECORDED
    if view is None and keys.is_directory(key) and directories.is_made(bucket, key[:-1]):
        return Look.CHANGED if directories.is_edited(bucket, key[:-1]) else Look.RECORDED
    return compare(view, found if bucket.is_object(key, found) else None)
