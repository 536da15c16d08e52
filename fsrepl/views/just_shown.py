"""How a view looks that was just shown, where its user may have written into it by now.

Such a view is recorded as it was when it was shown. So the write is noticed also where a crash takes its event.
"""

from __future__ import annotations

import os

from msgspec.structs import replace

from fsrepl.model.version import Kind, Version
from fsrepl.model.view import View
from fsrepl.storage import times
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.hashing import SMALL_BYTES


def look(bucket: OpenBucket, at: int, name: bytes, version: Version) -> View:
    """The view of a version that was just shown, by its directory and name. Raises OSError."""
    found, given = bucket.fs.stat(at, name), version.posix
    view = bucket.view(found, version.id)
    if given is None or (found.st_size, found.st_mtime_ns) == (version.size, given.mtime_ns):  # mostly
        return view
    if version.kind is not Kind.FILE or not bucket.fs.is_regular(found):
        return view
    if found.st_size == version.size and times.is_as_given(found.st_mtime_ns, given.mtime_ns):
        return view
    if version.size < SMALL_BYTES and _is_unwritten(bucket, at, name, found, version):
        return view  # the file of several names has the time of another one
    return replace(view, size=version.size, mtime_ns=given.mtime_ns, racy=True)


def _is_unwritten(bucket: OpenBucket, at: int, name: bytes, found: os.stat_result, version: Version) -> bool:
    try:
        fd = bucket.fs.open_read(at, name)
    except OSError:
        return False
    try:
        return os.path.samestat(bucket.fs.stat_fd(fd), found) and content_digest(bucket, fd) == version.digest
    finally:
        bucket.fs.close(fd)
