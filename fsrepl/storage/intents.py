"""Intents: views about to change, recorded durably before the first of them changes."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct, convert

from fsrepl.model import json_text
from fsrepl.model.view import View
from fsrepl.storage import staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import FileType
from fsrepl.storage.sync import Syncer

# -- intents


CURRENT = "current"


class Act(enum.StrEnum):
    """Kinds of change that an intent records."""

    SHOW = "show"
    """A view is about to show a version, or to be removed where no version remains."""
    EDIT = "edit"
    """A view already shows that version, and edited metadata is being applied to it."""
    FETCH = "fetch"
    """A stored version was destroyed, and its content is being fetched again."""
    REMOVE = "remove"
    """Versions of a key that removed.jsonl names are about to be removed permanently, and no view changes."""


class Intent(Struct, frozen=True):
    """The planned change of a view, and its state before; was is None where there was no view.

    version: its id; CURRENT for the newest at that time; empty where no version remains.
    """

    key: bytes
    version: str
    was: View | None
    act: Act = Act.SHOW


def write_intents(bucket: OpenBucket, intents: Sequence[Intent]) -> bytes:
    """Write an intent file for views about to change, not durable until synced; its name.

    Raises OSError, and then leaves no file.
    """
    name = b"%d-%s" % (time.time_ns(), staging.token())
    fd = bucket.fs.create(bucket.intents, name)
    try:
        bucket.fs.write(fd, msgspec.json.encode([_written(i) for i in intents]))
    except OSError:
        _let_go(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)
    return name


class Intended:
    """A `with` block around changes of views under an intent.

    At the end of the block the changes are made durable, and then the intent is removed. The intent stays where the
    block raises, since a view may then lag behind its version, and where it is kept. Without a name no view changes,
    and the block does nothing.
    """

    def __init__(self, bucket: OpenBucket, name: bytes) -> None:
        self._bucket, self._name = bucket, name

    def keep(self) -> bytes:
        """Keep the intent after the block, because its changes are unfinished; the name of its file."""
        name, self._name = self._name, b""
        return name

    def abandon(self) -> None:
        """Remove the intent at once, because no view was changed."""
        if name := self.keep():
            _let_go(self._bucket, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._name and kind is None:
            self._bucket.sync()
            self.abandon()


def intend(
    syncer: Syncer, bucket: OpenBucket, intents: Sequence[Intent], staged: Sequence[tuple[int, bytes]] = ()
) -> Intended:
    """Write an intent for views about to change, and make it and the staged files durable.

    Raises OSError, and then leaves no file, and no view has changed.
    """
    name = write_intents(bucket, intents) if intents else b""
    try:
        if names := [*staged, *([(bucket.intents, name)] if name else [])]:
            syncer.staged(bucket, names)
    except OSError:
        if name:
            _let_go(bucket, name)
        raise
    return Intended(bucket, name)


def _let_go(bucket: OpenBucket, name: bytes) -> None:
    """Remove a finished intent. If removal fails, the next start finds nothing to do in it."""
    with contextlib.suppress(OSError):
        drop_intents(bucket, name)


def drop_intents(bucket: OpenBucket, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(bucket.intents, name)


def read_intents(bucket: OpenBucket) -> Iterator[tuple[bytes, list[Intent]]]:
    """Every intent file. One left incomplete by a power cut is empty, since no change began under it.

    What is no file in that folder was not made by the daemon, and is left alone.
    """
    for name in sorted(name for name, kind in bucket.fs.entries(bucket.intents) if kind is FileType.REGULAR):
        fd = bucket.fs.open_read(bucket.intents, name)
        try:
            data = bucket.fs.read_all(fd)
        finally:
            bucket.fs.close(fd)
        try:
            yield name, [_read_intent(d) for d in json_text.loads(data)]
        except (ValueError, TypeError):
            yield name, []


class _Written(Struct):
    """An intent as its file has it: the key in base64, as msgspec writes and reads bytes.

    was: the values of a view, in the order of _VIEW; earlier builds left racy out.
    """

    key: bytes
    version: str
    was: list[int | bool | str] | None
    act: Act


_VIEW = ("ino", "size", "mtime_ns", "ctime_ns", "mode", "shown", "racy")


def _written(intent: Intent) -> _Written:
    was = intent.was
    values: list[int | bool | str] | None = None
    if was is not None:
        values = [was.ino, was.size, was.mtime_ns, was.ctime_ns, was.mode, was.shown, was.racy]
    return _Written(intent.key, intent.version, values, intent.act)


def _read_intent(document: object) -> Intent:
    """Raise ValueError where the document is damaged: msgspec's own are ValueErrors."""
    found = convert(document, _Written)
    was = convert(dict(zip(_VIEW, found.was, strict=False)), View) if found.was else None
    return Intent(found.key, found.version, was, found.act)
