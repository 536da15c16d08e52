"""The file of a view, opened to be read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass

from fsrepl.model import keys
from fsrepl.storage.bucket import OpenBucket, content_digest


@dataclass(frozen=True, slots=True)
class ViewFile:
    """An open view, and its stat result when opened."""

    bucket: OpenBucket
    fd: int
    found: os.stat_result

    @property
    def is_regular(self) -> bool:
        return self.bucket.fs.is_regular(self.found)

    def digest(self) -> bytes:
        """The BLAKE3 of the view's content, 32 bytes."""
        return content_digest(self.bucket, self.fd)


@contextlib.contextmanager
def open_view(bucket: OpenBucket, key: bytes) -> Iterator[ViewFile]:
    """A key's view, open for a `with` block. Raises OSError where it cannot be opened."""
    directory, name = keys.split(key)
    fd = bucket.fs.open_read(bucket.views.get(directory), name)
    try:
        yield ViewFile(bucket, fd, bucket.fs.stat_fd(fd))
    finally:
        bucket.fs.close(fd)


@contextlib.contextmanager
def open_view_if_there(bucket: OpenBucket, key: bytes, absent: Container[int]) -> Iterator[ViewFile | None]:
    """A key's view, or None where opening fails with one of these error numbers; errno.errorcode contains all."""
    with contextlib.ExitStack() as stack:
        try:
            view = stack.enter_context(open_view(bucket, key))
        except OSError as error:
            if error.errno not in absent:
                raise
            view = None
        yield view
