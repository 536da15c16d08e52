"""System calls: one method each, without decisions.

A path is a directory's descriptor and a name, so that users who can write in a region cannot redirect an operation.
Directories below a region are opened with openat2(2), which refuses symlinks, `..` and, inside a bucket, other mounts.
Only RESOLVE_NO_XDEV identifies another mount. Device numbers do not: a bind mount has the same one, a btrfs subvolume
has its own and is no mount, and on an overlay filesystem a file's may differ from its directory's.

MUTATIONS lists the calls that change something; a test replaces them to stop at any one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import mmap
import os
import platform
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, NoReturn

from fsrepl.storage.mount_table import MountTable

if hasattr(os, "setxattr"):
    _xattr = os
else:  # Python has these only on Linux
    import xattr as _xattr  # type: ignore[no-redef]

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPENAT2, _SYS_FACCESSAT2, _SYS_CACHESTAT = 437, 439, 451
_SYS_SETGROUPS = {
    "x86_64": 116, "aarch64": 159, "riscv64": 159, "loongarch64": 159, "ppc64le": 81, "s390x": 206,
}  # fmt: skip
"""The number of setgroups by machine. libc's setgroups(3) changes all threads, the system call only the calling one."""
_AT_EACCESS, _AT_EMPTY_PATH = 0x200, 0x1000
_KEEP = -1
_PR_SET_PDEATHSIG = 1
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_FICLONE = 0x40049409
_EXTENT_ELSEWHERE = 0x02 | 0x04 | 0x08 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""Flags of an extent whose place is not that of its content: unknown, not allocated yet, encoded, encrypted, not
aligned, inline, in a tail, or not written."""
_LONG = struct.Struct("@l")
_GET_FLAGS, _IMMUTABLE, _APPEND = 2 << 30 | _LONG.size << 16 | ord("f") << 8 | 1, 0x10, 0x20
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 0x01, 0x02
_SYNC_FILE_RANGE_WRITE = 0x02
_FIEMAP = 0xC020660B
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
_FIEMAP_MOST = 256
_FIEMAP_SYNC = 1
_EXTENT_LAST, _EXTENT_SHARED = 0x1, 0x2000
_CHUNK = 1 << 20
_LONG_BYTES = 64 << 20
_PATH_MAX = 4096
_ZEROS = bytes(_CHUNK)

ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
DOES_NOT_FIT = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.ENAMETOOLONG})
"""Errors of setxattr for a name or value that is too large here, which are no failure."""
UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTTY})
GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
NO_FILE = GONE | {errno.ELOOP, errno.ENXIO}
"""Errors of opening a name that has no regular file: it is missing, a link, or a socket."""
BAD_BLOCK = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
"""Errors of reading a file of which a block is lost: by the disk, or by the filesystem's checksums."""
LASTING = NO_FILE | {errno.EACCES, errno.EPERM, errno.EXDEV, errno.ENAMETOOLONG}
"""Errors of opening a name that do not pass by themselves: there is no such file, or access is denied."""

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
    "symlink",
    "unlink",
    "clone",
    "copy",
    "copy_within",
    "write_at",
    "reserve",
    "punch",
    "sync_file",
    "sync_all",
)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _How(NamedTuple):
    """How to open: as struct open_how, and the same without a change of the atime."""

    plain: object
    unseen: object


def _how(flags: int, resolve: int) -> _How:
    ways = (_OpenHow(flags | more | os.O_CLOEXEC, 0, resolve) for more in (0, _NOATIME))
    return _How(*map(ctypes.byref, ways))  # made once, since it takes as long as the call


_MOUNTS = MountTable()
_NOATIME = getattr(os, "O_NOATIME", 0)
_HOW_BYTES = ctypes.sizeof(_OpenHow)
_ATTRIBUTE_BYTES = 512
"""Most attributes are not longer, records included."""
_Attribute = ctypes.c_char * _ATTRIBUTE_BYTES


_DIR = os.O_RDONLY | os.O_DIRECTORY
_HOW_CROSS = _how(_DIR, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
_HOW_READ = _how(os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, _RESOLVE_NO_XDEV)
_HOW_LOOK = _how(os.O_PATH | os.O_NOFOLLOW, _RESOLVE_NO_XDEV)
_HOW_WITHIN = _how(_DIR, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV)


def _open_unseen(at: int, path: bytes, how: _How) -> int:
    """Open a file or a directory to read, leaving its atime unchanged where permitted.

    Users find unused files by atime, so it must show only their reads. Only the owner and root may leave it unchanged;
    others get EPERM, whatever else they may do. Source: open(2), O_NOATIME.
    """
    try:
        return _openat2(at, path, how.unseen)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return _openat2(at, path, how.plain)


def _openat2(at: int, path: bytes, how: object) -> int:
    fd: int = _libc.syscall(_SYS_OPENAT2, at, path, how, _HOW_BYTES)
    if fd < 0:
        raise _fail(path)
    return fd


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, for whatever reason; on Linux alone.

    Source: PR_SET_PDEATHSIG(2const).
    """
    if (prctl := getattr(_libc, "prctl", None)) is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _fail(name: bytes | str = "") -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def _attribute_of(file: int | str, name: str) -> bytes | None:
    if isinstance(file, int) and hasattr(os, "getxattr"):
        # os.getxattr makes a second call, with a buffer of 64 KiB, for more than 128 bytes, as most records have
        buffer = _Attribute()
        size: int = _libc.fgetxattr(file, name.encode(*_NAME_CODE), buffer, _ATTRIBUTE_BYTES)
        if size >= 0:
            return buffer.raw[:size]
        number = ctypes.get_errno()
        if number == errno.ENODATA or number in UNSUPPORTED:
            return None
        if number != errno.ERANGE:
            raise _fail(name)
    try:
        return _xattr.getxattr(file, name)
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in UNSUPPORTED:
            return None
        raise


def _acl_of(fd: int, name: str) -> bytes | None:
    try:
        return _attribute_of(fd, name)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return _attribute_of(f"/proc/self/fd/{fd}", name)


def _remove_if_there(fd: int, name: str) -> None:
    try:
        _on_inode(fd, _xattr.removexattr, name)
    except OSError as error:
        if error.errno != errno.ENODATA and error.errno not in UNSUPPORTED:
            raise


def _on_inode(fd: int, change: Callable[..., object], *values: object, **more: object) -> None:
    """Change an open file; through /proc for a descriptor from open_inode, which does not support changes."""
    try:
        change(fd, *values, **more)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        change(f"/proc/self/fd/{fd}", *values, **more)


def _set_thread_groups(groups: list[int]) -> None:
    number = _SYS_SETGROUPS.get(platform.machine())
    if number is None:
        raise PermissionError(errno.EPERM, f"a thread's groups cannot be changed on {platform.machine()}")
    if _libc.syscall(number, len(groups), struct.pack(f"{len(groups)}I", *groups)):
        raise _fail()


@contextlib.contextmanager
def _thread_id(change: Callable[[int], int], wanted: int) -> Iterator[None]:
    """Set the user or group for this thread's file access. The system call reports no failure, so the result is read
    back."""
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
"""NFS, SMB 1 to 3, FUSE, 9p, Ceph, AFS, Lustre: f_type of statfs(2) where files are, or may be, on another machine."""
_CHANGES = 8


class FileType(enum.Enum):
    """The type of an entry of a directory, links not followed."""

    DIRECTORY = enum.auto()
    REGULAR = enum.auto()
    LINK = enum.auto()
    OTHER = enum.auto()
    """A FIFO, a socket or a device."""


def _not_a_file(entry: os.DirEntry[str]) -> FileType:
    return FileType.LINK if entry.is_symlink() else FileType.OTHER


Entry = tuple[bytes, FileType]
"""A name in a directory, and its type. A plain tuple, since large trees have millions of them."""
_NAME_CODE = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""The encoding of os.fsencode, which is slower for one name."""


class Fs:
    """The machine's filesystems. Every method raises OSError as the kernel reports it."""

    read_only = False
    interrupted = False
    """Set when the process is about to end, so that reading a long file is abandoned."""
    released: Callable[[], contextlib.AbstractContextManager[None]] = staticmethod(contextlib.nullcontext)
    """A context around disk waits, during which other threads may run. Source: region/run_lock.py."""
    owner: int | None = None
    """The site's owner, where root inspects another user's site: root then trusts what that user's daemon trusts."""

    @property
    def uid(self) -> int:
        """The user whose stores and documents are trusted, in addition to root."""
        return os.geteuid() if self.owner is None else self.owner

    # -- reading

    def open_root(self, path: str | os.PathLike[str]) -> int:
        """A directory opened by its whole path, following links: for the roots named in settings."""
        return os.open(path, _DIR | os.O_CLOEXEC)

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        """A directory below another. ELOOP for a symlink in the path, EXDEV for another mount unless cross."""
        if not path:
            path = b"."
        how = _HOW_CROSS if cross else _HOW_WITHIN
        if len(path) < _PATH_MAX:
            return _open_unseen(at, path, how)
        fd, way = -1, at
        while path:  # a path too long for one call, as made by repeated `mkdir` and `cd`
            cut = len(path) if len(path) < _PATH_MAX else path.rindex(b"/", 0, _PATH_MAX)
            try:
                fd = _open_unseen(way, path[:cut], how)
            finally:
                if way != at:
                    os.close(way)
            way, path = fd, path[cut + 1 :]
        return fd

    def open_read(self, at: int, name: bytes) -> int:
        """A file opened to read, without following a link or waiting for a FIFO's writer. EXDEV for another mount.

        EWOULDBLOCK, BlockingIOError, where another program has a write lease on the file, as file servers do for their
        clients: the file is open for writing. The kernel then asks the holder to release the lease within
        lease-break-time. The atime is unchanged where permitted. Source: open(2), fcntl(2).
        """
        return _open_unseen(at, name, _HOW_READ)

    def open_inode(self, at: int, name: bytes) -> int:
        """A file that need not be readable, without following a link: to inspect, and to change mode, owner and
        times."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)

    def is_mount(self, at: int, name: bytes) -> bool:
        """Whether another filesystem, or a file or directory of the same one, is mounted over a name."""
        try:
            os.close(_openat2(at, name, _HOW_LOOK.plain))
        except OSError as error:
            return error.errno == errno.EXDEV
        return False

    def read_link(self, fd: int) -> bytes:
        """The target of a symlink from open_inode. Source: readlink(2), the empty path."""
        return os.readlink(b"", dir_fd=fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def stat(self, at: int, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=at, follow_symlinks=False)

    def stat_fd(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def entries(self, fd: int) -> Iterator[Entry]:
        """The entries of an open directory, in no order, one at a time however many there are."""
        code, errors = _NAME_CODE
        regular = FileType.REGULAR
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    yield entry.name.encode(code, errors), regular
                else:
                    kind = FileType.DIRECTORY if entry.is_dir(follow_symlinks=False) else _not_a_file(entry)
                    yield entry.name.encode(code, errors), kind

    def names(self, fd: int) -> list[bytes]:
        """The names in an open directory, in no order."""
        return [name.encode(*_NAME_CODE) for name in os.listdir(fd)]

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        """Up to `size` bytes of a file, without moving the descriptor's offset."""
        return os.pread(fd, size, at)

    def read_all(self, fd: int, size_hint: int = 0) -> bytes:
        """The whole content of a small file."""
        wanted = max(size_hint + 1, 65536)
        data = os.read(fd, wanted)
        if len(data) == size_hint < wanted:
            return data  # a short read has reached the end
        parts = [data]
        while data:
            parts.append(data := os.read(fd, wanted))
        return b"".join(parts)

    def chunks(self, fd: int, at: int = 0) -> Iterator[bytes]:
        """The content of a file from an offset on, in chunks of up to one MiB, without moving the descriptor's offset.

        Holes are not read: zeros are returned, separate from the data around them. ECANCELED during a long file when
        interrupted.
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
                        yield from self.zeros(start - at)
                        at = start
                        continue
                most = min(_CHUNK, until - at)
            if not (data := os.pread(fd, most, at)):
                return
            yield data
            at += len(data)
            if self.interrupted and at - began_at >= _LONG_BYTES:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def zeros(self, count: int) -> Iterator[bytes]:
        """Zeros, the content of a hole of `count` bytes, in chunks of up to one MiB. ECANCELED as with chunks."""
        for left in range(count, 0, -_CHUNK):
            yield _ZEROS if left >= _CHUNK else _ZEROS[:left]
            if self.interrupted and count >= _LONG_BYTES:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def next_data(self, fd: int, at: int, size: int) -> tuple[int, int]:
        """The start and end of a file's next data, skipping holes; both are size where none follows."""
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            return (size if error.errno == errno.ENXIO else at), size  # ENXIO: no data follows; else holes are unknown

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        """Read a part of a file into a buffer; the number of bytes read, fewer at the end of the file."""
        return os.preadv(fd, [buffer], at)

    def extents(self, fd: int) -> Iterator[tuple[int, int, int]]:
        """Where the content of an open file lies: place in the file, place on the disk, size in bytes, in order.

        Two files with equal extents have equal content, since they share it. What is reserved beyond the end of a file,
        as xfs does for one that grows, is no part of it. Raises OSError in UNSUPPORTED where a place is not that of the
        content itself, as of what is compressed, inline or not written yet. Source: the kernel's
        Documentation/filesystems/fiemap.rst.
        """
        end = os.fstat(fd).st_size
        for at, place, size, flags in self._extents(fd, _FIEMAP_SYNC):
            if at >= end:
                return
            if flags & _EXTENT_ELSEWHERE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            yield at, place, size

    def _extents(self, fd: int, request_flags: int = 0) -> Iterator[tuple[int, int, int, int]]:
        """The extents of an open file: place in the file, place on the disk, size in bytes, flags. Raises OSError."""
        at, is_last = 0, False
        while not is_last:
            request = bytearray(_FIEMAP_HEAD.size + _FIEMAP_MOST * _FIEMAP_EXTENT.size)
            _FIEMAP_HEAD.pack_into(request, 0, at, (1 << 64) - 1 - at, request_flags, 0, _FIEMAP_MOST, 0)
            fcntl.ioctl(fd, _FIEMAP, request)
            mapped = _FIEMAP_HEAD.unpack_from(request)[3]
            if not mapped:
                return
            end = _FIEMAP_HEAD.size + mapped * _FIEMAP_EXTENT.size
            for found in _FIEMAP_EXTENT.iter_unpack(memoryview(request)[_FIEMAP_HEAD.size : end]):
                yield found
                at, is_last = found[0] + found[2], bool(found[3] & _EXTENT_LAST)

    def bypass_cache(self, fd: int, *, on: bool = True) -> bool:
        """Have an open file read from the disk and written to it, past the page cache; whether the filesystem can.

        Buffers, offsets and counts must then be multiples of a block. Source: open(2), O_DIRECT.
        """
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        except OSError as error:
            if error.errno not in UNSUPPORTED and error.errno != errno.EPERM:
                raise
            return False
        return on

    def is_cached(self, fd: int, at: int, count: int) -> bool:
        """Whether any of a part of a file is in the page cache; False where the kernel cannot say: see cached_bytes."""
        return self.cached_bytes(fd, at, count) > 0

    def cached_bytes(self, fd: int, at: int, count: int) -> int:
        """How much of a part of a file is in the page cache; 0 where the kernel cannot say (before Linux 6.5).

        Source: mm/filemap.c, cachestat.
        """
        part, answer = struct.pack("QQ", at, count), ctypes.create_string_buffer(5 * 8)
        if _libc.syscall(_SYS_CACHESTAT, fd, part, answer, 0):
            return 0
        return ctypes.c_uint64.from_buffer(answer).value * mmap.PAGESIZE

    def read_ahead_never(self, fd: int) -> None:
        """Have no more of an open file read into the page cache than is asked for. Source: posix_fadvise(2)."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def drop_cache(self, fd: int, at: int = 0, count: int = 0) -> None:
        """Drop a part of a file from the page cache, as far as it is on the disk; without a count, up to its end.

        The next read comes from the disk. Source: posix_fadvise(2), POSIX_FADV_DONTNEED.
        """
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, at, count, os.POSIX_FADV_DONTNEED)

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
        """The raw access ACL of a file; also for one from open_inode."""
        return _acl_of(fd, ACL)

    def default_acl(self, fd: int) -> bytes | None:
        """The raw default ACL of a directory, which files created in it inherit; also for one from open_inode."""
        return _acl_of(fd, DEFAULT_ACL)

    def is_written(self, fd: int, *, closed_next: bool = False) -> bool | None:
        """Whether any program has this file open for writing, tested by taking a read lease and releasing it.

        None where unknown: another owner's file, or no support for leases. closed_next: the caller closes the file
        next, which releases the lease. Source: fcntl(2), F_SETLEASE.
        """
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return True if error.errno == errno.EAGAIN else None
        if not closed_next:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def is_locked(self, fd: int) -> bool:
        """Whether nobody may remove a file, root included: it is immutable, or may only be appended to (chattr +i, +a).

        Source: ioctl_iflags(2).
        """
        flags = bytearray(_LONG.size)
        try:
            fcntl.ioctl(fd, _GET_FLAGS, flags)
        except OSError:
            return False  # the filesystem has no such flags
        return bool(_LONG.unpack(flags)[0] & (_IMMUTABLE | _APPEND))

    def is_remote(self, fd: int) -> bool:
        """Whether files here are on another machine or in another program, which sets their times."""
        answer = ctypes.create_string_buffer(512)  # a struct statfs, whose first member is f_type, a long
        if _libc.fstatfs(fd, answer):
            raise _fail()
        return ctypes.c_ulong.from_buffer(answer).value in _REMOTE

    def change_times(self, at: int) -> list[int]:
        """The ctimes of a few changes made in quick succession, each read before the next change.

        The changes affect an unnamed file, of which nothing remains.
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
        """The mount points that this process sees; empty where unknown.

        Source: proc_pid_mountinfo(5): the fifth field of a line, with blanks and the like as octal numbers.
        """
        try:
            return _MOUNTS.lines()
        except OSError:
            return b""

    def shared_extents(self, fd: int) -> list[tuple[int, int]]:
        """The parts of an open file that other files share by reflinks: (position on the disk, length) in bytes each.

        None of a filesystem that does not tell. Source: ioctl FS_IOC_FIEMAP, FIEMAP_EXTENT_SHARED.
        """
        try:
            return [(place, size) for _, place, size, flags in self._extents(fd) if flags & _EXTENT_SHARED]
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return []
            raise

    def space(self, fd: int) -> tuple[int, int]:
        """Bytes free for ordinary users, and the total."""
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def room(self, fd: int) -> tuple[int, int]:
        """Bytes and inodes free for ordinary users; very many of these where the filesystem does not count them."""
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else 1 << 62

    def is_regular(self, found: os.stat_result) -> bool:
        return stat.S_ISREG(found.st_mode)

    def is_directory(self, found: os.stat_result) -> bool:
        return stat.S_ISDIR(found.st_mode)

    def is_link(self, found: os.stat_result) -> bool:
        return stat.S_ISLNK(found.st_mode)

    # -- as another user

    @contextlib.contextmanager
    def acting_as(self, uid: int, gid: int) -> Iterator[None]:
        """Give this thread's file access the rights of a user and group, and of no other group, inside a `with` block.

        Other threads keep their rights, since on Linux these identities belong to a thread. When root becomes another
        user, the capabilities that override file permissions are dropped, and restored afterwards. Only checks are made
        inside. Raises PermissionError where the change is not permitted. Source: setfsuid(2), capabilities(7), nptl(7).
        """
        before = os.getgroups()
        _set_thread_groups([])
        try:
            with _thread_id(_libc.setfsgid, gid), _thread_id(_libc.setfsuid, uid):
                yield
        finally:
            _set_thread_groups(before)

    def may(self, fd: int, wanted: int) -> bool:
        """Whether this thread, with its current rights, has access to an open file or directory: os.R_OK | os.W_OK |
        os.X_OK.

        libc's faccessat(3) may use the rights of the process; the system call uses the thread's.
        """
        if not _libc.syscall(_SYS_FACCESSAT2, fd, b"", wanted, _AT_EACCESS | _AT_EMPTY_PATH):
            return True
        if ctypes.get_errno() in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise _fail()

    # -- writing

    def create(self, at: int, name: bytes) -> int:
        """A new file opened for reading and writing, 0600 whatever the umask."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=at)

    def create_unnamed(self, at: int) -> int:
        """A file opened for writing without a name, which disappears when closed. Source: open(2), O_TMPFILE."""
        return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=at)

    def open_staged(self, at: int, name: bytes) -> int:
        """A file of the daemon opened for reading and writing."""
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)

    def lock(self, fd: int) -> bool:
        """Lock an open file against other uses of this lock, until it is closed; whether that succeeded."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def append(self, at: int, name: bytes) -> int:
        """A file opened to append, created with 0600 if missing."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=at)

    def write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def write_sparse(self, fd: int, chunks: Iterable[bytes], at: int = 0) -> int:
        """Write a file from its end at `at` on, with holes where a whole chunk is zeros; its size then."""
        size, in_hole = at, False
        if at:
            os.lseek(fd, at, os.SEEK_SET)
        for chunk in chunks:
            # the comparison ends at the first nonzero byte
            in_hole = chunk == (_ZEROS if len(chunk) == _CHUNK else _ZEROS[: len(chunk)])
            if in_hole:
                os.lseek(fd, len(chunk), os.SEEK_CUR)
            else:
                self.write(fd, chunk)
            size += len(chunk)
        if in_hole:
            self.truncate(fd, size)
        return size

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        _xattr.setxattr(fd, name, value)

    def remove_attribute(self, fd: int, name: str) -> None:
        _xattr.removexattr(fd, name)

    def set_acl(self, fd: int, acl: bytes) -> None:
        _on_inode(fd, _xattr.setxattr, ACL, acl)

    def remove_acl(self, fd: int) -> None:
        """Remove a file's access ACL, leaving its mode. No effect without an ACL or ACL support."""
        _remove_if_there(fd, ACL)

    def set_default_acl(self, fd: int, acl: bytes) -> None:
        _xattr.setxattr(fd, DEFAULT_ACL, acl)

    def remove_default_acl(self, fd: int) -> None:
        """Remove a directory's default ACL. No effect without one."""
        _remove_if_there(fd, DEFAULT_ACL)

    def chmod(self, fd: int, mode: int) -> None:
        _on_inode(fd, os.chmod, mode)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        _on_inode(fd, os.chown, uid, gid)

    def give(self, fd: int, uid: int, gid: int) -> bool:
        """Set a file's owner; whether that succeeded. Only root may do so, and only with an id that is mapped here.

        A user namespace returns EINVAL for an unmapped id. Source: chown(2), user_namespaces(7).
        """
        try:
            self.chown(fd, uid, gid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return False
        return True

    def set_mtime(self, fd: int, mtime_ns: int) -> None:
        _on_inode(fd, os.utime, ns=(mtime_ns, mtime_ns))

    def make_dir(self, at: int, name: bytes, mode: int = 0o700) -> None:
        os.mkdir(name, mode, dir_fd=at)

    def remove_dir(self, at: int, name: bytes) -> None:
        os.rmdir(name, dir_fd=at)

    def rename(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        os.rename(name, new_name, src_dir_fd=from_at, dst_dir_fd=to_at)

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        """Rename a file; EEXIST where the new name exists."""
        if _libc.renameat2(from_at, name, to_at, new_name, _RENAME_NOREPLACE):
            raise _fail(new_name)

    def exchange(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        """Exchange two names atomically: a reader sees one file or the other. Source: renameat2(2)."""
        if _libc.renameat2(from_at, name, to_at, new_name, _RENAME_EXCHANGE):
            raise _fail(new_name)

    def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        os.link(name, new_name, src_dir_fd=from_at, dst_dir_fd=to_at, follow_symlinks=False)

    def symlink(self, target: bytes, at: int, name: bytes) -> None:
        os.symlink(target, name, dir_fd=at)

    def unlink(self, at: int, name: bytes) -> None:
        os.unlink(name, dir_fd=at)

    def clone(self, to_fd: int, from_fd: int) -> None:
        """Make a file share another's blocks, copy on write; OSError in UNSUPPORTED where the filesystem cannot."""
        fcntl.ioctl(to_fd, _FICLONE, from_fd)

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        """Copy bytes, to the same offset, with sendfile(2), which never shares blocks; the number copied.

        copy_file_range(2) is not used: within one filesystem it makes a reflink, and a replica must share no storage.
        """
        os.lseek(to_fd, at, os.SEEK_SET)
        return os.sendfile(to_fd, from_fd, at, count)

    def copy_within(
        self, from_fd: int, to_fd: int, from_at: int, to_at: int, count: int, *, share: bool = True
    ) -> int:  # fmt: skip
        """Copy bytes within one bucket; the number copied. share: with shared blocks where the filesystem can.

        copy_file_range(2) shares blocks; sendfile(2) does not, and serves where the kernel refuses the pair of files.
        """
        if share:
            try:
                return os.copy_file_range(from_fd, to_fd, count, from_at, to_at)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        os.lseek(to_fd, to_at, os.SEEK_SET)
        return os.sendfile(to_fd, from_fd, from_at, count)

    def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done

    def reserve(self, fd: int, at: int, count: int) -> bool:
        """Reserve space for a part of a file, whose size is unchanged; False where the filesystem cannot.

        Raises ENOSPC at once where there is not enough. Source: fallocate(2).
        """
        return self._allocate(fd, _FALLOC_KEEP_SIZE, at, count)

    def punch(self, fd: int, at: int, count: int) -> bool:
        """Make a part of a file a hole; False where the filesystem cannot."""
        return self._allocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, at, count)

    def _allocate(self, fd: int, mode: int, at: int, count: int) -> bool:
        if not _libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(count)):
            return True
        if ctypes.get_errno() in UNSUPPORTED:
            return False
        raise _fail()

    def start_writing(self, fd: int, at: int, count: int) -> None:
        """Have the kernel begin to write a part of a file to the disk, so that a later sync takes less time.

        It makes nothing durable. Source: sync_file_range(2).
        """
        _libc.sync_file_range(fd, ctypes.c_long(at), ctypes.c_long(count), _SYNC_FILE_RANGE_WRITE)

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
    """The filesystems for a reader: calls that would change something are refused, as on a read-only mount."""

    read_only = True

    def __init__(self) -> None:
        for name in MUTATIONS:
            setattr(self, name, _refuse)


def _refuse(*_args: object, **_more: object) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
