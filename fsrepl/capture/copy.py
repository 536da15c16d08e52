"""A private, verified copy of a file that people see, and what was found while it was made."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fsrepl.errors import SourceMoved
from fsrepl.model import attributes, digests
from fsrepl.model.version import Posix, Version
from fsrepl.storage import copying, records, staging, times, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import UNSUPPORTED
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.posix import view_metadata

SMALL_BYTES = 1 << 20
"""Up to here a file is read whole; from here on it is cloned or copied first."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A stable copy: its content in data, or in .fsrepl/tmp under the name staged.

    moving: it kept changing while it was copied, and was not to wait any longer.
    """

    found: os.stat_result
    size: int
    digest: bytes
    posix: Posix
    attrs: Mapping[str, bytes]
    tags: Mapping[str, str]
    labels: Mapping[str, bytes]
    """Attributes of ours on the file, wherever it has those from."""
    racy: bool
    data: bytes | None = None
    staged: bytes = b""
    linked: bool = False
    """staged is another name of the view itself (sharing = "link")."""
    moving: bool = False

    @property
    def has_content(self) -> bool:
        """False where the content was the recorded one, and only looked at."""
        return self.data is not None or bool(self.staged)


def take_copy(
    bucket: OpenBucket, at: int, name: bytes, fd: int, found: os.stat_result, known: Object | None, now_ns: int,
    *, same: bytes, held_open: bool, wait_exceeded: bool, told: Callable[[int], None] | None = None,
) -> Taken:  # fmt: skip
    """Copy a file. Raises SourceMoved where it changed meanwhile, unless it is restless, or where a writer came.

    same: the digest of its content, where that is known and need not be read. told: how many bytes have been read.
    """
    data, staged, size = None, b"", found.st_size
    linked = bucket.bucket.sharing == "link" and not held_open and _may_share(found)
    if digest := same:
        pass
    elif (linked or found.st_size >= SMALL_BYTES) and (digest := _same_digest(bucket, fd, found, known, told)):
        pass  # only its metadata was edited: nothing is copied for that
    elif linked and (linked := _link_aside(bucket, at, name, aside := staging.token())):
        staged = aside
        found = bucket.fs.stat_fd(fd)  # a link more changes ctime
        digest = content_digest(bucket, fd, told)
    elif found.st_size < SMALL_BYTES:
        data = bucket.fs.read_all(fd, found.st_size)
        digest, size = digests.of(data), len(data)
    else:
        staged = staging.token()
        with bucket.fs.released():
            digest = copying.copy_aside(bucket, fd, staged, told)
        size = bucket.fs.stat(bucket.tmp, staged).st_size
    try:
        raw, acl = view_metadata(bucket, fd)
        after = bucket.fs.stat_fd(fd)
        moving = size != found.st_size or (
            (after.st_ino, after.st_size, after.st_mtime_ns, after.st_ctime_ns)
            != (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        )
        replaced = bool(staged) and linked and bucket.fs.stat(bucket.tmp, staged).st_ino != found.st_ino
        came = not held_open and bucket.fs.is_written(fd) is True
        if replaced or came or (moving and not wait_exceeded):
            raise SourceMoved("it changed while it was copied")
    except BaseException:
        if staged:
            staging.unstage(bucket, staged)
        raise
    posix = Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)
    racy = moving or times.is_racy(found.st_ctime_ns, now_ns, bucket.coarse_ns)
    others = attributes.RECORDS if after.st_nlink > 1 else frozenset()
    labels = {name: value for name, value in raw.items() if attributes.is_ours(name) and name not in others}
    return Taken(
        found, size, digest, posix, attributes.own(raw), attributes.tags(raw), labels, racy, data, staged, linked,
        moving,
    )  # fmt: skip


def _link_aside(bucket: OpenBucket, at: int, name: bytes, aside: bytes) -> bool:
    """Give a view a second name in .fsrepl/tmp; False where none is to be had, as across btrfs subvolumes."""
    try:
        bucket.fs.link(at, name, bucket.tmp, aside)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EMLINK, errno.EPERM}:
            raise
        return False
    return True


def _may_share(found: os.stat_result) -> bool:
    """Whether a view can be the stored file too: without privilege it must be ours, to read and to write.

    One that is a second name of something already may be that of another version, whose record it carries.
    """
    uid = os.geteuid()
    return found.st_nlink == 1 and (uid == 0 or (found.st_uid == uid and found.st_mode & 0o600 == 0o600))


def _same_digest(
    bucket: OpenBucket, fd: int, found: os.stat_result, known: Object | None, told: Callable[[int], None] | None
) -> bytes:
    """The digest of a file that looks as if its content were the recorded one still, and is; else nothing."""
    if known is None or known.marker or not known.view or not known.view.has_content_of(found):
        return b""
    digest = content_digest(bucket, fd, told)
    return digest if digest == known.digest else b""


def stage(bucket: OpenBucket, taken: Taken, version: Version) -> versions.Staged:
    """Make what was taken a complete, hidden version: a file of its own, 0600, every attribute on it."""
    name = taken.staged or staging.token()
    fd = bucket.fs.open_read(bucket.tmp, name) if taken.staged else bucket.fs.create(bucket.tmp, name)
    try:
        if taken.linked:
            version, sidecar = records.put_shared(bucket, fd, name, version)
            return versions.Staged(version, name, sidecar)
        sidecar = records.put(bucket, fd, name, attributes.encode(version))  # before the content: it costs less there
        if taken.data:
            bucket.fs.write(fd, taken.data)
        return versions.Staged(version, name, sidecar)
    except BaseException:
        staging.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)
