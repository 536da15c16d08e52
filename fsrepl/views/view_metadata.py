"""The metadata of a version, written to the view that shows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from functools import partial

from msgspec.structs import replace

from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import Kind, Version
from fsrepl.model.view import View, view_of
from fsrepl.region.recent import Recent
from fsrepl.storage import placed, records, sharing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.questions import CurrentVersions
from fsrepl.storage.posix import apply_posix, apply_to_link
from fsrepl.views import one_file, stage, view_attributes
from fsrepl.views import show as view_show


def shown_view(current: CurrentVersions, bucket: OpenBucket, version: Version) -> View | None:
    """The view of a key, if it shows this version."""
    known = current.object(bucket.address, version.key)
    return known.view if known and known.view and known.view.shown == version.id else None


def show(bucket: OpenBucket, view: View, version: Version) -> View | None:
    """Write a version's metadata to its view; the view afterwards. None where it is no longer that view.

    Metadata that the view does not take is recorded as the shortfall.
    RACE: a user's edit within these few system calls is taken for the daemon's: it stays on the view, unreported
    until the next one.
    """
    if view.is_link and version.place is not None:
        placed.open_to_readers(bucket, version)
        return view
    if version.kind is Kind.LINK:
        return _show_link(bucket, view, version)
    if version.kind is Kind.DIRECTORY:
        return _show_anew(bucket, view, version)
    if (fd := _opened(bucket, version.key, partial(_open, bucket))) is None:
        return None
    try:
        found = bucket.fs.stat_fd(fd)
        if not view.has_content_of(found):
            return None
        if found.st_nlink > 1 and _is_others_too(bucket, version, found):
            return _show_anew(bucket, view, version)
        _remove_others(bucket, fd, attributes.of_object(version))
        refused = view_attributes.write(bucket, fd, version)
        posix = apply_posix(bucket, fd, version.posix)
        if refused:  # because of its former mode, or for want of room
            records.move_to_sidecar(bucket, version)
            refused = view_attributes.write(bucket, fd, version)
        shortfall = metadata.shortfall(version, posix, refused)
        if shortfall != version.shortfall:
            records.amend(bucket, replace(version, shortfall=shortfall))
        elif not refused:
            records.move_from_sidecar(bucket, version)
        return bucket.view(bucket.fs.stat_fd(fd), version.id, racy=view.racy)
    finally:
        bucket.fs.close(fd)


def _show_link(bucket: OpenBucket, view: View, version: Version) -> View | None:
    """Show the metadata of a symlink, which has owner and time alone, in its place: it may have other names."""
    if not bucket.bucket.trees or (fd := _opened(bucket, version.key, bucket.fs.open_inode)) is None:
        return None
    try:
        found = bucket.fs.stat_fd(fd)
        if not (bucket.fs.is_link(found) and view.has_content_of(found)):
            return None
        posix = apply_to_link(bucket, fd, version.posix)
        shortfall = metadata.shortfall(version, posix, attributes.of_object(version).keys())
        if shortfall != version.shortfall:
            records.amend(bucket, replace(version, shortfall=shortfall))
        return bucket.view(bucket.fs.stat_fd(fd), version.id, racy=view.racy)
    except PermissionError:  # another user's; its directory is the daemon's
        return _show_anew(bucket, view, version)
    finally:
        bucket.fs.close(fd)


def _opened(bucket: OpenBucket, key: bytes, opens: Callable[[int, bytes], int]) -> int | None:
    """The descriptor of a view; None where it was just removed or replaced: its event follows."""
    directory, name = keys.split(key)
    try:
        return opens(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno in LASTING:
            return None
        raise


def finish_edit(
    bucket: OpenBucket, journal: Journal, version: Version, was: View, recent: Recent | None = None
) -> None:
    """Write the metadata of a version's record to its view, after a fault or a crash interrupted that.

    was: the view before the edit. A file that has replaced it stays unchanged, and so does a time that is neither that
    of the view nor that of the record: a user has set it since. Of several names of a file, the records of some may
    have been written.
    """
    directory, name = keys.split(version.key)
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno in LASTING:
            return
        raise
    if not bucket.is_object(version.key, found) or (found.st_ino, found.st_size) != (was.ino, was.size):
        return
    names = one_file.other_names(journal.views, bucket, version, found.st_ino) if found.st_nlink > 1 else []
    now = one_file.latest(version, names, bucket.address)
    written = [(version, now)] if now != version else []
    for _, each in written + one_file.behind(names, now, bucket.address):
        one_file.write(bucket, recent, each)
    looks = show(bucket, view_of(found, version.id), now)
    if looks is not None:
        # racy: its content may have been written since then
        journal.views.see(bucket.address, version.key, replace(looks, racy=True))
        one_file.share_shortfall(bucket, recent, now, names)
        if not names and found.st_mtime_ns not in (was.mtime_ns, looks.mtime_ns):
            _set_time_again(bucket, version, found)


def _set_time_again(bucket: OpenBucket, version: Version, found: os.stat_result) -> None:
    """Set the time that a view had, so that it is captured."""
    open_view = bucket.fs.open_inode if version.kind is Kind.LINK else partial(_open, bucket)
    if (fd := _opened(bucket, version.key, open_view)) is not None:
        try:
            if bucket.fs.stat_fd(fd).st_ino == found.st_ino:
                bucket.fs.set_mtime(fd, found.st_mtime_ns)
        finally:
            bucket.fs.close(fd)


def _remove_others(bucket: OpenBucket, fd: int, wanted: Collection[str]) -> None:
    """Remove the attributes and tags that a view's version does not have."""
    try:
        for attribute in bucket.fs.attributes(fd):
            if not attributes.is_ours(attribute) and attribute not in wanted:
                bucket.fs.remove_attribute(fd, attribute)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EBADF):  # its mode excludes its owner
            raise


def _open(bucket: OpenBucket, at: int, name: bytes) -> int:
    try:
        return bucket.fs.open_read(at, name)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return bucket.fs.open_inode(at, name)  # its owner may not read it either; the owner may change its mode


def _is_others_too(bucket: OpenBucket, version: Version, found: os.stat_result) -> bool:
    """Whether a view is the file of something else as well, to which this version's metadata does not belong.

    Where users write, they choose what their hard links share; and in a tree bucket hard links are kept.
    """
    if sharing.receives_writes(bucket.bucket) or bucket.bucket.trees:
        return False
    return found.st_nlink > 1 + versions.is_file_of(bucket, version, found)


def _show_anew(bucket: OpenBucket, view: View, version: Version) -> View | None:
    outcome = view_show.show(bucket, version, view, stage.stage_current(bucket, version))
    return outcome.view if isinstance(outcome, view_show.Shown) else None
