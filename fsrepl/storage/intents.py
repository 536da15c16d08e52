"""Intents: which views are about to change, written down durably before the first of them does."""

from __future__ import annotations

import base64
import contextlib
import enum
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fsrepl.model.view import View
from fsrepl.storage import staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.sync import Syncer

# -- intents


CURRENT = "current"


class Act(enum.StrEnum):
    """What an intent says is under way."""

    SHOW = "show"
    """A view is about to show a version, and nothing where none will be left."""
    EDIT = "edit"
    """A view shows that version already, and will have metadata of it that was edited."""
    FETCH = "fetch"
    """A stored version was destroyed, and its content is fetched again."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to become of a view, and how it looked before; was is None where there was none.

    version: its id; CURRENT for whichever is the newest then; empty where none will be left.
    """

    key: bytes
    version: str
    was: View | None
    act: Act = Act.SHOW


def write_intents(bucket: OpenBucket, intents: Sequence[Intent]) -> bytes:
    """Write down which views are about to change; not durable until synced. The name of the file.

    Raises OSError, and then leaves no file.
    """
    name = b"%d-%s" % (time.time_ns(), staging.token())
    fd = bucket.fs.create(bucket.intents, name)
    try:
        bucket.fs.write(fd, json.dumps([_intent_document(i) for i in intents]).encode())
    except OSError:
        abandon_intents(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)
    return name


def intend(
    syncer: Syncer, bucket: OpenBucket, intents: Sequence[Intent], staged: Sequence[tuple[int, bytes]] = ()
) -> bytes:
    """Write down durably which views are about to change, and make what is staged for that durable too.

    The name of the file. Raises OSError, and then leaves no file: nothing of it has begun.
    """
    name = write_intents(bucket, intents)
    try:
        syncer.staged(bucket, [*staged, (bucket.intents, name)])
    except OSError:
        abandon_intents(bucket, name)
        raise
    return name


def abandon_intents(bucket: OpenBucket, name: bytes) -> None:
    """Nothing has come of it. Where its file cannot be removed either, the next start finds nothing to do in it."""
    with contextlib.suppress(OSError):
        drop_intents(bucket, name)


def drop_intents(bucket: OpenBucket, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(bucket.intents, name)


def read_intents(bucket: OpenBucket) -> Iterator[tuple[bytes, list[Intent]]]:
    """Every intent file. One that a power cut left unfinished names nothing that has begun."""
    for entry in sorted(bucket.fs.entries(bucket.intents), key=lambda e: e.name):
        name = os.fsencode(entry.name)
        fd = bucket.fs.open_read(bucket.intents, name)
        try:
            data = bucket.fs.read_all(fd)
        finally:
            bucket.fs.close(fd)
        try:
            yield name, [_read_intent(d) for d in json.loads(data)]
        except (ValueError, KeyError, TypeError):
            yield name, []


def _intent_document(intent: Intent) -> dict[str, object]:
    was = intent.was
    return {
        "key": base64.b64encode(intent.key).decode(),
        "version": intent.version,
        "was": [was.ino, was.size, was.mtime_ns, was.ctime_ns, was.mode, was.shown, was.racy] if was else None,
        "act": intent.act,
    }


def _read_intent(document: dict[str, Any]) -> Intent:
    was = document["was"]
    racy = bool(was) and was[6:] == [True]  # earlier builds did not say
    view = View(was[0], was[1], was[2], was[3], was[4], racy, was[5]) if was else None
    return Intent(base64.b64decode(document["key"]), document["version"], view, Act(document["act"]))
