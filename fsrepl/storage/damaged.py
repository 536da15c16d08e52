"""Damaged content, kept aside in .fsrepl/damaged when a stored version is repaired, for people to look at.

A file has the damaged parts in their places and holes elsewhere, so that it takes little space; a description lies
beside it. Nothing reads them. They are removed after 30 days.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence

from fsrepl.model import clock, digests, keys
from fsrepl.model.delta import Span
from fsrepl.model.version import Version
from fsrepl.storage.bucket import OpenBucket

FOLDER = b"damaged"
KEPT_NS = 30 * 86_400 * 1_000_000_000
_ABOUT = b".json"
_PIECE_BYTES = 1 << 20


def keep(bucket: OpenBucket, version: Version, fd: int, spans: Sequence[Span], now_ns: int) -> str:
    """Keep parts of an open file aside; the path of the copy below the bucket, empty where that failed.

    What cannot be read is left out. A failure to keep it prevents no repair.
    """
    fs = bucket.fs
    name = f"{version.id}.{digests.short(version.key)}.{now_ns}".encode()
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            fs.make_dir(bucket.meta, FOLDER)
        at = fs.open_dir(bucket.meta, FOLDER)
        try:
            to = fs.create(at, name)
            try:
                fs.truncate(to, version.size)
                for span in spans:
                    _copy(bucket, fd, to, span)
            finally:
                fs.close(to)
            about = keys.key_document(version.key) | {
                "VersionId": version.id,
                "ETag": version.digest.hex(),
                "Found": clock.stamp(now_ns),
                "Damaged": [{"Offset": span.at, "Length": span.size} for span in spans],
            }
            to = fs.create(at, name + _ABOUT)
            try:
                fs.write(to, json.dumps(about, indent=1).encode())
            finally:
                fs.close(to)
        finally:
            fs.close(at)
        return os.fsdecode(keys.RESERVED + b"/" + FOLDER + b"/" + name)
    return ""


def _copy(bucket: OpenBucket, fd: int, to: int, span: Span) -> None:
    for at in range(span.at, span.end, _PIECE_BYTES):
        with contextlib.suppress(OSError):
            bucket.fs.write_at(to, bucket.fs.read_at(fd, min(_PIECE_BYTES, span.end - at), at), at)


def forget_old(bucket: OpenBucket, now_ns: int) -> int:
    """Remove the files that were kept for long enough; their number."""
    removed = 0
    with contextlib.suppress(OSError):
        at = bucket.fs.open_dir(bucket.meta, FOLDER)
        try:
            for name, _ in list(bucket.fs.entries(at)):
                if bucket.fs.stat(at, name).st_mtime_ns < now_ns - KEPT_NS:
                    bucket.fs.unlink(at, name)
                    removed += 1
        finally:
            bucket.fs.close(at)
    return removed
