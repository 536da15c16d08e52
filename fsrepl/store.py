"""One bucket's versions and markers: stage, publish, read, list, remove.

A version is written whole in .fsrepl/tmp, with every attribute on it, and appears in the store
by a rename: it is complete or absent, and its content never changes afterwards. Only metadata
and deliveries do, an attribute at a time, or by replacing the sidecar where there is one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blake3 import blake3

from fsrepl import attrs, keys
from fsrepl.errors import StoreDamaged
from fsrepl.fs import DOES_NOT_FIT, GONE, UNSUPPORTED
from fsrepl.model import Posix, Version
from fsrepl.site import OpenBucket

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Staged:
    """A version that lies complete in .fsrepl/tmp, hidden. ino tells whether a view shares its inode."""

    version: Version
    name: bytes
    sidecar: bool


def token() -> bytes:
    """A name for something in .fsrepl/tmp that no other staging uses."""
    return b"%d.%d" % (os.getpid(), next(_numbers))


# -- staging


def put_attributes(bucket: OpenBucket, fd: int, name: bytes, raw: Mapping[str, bytes]) -> bool:
    """Put a version's attributes on its hidden file; whether a sidecar had to take them.

    The sidecar holds all of them; the file keeps those that fit, for people who look.
    """
    overflow = False
    for attribute, value in raw.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if error.errno not in DOES_NOT_FIT | UNSUPPORTED:
                raise
            overflow = True
    if overflow:
        write_sidecar(bucket, name, raw)
    return overflow


def write_sidecar(bucket: OpenBucket, name: bytes, raw: Mapping[str, bytes]) -> None:
    """Stage a sidecar beside a staged file. A full disk shows here as what it is."""
    fd = bucket.fs.create(bucket.tmp, name + keys.SIDECAR)
    try:
        bucket.fs.write(fd, attrs.encode_sidecar(raw))
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)


def stage_marker(bucket: OpenBucket, version: Version) -> Staged:
    name = token()
    fd = bucket.fs.create(bucket.tmp, name)
    try:
        return Staged(version, name, put_attributes(bucket, fd, name, attrs.encode(version)))
    finally:
        bucket.fs.close(fd)


def discard(bucket: OpenBucket, staged: Staged) -> None:
    unstage(bucket, staged.name)


def unstage(bucket: OpenBucket, name: bytes) -> None:
    for each in (name, name + keys.SIDECAR):
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(bucket.tmp, each)


# -- publishing


def publish(bucket: OpenBucket, staged: Staged) -> None:
    """Rename a staged version into the store. Its data must be durable already; the caller syncs the names.

    A null version takes the place of the null version or null marker before it, as in S3.
    """
    version = staged.version
    directory, last = keys.split(version.key)
    path = keys.stored_directory(directory)
    at = bucket.store.get_or_make(path)
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


def remove(bucket: OpenBucket, version: Version) -> None:
    """Remove a version's file, its sidecar after it, and the directories of the store that this empties."""
    directory, last = keys.split(version.key)
    path = keys.stored_directory(directory)
    with contextlib.suppress(FileNotFoundError):
        at = bucket.store.get(path)
        name = keys.stored_name(last, version.id, marker=version.marker)
        _unlink_if_there(bucket, at, name)
        _unlink_if_there(bucket, at, name + keys.SIDECAR)
    bucket.store.changed.add(path)
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


def _unlink_if_there(bucket: OpenBucket, at: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(at, name)


def remember_removed(bucket: OpenBucket, version: Version) -> None:
    """Write down, durably and before it happens, that a version is removed for good. Source: s3-semantics, 9.8."""
    line = json.dumps({"key": os.fsdecode(version.key), "version": version.id}).encode() + b"\n"
    fd = bucket.fs.append(bucket.meta, b"removed.jsonl")
    try:
        bucket.fs.write(fd, line)
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)
    bucket.fs.sync_file(bucket.meta)


# -- reading


def open_version(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool = False) -> int:
    """The stored file of a version, to read. FileNotFoundError where there is none."""
    directory, last = keys.split(key)
    at = bucket.store.get(keys.stored_directory(directory))
    return bucket.fs.open_read(at, keys.stored_name(last, version_id, marker=marker))


def has(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool = False) -> bool:
    directory, last = keys.split(key)
    try:
        at = bucket.store.get(keys.stored_directory(directory))
        bucket.fs.stat(at, keys.stored_name(last, version_id, marker=marker))
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    return True


def is_file_of(bucket: OpenBucket, version: Version, ino: int) -> bool:
    """Whether an inode is that of a stored version: a view that has it is a hard link to it."""
    directory, last = keys.split(version.key)
    try:
        at = bucket.store.get(keys.stored_directory(directory))
        return bucket.fs.stat(at, keys.stored_name(last, version.id, marker=version.marker)).st_ino == ino
    except OSError as error:
        if error.errno in GONE:
            return False
        raise


def read(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool | None = None) -> Version | None:
    """The record of a version or a marker; None where the store has neither. Raises StoreDamaged."""
    directory, last = keys.split(key)
    for kind in (False, True) if marker is None else (marker,):
        try:
            at = bucket.store.get(keys.stored_directory(directory))
            name = keys.stored_name(last, version_id, marker=kind)
            return read_stored(bucket, at, key, keys.StoredName(last, version_id, kind, False), name)
        except OSError as error:
            if error.errno not in GONE:
                raise
    return None


@dataclass(frozen=True, slots=True)
class Record:
    """A stored file as it is: its attributes, with the sidecar's, its inode, its size. Nothing of it is believed yet."""

    raw: Mapping[str, bytes]
    inode: Posix
    size: int

    def version(self, key: bytes, stored: keys.StoredName) -> Version:
        """What it says. key: what its stored path spells. Raises StoreDamaged."""
        return attrs.decode(key, stored, self.raw, self.inode, self.size)


def read_record(bucket: OpenBucket, at: int, name: bytes) -> Record:
    """A file of the store, by its directory and name. Raises OSError, StoreDamaged (a sidecar that is none)."""
    fd = bucket.fs.open_read(at, name)
    try:
        raw = bucket.fs.attributes(fd)
        found = bucket.fs.stat_fd(fd)
        inode = inode_posix(bucket, fd, found)
    finally:
        bucket.fs.close(fd)
    side = read_sidecar(bucket, at, name)
    return Record({**raw, **side} if side else raw, inode, found.st_size)


def read_stored(bucket: OpenBucket, at: int, key: bytes, stored: keys.StoredName, name: bytes) -> Version:
    return read_record(bucket, at, name).version(key, stored)


def inode_posix(bucket: OpenBucket, fd: int, found: os.stat_result) -> Posix:
    """What an inode itself says of mode, owner, time and ACL."""
    return Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, bucket.fs.acl(fd))


def read_sidecar(bucket: OpenBucket, at: int, name: bytes) -> dict[str, bytes]:
    try:
        fd = bucket.fs.open_read(at, name + keys.SIDECAR)
    except FileNotFoundError:
        return {}
    except OSError as error:
        if error.errno in DOES_NOT_FIT:
            return {}
        raise
    try:
        return attrs.decode_sidecar(bucket.fs.read_all(fd))
    finally:
        bucket.fs.close(fd)


def digest(bucket: OpenBucket, fd: int) -> bytes:
    """The BLAKE3 of an open file, 32 bytes."""
    hasher = blake3()
    for chunk in bucket.fs.chunks(fd):
        hasher.update(chunk)
    return hasher.digest()


def walk(bucket: OpenBucket) -> Iterator[tuple[bytes, int, list[tuple[bytes, keys.StoredName]]]]:
    """Every directory of the store: its stored path, a descriptor, and the versions and markers in it."""
    todo = [b""]
    while todo:
        path = todo.pop()
        fd = bucket.fs.open_dir(bucket.versions, path)
        try:
            found = []
            for entry in bucket.fs.entries(fd):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(keys.join(path, name))
                elif entry.is_file(follow_symlinks=False) and (stored := keys.parse(name)) and not stored.sidecar:
                    found.append((name, stored))
            yield path, fd, found
        finally:
            bucket.fs.close(fd)


def stream(bucket: OpenBucket) -> Iterator[tuple[bytes, int, bytes, keys.StoredName]]:
    """Every version and marker, one at a time however large a directory is: its stored path, a descriptor, its name.

    What is removed meanwhile is passed over, and what is added may be. Raises OSError where a directory cannot be read.
    """
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            fd = bucket.fs.open_dir(bucket.versions, path)
        except FileNotFoundError:
            continue
        try:
            for entry in bucket.fs.entries(fd):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(keys.join(path, name))
                elif entry.is_file(follow_symlinks=False) and (stored := keys.parse(name)) and not stored.sidecar:
                    yield path, fd, name, stored
        finally:
            bucket.fs.close(fd)


def read_all(bucket: OpenBucket, prefix: bytes = b"") -> Iterator[Version]:
    """The record of every version and marker, in no order. Raises StoreDamaged for one that contradicts itself."""
    for path, fd, found in walk(bucket):
        for name, stored in found:
            guess = keys.join(path, stored.name)
            if prefix and not guess.startswith(prefix) and b"~" not in guess:
                continue
            with contextlib.suppress(FileNotFoundError):
                version = read_stored(bucket, fd, guess, stored, name)
                if version.key.startswith(prefix):
                    yield version


# -- changing what is not content


def update(bucket: OpenBucket, version: Version, changed: Mapping[str, bytes], gone: frozenset[str] = frozenset()) -> None:
    """Change attributes of a stored version, in place where they fit, else in its sidecar."""
    directory, last = keys.split(version.key)
    path = keys.stored_directory(directory)
    at = bucket.store.get(path)
    name = keys.stored_name(last, version.id, marker=version.marker)
    fd = bucket.fs.open_read(at, name)
    try:
        overflow = False
        for attribute in gone:
            with contextlib.suppress(OSError):
                bucket.fs.remove_attribute(fd, attribute)
        for attribute, value in changed.items():
            try:
                bucket.fs.set_attribute(fd, attribute, value)
            except OSError as error:
                if error.errno not in DOES_NOT_FIT | UNSUPPORTED:
                    raise
                overflow = True
                # the old value must not stand where only the sidecar has the new one
                with contextlib.suppress(OSError):
                    bucket.fs.remove_attribute(fd, attribute)
        side = read_sidecar(bucket, at, name)
        if side or overflow:
            raw = {**bucket.fs.attributes(fd), **side, **changed}
            staged = token()
            write_sidecar(bucket, staged, {n: v for n, v in raw.items() if n not in gone})
            bucket.fs.rename(bucket.tmp, staged + keys.SIDECAR, at, name + keys.SIDECAR)
            bucket.store.changed.add(path)
    finally:
        bucket.fs.close(fd)


def rewrite(bucket: OpenBucket, version: Version) -> None:
    """Write a stored version's record anew, whatever there is of it. The content stays as it is.

    Without its seal a record counts as lost, so that one half written is found, and written again.
    """
    directory, last = keys.split(version.key)
    path = keys.stored_directory(directory)
    at = bucket.store.get(path)
    name = keys.stored_name(last, version.id, marker=version.marker)
    fd = bucket.fs.open_read(at, name)
    try:
        for attribute in [n for n in bucket.fs.attributes(fd) if n in attrs.SEAL]:
            bucket.fs.remove_attribute(fd, attribute)
        _unlink_if_there(bucket, at, name + keys.SIDECAR)
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink == 1 and found.st_mode & 0o177:
            bucket.fs.chmod(fd, 0o600)  # a copy of the tree may have opened it to others
        raw = attrs.encode(version, inode=inode_posix(bucket, fd, bucket.fs.stat_fd(fd)))
        old = bucket.fs.attributes(fd).keys()
    finally:
        bucket.fs.close(fd)
    gone = frozenset(old - raw.keys())
    update(bucket, version, {n: v for n, v in raw.items() if n not in attrs.SEAL}, gone)
    update(bucket, version, {n: v for n, v in raw.items() if n in attrs.SEAL})
    bucket.store.changed.add(path)


def ensure_whole(version: Version) -> Version:
    """The version, if its record has what it needs. Raises StoreDamaged where attributes were stripped."""
    if is_stripped(version):
        raise StoreDamaged(f"version {version.id} has lost its attributes; `fsrepl verify --repair` rebuilds them")
    return version


def is_stripped(version: Version) -> bool:
    """Whether a version, as read, has lost its record. (A marker's tells less, and is found out from its attributes.)"""
    return not version.marker and not version.digest
