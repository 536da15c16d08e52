"""Content copied within a bucket: into a hidden file of its own, by reflink where the filesystem can."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

from fsrepl.model import digests
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import UNSUPPORTED

SMALL_BYTES = 1 << 20
"""Up to here content is read whole, and copied; from here on it is cloned where the filesystem can."""


def copy_aside(bucket: OpenBucket, fd: int, name: bytes, told: Callable[[int], None] | None = None) -> bytes:
    """Copy an open file into .fsrepl/tmp, under a name; the BLAKE3 of the copy. Leaves nothing where it fails.

    told: how many bytes have been copied and hashed.
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
