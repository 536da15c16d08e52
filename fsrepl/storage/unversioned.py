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
from fsrepl.storage import posix
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE, FileType
from fsrepl.storage.view_file import open_view, open_view_if_there
from fsrepl.storage.walk import Directory, in_key_order, leave_out


def below(bucket: OpenBucket, prefix: bytes) -> Iterator[Version]:
    """The objects whose keys have a prefix, in byte order, without digests, which would take long.

    A directory that cannot be read has none.
    """

    def read(directory: Directory) -> Iterator[tuple[bytes, Version]]:
        for version in in_directory(bucket, directory):
            if version.key.startswith(prefix):
                yield version.key, version

    def enters(path: bytes) -> bool:
        return keys.is_key(path) and (path.startswith(prefix) or prefix.startswith(path + b"/"))

    start, _ = keys.split(prefix)
    yield from in_key_order(bucket.fs, bucket.fd, start, read, enters, leave_out)


def in_directory(bucket: OpenBucket, directory: Directory) -> Iterator[Version]:
    """The objects of one directory of views, without digests. Those removed meanwhile are left out."""
    for name, kind in directory.entries:
        key = keys.join(directory.path, name)
        if kind is FileType.REGULAR and keys.is_key(key):
            with contextlib.suppress(FileNotFoundError):
                found = bucket.fs.stat(directory.fd, name)
                if bucket.fs.is_regular(found):
                    yield _version(key, found)


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
