"""Privacy of `.fsrepl`: access by others is withdrawn at once, since it contains private and deleted files.

`chmod -R a+rX` and `setfacl -R` grant such access by accident. Closing the folder at the top blocks all paths below,
which are closed next. Where others could also write, the folder is no longer trusted: the bucket is offline until a
person confirms it by a command. Source: design.md, section 2.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat

from fsrepl.storage.fs import Fs
from fsrepl.storage.walk import directories, leave_out

_OTHERS_READ = 0o055
_OTHERS = 0o077


def is_open(found: os.stat_result) -> bool:
    """Whether users other than its owner can look into a folder of this status."""
    return bool(found.st_mode & _OTHERS_READ)


def close(fs: Fs, fd: int) -> bool:
    """Close a folder of the daemon to others, if it is open to them; whether it was. Raises OSError.

    The mode still shows that others could write, but they no longer can. Another user's folder is unchanged.
    """
    found = fs.stat_fd(fd)
    if not found.st_mode & _OTHERS_READ or found.st_uid not in (fs.uid, 0):
        return False
    fs.chmod(fd, stat.S_IMODE(found.st_mode) & ~_OTHERS_READ)
    fs.remove_acl(fd)
    fs.remove_default_acl(fd)
    return True


def close_below(fs: Fs, top: int) -> int:
    """Close everything below a folder of the daemon, except files that are also views; the number of open ones."""
    closed = 0
    for directory in directories(fs, top, failed=leave_out):
        for name, _ in directory.entries:
            with contextlib.suppress(OSError):  # it is gone, or cannot be closed
                found = fs.stat(directory.fd, name)
                if found.st_mode & _OTHERS and _is_private(found):
                    _close_entry(fs, directory.fd, name, found)
                    closed += 1
    return closed


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)


def _close_entry(fs: Fs, at: int, name: bytes, found: os.stat_result) -> None:
    fd = fs.open_inode(at, name)
    try:
        fs.chmod(fd, stat.S_IMODE(found.st_mode) & ~_OTHERS)
    finally:
        fs.close(fd)


def command_to_own(path: str, uid: int, gid: int) -> str:
    """The shell command that makes a bucket's `.fsrepl` the daemon's again, except files that are also views."""
    folder = shlex.quote(os.path.join(path, ".fsrepl"))
    private = r"\( -type d -o -links 1 \)"
    return f"find {folder} {private} -exec chown -h {uid}:{gid} {{}} + -exec chmod u=rwX,go= {{}} +"


def command_without(path: str, command: str) -> str:
    """The shell command for all of a bucket except `.fsrepl`. command: as of chmod -R."""
    top = shlex.quote(path)
    return f"find {top} -path {shlex.quote(os.path.join(path, '.fsrepl'))} -prune -o -exec {command} {{}} +"
