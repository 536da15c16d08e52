"""fsrepl.toml, read once and checked whole, so that nothing starts on a setting half understood.

A setting is one line of a dataclass below: the kind of its value, its default as the file has it,
and the remark that `fsrepl init` writes beside it. Reading, checking, the text of a new file and the
errors all follow from these lines. Every error is a Usage that names the file, the line and what
would be right. Pure but for `load` and `find`. Source: design.md, section 4.
"""
# ruff: noqa: RUF009 (_setting makes a field, as dataclasses.field does)

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fsrepl.errors import Usage
from fsrepl.temporary import PATTERNS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Table = TypeVar("Table", bound=DataclassInstance)

FILE = "fsrepl.toml"
SYSTEM = Path("/etc/fsrepl") / FILE
SYSTEM_STATE = Path("/var/lib/fsrepl")
STATE = ".fsrepl-site"

Keys = tuple[str, ...]
"""Where something is in the file: ("capture", "settle_ms"), ("regions", "us-east-1", "path")."""

# -- kinds: what a value must be, and what it becomes. Each raises ValueError saying what would be right.

Kind = Callable[[object], object]

_SIZES = {"": 1, "B": 1, "kB": 1000} | {
    prefix + unit: factor**power
    for unit, factor in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGTP", start=1)
}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_YEAR_S = 366 * 86400


@dataclass(frozen=True, slots=True)
class KeepFree:
    """Space of a filesystem that is left to its user: a fraction of it, or a number of bytes."""

    fraction: float = 0.0
    size_bytes: int = 0

    def needed(self, total_bytes: int) -> int:
        """How many bytes must be free on a filesystem of this size."""
        return max(self.size_bytes, math.ceil(total_bytes * self.fraction))


def _amount(value: object, units: Mapping[str, int]) -> int | None:
    """A whole number, or text such as "8MiB", in the smallest of these units; None for anything else."""
    if type(value) is int:
        found = value
    elif isinstance(value, str) and (match := _AMOUNT.fullmatch(value)) and match[2] in units:
        found = int(Decimal(match[1]) * units[match[2]])
    else:
        return None
    return found if 0 <= found < 1 << 63 else None


def _number(low: float, high: float) -> Kind:
    def kind(value: object) -> float:
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            raise ValueError(f"a number from {low:,} to {high:,}")
        return value  # type: ignore[return-value]

    return kind


def _whole(low: int, high: int) -> Kind:
    def kind(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low:,} to {high:,}")
        return value

    return kind


def _size(value: object) -> int:
    if not (found := _amount(value, _SIZES)):
        raise ValueError('a size such as "8MiB" or "10GB", and more than nothing')
    return found


def _rate(value: object) -> int:
    found = _amount(value.removesuffix("/s") if isinstance(value, str) else value, _SIZES)
    if found is None:
        raise ValueError('a rate such as "50MiB/s", or "0" for no limit')
    return found


def _duration(value: object) -> int:
    found = _amount(value, _TIMES)
    if found is None or found > 10 * _YEAR_S:
        raise ValueError('a time such as "90s", "15m", "12h", "30d" or "4w", at most ten years, or "0" for never')
    return found


def _keep_free(value: object) -> KeepFree:
    if isinstance(value, str) and value.endswith("%") and (match := _AMOUNT.fullmatch(value[:-1])) and not match[2]:
        fraction = float(Decimal(match[1]) / 100)
        if fraction < 1:
            return KeepFree(fraction=fraction)
    elif (isinstance(value, str) or value == 0) and (found := _amount(value, _SIZES)) is not None:
        return KeepFree(size_bytes=found)  # not a bare 5: who writes that means "5%", and not 5 bytes
    raise ValueError('a share below "100%", such as "5%", or a size such as "10GiB"')


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a string")
    return value


def _texts(what: str) -> Kind:
    def kind(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(x, str) and x and "\0" not in x for x in value):
            raise ValueError(f"an array of strings, {what}")
        return tuple(value)

    return kind


def _patterns(value: object) -> tuple[str, ...]:
    what = 'patterns for the last component of a key, such as "*.tmp"'
    found = _texts(what)(value)
    assert isinstance(found, tuple)
    if any("/" in x for x in found):
        raise ValueError(f'{what}: one with a "/" matches nothing')
    return found


def _one_of(*choices: str) -> Kind:
    def kind(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError("one of " + ", ".join(map(quoted, choices)))
        return value

    return kind


def path_kind(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value or value.startswith("~"):
        raise ValueError("a path, absolute or relative to this file (a ~ is not replaced by anybody's home)")
    return Path(value)


def _optional_path(value: object) -> Path | None:
    return path_kind(value) if value != "" else None


def _url(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        good = not text or (parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0)
    except ValueError:
        good = False
    if not good or any(c <= " " for c in text):
        raise ValueError('an address such as "https://host/path", or ""')
    return text


def _listen(value: object) -> tuple[str, int] | None:
    text = _text(value)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else "" if ":" in host else host
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError('a host and a port, such as "127.0.0.1:9750" or "[::1]:9750", or ""')
    return host, int(port)


# -- the settings


def _setting(kind: Kind, toml: object, about: str, name: str = "") -> Any:
    """A field that comes from the file. toml is its default as written there, None where it must be given;
    name is its name there, where that is not the field's."""
    metadata = {"kind": kind, "toml": toml, "about": about, "name": name}
    return field(metadata=metadata) if toml is None else field(default=kind(toml), metadata=metadata)


@dataclass(frozen=True, slots=True)
class RegionSettings:
    """A region: its path is absolute, with symlinks and `..` as the file has them."""

    name: str
    path: Path = _setting(path_kind, None, "")
    sharing: str = _setting(
        _one_of("auto", "private", "link"),
        "auto",
        "auto | private | link: may stored versions share blocks with the files people see",
    )


@dataclass(frozen=True, slots=True)
class Capture:
    """When a change becomes a version."""

    settle_ms: int = _setting(
        _whole(0, 3_600_000), 50, "wait after a file is closed; a rename into place is taken at once"
    )
    temporary: tuple[str, ...] = _setting(
        _patterns,
        list(PATTERNS),
        "names that are mostly renamed or removed soon; a list here replaces this one, which knows many programs",
    )
    temporary_settle_s: float = _setting(
        _number(0, _YEAR_S), 2, "how long such a name waits; it is never taken while open"
    )
    keep_free: KeepFree = _setting(_keep_free, "5%", "or a size: with less space free, capture pauses and says so")
    open_quiet_s: float = _setting(
        _number(0, _YEAR_S), 30, "a file kept open for writing is taken after this long without a change"
    )
    open_max_s: float = _setting(
        _number(0, _YEAR_S), 600, "at the latest after this long, even while it keeps changing"
    )
    rescan_s: float = _setting(_number(0.1, _YEAR_S), 3600, "look at every file again after this long")


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """How versions travel. A limit of 0 is none."""

    limit_bytes_s: int = _setting(_rate, "0", 'all transfers together, such as "50MiB/s"; "0": no limit', "limit")
    large_file_bytes: int = _setting(
        _size, "8MiB", "from here on: a lane of its own, so that small files need not wait", "large_file"
    )
    workers: int = _setting(_whole(1, 1024), 4, "large copies side by side, of each pair of regions")
    retry_max_s: float = _setting(_number(0.1, _YEAR_S), 300, "the longest wait between two tries")


@dataclass(frozen=True, slots=True)
class Scrub:
    """How often stored versions shall be read again and compared with their hashes. An every_s of 0 is never.

    It is understood, and nothing acts on it yet: until then `fsrepl verify` reads them when it is told to.
    """

    every_s: int = _setting(_duration, "30d", "without effect yet: read stored versions again in this time", "every")
    limit_bytes_s: int = _setting(_rate, "20MiB/s", 'without effect yet: reading for that; "0": no limit', "limit")


@dataclass(frozen=True, slots=True)
class Safety:
    """What looks like a mistake rather than a wish. It is understood, and nothing acts on it yet."""

    delete_share: float = _setting(
        _number(0, 1), 0.5, "without effect yet: hold deletions of more of a bucket than this at once"
    )


@dataclass(frozen=True, slots=True)
class Events:
    """Who is told of S3's replication events, beside events.jsonl. Empty: nobody."""

    command: tuple[str, ...] = _setting(
        _texts("the program and its arguments"), [], "run for each event, which it gets as JSON on its standard input"
    )
    webhook: str = _setting(_url, "", "each event is posted there as JSON")
    max_bytes: int = _setting(_size, "16MiB", "events.jsonl starts anew at this size")


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where Prometheus finds the metrics. None: not offered."""

    listen: tuple[str, int] | None = _setting(_listen, "", 'an endpoint, such as "127.0.0.1:9750"')
    textfile: Path | None = _setting(_optional_path, "", "a file for node_exporter, such as /path/fsrepl.prom")


@dataclass(frozen=True, slots=True)
class Settings:
    """All of fsrepl.toml. Sizes are bytes, rates bytes per second, durations seconds; paths are absolute."""

    path: Path
    """The file itself."""
    state: Path
    regions: Mapping[str, RegionSettings]
    capture: Capture = Capture()
    replication: ReplicationSettings = ReplicationSettings()
    scrub: Scrub = Scrub()
    safety: Safety = Safety()
    events: Events = Events()
    metrics: Metrics = Metrics()

    @property
    def roles(self) -> Path:
        """The folder of the site's replication roles."""
        return self.path.parent / "roles"


TABLES: Mapping[str, type[Any]] = {
    "capture": Capture,
    "replication": ReplicationSettings,
    "scrub": Scrub,
    "safety": Safety,
    "events": Events,
    "metrics": Metrics,
}
_TOP = ("state", "regions", *TABLES)
REGION_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def settings_of(table: type[DataclassInstance]) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a table, by their names in the file."""
    return {f.metadata["name"] or f.name: f for f in dataclasses.fields(table) if f.metadata}


# -- the text of the file


@dataclass(frozen=True, slots=True)
class _Statement:
    """A header, an assignment, or a line without either: lines first to end, end excluded."""

    first: int
    end: int
    table: Keys
    """The table in force, a header's own included."""
    keys: tuple[Keys, ...]
    """All it sets, by whole names, outer ones first; nothing for a comment or a blank line."""
    header: bool


def statements(text: str) -> Iterator[_Statement]:
    """The statements of a text that is valid TOML.

    tomllib keeps no line numbers. But a statement ends with its line, unless a bracket or a multi-line
    string is open, and then it is not valid yet: so lines are added until tomllib takes them.
    """
    lines = text.split("\n")
    table: Keys = ()
    first = 0
    while first < len(lines):
        end = first + 1
        while (found := _parsed(lines[first:end])) is None:
            end += 1
            assert end <= len(lines), "not valid TOML"
        header = lines[first].lstrip(" \t").startswith("[")
        keys = tuple(_walk(found, () if header else table))
        table = keys[-1] if header else table
        yield _Statement(first, end, table, keys, header)
        first = end


def _parsed(lines: list[str]) -> dict[str, object] | None:
    try:
        return tomllib.loads("\n".join(lines) + "\n")
    except tomllib.TOMLDecodeError:
        return None


def _walk(value: object, above: Keys) -> Iterator[Keys]:
    if isinstance(value, list) and len(value) == 1:  # an array of tables, of which a header makes one
        value = value[0]
    if isinstance(value, dict):
        for name, below in value.items():
            yield (*above, name)
            yield from _walk(below, (*above, name))


def quoted(value: object) -> str:
    """A value as TOML writes it, on one line: strings, numbers, booleans and arrays of these."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")


def title_of(keys: Keys) -> str:
    """A table or a setting by its name: regions."eu.west"."""
    return ".".join(k if re.fullmatch(r"[A-Za-z0-9_-]+", k) else quoted(k) for k in keys)


class _Text:
    """A file while it is read: its values, and the line of each."""

    def __init__(self, text: str, path: Path) -> None:
        self.path, self.lines = path, dict[Keys, int]()
        try:
            self.values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5,000 digits
            what, _, at = str(error).rpartition(" (at ")
            line = re.match(r"line (\d+)", at)
            number = line[1] if line else text.rstrip("\n").count("\n") + 1
            raise Usage(f"{path}, line {number}: this is not TOML: {what or at}") from error
        for statement in statements(text):
            for keys in statement.keys:
                self.lines.setdefault(keys, statement.first + 1)

    def wrong(self, keys: Keys, what: str) -> Usage:
        return Usage(f"{self.path}, line {self.lines[keys]}: {what}")

    def table(self, keys: Keys, value: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self.wrong(keys, f"{title_of(keys)} must be a table, [{title_of(keys)}]; it is {_short(value)}")
        return value

    def value(self, keys: Keys, kind: Kind, value: object) -> object:
        try:
            found = kind(value)
        except ValueError as error:
            where = f"[{title_of(keys[:-1])}] " if keys[1:] else ""
            raise self.wrong(keys, f"{where}{title_of(keys[-1:])} must be {error}; it is {_short(value)}") from None
        return Path(os.path.join(self.path.parent, found)) if isinstance(found, Path) else found

    def read(self, keys: Keys, value: object, into: type[Table], **more: object) -> Table:
        """One table as its dataclass; more are fields that do not come from it."""
        known, given = settings_of(into), dict(more)
        for name, setting in self.table(keys, value).items():
            if name not in known:
                raise self.unknown((*keys, name), known, setting)
            given[known[name].name] = self.value((*keys, name), known[name].metadata["kind"], setting)
        for name, setting_field in known.items():
            if setting_field.default is dataclasses.MISSING and setting_field.name not in given:
                raise self.wrong(keys, f'[{title_of(keys)}] needs a {name}: {name} = "..."')
        return into(**given)

    def unknown(self, keys: Keys, known: Mapping[str, object], value: object) -> Usage:
        *above, name = keys
        homes = [f"[{table}]" for table, cls in TABLES.items() if name in settings_of(cls)]
        near = difflib.get_close_matches(name.lower(), list(known), 1, 0.5)
        if above and name in _TOP:
            advice = "it belongs above the first table" if name == "state" else f"write it as [{name}]"
        elif homes:
            advice = "it belongs in " + " or ".join(homes)
        elif near:
            advice = f"did you mean {quoted(near[0])}?"
        elif above[:1] == ["regions"] and isinstance(value, dict):
            advice = f"a name with a dot is quoted: [regions.{quoted('.'.join(keys[1:]))}]"
        else:
            advice = "there are " + ", ".join(known)
        where = f"[{title_of(tuple(above))}]" if above else "the file"
        what = "table" if isinstance(value, dict) else "setting"
        return self.wrong(keys, f"{where} has no {what} {quoted(name)}; {advice}")


def _short(value: object) -> str:
    text = quoted(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- reading


def parse(text: str, path: Path, real: Callable[[str], str] = os.path.normpath) -> Settings:
    """The settings in the text of a file. path is absolute; real resolves the symlinks of a path. Raises Usage."""
    file = _Text(text, path)
    state = SYSTEM_STATE if path == SYSTEM else path.parent / STATE
    regions: dict[str, RegionSettings] = {}
    tables: dict[str, Any] = {}
    for name, value in file.values.items():
        if name == "state":
            found = file.value(("state",), path_kind, value)
            assert isinstance(found, Path)
            state = found
        elif name == "regions":
            for region, below in file.table(("regions",), value).items():
                keys = ("regions", region)
                if not REGION_NAME.fullmatch(region):
                    raise file.wrong(keys, bad_name(region))
                regions[region] = file.read(keys, below, RegionSettings, name=region)
        elif name in TABLES:
            tables[name] = file.read((name,), value, TABLES[name])
        else:
            raise file.unknown((name,), dict.fromkeys(_TOP), value)
    _check_apart(file, regions, state, real)
    return Settings(path, state, MappingProxyType(regions), **tables)


def bad_name(region: str) -> str:
    return f"{quoted(region)} cannot name a region: letters, digits, '.', '_' and '-', not beginning with a '.'"


def _check_apart(file: _Text, regions: Mapping[str, RegionSettings], state: Path, real: Callable[[str], str]) -> None:
    """Regions must not overlap, or one's replicas would be another's new files; nor may the journal be an object."""
    places = {name: os.path.join(real(str(region.path)), "") for name, region in regions.items()}
    for (one, here), (other, there) in itertools.combinations(places.items(), 2):
        keys = ("regions", other, "path")
        if here == there:
            raise file.wrong(
                keys, f"regions {one} and {other} are the same directory, {_plain(here)}; give each its own"
            )
        for inner, outer in itertools.permutations((one, other)):
            if places[inner].startswith(places[outer]):
                raise file.wrong(
                    keys,
                    f"region {inner} ({_plain(places[inner])}) lies within region {outer} ({_plain(places[outer])}); "
                    "choose directories beside each other",
                )
    place = os.path.join(real(str(state)), "")
    for name, here in places.items():
        if place.startswith(here) and not place.removeprefix(here).startswith("."):
            named = ("state",) in file.lines
            raise file.wrong(
                ("state",) if named else ("regions", name, "path"),
                f"the state folder ({_plain(place)}) lies within region {name}; keep it outside",
            )
        if here.startswith(place):
            raise file.wrong(
                ("regions", name, "path"),
                f"region {name} lies within the state folder ({_plain(place)}); keep it outside",
            )


def _plain(place: str) -> str:
    return place.rstrip("/") or "/"


def load(path: Path, real: Callable[[str], str] = os.path.realpath) -> Settings:
    """The settings in a file, with regions compared by real path, which asks their filesystems. Raises Usage."""
    path = Path(os.path.abspath(path))
    try:
        data = path.read_bytes()
        return parse(data.decode(), path, real)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Usage(f"{path}, line {line}: this is not UTF-8, as TOML must be") from error
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}; `fsrepl init DIR` makes a new site") from error


def find(start: Path | None, env: Mapping[str, str]) -> Path:
    """The fsrepl.toml meant: that of --site or FSREPL_SITE, else the nearest upwards, else the system's.

    One that is met on the way up must be our own or root's: it names commands to run, and anybody may
    leave a file in /tmp. Raises Usage saying what to do where there is none.
    """
    named = start or (Path(env["FSREPL_SITE"]) if env.get("FSREPL_SITE") else None)
    if named is not None:
        path = Path(os.path.abspath(named if named.name == FILE and not os.path.isdir(named) else named / FILE))
        if not _exists(path):
            raise Usage(f"there is no site at {path.parent}: it has no {FILE}; `fsrepl init {path.parent}` makes one")
        return path
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed under our feet
        here = Path("/")
    for folder in (here, *here.parents):
        path = folder / FILE
        try:
            owner = path.stat().st_uid if path.is_file() else None
        except OSError:
            continue
        if owner is None:
            continue
        if owner not in (0, os.geteuid()):
            raise Usage(
                f"{path} belongs to another user (uid {owner}); say `--site {folder}` if that is the one you mean"
            )
        return path
    if _exists(SYSTEM):
        return SYSTEM
    raise Usage(
        f"there is no {FILE} in {here}, nor above it, nor {SYSTEM}; "
        "`fsrepl init DIR` makes a site, `--site DIR` or FSREPL_SITE names one"
    )


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}") from error


# -- writing

HEAD = """\
# fsrepl.toml: the settings of this site. `fsrepl check` tells what is wrong with it.
# What is commented out is the default; a setting counts only below the [table] it belongs to.
"""


LINE_MAX = 120
