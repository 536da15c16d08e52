"""The entry of a view, opened to be read: a file, or an object of a tree bucket. No symlink is followed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Container, Iterator
from typing import NamedTuple

from msgspec import Struct

from fsrepl.model import digests, keys
from fsrepl.model.version import Kind
from fsrepl.storage import copying, placed, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.tiers import LinkTarget


class ViewFile(Struct, frozen=True):
    """An open view, and its stat result when opened. The descriptor of a symlink permits neither reads nor changes."""

    bucket: OpenBucket
    fd: int
    found: os.stat_result
    kind: Kind | None
    """The kind of object; None for an entry that can be no object here."""
    target: LinkTarget | None = None
    """For a file whose content lies in a tier: what the symlink in its place leads to."""
    key: bytes = b""

    @property
    def is_regular(self) -> bool:
        return self.bucket.fs.is_regular(self.found)

    def digest(self) -> bytes:
        """The BLAKE3 of the view's content, 32 bytes. Of content in a tier, that of its version, empty where there is
        none. Raises Unavailable where a tier is away that may know."""
        if self.target is not None:
            version = placed.version_of(self.bucket, self.key, self.target)
            return version.digest if version is not None else b""
        if self.kind is Kind.FILE or self.kind is None:
            return content_digest(self.bucket, self.fd)
        return digests.of(self._small_content())

    def _small_content(self) -> bytes:
        """A symlink's content is its target; a directory has none."""
        return self.bucket.fs.read_link(self.fd) if self.kind is Kind.LINK else b""

    def copy_aside(self, name: bytes) -> bytes:
        """Copy the content to a name in .fsrepl/tmp; its BLAKE3. On failure nothing is left."""
        if self.target is not None:
            return self._copy_from_tier(self.target, name)
        if self.kind is Kind.FILE or self.kind is None:
            return copying.copy_aside(self.bucket, self.fd, name)
        content = self._small_content()
        fd = self.bucket.fs.create(self.bucket.tmp, name)
        try:
            self.bucket.fs.write(fd, content)
        except BaseException:
            staging.unstage(self.bucket, name)
            raise
        finally:
            self.bucket.fs.close(fd)
        return digests.of(content)

    def _copy_from_tier(self, target: LinkTarget, name: bytes) -> bytes:
        version = placed.version_of(self.bucket, self.key, target)
        if version is None:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        fd = versions.open_content(self.bucket, version)
        try:
            return copying.copy_aside(self.bucket, fd, name)
        finally:
            self.bucket.fs.close(fd)

    def is_written(self) -> bool | None:
        """Whether a program has the file open for writing; None where that cannot be known."""
        if self.target is not None:
            return False
        return self.bucket.fs.is_written(self.fd) if self.kind is Kind.FILE or self.kind is None else False


class PlainFile(NamedTuple):
    """The status of a regular file, and whether a program has it open for writing; None where that is unknown."""

    found: os.stat_result
    is_written: bool | None


def look_at_file(bucket: OpenBucket, at: int, name: bytes) -> PlainFile | None:
    """A regular file by directory and name, looked at with as few calls as can be; None for a symlink, and for
    any other entry. Raises OSError where it cannot be opened."""
    try:
        fd = bucket.fs.open_read(at, name)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    try:
        written = bucket.fs.is_written(fd, closed_next=True)
        found = bucket.fs.stat_fd(fd)  # in this order: it shows what a writer has written that is gone by then
        return PlainFile(found, written) if bucket.fs.is_regular(found) else None
    finally:
        bucket.fs.close(fd)


@contextlib.contextmanager
def open_entry(bucket: OpenBucket, at: int, name: bytes, key: bytes = b"") -> Iterator[ViewFile]:
    """A file or symlink by directory and name, open for a `with` block. Raises OSError where it cannot be opened, and
    ELOOP for a symlink in a bucket that is no tree bucket, unless the daemon made it to content in a tier.

    key: that of the view, if it is one.
    """
    target = None
    try:
        fd = bucket.fs.open_read(at, name)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        if bucket.bucket.root.settings.classes:
            target = bucket.link_target(at, name, bucket.fs.stat(at, name))
        if target is None and not bucket.bucket.trees:
            raise
        fd = bucket.fs.open_inode(at, name)
        if not bucket.fs.is_link(bucket.fs.stat_fd(fd)):  # just replaced: its event follows
            bucket.fs.close(fd)
            raise
    try:
        found = bucket.fs.stat_fd(fd)
        kind = Kind.FILE if bucket.fs.is_regular(found) else Kind.LINK if bucket.fs.is_link(found) else None
        yield ViewFile(bucket, fd, found, Kind.FILE if target is not None else kind, target, key)
    finally:
        bucket.fs.close(fd)


@contextlib.contextmanager
def open_view(bucket: OpenBucket, key: bytes) -> Iterator[ViewFile]:
    """A key's view, open for a `with` block. Raises OSError where it cannot be opened."""
    directory, name = keys.place(key)
    if keys.is_directory(key):
        fd = bucket.fs.open_dir(bucket.views.get(directory), name)
        try:
            yield ViewFile(bucket, fd, bucket.fs.stat_fd(fd), Kind.DIRECTORY if bucket.bucket.trees else None)
        finally:
            bucket.fs.close(fd)
        return
    with open_entry(bucket, bucket.views.get(directory), name, key) as view:
        yield view


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
