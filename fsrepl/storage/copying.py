"""Copies of content within a bucket, into a hidden file, by reflink where the filesystem supports it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

from fsrepl.model import digests
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import UNSUPPORTED

SMALL_BYTES = 1 << 20
"""The size limit below which content is read and copied as a whole; larger content is cloned where possible."""


def copy_aside(bucket: OpenBucket, fd: int, name: bytes, told: Callable[[int], None] | None = None) -> bytes:
    """Copy an open file to a name in .fsrepl/tmp; the BLAKE3 of the copy. On failure nothing is left.

    told: called with the number of bytes copied and hashed.
    """
    to = bucket.fs.create(bucket.tmp, name)
    try:
        try:
            if bucket.bucket.sharing == "private":
                raise OSError(errno.ENOTSUP, "a copy of its own was asked for")
            bucket.fs.clone(to, fd)
            return digests.of_chunks(digests.counted(bucket.fs.chunks(to), told))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        read = digests.Passing(digests.counted(bucket.fs.chunks(fd), told))
        bucket.fs.write_sparse(to, read)
        return read.digest()
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            bucket.fs.unlink(bucket.tmp, name)
        raise
    finally:
        bucket.fs.close(to)
