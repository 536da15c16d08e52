"""The home of block maps: .fsrepl/blocks, a file a content, named by its BLAKE3.

A map is derived from the content alone. So it is never synced, a damaged one is made again, and a build that does not
know the folder works without it. Versions with the same content have one map, also under different
keys. Maps that no version needs any more are removed by the scrub (see forget_unused).
"""

from __future__ import annotations

import contextlib
import re

from fsrepl.model import blockmap, digests
from fsrepl.model.blockmap import HOLE, Block, BlockMap
from fsrepl.storage import hashing, staging
from fsrepl.storage.bucket import OpenBucket

FOLDER = b"blocks"
_ZEROS_BYTES = 1 << 20
_NAME = re.compile(rb"[0-9a-f]{64}")


def _folder(bucket: OpenBucket) -> int:
    return bucket.fs.open_dir(bucket.meta, FOLDER)


def _name(digest: bytes) -> bytes:
    return digest.hex().encode()


def read(bucket: OpenBucket, digest: bytes) -> BlockMap | None:
    """The map of a content, as this bucket has it; None where it has none that can be used."""
    try:
        at = _folder(bucket)
        try:
            fd = bucket.fs.open_read(at, _name(digest))
        finally:
            bucket.fs.close(at)
        try:
            found = blockmap.decode(bucket.fs.read_all(fd, bucket.fs.stat_fd(fd).st_size))
        finally:
            bucket.fs.close(fd)
    except OSError:
        return None
    return found if found is not None and found.digest == digest else None


def write(bucket: OpenBucket, blocks: BlockMap) -> None:
    """Keep a map, where that is possible; else it is made again when it is needed."""
    name = staging.token()
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            bucket.fs.make_dir(bucket.meta, FOLDER)
        at = _folder(bucket)
        try:
            fd = bucket.fs.create(bucket.tmp, name)
            try:
                bucket.fs.write(fd, blocks.encode())
            finally:
                bucket.fs.close(fd)
            bucket.fs.rename(bucket.tmp, name, at, _name(blocks.digest))
        except OSError:
            staging.unstage(bucket, name)
            raise
        finally:
            bucket.fs.close(at)


def of_file(bucket: OpenBucket, digest: bytes, fd: int, average: int = 0) -> BlockMap | None:
    """The map of an open file's content: the one that is kept, else made and kept now.

    average: the wanted average size of its blocks, to compare it with another map; 0: any. None where the content has
    another digest. Raises OSError.
    """
    found, size = read(bucket, digest), bucket.fs.stat_fd(fd).st_size
    if found is not None and found.size == size and average in (0, found.average):  # earlier builds lost a byte of some
        return found
    made = hashing.content(bucket.fs, fd, blocks=True, average=average)
    if made.digest != digest or made.blocks is None:
        return None
    write(bucket, made.blocks)
    return made.blocks


def latest(bucket: OpenBucket, most: int) -> list[bytes]:
    """The digests of contents that have a map here; of more than so many the latest ones."""
    with contextlib.suppress(OSError):
        at = _folder(bucket)
        try:
            names = [name for name, _ in bucket.fs.entries(at) if _NAME.fullmatch(name)]
            if len(names) > most:
                with contextlib.suppress(FileNotFoundError):
                    names.sort(key=lambda name: bucket.fs.stat(at, name).st_mtime_ns)
            return [bytes.fromhex(name.decode()) for name in names[-most:]]
        finally:
            bucket.fs.close(at)
    return []


def matches(bucket: OpenBucket, fd: int, block: Block) -> bool:
    """Whether an open file has the content of a block, read now. Raises OSError."""
    fs = bucket.fs
    if block.digest != HOLE:
        return digests.of(fs.read_at(fd, block.size, block.at)) == block.digest
    at = block.at
    while (at := fs.next_data(fd, at, block.end)[0]) < block.end:
        data = fs.read_at(fd, min(_ZEROS_BYTES, block.end - at), at)
        if not data or any(data):
            return False
        at += len(data)
    return fs.stat_fd(fd).st_size >= block.end


def note_used(bucket: OpenBucket, digest: bytes, now_ns: int) -> None:
    """Note that a version has this content: see forget_unused."""
    with contextlib.suppress(OSError):
        at = _folder(bucket)
        try:
            fd = bucket.fs.open_read(at, _name(digest))
        finally:
            bucket.fs.close(at)
        try:
            bucket.fs.set_mtime(fd, now_ns)
        finally:
            bucket.fs.close(fd)


def forget_unused(bucket: OpenBucket, since_ns: int) -> int:
    """Remove the maps that were neither made nor noted as used since a moment; their number."""
    removed = 0
    with contextlib.suppress(OSError):
        at = _folder(bucket)
        try:
            for name, _ in list(bucket.fs.entries(at)):
                if _NAME.fullmatch(name) and bucket.fs.stat(at, name).st_mtime_ns < since_ns:
                    bucket.fs.unlink(at, name)
                    removed += 1
        finally:
            bucket.fs.close(at)
    return removed
