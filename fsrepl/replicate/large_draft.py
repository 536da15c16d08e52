"""The draft of a large replica in a bucket of this site.

Its content comes from an earlier try, from a version that the bucket has, by reflink or copy_file_range within the
bucket's own filesystem, and for the rest from the source. All of it is verified: it is read back, mostly while it
is written, and compared with the BLAKE3 and, where that does not match, block by block with the map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from msgspec.structs import replace

from fsrepl.errors import Failed
from fsrepl.model import delta
from fsrepl.model.blockmap import HOLE, Block, BlockMap
from fsrepl.model.delta import Move, Plan, Span
from fsrepl.model.version import Version
from fsrepl.replicate.draft import Base, LargeDraft, StagedFile, StagedReplica
from fsrepl.storage import blocks as maps
from fsrepl.storage import copying, hashing, records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.fs import BAD_BLOCK, NO_SPACE, UNSUPPORTED
from fsrepl.storage.read_back import ReadBack

PAGE_BYTES = 4096
"""The unit in which a changed block is compared with the data at its place in the base."""
_COPIED_BYTES = 4 << 20
"""The bytes of the base that are copied at once; the copy before is read back and written to the disk meanwhile."""
_FOLLOWED_MAX = 16
"""A clone is read back from the disk, and each write into it waits for the reads under way. Where more separate parts
than this are written, it is read back when all of them are."""
_LEAVES_CACHE_BYTES = 128 << 20
"""From this size on a replica leaves the page cache as it gets to the disk. It would displace data that people use; and
where all memory is in use, finding some takes longer than the copy."""
_RESERVED_MAX = 256
"""The most separate parts that are reserved in advance; more, as after scattered changes, are small."""


def leaves_cache(bucket: OpenBucket, replica: Version, *, has_base: bool) -> bool:
    """Whether a replica leaves the page cache, since nothing reads it soon.

    Its view, and the next version, are made of it by reflinks; or it is its view, and no update is likely. Without
    reflinks, the next update is copied from this one, and comes soon where there was one before.
    """
    if replica.size < _LEAVES_CACHE_BYTES:
        return False
    shares = bucket.bucket.sharing != "private" and sharing.can_reflink(bucket)
    return shares or (not has_base and sharing.is_linked(bucket, replica.posix))


@contextlib.contextmanager
def open_draft(bucket: OpenBucket, replica: Version, early: EarlyCopy | None = None) -> Iterator[LargeDraft]:
    """See Destination.large_draft."""
    name, again = staging.replica_name(replica.key, replica.id, replica.digest), False
    fd, filled, read_back = early.take_over(bucket, name) if early is not None else (-1, 0, None)
    if fd < 0:
        staging.go_on_with(bucket, staging.early_name(replica.key), name)
        fd, again = staging.open_lasting(bucket, name)
    try:
        linked = sharing.is_linked(bucket, replica.posix)
        sidecar = not linked and records.put(bucket, fd, name, replica)
        draft = _LargeFile(bucket, fd, name, replica, linked=linked, sidecar=sidecar, again=again)
        if early is not None and filled:
            draft.has_start_of((early.key, early.id), filled, read_back)
        try:
            yield draft
        finally:
            draft.end_reading()
    except Failed:
        staging.unstage(bucket, name)
        raise
    except OSError as error:
        # a refusal does not pass, a full disk shall not stay full for a part of a file, and a sync that failed loses it
        if isinstance(error, PermissionError) or error.errno in NO_SPACE or not _is_durable(bucket, fd):
            staging.unstage(bucket, name)
        raise
    finally:
        if read_back is not None:
            read_back.cancel()
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
        self._read_back: ReadBack | None = None
        self._leaves_cache = False
        """Whether nothing reads it soon: see missing."""
        self._start_of: tuple[bytes, str] | None = None
        self._filled = 0
        """The size of its start that is a copy of that version, by key and id, which was made early."""
        self.received_bytes = 0
        self.compares = False
        self.foreseen: Sequence[Span] = ()

    def has_start_of(self, version: tuple[bytes, str], size: int, read_back: ReadBack | None) -> None:
        """Its first bytes, so many, were copied from the same place of that version, by key and id; or from the file
        that was captured, and are read back."""
        if read_back is None:
            self._start_of, self._filled = version, size
        else:
            self._read_back, self.received_bytes = read_back, size

    def begin_again(self) -> None:
        self.end_reading()
        self._read_back, self.received_bytes = None, 0

    def missing(
        self, blocks: BlockMap, base: Base | None, on_read: Callable[[int], None] | None = None
    ) -> Iterator[Span]:
        fs = self.bucket.fs
        lacks = self._of_earlier_try(blocks) if self._again else blocks
        is_new = len(lacks) == len(blocks) and not self.received_bytes
        plan = delta.plan(lacks, base.blocks if base is not None else None)
        if self.received_bytes:
            plan = delta.rest(blocks, self.received_bytes)
        if not plan.kept or base is None or (base.key, base.id) != self._start_of:
            self._filled = 0
        if is_new and not self._filled:
            fs.truncate(self.fd, 0)
        self._reserve(plan.missing)
        self.foreseen = sorted(plan.missing)
        cloned = base is not None and is_new and not self._filled and bool(plan.kept) and self._clone(base)
        fs.truncate(self.fd, blocks.size)
        self.compares = bool(plan.kept)
        self._read_back = back = self._read_back or ReadBack(self.bucket, self.name, self.fd, past_cache=cloned)
        back.on_read = on_read
        back.is_delayed = cloned and len(plan.missing) + len(plan.moved) > _FOLLOWED_MAX
        self._leaves_cache = back.leaves_cache = leaves_cache(self.bucket, self.replica, has_base=base is not None)
        is_read_last = base is not None and base.key == self.replica.key and not cloned
        if base is not None and is_read_last and self.replica.size >= _LEAVES_CACHE_BYTES:
            back.leaving_fd = base.fd
        for span, is_filled in self._steps(plan, base, cloned=cloned, is_new=is_new):
            self._is_final(span.at)
            if not is_filled():
                yield span

    def _is_final(self, at: int) -> None:
        """All before a place is as it stays."""
        if self._read_back is not None:
            self._read_back.follow(at)

    def _steps(
        self, plan: Plan, base: Base | None, *, cloned: bool, is_new: bool
    ) -> list[tuple[Span, Callable[[], bool]]]:  # fmt: skip
        """The parts in order, each with the function that fills it in from here, and returns False where the part must
        be sent."""
        steps: list[tuple[Span, Callable[[], bool]]] = []
        if base is not None:
            moves = plan.moved if cloned else [*plan.moved, *(Move(span.at, *span) for span in plan.kept)]
            steps += [(Span(move.at, move.size), partial(self._takes, base, move)) for move in moves]
        if cloned or self._filled or not is_new:  # else there are zeros
            steps += [(hole, partial(self.bucket.fs.punch, self.fd, *hole)) for hole in plan.holes]
        like = base if self.compares and not cloned else None
        steps += [(span, partial(self._prepares, like, span)) for span in plan.missing]
        return sorted(steps, key=lambda step: step[0])

    def _prepares(self, base: Base | None, span: Span) -> bool:
        """Fill in what the base has in the place of a missing part, to be compared with it. False: it must be sent."""
        if base is not None and (size := min(span.end, base.blocks.size) - span.at) > 0:
            self._copies(base, Move(span.at, span.at, size))
        return False

    def _of_earlier_try(self, blocks: BlockMap) -> BlockMap | list[Block]:
        """The blocks that an earlier try lacks."""
        fs = self.bucket.fs
        if fs.stat_fd(self.fd).st_size > blocks.size:
            return blocks
        fs.truncate(self.fd, blocks.size)
        return [block for block in blocks if not self._has(block)]

    def _has(self, block: Block) -> bool:
        """Whether the file has the content of a block. A block that cannot be read is written again."""
        start, _ = self.bucket.fs.next_data(self.fd, block.at, block.end)
        if start >= block.end:
            return block.digest == HOLE
        try:
            return block.digest != HOLE and maps.matches(self.bucket, self.fd, block)
        except OSError as error:
            if error.errno not in BAD_BLOCK:
                raise
            return False

    def _reserve(self, spans: list[Span]) -> None:
        """Find out now whether there is room for the missing blocks. Raises ENOSPC."""
        for span in spans if len(spans) <= _RESERVED_MAX else ():
            if not self.bucket.fs.reserve(self.fd, span.at, span.size):
                return

    def _takes(self, base: Base, move: Move) -> bool:
        """Copy a part of the base, which stays as it is there; False where the base cannot be read, so that all of the
        part must be sent."""
        for done in range(0, move.size, _COPIED_BYTES):
            size = min(_COPIED_BYTES, move.size - done)
            if not self._copies(base, Move(move.base_at + done, move.at + done, size)):
                return False
            self._is_final(move.at + done + size)
        return True

    def _copies(self, base: Base, move: Move) -> bool:
        """Copy a part of the base, unless that was done early; False where it cannot be read there."""
        move = _after(move, self._filled)
        try:
            copying.copy_part(self.bucket, base.fd, self.fd, *move, share=self._may_share)
        except OSError as error:
            if error.errno not in BAD_BLOCK:
                raise
            return False
        return True

    @property
    def _may_share(self) -> bool:
        return self.bucket.bucket.sharing != "private"

    def _clone(self, base: Base) -> bool:
        if not self._may_share:
            return False
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
        self._is_final(at + copied)
        return copied

    def write_at(self, at: int, data: bytes) -> None:
        fs, parts = self.bucket.fs, self.differing(at, data) if self.compares else [Span(at, len(data))]
        for part in parts:
            fs.write_at(self.fd, memoryview(data)[part.at - at : part.end - at], part.at)
        self._is_final(at + len(data))

    def damaged(self, blocks: BlockMap, on_read: Callable[[int], None] | None = None) -> list[Span]:
        read_back, self._read_back = self._read_back, None
        fs = self.bucket.fs
        found = read_back.result(blocks.size) if read_back else hashing.content(fs, self.fd, progress=on_read)
        if (found.digest, found.size) == (blocks.digest, blocks.size):
            maps.write(self.bucket, blocks)
            return []
        self.compares = True
        bad = [block for block in blocks if not maps.matches(self.bucket, self.fd, block)]
        return delta.spans_of(bad) or [Span(0, blocks.size)]

    def end_reading(self) -> None:
        """Stop reading back; before the file is closed."""
        if self._read_back is not None:
            self._read_back.cancel()

    def forget(self) -> None:
        staging.unstage(self.bucket, self.name)

    def stage(self) -> StagedReplica:
        """Stage the replica, durable already: the region's thread does not wait for so much data."""
        staged = super().stage()
        try:
            self.bucket.fs.sync_file(self.fd)
            if self._leaves_cache:
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


def _after(move: Move, filled: int) -> Move:
    """The rest of a part to be copied, after the first `filled` bytes, which were copied from the same place."""
    done = min(move.size, max(0, filled - move.at)) if move.base_at == move.at else 0
    return Move(move.base_at + done, move.at + done, move.size - done)
