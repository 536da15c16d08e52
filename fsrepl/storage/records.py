"""What is recorded of a version, beside its content: where that stands, and how it is changed.

The record of a stored file is its extended attributes. It is one thing more, whole, where those do not do:

    a sidecar     a file beside it, where the attributes do not all fit
    an attribute  which only we may write, where the file is a view too, so that its user may write the others

Where there is such a thing it holds, whatever the attributes say; they stay as far as they fit, for people
who look. A change of a record is written so that a crash in between leaves the old one, or a difference
that is found again.

Two stored versions may come to have one inode: jdupes, rdfind and hardlink join files of equal content. The record on
it is one of theirs at most; the others have lost theirs, and get a file of their own before a record of theirs is
written. Hard links from elsewhere, as in a backup, are none of that.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, metadata, record_form
from fsrepl.model.version import Posix, Version
from fsrepl.storage import copying, posix
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import DOES_NOT_FIT, UNSUPPORTED
from fsrepl.storage.posix import inode_posix

log = logging.getLogger("fsrepl")


_numbers = itertools.count()


# -- what a file says


def open_file(bucket: OpenBucket, at: int, name: bytes) -> int:
    """A file of the store, to read; ours also where its mode keeps its owner out, as that of a view that it is too may.

    For that moment its owner may read it; nobody else gains by it. Raises OSError.
    """
    try:
        return bucket.fs.open_read(at, name)
    except PermissionError:
        if bucket.fs.read_only:
            raise
    inode = bucket.fs.open_inode(at, name)
    try:
        mode = bucket.fs.stat_fd(inode).st_mode & 0o7777
        bucket.fs.chmod(inode, mode | 0o400)
        try:
            return bucket.fs.open_read(at, name)
        finally:
            bucket.fs.chmod(inode, mode)
    finally:
        bucket.fs.close(inode)


def owner(bucket: OpenBucket, fd: int) -> tuple[bytes, str] | None:
    """The stored version, by key and id, whose file an open view says it is. To be looked up before it is believed."""
    with contextlib.suppress(StoreDamaged, KeyError, UnicodeDecodeError):
        if raw := _inline(bucket, fd):
            return raw[attributes.KEY], raw[attributes.VERSION_ID].decode()
    return None


def is_shared(bucket: OpenBucket, fd: int) -> bool:
    """Whether people can reach a stored file, or could: it says so, or says nothing any more."""
    if not any(name.startswith(attributes.OURS) for name in bucket.fs.attribute_names(fd)):
        return True
    try:
        return _inline(bucket, fd) is not None
    except StoreDamaged:
        return True


# -- putting it on a file that is hidden still


def put(bucket: OpenBucket, fd: int, name: bytes, raw: Mapping[str, bytes]) -> bool:
    """Put a version's attributes on its hidden file; whether a sidecar had to take them.

    The sidecar holds all of them; the file keeps those that fit, for people who look.
    """
    if not _put(bucket, fd, raw):
        return False
    write_sidecar(bucket, name, raw)
    return True


def put_shared(
    bucket: OpenBucket, fd: int, name: bytes, version: Version, *, new: Posix | None = None
) -> tuple[Version, bool]:
    """The same for a hidden file that is, or will be, a view too, so that its owner may write its attributes.

    The version with what the file falls short of, and whether a sidecar had to take the record. The inode's
    own metadata is the object's, as far as that could be. new: what the inode says, where the file was made
    just now and has no attributes yet.
    """
    posix = new or inode_posix(bucket, fd, bucket.fs.stat_fd(fd))
    record = attributes.encode(version)
    raw = attributes.of_object(version) | record  # the object's own first, if room is short
    if version.posix == posix:
        raw.pop(attributes.POSIX, None)  # the inode says it
    for attribute in () if new else bucket.fs.attributes(fd):
        if attributes.is_ours(attribute) and attribute not in raw:  # it came along with a copy of another file
            bucket.fs.remove_attribute(fd, attribute)
    shortfall = metadata.shortfall(version, posix, _put(bucket, fd, raw, shared=True))
    if shortfall != version.shortfall:
        version = replace(version, shortfall=shortfall)
        record = attributes.encode(version)
    sidecar = not _put_record(bucket, fd, version.key, record)
    if sidecar:
        write_sidecar(bucket, name, record)
    return version, sidecar


_SHUT = frozenset({errno.EACCES, errno.EPERM})
"""What a file answers that its mode keeps even its owner from writing to. Then it is a view too: only there its mode
is the object's."""


def _put(bucket: OpenBucket, fd: int, raw: Mapping[str, bytes], *, shared: bool = False) -> set[str]:
    """Set attributes of a file in place; the names of those that it does not take."""
    refused = set()
    for attribute, value in raw.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if error.errno not in DOES_NOT_FIT | UNSUPPORTED | (_SHUT if shared else frozenset()):
                raise
            refused.add(attribute)
    return refused


def _record_name(bucket: OpenBucket) -> str:
    return attributes.TRUSTED_RECORD if bucket.fs.uid == 0 else attributes.OWN_RECORD


def _put_record(bucket: OpenBucket, fd: int, key: bytes, raw: Mapping[str, bytes]) -> bool:
    """Write the whole record of a file that others may write to into one attribute; False where that cannot be.

    The key is always in it: the file may be found under other names than its own.
    """
    try:
        bucket.fs.set_attribute(
            fd, _record_name(bucket), attributes.encode_sidecar({**raw, attributes.KEY: key}, compact=True)
        )
    except OSError as error:
        if error.errno not in DOES_NOT_FIT | UNSUPPORTED | _SHUT:  # EPERM: root of a container only
            raise
        return False
    return True


def write_sidecar(bucket: OpenBucket, name: bytes, raw: Mapping[str, bytes]) -> None:
    """Stage a sidecar beside a staged file. A full disk shows here as what it is."""
    fd = bucket.fs.create(bucket.tmp, name + keys.SIDECAR)
    try:
        bucket.fs.write(fd, attributes.encode_sidecar(raw))
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)


# -- reading it


@dataclass(frozen=True, slots=True)
class Record:
    """A stored file as it is: what is recorded of it, its inode, its size. Nothing of it is believed yet.

    bare: the file has lost its attributes, though the record is elsewhere as well; or it has those of another version,
    whose file it is too.
    """

    raw: Mapping[str, bytes]
    inode: Posix
    size: int
    bare: bool = False

    def version(self, key: bytes, stored: keys.StoredName) -> Version:
        """What it says. key: what its stored path spells. Raises StoreDamaged."""
        return attributes.decode(key, stored, self.raw, self.inode, self.size)


def read(bucket: OpenBucket, at: int, name: bytes, place: bytes) -> Record:
    """A file of the store, by its directory and name. place: its key, or that as the store spells it.

    Raises OSError, StoreDamaged (a sidecar that is none).
    """
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        held = _held(bucket, fd, at, name, found)
        raw = held.raw or _believed(bucket, fd, found)
        bare = held.shared and not (
            attributes.lacks_marks(raw) or any(map(attributes.is_ours, bucket.fs.attribute_names(fd)))
        )
        if found.st_nlink > 1 and _is_anothers(held, raw, name, place):
            raw, bare = {}, True
        inode = posix.inode_posix(bucket, fd, found)
    finally:
        bucket.fs.close(fd)
    return Record(raw, inode, found.st_size, bare)


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
    inline: Mapping[str, bytes] | None = None
    try:
        inline = _inline(bucket, fd)
    except StoreDamaged:
        if not side:
            raise
        inline = side
    shared = inline is not None or found.st_nlink > 1
    if side or inline is None:
        return _Held(side, bool(side), shared)
    return _Held(inline, shared=True)


def _inline(bucket: OpenBucket, fd: int) -> dict[str, bytes] | None:
    """The record that a file has whole in one attribute, if it has. Raises StoreDamaged."""
    inline = bucket.fs.attribute(fd, _record_name(bucket))
    return None if inline is None else record_form.read_whole(inline)


def _is_anothers(held: _Held, raw: Mapping[str, bytes], name: bytes, place: bytes) -> bool:
    """Whether the record of a stored file that has other names is that of another version, which is one of those."""
    stored = keys.parse(name)
    return stored is not None and not held.sidecar and not attributes.is_of(raw, place, stored.id)


def _is_private(bucket: OpenBucket, found: os.stat_result) -> bool:
    """Whether nobody but us can write to a stored file, whatever other names it has, as in a backup of hard links."""
    return found.st_uid == bucket.fs.uid and not found.st_mode & 0o077


def _believed(bucket: OpenBucket, fd: int, found: os.stat_result) -> dict[str, bytes]:
    """The attributes of a stored file as its record. What an inode is, nobody may say who could write that himself."""
    raw = record_form.read(bucket.fs.attributes(fd))
    if not _is_private(bucket, found) and bucket.fs.uid == 0:
        raw.pop(attributes.POSIX, None)
    return raw


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
        return attributes.decode_sidecar(bucket.fs.read_all(fd))
    finally:
        bucket.fs.close(fd)


# -- changing it


def update(
    bucket: OpenBucket, version: Version, changed: Mapping[str, bytes], gone: frozenset[str] = frozenset(), *,
    plain: bool = False,
) -> bool:  # fmt: skip
    """Change attributes of a stored version, in the order given; in place where they fit, else in its sidecar.

    plain: they are known to be its whole record, with nobody else to write them; whether they are that still.
    """
    with _opened(bucket, version) as (fd, at, name, found):
        held = _Held({}) if plain and found.st_nlink == 1 else _held(bucket, fd, at, name, found)
        return _change(bucket, version, fd, at, name, held, changed, gone)


def amend(bucket: OpenBucket, version: Version, *, applied: bool = False) -> None:
    """Make the record of a stored version say what this one says; its content stays as it is.

    applied: an edit from elsewhere, whose stamps come last, since they say that the values are there.
    """
    with _opened(bucket, version) as (fd, at, name, found):
        held = _held(bucket, fd, at, name, found)
        before = held.raw or _believed(bucket, fd, found)
        after = attributes.encode(version)
        changed = {n: v for n, v in after.items() if before.get(n) != v}
        gone = frozenset(before.keys() - after.keys())
        if applied and not held.raw and attributes.EDITED in changed:
            stamps = {attributes.EDITED: changed.pop(attributes.EDITED)}
            _change(bucket, version, fd, at, name, held, changed, gone)
            changed, gone, held = stamps, frozenset(), _held(bucket, fd, at, name, found)
        _change(bucket, version, fd, at, name, held, changed, gone)


def share(bucket: OpenBucket, version: Version) -> None:
    """A stored version is about to be a view too: keep its record where the view's owner cannot write."""
    with _opened(bucket, version) as (fd, at, name, found):
        if not _held(bucket, fd, at, name, found).raw:
            _hold(bucket, version, fd, at, name, _Held({}, shared=True), attributes.encode(version))


def make_private(bucket: OpenBucket, version: Version) -> None:
    """A stored version that was a view too, and is nothing else any more, is the daemon's own, and 0600.

    What its inode said of the object is in its record first. One that still has another name stays as it is.
    """
    with _opened(bucket, version) as (fd, at, name, found):
        if found.st_nlink > 1 or _is_private(bucket, found):
            return
        held = _held(bucket, fd, at, name, found)
        before, after = held.raw or _believed(bucket, fd, found), attributes.encode(version)
        changed = {n: v for n, v in after.items() if before.get(n) != v}
        _change(bucket, version, fd, at, name, held, changed, frozenset(before.keys() - after.keys()))
        if found.st_uid != bucket.fs.uid:
            bucket.fs.give(fd, bucket.fs.uid, found.st_gid)
        bucket.fs.chmod(fd, 0o600)
        bucket.fs.remove_acl(fd)


def make_room(bucket: OpenBucket, version: Version) -> None:
    """A view that is the stored file has no room for what is the object's: move the record beside it, if it can be."""
    with _opened(bucket, version) as (fd, at, name, found):
        held = _held(bucket, fd, at, name, found)
        if held.shared and held.raw and not held.sidecar:
            _put_beside(bucket, version, at, name, held.raw)
            _remove(bucket, fd, {_record_name(bucket)}, shared=True)


def tidy(bucket: OpenBucket, version: Version) -> None:
    """Take a record back from its sidecar, where a view that is the stored file too has room for it again."""
    with _opened(bucket, version) as (fd, at, name, found):
        held = _held(bucket, fd, at, name, found)
        if held.shared and held.sidecar:
            _hold(bucket, version, fd, at, name, held, held.raw)


def rewrite(bucket: OpenBucket, version: Version) -> None:
    """Write a stored version's record anew, whatever there is of it. The content stays as it is.

    Without its seal a record counts as lost, so that one half written is found, and written again.
    """
    with _opened(bucket, version) as (fd, at, name, _):
        _remove(bucket, fd, {_record_name(bucket)})
        for attribute in [n for n in bucket.fs.attributes(fd) if n in attributes.SEAL]:
            bucket.fs.remove_attribute(fd, attribute)
        _remove_sidecar(bucket, at, name)
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink == 1 and found.st_mode & 0o177:
            bucket.fs.chmod(fd, 0o600)  # a copy of the tree may have opened it to others
        old = bucket.fs.attributes(fd).keys()
        raw = attributes.encode(version)
        _put(bucket, fd, attributes.of_object(version))  # where it is a view too, those are gone with ours
    update(bucket, version, {n: v for n, v in raw.items() if n not in attributes.SEAL}, frozenset(old - raw.keys()))
    update(bucket, version, {n: v for n, v in raw.items() if n in attributes.SEAL})
    bucket.store_changed(version.key)


@contextlib.contextmanager
def _opened(bucket: OpenBucket, version: Version) -> Iterator[tuple[int, int, bytes, os.stat_result]]:
    """The file of a stored version, the directory it is in, its name there, and how it is.

    What is written onto it is this version's alone: a file that is another version's too is left to that one.
    """
    at, name = bucket.stored_file(version.key, version.id, marker=version.marker)
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink > 1:
            held = _held(bucket, fd, at, name, found)
            if _is_anothers(held, held.raw or bucket.fs.attributes(fd), name, version.key):
                separate(bucket, version, fd)
                bucket.fs.close(fd)
                fd = -1
                fd = open_file(bucket, at, name)
        yield fd, at, name, found
    finally:
        if fd >= 0:
            bucket.fs.close(fd)


def separate(bucket: OpenBucket, version: Version, fd: int) -> None:
    """Put a private copy with this record in the place of a stored file that is open, durably.

    Raises StoreDamaged where its content is not the version's: whoever wrote that did it through a view, and the two
    being one file is what tells so.
    """
    at, name = bucket.stored_file(version.key, version.id, marker=version.marker)
    staged = b"own.%d.%d" % (os.getpid(), next(_numbers))
    digest = copying.copy_aside(bucket, fd, staged)
    try:
        if digest != version.digest and not version.marker:
            raise StoreDamaged(f"version {version.id} of {keys.shown(version.key)} no longer matches its BLAKE3")
        own = bucket.fs.open_read(bucket.tmp, staged)
        try:
            sidecar = put(bucket, own, staged, attributes.encode(version))
            bucket.fs.sync_file(own)
        finally:
            bucket.fs.close(own)
        if sidecar:
            bucket.fs.rename(bucket.tmp, staged + keys.SIDECAR, at, name + keys.SIDECAR)
        bucket.fs.rename(bucket.tmp, staged, at, name)
    except (OSError, StoreDamaged):
        for each in (staged, staged + keys.SIDECAR):
            with contextlib.suppress(OSError):
                bucket.fs.unlink(bucket.tmp, each)
        raise
    if not sidecar:
        _remove_sidecar(bucket, at, name)
    bucket.store_changed(version.key)
    log.info(
        'separated bucket=%s key="%s" version=%s: its file was that of something else too',
        bucket.address, keys.shown(version.key), version.id,
    )  # fmt: skip


def _change(
    bucket: OpenBucket, version: Version, fd: int, at: int, name: bytes, held: _Held,
    changed: Mapping[str, bytes], gone: frozenset[str],
) -> bool:  # fmt: skip
    """Change a record, wherever it stands; whether that is in the file's attributes alone."""
    if held.raw or held.shared or _put(bucket, fd, changed):
        before = held.raw or bucket.fs.attributes(fd)
        if not attributes.is_whole(before, keys.stored_path(version.key), marker=version.marker):
            before = attributes.encode(version)  # its user took it off
        record = {n: v for n, v in {**before, **changed}.items() if n not in gone}
        _hold(bucket, version, fd, at, name, held, record)
        if held.shared:  # what is not ours there is the view's, and may have been edited since
            ours = {n: v for n, v in changed.items() if attributes.is_ours(n) and n != attributes.POSIX}
            stale = {n for n in gone if attributes.is_ours(n)} | _put(bucket, fd, ours, shared=True)
            _remove(bucket, fd, stale, shared=True)
        return False
    _remove(bucket, fd, gone)
    return True


def _hold(
    bucket: OpenBucket, version: Version, fd: int, at: int, name: bytes, held: _Held, record: Mapping[str, bytes]
) -> None:
    """Write down a whole record: in the file's attributes again if they do and nobody else may write those, or beside.

    What held before holds until the new one is there.
    """
    if _put_record(bucket, fd, version.key, record) if held.shared else held.sidecar and _fits(bucket, fd, record):
        if held.sidecar:
            bucket.fs.sync_file(fd)
            _remove_sidecar(bucket, at, name)
            bucket.store_changed(version.key)
        return
    _put_beside(bucket, version, at, name, record)
    if held.shared:
        _remove(bucket, fd, {_record_name(bucket)}, shared=True)
    else:
        _fits(bucket, fd, record)


def _put_beside(bucket: OpenBucket, version: Version, at: int, name: bytes, record: Mapping[str, bytes]) -> None:
    staged = b"record.%d.%d" % (os.getpid(), next(_numbers))
    write_sidecar(bucket, staged, record)
    bucket.fs.rename(bucket.tmp, staged + keys.SIDECAR, at, name + keys.SIDECAR)
    bucket.store_changed(version.key)


def _remove_sidecar(bucket: OpenBucket, at: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(at, name + keys.SIDECAR)


def _fits(bucket: OpenBucket, fd: int, record: Mapping[str, bytes]) -> bool:
    """Make a file's attributes these, as far as they fit; whether all do."""
    before = bucket.fs.attributes(fd)
    _remove(bucket, fd, before.keys() - record.keys())
    refused = _put(bucket, fd, {n: v for n, v in record.items() if before.get(n) != v})
    _remove(bucket, fd, refused & before.keys())  # rather none than one that is no longer true
    return not refused


def _remove(bucket: OpenBucket, fd: int, names: Collection[str], *, shared: bool = False) -> None:
    for attribute in names:
        try:
            bucket.fs.remove_attribute(fd, attribute)
        except OSError as error:
            if error.errno != errno.ENODATA and error.errno not in UNSUPPORTED | (_SHUT if shared else frozenset()):
                raise
