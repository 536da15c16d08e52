"""BLAKE3 digests of content, which are ETags of versions, and of names, where a short constant text is needed."""

from __future__ import annotations

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


class Hasher:
    """A digest computed piece by piece. Large pieces are hashed on all processors."""

    def __init__(self) -> None:
        self._hasher = blake3(max_threads=blake3.AUTO)

    def update(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)

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


def counted(chunks: Iterable[bytes], told: Callable[[int], None] | None) -> Iterator[bytes]:
    """The chunks unchanged. told: called with the number of bytes consumed, each time the next chunk is requested."""
    done = 0
    for chunk in chunks:
        yield chunk
        if told is not None:
            told(done := done + len(chunk))


def short(name: bytes) -> str:
    """The first 32 hex digits of a name's digest, enough to distinguish names."""
    return blake3(name).hexdigest()[:SHORT_CHARACTERS]
