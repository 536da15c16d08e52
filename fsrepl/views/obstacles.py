"""Obstacles in the place of a view: another key's file, a directory, a link.

S3 has keys `a` and `a/b` at once, and a tree has not; and people make any files in their trees.
None of these is removed for a replica, which waits in the store until the place is free. Only empty
directories that replication itself made are removed.
Source: s3-semantics, section 0 (14) and 9 (1); design.md, section 5.
"""

from __future__ import annotations

import errno
import stat

from fsrepl.model import attributes, keys
from fsrepl.model.version import Kind, Version
from fsrepl.storage import walk
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import FileType
from fsrepl.views import directories, writable


def needs_trees(bucket: OpenBucket, version: Version) -> str:
    """Why a bucket does not show an object of this kind, for people; empty where it does."""
    if bucket.bucket.trees or version.kind is Kind.FILE:
        return ""
    return f"it is {version.kind.value}, and {bucket.address} is no tree bucket"


def describe(bucket: OpenBucket, key: bytes) -> str:
    """The obstacle to a key's view, for people; empty where there is none, or the view itself is there."""
    names = key.removesuffix(b"/").split(b"/")
    for depth, name in enumerate(names, 1):
        path = b"/".join(names[:depth])
        try:
            at = bucket.views.get(keys.split(path)[0])
            found = bucket.fs.stat(at, name)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return f"{keys.shown(keys.split(path)[0])}, another mount, is in the way"
            too_long = error.errno == errno.ENAMETOOLONG
            return "its name is too long for this filesystem" if too_long else ""
        last = depth == len(names)
        if bucket.fs.is_mount(at, name):
            return f"{keys.shown(path)}, another mount, is in the way"
        if not (bucket.is_object(key, found) if last else stat.S_ISDIR(found.st_mode)):
            return f"{keys.shown(path)}, {_kind(found.st_mode)}, is in the way"
    return ""


def unversioned(bucket: OpenBucket, key: bytes) -> str:
    """Why the entry at a key's path is not a version, for people; empty where there is no entry."""
    try:
        mode = bucket.view_status(key).st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return "is a file, and not a version yet: it becomes one when it is complete and the daemon has copied it"
    if bucket.bucket.trees and stat.S_ISLNK(mode):
        return "is a symlink, and not a version yet: it becomes one when the daemon has read it"
    if bucket.bucket.trees and stat.S_ISDIR(mode) and not keys.is_directory(key):
        return f"is a directory, whose key is {keys.shown(key)}/"
    return f"is {_kind(mode)}, and no object: it is not replicated"


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "another key's file"
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a link" if stat.S_ISLNK(mode) else "a FIFO, a socket or a device"


def clear(bucket: OpenBucket, path: bytes) -> bool:
    """Remove a directory that replication made, if it holds only others of that kind; whether it is gone."""
    paths = []
    try:
        for directory in walk.directories(bucket.fs, bucket.fd, path):
            if not _is_made_and_without_files(bucket, directory):
                return False
            paths.append(directory.path)
    except OSError:
        return False
    return bool(paths) and all(remove_made(bucket, each) for each in reversed(paths))


def _is_made_and_without_files(bucket: OpenBucket, directory: walk.Directory) -> bool:
    is_made = bucket.fs.attribute(directory.fd, attributes.MADE) is not None
    return is_made and all(kind is FileType.DIRECTORY for _, kind in directory.entries)


def remove_made(bucket: OpenBucket, path: bytes) -> bool:
    """Remove one directory if replication made it and it is empty; whether it is gone."""
    parent, name = keys.split(path)
    try:
        fd, above = bucket.views.get(path), bucket.views.get(parent)
        is_made = bucket.fs.attribute(fd, attributes.MADE) is not None
        if is_made and bucket.bucket.trees:  # it may be an object by now
            is_made = directories.is_made(bucket, path)
        if not (is_made and _is_at(bucket, fd, above, name)):
            return False
        # RACE: another empty directory, put there in this moment, is removed instead; its user could remove it too.
        try:
            bucket.fs.remove_dir(above, name)
        except PermissionError:
            with writable.made_writable(bucket, parent):
                bucket.fs.remove_dir(above, name)
    except OSError:
        return False  # not empty, or gone
    bucket.views.forget(path)
    bucket.views.changed.discard(path)
    bucket.views.changed.add(parent)
    return True


def _is_at(bucket: OpenBucket, fd: int, above: int, name: bytes) -> bool:
    """Whether an open directory still has that name."""
    found, there = bucket.fs.stat_fd(fd), bucket.fs.stat(above, name)
    return (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)


def remove_made_directories(bucket: OpenBucket, directory: bytes) -> None:
    """Remove empty directories that replication made, from here upwards."""
    while directory and remove_made(bucket, directory):
        directory = keys.split(directory)[0]
