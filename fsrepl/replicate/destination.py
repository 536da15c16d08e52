"""The interface of a destination, and its one implementation: the tree of a bucket of this site.

A destination holds versions, each complete or absent. A staged replica is hidden until it is published, and can be
read back before that. The region makes replicas durable and shows them in views (publish.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from fsrepl.model import attributes, digests
from fsrepl.model.version import Version
from fsrepl.storage import records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.copying import SMALL_BYTES
from fsrepl.storage.posix import apply_posix
from fsrepl.views.stage import stage_view


@dataclass(frozen=True, slots=True)
class StagedReplica:
    """A replica hidden in the destination's .fsrepl/tmp.

    view names a second file, for the view, where view and store are to be independent. view is empty where
    the view will be a hard link to the stored version.
    """

    stored: versions.Staged
    view: bytes = b""


class Draft(Protocol):
    """The content of a replica: written from its beginning to its end, and then staged with its record."""

    def write(self, data: bytes) -> None: ...

    def copy(self, fd: int, at: int, count: int) -> int:
        """Copy at most count bytes from an open local file, to the same offset; how many bytes were copied."""

    def end_at(self, size: int) -> None:
        """Extend the content to a size; bytes not written are zeros."""

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        """Whether the content, read back, matches the replica's BLAKE3. on_read receives the number of bytes read."""

    def stage(self) -> StagedReplica: ...


class Destination(Protocol):
    """A bucket that receives replicas."""

    @property
    def address(self) -> str: ...

    def has(self, key: bytes, version_id: str) -> bool: ...

    def read(self, key: bytes, version_id: str, *, marker: bool | None = None) -> Version | None:
        """The record of a version, or of a marker with that id. Raises StoreDamaged where the record cannot be read."""

    def is_whole(self, version: Version) -> bool:
        """Whether the stored content of a version matches its BLAKE3."""

    def draft(self, replica: Version) -> AbstractContextManager[Draft]:
        """Begin a replica. An error that ends the block before stage() removes the draft."""

    def stage_marker(self, replica: Version) -> StagedReplica: ...

    def publish(self, staged: StagedReplica) -> None:
        """Make a staged replica a version of this bucket, whole or not at all. It is not durable yet."""

    def discard(self, staged: StagedReplica) -> None:
        """Remove a staged replica. Files that cannot be removed are swept at the next start."""


# -- a bucket of this site


class LocalTree:
    """The open folder of a bucket."""

    def __init__(self, bucket: OpenBucket) -> None:
        self._bucket = bucket

    @property
    def address(self) -> str:
        return self._bucket.address

    def has(self, key: bytes, version_id: str) -> bool:
        return versions.has(self._bucket, key, version_id)

    def read(self, key: bytes, version_id: str, *, marker: bool | None = None) -> Version | None:
        return versions.read(self._bucket, key, version_id, marker=marker)

    def is_whole(self, version: Version) -> bool:
        bucket = self._bucket
        fd = versions.open_version(bucket, version.key, version.id)
        try:
            return bucket.fs.stat_fd(fd).st_size == version.size and content_digest(bucket, fd) == version.digest
        finally:
            bucket.fs.close(fd)

    @contextlib.contextmanager
    def draft(self, replica: Version) -> Iterator[Draft]:
        bucket, linked, name = self._bucket, sharing.is_linked(self._bucket, replica.posix), staging.token()
        fd = bucket.fs.create(bucket.tmp, name)
        try:
            sidecar = not linked and records.put(bucket, fd, name, attributes.encode(replica))
            yield _File(bucket, fd, name, replica, linked=linked, sidecar=sidecar)
        except BaseException:
            staging.unstage(bucket, name)
            raise
        finally:
            bucket.fs.close(fd)

    def stage_marker(self, replica: Version) -> StagedReplica:
        return StagedReplica(versions.stage_marker(self._bucket, replica))

    def publish(self, staged: StagedReplica) -> None:
        versions.publish(self._bucket, staged.stored)

    def discard(self, staged: StagedReplica) -> None:
        with contextlib.suppress(OSError):
            versions.discard(self._bucket, staged.stored)
            if staged.view:
                staging.unstage(self._bucket, staged.view)


class _File:
    """A file in .fsrepl/tmp. Its record is on it from the start, unless a view shares it."""

    def __init__(
        self, bucket: OpenBucket, fd: int, name: bytes, replica: Version, *, linked: bool, sidecar: bool
    ) -> None:
        self._bucket, self._fd, self._name, self._replica = bucket, fd, name, replica
        self._linked, self._sidecar = linked, sidecar

    def write(self, data: bytes) -> None:
        self._bucket.fs.write(self._fd, data)

    def copy(self, fd: int, at: int, count: int) -> int:
        return self._bucket.fs.copy(fd, self._fd, at, count)

    def end_at(self, size: int) -> None:
        self._bucket.fs.truncate(self._fd, size)

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        size, digest = self._replica.size, self._replica.digest
        if size < SMALL_BYTES and digests.of(self._bucket.fs.read_at(self._fd, size + 1, 0)) == digest:
            return True
        return content_digest(self._bucket, self._fd, on_read) == digest

    def stage(self) -> StagedReplica:
        bucket, fd, name, replica, sidecar = self._bucket, self._fd, self._name, self._replica, self._sidecar
        if self._linked:
            posix = apply_posix(bucket, fd, replica.posix)
            replica, sidecar = records.put_shared(bucket, fd, name, replica, new=posix)
            return StagedReplica(versions.Staged(replica, name, sidecar))
        view, shortfall = stage_view(bucket, replica, fd)
        if shortfall != replica.shortfall:
            replica = replace(replica, shortfall=shortfall)
            sidecar = records.put_again(bucket, fd, name, attributes.encode(replica))
        return StagedReplica(versions.Staged(replica, name, sidecar), view)
