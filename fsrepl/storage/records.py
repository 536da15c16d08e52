"""Records of stored versions, read and changed.

record_homes.py has the homes of a record and the moves between them. A change is written so that a crash leaves the old
record, or a difference that is found again. Earlier builds wrote each field as a separate attribute. Such records are
read like current ones, and converted with their first change: see model/record_form.py.

Two stored versions may come to share one inode: jdupes, rdfind and hardlink join files of equal content. The record on
the inode belongs to at most one of them. Any other has lost its record, and gets a separate file before a record is
written for it. Hard links from elsewhere, as in a backup, are different.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import RecordUnreadable, StoreDamaged, reason
from fsrepl.model import attributes, keys, metadata, record_form
from fsrepl.model.version import Posix, Version
from fsrepl.storage import copying, record_homes, staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import BAD_BLOCK
from fsrepl.storage.posix import inode_posix, posix_of
from fsrepl.storage.record_homes import Home

log = logging.getLogger("fsrepl")


_numbers = itertools.count()


class OpenFile(NamedTuple):
    """A descriptor, and the status of its file a moment ago."""

    fd: int
    found: os.stat_result


# -- reading a file


def open_file(bucket: OpenBucket, at: int, name: bytes) -> int:
    """A file of the store, opened to read; also where the mode denies its owner, the daemon, as the mode of a view may.

    The owner gets read access for that moment, and no other user does. Raises OSError.
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
    """The key and id of the stored version that an open view claims as its file. The caller must check the claim."""
    with contextlib.suppress(StoreDamaged, KeyError, UnicodeDecodeError):
        if fields := record_homes.read_inline(bucket.fs.attribute(fd, record_homes.inline_attribute(bucket))):
            return fields[attributes.KEY], fields[attributes.VERSION_ID].decode()
    return None


def is_shared(bucket: OpenBucket, fd: int) -> bool:
    """Whether users can, or could, reach a stored file: its mode or attributes say so, or these are all lost."""
    if not record_homes.is_private(bucket, bucket.fs.stat_fd(fd)):
        return True
    if not any(name.startswith(attributes.OURS) for name in bucket.fs.attribute_names(fd)):
        return True
    try:
        return record_homes.read_inline(bucket.fs.attribute(fd, record_homes.inline_attribute(bucket))) is not None
    except StoreDamaged:
        return True


# -- writing to a hidden file


def put(bucket: OpenBucket, fd: int, name: bytes, version: Version) -> bool:
    """Write a version's record to its hidden file; whether a sidecar was needed.

    The sidecar has the whole record; the file keeps what fits, for people who inspect it.
    """
    if not record_homes.put_values(bucket, fd, record_form.of(version)):
        return False
    record_homes.write_sidecar(bucket, name, attributes.encode(version))
    return True


def put_again(bucket: OpenBucket, fd: int, name: bytes, version: Version) -> bool:
    """Write a record to a hidden file again, replacing the former one; whether a sidecar was needed."""
    record_homes.remove_sidecar(bucket, bucket.tmp, name)
    return put(bucket, fd, name, version)


def put_shared(
    bucket: OpenBucket, fd: int, name: bytes, version: Version, *, new: Posix | None = None
) -> tuple[Version, bool]:
    """Write a record to a hidden file that is also a view, or will be, so that its owner may write its attributes.

    The version with the file's shortfall, and whether a sidecar was needed for the record. The inode's metadata is the
    object's, as far as possible. new: the inode's metadata, where the file was just created and has no attributes yet.
    """
    posix = new or inode_posix(bucket, fd, bucket.fs.stat_fd(fd))
    shown = attributes.of_object(version) | attributes.label(version)  # the object's come first, in case room is short
    if not new:
        there = bucket.fs.attributes(fd)
        for attribute in there:
            if attributes.is_ours(attribute) and attribute not in shown:  # left from a copy of another file
                bucket.fs.remove_attribute(fd, attribute)
        shown = {name: value for name, value in shown.items() if there.get(name) != value}
    refused = record_homes.put_values(bucket, fd, shown, shared=True)
    shortfall = metadata.shortfall(version, posix, refused)
    if shortfall != version.shortfall:
        version = replace(version, shortfall=shortfall)
    whole, beside = record_form.shared_of(version)
    inline_name = record_homes.inline_attribute(bucket)
    if not record_homes.put_values(bucket, fd, {inline_name: whole}, shared=True):
        if inline_name != attributes.RECORD:
            record_homes.put_values(bucket, fd, beside, shared=True)
        return version, False
    record_homes.write_sidecar(bucket, name, attributes.encode(version))
    return version, True


# -- reading a record


class Record(Struct, frozen=True):
    """A stored file's record, inode and size, not yet trusted.

    lost: the file has lost its attributes, though the record also has another home; or it has those of another version
    that shares the file. beside: its home is a sidecar. locked: nobody may remove the file, as far as that was asked.
    inline: see record_homes.Home.INLINE. found: the status of the file.
    """

    raw: Mapping[str, bytes]
    inode: Posix
    size: int
    lost: bool = False
    beside: bool = False
    locked: bool = False
    inline: bool = False
    found: os.stat_result | None = None

    def version(self, key: bytes, stored: keys.StoredName) -> Version:
        """The version in the record. key: the spelling of its stored path. Raises StoreDamaged."""
        return attributes.decode(key, stored, self.raw, self.inode, self.size)


def read(bucket: OpenBucket, at: int, name: bytes, path: bytes, *, asks_lock: bool = False) -> Record:
    """The record of a file of the store, by directory and name. path: its key, or the store's spelling of it.

    asks_lock: see Record.locked. Raises OSError, StoreDamaged (an invalid record or sidecar, or RecordUnreadable).
    """
    try:
        return _read(bucket, at, name, path, asks_lock=asks_lock)
    except OSError as error:
        if error.errno not in BAD_BLOCK:
            raise
        # That is this record's trouble where the disk takes a write. Else it is all of the bucket's.
        if not bucket.fs.read_only:
            staging.ensure_written(bucket)
        raise RecordUnreadable(f"its record cannot be read: {reason(error)}") from error


def _read(bucket: OpenBucket, at: int, name: bytes, path: bytes, *, asks_lock: bool) -> Record:
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        seen = record_homes.look(bucket, fd, at, name, found)
        inode = posix_of(found, bucket.fs.acl(fd) if seen.has_acl else None)
        locked = asks_lock and bucket.fs.is_locked(fd)
    finally:
        bucket.fs.close(fd)
    if found.st_nlink > 1 and record_homes.is_anothers(seen, name, path):
        return Record({}, inode, found.st_size, lost=True, locked=locked)
    lost = seen.shared and not (attributes.did_not_fit(seen.fields) or any(map(attributes.is_ours, seen.on_file)))
    beside, inline = seen.home is Home.SIDECAR, seen.home is Home.INLINE
    return Record(seen.fields, inode, found.st_size, lost, beside, locked, inline, found)


# -- changing a record


def write_deliveries(bucket: OpenBucket, version: Version, *, plain: bool = False) -> bool:
    """Record the deliveries of a stored version, leaving the rest of its record unchanged.

    plain: the record is known to be attributes of its file, writable only by the daemon; the result says whether it
    still is.
    """
    if plain and version.deliveries and write_deliveries_in_place(bucket, version):
        return True
    deliveries = attributes.encode_deliveries(version) if version.deliveries else None
    with _opened(bucket, version) as file:
        seen = file.look()
        fields = {name: value for name, value in seen.fields.items() if name != attributes.DELIVERIES}
        if not attributes.is_whole(fields, keys.stored_path(version.key), marker=version.marker):
            fields = attributes.encode(version)  # its user removed it
        elif deliveries:
            fields[attributes.DELIVERIES] = deliveries
        return record_homes.write(file, seen, fields) is Home.ATTRIBUTES


def write_deliveries_in_place(bucket: OpenBucket, version: Version) -> bool:
    """Record the deliveries of a stored version whose record is plain, see write_deliveries; whether its file took
    them, and has no other name."""
    values = {attributes.DELIVERIES: attributes.encode_deliveries(version)}
    fd = open_file(bucket, *bucket.stored_file(version.key, version.id, marker=version.marker))
    try:
        return bucket.fs.stat_fd(fd).st_nlink == 1 and not record_homes.put_values(bucket, fd, values)
    finally:
        bucket.fs.close(fd)


def amend(bucket: OpenBucket, version: Version, *, applied: bool = False) -> None:
    """Change the record of a stored version to match `version`; the content is unchanged.

    applied: the edit came from another region, and its stamps are written last, since they claim that the values are
    there.
    """
    with _opened(bucket, version) as file:
        record_homes.write(file, file.look(), attributes.encode(version), stamps_last=applied)


def protect(bucket: OpenBucket, version: Version) -> bool:
    """Prepare a stored version to be a view too: move its record where the view's owner cannot write, and show the
    object's attributes, which may have been edited while no view showed them; whether the file takes them all."""
    objects = attributes.of_object(version)
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.home is Home.ATTRIBUTES:
            record_homes.move(file, seen, attributes.encode(version), Home.INLINE)
        users = {name for name in seen.on_file if name.startswith("user.") and not attributes.is_ours(name)}
        record_homes.remove(bucket, file.fd, users - objects.keys(), shared=True)
        changed = {name: value for name, value in objects.items() if seen.on_file.get(name) != value}
        refused = record_homes.put_values(bucket, file.fd, changed, shared=True)
        record_homes.put_label(file, seen, version)
    return not refused


def make_private(bucket: OpenBucket, version: Version) -> None:
    """Make a stored version private, 0600 and owned by the daemon, after it stopped being a view.

    The inode's metadata of the object is recorded first. A file with another name is unchanged.
    """
    with _opened(bucket, version) as file:
        if file.found.st_nlink == 1 and not record_homes.is_private(bucket, file.found):
            seen = file.look()
            record_homes.write(file, seen, attributes.encode(version))
            _make_private(file, seen)


def make_left_private(bucket: OpenBucket, key: bytes, version_id: str, view: OpenFile | None = None) -> Version | None:
    """Make the stored file of a removed view private, with one look at its record.

    view: the view, which is mostly that file, if it is still open.
    The result is the version, if its record is stored where only the daemon writes, so that it is still the same.
    None if others could have written the record since, if it is lost, or if the file has another name.
    Raises OSError, StoreDamaged.
    """
    at, name = bucket.stored_file(key, version_id)
    found = bucket.fs.stat(at, name) if view is not None else None
    is_view = view is not None and found is not None and os.path.samestat(view.found, found)
    fd = view.fd if view is not None and is_view else open_file(bucket, at, name)
    try:
        file = record_homes.File(bucket, key, fd, at, name, found if found and is_view else bucket.fs.stat_fd(fd))
        if file.found.st_nlink > 1:
            return None
        seen = file.look(is_brief=True)
        inode = posix_of(file.found, bucket.fs.acl(fd) if seen.has_acl else None)
        stored = keys.StoredName(keys.split(key)[1], version_id, False, False)
        version = attributes.decode(key, stored, seen.fields, inode, file.found.st_size)
        if not version.digest:
            return None
        if not record_homes.is_private(bucket, file.found):
            if seen.home is Home.INLINE and attributes.POSIX in seen.fields:
                record_homes.show_again(file, seen, version)
            else:
                record_homes.write(file, file.look(), attributes.encode(version))
            _make_private(file, seen)
        return version if record_homes.is_ours_alone(bucket, seen) else None
    finally:
        if not is_view:
            bucket.fs.close(fd)


def _make_private(file: record_homes.File, seen: record_homes.Seen) -> None:
    bucket = file.bucket
    if file.found.st_uid != bucket.fs.uid:
        bucket.fs.give(file.fd, bucket.fs.uid, file.found.st_gid)
    bucket.fs.chmod(file.fd, 0o600)
    if seen.has_acl:
        bucket.fs.remove_acl(file.fd)


def move_to_sidecar(bucket: OpenBucket, version: Version) -> None:
    """Make room for the object's attributes on a view that is also the stored file: move the record to a sidecar if
    possible."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.shared and seen.home is not Home.ATTRIBUTES:
            if seen.home is Home.INLINE:
                record_homes.put_beside(file, seen.fields)
            ours = {record_homes.inline_attribute(bucket), *attributes.RECORDS} & seen.on_file.keys()
            record_homes.remove(bucket, file.fd, ours, shared=True)


def move_from_sidecar(bucket: OpenBucket, version: Version) -> None:
    """Move a record back from its sidecar, where a view that is also the stored file has room for it again."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.shared and seen.home is Home.SIDECAR:
            record_homes.move(file, seen, seen.fields, Home.INLINE)


_SEAL = frozenset({attributes.RECORD, attributes.LAST_MODIFIED, attributes.BLAKE3, attributes.KEY})
"""A record without these counts as lost, in any form."""


def rewrite(bucket: OpenBucket, version: Version) -> None:
    """Write a stored version's record anew, whatever remains of the old one. The content is unchanged.

    Until the new record is written the version counts as one without a record, so that a crash causes another attempt.
    """
    fields = attributes.encode(version)
    with _opened(bucket, version) as file:
        sealed = {
            name
            for name in bucket.fs.attribute_names(file.fd)
            if name in _SEAL or name == record_homes.inline_attribute(bucket)
        }
        record_homes.remove(bucket, file.fd, sealed)
        record_homes.remove_sidecar(bucket, file.at, file.name)
        found = bucket.fs.stat_fd(file.fd)
        if found.st_nlink == 1 and found.st_mode & 0o177:
            bucket.fs.chmod(file.fd, 0o600)  # a copy of the tree may have opened it to others
        seen = replace(file, found=found).look()
        if seen.shared:
            record_homes.put_values(
                bucket, file.fd, attributes.of_object(version), shared=True
            )  # removed along with the record
            record_homes.move(file, seen, fields, Home.INLINE)
            record_homes.put_label(file, seen, version)
        else:
            record_homes.write(file, seen, fields, stamps_last=True)
    bucket.store_changed(version.key)


def _is_anothers(bucket: OpenBucket, fd: int, at: int, name: bytes, found: os.stat_result, key: bytes) -> bool:
    """Whether an open file has the record of another version. One that cannot be read names none."""
    try:
        return record_homes.is_anothers(record_homes.look(bucket, fd, at, name, found), name, key)
    except StoreDamaged:
        return False


@contextlib.contextmanager
def _opened(bucket: OpenBucket, version: Version) -> Iterator[record_homes.File]:
    """The open file of a stored version, for a `with` block that writes only this version's record.

    A file shared with another version is left to that one.
    """
    at, name = bucket.stored_file(version.key, version.id, marker=version.marker)
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink > 1 and _is_anothers(bucket, fd, at, name, found, version.key):
            separate(bucket, version, fd)
            bucket.fs.close(fd)
            fd = -1
            fd = open_file(bucket, at, name)
            found = bucket.fs.stat_fd(fd)
        yield record_homes.File(bucket, version.key, fd, at, name, found)
    finally:
        if fd >= 0:
            bucket.fs.close(fd)


def separate(bucket: OpenBucket, version: Version, fd: int) -> None:
    """Replace an open stored file by a private copy with this record, durably.

    Raises StoreDamaged where its content is not the version's. A user then wrote it through a view, and that they are
    one file shows it.
    """
    at, name = bucket.stored_file(version.key, version.id, marker=version.marker)
    staged = b"own.%d.%d" % (os.getpid(), next(_numbers))
    digest = copying.copy_aside(bucket, fd, staged)
    try:
        if digest != version.digest and not version.marker:
            raise StoreDamaged(f"version {version.id} of {keys.shown(version.key)} no longer matches its BLAKE3")
        own = bucket.fs.open_read(bucket.tmp, staged)
        try:
            sidecar = put(bucket, own, staged, version)
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
        record_homes.remove_sidecar(bucket, at, name)
    bucket.store_changed(version.key)
    log.info(
        'separated bucket=%s key="%s" version=%s: its file was shared with something else',
        bucket.address, keys.shown(version.key), version.id,
    )  # fmt: skip
