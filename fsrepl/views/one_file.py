"""The names of one file in a tree bucket have one metadata: an edit of the file is on the record of each of them, with
one stamp.

A user edits the file through one name, and the capture of each name records that. A replica's edits arrive name by
name, late or never: a name may be gone at the source before its edit was captured. So what one name brings is recorded
for all of them as it is applied to their file. Otherwise a later look at another name would take it for a user's edit
made here and now, which wins over edits that have not arrived yet; and an edit that arrives by another name would undo
it. Source: model/metadata.py, of_one_file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import metadata
from fsrepl.model.version import Version
from fsrepl.model.view import View
from fsrepl.region.recent import Recent
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.journal.questions import FileNames

_NONE: Mapping[bytes, View] = MappingProxyType({})


class Name(Struct, frozen=True):
    """A key whose view is a file, with the version that it shows and the view as it is on record."""

    version: Version
    view: View


def other_names(
    file_names: FileNames, bucket: OpenBucket, version: Version, ino: int, *, shown: Mapping[bytes, View] = _NONE
) -> list[Name]:
    """The other names of a version's file in a tree bucket that show the same content.

    shown: views that the journal does not know yet. A name whose record is lost or damaged is left out.
    """
    if not bucket.bucket.trees:
        return []
    rows = file_names.names_of(bucket.address, ino)
    views = {
        key: known.view
        for key, known in rows.items()
        if known.view and not known.marker and known.view.shown == known.id
    }
    views |= {key: view for key, view in shown.items() if view.ino == ino or key in views}
    found = []
    for key, view in views.items():
        if key == version.key or view.ino != ino or not _is_file(bucket, key, version.key):
            continue
        with contextlib.suppress(StoreDamaged):
            other = versions.read(bucket, key, view.shown, marker=False)
            if other is not None and (other.kind, other.digest) == (version.kind, version.digest):
                found.append(Name(other, view))
    return found


def _is_file(bucket: OpenBucket, key: bytes, other: bytes) -> bool:
    """Whether two keys' views are one file: inode numbers are used again, and differ only within a filesystem."""
    try:
        return os.path.samestat(bucket.view_status(key), bucket.view_status(other))
    except OSError as error:
        if error.errno in LASTING:
            return False
        raise


def latest(version: Version, names: Iterable[Name], home: str) -> Version:
    """A version with the latest metadata that is on record for its file. home: the bucket."""
    for name in names:
        version = metadata.of_one_file(version, name.version, home)
    return version


def behind(names: Iterable[Name], version: Version, home: str) -> list[tuple[Version, Version]]:
    """The versions of other names that lack metadata of their file, each as it is and as it will be. version: one that
    has it. home: the bucket."""
    after = ((name.version, metadata.of_one_file(name.version, version, home)) for name in names)
    return [(was, now) for was, now in after if now != was]


def write(bucket: OpenBucket, recent: Recent | None, version: Version) -> None:
    """Write a version's record, as it arrived from elsewhere."""
    if recent is not None:
        recent.forget(bucket.address, version.key, version.id)
    versions.write_record(bucket, version, applied=True)


def share_shortfall(bucket: OpenBucket, recent: Recent | None, version: Version, names: Iterable[Name]) -> None:
    """Record for the other names of a file the metadata that it did not take, as the record of this version has it.

    Raises OSError, StoreDamaged.
    """
    shown = versions.read(bucket, version.key, version.id, marker=False)
    for name in names:
        if shown is None or name.version.shortfall == shown.shortfall:
            continue
        other = versions.read(bucket, name.version.key, name.version.id, marker=False)
        if other is not None:
            write(bucket, recent, replace(other, shortfall=shown.shortfall))
