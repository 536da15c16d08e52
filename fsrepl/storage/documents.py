"""JSON documents on disk: safe reads and writes, and the owners that are trusted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from pathlib import Path

from msgspec import Struct, field

from fsrepl.model import json_text
from fsrepl.storage.fs import Fs


@contextlib.contextmanager
def open_directory(fs: Fs, path: Path) -> Iterator[int]:
    """A directory opened by its whole path, for a `with` block."""
    fd = fs.open_root(path)
    try:
        yield fd
    finally:
        fs.close(fd)


# -- documents: JSON files, replaced as a whole


def disowned(fs: Fs, found: os.stat_result) -> str:
    """The reason why a store's folder of this status is not trusted as the daemon's own; empty where it is."""
    if found.st_uid in (fs.uid, 0) and not found.st_mode & 0o022:
        return ""
    return f"belongs to uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, not to the daemon alone"


def read_document(fs: Fs, at: int, name: bytes) -> dict[str, object] | None:
    """A JSON object, or None where the file does not exist. Raises ValueError for any other content."""
    try:
        fd = fs.open_read(at, name)
    except FileNotFoundError:
        return None
    try:
        found = json_text.loads(fs.read_all(fd))
    finally:
        fs.close(fd)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def write_document(fs: Fs, at: int, name: bytes, document: object, *, mode: int = 0o600) -> None:
    """Replace a document atomically and durably."""
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
    """Replace a file atomically. like: a file whose owner and mode are copied where possible.

    durable: whether the new content must survive a power cut.
    """
    staged = b"." + name + b".new"
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(at, staged)
    fd = fs.create(at, staged)
    try:
        fs.write(fd, data)
        if like is not None:
            fs.give(fd, like.st_uid, like.st_gid)  # where permitted
            mode = stat.S_IMODE(like.st_mode)
        if mode != 0o600:  # the mode of a new file
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


class Removed(Struct, frozen=True):
    """Entries of removed.jsonl: the (key, version id) of each permanently removed version. ino: the file's inode
    number. size: the bytes read so far, all of them whole lines.

    The set of ids grows with the file: a copy of it for each batch of removals would take longer each time.
    """

    ids: set[tuple[bytes, str]] = field(default_factory=set)
    ino: int = -1
    size: int = 0


def read_removed(fs: Fs, meta: int, known: Removed) -> Removed:
    """The current entries of removed.jsonl. known: the previous result; only lines added since are read.

    A line cut short by a crash is skipped.
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
    for line in data.splitlines():
        if plain := _PLAIN_REMOVED.fullmatch(line):  # parsing takes ten times as long
            known.ids.add((plain[1], plain[2].decode()))
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json_text.loads(line)
            known.ids.add((os.fsencode(entry["key"]), entry["version"]))
    return Removed(known.ids, found.st_ino, known.size + data.rfind(b"\n") + 1)


def removed_line(key: bytes, version_id: str) -> bytes:
    """A line of removed.jsonl."""
    return f'{{"key": {encode_basestring_ascii(os.fsdecode(key))}, "version": "{version_id}"}}\n'.encode()


_PLAIN_REMOVED = re.compile(rb'\{"key": "([ !#-\[\]-~]*)", "version": "([0-9A-Za-z]+)"\}')
"""A line of removed.jsonl in which each value stands as it is."""
