"""The interface of a destination, and its one implementation: the tree of a bucket of this site.

A destination holds versions, each complete or absent. A staged replica is hidden until it is published, and can be
read back before that. The region makes replicas durable and shows them in views (publish.py).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Protocol

from fsrepl.model import digests
from fsrepl.model.version import Version
from fsrepl.replicate import large_draft
from fsrepl.replicate.draft import Draft, LargeDraft, NewFile, StagedReplica
from fsrepl.storage import sharing, staging, tiers, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.early_copy import EarlyCopy


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

    def large_draft(self, replica: Version, early: EarlyCopy | None = None) -> AbstractContextManager[LargeDraft]:
        """Begin the replica of a large version, or go on with one that an earlier try began, or with an early copy.

        An error keeps it for the next try, except where the error says that the disk or its content is to blame.
        """

    def stage_marker(self, replica: Version) -> StagedReplica: ...

    def publish(self, staged: StagedReplica, *, is_first: bool) -> None:
        """Make a staged replica a version of this bucket, whole or not at all. It is not durable yet. is_first: its key
        has no other version there, as far as known."""

    def discard(self, staged: StagedReplica) -> None:
        """Remove a staged replica. Files that cannot be removed are swept at the next start."""


# -- a bucket of this site


class LocalTree:
    """The open folder of a bucket."""

    def __init__(self, bucket: OpenBucket) -> None:
        self._bucket = bucket
        self._links_views: bool | None = None
        """See sharing.links_views; None before the first draft."""

    @property
    def address(self) -> str:
        return self._bucket.address

    def has(self, key: bytes, version_id: str) -> bool:
        return versions.has(self._bucket, key, version_id)

    def read(self, key: bytes, version_id: str, *, marker: bool | None = None) -> Version | None:
        return versions.read(self._bucket, key, version_id, marker=marker)

    def is_whole(self, version: Version) -> bool:
        bucket = self._bucket
        fd = versions.open_stored(bucket, version)
        try:
            if version.place is not None and version.place.is_archived:
                return digests.of_chunks(tiers.decoded(bucket.fs, fd, version.place)) == version.digest
            return bucket.fs.stat_fd(fd).st_size == version.size and content_digest(bucket, fd) == version.digest
        finally:
            bucket.fs.close(fd)

    def draft(self, replica: Version) -> AbstractContextManager[Draft]:
        if self._links_views is None:
            self._links_views = sharing.links_views(self._bucket)
        return NewFile(self._bucket, replica, linked=self._links_views and sharing.may_be_view(replica.posix))

    def large_draft(self, replica: Version, early: EarlyCopy | None = None) -> AbstractContextManager[LargeDraft]:
        return large_draft.open_draft(self._bucket, replica, early)

    def stage_marker(self, replica: Version) -> StagedReplica:
        return StagedReplica(versions.stage_marker(self._bucket, replica))

    def publish(self, staged: StagedReplica, *, is_first: bool) -> None:
        versions.publish(self._bucket, staged.stored, is_first=is_first)

    def discard(self, staged: StagedReplica) -> None:
        with contextlib.suppress(OSError):
            versions.discard(self._bucket, staged.stored)
            if staged.view:
                staging.unstage(self._bucket, staged.view)
