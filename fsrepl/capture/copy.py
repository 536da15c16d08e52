"""A private, verified copy of a view's file, with the file's metadata."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import SourceMoved, StoreDamaged
from fsrepl.model import attributes, digests
from fsrepl.model.version import Kind, Posix, Version, kind_of
from fsrepl.storage import copying, hashing, records, staging, times, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import UNSUPPORTED
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.posix import inode_posix, posix_of, view_metadata
from fsrepl.storage.view_file import ViewFile

_DIRECTORY_READS = 4
_NO_CONTENT = digests.of(b"")


class Taken(Struct, frozen=True, array_like=True):
    """A stable copy: its content in data, or in .fsrepl/tmp under the name staged. The stager sends it as it is.

    moving: the file kept changing during the copy, and open_max_s was over.
    """

    found: os.stat_result
    size: int
    digest: bytes
    posix: Posix
    attrs: Mapping[str, bytes]
    tags: Mapping[str, str]
    labels: Mapping[str, bytes]
    """The daemon's attributes on the file, wherever they come from."""
    racy: bool
    data: bytes | None = None
    staged: bytes = b""
    linked: bool = False
    """staged is another name of the view itself (sharing = "link")."""
    moving: bool = False
    held_open: bool = False
    """A program had it open for writing."""
    is_placed: bool = False
    """The view is a symlink to content in a tier, with the metadata of that version."""
    destroyed: Version | None = None
    """The version in a tier whose content was written into through the view; archived content is destroyed by that only
    in its restored copy."""
    is_closed: bool = False
    """A directory whose attributes the daemon may not read."""
    kind: Kind = Kind.FILE
    is_held: bool = False
    """The stager has its content in memory, and stages it."""

    @property
    def has_content(self) -> bool:
        """False where the content was the recorded one, and only compared."""
        return self.data is not None or bool(self.staged) or self.is_held


class _Content(Struct, frozen=True):
    """A file's content, and the place of its copy: data, .fsrepl/tmp under the name staged, or none.

    found: the file's status just before its content was read.
    """

    found: os.stat_result
    size: int
    digest: bytes
    data: bytes | None = None
    staged: bytes = b""
    linked: bool = False


def take_copy(
    bucket: OpenBucket, at: int, name: bytes, fd: int, found: os.stat_result, known: Object | None, now_ns: int,
    *, same: bytes, held_open: bool, wait_exceeded: bool, lasting: bytes = b"",
    alike: copying.Alike | None = None, before: copying.Before | None = None,
    progress: Callable[[int], None] | None = None,
) -> Taken:  # fmt: skip
    """Copy an open file, which is closed next. Raises SourceMoved where it changed meanwhile, or a writer opened it.

    same: the digest of its content, where that is known and need not be read. held_open: a program has it open for
    writing. wait_exceeded: it has been open for so long that it is copied even if it changes meanwhile.
    lasting: the name of the unfinished copy of a large file, which survives a crash. progress: called with the number
    of bytes read. alike, before: see copying.copy_large.
    """
    content = _content(
        bucket,
        at,
        name,
        fd,
        found,
        known,
        same=same,
        held_open=held_open,
        lasting=lasting,
        alike=alike,
        before=before,
        progress=progress,
    )
    found, staged = content.found, content.staged
    try:
        raw, acl = view_metadata(bucket, fd)
        after = bucket.fs.stat_fd(fd)
        moving = content.size != found.st_size or _times(after) != _times(found)
        replaced = content.linked and bucket.fs.stat(bucket.tmp, staged).st_ino != found.st_ino
        came = not held_open and bucket.fs.is_written(fd, closed_next=True) is True
        if replaced or came or (moving and not wait_exceeded):
            raise SourceMoved("the file changed during the copy")
    except BaseException:
        if staged:
            staging.unstage(bucket, staged)
        raise
    posix = Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)
    racy = moving or times.is_racy(found.st_ctime_ns, now_ns, bucket.coarse_ns)
    own, tags, labels = _told(raw, is_linked=after.st_nlink > 1) if raw else ({}, {}, {})
    return Taken(
        found, content.size, content.digest, posix, own, tags, labels, racy,
        content.data, staged, content.linked, moving, held_open,
    )  # fmt: skip


def _told(
    raw: Mapping[str, bytes], *, is_linked: bool
) -> tuple[Mapping[str, bytes], Mapping[str, str], Mapping[str, bytes]]:
    """The attributes of a view, sorted: the object's own, its tags, and the daemon's. is_linked: the file has other
    names, and may have the record of one of them."""
    others = attributes.RECORDS if is_linked else frozenset()
    labels = {name: value for name, value in raw.items() if attributes.is_ours(name) and name not in others}
    return attributes.own(raw), attributes.tags(raw), labels


def take_link(bucket: OpenBucket, fd: int, found: os.stat_result, now_ns: int) -> Taken:
    """The copy of a symlink: its target, which never changes. A symlink takes no user attributes, labels or tags."""
    target = bucket.fs.read_link(fd)
    racy = times.is_racy(found.st_ctime_ns, now_ns, bucket.coarse_ns)
    return Taken(found, len(target), digests.of(target), posix_of(found), {}, {}, {}, racy, target, kind=Kind.LINK)


def take_placed(bucket: OpenBucket, version: Version, entry: ViewFile, known: Object | None, now_ns: int) -> Taken:
    """The content and metadata of the version that a symlink into a tier shows, copied where a new version is made
    of it. Raises Unavailable where the tier is away."""
    found, staged = entry.found, b""
    if known is None or known.marker or known.digest != version.digest:
        staged = staging.token()
        if entry.copy_aside(staged) != version.digest:
            staging.unstage(bucket, staged)
            raise StoreDamaged(f"the content of version {version.id} in its tier no longer matches its BLAKE3")
    posix = version.posix or posix_of(found)
    racy = times.is_racy(found.st_ctime_ns, now_ns, bucket.coarse_ns)
    labels = attributes.label(version)
    return Taken(
        found, version.size, version.digest, posix, version.attrs, version.tags, labels, racy, staged=staged,
        is_placed=True, kind=kind_of(posix),
    )  # fmt: skip


def take_written(
    bucket: OpenBucket, version: Version, fd: int, content: os.stat_result, found: os.stat_result,
    *, is_its_place: bool, held_open: bool, progress: Callable[[int], None] | None,
) -> Taken | None:  # fmt: skip
    """Copy the open content in a tier that was written into through a version's view; None where it still is that of
    the version. The metadata is the version's, with another time. Raises SourceMoved.

    content, found: the status of the content, and of the symlink to it. is_its_place: the version has no other content.
    """
    staged = staging.token()
    with bucket.fs.released():
        digest = copying.copy_aside(bucket, fd, staged, progress)
    if digest == version.digest:
        staging.unstage(bucket, staged)
        return None
    came = not held_open and bucket.fs.is_written(fd) is True
    if came or _times(bucket.fs.stat_fd(fd)) != _times(content):
        staging.unstage(bucket, staged)
        raise SourceMoved("the file changed during the copy")
    posix = replace(version.posix or posix_of(content), mtime_ns=content.st_mtime_ns)
    return Taken(
        found, content.st_size, digest, posix, version.attrs, version.tags, attributes.label(version), False,
        staged=staged, held_open=held_open, is_placed=True,
        destroyed=version if is_its_place else None, kind=kind_of(posix),
    )  # fmt: skip


def take_directory(bucket: OpenBucket, fd: int, now_ns: int, *, is_closed: bool) -> Taken:
    """The metadata of an open directory. is_closed: it was opened by open_inode. Raises SourceMoved.

    What is made in it changes its ctime too, as while it is filled: it is read a few times.
    """
    found = bucket.fs.stat_fd(fd)
    for _ in range(_DIRECTORY_READS):
        raw = {} if is_closed else bucket.fs.attributes(fd)
        posix = inode_posix(bucket, fd, found)
        before, found = found, bucket.fs.stat_fd(fd)
        if found.st_ctime_ns == before.st_ctime_ns:
            break
    else:
        raise SourceMoved("the directory changed meanwhile")
    racy = times.is_racy(found.st_ctime_ns, now_ns, bucket.coarse_ns)
    labels = {name: value for name, value in raw.items() if attributes.is_ours(name)}
    return Taken(
        found, 0, _NO_CONTENT, posix, attributes.own(raw), attributes.tags(raw), labels, racy, b"",
        is_closed=is_closed, kind=Kind.DIRECTORY,
    )  # fmt: skip


def _times(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(
    bucket: OpenBucket, at: int, name: bytes, fd: int, found: os.stat_result, known: Object | None,
    *, same: bytes, held_open: bool, lasting: bytes, alike: copying.Alike | None, before: copying.Before | None,
    progress: Callable[[int], None] | None,
) -> _Content:  # fmt: skip
    """The content of a file, by the cheapest way: known, compared, linked, read into memory, or copied."""
    if same:
        return _Content(found, found.st_size, same)
    may_link = bucket.bucket.sharing == "link" and not held_open and _may_share(found)
    is_small = found.st_size < hashing.SMALL_BYTES
    if (may_link or not is_small) and (digest := _same_digest(bucket, fd, found, known, progress)):
        return _Content(found, found.st_size, digest)  # only its metadata was edited: no copy is needed
    if may_link and _link_aside(bucket, at, name, staged := staging.token()):
        found = bucket.fs.stat_fd(fd)  # another link changes ctime
        return _Content(found, found.st_size, content_digest(bucket, fd, progress), staged=staged, linked=True)
    if is_small:
        data = bucket.fs.read_all(fd, found.st_size)
        return _Content(found, len(data), digests.of(data), data)
    staged = staging.token()
    with bucket.fs.released():
        if lasting:
            digest = copying.copy_large(bucket, fd, lasting, staged, progress, alike=alike, before=before)
        else:
            digest = copying.copy_aside(bucket, fd, staged, progress)
    return _Content(found, bucket.fs.stat(bucket.tmp, staged).st_size, digest, staged=staged)


def _link_aside(bucket: OpenBucket, at: int, name: bytes, aside: bytes) -> bool:
    """Give a view a second name in .fsrepl/tmp; False where link is impossible, as across btrfs subvolumes."""
    try:
        bucket.fs.link(at, name, bucket.tmp, aside)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EMLINK, errno.EPERM}:
            raise
        return False
    return True


def _may_share(found: os.stat_result) -> bool:
    """Whether a view can be the stored file too: without privilege the daemon must own it, readable and writable.

    A file that has a second name may belong to another version, whose record it carries.
    """
    uid = os.geteuid()
    return found.st_nlink == 1 and (uid == 0 or (found.st_uid == uid and found.st_mode & 0o600 == 0o600))


def _same_digest(
    bucket: OpenBucket, fd: int, found: os.stat_result, known: Object | None, progress: Callable[[int], None] | None
) -> bytes:
    """The digest of a file whose status and content are still as recorded; else empty."""
    if known is None or known.marker or not known.view or not known.view.has_content_of(found):
        return b""
    digest = content_digest(bucket, fd, progress)
    return digest if digest == known.digest else b""


def stage(bucket: OpenBucket, taken: Taken, version: Version) -> versions.Staged:
    """Turn a copy into a complete, hidden version: a separate file, 0600, with every attribute. Its content is not with
    the stager alone."""
    return stage_content(bucket, version, taken.data or b"", taken.staged, linked=taken.linked)


def stage_content(
    bucket: OpenBucket, version: Version, data: bytes, staged: bytes = b"", *, linked: bool = False
) -> versions.Staged:
    """A complete, hidden version with a content in memory, or in .fsrepl/tmp under the name staged. linked: see
    Taken."""
    name = staged or staging.token()
    fd = bucket.fs.open_read(bucket.tmp, name) if staged else bucket.fs.create(bucket.tmp, name)
    try:
        if linked:
            version, sidecar = records.put_shared(bucket, fd, name, version)
        else:
            sidecar = records.put(bucket, fd, name, version)  # before the content: cheaper then
        if data:
            bucket.fs.write(fd, data)
        return versions.Staged(version, name, sidecar)
    except BaseException:
        staging.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)
