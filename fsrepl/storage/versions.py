"""Versions and markers of one bucket: stage, publish, read, list, remove.

A version is written completely in .fsrepl/tmp, with all attributes, and is renamed into the store. It is therefore
complete or absent, and its content never changes afterwards. Only metadata and deliveries change (storage/records.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import RecordLost, StoreDamaged, Unavailable
from fsrepl.model import attributes, digests, keys, record_form
from fsrepl.model.version import Version
from fsrepl.storage import documents, hashing, record_homes, records, staging, tiers
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import BAD_BLOCK, GONE, LASTING, FileType
from fsrepl.storage.walk import Failed, directories


class Staged(Struct, frozen=True):
    """A complete hidden version in .fsrepl/tmp."""

    version: Version
    name: bytes
    sidecar: bool


# -- staging


def stage_copy(bucket: OpenBucket, name: bytes, version: Version) -> Staged:
    """Turn a file in .fsrepl/tmp with a version's content into that version, staged; wherever it lay before."""
    if version.place is not None:
        version = replace(version, place=None)
    fd = bucket.fs.open_read(bucket.tmp, name)
    try:
        return Staged(version, name, records.put(bucket, fd, name, version))
    finally:
        bucket.fs.close(fd)


def stage_marker(bucket: OpenBucket, version: Version) -> Staged:
    name = staging.token()
    fd = bucket.fs.create(bucket.tmp, name)
    try:
        return Staged(version, name, records.put(bucket, fd, name, version))
    finally:
        bucket.fs.close(fd)


def restage(bucket: OpenBucket, staged: Staged) -> Staged:
    """Give a staged version another, unique name in .fsrepl/tmp."""
    name = staging.token()
    if staged.sidecar:
        bucket.fs.rename(bucket.tmp, staged.name + keys.SIDECAR, bucket.tmp, name + keys.SIDECAR)
    bucket.fs.rename(bucket.tmp, staged.name, bucket.tmp, name)
    return Staged(staged.version, name, staged.sidecar)


def stage_placed(bucket: OpenBucket, version: Version) -> Staged:
    """Stage the stored file of a version whose content lies in a tier: empty, with the record.

    The record gets a sidecar where the present file has one, which would hold over a record without one.
    """
    assert version.place is not None
    staged = stage_marker(bucket, version)
    if not staged.sidecar and _has_sidecar(bucket, version):
        record_homes.write_sidecar(bucket, staged.name, attributes.encode(version))
        return replace(staged, sidecar=True)
    return staged


def _has_sidecar(bucket: OpenBucket, version: Version) -> bool:
    try:
        at, name = bucket.stored_file(version.key, version.id)
        bucket.fs.stat(at, name + keys.SIDECAR)
    except FileNotFoundError:
        return False
    return True


def discard(bucket: OpenBucket, staged: Staged) -> None:
    staging.unstage(bucket, staged.name)


# -- publishing


def publish(bucket: OpenBucket, staged: Staged, *, is_first: bool = False) -> None:
    """Rename a staged version into the store. Its data must be durable already; the caller syncs the names.

    A null version replaces the former null version or null marker, as in S3. is_first: the key has no other version, as
    far as known; then a directory mostly has no directory in the store yet.
    """
    version = staged.version
    directory, last = keys.split(version.key)
    path = keys.stored_directory(directory)
    at = bucket.store.get_or_make(path, is_new=is_first and not last)
    name = keys.stored_name(last, version.id, marker=version.marker)
    if staged.sidecar:
        bucket.fs.rename(bucket.tmp, staged.name + keys.SIDECAR, at, name + keys.SIDECAR)
    elif version.id == "null":
        _unlink_if_there(bucket, at, name + keys.SIDECAR)
    bucket.fs.rename(bucket.tmp, staged.name, at, name)
    if version.id == "null":
        other = keys.stored_name(last, version.id, marker=not version.marker)
        _unlink_if_there(bucket, at, other)
        _unlink_if_there(bucket, at, other + keys.SIDECAR)
    bucket.store.changed.add(path)


def publish_moved(bucket: OpenBucket, staged: Staged) -> None:
    """Rename the staged file of a version over its present one, whose content lies in another place.

    Content is where the record says after each step: the record that names a tier comes before the content of the
    present file is gone, and goes after the content is back. Both places have the content meanwhile.
    """
    at, name = bucket.stored_file(staged.version.key, staged.version.id)
    steps = [(b"", staged.name), (keys.SIDECAR, staged.name + keys.SIDECAR)]
    for suffix, source in reversed(steps) if staged.version.place is not None else steps:
        if suffix and not staged.sidecar:
            _unlink_if_there(bucket, at, name + suffix)
        else:
            bucket.fs.rename(bucket.tmp, source, at, name + suffix)
    bucket.store_changed(staged.version.key)


def write_record(bucket: OpenBucket, version: Version, *, applied: bool = False) -> None:
    """Change the record of a stored version to match `version`. applied: see records.amend.

    Where the view is the same file, and its mode would exclude a daemon that is not root from its store, the version
    gets a separate file first.
    """
    if version.posix is not None and version.posix.mode & 0o600 != 0o600 and os.geteuid() != 0:
        fd = open_version(bucket, version.key, version.id, marker=version.marker)
        try:
            if bucket.fs.stat_fd(fd).st_nlink > 1:
                records.separate(bucket, version, fd)
                return
        finally:
            bucket.fs.close(fd)
    records.amend(bucket, version, applied=applied)


def make_private(
    bucket: OpenBucket, key: bytes, version_id: str, view: records.OpenFile | None = None
) -> Version | None:
    """Make a version's file private after its view was removed, where possible: see records.make_left_private.

    No other user reaches the file in any case, since .fsrepl is private to the daemon.
    """
    with contextlib.suppress(OSError, StoreDamaged):
        return records.make_left_private(bucket, key, version_id, view)
    return None


def remove(bucket: OpenBucket, version: Version) -> None:
    """Remove a version's file, then its sidecar, then directories of the store that became empty.

    Content in a tier is removed last: a tier that is away has it removed later (lifecycle/tier_sweep.py).
    """
    remove_all(bucket, [_placed(bucket, version)])


def remove_all(bucket: OpenBucket, gone: Sequence[Version], plain: Collection[Version] = ()) -> None:
    """Remove many versions, as remove does; a directory that became empty is removed once. Their places are as their
    records say. plain: those of them that have no sidecar, as a look at their records has just shown."""
    has_none = {(version.key, version.id) for version in plain}
    paths = set()
    for version in gone:
        directory, last = keys.split(version.key)
        path = keys.stored_directory(directory)
        paths.add(path)
        try:
            at = bucket.store.get(path)
        except FileNotFoundError:
            continue
        name = keys.stored_name(last, version.id, marker=version.marker)
        _unlink_if_there(bucket, at, name)
        if (version.key, version.id) not in has_none:
            _unlink_if_there(bucket, at, name + keys.SIDECAR)
    bucket.store.changed |= paths
    for path in sorted(paths, reverse=True):
        _remove_empty(bucket, path)
    for version in gone:
        if version.place is not None:
            with contextlib.suppress(OSError, Unavailable):
                bucket.tier(version.place.tier).remove(version.key, version.place)


def _remove_empty(bucket: OpenBucket, path: bytes) -> None:
    """Remove a directory of the store if it is empty, and then those above it."""
    while path:
        parent, last = keys.split(path)
        bucket.store.forget(path)
        try:
            bucket.fs.remove_dir(bucket.store.get(parent), last)
        except OSError:
            break  # not empty
        bucket.store.changed.discard(path)
        bucket.store.changed.add(parent)
        path = parent


def _placed(bucket: OpenBucket, version: Version) -> Version:
    """The record of a version that is about to be removed, where it may lie in a tier."""
    if version.place is None and not version.marker and bucket.bucket.root.settings.classes:
        with contextlib.suppress(OSError, StoreDamaged):
            return read(bucket, version.key, version.id, marker=False) or version
    return version


def _unlink_if_there(bucket: OpenBucket, at: int, name: bytes) -> bool:
    """Remove a file; whether it was there."""
    try:
        bucket.fs.unlink(at, name)
    except FileNotFoundError:
        return False
    return True


def remember_removed(bucket: OpenBucket, *gone: Version) -> None:
    """Record durably, in advance, that versions are removed permanently. Source: s3-semantics, 9.8."""
    lines = [documents.removed_line(version.key, version.id) for version in gone]
    fd = bucket.fs.append(bucket.meta, b"removed.jsonl")
    try:
        size = bucket.fs.stat_fd(fd).st_size
        if not _ends_well(bucket, b"removed.jsonl", size):
            lines.insert(0, b"\n")  # ends a line that a crash cut short
        bucket.fs.write(fd, b"".join(lines))
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)
    if not size:  # else its name is durable: a crash before that leaves the caller's intent, and then all is synced
        bucket.fs.sync_file(bucket.meta)


def _ends_well(bucket: OpenBucket, name: bytes, size: int) -> bool:
    """Whether a file of lines ends with a line end."""
    if size == 0:
        return True
    fd = bucket.fs.open_read(bucket.meta, name)
    try:
        return bucket.fs.read_at(fd, 1, size - 1) == b"\n"
    finally:
        bucket.fs.close(fd)


# -- reading


def open_version(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool = False) -> int:
    """The stored file of a version, opened to read; see open_content. FileNotFoundError where there is none."""
    return records.open_file(bucket, *bucket.stored_file(key, version_id, marker=marker))


def open_content(bucket: OpenBucket, version: Version) -> int:
    """The content of a version, opened to read, wherever it lies.

    Raises FileNotFoundError where there is none, Unavailable where it lies in a tier that is away,
    Refused(InvalidObjectState) where it is archived and not restored.
    """
    if version.place is None:
        return open_version(bucket, version.key, version.id)
    return bucket.tier(version.place.tier).open_content(version.key, version.place, bucket.bucket.root.now())


def open_stored(bucket: OpenBucket, version: Version) -> int:
    """The file that has the content of a version, opened as it lies there, archived or not; see tiers.decoded.

    Raises FileNotFoundError where there is none, Unavailable where it lies in a tier that is away.
    """
    if version.place is None:
        return open_version(bucket, version.key, version.id)
    return bucket.tier(version.place.tier).open_stored(version.key, version.place)


def stored_digest(
    bucket: OpenBucket, version: Version, fd: int, progress: Callable[[int], None] | None = None
) -> bytes:  # fmt: skip
    """The BLAKE3 of the content in a file from open_stored, read past the page cache; decompressed where it is archived
    so. progress: called with the number of bytes hashed. Raises OSError, StoreDamaged."""
    if version.place is not None and version.place.is_archived:
        return digests.of_chunks(digests.counted(tiers.decoded(bucket.fs, fd, version.place), progress))
    return hashing.digest_past_cache(bucket.fs, fd, bucket.fs.stat_fd(fd).st_size, progress)


def has(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool = False) -> bool:
    try:
        bucket.fs.stat(*bucket.stored_file(key, version_id, marker=marker))
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    return True


def is_file_of(bucket: OpenBucket, version: Version, found: os.stat_result) -> bool:
    """Whether a file is that of a stored version, as a view with two names is.

    Two files of one bucket may have the same inode number: in different btrfs subvolumes, or layers of an overlay.
    """
    try:
        stored = bucket.fs.stat(*bucket.stored_file(version.key, version.id, marker=version.marker))
        return os.path.samestat(stored, found)
    except OSError as error:
        if error.errno in GONE | BAD_BLOCK:  # that one could not be looked at
            return False
        raise


def is_stored_file(bucket: OpenBucket, key: bytes, version_id: str, found: os.stat_result) -> bool:
    """Whether a file is that of a stored version, as far as that can be known now."""
    with contextlib.suppress(OSError):
        return os.path.samestat(bucket.fs.stat(*bucket.stored_file(key, version_id)), found)
    return False


def is_beside(bucket: OpenBucket, key: bytes) -> bool:
    """Whether one file can be both a key's version and its view: they are not in two btrfs subvolumes."""
    directory = keys.split(key)[0]
    try:
        view = bucket.fs.stat_fd(bucket.views.get(directory))
    except OSError as error:
        if error.errno in LASTING:
            return True  # a missing file or a link shows nothing
        raise
    return bucket.fs.stat_fd(bucket.stored_directory(directory)).st_dev == view.st_dev


class Looked(NamedTuple):
    """A version by its record; whether that is a sidecar, and whether the version may not be removed (chattr +i)."""

    version: Version
    has_sidecar: bool
    is_locked: bool


def read(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool | None = None) -> Version | None:
    """The record of a version or a marker; None where the store has neither. Raises StoreDamaged."""
    found = look_at(bucket, key, version_id, marker=marker)
    return found.version if found is not None else None


def look_at(
    bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool | None = None, asks_lock: bool = False
) -> Looked | None:
    """A version, as by read, and where its record is. asks_lock: also whether the version may be removed: its stored
    file, or its content in a tier, may be immutable."""
    last = keys.split(key)[1]
    for kind in (False, True) if marker is None else (marker,):
        try:
            at, name = bucket.stored_file(key, version_id, marker=kind)
            record = records.read(bucket, at, name, key, asks_lock=asks_lock)
            version = record.version(key, keys.StoredName(last, version_id, kind, False))
            is_locked = record.locked or (
                asks_lock and version.place is not None and _is_content_locked(bucket, version)
            )
            return Looked(version, record.beside, is_locked)
        except OSError as error:
            if error.errno not in GONE:
                raise
    return None


class Glance(NamedTuple):
    """The BLAKE3 of a version, empty for a marker, its origin as the record has it, and whether it may not be removed
    (chattr +i)."""

    digest: bytes
    origin: str
    is_locked: bool


def glance_at(
    bucket: OpenBucket, key: bytes, version_id: str, created_ns: int, *, marker: bool, asks_lock: bool
) -> Glance | None:
    """The record of a version of which all else is known, with half the calls of look_at. Its content is in the store.

    None where its record is not as simple as most, or not that of this version and time. Raises OSError.
    """
    fd = records.open_file(bucket, *bucket.stored_file(key, version_id, marker=marker))
    try:
        said = bucket.fs.attribute(fd, attributes.RECORD)
        found = None if said is None else record_form.glance(said, version_id, created_ns)
        if found is None or marker == bool(found[0]):
            return None
        return Glance(*found, asks_lock and bucket.fs.is_locked(fd))
    finally:
        bucket.fs.close(fd)


def _is_content_locked(bucket: OpenBucket, version: Version) -> bool:
    try:
        fd = open_stored(bucket, version)
    except (OSError, Unavailable):
        return False
    try:
        return bucket.fs.is_locked(fd)
    finally:
        bucket.fs.close(fd)


def read_stored(bucket: OpenBucket, at: int, key: bytes, stored: keys.StoredName, name: bytes) -> Version:
    return records.read(bucket, at, name, key).version(key, stored)


def walk(bucket: OpenBucket, start: bytes = b"") -> Iterator[tuple[bytes, int, list[tuple[bytes, keys.StoredName]]]]:
    """Every directory of the store: its stored path, a descriptor, and its versions and markers."""
    for directory in directories(bucket.fs, bucket.versions, start):
        found = [(name, stored) for name, kind in directory.entries if (stored := stored_as(name, kind))]
        yield directory.path, directory.fd, found


def stream(bucket: OpenBucket, unreadable: Failed) -> Iterator[tuple[bytes, int, bytes, keys.StoredName]]:
    """Every version and marker, one at a time however large a directory is: its stored path, a descriptor, its name.

    Files removed meanwhile are omitted, and added ones may be. unreadable: called for each unreadable directory.
    """
    for directory in directories(bucket.fs, bucket.versions, failed=unreadable):
        for name, kind in directory.entries:
            if stored := stored_as(name, kind):
                yield directory.path, directory.fd, name, stored


def stored_as(name: bytes, kind: FileType) -> keys.StoredName | None:
    """The parts of the name of a version or a marker in the store; None for anything else there."""
    stored = keys.parse(name) if kind is FileType.REGULAR else None
    return None if stored is None or stored.sidecar else stored


def read_all(bucket: OpenBucket, prefix: bytes = b"") -> Iterator[Version]:
    """The record of every version and marker, in no order. Raises StoreDamaged for a contradictory one."""
    for path, fd, found in walk(bucket):
        for name, stored in found:
            guess = keys.join(path, stored.name)
            if prefix and not guess.startswith(prefix) and b"~" not in guess:
                continue
            with contextlib.suppress(FileNotFoundError):
                version = read_stored(bucket, fd, guess, stored, name)
                if version.key.startswith(prefix):
                    yield version


def read_whole(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool) -> Version | None:
    """The record of a version or a marker; None where it does not exist. Raises StoreDamaged where the record is
    lost."""
    try:
        record = records.read(bucket, *bucket.stored_file(key, version_id, marker=marker), key)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    if not attributes.is_whole(record.raw, keys.stored_path(key), marker=marker):
        raise RecordLost(f"version {version_id} has lost its attributes")
    return record.version(key, keys.StoredName(keys.split(key)[1], version_id, marker, False))


def ensure_whole(version: Version) -> Version:
    """The version, if its record is complete. Raises RecordLost where its attributes are lost."""
    if has_lost_record(version):
        raise RecordLost(f"version {version.id} has lost its attributes; `fsrepl verify --repair` rebuilds them")
    return version


def has_lost_record(version: Version) -> bool:
    """Whether a version, as read, has lost its record. (A marker's record is shorter: see its attributes.)"""
    return not version.marker and not version.digest
