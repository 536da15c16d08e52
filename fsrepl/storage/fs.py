"""Every system call we make, one verb each, and no opinion about any of them.

Paths are a directory's descriptor and a name, so that nobody who can write in a region makes us
act elsewhere: directories below a region are opened with openat2(2), which refuses symlinks,
`..` and, inside a bucket, other mounts. Whether something is another mount is asked of the kernel in
this one way, RESOLVE_NO_XDEV; device numbers do not tell: a bind mount has the same one, a btrfs subvolume
has its own and is no mount, and on an overlay filesystem a file may have another than its directory.
The calls that change something are listed in MUTATIONS: a test replaces them to stop the world at any
one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

if hasattr(os, "setxattr"):
    _xattr = os
else:  # Python has these on Linux only
    import xattr as _xattr  # type: ignore[no-redef]

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPENAT2, _SYS_FACCESSAT2 = 437, 439
_SYS_SETGROUPS = {
    "x86_64": 116, "aarch64": 159, "riscv64": 159, "loongarch64": 159, "ppc64le": 81, "s390x": 206,
}  # fmt: skip
"""By machine. libc's own setgroups(3) changes all threads, the bare call only the one that makes it."""
_AT_EACCESS, _AT_EMPTY_PATH = 0x200, 0x1000
_KEEP = -1
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_FICLONE = 0x40049409
_CHUNK = 1 << 20
_LONG_BYTES = 64 << 20
_PATH_MAX = 4096
_ZEROS = bytes(_CHUNK)

ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
DOES_NOT_FIT = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.ENAMETOOLONG})
"""What setxattr answers for a name or value that is too large here, which is no reason to fail."""
UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTTY})
GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
NO_FILE = GONE | {errno.ELOOP, errno.ENXIO}
"""What opening a name answers where there is no file of that name: nothing, a link, or a socket."""
LASTING = NO_FILE | {errno.EACCES, errno.EPERM, errno.EXDEV, errno.ENAMETOOLONG}
"""What opening a name answers, and will again: there is no such file here, or it is not for us. All else may pass."""

MUTATIONS = (
    "create",
    "append",
    "write",
    "truncate",
    "set_attribute",
    "remove_attribute",
    "set_acl",
    "remove_acl",
    "set_default_acl",
    "remove_default_acl",
    "chmod",
    "chown",
    "set_mtime",
    "make_dir",
    "remove_dir",
    "rename",
    "rename_new",
    "exchange",
    "link",
    "unlink",
    "clone",
    "copy",
    "sync_file",
    "sync_all",
)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _how(flags: int, resolve: int) -> _OpenHow:
    return _OpenHow(flags | os.O_CLOEXEC, 0, resolve)


_DIR = os.O_RDONLY | os.O_DIRECTORY
_HOW_CROSS = _how(_DIR, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
_HOW_READ = _how(os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, _RESOLVE_NO_XDEV)
_HOW_LOOK = _how(os.O_PATH | os.O_NOFOLLOW, _RESOLVE_NO_XDEV)
_HOW_WITHIN = _how(_DIR, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV)


_NOATIME = getattr(os, "O_NOATIME", 0)
_UNSEEN = {
    id(how): _how(how.flags | _NOATIME, how.resolve) for how in (_HOW_CROSS, _HOW_WITHIN, _HOW_READ)
}  # fmt: skip


def _open_unseen(at: int, path: bytes, how: _OpenHow) -> int:
    """Open a file or a directory to read, so that its atime stays as it is where we may do that.

    atime is for what its users read: they find unused files by it. Only the owner and root may leave it alone;
    others get EPERM, whatever else they may do. Source: open(2), O_NOATIME.
    """
    try:
        return _openat2(at, path, _UNSEEN[id(how)])
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return _openat2(at, path, how)


def _openat2(at: int, path: bytes, how: _OpenHow) -> int:
    fd: int = _libc.syscall(_SYS_OPENAT2, at, path, ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        raise _fail(path)
    return fd


def _fail(name: bytes | str = "") -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def _attribute_of(file: int | str, name: str) -> bytes | None:
    try:
        return _xattr.getxattr(file, name)
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in UNSUPPORTED:
            return None
        raise


def _remove_if_there(fd: int, name: str) -> None:
    try:
        _on_inode(fd, lambda file: _xattr.removexattr(file, name))
    except OSError as error:
        if error.errno != errno.ENODATA and error.errno not in UNSUPPORTED:
            raise


def _on_inode(fd: int, change: Callable[[int | str], object]) -> None:
    """Do something to an open file; through /proc where it is a descriptor of open_inode, which takes no changes."""
    try:
        change(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        change(f"/proc/self/fd/{fd}")


def _set_thread_groups(groups: list[int]) -> None:
    number = _SYS_SETGROUPS.get(platform.machine())
    if number is None:
        raise PermissionError(errno.EPERM, f"a thread's groups cannot be changed on {platform.machine()}")
    if _libc.syscall(number, len(groups), struct.pack(f"{len(groups)}I", *groups)):
        raise _fail()


@contextlib.contextmanager
def _thread_id(change: Callable[[int], int], wanted: int) -> Iterator[None]:
    """Set the user or the group with which this thread uses files. The call does not say whether it worked: ask it."""
    before = change(wanted)
    try:
        if ctypes.c_uint32(change(_KEEP)).value != wanted:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        yield
    finally:
        change(before)


_REMOTE = frozenset(
    {0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x65735546, 0x01021997, 0x00C36400, 0x5346414F, 0x0BD00BD0}
)
"""NFS, SMB 1 to 3, FUSE, 9p, Ceph, AFS, Lustre: f_type of statfs(2) where files live on another machine, or may."""
_CHANGES = 8


class Fs:
    """The machine's filesystems. Every method raises OSError as the kernel answers it."""

    read_only = False
    interrupted = False
    """The process is about to end: who is in the midst of reading a long file gives up."""
    released: Callable[[], contextlib.AbstractContextManager[None]] = staticmethod(contextlib.nullcontext)
    """Around what waits for a disk: other threads may have the interpreter meanwhile. See region/run_lock.py."""
    owner: int | None = None
    """Whose site this is, where root looks at that of another user: it believes what that user's daemon believes."""

    @property
    def uid(self) -> int:
        """The user whose stores and documents are believed, beside root."""
        return os.geteuid() if self.owner is None else self.owner

    # -- looking

    def open_root(self, path: str | os.PathLike[str]) -> int:
        """A directory by its whole path, links in it included: for the roots that settings name."""
        return os.open(path, _DIR | os.O_CLOEXEC)

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        """A directory below another. ELOOP for a symlink on the way, EXDEV for another mount unless cross."""
        if not path:
            path = b"."
        how = _HOW_CROSS if cross else _HOW_WITHIN
        if len(path) < _PATH_MAX:
            return _open_unseen(at, path, how)
        fd, way = -1, at
        while path:  # a path that is too long for one call, as `cd` and `mkdir` in turns make them
            cut = len(path) if len(path) < _PATH_MAX else path.rindex(b"/", 0, _PATH_MAX)
            try:
                fd = _open_unseen(way, path[:cut], how)
            finally:
                if way != at:
                    os.close(way)
            way, path = fd, path[cut + 1 :]
        return fd

    def open_read(self, at: int, name: bytes) -> int:
        """A file to read: never a link's target, never waiting for a FIFO's writer. EXDEV where it is another mount.

        EWOULDBLOCK, BlockingIOError, where somebody holds a write lease on it, as file servers do for their clients:
        it is open for writing. Whoever holds it is asked to give it back, and has to within lease-break-time.
        Reading changes no atime where we may leave it.
        Source: open(2), fcntl(2).
        """
        return _open_unseen(at, name, _HOW_READ)

    def open_inode(self, at: int, name: bytes) -> int:
        """A file that need not be readable, never a link's target: to look at and to change mode, owner and times."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)

    def is_mount(self, at: int, name: bytes) -> bool:
        """Whether another filesystem, or a file or directory of this one, is mounted over a name."""
        try:
            os.close(_openat2(at, name, _HOW_LOOK))
        except OSError as error:
            return error.errno == errno.EXDEV
        return False

    def close(self, fd: int) -> None:
        os.close(fd)

    def stat(self, at: int, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=at, follow_symlinks=False)

    def stat_fd(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def entries(self, fd: int) -> Iterator[os.DirEntry[str]]:
        """The entries of an open directory. Names are str, as os.fsdecode gives them."""
        with os.scandir(fd) as entries:
            yield from entries

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        """At most so many bytes of a file, leaving the descriptor's own offset alone."""
        return os.pread(fd, size, at)

    def read_all(self, fd: int, size_hint: int = 0) -> bytes:
        """A small file whole."""
        wanted = max(size_hint + 1, 65536)
        data = os.read(fd, wanted)
        if len(data) == size_hint < wanted:
            return data  # a read that comes short of what was asked for has met the end
        parts = [data]
        while data:
            parts.append(data := os.read(fd, wanted))
        return b"".join(parts)

    def chunks(self, fd: int, at: int = 0) -> Iterator[bytes]:
        """A file from an offset to its end, a mebibyte at a time at most, leaving the descriptor's own offset alone.

        Holes are not read: they come as zeros, apart from the data around them. ECANCELED in the midst of a long
        one when this is interrupted.
        """
        began_at = until = at
        found = os.fstat(fd)
        has_holes = found.st_blocks * 512 < found.st_size
        while True:
            most = _CHUNK
            if has_holes:
                if at >= until:
                    size = os.fstat(fd).st_size
                    start, until = self.next_data(fd, at, size)
                    if at < start:
                        until = start
                        yield from self._zeros(start - at)
                        at = start
                        continue
                most = min(_CHUNK, until - at)
            if not (data := os.pread(fd, most, at)):
                return
            yield data
            at += len(data)
            if self.interrupted and at - began_at >= _LONG_BYTES:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def _zeros(self, count: int) -> Iterator[bytes]:
        for left in range(count, 0, -_CHUNK):
            yield _ZEROS if left >= _CHUNK else _ZEROS[:left]
            if self.interrupted and count >= _LONG_BYTES:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def next_data(self, fd: int, at: int, size: int) -> tuple[int, int]:
        """From where to where the next data of a file is that is no hole; both are size where there is none."""
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            return (size if error.errno == errno.ENXIO else at), size  # elsewhere holes cannot be told

    def attribute_names(self, fd: int) -> list[str]:
        return _xattr.listxattr(fd)

    def attributes(self, fd: int) -> dict[str, bytes]:
        """All user.* attributes of an open file."""
        out = {}
        for name in _xattr.listxattr(fd):
            if name.startswith("user."):
                with contextlib.suppress(FileNotFoundError):
                    out[name] = self.attribute(fd, name) or b""
        return out

    def attribute(self, fd: int, name: str) -> bytes | None:
        return _attribute_of(fd, name)

    def acl(self, fd: int) -> bytes | None:
        """The access ACL of a file, raw; also of one opened by open_inode."""
        try:
            return self.attribute(fd, ACL)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return _attribute_of(f"/proc/self/fd/{fd}", ACL)

    def default_acl(self, fd: int) -> bytes | None:
        """What a directory gives to everything that is made in it, raw."""
        return self.attribute(fd, DEFAULT_ACL)

    def is_written(self, fd: int) -> bool | None:
        """Whether somebody has this file open for writing, by asking for a read lease and giving it back.

        None where that cannot be known: not our file, or no leases here. Source: fcntl(2), F_SETLEASE.
        """
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return True if error.errno == errno.EAGAIN else None
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def is_remote(self, fd: int) -> bool:
        """Whether files here live on another machine, or in another program, which makes their times."""
        answer = ctypes.create_string_buffer(512)  # a struct statfs, whose first member is f_type, a long
        if _libc.fstatfs(fd, answer):
            raise _fail()
        return ctypes.c_ulong.from_buffer(answer).value in _REMOTE

    def change_times(self, at: int) -> list[int]:
        """The ctimes that a few changes leave which follow each other at once, each looked at before the next.

        Of an unnamed file: nothing is left of it.
        """
        fd = self.create_unnamed(at)
        try:
            found = []
            for number in range(_CHANGES):
                os.fchmod(fd, 0o600 if number % 2 else 0o400)
                found.append(os.fstat(fd).st_ctime_ns)
            return found
        finally:
            os.close(fd)

    def mounts(self) -> bytes:
        """Where filesystems are mounted, as this process sees it; nothing where that cannot be known.

        Source: proc_pid_mountinfo(5): the fifth field of a line, with blanks and the like as octal numbers.
        """
        try:
            with open("/proc/self/mountinfo", "rb") as table:
                return table.read()
        except OSError:
            return b""

    def space(self, fd: int) -> tuple[int, int]:
        """Bytes free for ordinary users, and bytes in all."""
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def is_regular(self, found: os.stat_result) -> bool:
        return stat.S_ISREG(found.st_mode)

    # -- as somebody else

    @contextlib.contextmanager
    def acting_as(self, uid: int, gid: int) -> Iterator[None]:
        """What this thread does to files inside is done with the rights of this user and group, and of no other group.

        The other threads keep theirs: on Linux these identities belong to a thread. From root to another,
        the capabilities that override file permissions go with it, and come back. Nothing but looking is
        done inside. Raises PermissionError where we may not become that. Source: setfsuid(2),
        capabilities(7), nptl(7).
        """
        before = os.getgroups()
        _set_thread_groups([])
        try:
            with _thread_id(_libc.setfsgid, gid), _thread_id(_libc.setfsuid, uid):
                yield
        finally:
            _set_thread_groups(before)

    def may(self, fd: int, wanted: int) -> bool:
        """Whether this thread, as it is now, may use an open file or directory so: os.R_OK | os.W_OK | os.X_OK.

        libc's own faccessat(3) may ask for the process as it was; the kernel's asks for the thread.
        """
        if not _libc.syscall(_SYS_FACCESSAT2, fd, b"", wanted, _AT_EACCESS | _AT_EMPTY_PATH):
            return True
        if ctypes.get_errno() in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise _fail()

    # -- changing

    def create(self, at: int, name: bytes) -> int:
        """A new file for writing and reading, 0600 whatever the umask."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=at)

    def create_unnamed(self, at: int) -> int:
        """A file for writing that is in no directory, and gone when it is closed. Source: open(2), O_TMPFILE."""
        return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=at)

    def append(self, at: int, name: bytes) -> int:
        """A file to add to, made 0600 if need be."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=at)

    def write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def write_sparse(self, fd: int, chunks: Iterable[bytes]) -> None:
        """Write a new file from its start, leaving holes where a whole chunk is zeros."""
        size, in_hole = 0, False
        for chunk in chunks:
            # comparing ends at the first byte that is none
            in_hole = chunk == (_ZEROS if len(chunk) == _CHUNK else _ZEROS[: len(chunk)])
            if in_hole:
                os.lseek(fd, len(chunk), os.SEEK_CUR)
            else:
                self.write(fd, chunk)
            size += len(chunk)
        if in_hole:
            self.truncate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        _xattr.setxattr(fd, name, value)

    def remove_attribute(self, fd: int, name: str) -> None:
        _xattr.removexattr(fd, name)

    def set_acl(self, fd: int, acl: bytes) -> None:
        _on_inode(fd, lambda file: _xattr.setxattr(file, ACL, acl))

    def remove_acl(self, fd: int) -> None:
        """Leave a file with its mode alone. Nothing happens where it has no ACL, or there are none here."""
        _remove_if_there(fd, ACL)

    def set_default_acl(self, fd: int, acl: bytes) -> None:
        _xattr.setxattr(fd, DEFAULT_ACL, acl)

    def remove_default_acl(self, fd: int) -> None:
        """Let a directory give nothing to what is made in it. Nothing happens where it gives nothing."""
        _remove_if_there(fd, DEFAULT_ACL)

    def chmod(self, fd: int, mode: int) -> None:
        _on_inode(fd, lambda file: os.chmod(file, mode))

    def chown(self, fd: int, uid: int, gid: int) -> None:
        _on_inode(fd, lambda file: os.chown(file, uid, gid))

    def give(self, fd: int, uid: int, gid: int) -> bool:
        """Give a file to an owner; whether that could be. It takes root, and an id that is one here.

        EINVAL is what a user namespace answers that does not map such an id. Source: chown(2), user_namespaces(7).
        """
        try:
            self.chown(fd, uid, gid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return False
        return True

    def set_mtime(self, fd: int, mtime_ns: int) -> None:
        _on_inode(fd, lambda file: os.utime(file, ns=(mtime_ns, mtime_ns)))

    def make_dir(self, at: int, name: bytes, mode: int = 0o700) -> None:
        os.mkdir(name, mode, dir_fd=at)

    def remove_dir(self, at: int, name: bytes) -> None:
        os.rmdir(name, dir_fd=at)

    def rename(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        os.rename(name, new_name, src_dir_fd=from_at, dst_dir_fd=to_at)

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        """Rename, but EEXIST where the new name is taken."""
        if _libc.renameat2(from_at, name, to_at, new_name, _RENAME_NOREPLACE):
            raise _fail(new_name)

    def exchange(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        """Swap two names in one step: a reader sees the one file or the other. Source: renameat2(2)."""
        if _libc.renameat2(from_at, name, to_at, new_name, _RENAME_EXCHANGE):
            raise _fail(new_name)

    def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        os.link(name, new_name, src_dir_fd=from_at, dst_dir_fd=to_at, follow_symlinks=False)

    def unlink(self, at: int, name: bytes) -> None:
        os.unlink(name, dir_fd=at)

    def clone(self, to_fd: int, from_fd: int) -> None:
        """Make a file share the other's blocks, copy on write; OSError in UNSUPPORTED where that cannot be."""
        fcntl.ioctl(to_fd, _FICLONE, from_fd)

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        """Copy bytes, from the same offset, through sendfile(2), which never shares blocks; the number copied.

        Not copy_file_range(2): within one filesystem that makes a reflink, and a replica shares no storage.
        """
        os.lseek(to_fd, at, os.SEEK_SET)
        return os.sendfile(to_fd, from_fd, at, count)

    def sync_file(self, fd: int) -> None:
        """Make a file, or the names in a directory, survive a power cut. Source: fsync(2)."""
        with self.released():
            os.fsync(fd)

    def sync_all(self, fd: int) -> None:
        """Make everything written so far on a filesystem survive a power cut. Source: syncfs(2)."""
        with self.released():
            if _libc.syncfs(fd):
                raise _fail()


class ReadingFs(Fs):
    """The same for somebody who only looks: calls that would change something are refused, as on a read-only mount."""

    read_only = True

    def __init__(self) -> None:
        for name in MUTATIONS:
            setattr(self, name, _refuse)


def _refuse(*_args: object, **_more: object) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
