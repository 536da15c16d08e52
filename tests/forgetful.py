"""A disk that loses data that was never synced: the worst result of a power cut.

The machine's own filesystems cannot be made to lose data, so changes since the last sync are remembered here, and
undone: contents and metadata of files, names in directories, or both; or, torn, a part of them: any sectors of a file's
content, each file's metadata or not, and of the names those up to one, since a filesystem with a journal keeps their
order. A file or a directory is safe once it was synced itself, or its whole region. Renames stay atomic, as on any
filesystem with a journal: such a change is safe once one of its two directories is.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fsrepl.storage.fs import Fs

Inode = tuple[int, int]


@dataclass(slots=True)
class _File:
    """A file as it was when it was last safe. handle: an O_PATH descriptor, which does not break leases."""

    handle: int
    where: str
    content: bytes
    attributes: dict[str, bytes]
    mode: int
    owner: tuple[int, int]
    mtime_ns: int


@dataclass(slots=True)
class _Names:
    """A change of names in directories, which is lost unless one of them is synced."""

    directories: frozenset[str]
    undo: Callable[[], None]


@dataclass(slots=True)
class _Unsafe:
    files: dict[Inode, _File] = field(default_factory=dict)
    names: list[_Names] = field(default_factory=list)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


class ForgetfulFs(Fs):
    """The real filesystem, which remembers the changes that a power cut would undo. attic: a folder beside the regions
    for removed files."""

    def __init__(self, attic: Path) -> None:
        self._attic = attic
        attic.mkdir()
        self._unsafe = _Unsafe()
        self._kept = 0

    # -- the power cut

    def forget(self, *, files: bool = True, names: bool = True, region: str = "", torn: int | None = None) -> None:
        """Undo all changes that were never synced; of one region only, where that has a disk of its own.

        torn: a seed; a part of them is undone, as it says.
        """
        unsafe, self._unsafe = self._unsafe, _Unsafe()
        part = f"/{region}/" if region else ""
        chance = random.Random(torn)
        kept = 0 if torn is None else chance.randrange(len(unsafe.names) + 1)
        for change in reversed(unsafe.names[kept:]):
            if names and any(part in directory for directory in change.directories):
                with contextlib.suppress(OSError):  # part of it is undone already, with what came after it
                    change.undo()
        for file in unsafe.files.values():
            if files and part in file.where:
                _put_back(file if torn is None else _torn(file, chance))
            os.close(file.handle)

    # -- being safe

    def sync_file(self, fd: int) -> None:
        found = os.fstat(fd)
        if (file := self._unsafe.files.pop((found.st_dev, found.st_ino), None)) is not None:
            os.close(file.handle)
        where = _path(fd)
        self._unsafe.names = [each for each in self._unsafe.names if where not in each.directories]

    def sync_all(self, fd: int) -> None:
        """Sync a whole region, which is one disk in these tests."""
        top = _path(fd).rpartition("/")[0] + "/"
        for inode, file in list(self._unsafe.files.items()):
            if file.where.startswith(top):
                os.close(self._unsafe.files.pop(inode).handle)
        self._unsafe.names = [n for n in self._unsafe.names if not any(d.startswith(top) for d in n.directories)]

    # -- contents and metadata

    def _touch(self, fd: int, *, new: bool = False) -> None:
        """Remember a file as it is, before its first change since it was safe."""
        found = os.fstat(fd)
        inode = (found.st_dev, found.st_ino)
        if inode in self._unsafe.files:
            return
        handle = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
        by_handle = f"/proc/self/fd/{handle}"
        is_file = os.path.isfile(by_handle)
        self._unsafe.files[inode] = _File(
            handle,
            _path(fd),
            b"" if new or not is_file else Path(by_handle).read_bytes(),
            {} if new else {name: os.getxattr(by_handle, name) for name in os.listxattr(by_handle)},
            found.st_mode & 0o7777,
            (found.st_uid, found.st_gid),
            found.st_mtime_ns,
        )

    def create(self, at: int, name: bytes) -> int:
        fd = super().create(at, name)
        self._touch(fd, new=True)
        self._named(at, undo=lambda path: os.unlink(path), name=name)
        return fd

    def append(self, at: int, name: bytes) -> int:
        try:
            os.stat(name, dir_fd=at)
        except FileNotFoundError:
            os.close(self.create(at, name))
        fd = super().append(at, name)
        self._touch(fd)
        return fd

    def write(self, fd: int, data: bytes) -> None:
        self._touch(fd)
        super().write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._touch(fd)
        super().truncate(fd, size)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        self._touch(fd)
        super().set_attribute(fd, name, value)

    def remove_attribute(self, fd: int, name: str) -> None:
        self._touch(fd)
        super().remove_attribute(fd, name)

    def set_acl(self, fd: int, acl: bytes) -> None:
        self._touch(fd)
        super().set_acl(fd, acl)

    def remove_acl(self, fd: int) -> None:
        self._touch(fd)
        super().remove_acl(fd)

    def chmod(self, fd: int, mode: int) -> None:
        self._touch(fd)
        super().chmod(fd, mode)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        self._touch(fd)
        super().chown(fd, uid, gid)

    def set_mtime(self, fd: int, mtime_ns: int) -> None:
        self._touch(fd)
        super().set_mtime(fd, mtime_ns)

    def clone(self, to_fd: int, from_fd: int) -> None:
        self._touch(to_fd)
        super().clone(to_fd, from_fd)

    def copy(self, from_fd: int, to_fd: int, at: int, count: int) -> int:
        self._touch(to_fd)
        return super().copy(from_fd, to_fd, at, count)

    def copy_within(
        self, from_fd: int, to_fd: int, from_at: int, to_at: int, count: int, *, share: bool = True
    ) -> int:  # fmt: skip
        self._touch(to_fd)
        return super().copy_within(from_fd, to_fd, from_at, to_at, count, share=share)

    def write_at(self, fd: int, data: memoryview | bytes, at: int) -> None:
        self._touch(fd)
        super().write_at(fd, data, at)

    def punch(self, fd: int, at: int, count: int) -> bool:
        self._touch(fd)
        return super().punch(fd, at, count)

    # -- names

    def _named(self, *at: int, undo: Callable[[str], None], name: bytes) -> None:
        """Record a change of a name in the last of these directories."""
        directories = [_path(fd) for fd in at]
        place = os.path.join(directories[-1], os.fsdecode(name))
        self._unsafe.names.append(_Names(frozenset(directories), lambda: undo(place)))

    def _keep(self, at: int, name: bytes) -> Path | None:
        """Another name for a file that is about to lose this one; None where that is impossible."""
        self._kept += 1
        kept = self._attic / str(self._kept)
        try:
            os.link(name, kept, src_dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return kept

    def make_dir(self, at: int, name: bytes, mode: int = 0o700) -> None:
        super().make_dir(at, name, mode)
        self._named(at, undo=os.rmdir, name=name)

    def remove_dir(self, at: int, name: bytes) -> None:
        found = os.stat(name, dir_fd=at)
        path = os.path.join(_path(at), os.fsdecode(name))
        attributes = {n: os.getxattr(path, n) for n in os.listxattr(path)}
        super().remove_dir(at, name)

        def undo(place: str) -> None:
            os.mkdir(place)
            os.chown(place, found.st_uid, found.st_gid)
            os.chmod(place, found.st_mode & 0o7777)
            for attribute, value in attributes.items():
                os.setxattr(place, attribute, value)

        self._named(at, undo=undo, name=name)

    def link(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        super().link(from_at, name, to_at, new_name)
        self._named(to_at, undo=os.unlink, name=new_name)

    def unlink(self, at: int, name: bytes) -> None:
        kept = self._keep(at, name)
        super().unlink(at, name)
        assert kept is not None
        self._named(at, undo=lambda place: os.rename(kept, place), name=name)

    def rename(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        replaced = self._keep(to_at, new_name)
        super().rename(from_at, name, to_at, new_name)
        self._moved(from_at, name, to_at, new_name, replaced)

    def rename_new(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        super().rename_new(from_at, name, to_at, new_name)
        self._moved(from_at, name, to_at, new_name, None)

    def _moved(self, from_at: int, name: bytes, to_at: int, new_name: bytes, replaced: Path | None) -> None:
        before = os.path.join(_path(from_at), os.fsdecode(name))

        def undo(place: str) -> None:
            os.rename(place, before)
            if replaced is not None:
                os.rename(replaced, place)

        self._named(from_at, to_at, undo=undo, name=new_name)

    def exchange(self, from_at: int, name: bytes, to_at: int, new_name: bytes) -> None:
        super().exchange(from_at, name, to_at, new_name)
        other = os.path.join(_path(from_at), os.fsdecode(name))

        def undo(place: str) -> None:
            os.rename(place, place + ".swap")
            os.rename(other, place)
            os.rename(place + ".swap", other)

        self._named(from_at, to_at, undo=undo, name=new_name)


_SECTOR = 512


def _torn(file: _File, chance: random.Random) -> _File:
    """A file of which some sectors are as they were when it was last safe, and others as they are now; and its metadata
    either way. What was never written of a file that has grown is zero."""
    path = f"/proc/self/fd/{file.handle}"
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        return file if chance.random() < 0.5 else _as_is(file, path, found)
    whole = file if chance.random() < 0.5 else _as_is(file, path, found)
    now, before = Path(path).read_bytes(), file.content
    size = chance.choice((len(now), len(before)))
    sides = [each.ljust(size, b"\0")[:size] for each in (now, before)]
    sectors = (chance.choice(sides)[at : at + _SECTOR] for at in range(0, size, _SECTOR))
    return replace(whole, content=b"".join(sectors))


def _as_is(file: _File, path: str, found: os.stat_result) -> _File:
    return replace(
        file,
        attributes={name: os.getxattr(path, name) for name in os.listxattr(path)},
        mode=found.st_mode & 0o7777,
        owner=(found.st_uid, found.st_gid),
        mtime_ns=found.st_mtime_ns,
    )


def _put_back(file: _File) -> None:
    path = f"/proc/self/fd/{file.handle}"
    if os.path.isfile(path):
        Path(path).write_bytes(file.content)
    for name in set(os.listxattr(path)) - file.attributes.keys():
        os.removexattr(path, name)
    for name, value in file.attributes.items():
        os.setxattr(path, name, value)
    os.chown(path, *file.owner)
    os.chmod(path, file.mode)
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
