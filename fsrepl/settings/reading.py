"""fsrepl.toml, read once and checked completely, so that nothing starts with half of a setting applied.

Every error is a Usage with the file, the line and a valid value. Pure except `load` and `find`. Source: design.md,
section 4.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import Usage
from fsrepl.settings import (
    ARCHIVES,
    FILE,
    REGION_NAME,
    STATE,
    TABLES,
    TIERS,
    ClassSettings,
    EndpointSettings,
    HostSettings,
    RegionSettings,
    Settings,
    kinds,
    settings_of,
)
from fsrepl.settings.kinds import Kind
from fsrepl.settings.toml import Keys, quoted, statements, title_of

Table = TypeVar("Table", bound=Struct)

SYSTEM = Path("/etc/fsrepl") / FILE
SYSTEM_STATE = Path("/var/lib/fsrepl")
_TOP = ("state", "regions", *TABLES)


class _Text:
    """The parsed values of a file, and the line of each."""

    def __init__(self, text: str, path: Path) -> None:
        self.path, self._text = path, text
        try:
            self.values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5,000 digits
            what, _, at = str(error).rpartition(" (at ")
            line = re.match(r"line (\d+)", at)
            number = line[1] if line else text.rstrip("\n").count("\n") + 1
            raise Usage(f"{path}, line {number}: this is not TOML: {what or at}") from error

    @functools.cached_property
    def lines(self) -> dict[Keys, int]:
        """The line of each value, for messages: every command reads the file, and few find something wrong in it."""
        lines: dict[Keys, int] = {}
        for statement in statements(self._text):
            for keys in statement.keys:
                lines.setdefault(keys, statement.first + 1)
        return lines

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
            repeated = "" if isinstance(error, kinds.Confidential) else f"; it is {_short(value)}"
            raise self.wrong(keys, f"{where}{title_of(keys[-1:])} must be {error}{repeated}") from None
        return Path(os.path.join(self.path.parent, found)) if isinstance(found, Path) else found

    def read(self, keys: Keys, value: object, into: type[Table], **more: object) -> Table:
        """One table as its Struct. more: fields that do not come from the table."""
        known, given = settings_of(into), dict(more)
        for name, setting in self.table(keys, value).items():
            if name not in known:
                raise self.unknown((*keys, name), known, setting)
            given[known[name].field] = self.value((*keys, name), known[name].kind, setting)
        for name, one in known.items():
            if one.is_required and one.field not in given:
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


def parse(text: str, path: Path, real: Callable[[str], str] = os.path.normpath) -> Settings:
    """The settings in the text of a file. path is absolute. real: resolves the symlinks of a path. Raises Usage."""
    file = _Text(text, path)
    state = SYSTEM_STATE if path == SYSTEM else path.parent / STATE
    regions: dict[str, RegionSettings] = {}
    endpoints: dict[str, EndpointSettings] = {}
    hosts: dict[str, HostSettings] = {}
    tables: dict[str, Any] = {}
    for name, value in file.values.items():
        if name == "state":
            found = file.value(("state",), kinds.path, value)
            assert isinstance(found, Path)
            state = found
        elif name == "regions":
            for region, below in file.table(("regions",), value).items():
                keys = ("regions", region)
                if not REGION_NAME.fullmatch(region):
                    raise file.wrong(keys, bad_name(region))
                if _is_service(below):
                    endpoints[region] = _endpoint(path, file.read(keys, below, EndpointSettings, name=region))
                elif _is_elsewhere(below):
                    hosts[region] = _host(file, keys, file.read(keys, below, HostSettings, name=region))
                else:
                    regions[region] = _region(file, keys, file.table(keys, below))
        elif name in TABLES:
            tables[name] = file.read((name,), value, TABLES[name])
        else:
            raise file.unknown((name,), dict.fromkeys(_TOP), value)
    _check_apart(file, regions, state, real)
    return Settings(
        path, state, MappingProxyType(regions), **tables,
        endpoints=MappingProxyType(endpoints), hosts=MappingProxyType(hosts),
    )  # fmt: skip


def _is_service(table: object) -> bool:
    """Whether a region's table is that of an S3 service: it names one, or has settings that only one has."""
    if not isinstance(table, dict):
        return False
    return "endpoint" in table or ("path" not in table and bool(table.keys() & settings_of(EndpointSettings).keys()))


def _is_elsewhere(table: object) -> bool:
    """Whether a region's table is that of a region on another machine: its path is an address."""
    return isinstance(table, dict) and isinstance(path := table.get("path"), str) and "://" in path


def _host(file: _Text, keys: Keys, found: HostSettings) -> HostSettings:
    for name, value in (("ssh", found.ssh), ("agent", found.agent)):
        if not value:
            raise file.wrong((*keys, name), f"[{title_of(keys)}] {name} must name a program")
    return found


def _endpoint(path: Path, found: EndpointSettings) -> EndpointSettings:
    """The settings of a service, with the path of its credentials absolute."""
    if found.credentials.source != "file":
        return found
    name = os.path.join(path.parent, found.credentials.name)
    return replace(found, credentials=replace(found.credentials, name=name))


def _region(file: _Text, keys: Keys, table: dict[str, object]) -> RegionSettings:
    """A region and its tiers, [regions.NAME.classes.CLASS]."""
    classes = {}
    above = (*keys, "classes")
    for name, below in file.table(above, table.get("classes", {})).items():
        if name not in TIERS:
            near = difflib.get_close_matches(name.upper(), TIERS, 1, 0.5)
            advice = f"did you mean {quoted(near[0])}?" if near else f"there are {', '.join(TIERS)}"
            if name == "STANDARD":
                advice = "STANDARD lies in the region's own path"
            raise file.wrong((*above, name), f"[{title_of(above)}] has no storage class {quoted(name)}; {advice}")
        classes[name] = file.read((*above, name), below, ClassSettings, name=name)
        if classes[name].compress != "none" and name not in ARCHIVES:
            raise file.wrong(
                (*above, name, "compress"),
                f"[{title_of((*above, name))}] cannot be compressed: its content is read without being restored first; "
                f"compress is for {' and '.join(ARCHIVES)}",
            )
    own = {name: value for name, value in table.items() if name != "classes"}
    return file.read(keys, own, RegionSettings, name=keys[-1], classes=MappingProxyType(classes))


def bad_name(region: str) -> str:
    return f"{quoted(region)} cannot name a region: letters, digits, '.', '_' and '-', not beginning with a '.'"


def _check_apart(file: _Text, regions: Mapping[str, RegionSettings], state: Path, real: Callable[[str], str]) -> None:
    """Refuse overlapping regions and tiers, where replicas in one would be new files in another, and a state folder
    inside one of them, where the journal would be an object."""
    places: dict[Keys, str] = {}
    for name, region in regions.items():
        places["regions", name] = os.path.join(real(str(region.path)), "")
        for tier in region.classes.values():
            places["regions", name, "classes", tier.name] = os.path.join(real(str(tier.path)), "")
    for (one, here), (other, there) in itertools.combinations(places.items(), 2):
        keys = (*other, "path")
        if here == there:
            raise file.wrong(keys, f"{_kind(one, other)} are the same directory, {_plain(here)}; give each its own")
        for inner, outer in itertools.permutations((one, other)):
            if places[inner].startswith(places[outer]):
                raise file.wrong(
                    keys,
                    f"{_called(inner)} ({_plain(places[inner])}) lies within {_called(outer)} "
                    f"({_plain(places[outer])}); choose directories beside each other",
                )
    place = os.path.join(real(str(state)), "")
    for keys, here in places.items():
        if place.startswith(here) and not place.removeprefix(here).startswith("."):
            named = ("state",) in file.lines
            raise file.wrong(
                ("state",) if named else (*keys, "path"),
                f"the state folder ({_plain(place)}) lies within {_called(keys)}; keep it outside",
            )
        if here.startswith(place):
            raise file.wrong(
                (*keys, "path"),
                f"{_called(keys)} lies within the state folder ({_plain(place)}); keep it outside",
            )


def _called(keys: Keys) -> str:
    return f"region {keys[1]}" if len(keys) == 2 else f"class {keys[3]} of region {keys[1]}"


def _kind(one: Keys, other: Keys) -> str:
    if len(one) == len(other) == 2:
        return f"regions {one[1]} and {other[1]}"
    return f"{_called(one)} and {_called(other)}"


def _plain(place: str) -> str:
    return place.rstrip("/") or "/"


def load(path: Path, real: Callable[[str], str] = os.path.realpath) -> Settings:
    """The settings in a file. Regions are compared by real path, which accesses their filesystems. Raises Usage."""
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
    """The path of fsrepl.toml: from --site or FSREPL_SITE, else the nearest upwards, else the system's.

    A file found upwards must belong to this user or root, because it names commands to run, and any user may leave a
    file in /tmp. Raises Usage with a remedy where there is no file.
    """
    named = start or (Path(env["FSREPL_SITE"]) if env.get("FSREPL_SITE") else None)
    if named is not None:
        path = Path(os.path.abspath(named if named.name == FILE and not os.path.isdir(named) else named / FILE))
        if not _exists(path):
            raise Usage(f"there is no site at {path.parent}: it has no {FILE}; `fsrepl init {path.parent}` makes one")
        return path
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed meanwhile
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
