"""Sharing of storage between a version and its view."""

from __future__ import annotations

import contextlib
import errno
import os

from fsrepl.model.version import Posix, is_file
from fsrepl.storage import staging
from fsrepl.storage.bucket import Bucket, OpenBucket
from fsrepl.storage.fs import UNSUPPORTED, Fs


def can_reflink(bucket: OpenBucket) -> bool:
    """Whether this bucket's filesystem shares blocks between files, found by one trial."""
    known = bucket.bucket.reflinks
    if known is None:
        known = bucket.bucket.reflinks = shares_blocks(bucket.fs, bucket.tmp)
    return known


def shares_blocks(fs: Fs, at: int) -> bool:
    """Whether files in an open directory can share blocks, found by a trial that leaves no file. Raises OSError where
    that cannot be tried, as without write permission."""
    with contextlib.ExitStack() as closing:
        closing.callback(fs.close, one := _scratch_file(fs, at))
        closing.callback(fs.close, other := _scratch_file(fs, at))
        fs.write(one, bytes(4096))
        try:
            fs.clone(other, one)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return False
        return True


def _scratch_file(fs: Fs, at: int) -> int:
    """A file that is gone once it is closed. NFS and others that share blocks have no files without a name."""
    try:
        return fs.create_unnamed(at)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    name = b".fsrepl-probe-" + staging.token()
    fd = fs.create(at, name)
    fs.unlink(at, name)
    return fd


def can_link(bucket: OpenBucket) -> bool:
    """Whether a file can have two names here, found by one trial; some FUSE filesystems do not support it."""
    known = bucket.bucket.links
    if known is None:
        fs, names = bucket.fs, (staging.token(), staging.token())
        fs.close(fs.create(bucket.tmp, names[0]))
        try:
            fs.link(bucket.tmp, names[0], bucket.tmp, names[1])
            known = True
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.EPERM}:
                raise
            known = False
        finally:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    fs.unlink(bucket.tmp, name)
        bucket.bucket.links = known
    return known


def is_linked(bucket: OpenBucket, posix: Posix | None) -> bool:
    """Whether the view of a replica here is a hard link to its stored version. Source: design.md, section 7."""
    return may_be_view(posix) and links_views(bucket)


def links_views(bucket: OpenBucket) -> bool:
    """Whether views of replicas here are hard links to their stored versions, those whose metadata allows it."""
    sharing = bucket.bucket.sharing
    if sharing != "link" and (sharing == "private" or receives_writes(bucket.bucket) or can_reflink(bucket)):
        return False
    return can_link(bucket)


def may_be_view(posix: Posix | None) -> bool:
    """Whether a stored file with this metadata can be its own view: a regular file that can hold its record; without
    privilege, its owner must be able to read and write it."""
    if posix is None:
        return True
    return is_file(posix) and (posix.mode & 0o600 == 0o600 or os.geteuid() == 0)


def receives_writes(bucket: Bucket) -> bool:
    """Whether users write into a bucket, as far as known: it is a source of replication."""
    return bucket.replication is not None
