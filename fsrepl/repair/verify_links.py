"""Hard links of a tree bucket compared: keys that are names of one file or symlink at the source are so in the replica.

Compared by what the files are now. A view that the journal knows as another file was changed just now, and is captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fsrepl.model import keys
from fsrepl.repair.compare import Difference, Problem
from fsrepl.repair.sides import Side
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.questions import CurrentVersions

_File = tuple[int, int]
"""The device and inode number of a file."""


def groups(side: Side, index: Journal) -> list[list[bytes]]:
    """The keys of each file of a bucket that is several keys' view. index: has the bucket's current versions."""
    found: dict[_File, list[bytes]] = {}
    for key, current in index.versions.objects(side.address):
        file = None if current.marker or keys.is_directory(key) else _file(side, key, with_names=True)
        if file is not None:
            found.setdefault(file, []).append(key)
    return [names for names in found.values() if len(names) > 1]


def apart(source: Side, side: Side, names: Sequence[bytes], current: CurrentVersions) -> Iterator[tuple[bytes, bytes]]:
    """Keys that are one file at the source, and whose views in a replica are not: the first of them, and each other
    one. Only keys whose current version is the same on both sides are compared.
    """
    there, here = (current.look_up(each.address, names) for each in (source, side))
    alike = [key for key in names if key in here and not here[key].marker and here[key].id == there[key].id]
    files = {key: file for key in alike if (file := _file(side, key)) is not None}
    first = next(iter(files), b"")
    yield from ((first, key) for key, file in files.items() if file != files[first])


def difference(
    source: Side, side: Side, current: CurrentVersions | None, first: bytes, key: bytes
) -> Difference | None:
    """The difference of two keys' views, by how the files are now; None where there is none, or a change that is to be
    captured first."""
    ours, theirs = ([_file(each, name) for name in (first, key)] for each in (source, side))
    newest = side.newest(key)
    if newest is None or newest.marker or None in ours or None in theirs:
        return None
    if ours[0] != ours[1] or theirs[0] == theirs[1]:
        return None
    for name, file in zip((first, key), theirs, strict=True):
        known = current.object(side.address, name) if current is not None else None
        if known is not None and known.view is not None and file is not None and known.view.ino != file[1]:
            return None
    return side.wrong(newest, Problem.VIEW, f"it is a file of its own, and at its source a name of {keys.shown(first)}")


def _file(side: Side, key: bytes, *, with_names: bool = False) -> _File | None:
    """A key's file or symlink; None where there is none. with_names: and where it has no other name."""
    bucket = side.bucket
    try:
        found = bucket.view_status(key)
        if not bucket.is_object(key, found) or (with_names and found.st_nlink == 1):
            return None
        directory, name = keys.split(key)
        if bucket.link_target(bucket.views.get(directory), name, found) is not None:  # a symlink to content in a tier
            return None
    except OSError:
        return None
    return found.st_dev, found.st_ino
