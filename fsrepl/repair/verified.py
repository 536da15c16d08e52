"""The versions that an interrupted verification has read: a file in the site's state, so that the next one can go on.

An entry has the inode and the times that a stored file had when its content matched its hash. A file that was changed
since is read again, and all records are, which takes little time. Where the state cannot be written, as by another
user, nothing is noted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Sequence
from types import TracebackType

from fsrepl.model import digests

_TABLE = (
    "CREATE TABLE IF NOT EXISTS matched (bucket TEXT, ino BLOB, size INTEGER, mtime INTEGER, ctime INTEGER, "
    "PRIMARY KEY (bucket, ino)) WITHOUT ROWID"
)
_COMMIT_S = 1.0


class Verified:
    """The stored files whose content matched. Needs close(), or a `with` block."""

    def __init__(self, state: str, source: str, destination: str | None, *, resume: bool) -> None:
        name = digests.short(f"{source} {destination or ''}".encode())
        self._path = os.path.join(state, f"verify-{name}.db")
        self._db: sqlite3.Connection | None = None
        self._committed_s = time.monotonic()
        self.resumes = resume and os.path.exists(self._path)
        """Whether there is anything to go on with."""
        with contextlib.suppress(OSError, sqlite3.Error):
            if not resume:
                self._remove()
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, timeout=0)
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute(_TABLE)

    def has(self, bucket: str, found: os.stat_result) -> bool:
        if self._db is None or not self.resumes:
            return False
        with contextlib.suppress(sqlite3.Error):
            row = self._db.execute(
                "SELECT size, mtime, ctime FROM matched WHERE bucket = ? AND ino = ?", _at(bucket, found)
            )
            return bool(row.fetchone() == (found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return False

    def add(self, bucket: str, found: os.stat_result) -> None:
        """Note that a file matched, as it was before it was read."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error, OverflowError):
            seen = found.st_size, found.st_mtime_ns, found.st_ctime_ns
            self._db.execute("INSERT OR REPLACE INTO matched VALUES (?, ?, ?, ?, ?)", (*_at(bucket, found), *seen))
            if time.monotonic() - self._committed_s > _COMMIT_S:
                self._db.commit()
                self._committed_s = time.monotonic()

    def finish(self) -> None:
        """The verification is complete: the next one reads everything."""
        self._close()
        with contextlib.suppress(OSError):
            self._remove()

    def _remove(self) -> None:
        for suffix in ("", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + suffix)

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.commit()
            self._db.close()
            self._db = None

    def __enter__(self) -> Verified:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()


def _at(bucket: str, found: os.stat_result) -> Sequence[object]:
    return bucket, found.st_ino.to_bytes(16, "big")
