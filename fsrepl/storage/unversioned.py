"""Objects of a never-versioned bucket, as in S3: each file is the only version of its key, with the id `null`.

Such a bucket has no store and is not watched, so an object is read from its file on each request. Source: s3-semantics,
section 4, the column "never versioned".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fsrepl.model import attributes, clock, keys
from fsrepl.model.version import NULL, Origin, Version
from fsrepl.storage import posix, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE
from fsrepl.storage.view_file import open_view, open_view_if_there


def below(bucket: OpenBucket, prefix: bytes) -> Iterator[Version]:
    """The objects whose keys have a prefix, in byte order, without digests, which would take long."""
    top, _ = keys.split(prefix)
    yield from versions.in_depth(top, lambda path: _readable(bucket, path, prefix))


def in_directory(bucket: OpenBucket, path: bytes) -> Iterator[Version | bytes]:
    """The objects of one directory, and the paths of its subdirectories."""
    return _readable(bucket, path, b"")


def _readable(bucket: OpenBucket, path: bytes, prefix: bytes) -> Iterator[Version | bytes]:
    """The entries of `_steps`; an unreadable or removed directory has none."""
    with contextlib.suppress(OSError):
        yield from _steps(bucket, path, prefix)


def _steps(bucket: OpenBucket, path: bytes, prefix: bytes) -> Iterator[Version | bytes]:
    """The entries of one directory in order: objects, and subdirectories to enter."""
    fd = bucket.fs.open_dir(bucket.fd, path)
    try:
        found: list[tuple[bytes, os.stat_result | None]] = []
        for entry in bucket.fs.entries(fd):
            key = keys.join(path, os.fsencode(entry.name))
            if entry.is_dir(follow_symlinks=False):
                found.append((key + b"/", None))  # a directory sorts as its name and a slash
            elif entry.is_file(follow_symlinks=False):
                found.append((key, entry.stat(follow_symlinks=False)))
    finally:
        bucket.fs.close(fd)
    for place, status in sorted(found, key=lambda each: each[0]):
        if status is not None:
            if place.startswith(prefix):
                yield _version(place, status)
        elif keys.is_key(place[:-1]) and (place.startswith(prefix) or prefix.startswith(place)):
            yield place[:-1]


def _version(key: bytes, found: os.stat_result) -> Version:
    return Version(key, NULL, clock.within(found.st_mtime_ns), size=found.st_size, origin=Origin.USER)


def has(bucket: OpenBucket, key: bytes) -> bool:
    """Whether a file has this key."""
    if not keys.is_key(key):
        return False
    directory, name = keys.split(key)
    try:
        return bucket.fs.is_regular(bucket.fs.stat(bucket.views.get(directory), name))
    except OSError as error:
        if error.errno in NO_FILE:
            return False
        raise


def read(bucket: OpenBucket, key: bytes) -> Version | None:
    """The version of one object, from its file; None where no file has this key."""
    if not has(bucket, key):
        return None
    with open_view_if_there(bucket, key, NO_FILE) as view:
        if view is None:
            return None
        found, raw = view.found, bucket.fs.attributes(view.fd)
        return Version(
            key, NULL, clock.within(found.st_mtime_ns), False, found.st_size, view.digest(), Origin.USER,
            posix=posix.inode_posix(bucket, view.fd, found), attrs=attributes.own(raw), tags=attributes.tags(raw),
        )  # fmt: skip


def tags(bucket: OpenBucket, key: bytes) -> dict[str, str]:
    """The tags of one object; none where no file has this key."""
    with open_view_if_there(bucket, key, NO_FILE) as view:
        return attributes.tags(bucket.fs.attributes(view.fd)) if view is not None else {}


def content(bucket: OpenBucket, key: bytes) -> Iterator[bytes]:
    with open_view(bucket, key) as view:
        yield from bucket.fs.chunks(view.fd)
