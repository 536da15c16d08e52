"""Homes of a stored version's record, and moves between them.

    ATTRIBUTES  attributes of the file: user.fsrepl.record, user.fsrepl.deliveries, tags, the object's own
    INLINE      one attribute with the whole record, writable only by the daemon: the file is also a view, and its user
                may write the others
    SIDECAR     a file with the whole record beside the version, where the file has no room for it

A sidecar takes precedence, then an inline record, over the attributes. The attributes stay as far as they fit, for
people who inspect them and for copies of the tree without sidecars. The previous home is valid until the new one is
written.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
from collections.abc import Iterable, Mapping

from msgspec import Struct

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, record_form
from fsrepl.model.version import Version
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import ACL, DOES_NOT_FIT, UNSUPPORTED

_numbers = itertools.count()


class Home(enum.Enum):
    """Homes of a stored version's record; of two, the later one here takes precedence."""

    ATTRIBUTES = enum.auto()
    INLINE = enum.auto()
    SIDECAR = enum.auto()


# -- reading


class Seen(Struct, frozen=True):
    """The record of a stored file, and its home.

    on_file: the attributes of the file, whatever home the record has; not all of them after a brief look.
    shared: others may write those attributes, since they can reach the file as a view.
    """

    fields: Mapping[str, bytes]
    home: Home
    shared: bool
    on_file: Mapping[str, bytes]
    has_acl: bool = False


def look(
    bucket: OpenBucket, fd: int, at: int, name: bytes, found: os.stat_result, *, is_brief: bool = False
) -> Seen:  # fmt: skip
    """The record on an open stored file, or beside it. Raises OSError, StoreDamaged.

    is_brief: where the record is inline, the attributes beside it are not read.
    """
    side = read_sidecar(bucket, at, name)
    names = bucket.fs.attribute_names(fd)
    inline_name = inline_attribute(bucket)
    wanted = [n for n in names if n.startswith("user.") or n == inline_name]
    if is_brief and inline_name == attributes.TRUSTED_RECORD and inline_name in names:
        wanted = [inline_name]
    on_file = {n: value for n in wanted if (value := bucket.fs.attribute(fd, n)) is not None}
    # read for every file: a view may have been made private before its stored version lost its other name
    try:
        inline = read_inline(on_file.get(inline_name))
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
        fields, home = _trusted(bucket, on_file, found), Home.ATTRIBUTES
    return Seen(fields, home, shared, on_file, ACL in names)


def is_anothers(seen: Seen, name: bytes, path: bytes) -> bool:
    """Whether a hard-linked stored file has the record of another version, one of its other names."""
    stored = keys.parse(name)
    return stored is not None and seen.home is not Home.SIDECAR and not attributes.is_of(seen.fields, path, stored.id)


def is_ours_alone(bucket: OpenBucket, seen: Seen) -> bool:
    """Whether only the daemon can have written the record, whoever has access to the file."""
    return seen.home is Home.SIDECAR or (
        seen.home is Home.INLINE and inline_attribute(bucket) == attributes.TRUSTED_RECORD
    )


def is_private(bucket: OpenBucket, found: os.stat_result) -> bool:
    """Whether only the daemon can write to a stored file, whatever other names it has, as in a backup of hard links."""
    return found.st_uid == bucket.fs.uid and not found.st_mode & 0o077


def _trusted(bucket: OpenBucket, on_file: Mapping[str, bytes], found: os.stat_result) -> dict[str, bytes]:
    """The attributes of a stored file as its record. An inode's own metadata is not believed from a user who could
    write it."""
    fields = record_form.read({name: value for name, value in on_file.items() if name.startswith("user.")})
    if not is_private(bucket, found) and bucket.fs.uid == 0:
        fields.pop(attributes.POSIX, None)
    return fields


def read_sidecar(bucket: OpenBucket, at: int, name: bytes) -> dict[str, bytes]:
    try:
        bucket.fs.stat(at, name + keys.SIDECAR)  # mostly there is none, and this says so sooner
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
    fields.pop(attributes.STATUS, None)  # derived; only earlier builds wrote it
    return fields


def inline_attribute(bucket: OpenBucket) -> str:
    """The attribute for a whole record, which only the daemon can write."""
    return attributes.TRUSTED_RECORD if bucket.fs.uid == 0 else attributes.OWN_RECORD


def read_inline(value: bytes | None) -> dict[str, bytes] | None:
    """The whole record in one attribute of a file, if it has one. Raises StoreDamaged."""
    return None if value is None else record_form.read_whole(value)


# -- writing to a file


_SHUT = frozenset({errno.EACCES, errno.EPERM})
"""Errors from a file whose mode denies writing even to its owner. Such a file is also a view: only there is the mode
the object's."""


def put_values(bucket: OpenBucket, fd: int, values: Mapping[str, bytes], *, shared: bool = False) -> set[str]:
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


def put_inline(bucket: OpenBucket, fd: int, value: bytes) -> bool:
    """Write the whole record of a file shared with its user into one attribute; False where that fails.

    The record includes the key, since the file may be found under other names.
    """
    return not put_values(bucket, fd, {inline_attribute(bucket): value}, shared=True)  # EPERM: root of a container only


def shown_of(bucket: OpenBucket, fields: Mapping[str, bytes], home: Home) -> dict[str, bytes]:
    """The attributes to show on a file shared with its user, whose record has another home.

    Inode metadata is left out: the inode has it, and no attribute is believed for it.
    """
    if home is Home.INLINE and inline_attribute(bucket) == attributes.RECORD:
        return {}
    return record_form.shown(fields)


def write_sidecar(bucket: OpenBucket, name: bytes, fields: Mapping[str, bytes]) -> None:
    """Stage a sidecar beside a staged file. A full disk is reported as such here."""
    fd = bucket.fs.create(bucket.tmp, name + keys.SIDECAR)
    try:
        bucket.fs.write(fd, attributes.encode_sidecar(fields))
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)


# -- writing and moving a record


class File(Struct, frozen=True):
    """The open file of a stored version: its directory, its name there, and its stat result."""

    bucket: OpenBucket
    key: bytes
    fd: int
    at: int
    name: bytes
    found: os.stat_result

    def look(self, *, is_brief: bool = False) -> Seen:
        return look(self.bucket, self.fd, self.at, self.name, self.found, is_brief=is_brief)


def write(file: File, seen: Seen, fields: Mapping[str, bytes], *, stamps_last: bool = False) -> Home:
    """Write the record of a stored file; its home then."""
    if seen.shared:
        return move(file, seen, fields, Home.INLINE)
    if seen.home is Home.SIDECAR:
        return move(file, seen, fields, Home.ATTRIBUTES)
    if _edit(file, seen.on_file, fields, stamps_last=stamps_last):
        return Home.ATTRIBUTES
    return move(file, seen, fields, Home.SIDECAR)


def _edit(file: File, before: Mapping[str, bytes], fields: Mapping[str, bytes], *, stamps_last: bool = False) -> bool:
    """Write a record to the attributes of a file; False where they do not all fit.

    The deliveries and the edit stamps, which are in the record, are written before the values. After a crash in
    between, the view differs from the values, so the edit is found again and becomes pending again. stamps_last: the
    other way round.
    """
    after = record_form.on_file(fields)
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    gone = {name for name in before if name.startswith("user.") and name not in after}
    said = {name: changed.pop(name) for name in (attributes.DELIVERIES, attributes.RECORD) if name in changed}
    if stamps_last:
        if put_values(file.bucket, file.fd, changed):
            return False
        remove(file.bucket, file.fd, {name for name in gone if not attributes.is_ours(name)})
        gone = {name for name in gone if attributes.is_ours(name)}
        changed = {}
    if put_values(file.bucket, file.fd, said) or put_values(file.bucket, file.fd, changed):
        return False
    remove(file.bucket, file.fd, gone)
    return True


def move(file: File, seen: Seen, fields: Mapping[str, bytes], to: Home) -> Home:
    """Write a whole record to a home, the same or another; its home then: the sidecar if it does not fit.

    The previous home is valid until the new one is written.
    """
    shared = seen.shared or to is Home.INLINE
    if to is Home.INLINE:
        fits = _fill_inline(file, seen, fields)
    else:
        fits = to is Home.ATTRIBUTES and _fill(file, fields)
    if fits and seen.home is Home.SIDECAR:
        file.bucket.fs.sync_file(file.fd)
        remove_sidecar(file.bucket, file.at, file.name)
        file.bucket.store_changed(file.key)
    if not fits:
        to = Home.SIDECAR
        if seen.home is not Home.SIDECAR or seen.fields != fields:
            put_beside(file, fields)
    if shared:
        _show(file, fields, to)
    elif not fits:
        _fill(file, fields)
    return to


def _fill_inline(file: File, seen: Seen, fields: Mapping[str, bytes]) -> bool:
    """Write a record into one attribute; attributes shown to people make room for it."""
    if seen.home is Home.INLINE and seen.fields == {**fields, attributes.KEY: file.key}:
        return True  # it says that already
    value = record_form.whole({**fields, attributes.KEY: file.key})
    if put_inline(file.bucket, file.fd, value):
        return True
    shown = (attributes.RECORDS - {inline_attribute(file.bucket)}) & seen.on_file.keys()
    if not shown or seen.home is Home.ATTRIBUTES:  # they are the record there
        return False
    remove(file.bucket, file.fd, shown, shared=True)
    return put_inline(file.bucket, file.fd, value)


def _fill(file: File, fields: Mapping[str, bytes]) -> bool:
    """Write a record to a file's attributes, as far as they fit; whether all do."""
    before, after = file.bucket.fs.attributes(file.fd), record_form.on_file(fields)
    remove(file.bucket, file.fd, before.keys() - after.keys())
    refused = put_values(file.bucket, file.fd, {n: v for n, v in after.items() if before.get(n) != v})
    remove(file.bucket, file.fd, refused & before.keys())  # a missing attribute is better than an outdated one
    return not refused


def _show(file: File, fields: Mapping[str, bytes], home: Home) -> None:
    """Show the record on a file shared with its user, as far as it fits, while the record has another home.

    Attributes outside the record belong to the view and may have been edited since.
    """
    bucket, inline_name = file.bucket, inline_attribute(file.bucket)
    shown = shown_of(bucket, fields, home)
    holds = {inline_name} if home is Home.INLINE else set()
    stale = [
        name
        for name in bucket.fs.attribute_names(file.fd)
        if name in {inline_name, *attributes.RECORDS} and name not in holds and name not in shown
    ]
    remove(bucket, file.fd, stale, shared=True)
    changed = {name: value for name, value in shown.items() if bucket.fs.attribute(file.fd, name) != value}
    remove(bucket, file.fd, put_values(bucket, file.fd, changed, shared=True), shared=True)


def show_again(file: File, seen: Seen, version: Version) -> None:
    """Write the attributes beside an inline record of a version again, where its user has changed them."""
    if (inline_name := inline_attribute(file.bucket)) != attributes.RECORD:
        beside = record_form.shown_beside(seen.on_file[inline_name])
        shown = record_form.shown_of(version) if beside is None else {attributes.RECORD: beside}
        changed = {name: value for name, value in shown.items() if file.bucket.fs.attribute(file.fd, name) != value}
        remove(file.bucket, file.fd, put_values(file.bucket, file.fd, changed, shared=True), shared=True)


def put_label(file: File, seen: Seen, version: Version) -> None:
    """Write the labels to a stored file that is about to be a view."""
    label = attributes.label(version)
    put_values(file.bucket, file.fd, {n: v for n, v in label.items() if seen.on_file.get(n) != v}, shared=True)


def put_beside(file: File, fields: Mapping[str, bytes]) -> None:
    bucket, staged = file.bucket, b"record.%d.%d" % (os.getpid(), next(_numbers))
    write_sidecar(bucket, staged, fields)
    bucket.fs.rename(bucket.tmp, staged + keys.SIDECAR, file.at, file.name + keys.SIDECAR)
    bucket.store_changed(file.key)


def remove_sidecar(bucket: OpenBucket, at: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(at, name + keys.SIDECAR)


def remove(bucket: OpenBucket, fd: int, names: Iterable[str], *, shared: bool = False) -> None:
    for attribute in names:
        try:
            bucket.fs.remove_attribute(fd, attribute)
        except OSError as error:
            if error.errno != errno.ENODATA and error.errno not in UNSUPPORTED | (_SHUT if shared else frozenset()):
                raise
