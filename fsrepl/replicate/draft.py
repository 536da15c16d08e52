"""Drafts of replicas: hidden files that become versions of a destination."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model import digests
from fsrepl.model.blockmap import BlockMap
from fsrepl.model.delta import Span
from fsrepl.model.version import Version
from fsrepl.storage import records, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.storage.posix import apply_posix
from fsrepl.views.stage import stage_view


class StagedReplica(Struct, frozen=True):
    """A replica hidden in the destination's .fsrepl/tmp.

    view names a second file, for the view, where view and store are to be independent. view is empty where
    the view will be a hard link to the stored version.
    """

    stored: versions.Staged
    view: bytes = b""


class Filled(Protocol):
    """A copy of a content, which is made from its start to its end."""

    def copy(self, fd: int, at: int, count: int) -> int:
        """Copy at most count bytes from an open local file, to the same offset; how many bytes were copied."""

    def end_at(self, size: int) -> None:
        """Extend the content to a size; bytes not written are zeros."""


class Draft(Filled, Protocol):
    """The content of a replica: written from its beginning to its end, and then staged with its record."""

    def write(self, data: bytes) -> None: ...

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        """Whether the content, read back, matches the replica's BLAKE3. on_read receives the number of bytes read."""

    def stage(self) -> StagedReplica: ...


class LargeDraft(Protocol):
    """The content of a large replica, put together from what the destination has and what is sent, in order.

    What is before the latest part is read back meanwhile.
    """

    received_bytes: int
    """The size of its start that was sent before there was a map of it."""

    def begin_again(self) -> None:
        """Forget what was received."""

    def missing(
        self, blocks: BlockMap, base: Base | None, on_read: Callable[[int], None] | None = None
    ) -> Iterator[Span]:
        """Take over the parts of a content that exist here; the spans that must be sent, in order, each once all before
        it is written.

        base: a version there that has a part of it; none where something was received. on_read: called with the number
        of bytes read back.
        """

    @property
    def foreseen(self) -> Sequence[Span]:
        """The spans that `missing` gives where the base can be read, in order; known once it has given the first."""

    @property
    def compares(self) -> bool:
        """Whether what is missing may be equal in part to what is in its place; else there are zeros."""

    def differing(self, at: int, data: bytes) -> list[Span]:
        """The parts of a missing span that differ from the draft."""

    def copy(self, fd: int, at: int, count: int) -> int:
        """Copy a part, as Draft.copy does. The parts of a missing span are copied in order."""

    def write_at(self, at: int, data: bytes) -> None:
        """Write a part that is missing, in order; where it compares, only what differs."""

    def damaged(self, blocks: BlockMap, on_read: Callable[[int], None] | None = None) -> list[Span]:
        """The parts of the content that do not match, once it is complete and read back: none where it is whole."""

    def forget(self) -> None:
        """Remove the draft: no later try may continue it."""

    def stage(self) -> StagedReplica: ...


class Base(Struct, frozen=True):
    """A version that a destination has, open to read, and the map of what it should contain."""

    key: bytes
    id: str
    fd: int
    blocks: BlockMap


class StagedFile:
    """A file in .fsrepl/tmp. Its record is on it from the start, unless a view shares it."""

    _is_new = False
    """Whether no earlier try has prepared it in part."""

    def __init__(
        self, bucket: OpenBucket, fd: int, name: bytes, replica: Version, *, linked: bool, sidecar: bool
    ) -> None:
        self.bucket, self.fd, self.name, self.replica = bucket, fd, name, replica
        self._linked, self._sidecar = linked, sidecar

    def write(self, data: bytes) -> None:
        self.bucket.fs.write(self.fd, data)

    def copy(self, fd: int, at: int, count: int) -> int:
        return self.bucket.fs.copy(fd, self.fd, at, count)

    def end_at(self, size: int) -> None:
        self.bucket.fs.truncate(self.fd, size)

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        size, digest = self.replica.size, self.replica.digest
        if size < SMALL_BYTES and digests.of(self.bucket.fs.read_at(self.fd, size + 1, 0)) == digest:
            return True
        return content_digest(self.bucket, self.fd, on_read) == digest

    def stage(self) -> StagedReplica:
        bucket, fd, name, replica, sidecar = self.bucket, self.fd, self.name, self.replica, self._sidecar
        if self._linked:
            posix = apply_posix(bucket, fd, replica.posix, is_new=self._is_new)
            replica, sidecar = records.put_shared(bucket, fd, name, replica, new=posix)
            return StagedReplica(versions.Staged(replica, name, sidecar))
        view, shortfall = stage_view(bucket, replica, fd)
        if shortfall != replica.shortfall:
            replica = replace(replica, shortfall=shortfall)
            sidecar = records.put_again(bucket, fd, name, replica)
        return StagedReplica(versions.Staged(replica, name, sidecar), view)


class NewFile(StagedFile):
    """A staged file made for a `with` block, which closes it, and removes it after an error."""

    _is_new = True

    def __init__(self, bucket: OpenBucket, replica: Version, *, linked: bool) -> None:
        name = staging.token()
        super().__init__(bucket, bucket.fs.create(bucket.tmp, name), name, replica, linked=linked, sidecar=False)

    def __enter__(self) -> Self:
        if not self._linked:
            try:
                self._sidecar = records.put(self.bucket, self.fd, self.name, self.replica)
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is not None:
                staging.unstage(self.bucket, self.name)
        finally:
            self.bucket.fs.close(self.fd)
