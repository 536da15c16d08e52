"""The draft of a large replica in a bucket of this site.

Its content comes from an earlier try, from a version that the bucket has, by reflink or copy_file_range within the
bucket's own filesystem, and for the rest from the source. None of these is believed: once complete, all of it is read
back and compared with the BLAKE3 and, where that does not match, block by block with the map.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from fsrepl.errors import Failed
from fsrepl.model import attributes, delta
from fsrepl.model.blockmap import HOLE, Block, BlockMap
from fsrepl.model.delta import Move, Plan, Span
from fsrepl.model.version import Version
from fsrepl.replicate.draft import Base, LargeDraft, StagedFile, StagedReplica
from fsrepl.storage import blocks as maps
from fsrepl.storage import copying, hashing, records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_SPACE, UNSUPPORTED

PAGE_BYTES = 4096
"""The unit in which a changed block is compared with what is in its place in the base."""
_RESERVED_MAX = 256
"""So many separate parts are reserved in advance; more, as after scattered changes, are small."""


@contextlib.contextmanager
def open_draft(bucket: OpenBucket, replica: Version) -> Iterator[LargeDraft]:
    """See Destination.large_draft."""
    name = staging.replica_name(replica.key, replica.id, replica.digest)
    fd, again = staging.open_lasting(bucket, name)
    try:
        linked = sharing.is_linked(bucket, replica.posix)
        sidecar = not linked and records.put(bucket, fd, name, attributes.encode(replica))
        yield _LargeFile(bucket, fd, name, replica, linked=linked, sidecar=sidecar, again=again)
    except Failed:
        staging.unstage(bucket, name)
        raise
    except OSError as error:
        # a refusal does not pass, a full disk shall not stay full for a part of a file, and a sync that failed loses it
        if isinstance(error, PermissionError) or error.errno in NO_SPACE or not _is_durable(bucket, fd):
            staging.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)


def _is_durable(bucket: OpenBucket, fd: int) -> bool:
    try:
        bucket.fs.sync_file(fd)
    except OSError:
        return False
    return True


class _LargeFile(StagedFile):
    """A lasting file in .fsrepl/tmp. again: an earlier try left it."""

    def __init__(
        self, bucket: OpenBucket, fd: int, name: bytes, replica: Version, *, linked: bool, sidecar: bool, again: bool
    ) -> None:
        super().__init__(bucket, fd, name, replica, linked=linked, sidecar=sidecar)
        self._again = again
        self.compares = False

    def missing(self, blocks: BlockMap, base: Base | None) -> list[Span]:
        if self._again and (left := self._of_earlier_try(blocks)) is not None:
            self._reserve(left)
            return left
        self.bucket.fs.truncate(self.fd, 0)
        plan = delta.plan(blocks, base.blocks if base else None)
        self._reserve(plan.missing)
        if base is None:
            self.bucket.fs.truncate(self.fd, blocks.size)
            return plan.missing
        return self._take_over(blocks, base, plan)

    def _of_earlier_try(self, blocks: BlockMap) -> list[Span] | None:
        """What an earlier try lacks; None where it has nothing that can be used."""
        size = self.bucket.fs.stat_fd(self.fd).st_size
        if size > blocks.size:
            return None
        self.bucket.fs.truncate(self.fd, blocks.size)
        lacks = [block for block in blocks if not self._has(block)]
        return delta.spans_of(lacks) if len(lacks) < len(blocks) else None

    def _has(self, block: Block) -> bool:
        """Whether the file has the content of a block. One that cannot be read is written again."""
        start, _ = self.bucket.fs.next_data(self.fd, block.at, block.end)
        if start >= block.end:
            return block.digest == HOLE
        try:
            return block.digest != HOLE and maps.matches(self.bucket, self.fd, block)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False

    def _reserve(self, spans: list[Span]) -> None:
        """Find out now whether there is room for what is missing. Raises ENOSPC."""
        for span in spans if len(spans) <= _RESERVED_MAX else ():
            if not self.bucket.fs.reserve(self.fd, span.at, span.size):
                return

    def _take_over(self, blocks: BlockMap, base: Base, plan: Plan) -> list[Span]:
        """Fill in what the base has; what is missing then."""
        fs, share = self.bucket.fs, self.bucket.bucket.sharing != "private"
        cloned = share and bool(plan.kept) and self._clone(base)
        fs.truncate(self.fd, blocks.size)
        missing = list(plan.missing)
        if cloned:
            if not all(fs.punch(self.fd, hole.at, hole.size) for hole in plan.holes):
                missing += plan.holes
        else:
            missing += [span for span in plan.kept if not self._takes(base, Move(span.at, *span), share=share)]
        missing += [Span(move.at, move.size) for move in plan.moved if not self._takes(base, move, share=share)]
        if plan.kept:
            self.compares = True
            for span in plan.missing if not cloned else ():
                if (size := min(span.end, base.blocks.size) - span.at) > 0:
                    self._takes(base, Move(span.at, span.at, size), share=share)
        return sorted(missing)

    def _takes(self, base: Base, move: Move, *, share: bool) -> bool:
        """Copy a part of the base; False where the base cannot be read there, so that it must be sent."""
        try:
            copying.copy_part(self.bucket, base.fd, self.fd, *move, share=share)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def _clone(self, base: Base) -> bool:
        try:
            self.bucket.fs.clone(self.fd, base.fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return False
        return True

    def differing(self, at: int, data: bytes) -> list[Span]:
        return delta.differing(at, data, self.bucket.fs.read_at(self.fd, len(data), at), PAGE_BYTES)

    def copy(self, fd: int, at: int, count: int) -> int:
        copied = super().copy(fd, at, count)
        self.bucket.fs.start_writing(self.fd, at, copied)
        return copied

    def damaged(self, blocks: BlockMap, on_read: Callable[[int], None] | None = None) -> list[Span]:
        found = hashing.content(self.bucket.fs, self.fd, told=on_read)
        if (found.digest, found.size) == (blocks.digest, blocks.size):
            maps.write(self.bucket, blocks)
            return []
        self.compares = True
        bad = [block for block in blocks if not maps.matches(self.bucket, self.fd, block)]
        return delta.spans_of(bad) or [Span(0, blocks.size)]

    def forget(self) -> None:
        staging.unstage(self.bucket, self.name)

    def stage(self) -> StagedReplica:
        """Stage the replica, durable already: the region's thread does not wait for so much data."""
        staged = super().stage()
        try:
            self.bucket.fs.sync_file(self.fd)
            if staged.view:
                self._sync_view(staged.view)
            # no other try may take it for an unfinished one
            return replace(staged, stored=versions.restage(self.bucket, staged.stored))
        except OSError:
            if staged.view:
                staging.unstage(self.bucket, staged.view)
            raise

    def _sync_view(self, name: bytes) -> None:
        """Make the view's file durable; one that its mode hides from the daemon is left to the batch's sync."""
        with contextlib.suppress(PermissionError):
            fd = self.bucket.fs.open_read(self.bucket.tmp, name)
            try:
                self.bucket.fs.sync_file(fd)
            finally:
                self.bucket.fs.close(fd)
