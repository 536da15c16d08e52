"""Attributes of files: the object's own, and the labels of a view."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Mapping, Sequence

from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import Posix, Version
from fsrepl.model.view import View
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import ACL, DOES_NOT_FIT, LASTING, UNSUPPORTED
from fsrepl.storage.posix import has_rights, view_metadata


def label_view(bucket: OpenBucket, version: Version, view: View, *, status_only: bool = False) -> View | None:
    """Write a view's labels; the view afterwards, or None where it is no longer as recorded.

    Raises OSError where that is impossible now.
    """
    if keys.is_directory(version.key):
        return None
    directory, name = keys.split(version.key)
    try:
        fd = bucket.fs.open_read(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno in LASTING:  # as a symlink, which takes no attributes
            return None
        raise
    try:
        before = bucket.fs.stat_fd(fd)
        if not bucket.fs.is_regular(before):
            return None
        # Where it is the stored file as well, the daemon's write of the record there has changed its ctime.
        if not view.is_like(before) and not (before.st_nlink > 1 and view.has_content_of(before)):
            return None
        if before.st_nlink > 1 and before.st_nlink > 1 + versions.is_file_of(bucket, version, before):
            return None  # another view's file as well, which cannot carry two labels
        if status_only:
            label = attributes.label(version)
            _put(bucket, fd, {name: value for name, value in label.items() if name == attributes.STATUS}, optional=True)
            true: Collection[str] = label
        else:
            _, true = _put_all(bucket, fd, version, own=False)
        found, names = bucket.fs.stat_fd(fd), bucket.fs.attribute_names(fd)
        if _remove_untrue(bucket, fd, true, found, names):  # it was pending, and no longer is
            found, names = bucket.fs.stat_fd(fd), bucket.fs.attribute_names(fd)
        # An edit in between must not be taken for the daemon's: it is left for the next look.
        if not view.has_content_of(found) or not _is_unedited(bucket, fd, version, before, found, names):
            return None
        return bucket.view(found, view.shown, racy=view.racy)
    finally:
        bucket.fs.close(fd)


def _is_unedited(
    bucket: OpenBucket, fd: int, version: Version, before: os.stat_result, found: os.stat_result, names: Sequence[str]
) -> bool:
    """Whether a view's metadata was not edited during labelling. names: its attributes, read since."""
    if (before.st_mode, before.st_uid, before.st_gid) != (found.st_mode, found.st_uid, found.st_gid):
        return False
    shown = version.shortfall.posix or version.posix
    if before.st_nlink > 1 and not has_rights(shown, found):
        return False  # edited before: the ctime of a view that is the stored file as well does not tell of that
    objects = (name for name in names if name == ACL or (name.startswith("user.") and not attributes.is_ours(name)))
    if not version.attrs and not version.tags and not (shown and shown.acl) and next(objects, None) is None:
        return True
    raw, acl = view_metadata(bucket, fd)
    posix = Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)
    return not metadata.changed(version, metadata.seen(version, posix, attributes.own(raw), attributes.tags(raw)))


_NOT_TAKEN = DOES_NOT_FIT | UNSUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF}
"""Errors of a view that has no room for an attribute, or whose mode excludes its owner."""


def write(bucket: OpenBucket, fd: int, version: Version, *, new: bool = False) -> set[str]:
    """Write a version's attributes on its view; the names of those that the view does not take.

    Labels are removed where the object's attributes need their room; and an untrue label is removed, as on
    a copy of another file. new: a file made just now has none of those.
    """
    refused, true = _put_all(bucket, fd, version, own=True)
    if not new:
        _keep(bucket, fd, true)
    return refused


def _put_all(bucket: OpenBucket, fd: int, version: Version, *, own: bool) -> tuple[set[str], Collection[str]]:
    """The attributes that a view does not take, and the names of its labels that it took.

    Without own, the object's own are there already. The id is written only where all of the object's attributes are.
    """
    objects, label = attributes.of_object(version), attributes.label(version)
    refused: set[str] = set()
    if objects:
        wanted = objects if own else _missing(bucket, fd, {n: v for n, v in objects.items() if n not in version.attrs})
        refused = _put(bucket, fd, wanted, optional=not own)
    if refused and _keep(bucket, fd, frozenset()):
        refused = _put(bucket, fd, {name: objects[name] for name in refused}, optional=not own)
    if not own:
        refused |= version.shortfall.lacks & version.attrs.keys()
    if refused:
        del label[attributes.VERSION_ID]
        refused |= {attributes.VERSION_ID, *_put(bucket, fd, label, optional=True)}
    else:
        refused = _put(bucket, fd, label, optional=True)
    return refused, label.keys() - refused


def _missing(bucket: OpenBucket, fd: int, wanted: Mapping[str, bytes]) -> dict[str, bytes]:
    """The given attributes that a file lacks, or has with another value."""
    try:
        return {name: value for name, value in wanted.items() if bucket.fs.attribute(fd, name) != value}
    except OSError:
        return dict(wanted)


def _put(bucket: OpenBucket, fd: int, raw: Mapping[str, bytes], *, optional: bool) -> set[str]:
    """Set attributes of a view; the names of those that it does not take. optional: no fault is raised."""
    refused = set()
    for attribute, value in raw.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if not optional and error.errno not in _NOT_TAKEN:
                raise
            refused.add(attribute)
    return refused


def _keep(bucket: OpenBucket, fd: int, true: Collection[str]) -> bool:
    """Remove the labels from a view except those named; whether there were any."""
    with contextlib.suppress(OSError):
        return _remove_untrue(bucket, fd, true, bucket.fs.stat_fd(fd), bucket.fs.attribute_names(fd))
    return False


def _remove_untrue(
    bucket: OpenBucket, fd: int, true: Collection[str], found: os.stat_result, names: Sequence[str]
) -> bool:
    if found.st_nlink > 1:
        true = {*true, *attributes.RECORDS}  # it may be the stored file as well
    untrue = [name for name in names if name not in true and attributes.is_ours(name)]
    if not untrue:
        return False
    with contextlib.suppress(OSError):
        for attribute in untrue:
            bucket.fs.remove_attribute(fd, attribute)
    return True
