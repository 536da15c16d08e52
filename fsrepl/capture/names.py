"""Other names of a view's file: hard links among the files of a bucket.

A write through one name changes them all, but the kernel makes an event for that name only.
The journal has the inode of every view, so that the others are inspected when one has changed.
"""

from __future__ import annotations

import os

from fsrepl.capture import copy
from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import Kind, Version
from fsrepl.model.view import view_of
from fsrepl.region.change_queue import ARRIVED, CHANGED, CLOSED, FOUND, MOVED, NAMED, WRITING, Change
from fsrepl.region.region import Region
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.journal.questions import FileNames
from fsrepl.storage.journal.rows import Object
from fsrepl.views import link_groups

_SHOWN_MAX = 3


def look_at_others(region: Region, bucket: OpenBucket, change: Change, taken: copy.Taken) -> None:
    """Queue the other names of a changed view's file, in the epoch of that change.

    A scan finds all names by itself, and a name that was queued here does not queue the others again. Nor is one queued
    that has the content and metadata that were just read: another name was made, as of each file by `cp -al`.
    """
    if taken.found.st_nlink == 1 or change.flags == FOUND:
        return
    if change.flags & NAMED and not change.flags & (CLOSED | MOVED | WRITING):
        return
    views, seen = region.engine.journal.views, []
    for key, known in views.names_of(change.address, taken.found.st_ino).items():
        view = known.view
        if key == change.key or view is None or view.is_like(taken.found):
            continue
        only_edited = known.digest == taken.digest and view.shown == known.id
        if only_edited and view.has_content_of(taken.found) and _is_recorded(region, bucket, key, known.id, taken):
            seen.append((key, view_of(taken.found, known.id, racy=taken.racy)))
            continue
        region.changes.add(change.address, [key], change.epoch, NAMED | (CHANGED if only_edited else ARRIVED))
    if seen:
        views.see_all(change.address, seen)


def _is_recorded(region: Region, bucket: OpenBucket, key: bytes, version_id: str, taken: copy.Taken) -> bool:
    """Whether a version has the metadata that was read from its file, and nothing of it is to be written down."""
    try:
        version = region.engine.recent.version(bucket.address, key, version_id)
        version = version or versions.read(bucket, key, version_id, marker=False)
    except StoreDamaged:
        return False
    if version is None or versions.has_lost_record(version) or versions.is_file_of(bucket, version, taken.found):
        return False
    own = taken.attrs if taken.kind is Kind.FILE else None
    labelled = attributes.VERSION_ID in taken.labels
    return metadata.seen(version, taken.posix, own, taken.tags, labelled=labelled) == version


def linked_to(region: Region, bucket: OpenBucket, key: bytes, taken: copy.Taken) -> tuple[bytes, str] | None:
    """Another key whose file this one is, and its version, the oldest where there are several; None without one."""
    found = taken.found
    rows = region.engine.journal.views.names_of(bucket.address, found.st_ino)
    named = [
        (*known.order, other)
        for other, known in rows.items()
        if known.digest == taken.digest and known.view and known.view.shown == known.id
    ]  # fmt: skip
    of_batch = region.states[bucket.address].captures.new_names.get(found.st_ino, ())
    named += [(*version.order, version.key) for version in of_batch if version.digest == taken.digest]
    for _, version_id, other in sorted(named):
        if other != key and _is_file(bucket, other, found):
            return other, version_id
    return None


def is_linked_anew(region: Region, bucket: OpenBucket, key: bytes, known: Object, taken: copy.Taken) -> bool:
    """Whether a file of the recorded content was replaced by another name of a file, or by a separate file where it was
    one with others. So it is a new version, though its content is the same."""
    view = known.view
    if taken.kind is Kind.DIRECTORY or (view is not None and view.ino == taken.found.st_ino):
        return False
    other = linked_to(region, bucket, key, taken) if taken.found.st_nlink > 1 else None
    if other is not None:
        return link_groups.origin(bucket, (key, known.id)) != link_groups.origin(bucket, other)
    if view is None:
        return False
    rows = region.engine.journal.views.names_of(bucket.address, view.ino)
    named = [(other, row.id) for other, row in rows.items() if other != key and not row.marker]
    # the file itself may be another key's now, since it was moved there: that never was one with this key's
    return bool(named) and link_groups.origin(bucket, (key, known.id)) in {
        link_groups.origin(bucket, other) for other in named
    }


def describe(bucket: OpenBucket, file_names: FileNames, version: Version) -> str:
    """The other names of a key's file, for people; empty where there are none."""
    directory, name = keys.split(version.key)
    try:
        at = bucket.views.get(directory)
        found = bucket.fs.stat(at, name)
        if found.st_nlink == 1 or not bucket.fs.is_regular(found):
            return ""
        number = found.st_nlink - 1 - versions.is_file_of(bucket, version, found)
    except OSError as error:
        if error.errno in LASTING:
            return ""
        raise
    here = [key for key in file_names.names_of(bucket.address, found.st_ino) if key != version.key]
    here = [key for key in here if _is_file(bucket, key, found)]
    if number <= 0:
        return ""
    listed = [keys.shown(key) for key in here[:_SHOWN_MAX]]
    if elsewhere := number - len(listed):
        listed.append(f"{elsewhere:,} more" if listed else f"{elsewhere:,} that are no objects of this bucket")
    return (
        f"its file has other names (hard links): {', '.join(listed)}; a write through one of them changes all, and "
        "only a scan finds a write through one outside the bucket"
    )


def _is_file(bucket: OpenBucket, key: bytes, found: os.stat_result) -> bool:
    directory, name = keys.split(key)
    try:
        return os.path.samestat(bucket.fs.stat(bucket.views.get(directory), name), found)
    except OSError:
        return False
