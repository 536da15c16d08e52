"""`.fsrepl` is the daemon's alone: it holds private files, and deleted ones. What opens it to others is undone at once.

`chmod -R a+rX` and `setfacl -R` do that without anybody meaning it. Once the folder at the top is closed nobody gets
to what is below; that is closed after it. Where others could also write nothing is believed any more: the bucket is
offline until a person has said by a command that it shall be. Source: design.md, section 2.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat

from fsrepl.storage.fs import Fs

_OTHERS_READ = 0o055
_OTHERS = 0o077


def is_open(fs: Fs, fd: int) -> bool:
    """Whether others than its owner may look into a folder."""
    return bool(fs.stat_fd(fd).st_mode & _OTHERS_READ)


def close(fs: Fs, fd: int) -> bool:
    """Close a folder of the daemon's own to others, if it is open to them; whether it was. Raises OSError.

    That they could write in it stays to be seen of its mode, and lets them do nothing. Another's is left as it is.
    """
    found = fs.stat_fd(fd)
    if not found.st_mode & _OTHERS_READ or found.st_uid not in (fs.uid, 0):
        return False
    fs.chmod(fd, stat.S_IMODE(found.st_mode) & ~_OTHERS_READ)
    fs.remove_acl(fd)
    fs.remove_default_acl(fd)
    return True


def close_below(fs: Fs, top: int) -> int:
    """Close all that is below a folder of the daemon's own, but what is a view too; how many were open."""
    closed = 0
    todo = [b""]
    while todo:
        path = todo.pop()
        with contextlib.suppress(OSError):
            at = fs.open_dir(top, path)
            try:
                for entry in fs.entries(at):
                    name, found = os.fsencode(entry.name), entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        todo.append(path + b"/" + name if path else name)
                    if found.st_mode & _OTHERS and _is_private(found):
                        _close_entry(fs, at, name, found)
                        closed += 1
            finally:
                fs.close(at)
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
    """The line to type that makes a bucket's `.fsrepl` the daemon's alone again, but for what is a view too."""
    folder = shlex.quote(os.path.join(path, ".fsrepl"))
    private = r"\( -type d -o -links 1 \)"
    return f"find {folder} {private} -exec chown -h {uid}:{gid} {{}} + -exec chmod u=rwX,go= {{}} +"


def command_without(path: str, command: str) -> str:
    """The line to type that does something to all of a bucket but what is the daemon's. command: as of chmod -R."""
    top = shlex.quote(path)
    return f"find {top} -path {shlex.quote(os.path.join(path, '.fsrepl'))} -prune -o -exec {command} {{}} +"
