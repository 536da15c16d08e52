"""Kinds of setting: the check of a value from fsrepl.toml, and its conversion. Pure.

Each kind raises ValueError with a description of a valid value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from fsrepl.settings.toml import quoted

Kind = Callable[[object], object]

_SIZES = {"": 1, "B": 1, "kB": 1000} | {
    prefix + unit: factor**power
    for unit, factor in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGTP", start=1)
}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
YEAR_S = 366 * 86400


class Confidential(ValueError):
    """An invalid value that is not repeated in messages: it may hold a key or a password, and logs are kept."""


class KeepFree(Struct, frozen=True):
    """Space of a filesystem to keep free for its users: a fraction, or a number of bytes."""

    fraction: float = 0.0
    size_bytes: int = 0

    def needed(self, total_bytes: int) -> int:
        """The number of bytes to keep free on a filesystem of this size."""
        return max(self.size_bytes, math.ceil(total_bytes * self.fraction))


def _amount(value: object, units: Mapping[str, int]) -> int | None:
    """A whole number, or text such as "8MiB", in the smallest of these units; None for any other value."""
    if type(value) is int:
        found = value
    elif isinstance(value, str) and (match := _AMOUNT.fullmatch(value)) and match[2] in units:
        found = int(Decimal(match[1]) * units[match[2]])
    else:
        return None
    return found if 0 <= found < 1 << 63 else None


def number(low: float, high: float) -> Kind:
    def kind(value: object) -> float:
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            raise ValueError(f"a number from {low:,} to {high:,}")
        return value  # type: ignore[return-value]

    return kind


def whole(low: int, high: int) -> Kind:
    def kind(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low:,} to {high:,}")
        return value

    return kind


def size(value: object) -> int:
    if not (found := _amount(value, _SIZES)):
        raise ValueError('a size such as "8MiB" or "10GB", and more than nothing')
    return found


def rate(value: object) -> int:
    found = _amount(value.removesuffix("/s") if isinstance(value, str) else value, _SIZES)
    if found is None:
        raise ValueError('a rate such as "50MiB/s", or "0" for no limit')
    return found


def duration(value: object) -> int:
    found = _amount(value, _TIMES)
    if found is None or found > 10 * YEAR_S:
        raise ValueError('a time such as "90s", "15m", "12h", "30d" or "4w", at most ten years, or "0" for never')
    return found


def keep_free(value: object) -> KeepFree:
    if isinstance(value, str) and value.endswith("%") and (match := _AMOUNT.fullmatch(value[:-1])) and not match[2]:
        fraction = float(Decimal(match[1]) / 100)
        if fraction < 1:
            return KeepFree(fraction=fraction)
    elif (isinstance(value, str) or value == 0) and (found := _amount(value, _SIZES)) is not None:
        return KeepFree(size_bytes=found)  # not a bare 5, which would mean "5%" and not 5 bytes
    raise ValueError('a share below "100%", such as "5%", or a size such as "10GiB"')


def flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a string")
    return value


def texts(what: str) -> Kind:
    def kind(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(x, str) and x and "\0" not in x for x in value):
            raise ValueError(f"an array of strings, {what}")
        return tuple(value)

    return kind


def patterns(value: object) -> tuple[str, ...]:
    what = 'patterns for the last component of a key, such as "*.tmp"'
    found = texts(what)(value)
    assert isinstance(found, tuple)
    if any("/" in x for x in found):
        raise ValueError(f'{what}: one with a "/" matches nothing')
    return found


def one_of(*choices: str) -> Kind:
    def kind(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError("one of " + ", ".join(map(quoted, choices)))
        return value

    return kind


def path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value or value.startswith("~"):
        raise ValueError("a path, absolute or relative to this file (a ~ is not replaced by a home directory)")
    return Path(value)


def optional_path(value: object) -> Path | None:
    return path(value) if value != "" else None


def url(value: object) -> str:
    found = text(value)
    try:
        parts = urlsplit(found)
        good = not found or (parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0)
    except ValueError:
        good = False
    if not good or any(c <= " " for c in found):
        raise ValueError('an address such as "https://host/path", or ""')
    return found


class Credentials(Struct, frozen=True):
    """Where the credentials of an S3 service come from: `env`, `profile` or `file`. name: the profile, or the path."""

    source: str
    name: str = ""


def credentials(value: object) -> Credentials:
    source, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if (source == "env" and value == "env") or (source in ("profile", "file") and name and "\0" not in name):
        return Credentials(source, name)
    raise Confidential('"env", "profile:NAME" or "file:PATH"; keys themselves do not belong in this file')


def service(value: object) -> str:
    """The address of an S3 service, without a slash at its end."""
    try:
        found = url(value)
        parts = urlsplit(found)
    except ValueError:
        found = ""
    if not found or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        kind = Confidential if "@" in str(value) else ValueError
        raise kind('the address of an S3 service, such as "https://s3.eu-west-1.amazonaws.com"')
    return found.rstrip("/")


_REGION = re.compile(
    r"(?:.*\.)?s3(?:-fips)?(?:\.dualstack)?[.-]([a-z]{2}(?:-[a-z0-9]+)+)(?:\.vpce)?"
    r"\.(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|wasabisys\.com|scw\.cloud)"
)
"""Hosts that name their region. Source: AWS, "Amazon S3 endpoints and quotas"; the documentation of B2, Wasabi and
Scaleway."""


def s3_region_in(address: str) -> str:
    """The region in the address of an S3 service whose hosts are known to name theirs; empty in any other."""
    found = _REGION.fullmatch(urlsplit(address).hostname or "")
    return found[1] if found else ""


class RemotePath(Struct, frozen=True):
    """A directory on another machine. user: "" for OpenSSH's choice; port: 0 for its choice. path is absolute."""

    user: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}{f':{self.port}' if self.port else ''}{self.path}"


_NAME = re.compile(r"[A-Za-z0-9_][^\s@/:]*")


def place(value: object) -> RemotePath:
    """A directory on another machine, as OpenSSH's client reaches it. Source: ssh(1)."""
    wanted = ValueError('a directory on another machine, such as "ssh://host/srv/eu" or "ssh://user@host:2222/srv/eu"')
    found = text(value)
    try:
        parts = urlsplit(found)
        user, host, port = parts.username or "", parts.hostname or "", parts.port or 0
    except ValueError:
        raise wanted from None
    at = parts.netloc.rpartition("@")[2].partition(":")[0]
    host = host if ":" in host else at  # urlsplit writes it small, and ssh's configuration may not
    path = "/" + parts.path.strip("/")
    good = parts.scheme == "ssh" and parts.password is None and not parts.query and not parts.fragment
    # neither may begin with a hyphen: ssh would take it for an option
    if not good or not (_NAME.fullmatch(host) or ":" in host) or (user and not _NAME.fullmatch(user)):
        raise wanted
    if path == "/" or "//" in path or "/.." in path + "/" or any(c < " " for c in path):
        raise wanted
    return RemotePath(user, host, port, path)


def key_prefix(value: object) -> str:
    """The prefix of a bucket's keys: empty, or a path that ends in a slash."""
    found = text(value)
    if found and (not found.endswith("/") or found.startswith("/") or "//" in found or len(found.encode()) > 256):
        raise ValueError('a path of at most 256 bytes that ends in a "/", such as "backups/host7/", or ""')
    return found


def listen(value: object) -> tuple[str, int] | None:
    found = text(value)
    if not found:
        return None
    host, _, port = found.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else "" if ":" in host else host
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError('a host and a port, such as "127.0.0.1:9750" or "[::1]:9750", or ""')
    return host, int(port)
