"""What is recorded of a version, beside its content: where that stands, and how it is changed.

Where it stands, and how it is moved, is record_homes.py's. A change of a record is written so that a crash in between
leaves the old one, or a difference that is found again. Records of earlier builds, each field of which is an attribute
of its own, are read as these are, and written in today's form with their first change: see model/record_form.py.

Two stored versions may come to have one inode: jdupes, rdfind and hardlink join files of equal content. The record on
it is one of theirs at most; the others have lost theirs, and get a file of their own before a record of theirs is
written. Hard links from elsewhere, as in a backup, are none of that.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, metadata, record_form
from fsrepl.model.version import Posix, Version
from fsrepl.storage import copying, record_homes
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.posix import inode_posix, posix_of
from fsrepl.storage.record_homes import Home

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
        if fields := record_homes.read_inline(bucket.fs.attribute(fd, record_homes.inline_attribute(bucket))):
            return fields[attributes.KEY], fields[attributes.VERSION_ID].decode()
    return None


def is_shared(bucket: OpenBucket, fd: int) -> bool:
    """Whether people can reach a stored file, or could: it says so, or says nothing any more."""
    if not any(name.startswith(attributes.OURS) for name in bucket.fs.attribute_names(fd)):
        return True
    try:
        return record_homes.read_inline(bucket.fs.attribute(fd, record_homes.inline_attribute(bucket))) is not None
    except StoreDamaged:
        return True


# -- putting it on a file that is hidden still


def put(bucket: OpenBucket, fd: int, name: bytes, fields: Mapping[str, bytes]) -> bool:
    """Put a version's record on its hidden file; whether a sidecar had to take it.

    The sidecar holds all of it; the file keeps what fits, for people who look.
    """
    if not record_homes.put_values(bucket, fd, record_form.on_file(fields)):
        return False
    record_homes.write_sidecar(bucket, name, fields)
    return True


def put_again(bucket: OpenBucket, fd: int, name: bytes, fields: Mapping[str, bytes]) -> bool:
    """The same, in the place of what was put there before."""
    record_homes.remove_sidecar(bucket, bucket.tmp, name)
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
    refused = record_homes.put_values(bucket, fd, {n: v for n, v in shown.items() if there.get(n) != v}, shared=True)
    shortfall = metadata.shortfall(version, posix, refused)
    if shortfall != version.shortfall:
        version = replace(version, shortfall=shortfall)
    fields = attributes.encode(version)
    if record_homes.put_inline(bucket, fd, version.key, fields):
        record_homes.put_values(bucket, fd, record_homes.shown_of(bucket, fields, Home.INLINE), shared=True)
        return version, False
    record_homes.write_sidecar(bucket, name, fields)
    return version, True


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
        seen = record_homes.look(bucket, fd, at, name, found)
        inode = posix_of(found, bucket.fs.acl(fd) if seen.has_acl else None)
    finally:
        bucket.fs.close(fd)
    if found.st_nlink > 1 and record_homes.is_anothers(seen, name, place):
        return Record({}, inode, found.st_size, bare=True)
    bare = seen.shared and not (attributes.lacks_marks(seen.fields) or any(map(attributes.is_ours, seen.on_file)))
    return Record(seen.fields, inode, found.st_size, bare)


# -- changing it


def write_deliveries(bucket: OpenBucket, version: Version, *, plain: bool = False) -> bool:
    """Write down what a stored version owes now, and leave the rest of its record as it is.

    plain: its record is known to be attributes of its file, with nobody else to write them; whether that is so still.
    """
    deliveries = attributes.encode_deliveries(version) if version.deliveries else None
    with _opened(bucket, version) as file:
        in_place = {attributes.DELIVERIES: deliveries} if deliveries else {}
        if plain and in_place and file.found.st_nlink == 1 and not record_homes.put_values(bucket, file.fd, in_place):
            return True
        seen = file.look()
        fields = {name: value for name, value in seen.fields.items() if name != attributes.DELIVERIES}
        if not attributes.is_whole(fields, keys.stored_path(version.key), marker=version.marker):
            fields = attributes.encode(version)  # its user took it off
        elif deliveries:
            fields[attributes.DELIVERIES] = deliveries
        return record_homes.write(file, seen, fields) is Home.ATTRIBUTES


def amend(bucket: OpenBucket, version: Version, *, applied: bool = False) -> None:
    """Make the record of a stored version say what this one says; its content stays as it is.

    applied: an edit from elsewhere, whose stamps come last, since they say that the values are there.
    """
    with _opened(bucket, version) as file:
        record_homes.write(file, file.look(), attributes.encode(version), stamps_last=applied)


def share(bucket: OpenBucket, version: Version) -> None:
    """A stored version is about to be a view too: keep its record where the view's owner cannot write."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.home is Home.ATTRIBUTES:
            record_homes.move(file, seen, attributes.encode(version), Home.INLINE)
        record_homes.put_label(file, seen, version)


def make_private(bucket: OpenBucket, version: Version) -> None:
    """A stored version that was a view too, and is nothing else any more, is the daemon's own, and 0600.

    What its inode said of the object is in its record first. One that still has another name stays as it is.
    """
    with _opened(bucket, version) as file:
        if file.found.st_nlink > 1 or record_homes.is_private(bucket, file.found):
            return
        record_homes.write(file, file.look(), attributes.encode(version))
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
                record_homes.put_beside(file, seen.fields)
            ours = {record_homes.inline_attribute(bucket), *attributes.RECORDS} & seen.on_file.keys()
            record_homes.remove(bucket, file.fd, ours, shared=True)


def tidy(bucket: OpenBucket, version: Version) -> None:
    """Take a record back from its sidecar, where a view that is the stored file too has room for it again."""
    with _opened(bucket, version) as file:
        seen = file.look()
        if seen.shared and seen.home is Home.SIDECAR:
            record_homes.move(file, seen, seen.fields, Home.INLINE)


_SEAL = frozenset({attributes.RECORD, attributes.LAST_MODIFIED, attributes.BLAKE3, attributes.KEY})
"""Without these a record counts as lost, in whatever form it was."""


def rewrite(bucket: OpenBucket, version: Version) -> None:
    """Write a stored version's record anew, whatever there is of it. The content stays as it is.

    Until it is there the version counts as one that has lost its record, so that this is done again after a crash.
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
            )  # they are gone with ours
            record_homes.move(file, seen, fields, Home.INLINE)
            record_homes.put_label(file, seen, version)
        else:
            record_homes.write(file, seen, fields, stamps_last=True)
    bucket.store_changed(version.key)


@contextlib.contextmanager
def _opened(bucket: OpenBucket, version: Version) -> Iterator[record_homes.File]:
    """The file of a stored version.

    What is written onto it is this version's alone: a file that is another version's too is left to that one.
    """
    at, name = bucket.stored_file(version.key, version.id, marker=version.marker)
    fd = open_file(bucket, at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        if found.st_nlink > 1 and record_homes.is_anothers(
            record_homes.look(bucket, fd, at, name, found), name, version.key
        ):
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
        record_homes.remove_sidecar(bucket, at, name)
    bucket.store_changed(version.key)
    log.info(
        'separated bucket=%s key="%s" version=%s: its file was that of something else too',
        bucket.address, keys.shown(version.key), version.id,
    )  # fmt: skip
