"""One bucket's versions and markers: stage, publish, read, list, remove.

A version is written whole in .fsrepl/tmp, with every attribute on it, and appears in the store
by a rename: it is complete or absent, and its content never changes afterwards. Only metadata
and deliveries do, an attribute at a time, or by replacing the sidecar where there is one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from blake3 import blake3

from fsrepl import attrs, edits, keys
from fsrepl.errors import StoreDamaged
from fsrepl.fs import ACL, DOES_NOT_FIT, GONE, UNSUPPORTED
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
    if not _put(bucket, fd, raw):
        return False
    write_sidecar(bucket, name, raw)
    return True


def put_shared(bucket: OpenBucket, fd: int, name: bytes, version: Version) -> Staged:
    """The same for a hidden file that is, or will be, a view too, so that its owner may write its attributes.

    The record is one attribute more, or a sidecar, which nobody but us writes; and the others can be
    compared with it. The inode's own metadata is the object's, as far as that could be.
    """
    posix = inode_posix(bucket, fd, bucket.fs.stat_fd(fd))
    raw = attrs.of_object(version) | attrs.encode(version, inode=posix)  # the object's own first, if room is short
    for attribute in bucket.fs.attributes(fd):
        if attrs.is_ours(attribute) and attribute not in raw:  # it came along with a copy of another file
            bucket.fs.remove_attribute(fd, attribute)
    version = replace(version, shortfall=edits.shortfall(version, posix, _put(bucket, fd, raw)))
    record = attrs.encode(version)
    sidecar = not _put_record(bucket, fd, record)
    if sidecar:
        write_sidecar(bucket, name, record)
    return Staged(version, name, sidecar)


def _put(bucket: OpenBucket, fd: int, raw: Mapping[str, bytes]) -> set[str]:
    """Set attributes of a file in place; the names of those that it does not take."""
    refused = set()
    for attribute, value in raw.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if error.errno not in DOES_NOT_FIT | UNSUPPORTED:
                raise
            refused.add(attribute)
    return refused


def _record_name() -> str:
    return attrs.TRUSTED_RECORD if os.geteuid() == 0 else attrs.OWN_RECORD


def _put_record(bucket: OpenBucket, fd: int, raw: Mapping[str, bytes]) -> bool:
    """Write the whole record of a file that others may write to into one attribute; False where that cannot be."""
    try:
        bucket.fs.set_attribute(fd, _record_name(), attrs.encode_sidecar(raw, compact=True))
    except OSError as error:
        if error.errno not in DOES_NOT_FIT | UNSUPPORTED | {errno.EPERM}:  # EPERM: root of a container only
            raise
        return False
    return True


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
    """A stored file as it is: what is recorded of it, its inode, its size. Nothing of it is believed yet.

    bare: the file has lost its attributes, though the record is elsewhere as well.
    """

    raw: Mapping[str, bytes]
    inode: Posix
    size: int
    bare: bool = False

    def version(self, key: bytes, stored: keys.StoredName) -> Version:
        """What it says. key: what its stored path spells. Raises StoreDamaged."""
        return attrs.decode(key, stored, self.raw, self.inode, self.size)


def read_record(bucket: OpenBucket, at: int, name: bytes) -> Record:
    """A file of the store, by its directory and name. Raises OSError, StoreDamaged (a sidecar that is none)."""
    fd = bucket.fs.open_read(at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        held = _held(bucket, fd, at, name, found)
        raw = held.raw or _believed(bucket, fd, found)
        bare = held.shared and not any(name.startswith(attrs.OURS) for name in bucket.fs.attribute_names(fd))
        inode = inode_posix(bucket, fd, found)
    finally:
        bucket.fs.close(fd)
    return Record(raw, inode, found.st_size, bare)


def read_stored(bucket: OpenBucket, at: int, key: bytes, stored: keys.StoredName, name: bytes) -> Version:
    return read_record(bucket, at, name).version(key, stored)


@dataclass(frozen=True, slots=True)
class _Held:
    """A record that holds whatever the attributes beside it say. Empty: there is none, and they are the record."""

    raw: Mapping[str, bytes]
    sidecar: bool = False
    shared: bool = False
    """Others may write the file's attributes: they can reach it as a view."""


def _held(bucket: OpenBucket, fd: int, at: int, name: bytes, found: os.stat_result) -> _Held:
    side = read_sidecar(bucket, at, name)
    # asked of every file: a view may have been made private before its stored version lost that other name
    inline = bucket.fs.attribute(fd, _record_name())
    shared = inline is not None or found.st_nlink > 1
    if side or inline is None:
        return _Held(side, bool(side), shared)
    return _Held(attrs.decode_sidecar(inline), shared=True)


def _is_private(found: os.stat_result) -> bool:
    """Whether nobody but us can reach a stored file, as those are that are no view."""
    return found.st_nlink == 1 and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _believed(bucket: OpenBucket, fd: int, found: os.stat_result) -> dict[str, bytes]:
    """The attributes of a stored file as its record. What an inode is, nobody may say who could write that himself."""
    raw = bucket.fs.attributes(fd)
    if not _is_private(found) and os.geteuid() == 0:
        raw.pop(attrs.POSIX, None)
    return raw


def inode_posix(bucket: OpenBucket, fd: int, found: os.stat_result) -> Posix:
    """What an inode itself says of mode, owner, time and ACL."""
    return Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, bucket.fs.acl(fd))


def view_metadata(bucket: OpenBucket, fd: int) -> tuple[dict[str, bytes], bytes | None]:
    """The user.* attributes of an open file, and its ACL."""
    raw: dict[str, bytes] = {}
    acl = None
    for name in bucket.fs.attribute_names(fd):
        if name == ACL:
            acl = bucket.fs.acl(fd)
        elif name.startswith("user."):
            value = bucket.fs.attribute(fd, name)
            if value is not None:
                raw[name] = value
    return raw, acl


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


def stream(
    bucket: OpenBucket, unreadable: Callable[[bytes, OSError], None]
) -> Iterator[tuple[bytes, int, bytes, keys.StoredName]]:
    """Every version and marker, one at a time however large a directory is: its stored path, a descriptor, its name.

    What is removed meanwhile is passed over, and what is added may be. unreadable is told of directories that are so.
    """
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            fd = bucket.fs.open_dir(bucket.versions, path)
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable(path, error)
            continue
        try:
            for entry in bucket.fs.entries(fd):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(keys.join(path, name))
                elif entry.is_file(follow_symlinks=False) and (stored := keys.parse(name)) and not stored.sidecar:
                    yield path, fd, name, stored
        except OSError as error:
            unreadable(path, error)
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


def update(
    bucket: OpenBucket, version: Version, changed: Mapping[str, bytes], gone: frozenset[str] = frozenset()
) -> None:
    """Change attributes of a stored version, in the order given; in place where they fit, else in its sidecar."""
    with _opened(bucket, version) as (fd, at, name):
        held = _held(bucket, fd, at, name, bucket.fs.stat_fd(fd))
        _change(bucket, version, fd, at, name, held, changed, gone)


def amend(bucket: OpenBucket, version: Version, *, applied: bool = False) -> None:
    """Make the record of a stored version say what this one says; its content stays as it is.

    applied: an edit from elsewhere, whose stamps come last, since they say that the values are there.
    """
    with _opened(bucket, version) as (fd, at, name):
        found = bucket.fs.stat_fd(fd)
        held = _held(bucket, fd, at, name, found)
        before = held.raw or _believed(bucket, fd, found)
        after = attrs.encode(version)
        changed = {n: v for n, v in after.items() if before.get(n) != v}
        gone = frozenset(before.keys() - after.keys())
        if applied and not held.raw and attrs.EDITED in changed:
            stamps = {attrs.EDITED: changed.pop(attrs.EDITED)}
            _change(bucket, version, fd, at, name, held, changed, gone)
            changed, gone, held = stamps, frozenset(), _held(bucket, fd, at, name, found)
        _change(bucket, version, fd, at, name, held, changed, gone)


def share(bucket: OpenBucket, version: Version) -> None:
    """A stored version is about to be a view too: keep its record where the view's owner cannot write."""
    with _opened(bucket, version) as (fd, at, name):
        found = bucket.fs.stat_fd(fd)
        if not _held(bucket, fd, at, name, found).raw:
            _hold(bucket, version, fd, at, name, _Held({}, shared=True), attrs.encode(version))


def rewrite(bucket: OpenBucket, version: Version) -> None:
    """Write a stored version's record anew, whatever there is of it. The content stays as it is.

    Without its seal a record counts as lost, so that one half written is found, and written again.
    """
    with _opened(bucket, version) as (fd, at, name):
        _remove(bucket, fd, {_record_name()})
        for attribute in [n for n in bucket.fs.attributes(fd) if n in attrs.SEAL]:
            bucket.fs.remove_attribute(fd, attribute)
        _unlink_if_there(bucket, at, name + keys.SIDECAR)
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink == 1 and found.st_mode & 0o177:
            bucket.fs.chmod(fd, 0o600)  # a copy of the tree may have opened it to others
        old = bucket.fs.attributes(fd).keys()
        raw = attrs.encode(version)
        _put(bucket, fd, attrs.of_object(version))  # where it is a view too, those are gone with ours
    update(bucket, version, {n: v for n, v in raw.items() if n not in attrs.SEAL}, frozenset(old - raw.keys()))
    update(bucket, version, {n: v for n, v in raw.items() if n in attrs.SEAL})
    bucket.store.changed.add(keys.stored_directory(keys.split(version.key)[0]))


@contextlib.contextmanager
def _opened(bucket: OpenBucket, version: Version) -> Iterator[tuple[int, int, bytes]]:
    """The file of a stored version, the directory it is in, and its name there."""
    directory, last = keys.split(version.key)
    at = bucket.store.get(keys.stored_directory(directory))
    name = keys.stored_name(last, version.id, marker=version.marker)
    fd = bucket.fs.open_read(at, name)
    try:
        yield fd, at, name
    finally:
        bucket.fs.close(fd)


def _change(
    bucket: OpenBucket, version: Version, fd: int, at: int, name: bytes, held: _Held,
    changed: Mapping[str, bytes], gone: frozenset[str],
) -> None:  # fmt: skip
    if held.raw or held.shared or _put(bucket, fd, changed):
        before = held.raw or bucket.fs.attributes(fd)
        record = {n: v for n, v in {**before, **changed}.items() if n not in gone}
        _hold(bucket, version, fd, at, name, held, record)
        if held.shared:  # what is not ours there is the view's, and may have been edited since
            ours = {n: v for n, v in changed.items() if attrs.is_ours(n) and n != attrs.POSIX}
            _remove(bucket, fd, {n for n in gone if attrs.is_ours(n)} | _put(bucket, fd, ours))
    else:
        _remove(bucket, fd, gone)


def _hold(
    bucket: OpenBucket, version: Version, fd: int, at: int, name: bytes, held: _Held, record: Mapping[str, bytes]
) -> None:
    """Write down a whole record: in the file's attributes again if they do and nobody else may write those, or beside.

    What held before holds until the new one is there.
    """
    directory = keys.stored_directory(keys.split(version.key)[0])
    if held.shared:
        beside = not _put_record(bucket, fd, record)
    else:
        beside = not held.sidecar or not _fits(bucket, fd, record)
    if beside:
        staged = token()
        write_sidecar(bucket, staged, record)
        bucket.fs.rename(bucket.tmp, staged + keys.SIDECAR, at, name + keys.SIDECAR)
        bucket.store.changed.add(directory)
        if held.shared:
            _remove(bucket, fd, {_record_name()})
        else:
            _fits(bucket, fd, record)
    elif held.sidecar:
        bucket.fs.sync_file(fd)
        _unlink_if_there(bucket, at, name + keys.SIDECAR)
        bucket.store.changed.add(directory)


def _fits(bucket: OpenBucket, fd: int, record: Mapping[str, bytes]) -> bool:
    """Make a file's attributes these, as far as they fit; whether all do."""
    before = bucket.fs.attributes(fd)
    _remove(bucket, fd, before.keys() - record.keys())
    refused = _put(bucket, fd, {n: v for n, v in record.items() if before.get(n) != v})
    _remove(bucket, fd, refused & before.keys())  # rather none than one that is no longer true
    return not refused


def _remove(bucket: OpenBucket, fd: int, names: Collection[str]) -> None:
    for attribute in names:
        try:
            bucket.fs.remove_attribute(fd, attribute)
        except OSError as error:
            if error.errno != errno.ENODATA and error.errno not in UNSUPPORTED:
                raise


def read_whole(bucket: OpenBucket, key: bytes, version_id: str, *, marker: bool) -> Version | None:
    """The record of a version or a marker; None where there is none. Raises StoreDamaged where that is gone."""
    directory, last = keys.split(key)
    name = keys.stored_name(last, version_id, marker=marker)
    try:
        record = read_record(bucket, bucket.store.get(keys.stored_directory(directory)), name)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    if not attrs.is_whole(record.raw, keys.stored_path(key), marker=marker):
        raise StoreDamaged(f"version {version_id} has lost its attributes")
    return record.version(key, keys.StoredName(last, version_id, marker, False))


def ensure_whole(version: Version) -> Version:
    """The version, if its record has what it needs. Raises StoreDamaged where attributes were stripped."""
    if is_stripped(version):
        raise StoreDamaged(f"version {version.id} has lost its attributes; `fsrepl verify --repair` rebuilds them")
    return version


def is_stripped(version: Version) -> bool:
    """Whether a version, as read, has lost its record. (A marker's tells less, and is found out from its attributes.)"""
    return not version.marker and not version.digest
