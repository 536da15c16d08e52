"""Directories of tree buckets, each an object with its rights, attributes and tags.

A directory's key ends in a slash, and its version has no content. Its view is made hidden and renamed into place; an
existing one is changed through its descriptor, in an order that at no moment admits people whom neither the former nor
the new rights admit (directories.give). It is removed only while it is empty. A directory that replication made for the
files below it is no object until the version of its key arrives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from msgspec.structs import replace

from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import Posix, Rights, Shortfall, Version
from fsrepl.model.view import View
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import DOES_NOT_FIT, UNSUPPORTED, FileType
from fsrepl.storage.journal.questions import CurrentVersions
from fsrepl.storage.posix import inode_posix
from fsrepl.views import directories

_NOT_TAKEN = DOES_NOT_FIT | UNSUPPORTED | {errno.EACCES, errno.EPERM}


def is_edited(bucket: OpenBucket, fd: int, version: Version) -> bool:
    """Whether an open directory has other metadata than it was given when it was made to show a version."""
    return bool(metadata.changed(version, _seen(bucket, fd, version)))


def shows(bucket: OpenBucket, fd: int, version: Version) -> bool:
    """Whether an open directory has exactly the metadata of a version, and lacks exactly what is recorded that it
    lacks."""
    return _seen(bucket, fd, version) == version


def _seen(bucket: OpenBucket, fd: int, version: Version) -> Version:
    """A version with the metadata of an open directory."""
    raw = bucket.fs.attributes(fd)
    posix = inode_posix(bucket, fd, bucket.fs.stat_fd(fd))
    return metadata.seen(version, posix, attributes.own(raw), attributes.tags(raw))


def make(bucket: OpenBucket, version: Version) -> int:
    """Make the directory of a version, with those above it; its descriptor. Raises OSError, EEXIST where the name is
    taken."""
    path = version.key[:-1]
    parent, name = keys.split(path)
    above = directories.get_or_make(bucket, parent)
    shortfalls: list[Shortfall] = []

    def prepare(fd: int) -> Rights:
        given, shortfall = _give(bucket, fd, version)
        shortfalls.append(shortfall)
        return given

    directories.make(bucket, above, path, name, prepare)
    bucket.views.changed.add(parent)
    _record(bucket, version, shortfalls[-1])
    return bucket.views.get(path)


@contextlib.contextmanager
def opened(bucket: OpenBucket, path: bytes) -> Iterator[tuple[int, bool]]:
    """The descriptor of a directory that is there, and whether it is one of open_inode: of a directory that its owner
    may not open, as 0000, while the daemon is that owner, and no root. Raises OSError."""
    try:
        fd = bucket.views.get(path)
    except PermissionError:
        parent, name = keys.split(path)
        fd = bucket.fs.open_inode(bucket.views.get(parent), name)
        try:
            found = bucket.fs.stat_fd(fd)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise
            yield fd, True
        finally:
            bucket.fs.close(fd)
    else:
        yield fd, False


@contextlib.contextmanager
def opened_to_owner(bucket: OpenBucket, path: bytes, fd: int) -> Iterator[int]:
    """Let the daemon, which is its owner, open a directory, which is then changed; its descriptor. fd: see opened.
    Raises OSError.

    After a crash the intent of the change says that this right is no user's change.
    """
    found = bucket.fs.stat_fd(fd)
    bucket.fs.chmod(fd, stat.S_IMODE(found.st_mode) | stat.S_IRWXU)
    try:
        if not os.path.samestat(bucket.fs.stat_fd(bucket.views.get(path)), found):
            raise PermissionError(errno.EPERM, "another directory was put in the place of one that was to be changed")
        yield bucket.views.get(path)
    except OSError:
        bucket.fs.chmod(fd, stat.S_IMODE(found.st_mode))
        raise


def change(bucket: OpenBucket, fd: int, version: Version) -> None:
    """Give an open directory the metadata of a version; metadata that it does not take is recorded as the shortfall."""
    _, shortfall = _give(bucket, fd, version)
    _record(bucket, version, shortfall)


def remove(bucket: OpenBucket, path: bytes) -> bool:
    """Remove an empty directory; False where it is not empty. Raises OSError."""
    parent, name = keys.split(path)
    try:
        # RACE: another empty directory, put there in this moment, is removed instead; its user could remove it too.
        bucket.fs.remove_dir(bucket.views.get(parent), name)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    bucket.views.forget(path)
    bucket.views.changed.discard(path)
    bucket.views.changed.add(parent)
    return True


def belongs_to_contents(bucket: OpenBucket, path: bytes, fd: int, recorded: View | None) -> bool:
    """Whether an open directory is another one than the view on record, and replication made it for what is in it."""
    is_recorded = recorded is not None and recorded.has_content_of(bucket.fs.stat_fd(fd))
    return not is_recorded and directories.is_made(bucket, path)


def leave_to_contents(bucket: OpenBucket, current: CurrentVersions, key: bytes) -> bool:
    """Let a deleted directory that holds objects belong to these, as one that was made for them: it goes with the last.

    So it is where one side removed the directory, and the other one put a file into it meanwhile. Whether it could be
    left; False where nothing in it is an object: it may be another program's, or not captured yet. Raises OSError.
    """
    path = key[:-1]
    found = list(bucket.fs.entries(bucket.views.get(path)))
    below = [keys.join(path, name) + (b"/" if kind is FileType.DIRECTORY else b"") for name, kind in found]
    known = current.look_up(bucket.address, below)
    is_needed = any(not each.marker for each in known.values()) or any(
        keys.is_directory(each) and directories.is_made(bucket, each[:-1]) for each in below
    )
    if is_needed:
        directories.adopt(bucket, path)
    return is_needed


def _give(bucket: OpenBucket, fd: int, version: Version) -> tuple[Rights, Shortfall]:
    """Set rights, attributes and tags; the rights that the directory has now, and what it cannot have.

    People whom the new rights do not admit lose their access first, so that they see no new attribute. The attributes
    come before the new rights, and those refused once more afterwards: only a directory that may be written to takes
    any, so that its owner, the daemon, may write to it meanwhile. After a crash the intent of the change says that this
    right is no user's change.
    """
    wanted = attributes.of_object(version)
    assert version.posix is not None
    has, rights = directories.rights_of(bucket, fd), version.posix.rights
    kept = has.mode & (rights.mode | 0o700)
    if (has.uid, has.gid, has.acl) != (rights.uid, rights.gid, rights.acl):
        kept &= ~0o077
    there = bucket.fs.attributes(fd)
    unwanted = [n for n in there if n == attributes.MADE or (not attributes.is_ours(n) and n not in wanted)]
    if has.uid == os.geteuid() != 0 and (unwanted or any(there.get(name) != value for name, value in wanted.items())):
        kept |= stat.S_IWUSR
    if (wanted or unwanted) and kept != has.mode:
        bucket.fs.chmod(fd, kept)
        has = directories.rights_of(bucket, fd)
    with contextlib.suppress(PermissionError):
        for name in unwanted:
            bucket.fs.remove_attribute(fd, name)
    refused = _put(bucket, fd, wanted)
    given = directories.give(bucket, fd, has, rights)
    refused = _put(bucket, fd, {name: wanted[name] for name in refused})
    posix = Posix(stat.S_IFDIR | given.mode, given.uid, given.gid, 0, given.acl, given.default_acl)
    return given, metadata.shortfall(version, posix, refused)


def _put(bucket: OpenBucket, fd: int, wanted: dict[str, bytes]) -> set[str]:
    """Set attributes; the names of those that the directory does not take."""
    refused = set()
    for name, value in wanted.items():
        try:
            bucket.fs.set_attribute(fd, name, value)
        except OSError as error:
            if error.errno not in _NOT_TAKEN:
                raise
            refused.add(name)
    return refused


def _record(bucket: OpenBucket, version: Version, shortfall: Shortfall) -> None:
    """Record a shortfall, durably: without it the difference would look like a user's change."""
    if shortfall == version.shortfall:
        return
    records.amend(bucket, replace(version, shortfall=shortfall))
    fd = versions.open_version(bucket, version.key, version.id)
    try:
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)


# -- directories narrowed before their own version arrives


def narrow(bucket: OpenBucket, path: bytes, version: Version, live: Rights) -> bool:
    """Before new content is shown in a directory: take from it what its source has lost since the version shown here.

    version: the one that the directory shows. live: the rights at the source now, whose version is still to come.
    Whether anything was taken; it is recorded as a shortfall, so that it is no user's change. Raises OSError.
    """
    fd = bucket.views.get(path)
    has, recorded = directories.rights_of(bucket, fd), version.posix
    if recorded is None or recorded.rights == live or is_edited(bucket, fd, version):
        return False
    kept = narrowed(has.mode, recorded.rights, live)
    if kept == has.mode:
        return False
    # The record first: cut in between, the directory has its version's rights, and that is no user's change either.
    foreseen = replace(has, mode=kept)
    _record(bucket, version, _with_rights(version, foreseen))
    bucket.fs.chmod(fd, kept)
    if (now := directories.rights_of(bucket, fd)) != foreseen:  # of an ACL, chmod changes the mask
        _record(bucket, version, _with_rights(version, now))
    return True


def _with_rights(version: Version, rights: Rights) -> Shortfall:
    """The shortfall of a directory that has these rights."""
    posix = Posix(stat.S_IFDIR | rights.mode, rights.uid, rights.gid, 0, rights.acl, rights.default_acl)
    return replace(version.shortfall, posix=posix)


def narrowed(mode: int, recorded: Rights, live: Rights) -> int:
    """The mode for a directory whose source had the recorded rights, and has others now. Pure.

    Where owner or ACL have changed, nobody but the owner is known to be admitted still.
    """
    if (recorded.uid, recorded.gid, recorded.acl) != (live.uid, live.gid, live.acl):
        return mode & ~0o077
    return mode & ~(recorded.mode & ~live.mode & 0o777)
