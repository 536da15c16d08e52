"""RunAs: what plain file permissions let the user of a role do, who is not the daemon.

A role with RunAs works as that user and that group, and no other group. Its policy was checked
before (s3/roles.py). This module checks the filesystem, as for a program of that user:

    reading    the object must be readable for the user, by its own mode and ACL, which are in its version's
               record whether or not a view shows it; and each directory on its path must be searchable
    writing    the view's directory, or its nearest existing parent, must be writable for the user; in
               a sticky directory the user must also be allowed to replace the existing file

The stored versions themselves are the daemon's alone (.fsrepl is 0700), so the daemon does the work;
a file it makes has the owner that the source has, as without RunAs (G5). The kernel says what a
directory permits: a thread takes on the user's rights for that one question, which on Linux
concerns no other thread. So ACLs, read-only mounts and all other rules of the kernel count too. A daemon
that is not root cannot work as another user: it serves only roles that run as itself.
Source: s3-semantics, 6.3.
"""

from __future__ import annotations

import errno
import os
import stat

from msgspec import Struct

from fsrepl.errors import Failed
from fsrepl.model import access, keys
from fsrepl.model.rule import Role
from fsrepl.model.version import Version
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE

_NO_DIRECTORY = GONE | {errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}
"""Nothing, or no directory, is at the path of a view's directory: the replica is in the store alone then."""


class RunAs(Struct, frozen=True):
    """A user that a role works as, and that the daemon may work as."""

    uid: int
    gid: int


def run_as(role: Role) -> RunAs | None:
    """The user that a role works as; None where that is the daemon. Raises Failed where the daemon cannot."""
    if role.uid is None or role.gid is None:
        return None
    if os.geteuid() == 0:
        return RunAs(role.uid, role.gid)
    if (role.uid, role.gid) != (os.geteuid(), os.getegid()):
        why = f"role {role.name} runs as {role.uid}:{role.gid}, and the daemon is not root"
        raise Failed("AssumeRoleNotPermitted", why)
    return None  # the daemon's own file work, which permissions restrict already


class RunAsCheck:
    """The permissions of one user in two buckets, during one batch."""

    def __init__(self, user: RunAs, source: OpenBucket, destination: OpenBucket | None) -> None:
        """destination: None where it is no tree, so that no file permits or refuses anything there."""
        self._user = user
        self._from, self._to = _Tree(source, user), _Tree(destination, user) if destination else None

    def refusal(self, version: Version) -> str:
        """S3's reason why a version, or an edit of it, may not be sent; empty where it may. Raises Failed."""
        if not version.marker and not self._may_read(version):
            return "SrcGetObjectNotPermitted"
        if self._to is not None and not self._to.is_writable(version.key):
            return "DstDelObjNotPermitted" if version.marker else "DstPutObjectNotPermitted"
        return ""

    def _may_read(self, version: Version) -> bool:
        user, posix = self._user, version.posix
        if posix is not None and not access.allows(posix, user.uid, [user.gid], access.READ):
            return False
        return self._from.is_searchable(keys.place(version.key)[0])


class _Tree:
    """The directories of a bucket, as a user finds them. A missing directory counts as its nearest existing parent."""

    def __init__(self, bucket: OpenBucket, user: RunAs) -> None:
        self._bucket, self._user = bucket, user
        self._searchable: dict[bytes, bool] = {}
        self._writable: dict[bytes, bool] = {}

    def is_searchable(self, directory: bytes) -> bool:
        """Whether the user may search a directory and each one on its path from the bucket's folder."""
        if directory not in self._searchable:
            fd = self._open(directory)
            here = fd is None or self._may(fd, os.X_OK)
            self._searchable[directory] = here and (not directory or self.is_searchable(keys.split(directory)[0]))
        return self._searchable[directory]

    def is_writable(self, key: bytes) -> bool:
        """Whether the user may make, replace and remove a key's file."""
        directory, name = keys.place(key)
        if directory not in self._writable:
            there = directory
            while there and self._open(there) is None:
                there = keys.split(there)[0]
            fd = self._open(there)
            writable = fd is not None and self._may(fd, os.W_OK | os.X_OK)
            self._writable[directory] = writable and self.is_searchable(there)
        return self._writable[directory] and self._may_replace(directory, name)

    def _may_replace(self, directory: bytes, name: bytes) -> bool:
        """Whether the user may replace a file: in a sticky directory, as one of the two owners. Source: inode(7)."""
        fs, uid = self._bucket.fs, self._user.uid
        fd = self._open(directory)
        if fd is None or uid == 0 or not fs.stat_fd(fd).st_mode & stat.S_ISVTX:
            return True
        try:
            return uid in (fs.stat_fd(fd).st_uid, fs.stat(fd, name).st_uid)
        except FileNotFoundError:
            return True

    def _open(self, directory: bytes) -> int | None:
        try:
            return self._bucket.views.get(directory)
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                return None
            raise

    def _may(self, fd: int, wanted: int) -> bool:
        fs, user = self._bucket.fs, self._user
        try:
            with fs.acting_as(user.uid, user.gid):
                return fs.may(fd, wanted)
        except PermissionError as error:
            why = f"the daemon cannot work as {user.uid}:{user.gid}: {error.strerror}"
            raise Failed("AssumeRoleNotPermitted", why) from error
