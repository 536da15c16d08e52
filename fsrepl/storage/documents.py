"""JSON documents on disk, read and written safely; who may own them."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fsrepl.storage.fs import Fs


@contextlib.contextmanager
def open_directory(fs: Fs, path: Path) -> Iterator[int]:
    """A directory by its whole path, for as long as it is needed."""
    fd = fs.open_root(path)
    try:
        yield fd
    finally:
        fs.close(fd)


# -- documents: JSON files, replaced whole


def disowned(fs: Fs, fd: int) -> str:
    """Why a folder of a store is not the daemon's own, so that others may have written in it; empty where it is."""
    found = fs.stat_fd(fd)
    if found.st_uid in (fs.uid, 0) and not found.st_mode & 0o022:
        return ""
    return f"belongs to uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, not to the daemon alone"


def read_document(fs: Fs, at: int, name: bytes) -> dict[str, object] | None:
    """A JSON object, or None where there is no such file. Raises ValueError for anything else in it."""
    try:
        fd = fs.open_read(at, name)
    except FileNotFoundError:
        return None
    try:
        found = json.loads(fs.read_all(fd))
    finally:
        fs.close(fd)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def write_document(fs: Fs, at: int, name: bytes, document: object, *, mode: int = 0o600) -> None:
    """Replace a document in one step, durably."""
    write_bytes(fs, at, name, json.dumps(document, indent=2).encode() + b"\n", mode=mode)


def write_bytes(
    fs: Fs,
    at: int,
    name: bytes,
    data: bytes,
    *,
    mode: int = 0o600,
    like: os.stat_result | None = None,
    durable: bool = True,
) -> None:
    """Replace a file in one step; with the owner and mode of another where that is given and can be.

    durable: whether it matters that a power cut may bring back the one before.
    """
    staged = b"." + name + b".new"
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(at, staged)
    fd = fs.create(at, staged)
    try:
        fs.write(fd, data)
        if like is not None:
            fs.give(fd, like.st_uid, like.st_gid)  # where it can be
            mode = stat.S_IMODE(like.st_mode)
        if mode != 0o600:  # which it was made with
            fs.chmod(fd, mode)
        if durable:
            fs.sync_file(fd)
    finally:
        fs.close(fd)
    fs.rename(at, staged, at, name)
    if durable:
        fs.sync_file(at)


def remove_document(fs: Fs, at: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(at, name)
    fs.sync_file(at)


@dataclass(frozen=True, slots=True)
class Removed:
    """What removed.jsonl names: (key, version id) of each version that was removed for good. Of the file with that
    inode number so many bytes were read, whole lines."""

    ids: frozenset[tuple[bytes, str]] = frozenset()
    ino: int = -1
    size: int = 0


def read_removed(fs: Fs, meta: int, known: Removed) -> Removed:
    """What it names now. known: what it did at the last look; only what was added since is read.

    A line cut short by a crash is passed over.
    """
    try:
        fd = fs.open_read(meta, b"removed.jsonl")
    except FileNotFoundError:
        return Removed()
    try:
        found = fs.stat_fd(fd)
        if (found.st_ino, min(found.st_size, known.size)) != (known.ino, known.size):
            known = Removed(ino=found.st_ino)
        data = b"".join(fs.chunks(fd, known.size))
    finally:
        fs.close(fd)
    added = set()
    for line in data.splitlines():
        with contextlib.suppress(ValueError, KeyError):
            entry = json.loads(line)
            added.add((os.fsencode(entry["key"]), entry["version"]))
    return Removed(known.ids | added, found.st_ino, known.size + data.rfind(b"\n") + 1)
