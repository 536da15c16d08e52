"""fsrepl.toml as text: written new, and edited without losing its comments."""

from __future__ import annotations

import itertools
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from fsrepl.errors import Usage
from fsrepl.settings import (
    FILE,
    REGION_NAME,
    STATE,
    TABLES,
    EndpointSettings,
    HostSettings,
    RegionSettings,
    kinds,
    settings_of,
)
from fsrepl.settings.reading import bad_name
from fsrepl.settings.toml import quoted, statements, title_of

_HEAD = """\
# fsrepl.toml: the settings of this site. `fsrepl check` names mistakes in it.
# Lines that are commented out are the defaults; a setting counts only below the [table] it belongs to.
"""
_LINE_MAX = 120


def render(regions: Mapping[str, str]) -> str:
    """The text of a new file: the regions with their paths, all other settings commented out. Raises Usage."""
    state = "journal, control socket, identities; for /etc/fsrepl it is /var/lib/fsrepl"
    parts = [_HEAD + _comment("state", STATE, state), *(_region(name, path) for name, path in regions.items())]
    for table, cls in TABLES.items():
        lines = [_comment(name, s.toml, s.about) for name, s in settings_of(cls).items()]
        parts.append(f"# [{table}]\n" + "".join(lines))
    return "\n".join(parts)


def _comment(name: str, default: object, about: str) -> str:
    line = f"# {name} = {quoted(default)}"
    if len(line) < 60:
        return f"{line:<31} # {about}\n"
    if isinstance(default, list) and len(line) > _LINE_MAX:
        values = textwrap.wrap(", ".join(map(quoted, default)), _LINE_MAX - 6, break_on_hyphens=False)
        line = "\n".join([f"# {name} = [", *(f"#     {some}" for some in values), "# ]"])
    return f"# ({about})\n{line}\n"


def _region(name: str, path: str) -> str:
    if not REGION_NAME.fullmatch(name):
        raise Usage(bad_name(name))
    try:
        kinds.path(path)
        path.encode()
    except UnicodeEncodeError as error:
        raise Usage(
            f"the path of region {name} is not UTF-8, and {FILE} cannot hold it; use a symlink to it"
        ) from error
    except ValueError as error:
        raise Usage(f"region {name}: {quoted(path)} must be {error}") from None
    sharing = settings_of(RegionSettings)["sharing"]
    return f"[{title_of(('regions', name))}]\npath = {quoted(path)}\n" + _comment(
        "sharing", sharing.toml, sharing.about
    )


def _elsewhere(name: str, url: str, check: Callable[[str], object], settings: type[Struct], field: str) -> str:
    """The table of a region that is not on this machine. check: raises ValueError for an address that is none. field:
    the setting that holds the address. Raises Usage."""
    if not REGION_NAME.fullmatch(name):
        raise Usage(bad_name(name))
    try:
        check(url)
    except ValueError as error:
        raise Usage(f"region {name}: {quoted(url)} must be {error}") from None
    known = settings_of(settings)
    others = [_comment(n, s.toml, s.about) for n, s in known.items() if n != field]
    return f"[{title_of(('regions', name))}]\n{field} = {quoted(url)}\n" + "".join(others)


def add_host(text: str, name: str, url: str) -> str:
    """The text with one more region, on another machine: see add_region. Raises Usage."""
    return _added(text, name, _elsewhere(name, url, kinds.place, HostSettings, "path"), {"path": url})


def add_region(text: str, name: str, path: str) -> str:
    """The text of a file with one more region after the others, and nothing else changed.

    The given text is one that `parse` accepts. The caller parses the result before it is written, since the new region
    may overlap an old one. Raises Usage.
    """
    return _added(text, name, _region(name, path), {"path": path})


def add_service(text: str, name: str, url: str) -> str:
    """The text with one more region, an S3 service: see add_region. Raises Usage."""
    return _added(text, name, _elsewhere(name, url, kinds.service, EndpointSettings, "endpoint"), {"endpoint": url})


def _added(text: str, name: str, table: str, settings: dict[str, str]) -> str:
    expected = tomllib.loads(text)
    regions = expected.setdefault("regions", {})
    if name in regions:
        raise Usage(f"there is a region {name} already; `fsrepl region forget {name}` removes it from the settings")
    new = table.rstrip("\n").split("\n")
    regions[name] = settings
    result = _with_table(text, new, after=("regions",))
    return _checked(result, expected, f"add [{title_of(('regions', name))}] to {FILE} by hand")


def _with_table(text: str, new: Sequence[str], after: tuple[str, ...]) -> str:
    """The text of a file with the lines of a new table after the last one whose name begins so, else at the end."""
    lines, found = text.split("\n"), [s for s in statements(text) if s.keys]
    at = len(text.rstrip().split("\n"))
    last = max((i for i, s in enumerate(found) if s.keys[0][: len(after)] == after), default=None)
    if last is not None:
        while last + 1 < len(found) and not found[last + 1].header:
            last += 1
        at = _with_comments(lines, found[last].end)
    block = [*([""] if "".join(lines[:at]) else []), *new, *([""] if at < len(lines) and lines[at].strip() else [])]
    block = [line + "\r" for line in block] if "\r\n" in text else block
    return "\n".join(lines[:at] + block + (lines[at:] or [""]))


def _cut(lines: list[str], first: int, end: int) -> None:
    """Remove lines, and one of the blank lines around them."""
    if first and not lines[first - 1].strip() and (end == len(lines) or not lines[end].strip()):
        first -= 1
    del lines[first:end]


def move_region(text: str, name: str, path: str) -> str:
    """The text of a file with another path for a region, and nothing else changed. Raises Usage."""
    expected = tomllib.loads(text)
    expected["regions"][name]["path"] = path
    new = _region(name, path).split("\n")[1]
    lines = text.split("\n")
    for statement in statements(text):
        if ("regions", name, "path") in statement.keys and not statement.header:
            before, _, after = lines[statement.first].partition("=")
            value = new.partition("=")[2] + ("\r" if after.endswith("\r") else "")
            lines[statement.first : statement.end] = [f"{before}={value}"]
            break
    try:
        return _checked("\n".join(lines), expected, f"change the path of region {name} by hand")
    except Usage:
        if expected["regions"][name].keys() != {"path"}:
            raise
    return add_region(remove_region(text, name), name, path)  # an inline table with the path alone


def put_class(text: str, region: str, name: str, values: Mapping[str, object]) -> str:
    """The text of a file with a tier of a region, new or with other values, and nothing else changed. Raises Usage."""
    expected = tomllib.loads(text)
    if name in expected["regions"][region].get("classes", {}):
        text = remove_class(text, region, name)
        expected = tomllib.loads(text)
    expected["regions"][region].setdefault("classes", {})[name] = dict(values)
    keys = ("regions", region, "classes", name)
    new = [f"[{title_of(keys)}]", *(f"{each} = {quoted(value)}" for each, value in values.items())]
    result = _with_table(text, new, after=("regions", region))
    return _checked(result, expected, f"add [{title_of(keys)}] to {FILE} by hand")


def remove_class(text: str, region: str, name: str) -> str:
    """The text of a file without a tier of a region, and nothing else changed. Raises Usage."""
    expected = tomllib.loads(text)
    keys = ("regions", region, "classes", name)
    classes = expected["regions"][region]["classes"]
    del classes[name]
    if not classes:
        del expected["regions"][region]["classes"]
    lines, found = text.split("\n"), [s for s in statements(text) if s.keys]
    for i, statement in reversed(list(enumerate(found))):
        if statement.header and statement.table == keys:
            own = list(itertools.takewhile(lambda s: not s.header, found[i + 1 :]))
            first, end = statement.first, _with_comments(lines, (own or [statement])[-1].end)
            _cut(lines, first, end)
    return _checked("\n".join(lines), expected, f"remove [{title_of(keys)}] from {FILE} by hand")


def remove_region(text: str, name: str) -> str:
    """The text of a file without a region's table and the comments in it, and nothing else changed. Raises Usage."""
    expected = tomllib.loads(text)
    if name not in expected.get("regions", {}):
        raise Usage(f"there is no region {quoted(name)} in the settings")
    del expected["regions"][name]
    keys = ("regions", name)
    lines, found = text.split("\n"), [s for s in statements(text) if s.keys]
    for i, statement in reversed(list(enumerate(found))):
        if statement.header and statement.table[:2] == keys:
            own = list(itertools.takewhile(lambda s: not s.header, found[i + 1 :]))
            first, end = statement.first, _with_comments(lines, (own or [statement])[-1].end)
        elif not statement.header and statement.table[:2] != keys and keys in statement.keys:
            first, end = statement.first, statement.end
        else:
            continue
        _cut(lines, first, end)
    return _checked("\n".join(lines), expected, f"remove region {name} from {FILE} by hand")


def _with_comments(lines: list[str], at: int) -> int:
    """The end of the comments directly after a line; comments directly before a header belong to the header."""
    end = at
    while end < len(lines) and lines[end].lstrip().startswith("#"):
        end += 1
    return at if end < len(lines) and lines[end].lstrip().startswith("[") else end


def _checked(text: str, expected: dict[str, Any], otherwise: str) -> str:
    """The text, if it has the expected settings: a file may be written without tables that can be added or removed."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        found = {}
    for document in (found, expected):
        if not document.get("regions", True):
            del document["regions"]
    if found != expected:
        raise Usage(f"{FILE} is written in a way that cannot be edited here; {otherwise}")
    return text
