"""The draft of a large replica in a bucket of this site: a file that is put together, and then becomes a version.

All of it is verified: it is read back, mostly while it is written, and compared with the BLAKE3 and, where that does
not match, block by block with the map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgspec.structs import replace

from fsrepl.errors import Failed
from fsrepl.model.version import Version
from fsrepl.replicate.draft import LargeDraft, StagedFile, StagedReplica
from fsrepl.storage import large_file, records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.fs import NO_SPACE
from fsrepl.storage.large_file import LargeFile


def leaves_cache(bucket: OpenBucket, replica: Version, *, has_base: bool) -> bool:
    """Whether a replica leaves the page cache, since nothing reads it soon.

    Its view, and the next version, are made of it by reflinks; or it is its view, and no update is likely. Without
    reflinks, the next update is copied from this one, and comes soon where there was one before.
    """
    if replica.size < large_file.LEAVES_CACHE_BYTES:
        return False
    return large_file.may_clone(bucket) or (not has_base and sharing.is_linked(bucket, replica.posix))


@contextlib.contextmanager
def open_draft(
    bucket: OpenBucket, replica: Version, early: EarlyCopy | None = None, *, has_base: bool = False
) -> Iterator[LargeDraft]:  # fmt: skip
    """See Destination.large_draft."""
    name = staging.replica_name(replica.key, replica.id, replica.digest)
    file = early.take_over(bucket, name) if early is not None else None
    if file is None:
        staging.go_on_with(bucket, staging.early_name(replica.key), name)
        fd, again = staging.open_lasting(bucket, name)
        file = LargeFile(bucket, replica.key, name, fd, again=again)
    try:
        file.leaves_cache = leaves_cache(bucket, replica, has_base=has_base)
        linked = sharing.is_linked(bucket, replica.posix)
        sidecar = not linked and records.put(bucket, file.fd, name, replica)
        yield _Draft(file, replica, linked=linked, sidecar=sidecar)
    except Failed:
        file.forget()
        raise
    except OSError as error:
        # a refusal does not pass, a full disk shall not stay full for a part of a file, and a sync that failed loses it
        if isinstance(error, PermissionError) or error.errno in NO_SPACE or not _is_durable(bucket, file.fd):
            file.forget()
        raise
    finally:
        file.end_reading()
        bucket.fs.close(file.fd)


def _is_durable(bucket: OpenBucket, fd: int) -> bool:
    try:
        bucket.fs.sync_file(fd)
    except OSError:
        return False
    return True


class _Draft(StagedFile):
    """A large file and the replica that it becomes."""

    def __init__(self, file: LargeFile, replica: Version, *, linked: bool, sidecar: bool) -> None:
        super().__init__(file.bucket, file.fd, file.name, replica, linked=linked, sidecar=sidecar)
        self.file = file

    def stage(self) -> StagedReplica:
        """Stage the replica, durable already: the region's thread does not wait for so much data."""
        staged = super().stage()
        try:
            self.bucket.fs.sync_file(self.fd)
            if self.file.leaves_cache:
                self.bucket.fs.drop_cache(self.fd)
            if staged.view:
                self._sync_view(staged.view)
            # no other try may take it for an unfinished one
            return replace(staged, stored=versions.restage(self.bucket, staged.stored))
        except OSError:
            if staged.view:
                staging.unstage(self.bucket, staged.view)
            raise

    def _sync_view(self, name: bytes) -> None:
        """Make the view's file durable; a file that the daemon may not read is left to the batch's sync."""
        with contextlib.suppress(PermissionError):
            fd = self.bucket.fs.open_read(self.bucket.tmp, name)
            try:
                self.bucket.fs.sync_file(fd)
            finally:
                self.bucket.fs.close(fd)
