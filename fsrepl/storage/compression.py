"""Archived content, compressed as it is written and decompressed as it is read: zstd, with a checksum of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from fsrepl.errors import StoreDamaged

if sys.version_info >= (3, 14):
    from compression import zstd

    _ERRORS: tuple[type[Exception], ...] = (zstd.ZstdError, EOFError)
else:
    import zstandard

    _ERRORS = (zstandard.ZstdError,)

_LEVEL = 12
_CHUNK = 1 << 20


def compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A part of some content as one zstd frame, in pieces. `zstd -d` reads a file of several frames too."""
    if sys.version_info >= (3, 14):
        options = {zstd.CompressionParameter.compression_level: _LEVEL, zstd.CompressionParameter.checksum_flag: 1}
        stream = zstd.ZstdCompressor(options=options)
    else:
        stream = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    for chunk in chunks:
        if data := stream.compress(chunk):
            yield data
    yield stream.flush()


def decompressed(fd: int) -> Iterator[bytes]:
    """The content of an open compressed file, in pieces of up to one MiB. Raises StoreDamaged where it is damaged."""
    try:
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            if sys.version_info >= (3, 14):
                reader = zstd.ZstdFile(file)
            else:
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
            while data := reader.read(_CHUNK):
                yield data
    except _ERRORS as error:
        raise StoreDamaged(f"compressed content cannot be read: {error}") from error
