"""A large file of .fsrepl/tmp whose content is put together in order: from an earlier try, from a version that the
bucket has, by reflink or copy_file_range within the bucket's own filesystem, and for the rest from what is sent.

All of it is read back, mostly while it is written.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from msgspec import Struct

from fsrepl.model import delta
from fsrepl.model.blockmap import HOLE, Block, BlockMap
from fsrepl.model.delta import Move, Plan, Span
from fsrepl.storage import blocks as maps
from fsrepl.storage import copying, hashing, sharing, staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import UNSUPPORTED
from fsrepl.storage.read_back import ReadBack

PAGE_BYTES = 4096
"""The unit in which a changed block is compared with the data at its place in the base."""
LEAVES_CACHE_BYTES = 128 << 20
"""From this size on a replica leaves the page cache as it gets to the disk. It would displace data that people use; and
where all memory is in use, finding some takes longer than the copy."""
_COPIED_BYTES = 4 << 20
"""The bytes of the base that are copied at once; the copy before is read back and written to the disk meanwhile."""
_FOLLOWED_MAX = 16
"""A clone is read back from the disk, and each write into it waits for the reads under way. Where more separate parts
than this are written, it is not read meanwhile."""
_AHEAD, _AHEAD_BYTES = 32, 1 << 20
"""The missing spans in whose place a clone is read ahead, and the most bytes of each: one after the other, as they are
compared, its disk would be asked for little at a time."""
_RESERVED_MAX = 256
"""The most separate parts that are reserved in advance; more, as after scattered changes, are small."""


def may_clone(bucket: OpenBucket) -> bool:
    """Whether a file of a bucket may begin as a clone of a version there."""
    return bucket.bucket.sharing != "private" and sharing.can_reflink(bucket)


class Base(Struct, frozen=True):
    """A version that a bucket has, open to read, and the map of what it should contain."""

    key: bytes
    id: str
    fd: int
    blocks: BlockMap


class LargeFile:
    """See the module. again: an earlier try left it, and nothing is known of its content. Used by one thread at a
    time."""

    def __init__(self, bucket: OpenBucket, key: bytes, name: bytes, fd: int, *, again: bool = False) -> None:
        self.bucket, self.key, self.name, self.fd = bucket, key, name, fd
        self.leaves_cache = False
        """Whether nothing reads it soon."""
        self.final = 0
        """All before this place is as it stays."""
        self.sent: list[Span] = []
        """The parts that had to be sent."""
        self.compares = False
        """Whether what is missing may be equal in part to what is in its place; else there are zeros."""
        self.foreseen: Sequence[Span] = ()
        """The spans that `missing` gives where the base can be read, in order; known once it has given the first."""
        self._again = again
        self._clone_of: tuple[bytes, str] | None = None
        """The version, by key and id, as in which all is that follows the final part."""
        self._read_back: ReadBack | None = None

    # -- while it is captured elsewhere

    def receive(self, size: int) -> None:
        """Begin a content of that size that is sent from its start to its end."""
        self.bucket.fs.truncate(self.fd, size)  # else each write makes the file longer, which takes longer
        self._begin_reading(None, cloned=False)

    def follow(self, parts: Iterable[Sequence[Block]], base: Base, size: int) -> Iterator[Span]:
        """Put together a content of about a size, whose blocks come in parts; the spans to be sent: see missing."""
        if cloned := self._clone(base):
            self._clone_of = base.key, base.id
        self.bucket.fs.truncate(self.fd, size)
        self.compares = True
        self._begin_reading(base, cloned=cloned)
        held = delta.Held(base.blocks)
        try:
            for part in parts:
                at, end = part[0].at, part[-1].end
                has_base = cloned or self._copies(base, Move(at, at, end - at))  # at once: most of it is needed
                yield from self._filled(held.plan(part), base, has_base=has_base, zeros=False)
                self._is_final(end)
        finally:
            if self._read_back is not None:
                self._read_back.leaving_fd = -1  # it may be closed now

    # -- when its blocks are known

    def missing(
        self, blocks: BlockMap, base: Base | None, on_read: Callable[[int], None] | None = None
    ) -> Iterator[Span]:
        """Take over the parts of a content that exist here; the spans that must be sent, in order, each once all before
        it is written.

        base: a version there that has a part of it. on_read: called with the number of bytes read back.
        """
        fs = self.bucket.fs
        plan, zeros = self._plan(blocks, base)
        cloned = base is not None and (base.key, base.id) == self._clone_of
        if zeros and not cloned:
            fs.truncate(self.fd, self.final)
        if not cloned:
            self._reserve(plan.missing)
            cloned = base is not None and zeros and not self.final and bool(plan.kept) and self._clone(base)
        fs.truncate(self.fd, blocks.size)
        self.foreseen = sorted(plan.missing)
        self.compares = cloned or bool(plan.kept)
        self._begin_reading(base, cloned=cloned, on_read=on_read)
        yield from self._filled(plan, base, has_base=cloned, zeros=zeros and not cloned)

    def _plan(self, blocks: BlockMap, base: Base | None) -> tuple[Plan, bool]:
        """How the rest is put together; and whether nothing of an earlier try is in it."""
        there = base.blocks if base is not None else None
        if self.final:
            return delta.Held(there).plan(blocks.after(self.final), self.final), True
        lacks = self._of_earlier_try(blocks) if self._again else blocks
        return delta.plan(lacks, there), len(lacks) == len(blocks)

    def _begin_reading(
        self, base: Base | None, *, cloned: bool, on_read: Callable[[int], None] | None = None
    ) -> None:  # fmt: skip
        """Read back what is final, from now on."""
        if self._read_back is None:
            self._read_back = ReadBack(self.bucket, self.name, self.fd, past_cache=cloned)
            self._read_back.follow(self.final)
        self._read_back.on_read = on_read
        self._read_back.leaves_cache = self.leaves_cache
        is_read_last = base is not None and base.key == self.key and not cloned
        replaces = base is not None and is_read_last and base.blocks.size >= LEAVES_CACHE_BYTES
        self._read_back.leaving_fd = base.fd if base is not None and replaces else -1

    def _is_final(self, at: int) -> None:
        """All before a place is as it stays."""
        self.final = max(self.final, at)
        if self._read_back is not None:
            self._read_back.follow(at)

    def _filled(self, plan: Plan, base: Base | None, *, has_base: bool, zeros: bool) -> Iterator[Span]:
        """Fill in what is here, in order; the spans to be sent. has_base: the content of the base is there, in its
        place. zeros: nothing is there."""
        is_scattered = len(plan.missing) + len(plan.moved) > _FOLLOWED_MAX
        ahead = iter(plan.missing if has_base else ())
        self._read_ahead(itertools.islice(ahead, _AHEAD))
        assert self._read_back is not None
        with self._read_back.paused() if is_scattered else contextlib.nullcontext():
            for span, is_filled in self._steps(plan, base, has_base=has_base, zeros=zeros):
                self._is_final(span.at)
                if not is_filled():
                    self._read_ahead(itertools.islice(ahead, 1))
                    self.sent.append(span)
                    yield span

    def _read_ahead(self, spans: Iterable[Span]) -> None:
        """Have the data in the place of missing spans read, which they are compared with."""
        for span in spans:
            self.bucket.fs.read_ahead(self.fd, span.at, min(span.size, _AHEAD_BYTES))

    def _steps(
        self, plan: Plan, base: Base | None, *, has_base: bool, zeros: bool
    ) -> list[tuple[Span, Callable[[], bool]]]:  # fmt: skip
        """The parts in order, each with the function that fills it in from here, and returns False where the part must
        be sent."""
        steps: list[tuple[Span, Callable[[], bool]]] = []
        if base is not None:
            moves = plan.moved if has_base else [*plan.moved, *(Move(span.at, *span) for span in plan.kept)]
            steps += [(Span(move.at, move.size), partial(self._takes, base, move)) for move in moves]
        if not zeros:
            steps += [(hole, partial(self.bucket.fs.punch, self.fd, *hole)) for hole in plan.holes]
        like = base if self.compares and not has_base else None
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
            if error.errno != errno.EIO:
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
        """Copy a part of the base; False where it cannot be read there."""
        try:
            copying.copy_part(self.bucket, base.fd, self.fd, *move, share=self._may_share)
        except OSError as error:
            if error.errno != errno.EIO:
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

    # -- what is sent

    def differing(self, at: int, data: bytes) -> list[Span]:
        """The parts of a missing span that differ from what is in their place."""
        return delta.differing(at, data, self.bucket.fs.read_at(self.fd, len(data), at), PAGE_BYTES)

    def copy(self, fd: int, at: int, count: int) -> int:
        """Copy at most count bytes from an open local file, to the same offset; how many bytes were copied. The parts
        of a missing span are copied in order."""
        copied = self.bucket.fs.copy(fd, self.fd, at, count)
        self._is_final(at + copied)
        return copied

    def write_at(self, at: int, data: bytes) -> None:
        """Write a part that is missing, in order; where it compares, only what differs."""
        fs, parts = self.bucket.fs, self.differing(at, data) if self.compares else [Span(at, len(data))]
        for part in parts:
            fs.write_at(self.fd, memoryview(data)[part.at - at : part.end - at], part.at)
        self._is_final(at + len(data))

    def end_at(self, size: int) -> None:
        """Extend the content to a size; bytes not written are zeros."""
        self.bucket.fs.truncate(self.fd, size)
        self._is_final(size)

    def forget(self) -> None:
        """Remove the file: no later try may continue it."""
        staging.unstage(self.bucket, self.name)

    # -- its end

    def damaged(self, blocks: BlockMap, on_read: Callable[[int], None] | None = None) -> list[Span]:
        """The parts of the content that do not match, once it is complete and read back: none where it is whole."""
        read_back, self._read_back = self._read_back, None
        fs = self.bucket.fs
        found = read_back.result(blocks.size) if read_back else hashing.content(fs, self.fd, progress=on_read)
        if (found.digest, found.size) == (blocks.digest, blocks.size):
            maps.write(self.bucket, blocks)
            return []
        self.compares = True
        bad = [block for block in blocks if not maps.matches(self.bucket, self.fd, block)]
        return delta.spans_of(bad) or [Span(0, blocks.size)]

    def end_reading(self, *, wait: bool = True) -> None:
        """Stop reading back; before the file is closed. wait: until that has ended."""
        read_back, self._read_back = self._read_back, None
        if read_back is not None:
            read_back.cancel(wait=wait)
