"""Attributes of files: the object's own, and the labels that tell a view's version."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Mapping

from fsrepl.model import attributes, metadata
from fsrepl.model.version import Posix, Version
from fsrepl.model.view import View
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import ACL, DOES_NOT_FIT, LASTING, UNSUPPORTED
from fsrepl.storage.posix import view_metadata
from fsrepl.storage.view_file import open_view_if_there


def mark_view(bucket: OpenBucket, version: Version, view: View, *, status_only: bool = False) -> View | None:
    """Show on a view what its version is; how it looks afterwards, or None where it is no longer as it was.

    Raises OSError where that cannot be done now.
    """
    with open_view_if_there(bucket, version.key, LASTING) as opened:
        if opened is None:
            return None
        fd, before = opened.fd, opened.found
        # Where it is the stored file as well, our own record there has changed its ctime.
        if not view.is_like(before) and not (before.st_nlink > 1 and view.has_content_of(before)):
            return None
        if before.st_nlink > 1 + versions.is_file_of(bucket, version, before):
            return None  # it is another view's file as well, and cannot say two things
        if status_only:
            for attribute, value in attributes.encode_deliveries(version).items():
                with contextlib.suppress(OSError):  # a courtesy
                    bucket.fs.set_attribute(fd, attribute, value)
        else:
            mark(bucket, fd, version, own=False)
        for attribute in attributes.DELIVERY_NAMES - attributes.encode_deliveries(version).keys():
            with contextlib.suppress(OSError):  # it was pending, and is owed no more
                bucket.fs.remove_attribute(fd, attribute)
        found = bucket.fs.stat_fd(fd)
        # What was edited in between must not be taken for ours: it is left to be looked at.
        if not view.has_content_of(found) or not _is_unedited(bucket, fd, version, before, found):
            return None
        return bucket.view(found, view.shown, racy=view.racy)


def _is_unedited(bucket: OpenBucket, fd: int, version: Version, before: os.stat_result, found: os.stat_result) -> bool:
    """Whether nobody has edited a view's metadata while we marked it."""
    if (before.st_mode, before.st_uid, before.st_gid) != (found.st_mode, found.st_uid, found.st_gid):
        return False
    shown = version.shortfall.posix or version.posix
    if not version.attrs and not version.tags and not (shown and shown.acl):
        names = bucket.fs.attribute_names(fd)
        if not any(name == ACL or (name.startswith("user.") and not attributes.is_ours(name)) for name in names):
            return True
    raw, acl = view_metadata(bucket, fd)
    posix = Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)
    return not metadata.changed(version, metadata.seen(version, posix, attributes.own(raw), attributes.tags(raw)))


_NOT_TAKEN = DOES_NOT_FIT | UNSUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF}
"""What a view answers that has no room for an attribute, or whose mode shuts its owner out."""


def mark(bucket: OpenBucket, fd: int, version: Version, *, own: bool = True) -> set[str]:
    """Put a version's attributes on its view, as far as that takes them; the names of those that it does not.

    Without own, the object's own are there already. Ours are a courtesy: they make room where the object's
    need it; one that is not true of this version goes, as a copy of another file has it; and the id, which is
    the last, is there only where all that is the object's is.
    """
    objects, ours = attributes.of_object(version), attributes.marks(version)
    wanted = objects if own else {name: value for name, value in objects.items() if name not in version.attrs}
    refused = _put(bucket, fd, wanted, courtesy=not own)
    if refused and _keep(bucket, fd, frozenset()):
        refused = _put(bucket, fd, {name: objects[name] for name in refused}, courtesy=not own)
    if not own:
        refused |= version.shortfall.lacks & version.attrs.keys()
    if refused:
        ours.pop(attributes.VERSION_ID)
        refused |= {attributes.VERSION_ID, *_put(bucket, fd, ours, courtesy=True)}
    else:
        refused = _put(bucket, fd, ours, courtesy=True)
    _keep(bucket, fd, ours.keys() - refused)
    return refused


def _put(bucket: OpenBucket, fd: int, raw: Mapping[str, bytes], *, courtesy: bool) -> set[str]:
    """Set attributes of a view; the names of those that it does not take. Other faults are raised, or no matter."""
    refused = set()
    for attribute, value in raw.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if not courtesy and error.errno not in _NOT_TAKEN:
                raise
            refused.add(attribute)
    return refused


def _keep(bucket: OpenBucket, fd: int, true: Collection[str]) -> bool:
    """Take what is ours off a view but for these names; whether there was anything of that kind."""
    changed = False
    with contextlib.suppress(OSError):
        if bucket.fs.stat_fd(fd).st_nlink > 1:
            true = {*true, *attributes.RECORDS}  # it may be the stored file as well
        for attribute in bucket.fs.attribute_names(fd):
            if attributes.is_ours(attribute) and attribute not in true:
                bucket.fs.remove_attribute(fd, attribute)
                changed = True
    return changed
