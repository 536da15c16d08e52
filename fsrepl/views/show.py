"""A view is replaced or removed: the hidden copy is made durable, then visible, each step safe at a power cut.

The order of a batch, each step durable before the next begins:

    staged     files in .fsrepl/tmp, and an intent that names every view about to change
    published  renamed into the store: the versions exist, not yet visible
    shown      linked, renamed or exchanged over the views; then the intent is removed

After a crash the intent names the views that are merely stale, so that none of them is
taken for a user's act. A view is exchanged, never overwritten: the file taken out is compared with
the record, and unrecorded content is put back and becomes a version first.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping

from msgspec import Struct

from fsrepl.errors import StoreDamaged, Unavailable
from fsrepl.model import keys
from fsrepl.model.version import Kind, Version
from fsrepl.model.view import View
from fsrepl.storage import placed, records, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import GONE, LASTING
from fsrepl.storage.view_file import look_at_file, open_entry
from fsrepl.views import crossing, directories, folders, just_shown, obstacles, writable
from fsrepl.views.decide import ABSENT, Answer, Found, Occupant, decide_view

# -- views


class Shown(Struct, frozen=True):
    """The view shows the version now; view is None where it is absent for a marker.

    left: the version shown before, if the view was its stored file, whose record its user could write.
    record: the version left, where its record is known to be so still. is_overwritten: its content may be another one.
    """

    view: View | None
    left: str = ""
    record: Version | None = None
    is_overwritten: bool = False


class NotShown(Struct, frozen=True):
    """The view cannot change now. conflict: its place is taken by something that is not this key's file."""

    why: str
    conflict: bool = False


class UserChanged(Struct, frozen=True):
    """The view has unrecorded content, which becomes a version first."""


ShowResult = Shown | NotShown | UserChanged
_WRITTEN = "a program has the file open for writing"
_UNREACHED = NotShown("rename does not reach it, as in another subvolume, and writers cannot be detected there")


def take_out_all(bucket: OpenBucket, views: Mapping[bytes, View]) -> dict[bytes, Shown]:
    """Remove the views of many keys, each as take_out does; the results of those that are gone.

    Directories that replication made go too, once they are empty. Those that stay are left to `show`.
    """
    gone = {}
    for key, view in views.items():
        with contextlib.suppress(OSError):
            outcome = take_out(bucket, key, view)
            if isinstance(outcome, Shown):
                gone[key] = outcome
    for directory in {keys.split(key)[0] for key in gone}:
        obstacles.remove_made_directories(bucket, directory)
    return gone


def nothing(key: bytes) -> Version:
    """Marker for the view of a key that has no version left."""
    return Version(key, "", 0, marker=True)


def show(
    bucket: OpenBucket, version: Version, expected: View | None, staged: bytes = b"",
    *, emptied: set[bytes] | None = None,
) -> ShowResult:  # fmt: skip
    """Make a key's view show a stored version, or remove it for a marker.

    expected: the view as recorded. staged: a file in .fsrepl/tmp that becomes the
    view; without one, a hard link to the stored version does. A reader sees the old version or
    the new one, whole. emptied: gets the directories of removed files, which a caller with many of them leaves
    afterwards (obstacles.remove_made_directories); without it, this one is left at once.
    """
    outcome = None
    try:
        try:
            outcome = _show(bucket, version, expected, staged)
        except PermissionError:
            with writable.made_writable(bucket, keys.place(version.key)[0]) as is_writable:
                if not is_writable:
                    raise
                outcome = _show(bucket, version, expected, staged)
        if version.marker and isinstance(outcome, Shown) and not keys.is_directory(version.key):
            if emptied is not None:
                emptied.add(keys.split(version.key)[0])
            else:
                obstacles.remove_made_directories(bucket, keys.split(version.key)[0])
        return outcome
    finally:
        if staged and not isinstance(outcome, Shown):
            with contextlib.suppress(OSError):  # a file that stays is swept at the next start
                staging.unstage(bucket, staged)


def look(bucket: OpenBucket, key: bytes) -> Found:
    """The entry in the place of a key's view; any object of a tree bucket counts as a file. Raises OSError for errors
    that may pass."""
    try:
        status = bucket.view_status(key)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return Found(ABSENT[error.errno])
    return Found(Occupant.FILE if bucket.is_object(key, status) else Occupant.OTHER, status)


def _show(bucket: OpenBucket, version: Version, expected: View | None, staged: bytes) -> ShowResult:
    kind = version.kind
    if kind is Kind.DIRECTORY:
        return show_directory(bucket, version, expected)
    if kind is not Kind.FILE and (needed := obstacles.needs_trees(bucket, version)):
        return NotShown(needed, conflict=True)
    if kind is Kind.LINK and not staged:
        return NotShown("the target of the symlink is too long for this filesystem", conflict=True)
    if version.marker and expected is not None and (outcome := remove(bucket, version.key, expected)) is not None:
        return outcome
    if expected is None and not version.marker:
        made = _make(bucket, version, staged)  # at once: mostly the place is free, and the call fails where it is not
        if made is not None:
            return made
    match decide_view(look(bucket, version.key), expected, version):
        case Answer.DONE:
            return removed(bucket, version.key, expected)
        case Answer.BLOCKED:
            return _conflict(bucket, version.key)
        case Answer.USER_CHANGED:
            return UserChanged()
        case Answer.MAKE:  # the obstacle has just gone
            return _make(bucket, version, staged) or UserChanged()
        case Answer.CLEAR:
            if not obstacles.clear(bucket, version.key):
                return _conflict(bucket, version.key)
            return _make(bucket, version, staged) or UserChanged()
        case Answer.REPLACE:
            assert expected is not None
            return _replace(bucket, version, expected, staged)


def remove(bucket: OpenBucket, key: bytes, expected: View) -> ShowResult | None:
    """Remove the view of a file, if it is there as recorded; None where it is not, or cannot be opened: nothing is
    changed then. The directory that it was in is left by the caller. Raises OSError."""
    directory, name = keys.split(key)
    fd = -1 if expected.is_link else _open(bucket, directory, name)
    if fd < 0:
        return None
    try:
        file = records.OpenFile(fd, bucket.fs.stat_fd(fd))
        if not bucket.fs.is_regular(file.found) or not expected.is_like(file.found):
            return None
        if bucket.fs.is_written(fd):
            return NotShown(_WRITTEN)
        return take_out(bucket, key, expected, file)
    finally:
        bucket.fs.close(fd)


def removed(bucket: OpenBucket, key: bytes, expected: View | None) -> Shown:
    """The result for a view that its user removed, or replaced, before the daemon did.

    Where it was a version's stored file, it may have been written into before: with another version current, no capture
    looks at it any more.
    """
    if expected is None or not expected.shown or expected.is_link:
        return Shown(None)
    try:
        stored = bucket.fs.stat(*bucket.stored_file(key, expected.shown))
    except OSError as error:
        if error.errno not in GONE:
            raise
        return Shown(None)
    if stored.st_ino != expected.ino:
        return Shown(None)
    if stored.st_nlink > 1 or not expected.has_content_of(stored):
        return Shown(None, expected.shown, is_overwritten=True)
    return Shown(None, expected.shown, versions.make_private(bucket, key, expected.shown))


def _make(bucket: OpenBucket, version: Version, staged: bytes) -> ShowResult | None:
    """Make a missing view, with the directories above it; None where its place is taken."""
    directory, name = keys.split(version.key)
    try:
        return _show_new(bucket, directories.get_or_make(bucket, directory), name, version, staged)
    except OSError as error:
        occupant = ABSENT.get(error.errno)
        if occupant is None or decide_view(Found(occupant), None, version) is not Answer.BLOCKED:
            raise
        return _conflict(bucket, version.key)


def _replace(bucket: OpenBucket, version: Version, expected: View, staged: bytes) -> ShowResult:
    """Take out a view that is as recorded, and put the version's file there; none for a marker."""
    directory, name = keys.split(version.key)
    at = bucket.views.get(directory)
    fd = _open(bucket, directory, name)
    try:
        if bucket.fs.is_written(fd) if fd >= 0 else is_written(bucket, at, name):
            return NotShown(_WRITTEN)
        file = records.OpenFile(fd, bucket.fs.stat_fd(fd)) if fd >= 0 else None
        if version.marker:
            return take_out(bucket, version.key, expected, file)
        return _exchange(bucket, at, directory, name, version, expected, staged, file)
    finally:
        if fd >= 0:
            bucket.fs.close(fd)


def _conflict(bucket: OpenBucket, key: bytes) -> NotShown:
    return NotShown(obstacles.describe(bucket, key) or "something was in the way", conflict=True)


def _open(bucket: OpenBucket, directory: bytes, name: bytes) -> int:
    """A view opened before it is taken out, so that it need not be opened again; -1 where it cannot be opened."""
    try:
        return bucket.fs.open_read(bucket.views.get(directory), name)
    except OSError:
        return -1


def is_written(bucket: OpenBucket, at: int, name: bytes) -> bool | None:
    """Whether a program has a file open for writing; None where that cannot be known."""
    return _look_at(bucket, at, name)[0]


def _look_at(bucket: OpenBucket, at: int, name: bytes) -> tuple[bool | None, os.stat_result | None]:
    """Whether a program has a file open for writing, see is_written; and its status, where it is a regular file that
    can be opened."""
    try:
        if (plain := look_at_file(bucket, at, name)) is not None:
            return plain.is_written, plain.found
        with open_entry(bucket, at, name) as entry:
            return entry.is_written(), None
    except BlockingIOError:
        return True, None
    except OSError as error:
        if error.errno in LASTING:
            return None, None
        raise


def _show_new(bucket: OpenBucket, at: int, name: bytes, version: Version, staged: bytes) -> Shown | None:
    """Make a missing view; None where its place is taken."""
    try:
        if staged:
            bucket.fs.rename_new(bucket.tmp, staged, at, name)
        else:
            bucket.fs.link(*bucket.stored_file(version.key, version.id), at, name)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not _rename_beside(bucket, at, name, version):
            return None
        _drop_staged(bucket, staged)
    bucket.views.changed.add(keys.split(version.key)[0])
    return Shown(just_shown.look(bucket, at, name, version))


def _rename_beside(bucket: OpenBucket, at: int, name: bytes, version: Version) -> bool:
    """Make a missing view that cannot be renamed from .fsrepl; whether it was made."""
    brought = crossing.bring(bucket, at, version)
    try:
        bucket.fs.rename_new(at, brought, at, name)
    except OSError as error:
        bucket.fs.unlink(at, brought)
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def _drop_staged(bucket: OpenBucket, staged: bytes) -> None:
    """Remove a staged file that is not needed: the view was made in another place."""
    if staged:
        with contextlib.suppress(OSError):  # a file that stays is swept at the next start
            staging.unstage(bucket, staged)


def take_out(
    bucket: OpenBucket, key: bytes, expected: View, opened: records.OpenFile | None = None
) -> ShowResult:  # fmt: skip
    """Remove a view that was as recorded and without writers a moment ago, and leave the directory that it was in.

    Where that is not so any more, it is put back. opened: the file, if it is open. Raises OSError.
    """
    directory, name = keys.split(key)
    at = bucket.views.get(directory)
    where, aside = bucket.displaced, keys.displaced_name(staging.token(), key)
    bucket.bucket.has_displaced = True
    try:
        bucket.fs.rename_new(at, name, where, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if is_written(bucket, at, name) is not False:
            return _UNREACHED
        where, aside = at, crossing.beside(key)
        bucket.fs.rename_new(at, name, where, aside)
    bucket.views.changed.add(directory)
    if (left := _let_go(bucket, key, where, aside, expected, opened)) is None:
        with contextlib.suppress(FileExistsError):  # a new file is there already; the displaced one is captured too
            bucket.fs.rename_new(where, aside, at, name)
        return UserChanged()
    return Shown(None, *left)


def _exchange(
    bucket: OpenBucket, at: int, directory: bytes, name: bytes, version: Version, expected: View, staged: bytes,
    opened: records.OpenFile | None,
) -> ShowResult:  # fmt: skip
    where, aside = bucket.displaced, keys.displaced_name(staging.token(), version.key)
    bucket.bucket.has_displaced = True
    if staged:
        bucket.fs.rename_new(bucket.tmp, staged, where, aside)
    else:
        bucket.fs.link(*bucket.stored_file(version.key, version.id), where, aside)
    try:
        staged_ino = _swap(bucket, where, aside, at, name)
    except OSError as error:
        if error.errno == errno.ENOENT:  # just removed by its user
            return UserChanged()
        if error.errno == errno.EACCES and staged:
            bucket.fs.rename_new(where, aside, bucket.tmp, staged)  # for the next try
        elif error.errno == errno.EACCES:
            bucket.fs.unlink(where, aside)
        if error.errno != errno.EXDEV:
            raise
        if is_written(bucket, at, name) is not False:
            return _UNREACHED
        where, aside = at, crossing.bring(bucket, at, version)
        staged_ino = _swap(bucket, where, aside, at, name)
    bucket.views.changed.add(directory)
    if (left := _let_go(bucket, version.key, where, aside, expected, opened)) is None:
        bucket.fs.exchange(where, aside, at, name)
        if bucket.fs.stat(where, aside).st_ino == staged_ino:  # else another file was just put there
            bucket.fs.unlink(where, aside)
        return UserChanged()
    return Shown(just_shown.look(bucket, at, name, version), *left)


def _swap(bucket: OpenBucket, where: int, aside: bytes, at: int, name: bytes) -> int:
    """Exchange a staged file for a view; the staged file's inode number. Raises OSError; the staged file is removed
    then, except after EACCES."""
    try:
        staged_ino = bucket.fs.stat(where, aside).st_ino
        bucket.fs.exchange(where, aside, at, name)
    except OSError as error:
        if error.errno != errno.EACCES:
            bucket.fs.unlink(where, aside)
        raise
    return staged_ino


def _let_go(
    bucket: OpenBucket, key: bytes, where: int, aside: bytes, expected: View, opened: records.OpenFile | None
) -> tuple[str, Version | None, bool] | None:
    """Remove the file taken out of a view, if it is as recorded and has no writer; else None.

    The result is the version whose stored file it may have been too, empty where it was none; that version's record,
    where it is known; and whether people may still write into that file, by another name of it.

    Where writers cannot be detected, the file stays in .fsrepl/displaced for a while: displaced.py checks whether it
    changed. In a user's directory it is removed: there the absence of writers was known a moment before.
    opened: the file that was in its place just before, if it is open.
    """
    if expected.is_link and _holds_unrecorded(bucket, where, aside, key):
        return None
    written, found = None, None
    if opened is not None:
        # in this order: what a writer that is gone by then has written shows in the status
        written, found = bucket.fs.is_written(opened.fd), bucket.fs.stat(where, aside)
        if not os.path.samestat(found, opened.found):  # replaced in that moment
            opened, found = None, None
    if found is None:
        written, looks = _look_at(bucket, where, aside)
        found = looks or bucket.fs.stat(where, aside)
    if written or not expected.has_content_of(found):
        return None
    if expected.racy and not _has_content_of(bucket, where, aside, key, expected.shown):
        return None
    record = None
    if expected.is_link:
        placed.close_to_readers(bucket, key, expected.shown)
    if written is False or where != bucket.displaced:
        bucket.fs.unlink(where, aside)
        if found.st_nlink > 1 and expected.shown:
            record = versions.make_private(bucket, key, expected.shown, opened)
    is_reached = found.st_nlink > 2 and versions.is_stored_file(bucket, key, expected.shown, found)
    return (expected.shown if found.st_nlink > 1 else ""), record, is_reached


def _holds_unrecorded(bucket: OpenBucket, where: int, aside: bytes, key: bytes) -> bool:
    """Whether a symlink taken out of a view leads to content in a tier that was written into and is not captured."""
    try:
        target = bucket.link_target(where, aside, bucket.fs.stat(where, aside))
        return target is not None and placed.holds_unrecorded(bucket, key, target)
    except (StoreDamaged, Unavailable, FileNotFoundError):
        return False


def _has_content_of(bucket: OpenBucket, where: int, aside: bytes, key: bytes, version_id: str) -> bool:
    """Whether a file taken out of a view has a version's content, by its hash: its times are too recent."""
    if bucket.link_target(where, aside, bucket.fs.stat(where, aside)) is not None:
        return True  # the daemon's own symlink: no content goes with it
    try:
        version = versions.read(bucket, key, version_id, marker=False)
    except StoreDamaged:
        return False
    if version is None:
        return False
    if version.kind is Kind.LINK:
        with open_entry(bucket, where, aside) as entry:
            return entry.kind is Kind.LINK and entry.digest() == version.digest
    fd = records.open_file(bucket, where, aside)
    try:
        return content_digest(bucket, fd) == version.digest
    finally:
        bucket.fs.close(fd)


# -- directories of tree buckets


def show_directory(bucket: OpenBucket, version: Version, expected: View | None, *, surely: bool = False) -> ShowResult:
    """Make a directory show a version of its key, or remove it for a marker, while it is empty.

    surely: the directory was about to be changed when a crash came, so that no difference is a user's change.
    """
    if needed := obstacles.needs_trees(bucket, version):
        is_gone = expected is None or look(bucket, version.key).occupant is not Occupant.OTHER
        return Shown(None) if version.marker and is_gone else NotShown(needed, conflict=True)
    path = version.key[:-1]
    bucket.views.forget(path)  # another one may have its name since
    found = look(bucket, version.key)
    if found.occupant is not Occupant.FILE:
        if version.marker:
            return Shown(None)
        if expected is not None and not surely:
            return UserChanged()  # its user removed or replaced it, or a directory above it
        return _make_directory(bucket, version, found)
    with folders.opened(bucket, path) as (fd, is_closed):
        if version.marker and folders.belongs_to_contents(bucket, path, fd, expected):
            obstacles.remove_made_directories(bucket, path)
            return Shown(None)
        if not surely and _is_users(bucket, version.key, fd, expected, is_closed=is_closed):
            return Shown(None) if version.marker and expected is None else UserChanged()
        if version.marker:
            return _remove_directory(bucket, path)
        if is_closed:
            with folders.opened_to_owner(bucket, path, fd) as again:
                folders.change(bucket, again, version)
        else:
            folders.change(bucket, fd, version)
        return Shown(bucket.view(bucket.fs.stat_fd(fd), version.id))


def _make_directory(bucket: OpenBucket, version: Version, found: Found) -> ShowResult:
    if found.occupant is Occupant.OTHER and not obstacles.clear(bucket, version.key[:-1]):
        return _conflict(bucket, version.key)
    try:
        fd = folders.make(bucket, version)
    except FileExistsError:
        return UserChanged()  # made in this moment
    except OSError as error:
        if ABSENT.get(error.errno) in (Occupant.NO_WAY, Occupant.MOUNT, Occupant.TOO_LONG):
            return _conflict(bucket, version.key)
        raise
    return Shown(bucket.view(bucket.fs.stat_fd(fd), version.id))


def _is_users(bucket: OpenBucket, key: bytes, fd: int, expected: View | None, *, is_closed: bool) -> bool:
    """Whether a directory was made or changed by a user, and that is not recorded yet. is_closed: what it has cannot be
    compared, see folders.opened."""
    if expected is None:
        return not directories.is_made(bucket, key[:-1])
    found = bucket.fs.stat_fd(fd)
    if not expected.has_content_of(found):
        return True
    if expected.is_same(found) and not expected.racy:
        return False
    if is_closed:
        return True
    try:
        shown = versions.read(bucket, key, expected.shown, marker=False) if expected.shown else None
    except StoreDamaged:
        return True
    return shown is not None and folders.is_edited(bucket, fd, shown)


def _remove_directory(bucket: OpenBucket, path: bytes) -> ShowResult:
    if not folders.remove(bucket, path):
        return NotShown("it is not empty yet")
    obstacles.remove_made_directories(bucket, keys.split(path)[0])
    return Shown(None)
