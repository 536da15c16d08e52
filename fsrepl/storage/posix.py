"""Mode, owner, times and ACL of an open file: read, and given to another."""

from __future__ import annotations

import os

from fsrepl.model import access
from fsrepl.model.version import Posix
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import ACL, UNSUPPORTED


def inode_posix(bucket: OpenBucket, fd: int, found: os.stat_result) -> Posix:
    """What an inode itself says of mode, owner, time and ACL."""
    return posix_of(found, bucket.fs.acl(fd))


def posix_of(found: os.stat_result, acl: bytes | None = None) -> Posix:
    """The same, where the ACL is known, or that there is none."""
    return Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)


def view_metadata(bucket: OpenBucket, fd: int) -> tuple[dict[str, bytes], bytes | None]:
    """The user.* attributes of an open file, and its ACL."""
    raw: dict[str, bytes] = {}
    acl = None
    for name in bucket.fs.attribute_names(fd):
        if name == ACL:
            acl = bucket.fs.acl(fd)
        elif name.startswith("user."):
            value = bucket.fs.attribute(fd, name)
            if value is not None:
                raw[name] = value
    return raw, acl


def apply_posix(bucket: OpenBucket, fd: int, posix: Posix | None) -> Posix:
    """Give a file an object's owner, ACL, mode and time; what it has then, which may be less.

    Order: owner, ACL, mode. A file that was open to others is closed to them first, so that on the way
    nobody gets in whom neither the old rights nor the new ones let in. Where the owner cannot be set,
    nobody gains by it: no setuid, no setgid, and the group gets what others have.
    """
    fs = bucket.fs
    now = inode_posix(bucket, fd, fs.stat_fd(fd))
    if posix is None:
        return now
    mode, acl = posix.mode, posix.acl
    is_owner = (now.uid, now.gid) == (posix.uid, posix.gid)
    if now.mode & 0o7077 and not (is_owner and now.acl == acl):
        fs.chmod(fd, now.mode & mode & 0o700)
    if not is_owner and not fs.give(fd, posix.uid, posix.gid):
        mode, acl = access.without_owner(posix), None
    if acl is not None and acl != now.acl:
        try:
            fs.set_acl(fd, acl)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            mode, acl = access.without_acl(posix), None
    if acl is None and now.acl is not None:  # a directory's default ACL, where the file is new
        fs.remove_acl(fd)
    fs.chmod(fd, mode)
    fs.set_mtime(fd, posix.mtime_ns)
    found = fs.stat_fd(fd)
    return inode_posix(bucket, fd, found) if acl is not None else posix_of(found)
