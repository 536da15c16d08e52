"""Something was written or removed: look at the key, and take a private, stable copy of it.

look() answers with one of the values below. It changes nothing but .fsrepl/tmp; publishing what it
found is the loop's business. A copy is stable when the file was the same before and after it and
nobody had it open for writing. Source: design.md, section 7, Capture.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from blake3 import blake3

from fsrepl import attrs, keys, store
from fsrepl.errors import SourceMoved
from fsrepl.fs import ACL, GONE, NO_SPACE, UNSUPPORTED, reason
from fsrepl.journal import Object
from fsrepl.model import Posix, Version
from fsrepl.site import OpenBucket
from fsrepl.watch import CLOSED, MOVED, Mark

SMALL_BYTES = 1 << 20
"""Up to here a file is read whole; from here on it is cloned or copied first."""


@dataclass(frozen=True, slots=True)
class Same:
    """The current version is what the view shows; found is how it looks now."""

    found: os.stat_result
    racy: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """Nothing is there that could be an object. why says what stands there instead."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """It is being written, or moved under the copy. opened: somebody has it open for writing."""

    after_s: float
    why: str
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """It cannot be taken, and is not taken for deleted either."""

    why: str


@dataclass(frozen=True, slots=True)
class Large:
    """It takes a while: look again from a lane of its own."""

    size: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A stable copy: its content in data, or in .fsrepl/tmp under the name staged."""

    found: os.stat_result
    digest: bytes
    posix: Posix
    attrs: Mapping[str, bytes]
    tags: Mapping[str, str]
    marked: bool
    """The file carries a version id of ours, wherever it has that from."""
    racy: bool
    data: bytes | None = None
    staged: bytes = b""
    linked: bool = False
    """staged is another name of the view itself (sharing = "link")."""


Seen = Same | Missing | Later | Skipped | Large | Taken


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for writers, from settings; is_temporary tells names that are never taken while open."""

    open_quiet_s: float
    open_max_s: float
    large_file_bytes: int
    is_temporary: Callable[[bytes], re.Match[bytes] | None]


def look(
    bucket: OpenBucket, mark: Mark, known: Object | None, patience: Patience, now_ns: int, *, open_for_s: float = 0.0,
    in_lane: bool = False,
) -> Seen:  # fmt: skip
    """What has become of a key. now_ns is the machine's time, which file times are compared with."""
    directory, name = keys.split(mark.key)
    try:
        at = bucket.views.get(directory)
        found = bucket.fs.stat(at, name)
        if not bucket.fs.is_regular(found):
            return Missing("not a regular file")
        if _is_unchanged(known, found) and not mark.flags & CLOSED:
            return Same(found)
        fd = bucket.fs.open_read(at, name)
    except OSError as error:
        return _not_there(error)
    try:
        found = bucket.fs.stat_fd(fd)
        if not bucket.fs.is_regular(found):
            return Missing("not a regular file")
        if found.st_dev != bucket.device:
            return Skipped("it lies on another filesystem")
        waits = _writer(bucket, fd, found, mark, patience, now_ns, open_for_s)
        if waits is not None:
            return waits
        if found.st_size >= patience.large_file_bytes and not in_lane:
            return Large(found.st_size)
        return _take(bucket, at, name, fd, found, now_ns)
    except SourceMoved:
        return Later(0.0, "it changed while it was copied")
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        return Skipped(reason(error))
    finally:
        bucket.fs.close(fd)


def _is_unchanged(known: Object | None, found: os.stat_result) -> bool:
    """Whether a view is as it was recorded, and shows the current version."""
    if known is None or known.marker or known.view is None or known.view.racy:
        return False
    view = known.view
    return view.shown == known.id and view.is_like(found) and view.mode == found.st_mode & 0o7777


def _not_there(error: OSError) -> Seen:
    if error.errno in GONE:
        return Missing()
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return Missing("not a regular file")
    if error.errno == errno.EXDEV:
        return Skipped("it lies on another filesystem")
    return Skipped(reason(error))


def _writer(
    bucket: OpenBucket, fd: int, found: os.stat_result, mark: Mark, patience: Patience, now_ns: int, open_for_s: float
) -> Later | None:
    """Whether somebody may still be writing, and how long to leave them alone."""
    written = bucket.fs.is_written(fd)
    if written is False or (written is None and mark.flags & (CLOSED | MOVED)):
        return None
    if written and patience.is_temporary(keys.split(mark.key)[1]):
        return Later(patience.open_quiet_s, "it is open for writing under a temporary name", opened=True)
    quiet_s = (now_ns - max(found.st_mtime_ns, found.st_ctime_ns)) / 1e9
    if quiet_s >= patience.open_quiet_s or open_for_s >= patience.open_max_s or quiet_s < -1:
        return None
    return Later(patience.open_quiet_s - quiet_s, "it is open for writing", opened=True)


def _take(bucket: OpenBucket, at: int, name: bytes, fd: int, found: os.stat_result, now_ns: int) -> Taken:
    data, staged = None, b""
    linked = bucket.bucket.sharing == "link"
    if linked:
        staged = store.token()
        bucket.fs.link(at, name, bucket.tmp, staged)
        found = bucket.fs.stat_fd(fd)  # a link more changes ctime
        digest = store.digest(bucket, fd)
    elif found.st_size < SMALL_BYTES:
        data = bucket.fs.read_all(fd, found.st_size)
        digest = blake3(data).digest()
    else:
        staged = store.token()
        digest = copy_aside(bucket, fd, found.st_size, staged)
    try:
        raw, acl, marked = _metadata(bucket, fd)
        after = bucket.fs.stat_fd(fd)
        moved = (
            (after.st_ino, after.st_size, after.st_mtime_ns, after.st_ctime_ns)
            != (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            or (data is not None and len(data) != found.st_size)
            or bucket.fs.is_written(fd) is True
            or (linked and bucket.fs.stat(bucket.tmp, staged).st_ino != found.st_ino)
        )
        if moved:
            raise SourceMoved("it changed while it was copied")
    except BaseException:
        if staged:
            store.unstage(bucket, staged)
        raise
    posix = Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)
    racy = now_ns - found.st_ctime_ns < bucket.fs.coarse_ns
    return Taken(found, digest, posix, attrs.own(raw), attrs.tags(raw), marked, racy, data, staged, linked)


def _metadata(bucket: OpenBucket, fd: int) -> tuple[dict[str, bytes], bytes | None, bool]:
    """The object's own attributes and tags, its ACL, and whether it carries a version id."""
    raw: dict[str, bytes] = {}
    acl, marked = None, False
    for name in bucket.fs.attribute_names(fd):
        if name == ACL:
            acl = bucket.fs.acl(fd)
        elif name == attrs.VERSION_ID:
            marked = True
        elif name.startswith("user.") and (not name.startswith(attrs.OURS) or name.startswith(attrs.TAG)):
            value = bucket.fs.attribute(fd, name)
            if value is not None:
                raw[name] = value
    return raw, acl, marked


def copy_aside(bucket: OpenBucket, fd: int, size: int, name: bytes) -> bytes:
    """Copy an open file into .fsrepl/tmp, by reflink where the filesystem can; the BLAKE3 of the copy."""
    to = bucket.fs.create(bucket.tmp, name)
    try:
        try:
            if bucket.bucket.sharing == "private":
                raise OSError(errno.ENOTSUP, "a copy of its own was asked for")
            bucket.fs.clone(to, fd)
            return store.digest(bucket, to)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        hasher = blake3()
        for chunk in bucket.fs.chunks(fd):
            hasher.update(chunk)
            bucket.fs.write(to, chunk)
        return hasher.digest()
    except BaseException:
        store.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(to)


def stage(bucket: OpenBucket, taken: Taken, version: Version) -> store.Staged:
    """Make what was taken a complete, hidden version: a file of its own, 0600, every attribute on it."""
    name = taken.staged or store.token()
    fd = bucket.fs.open_read(bucket.tmp, name) if taken.staged else bucket.fs.create(bucket.tmp, name)
    try:
        if taken.data:
            bucket.fs.write(fd, taken.data)
        raw = attrs.encode(version, inode=taken.posix if taken.linked else None)
        return store.Staged(version, name, store.put_attributes(bucket, fd, name, raw))
    except BaseException:
        store.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)


def stage_copy(bucket: OpenBucket, name: bytes, version: Version) -> store.Staged:
    """Make a file in .fsrepl/tmp that holds a version's content that version."""
    fd = bucket.fs.open_read(bucket.tmp, name)
    try:
        return store.Staged(version, name, store.put_attributes(bucket, fd, name, attrs.encode(version)))
    finally:
        bucket.fs.close(fd)


def edits(taken: Taken, version: Version, *, owner_kept: bool) -> Version | None:
    """The version with the metadata that the view has now; None where nothing was edited.

    owner_kept: the daemon may set owners, so that an owner that differs is an edit and no inability.
    A file that carries no version id took the place of the view without its tags: they are kept.
    """
    posix = taken.posix
    was = version.posix or posix
    if not owner_kept:
        posix = replace(posix, uid=was.uid, gid=was.gid)
        if posix.mode == without_owner(was.mode):
            posix = replace(posix, mode=was.mode)
    tags = taken.tags if taken.marked or taken.tags else version.tags
    if posix == version.posix and taken.attrs == version.attrs and tags == version.tags:
        return None
    return replace(version, posix=posix, attrs=taken.attrs, tags=tags)


def without_owner(mode: int) -> int:
    """The mode of a file whose owner could not be set: no setuid, no setgid, the group gets the others' bits."""
    return mode & 0o1707 & ~0o70 | (mode & 0o7) << 3


