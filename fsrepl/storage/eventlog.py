"""events.jsonl: a line for each event, durable before the record of what it tells, and told once.

One process writes it, whoever holds the site's lock. At `max_bytes` the file becomes events.jsonl.1,
in the place of the one before, and a new one begins. These two are all there is: they say which events
were written already (after a crash the same news may come again), and they are the queue of those who
are told (daemon/hooks.py), who read them as `fsrepl events -f` does.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

from fsrepl.errors import Refused, Usage, reason
from fsrepl.s3.events import Record
from fsrepl.storage.fs import Fs

FILE = b"events.jsonl"
BEFORE = b"events.jsonl.1"

_ID = re.compile(rb'"x-amz-request-id":"([0-9A-F]+)"')


def id_of(line: bytes) -> str:
    """What tells one event from another; empty for a line that is none of ours."""
    found = _ID.search(line)
    return found[1].decode() if found else ""


def is_whole(line: bytes) -> bool:
    """Whether a line is what was meant to be written: a power cut or a full disk may have left a part of it."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class EventLog:
    """The writer. Any thread may append."""

    def __init__(self, fs: Fs, state: str, max_bytes: int) -> None:
        self.fs, self.state, self.max_bytes = fs, state, max_bytes
        self.written = threading.Condition()
        """Notified after each append."""
        self.count = 0
        """How many were written by this process."""
        self._known: set[str] | None = None
        """The ids in events.jsonl, read when they are needed first; and those in the file before it."""
        self._known_before: set[str] = set()

    def append(self, records: Iterable[Record]) -> int:
        """Write down what is not there yet; how many that was. Durable when it returns.

        Raises OSError where that cannot be done: some may have been written, and none is half believed.
        """
        lines = {id_of(line): line for line in map(_line, records)}
        if not lines:
            return 0
        with self.written:
            known = self._look()
            fresh = [line for i, line in lines.items() if i not in known and i not in self._known_before]
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
        """The id of the newest event, empty where there is none."""
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

    def _write_some(self, at: int, lines: list[bytes]) -> list[bytes]:
        """Write as many lines as the file has room for, and one in any case into a new one; those that are left."""
        fd = self.fs.append(at, FILE)
        try:
            size = self.fs.stat_fd(fd).st_size
            number, end = 0, size
            while number < len(lines) and (end == 0 or end + len(lines[number]) <= self.max_bytes):
                end += len(lines[number])
                number += 1
            if number:
                # What a power cut left of a line gets an end of its own.
                self.fs.write(fd, (b"" if self._ends_well(at, size) else b"\n") + b"".join(lines[:number]))
                self.fs.sync_file(fd)
                self._look().update(map(id_of, lines[:number]))
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


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _ids(fs: Fs, state: str, name: bytes) -> set[str]:
    fd = _open(fs, state, name)
    if fd is None:
        return set()
    try:
        return {id_of(line) for line in fs.read_all(fd).splitlines() if is_whole(line)}
    finally:
        fs.close(fd)


def _open(fs: Fs, state: str, name: bytes) -> int | None:
    """One of the files, None where there is none. Raises Refused(AccessDenied), or Usage where it cannot be read."""
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
    """Reads the events that are there, oldest first, and then those that come, across rotations."""

    def __init__(self, state: str, fs: Fs | None = None) -> None:
        self.state, self.fs = state, fs or Fs()
        self._fd: int | None = None
        self._delay_next_copy = b""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._fd is not None:
            self.fs.close(self._fd)
            self._fd = None

    def lines(self) -> Iterator[bytes]:
        """What was written since the last call, line by line, without their ends.."""
        while self._fd is not None or self._follow(None):
            assert self._fd is not None
            yield from self._read(self._fd)
            if not self._is_past():
                return
            yield from self._read(self._fd)  # what was written between that read and the rotation
            self._follow(self.fs.stat_fd(self._fd))

    def _read(self, fd: int) -> Iterator[bytes]:
        if self.fs.stat_fd(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):  # somebody emptied it
            os.lseek(fd, 0, os.SEEK_SET)
            self._delay_next_copy = b""
        while data := self.fs.read(fd, 1 << 20):
            *whole, self._delay_next_copy = (self._delay_next_copy + data).split(b"\n")
            yield from filter(is_whole, whole)

    def _is_past(self) -> bool:
        """Whether another file has taken the place of the one that is read."""
        assert self._fd is not None
        present = _open(self.fs, self.state, FILE)
        if present is None:
            return False
        try:
            return self.fs.stat_fd(present).st_ino != self.fs.stat_fd(self._fd).st_ino
        finally:
            self.fs.close(present)

    def _follow(self, last: os.stat_result | None) -> bool:
        """Open the file that was written after the last one, or the oldest; whether there is one."""
        # In this order: if a rotation comes between the two, the second is the first again, and nothing is passed over.
        present, before = (_open(self.fs, self.state, name) for name in (FILE, BEFORE))
        wanted = present if before is None or (last and self._is_read(before, last)) else before
        for fd in {present, before, self._fd} - {wanted, None}:
            assert fd is not None
            self.fs.close(fd)
        self._fd, self._delay_next_copy = wanted, b""
        return wanted is not None

    def _is_read(self, before: int, last: os.stat_result) -> bool:
        """Whether the file before the present one is the last one read, or an older one (that was removed by hand)."""
        found = self.fs.stat_fd(before)
        return found.st_ino == last.st_ino or found.st_mtime_ns < last.st_mtime_ns
