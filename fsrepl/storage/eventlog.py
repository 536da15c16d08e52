"""events.jsonl: one line per event, durable before the corresponding record, and without repetition.

One process writes the file, the holder of the site's lock. At `max_bytes` the file is renamed to events.jsonl.1,
replacing the former one, and a new file is started. These two files show which events were already written, since a
crash may cause an event to be sent again. They are also the queue of the event receivers (daemon/hooks.py), which read
them as `fsrepl events -f` does.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

import msgspec

from fsrepl.errors import Refused, Usage, reason
from fsrepl.model import json_text
from fsrepl.s3.events import Record, record_id
from fsrepl.storage.fs import Fs

FILE = b"events.jsonl"
BEFORE = b"events.jsonl.1"

_ID = re.compile(rb'"x-amz-request-id":"([0-9A-F]+)"')


def id_of(line: bytes) -> str:
    """The id of an event; empty for a foreign line."""
    found = _ID.search(line)
    return found[1].decode() if found else ""


def is_whole(line: bytes) -> bool:
    """Whether a line is complete: a power cut or a full disk may have left only part of it."""
    try:
        return isinstance(json_text.loads(line), dict)
    except ValueError:
        return False


class EventLog:
    """The writer of events.jsonl. Any thread may append."""

    def __init__(self, fs: Fs, state: str, max_bytes: int) -> None:
        self.fs, self.state, self.max_bytes = fs, state, max_bytes
        self.written = threading.Condition()
        """Notified after each append."""
        self.count = 0
        """The number of events written by this process."""
        self._known: set[str] | None = None
        """The ids in events.jsonl, read on first use, and those in the previous file."""
        self._known_before: set[str] = set()

    def append(self, records: Iterable[Record]) -> int:
        """Write the records that are not yet in the log, durably; their number.

        Raises OSError on failure: some lines may have been written, and an incomplete line is ignored.
        """
        lines = {record_id(record): msgspec.json.encode(record) + b"\n" for record in records}
        if not lines:
            return 0
        with self.written:
            known = self._look()
            fresh = [each for each in lines.items() if each[0] not in known and each[0] not in self._known_before]
            if not fresh:
                return 0
            at = self.fs.open_root(self.state)
            try:
                left = fresh
                while left:
                    left = self._write_some(at, left)
            finally:
                self.fs.close(at)
                self.written.notify_all()
        return len(fresh)

    def last_id(self) -> str:
        """The id of the newest event, empty where the log is empty."""
        last = ""
        with Reader(self.state, self.fs) as reader:
            for line in reader.lines():
                last = id_of(line)
        return last

    def _look(self) -> set[str]:
        if self._known is None:
            self._known_before = _ids(self.fs, self.state, BEFORE)
            self._known = _ids(self.fs, self.state, FILE)
        return self._known

    def _write_some(self, at: int, lines: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Write as many lines, each with its id, as fit the file, and at least one into a new file; the remaining
        lines."""
        fd = self.fs.append(at, FILE)
        try:
            size = self.fs.stat_fd(fd).st_size
            number, end = 0, size
            while number < len(lines) and (end == 0 or end + len(lines[number][1]) <= self.max_bytes):
                end += len(lines[number][1])
                number += 1
            if number:
                # A line cut short by a power cut is ended first.
                self.fs.write(
                    fd, (b"" if self._ends_well(at, size) else b"\n") + b"".join([line for _, line in lines[:number]])
                )
                self.fs.sync_file(fd)
                self._look().update([i for i, _ in lines[:number]])
                self.count += number
        finally:
            self.fs.close(fd)
        if number < len(lines):
            self.fs.rename(at, FILE, at, BEFORE)
            self._known_before, self._known = self._look(), set()
        if size == 0 or number < len(lines):
            self.fs.sync_file(at)
        return lines[number:]

    def _ends_well(self, at: int, size: int) -> bool:
        if size == 0:
            return True
        fd = self.fs.open_read(at, FILE)
        try:
            os.lseek(fd, size - 1, os.SEEK_SET)
            return self.fs.read(fd, 1) == b"\n"
        finally:
            self.fs.close(fd)


def _ids(fs: Fs, state: str, name: bytes) -> set[str]:
    fd = _open(fs, state, name)
    if fd is None:
        return set()
    try:
        return {id_of(line) for line in fs.read_all(fd).splitlines() if is_whole(line)}
    finally:
        fs.close(fd)


def _open(fs: Fs, state: str, name: bytes) -> int | None:
    """One of the files, None where it does not exist. Raises Refused(AccessDenied), or Usage where it cannot be
    read."""
    try:
        at = fs.open_root(state)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise Refused("AccessDenied", f"the events of this site, in {state}, are for its own user and root") from error
    except OSError as error:
        raise Usage(f"cannot read the events in {state}: {reason(error)}") from error
    try:
        return fs.open_read(at, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Usage(f"cannot read {state}/{name.decode()}: {reason(error)}") from error
    finally:
        fs.close(at)


class Reader:
    """A reader of all events, oldest first, and then of new ones, across rotations."""

    def __init__(self, state: str, fs: Fs | None = None) -> None:
        self.state, self.fs = state, fs or Fs()
        self._fd: int | None = None
        self._partial_line = b""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._fd is not None:
            self.fs.close(self._fd)
            self._fd = None

    def lines(self) -> Iterator[bytes]:
        """Lines written since the last call, without line ends."""
        while self._fd is not None or self._follow(None):
            assert self._fd is not None
            yield from self._read(self._fd)
            if not self._is_past():
                return
            yield from self._read(self._fd)  # written between that read and the rotation
            self._follow(self.fs.stat_fd(self._fd))

    def _read(self, fd: int) -> Iterator[bytes]:
        if self.fs.stat_fd(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):  # the file was truncated
            os.lseek(fd, 0, os.SEEK_SET)
            self._partial_line = b""
        while data := self.fs.read(fd, 1 << 20):
            *whole, self._partial_line = (self._partial_line + data).split(b"\n")
            yield from filter(is_whole, whole)

    def _is_past(self) -> bool:
        """Whether another file has replaced the one being read."""
        assert self._fd is not None
        present = _open(self.fs, self.state, FILE)
        if present is None:
            return False
        try:
            return self.fs.stat_fd(present).st_ino != self.fs.stat_fd(self._fd).st_ino
        finally:
            self.fs.close(present)

    def _follow(self, last: os.stat_result | None) -> bool:
        """Open the file written after the last one, or the oldest; whether one exists."""
        # In this order, so that a rotation in between yields the present file twice instead of skipping one.
        present, before = (_open(self.fs, self.state, name) for name in (FILE, BEFORE))
        wanted = present if before is None or (last and self._is_read(before, last)) else before
        for fd in {present, before, self._fd} - {wanted, None}:
            assert fd is not None
            self.fs.close(fd)
        self._fd, self._partial_line = wanted, b""
        return wanted is not None

    def _is_read(self, before: int, last: os.stat_result) -> bool:
        """Whether the previous file is the last one read, or older (left over after a removal by hand)."""
        found = self.fs.stat_fd(before)
        return found.st_ino == last.st_ino or found.st_mtime_ns < last.st_mtime_ns
