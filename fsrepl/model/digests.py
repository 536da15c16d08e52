"""BLAKE3: of content, where it is a version's ETag, and of names that are to be short and always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

SHORT_CHARACTERS = 32


class Passing:
    """Chunks on their way from one place to another, hashed as they pass."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._hasher = chunks, blake3()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hasher.update(chunk)
            yield chunk

    def digest(self) -> bytes:
        """Of what has passed so far, 32 bytes."""
        return self._hasher.digest()


def of(data: bytes) -> bytes:
    """32 bytes."""
    return blake3(data).digest()


def of_chunks(chunks: Iterable[bytes]) -> bytes:
    """Of all of them as one, 32 bytes."""
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def counted(chunks: Iterable[bytes], told: Callable[[int], None] | None) -> Iterator[bytes]:
    """The same chunks. told: how many bytes of them have been worked on, each time that the next one is asked for."""
    done = 0
    for chunk in chunks:
        yield chunk
        if told is not None:
            told(done := done + len(chunk))


def short(name: bytes) -> str:
    """The first hex digits of a name's digest, enough to tell it from any other."""
    return blake3(name).hexdigest()[:SHORT_CHARACTERS]
