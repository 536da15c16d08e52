"""The current time, and version ids made from it."""

from __future__ import annotations

import calendar
import datetime
import os
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache

from fsrepl.errors import Usage

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {c: i for i, c in enumerate(_CROCKFORD)}
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)", re.IGNORECASE)

Clock = Callable[[], int]
"""A function that returns the current time in nanoseconds since the epoch."""


def system_clock(environ: dict[str, str] | os._Environ[str] = os.environ) -> Clock:
    """The clock of this process: the system's, or the file named by FSREPL_CLOCK, read again on each call."""
    name = environ.get("FSREPL_CLOCK")
    if not name:
        return time.time_ns

    def read() -> int:
        try:
            with open(name, "rb", buffering=0) as file:  # in half the time that Path.read_text takes: tests ask often
                return within(parse(file.read().decode().strip()))
        except (OSError, ValueError) as error:
            raise Usage(f"FSREPL_CLOCK: cannot read an RFC 3339 time from {name}: {error}") from error

    return read


def is_from_file(environ: dict[str, str] | os._Environ[str] = os.environ) -> bool:
    """Whether the time is another one once a file has changed, which is looked at often."""
    return bool(environ.get("FSREPL_CLOCK"))


_EARLIEST_NS, _LATEST_NS = -9_214_560_000_000_000_000, 9_214_646_400_000_000_000
"""The beginnings of the years 1678 and 2262: nanoseconds between them fit 64 bits."""


def within(ns: int) -> int:
    """The nearest time that every part of a site can hold: a record's four-digit year, and the journal's integers.

    Every creation time from a filesystem, a clock or an old record passes through here. A file's own times are kept as
    they are.
    """
    return ns if _EARLIEST_NS <= ns <= _LATEST_NS else min(max(ns, _EARLIEST_NS), _LATEST_NS)


_second: tuple[int, str] = (-1, "")


@lru_cache(maxsize=1024)  # a version's time is formatted several times
def stamp(ns: int) -> str:
    """RFC 3339, UTC, with nanoseconds: 2026-11-24T01:53:51.123456789Z."""
    global _second
    seconds, rest = divmod(ns, 1_000_000_000)
    known, text = _second
    if known != seconds:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        _second = (seconds, text)
    return f"{text}.{rest:09d}Z"


def parse(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time. Raises ValueError, also for 30 February."""
    if len(text) == 30 and text[29] == "Z" and text[19] == "." and (rest := text[20:29]).isdigit() and rest.isascii():
        return _whole_second(text[:19] + "Z") + int(rest)  # as stamp writes it
    return _whole_second(text) if len(text) == 20 else _parse(text)


@lru_cache(maxsize=1024)
def _whole_second(text: str) -> int:
    """Cached, since the versions of a burst have times in the same few seconds."""
    return _parse(text)


def _parse(text: str) -> int:
    match = _STAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2026-11-24T01:53:51Z")
    year, month, day, hour, minute, second = (int(x) for x in match.groups()[:6])
    datetime.date(year, month, day)  # timegm takes any day and hour
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"{text!r} has a time of day that does not exist")
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    zone = match[8].upper()
    if zone != "Z":
        offset = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))


def moment(text: str) -> int:
    """Nanoseconds since the epoch of what a person wrote: a date, which is its beginning in UTC, or an RFC 3339 time.

    Raises ValueError.
    """
    try:
        return within(parse(text if "T" in text.upper() or " " in text else f"{text}T00:00:00Z"))
    except ValueError as error:
        raise ValueError(
            f"{text!r} is neither a date such as 2026-11-24 nor a time such as 2026-11-24T01:53:51Z"
        ) from error


_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]


def _encode(value: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


def decode_id(text: str) -> int:
    """The number in a ULID: milliseconds above 80 bits of entropy."""
    value = 0
    for c in text:
        value = value << 5 | _VALUES[c]
    return value


class VersionIds:
    """Generator of a bucket's version ids, strictly increasing even when the clock steps back."""

    def __init__(self, newest_id: str = "", newest_ns: int = 0) -> None:
        self._last = -1
        self._seen = "" if newest_id == "null" else newest_id
        """The greatest id from another region that is not yet in `_last`. Ids sort as their numbers do."""
        self._newest_ns = newest_ns

    @property
    def newest_ns(self) -> int:
        """The latest creation time of any version in the bucket."""
        return self._newest_ns

    def saw(self, version_id: str, created_ns: int) -> None:
        """Note a version from another region; later ids are greater than its id."""
        if version_id > self._seen and version_id != "null":
            self._seen = version_id
        if created_ns > self._newest_ns:
            self._newest_ns = created_ns

    def next(self, now_ns: int, null_ns: int = -1, *, is_null: bool = False) -> tuple[str, int]:
        """A new id and its creation time, which is never earlier than that of the bucket's newest version.

        null_ns: the creation time of the key's current version, if that is a null version. The new version is later:
        between versions created at one moment their ids decide, and `null` does not tell the order. is_null: the new
        version is a null version, as in a bucket whose versioning is suspended.
        """
        if self._seen:
            self._last, self._seen = max(self._last, decode_id(self._seen)), ""
        created_ns = self._newest_ns = within(max(now_ns, self._newest_ns, null_ns + 1))
        value = (created_ns // 1_000_000) << 80 | random.getrandbits(79)
        # A step of random length: two buckets that continue from the same version must not meet in one id.
        self._last = value if value > self._last else self._last + 1 + random.getrandbits(64)
        return "null" if is_null else _encode(self._last), created_ns
