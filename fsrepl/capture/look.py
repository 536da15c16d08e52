"""Inspection of a changed key, with a private, stable copy of its file.

look() returns one of the values below. It changes nothing but .fsrepl/tmp; ingest.py publishes the
versions. A copy is stable when the file was the same before and after it and no program had it
open for writing. A file that is kept open is copied once it is quiet, or, after too long a
wait, in its present state. Source: design.md, section 7, Capture.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from msgspec import Struct

from fsrepl.capture import copy
from fsrepl.capture.copy import Taken
from fsrepl.errors import SourceMoved, reason
from fsrepl.model import keys
from fsrepl.model.version import Posix, Version
from fsrepl.region.change_queue import CHANGED, CLOSED, MOVED, NAMED, WRITING, Change, WriterWait
from fsrepl.storage import copying, placed, posix, staging, times
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.tiers import LinkTarget
from fsrepl.storage.view_file import open_entry
from fsrepl.temporary import CONTROL_FILES

MOUNTED = "another filesystem is mounted there"
_LEASED_S = 1.0
"""After this, the holder of a lease has released it or is about to: the kernel breaks it after 45 s."""


class Same(Struct, frozen=True):
    """The view shows the current version; found is its status now."""

    found: os.stat_result
    racy: bool = False


class Missing(Struct, frozen=True):
    """No object is there. why describes the entry there instead."""

    why: str = ""


class Later(Struct, frozen=True):
    """The file is being written, or moved during the copy. opened: a program has it open for writing."""

    after_s: float
    why: str
    opened: bool = False


class Skipped(Struct, frozen=True):
    """The file cannot be read, and does not count as deleted either."""

    why: str


class Large(Struct, frozen=True):
    """A large file, to be inspected by a background worker. allocated_bytes: its size on disk, without holes."""

    size_bytes: int
    allocated_bytes: int


class Closed(Struct, frozen=True):
    """The file may not be read any more, as by chmod 0000, and shows no sign of other content."""

    found: os.stat_result
    posix: Posix
    why: str


Seen = Same | Missing | Later | Skipped | Large | Taken | Closed


def look(
    bucket: OpenBucket, change: Change, known: Object | None, writer_wait: WriterWait, now_ns: int, *,
    open_for_s: float = 0.0, in_background: bool = False, alike: copying.Alike | None = None,
    progress: Callable[[int], None] | None = None,
) -> Seen:  # fmt: skip
    """The state of a key. now_ns is the machine's time, with which file times are compared.

    Raises OSError for errors that may pass, that is all but a refusal: the key is tried again.
    open_for_s: time since the key was queued; it counts while a program has the file open for writing.
    progress: called with the number of bytes read. alike: the bucket's versions that may have a large file's content.
    """
    directory, name = keys.place(change.key)
    try:
        at = bucket.views.get(directory)
    except OSError as error:
        # a link instead of a directory on the path: the key is gone
        return Missing() if error.errno == errno.ELOOP else _not_there(error, known)
    try:
        found = bucket.fs.stat(at, name)
        if keys.is_directory(change.key):
            return _look_at_directory(bucket, change, known, at, name, found, now_ns)
        if not bucket.fs.is_regular(found):
            return _look_at_other(
                bucket, change, known, at, name, found, now_ns,
                writer_wait, open_for_s, in_background=in_background, progress=progress,
            )  # fmt: skip
        if is_unchanged(known, found) and not change.flags & CLOSED:
            return Same(found)
        fd = bucket.fs.open_read(at, name)
    except PermissionError as error:
        return _closed(bucket, at, name, known, reason(error))
    except BlockingIOError:
        return _leased(bucket, change, at, name, found, now_ns, writer_wait, open_for_s)
    except OSError as error:
        return _not_there(error, known)
    try:
        found = bucket.fs.stat_fd(fd)
        if not bucket.fs.is_regular(found):
            return Missing("not a regular file")
        written = bucket.fs.is_written(fd)
        temporary = written is True and _is_temporary(bucket, at, name, writer_wait)
        waits = _wait_for_writer(
            written, found, change, writer_wait, now_ns, open_for_s, bucket.coarse_ns, temporary=temporary
        )
        if waits is not None:
            return waits
        same = known.digest if known and _is_only_edited(change, known, found) else b""
        is_large = found.st_size >= writer_wait.large_file_bytes
        if is_large and not (in_background or same):
            return Large(found.st_size, found.st_blocks * 512)
        held_open = bool(written)
        wait_exceeded = held_open and open_for_s >= writer_wait.open_max_s
        return copy.take_copy(
            bucket,
            at,
            name,
            fd,
            found,
            known,
            now_ns,
            same=same,
            held_open=held_open,
            wait_exceeded=wait_exceeded,
            lasting=staging.capture_name(change.key) if is_large else b"",
            alike=alike,
            before=copying.Before(change.key, known.id, known.digest) if known and not known.marker else None,
            progress=progress,
        )
    except SourceMoved:
        return Later(0.0, "the file changed during the copy")
    except PermissionError as error:
        return Skipped(reason(error))
    finally:
        bucket.fs.close(fd)


def _leased(
    bucket: OpenBucket, change: Change, at: int, name: bytes, found: os.stat_result, now_ns: int,
    writer_wait: WriterWait, open_for_s: float,
) -> Later:  # fmt: skip
    """A file that another program has leased for writing: see Fs.open_read."""
    temporary = _is_temporary(bucket, at, name, writer_wait)
    waits = _wait_for_writer(
        True, found, change, writer_wait, now_ns, open_for_s, bucket.coarse_ns, temporary=temporary
    )
    again_s = max(_LEASED_S, open_for_s / 4)
    return Later(min(again_s, waits.after_s) if waits else again_s, "the file is open for writing", opened=True)


def _look_at_other(
    bucket: OpenBucket, change: Change, known: Object | None, at: int, name: bytes, found: os.stat_result, now_ns: int,
    writer_wait: WriterWait, open_for_s: float, *, in_background: bool, progress: Callable[[int], None] | None,
) -> Seen:  # fmt: skip
    """An entry at a file's key that is no regular file: a directory, a symlink, or neither."""
    if stat.S_ISDIR(found.st_mode):
        return Missing()
    if bucket.link_target(at, name, found) is not None:
        return _look_at_placed(
            bucket, change, known, at, name, found, now_ns,
            writer_wait, open_for_s, in_background=in_background, progress=progress,
        )  # fmt: skip
    if bucket.is_object(change.key, found):
        return Same(found) if is_unchanged(known, found) else _look_at_link(bucket, at, name, now_ns)
    if _is_left_alone(bucket, known, found):
        return Same(found)
    # a device, say, mounted over the file
    return Skipped(MOUNTED) if bucket.fs.is_mount(at, name) else Missing("not a regular file")


def _look_at_placed(
    bucket: OpenBucket, change: Change, known: Object | None, at: int, name: bytes, found: os.stat_result, now_ns: int,
    writer_wait: WriterWait, open_for_s: float, *, in_background: bool, progress: Callable[[int], None] | None,
) -> Seen:  # fmt: skip
    """A symlink that the daemon made to content in a tier: as recorded, moved here by a user, or not on record; or its
    content was written into, as root may.

    Raises Unavailable where a tier is away that may know whose content it is: no file is gone because of that.
    """
    is_asked = bool(change.flags & (CLOSED | WRITING))
    if is_unchanged(known, found) and known and not is_asked and placed.is_as_recorded(bucket, change.key, known.id):
        return Same(found)
    with open_entry(bucket, at, name, change.key) as entry:
        if entry.target is None:
            return Later(0.0, "it was replaced")
        version = placed.version_of(bucket, change.key, entry.target)
        if version is None:
            return Missing("a symlink to content that is no version any more")
        written = _look_at_written(
            bucket, change, version, entry.target, found, now_ns, writer_wait, open_for_s,
            is_asked=is_asked, in_background=in_background, progress=progress,
        )  # fmt: skip
        if written is not None:
            return written
        return copy.take_placed(bucket, version, entry, known, now_ns)


def _look_at_written(
    bucket: OpenBucket, change: Change, version: Version, target: LinkTarget, found: os.stat_result, now_ns: int,
    writer_wait: WriterWait, open_for_s: float,
    *, is_asked: bool, in_background: bool, progress: Callable[[int], None] | None,
) -> Seen | None:  # fmt: skip
    """The content in a tier that was written into through the symlink of a view; None where it is still its version's.

    found: the status of the symlink.
    """
    if (fd := placed.open_target(bucket, target)) is None:
        return None
    try:
        content = bucket.fs.stat_fd(fd)
        if not is_asked and placed.looks_like(content, version):
            return None
        is_coarse = content.st_mtime_ns % times.SECOND_NS == 0 or bucket.fs.is_remote(fd)
        age_ns = now_ns - content.st_ctime_ns
        coarse_ns = max(bucket.coarse_ns, times.WHOLE_NS if is_coarse else times.TICKS_NS)
        # once it is copied, a later write has to leave another time: see placed.holds_unrecorded
        if abs(age_ns) < coarse_ns:
            return Later((coarse_ns - age_ns) / 1e9, "it was written into just now")
        written = bucket.fs.is_written(fd)
        waits = _wait_for_writer(
            written, content, change, writer_wait, now_ns, open_for_s, coarse_ns, temporary=False
        )  # fmt: skip
        if waits is not None:
            return waits
        if content.st_size >= writer_wait.large_file_bytes and not in_background:
            return Large(content.st_size, content.st_blocks * 512)
        return copy.take_written(
            bucket, version, fd, content, found, is_its_place=placed.leads_to(target, version),
            held_open=bool(written), progress=progress,
        )  # fmt: skip
    except SourceMoved:
        return Later(0.0, "it changed during the copy")
    finally:
        bucket.fs.close(fd)


def _look_at_link(bucket: OpenBucket, at: int, name: bytes, now_ns: int) -> Seen:
    fd = bucket.fs.open_inode(at, name)
    try:
        found = bucket.fs.stat_fd(fd)
        return copy.take_link(bucket, fd, found, now_ns) if bucket.fs.is_link(found) else Later(0.0, "it was replaced")
    finally:
        bucket.fs.close(fd)


def _look_at_directory(
    bucket: OpenBucket, change: Change, known: Object | None, at: int, name: bytes, found: os.stat_result, now_ns: int
) -> Seen:
    """The state of a directory's key. The attributes of a directory that may not be read stay as recorded."""
    if not bucket.fs.is_directory(found):
        return Missing()
    if not bucket.bucket.trees or is_unchanged(known, found):
        return Skipped(MOUNTED) if bucket.fs.is_mount(at, name) else Same(found)
    is_closed = False
    try:
        fd = bucket.fs.open_dir(at, name)  # EXDEV where another filesystem is mounted there
    except PermissionError:
        if bucket.fs.is_mount(at, name):
            return Skipped(MOUNTED)
        fd, is_closed = bucket.fs.open_inode(at, name), True
    try:
        if not bucket.fs.is_directory(bucket.fs.stat_fd(fd)):
            return Later(0.0, "it was replaced")
        return copy.take_directory(bucket, fd, now_ns, is_closed=is_closed)
    except SourceMoved:
        return Later(0.0, "the directory changed meanwhile")
    finally:
        bucket.fs.close(fd)


def _is_left_alone(bucket: OpenBucket, known: Object | None, found: os.stat_result) -> bool:
    """Whether a symlink was an object while the bucket was a tree bucket: what is recorded of it stays."""
    return bucket.fs.is_link(found) and known is not None and known.view is not None and known.view.is_same(found)


def is_unchanged(known: Object | None, found: os.stat_result) -> bool:
    """Whether a view is as recorded, and shows the current version."""
    if known is None or known.marker or known.view is None or known.view.racy:
        return False
    view = known.view
    return view.shown == known.id and view.is_same(found)


def _is_only_edited(change: Change, known: Object, found: os.stat_result) -> bool:
    """Whether only attributes can have changed: no other kind of event led here,
    at this name or at another one of its file.

    A write makes another event, or through a mapping another mtime; after lost events, a scan led here.
    """
    view = known.view
    if change.flags & ~NAMED != CHANGED or known.marker or view is None or view.racy or view.shown != known.id:
        return False
    return view.has_content_of(found)


def _closed(bucket: OpenBucket, at: int, name: bytes, known: Object | None, why: str) -> Seen:
    """A file that cannot be opened: its mode and owner are still known, if it is the recorded file."""
    try:
        fd = bucket.fs.open_inode(at, name)
    except OSError as error:
        return _not_there(error, known)
    try:
        found = bucket.fs.stat_fd(fd)
        if known is None or known.marker or not known.view or not known.view.has_content_of(found):
            return Skipped(why)
        return Closed(found, posix.inode_posix(bucket, fd, found), why)
    finally:
        bucket.fs.close(fd)


def _not_there(error: OSError, known: Object | None) -> Seen:
    """The state of a name that cannot be opened. Raises the error where it may pass.

    A command may name a key that is too long for a file: there is none, and none is to come. Where the key has a
    version, the region may lie on a filesystem of shorter names than before, and that is no deletion.
    """
    is_no_file = error.errno == errno.ENAMETOOLONG and (known is None or known.marker)
    if error.errno in GONE or is_no_file:
        return Missing()
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return Missing("not a regular file")
    if error.errno == errno.EXDEV:
        return Skipped(MOUNTED)
    if isinstance(error, PermissionError):
        return Skipped(reason(error))
    raise error


def _is_temporary(bucket: OpenBucket, at: int, name: bytes, writer_wait: WriterWait) -> bool:
    """Whether a file is never taken while open: by its name, or by a control file beside it."""
    return writer_wait.is_temporary(name) is not None or any(
        _is_there(bucket, at, name + suffix) for suffix in CONTROL_FILES
    )


def _is_there(bucket: OpenBucket, at: int, name: bytes) -> bool:
    try:
        bucket.fs.stat(at, name)
    except OSError:
        return False
    return True


def _wait_for_writer(
    written: bool | None,
    found: os.stat_result,
    change: Change,
    writer_wait: WriterWait,
    now_ns: int,
    open_for_s: float,
    coarse_ns: int,
    *,
    temporary: bool,
) -> Later | None:
    """How long to leave a file alone that may have a writer; None where it can be taken now."""
    if written is False or (written is None and change.flags & (CLOSED | MOVED)):
        return None
    if written and temporary:
        return Later(writer_wait.open_quiet_s, "the file is open for writing, and has a temporary name", opened=True)
    # By ctime, which every change sets to the machine's time: writers may set any mtime.
    # A ctime in the future is from before the clock was set back, and is ignored.
    quiet_s = (now_ns - found.st_ctime_ns) / 1e9
    left_s = min(writer_wait.open_quiet_s + coarse_ns / 1e9 - quiet_s, writer_wait.open_max_s - open_for_s)
    if left_s <= 0 or quiet_s < -1:
        return None
    if written or change.flags & WRITING:
        return Later(left_s, "the file is open for writing", opened=True)
    return Later(left_s, "the file changed lately, and may still be open for writing: that cannot be detected here")
