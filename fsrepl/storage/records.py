"""What is recorded of a version, beside its content: where that stands, and how it is changed.

The record of a stored version stands in one of three homes:

    ATTRIBUTES  the attributes of its file: user.fsrepl.record, user.fsrepl.deliveries, tags, the object's own
    INLINE      one attribute, whole, which only we may write: the file is a view too, and its user may write the others
    SIDECAR     a file beside it, whole, where there is no room for it on the file

Where there is a sidecar it holds, and else what is inline, whatever the attributes say; they stay as far as they fit,
for people who look, and for what a copy of the tree leaves out. A change of a record is written so that a crash in
between leaves the old one, or a difference that is found again. Records of earlier builds, each field of which is an
attribute of its own, are read as these are, and written in today's form with their first change: see
model/record_form.py.

Two stored versions may come to have one inode: jdupes, rdfind and hardlink join files of equal content. The record on
it is one of theirs at most; the others have lost theirs, and get a file of their own before a record of theirs is
written. Hard links from elsewhere, as in a backup, are none of that.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, metadata, record_form
from fsrepl.model.version import Posix, Version
from fsrepl.storage import copying
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import ACL, DOES_NOT_FIT, UNSUPPORTED
from fsrepl.storage.posix import inode_posix, posix_of

log = logging.getLogger("fsrepl")


_numbers = itertools.count()


class Home(enum.Enum):
    """Where the record of a stored version stands; of two, the later one here holds."""

    ATTRIBUTES = enum.auto()
    INLINE = enum.auto()
    SIDECAR = enum.auto()


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
        if fields := _inline(bucket.fs.attribute(fd, _inline_name(bucket))):
            return fields[attributes.KEY], fields[attributes.VERSION_ID].decode()
    return None


def is_shared(bucket: OpenBucket, fd: int) -> bool:
    """Whether people can reach a stored file, or could: it says so, or says nothing any more."""
    if not any(name.startswith(attributes.OURS) for name in bucket.fs.attribute_names(fd)):
        return True
    try:
        return _inline(bucket.fs.attribute(fd, _inline_name(bucket))) is not None
    except StoreDamaged:
        return True


def _inline_name(bucket: OpenBucket) -> str:
    return attributes.TRUSTED_RECORD if bucket.fs.uid == 0 else attributes.OWN_RECORD


def _inline(value: bytes | None) -> dict[str, bytes] | None:
    """The record that a file has whole in one attribute, if that is what it has. Raises StoreDamaged."""
    return None if value is None else record_form.read_whole(value)


# -- putting it on a file that is hidden still


def put(bucket: OpenBucket, fd: int, name: bytes, fields: Mapping[str, bytes]) -> bool:
    """Put a version's record on its hidden file; whether a sidecar had to take it.

    The sidecar holds all of it; the file keeps what fits, for people who look.
    """
    if not _put(bucket, fd, record_form.on_file(fields)):
        return False
    write_sidecar(bucket, name, fields)
    return True


def put_again(bucket: OpenBucket, fd: int, name: bytes, fields: Mapping[str, bytes]) -> bool:
    """The same, in the place of what was put there before."""
    _remove_sidecar(bucket, bucket.tmp, name)
    return put(bucket, fd, name, fields)


def put_shared(
    bucket: OpenBucket, fd: int, name: bytes, version: Version, *, new: Posix | None = None
) -> tuple[Version, bool]:
    """The same for a hidden file that is, or will be, a view too, so that its owner may write its attributes.

    The version with what the file falls short of, and whether a sidecar had to take the record. The inode's
    own metadata is the object's, as far as that could be. new: what the inode says, where the file was made
    just now and has no attributes yet.
    """
    posix = new or inode_posix(bucket, fd, bucket.fs.stat_fd(fd))
    shown = attributes.of_object(version) | attributes.label(version)  # the object's own first, if room is short
    there = {} if new else bucket.fs.attributes(fd)
    for attribute in there:
        if attributes.is_ours(attribute) and attribute not in shown:  # it came along with a copy of another file
            bucket.fs.remove_attribute(fd, attribute)
    refused = _put(bucket, fd, {n: v for n, v in shown.items() if there.get(n) != v}, shared=True)
    shortfall = metadata.shortfall(version, posix, refused)
    if shortfall != version.shortfall:
        version = replace(version, shortfall=shortfall)
    fields = attributes.encode(version)
    if _put_inline(bucket, fd, version.key, fields):
        _put(bucket, fd, _shown_of(bucket, fields, Home.INLINE), shared=True)
        return version, False
    write_sidecar(bucket, name, fields)
    return version, True


_SHUT = frozenset({errno.EACCES, errno.EPERM})
"""What a file answers that its mode keeps even its owner from writing to. Then it is a view too: only there its mode
is the object's."""


def _put(bucket: OpenBucket, fd: int, values: Mapping[str, bytes], *, shared: bool = False) -> set[str]:
    """Set attributes of a file in place; the names of those that it does not take."""
    refused = set()
    for attribute, value in values.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if error.errno not in DOES_NOT_FIT | UNSUPPORTED | (_SHUT if shared else frozenset()):
                raise
            refused.add(attribute)
    return refused


def _put_inline(bucket: OpenBucket, fd: int, key: bytes, fields: Mapping[str, bytes]) -> bool:
    """Write the whole record of a file that others may write to into one attribute; False where that cannot be.

    The key is always in it: the file may be found under other names than its own.
    """
    value = record_form.whole({**fields, attributes.KEY: key})
    return not _put(bucket, fd, {_inline_name(bucket): value}, shared=True)  # EPERM: root of a container only


def _shown_of(bucket: OpenBucket, fields: Mapping[str, bytes], home: Home) -> dict[str, bytes]:
    """What a file that others may write to says of its record, which holds elsewhere.

    Not what its inode is: the inode says it, and nobody else is believed.
    """
    if home is Home.INLINE and _inline_name(bucket) == attributes.RECORD:
        return {}
    said = record_form.on_file({name: value for name, value in fields.items() if name != attributes.POSIX})
    return {name: value for name, value in said.items() if name in attributes.RECORDS}


def write_sidecar(bucket: OpenBucket, name: bytes, fields: Mapping[str, bytes]) -> None:
    """Stage a sidecar beside a staged file. A full disk shows here as what it is."""
    fd = bucket.fs.create(bucket.tmp, name + keys.SIDECAR)
    try:
        bucket.fs.write(fd, attributes.encode_sidecar(fields))
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

    Raises OSError, StoreDamaged (a record or a sidecar that is none).
    """
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        seen = _look(bucket, fd, at, name, found)
        inode = posix_of(found, bucket.fs.acl(fd) if seen.has_acl else None)
    finally:
        bucket.fs.close(fd)
    if found.st_nlink > 1 and _is_anothers(seen, name, place):
        return Record({}, inode, found.st_size, bare=True)
    bare = seen.shared and not (attributes.lacks_marks(seen.fields) or any(map(attributes.is_ours, seen.on_file)))
    return Record(seen.fields, inode, found.st_size, bare)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The record of a stored file, and where it stands.

    on_file: the attributes of the file, whatever home the record has. shared: others may write those: they can reach
    the file as a view.
    """

    fields: Mapping[str, bytes]
    home: Home
    shared: bool
    on_file: Mapping[str, bytes]
    has_acl: bool = False


def _look(bucket: OpenBucket, fd: int, at: int, name: bytes, found: os.stat_result) -> _Seen:
    side = read_sidecar(bucket, at, name)
    names = bucket.fs.attribute_names(fd)
    inline_name = _inline_name(bucket)
    values = {n: bucket.fs.attribute(fd, n) for n in names if n.startswith("user.") or n == inline_name}
    on_file = {n: value for n, value in values.items() if value is not None}
    # asked of every file: a view may have been made private before its stored version lost that other name
    try:
        inline = _inline(on_file.get(inline_name))
    except StoreDamaged:
        if not side:
            raise
        inline = side
    shared = inline is not None or found.st_nlink > 1
    if side:
        fields, home = side, Home.SIDECAR
    elif inline is not None:
        fields, home = inline, Home.INLINE
    else:
        fields, home = _believed(bucket, on_file, found), Home.ATTRIBUTES
    return _Seen(fields, home, shared, on_file, ACL in names)


def _is_anothers(seen: _Seen, name: bytes, place: bytes) -> bool:
    """Whether the record of a stored file that has other names is that of another version, which is one of those."""
    stored = keys.parse(name)
    return stored is not None and seen.home is not Home.SIDECAR and not attributes.is_of(seen.fields, place, stored.id)


def _is_private(bucket: OpenBucket, found: os.stat_result) -> bool:
    """Whether nobody but us can write to a stored file, whatever other names it has, as in a backup of hard links."""
    return found.st_uid == bucket.fs.uid and not found.st_mode & 0o077


def _believed(bucket: OpenBucket, on_file: Mapping[str, bytes], found: os.stat_result) -> dict[str, bytes]:
    """The attributes of a stored file as its record. What an inode is, nobody may say who could write that himself."""
    fields = record_form.read({name: value for name, value in on_file.items() if name.startswith("user.")})
    if not _is_private(bucket, found) and bucket.fs.uid == 0:
        fields.pop(attributes.POSIX, None)
    return fields


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
        fields = attributes.decode_sidecar(bucket.fs.read_all(fd))
    finally:
        bucket.fs.close(fd)
    fields.pop(attributes.STATUS, None)  # earlier builds wrote it: it is derived
    return fields


# -- changing it


@dataclass(frozen=True, slots=True)
class _File:
    """The open file of a stored version: the directory it is in, its name there, and how it is."""

    bucket: OpenBucket
    key: bytes
    fd: int
    at: int
    name: bytes
    found: os.stat_result

    def look(self) -> _Seen:
        return _look(self.bucket, self.fd, self.at, self.name, self.found)


def write_deliveries(bucket: OpenBucket, version: Version, *, plain: bool = False) -> bool:
    """Write down what a stored version owes now, and leave the rest of its record as it is.

    plain: its record is known to be attributes of its file, with nobody else to write them; whether that is so still.
    """
    deliveries = attributes.encode_deliveries(version) if version.deliveries else None
    with _opened(bucket, version) as file:
        in_place = {attributes.DELIVERIES: deliveries} if deliveries else {}
        if plain and in_place and file.found.st_nlink == 1 and not _put(bucket, file.fd, in_place):
            return True
        seen = file.look()
        fields = {name: value for name, value in seen.fields.items() if name != attributes.DELIVERIES}
        if not attributes.is_whole(fields, keys.stored_path(version.key), marker=version.marker):
            fields = attributes.encode(version)  # its user took it off
        elif deliveries:
            fields[attributes.DELIVERIES] = deliveries
        return _write(file, seen, fields) is Home.ATTRIBUTES


def amend(bucket: OpenBucket, version: Version, *, applied: bool = False) -> None:
    """Make the record of a stored version say what this one says; its content stays as it is.

    applied: an edit from elsewhere, whose stamps come last, since they say that the values are there.
    """
    with _opened(bucket, version) as file:
        _write(file, file.look(), attributes.encode(version), stamps_last=applied)


def share(bucket: OpenBucket, version: Version) -> None:
    """A stored version is about to be a view too: keep its record where the view's owner cannot write."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.home is Home.ATTRIBUTES:
            _move(file, seen, attributes.encode(version), Home.INLINE)
        _put_label(file, seen, version)


def make_private(bucket: OpenBucket, version: Version) -> None:
    """A stored version that was a view too, and is nothing else any more, is the daemon's own, and 0600.

    What its inode said of the object is in its record first. One that still has another name stays as it is.
    """
    with _opened(bucket, version) as file:
        if file.found.st_nlink > 1 or _is_private(bucket, file.found):
            return
        _write(file, file.look(), attributes.encode(version))
        if file.found.st_uid != bucket.fs.uid:
            bucket.fs.give(file.fd, bucket.fs.uid, file.found.st_gid)
        bucket.fs.chmod(file.fd, 0o600)
        bucket.fs.remove_acl(file.fd)


def make_room(bucket: OpenBucket, version: Version) -> None:
    """A view that is the stored file has no room for what is the object's: move the record beside it, if it can be."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.shared and seen.home is not Home.ATTRIBUTES:
            if seen.home is Home.INLINE:
                _put_beside(file, seen.fields)
            _remove(bucket, file.fd, {_inline_name(bucket), *attributes.RECORDS} & seen.on_file.keys(), shared=True)


def tidy(bucket: OpenBucket, version: Version) -> None:
    """Take a record back from its sidecar, where a view that is the stored file too has room for it again."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.shared and seen.home is Home.SIDECAR:
            _move(file, seen, seen.fields, Home.INLINE)


_SEAL = frozenset({attributes.RECORD, attributes.LAST_MODIFIED, attributes.BLAKE3, attributes.KEY})
"""Without these a record counts as lost, in whatever form it was."""


def rewrite(bucket: OpenBucket, version: Version) -> None:
    """Write a stored version's record anew, whatever there is of it. The content stays as it is.

    Until it is there the version counts as one that has lost its record, so that this is done again after a crash.
    """
    fields = attributes.encode(version)
    with _opened(bucket, version) as file:
        sealed = {name for name in bucket.fs.attribute_names(file.fd) if name in _SEAL or name == _inline_name(bucket)}
        _remove(bucket, file.fd, sealed)
        _remove_sidecar(bucket, file.at, file.name)
        found = bucket.fs.stat_fd(file.fd)
        if found.st_nlink == 1 and found.st_mode & 0o177:
            bucket.fs.chmod(file.fd, 0o600)  # a copy of the tree may have opened it to others
        seen = replace(file, found=found).look()
        if seen.shared:
            _put(bucket, file.fd, attributes.of_object(version), shared=True)  # they are gone with ours
            _move(file, seen, fields, Home.INLINE)
            _put_label(file, seen, version)
        else:
            _write(file, seen, fields, stamps_last=True)
    bucket.store_changed(version.key)


@contextlib.contextmanager
def _opened(bucket: OpenBucket, version: Version) -> Iterator[_File]:
    """The file of a stored version.

    What is written onto it is this version's alone: a file that is another version's too is left to that one.
    """
    at, name = bucket.stored_file(version.key, version.id, marker=version.marker)
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink > 1 and _is_anothers(_look(bucket, fd, at, name, found), name, version.key):
            separate(bucket, version, fd)
            bucket.fs.close(fd)
            fd = -1
            fd = open_file(bucket, at, name)
            found = bucket.fs.stat_fd(fd)
        yield _File(bucket, version.key, fd, at, name, found)
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


def _write(file: _File, seen: _Seen, fields: Mapping[str, bytes], *, stamps_last: bool = False) -> Home:
    """Make this the record of a stored file; where it stands then."""
    if seen.shared:
        return _move(file, seen, fields, Home.INLINE)
    if seen.home is Home.SIDECAR:
        return _move(file, seen, fields, Home.ATTRIBUTES)
    if _edit(file, seen.on_file, fields, stamps_last=stamps_last):
        return Home.ATTRIBUTES
    return _move(file, seen, fields, Home.SIDECAR)


def _edit(file: _File, before: Mapping[str, bytes], fields: Mapping[str, bytes], *, stamps_last: bool = False) -> bool:
    """Make the attributes of a file this record; False where they do not take all of it.

    What is owed and the stamps, which are in the record, come before the values: a crash in between leaves a view that
    differs from them, and so the edit is found, and owed, again. stamps_last: the other way round.
    """
    after = record_form.on_file(fields)
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    gone = {name for name in before if name.startswith("user.") and name not in after}
    said = {name: changed.pop(name) for name in (attributes.DELIVERIES, attributes.RECORD) if name in changed}
    if stamps_last:
        if _put(file.bucket, file.fd, changed):
            return False
        _remove(file.bucket, file.fd, {name for name in gone if not attributes.is_ours(name)})
        gone = {name for name in gone if attributes.is_ours(name)}
        changed = {}
    if _put(file.bucket, file.fd, said) or _put(file.bucket, file.fd, changed):
        return False
    _remove(file.bucket, file.fd, gone)
    return True


def _move(file: _File, seen: _Seen, fields: Mapping[str, bytes], to: Home) -> Home:
    """Write a whole record down in a home, the one it has or another; where it is then: beside, if there is no room.

    What held before holds until the new one is there.
    """
    shared = seen.shared or to is Home.INLINE
    if to is Home.INLINE:
        fits = _fill_inline(file, seen, fields)
    else:
        fits = to is Home.ATTRIBUTES and _fill(file, fields)
    if fits and seen.home is Home.SIDECAR:
        file.bucket.fs.sync_file(file.fd)
        _remove_sidecar(file.bucket, file.at, file.name)
        file.bucket.store_changed(file.key)
    if not fits:
        to = Home.SIDECAR
        if seen.home is not Home.SIDECAR or seen.fields != fields:
            _put_beside(file, fields)
    if shared:
        _show(file, fields, to)
    elif not fits:
        _fill(file, fields)
    return to


def _fill_inline(file: _File, seen: _Seen, fields: Mapping[str, bytes]) -> bool:
    """Write a record into one attribute; what is there for people who look makes room for it."""
    if _put_inline(file.bucket, file.fd, file.key, fields):
        return True
    shown = (attributes.RECORDS - {_inline_name(file.bucket)}) & seen.on_file.keys()
    if not shown or seen.home is Home.ATTRIBUTES:  # there they are the record
        return False
    _remove(file.bucket, file.fd, shown, shared=True)
    return _put_inline(file.bucket, file.fd, file.key, fields)


def _fill(file: _File, fields: Mapping[str, bytes]) -> bool:
    """Make a file's attributes this record, as far as they fit; whether all do."""
    before, after = file.bucket.fs.attributes(file.fd), record_form.on_file(fields)
    _remove(file.bucket, file.fd, before.keys() - after.keys())
    refused = _put(file.bucket, file.fd, {n: v for n, v in after.items() if before.get(n) != v})
    _remove(file.bucket, file.fd, refused & before.keys())  # rather none than one that is no longer true
    return not refused


def _show(file: _File, fields: Mapping[str, bytes], home: Home) -> None:
    """Let a file that others may write to say what its record says, which holds elsewhere, as far as that fits.

    What is not ours there is the view's, and may have been edited since.
    """
    bucket, inline_name = file.bucket, _inline_name(file.bucket)
    shown = _shown_of(bucket, fields, home)
    holds = {inline_name} if home is Home.INLINE else set()
    stale = [
        name
        for name in bucket.fs.attribute_names(file.fd)
        if name in {inline_name, *attributes.RECORDS} and name not in holds and name not in shown
    ]
    _remove(bucket, file.fd, stale, shared=True)
    changed = {name: value for name, value in shown.items() if bucket.fs.attribute(file.fd, name) != value}
    _remove(bucket, file.fd, _put(bucket, file.fd, changed, shared=True), shared=True)


def _put_label(file: _File, seen: _Seen, version: Version) -> None:
    label = attributes.label(version)
    _put(file.bucket, file.fd, {n: v for n, v in label.items() if seen.on_file.get(n) != v}, shared=True)


def _put_beside(file: _File, fields: Mapping[str, bytes]) -> None:
    bucket, staged = file.bucket, b"record.%d.%d" % (os.getpid(), next(_numbers))
    write_sidecar(bucket, staged, fields)
    bucket.fs.rename(bucket.tmp, staged + keys.SIDECAR, file.at, file.name + keys.SIDECAR)
    bucket.store_changed(file.key)


def _remove_sidecar(bucket: OpenBucket, at: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(at, name + keys.SIDECAR)


def _remove(bucket: OpenBucket, fd: int, names: Iterable[str], *, shared: bool = False) -> None:
    for attribute in names:
        try:
            bucket.fs.remove_attribute(fd, attribute)
        except OSError as error:
            if error.errno != errno.ENODATA and error.errno not in UNSUPPORTED | (_SHUT if shared else frozenset()):
                raise
