"""Mode, owner, times and ACL of an open file: read, and set on another one."""

from __future__ import annotations

import errno
import os
import stat

from msgspec.structs import replace

from fsrepl.model import access
from fsrepl.model.version import PERMISSIONS, Posix, is_file, recorded_mode
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import ACL, UNSUPPORTED


def inode_posix(bucket: OpenBucket, fd: int, found: os.stat_result) -> Posix:
    """The mode, owner, time and ACLs of an inode."""
    posix = posix_of(found, bucket.fs.acl(fd))
    if is_file(posix) or not bucket.fs.is_directory(found):
        return posix
    return replace(posix, default_acl=bucket.fs.default_acl(fd))


def posix_of(found: os.stat_result, acl: bytes | None = None) -> Posix:
    """The mode, owner and time from a stat result, with a known ACL, or none."""
    mode = recorded_mode(found.st_mode)
    mtime_ns = 0 if mode > PERMISSIONS and stat.S_ISDIR(mode) else found.st_mtime_ns
    return Posix(mode, found.st_uid, found.st_gid, mtime_ns, acl)


def has_rights(posix: Posix | None, found: os.stat_result) -> bool:
    """Whether an inode has a mode and an owner; True where these are unknown."""
    rights = recorded_mode(found.st_mode), found.st_uid, found.st_gid
    return posix is None or (posix.mode, posix.uid, posix.gid) == rights


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


def apply_posix(bucket: OpenBucket, fd: int, posix: Posix | None, *, is_new: bool = False) -> Posix:
    """Set an object's owner, ACL, mode and time on a file; the values it has then, which may differ. is_new: the file
    was just made in .fsrepl/tmp.

    The order is owner, ACL, mode. A file open to others is closed to them first, so that meanwhile no user has access
    that neither the old nor the new rights grant. Where the owner cannot be set, access is reduced: no setuid, no
    setgid, and the group gets the others' bits.
    """
    fs = bucket.fs
    now = _made(bucket, fd) if is_new and posix and not bucket.gives_acl else inode_posix(bucket, fd, fs.stat_fd(fd))
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
    if acl is None and now.acl is not None:  # inherited from a directory's default ACL by a new file
        fs.remove_acl(fd)
    fs.chmod(fd, mode)
    fs.set_mtime(fd, posix.mtime_ns)
    found = fs.stat_fd(fd)
    return inode_posix(bucket, fd, found) if acl is not None else posix_of(found)


def _made(bucket: OpenBucket, fd: int) -> Posix:
    """The mode and owner of a file that was just made in .fsrepl/tmp: they are alike, since this process makes them."""
    if bucket.made is None:
        bucket.made = posix_of(bucket.fs.stat_fd(fd))
    return bucket.made


def apply_to_link(bucket: OpenBucket, fd: int, posix: Posix | None) -> Posix:
    """Set an object's owner and time on a symlink from open_inode; the values it has then, which may differ.

    Raises OSError, ELOOP for anything but a symlink: somebody who may write there replaced it.
    """
    fs = bucket.fs
    if not fs.is_link(found := fs.stat_fd(fd)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if posix is not None:
        if (found.st_uid, found.st_gid) != (posix.uid, posix.gid):
            fs.give(fd, posix.uid, posix.gid)
        fs.set_mtime(fd, posix.mtime_ns)
    return posix_of(fs.stat_fd(fd))
