"""Stored files that people can write to, after a crash took the record of whose views they are.

The journal has how each view looked. So a write into a view that is the stored file of its version is noticed whatever
else happens to the view. Where the journal was lost, or a crash came before it was told, the records in the store
say which file may be whose view. Each one that still is, is recorded as its version has it. Each one that is not may
have been written into before the view was removed or replaced: it is made private, and examined where its time or
another name of it says that this may be so.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

from fsrepl.model.version import Version, recorded_mode
from fsrepl.model.view import View
from fsrepl.storage import record_homes, records, times, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE, LASTING
from fsrepl.storage.intents import CURRENT
from fsrepl.storage.journal.database import Journal
from fsrepl.views.overwritten import At

_NEVER_NS = -1
"""A ctime that no file has: whether attributes of the view were edited is not known either."""


def is_reached(bucket: OpenBucket, record: records.Record, version: Version) -> bool:
    """Whether people could write to a stored file when it was last seen, and nobody has made it private since."""
    found = record.found
    if found is None or version.marker or version.place is not None:
        return False
    if not record_homes.is_private(bucket, found):
        return True
    return record.inline and may_be_written(record, version)


def may_be_written(record: records.Record, version: Version) -> bool:
    """Whether a stored file that people could reach may have been written into, or still can be. Its time is compared
    with that on record; where its user removed that record, with the moment when the version was made."""
    found, given = record.found, version.posix
    if found is None or found.st_nlink > 1:
        return True
    if not (record.inline or record.beside) or given is None:
        return found.st_mtime_ns > version.created_ns
    return not times.is_as_given(found.st_mtime_ns, given.mtime_ns)


def associate(
    journal: Journal, bucket: OpenBucket, reached: Iterable[tuple[Version, records.Record]],
    intended: Mapping[bytes, Collection[str]],
) -> list[At]:  # fmt: skip
    """Record the views that are stored files of these versions; the versions that are to be examined.

    intended: the versions that intents are about to show, by key: their files are no views yet.
    """
    by_key: dict[bytes, list[tuple[Version, records.Record]]] = {}
    for version, record in reached:
        by_key.setdefault(version.key, []).append((version, record))
    seen: list[tuple[bytes, View]] = []
    unseen: list[At] = []
    for key, known in journal.versions.look_up(bucket.address, by_key).items():
        there = _view_status(bucket, key)
        for version, record in by_key[key]:
            found = record.found
            assert found is not None
            if known.view is not None and known.view.ino == found.st_ino and known.view.shown == version.id:
                continue
            if there is not None and os.path.samestat(there, found):
                if known.view is None or version.id == known.id:
                    seen.append((key, _as_recorded(version, there)))
                continue
            if version.id in intended.get(key, ()) or (CURRENT in intended.get(key, ()) and version.id == known.id):
                continue
            if may_be_written(record, version):
                unseen.append((key, version.id))
            else:
                versions.make_private(bucket, key, version.id)
    journal.views.see_all(bucket.address, seen)
    return unseen


def before_write(journal: Journal, bucket: OpenBucket, key: bytes, version_id: str) -> View | None:
    """The recorded view of a version, if that is its stored file and was written into since; else None."""
    known = journal.versions.object(bucket.address, key)
    if known is None or known.view is None or known.view.shown != version_id:
        return None
    try:
        found = bucket.fs.stat(*bucket.stored_file(key, version_id))
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    return known.view if known.view.ino == found.st_ino and not known.view.has_content_of(found) else None


def _view_status(bucket: OpenBucket, key: bytes) -> os.stat_result | None:
    try:
        return bucket.view_status(key)
    except OSError as error:
        if error.errno in LASTING:
            return None
        raise


def _as_recorded(version: Version, found: os.stat_result) -> View:
    """A view as its version has it: what differs from that was written since."""
    mtime_ns = found.st_mtime_ns if version.posix is None else version.posix.mtime_ns
    mode = recorded_mode(found.st_mode)
    return View(found.st_ino, found.st_size, mtime_ns, _NEVER_NS, mode, racy=True, shown=version.id)
