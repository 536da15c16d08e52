"""BLAKE3 digests of content, which are ETags of versions, and of names, where a short constant text is needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

SHORT_CHARACTERS = 32


class Passing:
    """Chunks hashed while a consumer iterates over them."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._hasher = chunks, blake3()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hasher.update(chunk)
            yield chunk

    def digest(self) -> bytes:
        """The digest of the chunks so far, 32 bytes."""
        return self._hasher.digest()


_STATES_MAX = 1024
"""The most states that are remembered, of two KiB each."""


class _States:
    """States of BLAKE3 after long runs of zeros, by the digest of all before and the number of zeros.

    BLAKE3 counts positions, so that zeros cost as much as other bytes. The content of a sparse file is hashed several
    times: when it is captured, read back and verified; its holes but once. The latest ones are kept; for all threads.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._known: OrderedDict[tuple[bytes, int], blake3] = OrderedDict()

    def get(self, place: tuple[bytes, int]) -> blake3 | None:
        with self._guard:
            if (found := self._known.get(place)) is None:
                return None
            self._known.move_to_end(place)
            return found.copy()

    def put(self, place: tuple[bytes, int], state: blake3) -> None:
        with self._guard:
            self._known[place] = state.copy()
            while len(self._known) > _STATES_MAX:
                self._known.popitem(last=False)


_after_zeros = _States()


class Hasher:
    """A digest computed piece by piece. parallel: large pieces are hashed on all processors."""

    def __init__(self, *, parallel: bool = True) -> None:
        self._hasher = blake3(max_threads=blake3.AUTO if parallel else 1)

    def update(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)

    def zeros(self, count: int, made: Iterable[bytes]) -> None:
        """Hash so many zeros, which `made` yields; where they followed the same content before, none are asked for."""
        place = self._hasher.digest(), count
        if (known := _after_zeros.get(place)) is not None:
            self._hasher = known
            return
        for zeros in made:
            self._hasher.update(zeros)
        _after_zeros.put(place, self._hasher)

    def digest(self) -> bytes:
        """The digest of the pieces so far, 32 bytes."""
        return self._hasher.digest()


def of(data: bytes | memoryview) -> bytes:
    """The digest of data, 32 bytes."""
    return blake3(data).digest()


def of_chunks(chunks: Iterable[bytes]) -> bytes:
    """The digest of all chunks together, 32 bytes."""
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def counted(chunks: Iterable[bytes], progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """The chunks unchanged. progress: called with the number of bytes consumed, whenever a chunk is requested."""
    done = 0
    for chunk in chunks:
        yield chunk
        if progress is not None:
            progress(done := done + len(chunk))


def short(name: bytes) -> str:
    """The first 32 hex digits of a name's digest, enough to distinguish names."""
    return blake3(name).hexdigest()[:SHORT_CHARACTERS]
